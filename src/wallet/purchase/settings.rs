//! The variables by which purchases are verified, read at the start with all others.
//!
//! # Failure behavior
//!
//! As [`crate::config`] says: every variable that is wrong or missing is named, without its value. A
//! provider that is set up by half is a problem too, and not switched off in silence.

use std::collections::BTreeMap;

use serde::Deserialize;
use url::Url;
use x509_parser::pem::Pem;

use super::{MAX_ID_BYTES, Products, apple, google};
use crate::config::{Problems, boolean, web_url};

/// Most credits that one product gives.
const MAX_CREDITS: i64 = 1_000_000_000;

/// The variables as they stand.
#[derive(Deserialize, Default)]
pub(crate) struct Variables {
    credit_products: Option<String>,
    apple_root_certificates: Option<String>,
    apple_bundle_id: Option<String>,
    apple_allow_sandbox: Option<String>,
    google_play_package: Option<String>,
    google_play_credentials: Option<String>,
    google_play_api_base: Option<String>,
    google_play_allow_test: Option<String>,
}

/// Whose purchases can be verified, and what they give. Stripe's need no more than its key.
#[derive(Clone, Default)]
pub struct Purchases {
    pub products: Products,
    /// `None`: switched off.
    pub apple: Option<apple::Settings>,
    /// `None`: switched off.
    pub google: Option<google::Settings>,
}

impl Variables {
    /// Makes of the variables what they mean, and adds to `problems` what is wrong with them.
    pub(crate) fn read(self, problems: &mut Problems) -> Purchases {
        let apple = [
            ("APPLE_ROOT_CERTIFICATES", self.apple_root_certificates.is_some()),
            ("APPLE_BUNDLE_ID", self.apple_bundle_id.is_some()),
        ];
        let google = [
            ("GOOGLE_PLAY_PACKAGE", self.google_play_package.is_some()),
            ("GOOGLE_PLAY_CREDENTIALS", self.google_play_credentials.is_some()),
        ];
        let sold = ("CREDIT_PRODUCTS", self.credit_products.is_some());
        let mut missing: Vec<&str> = Vec::new();
        for store in [apple, google].iter().filter(|store| store.iter().any(|(_, given)| *given)) {
            let needed = store.iter().chain([&sold]).filter(|(_, given)| !given);
            missing.extend(needed.map(|(name, _)| *name));
        }
        missing.dedup();
        for name in missing {
            problems.add(name, "must be set too, where purchases of an app store are to be verified");
        }

        let products = problems.read("CREDIT_PRODUCTS", self.credit_products, Products::default(), products);
        let roots = problems.read("APPLE_ROOT_CERTIFICATES", self.apple_root_certificates, None, |text| {
            certificates(text).map(Some)
        });
        let bundle_id = problems.read("APPLE_BUNDLE_ID", self.apple_bundle_id, None, app_id);
        let allow_sandbox = problems.read("APPLE_ALLOW_SANDBOX", self.apple_allow_sandbox, false, boolean);
        let package = problems.read("GOOGLE_PLAY_PACKAGE", self.google_play_package, None, app_id);
        let account = problems.read("GOOGLE_PLAY_CREDENTIALS", self.google_play_credentials, None, |text| {
            google::ServiceAccount::read(text, web_url).map(Some)
        });
        let api_base =
            problems.read("GOOGLE_PLAY_API_BASE", self.google_play_api_base, googles_own(), web_url);
        let allow_test = problems.read("GOOGLE_PLAY_ALLOW_TEST", self.google_play_allow_test, false, boolean);
        Purchases {
            products,
            apple: roots.zip(bundle_id).map(|(roots, bundle_id)| apple::Settings {
                roots,
                bundle_id,
                allow_sandbox,
            }),
            google: package.zip(account).map(|(package, account)| google::Settings {
                package,
                api_base,
                account,
                allow_test,
            }),
        }
    }
}

#[expect(clippy::expect_used, reason = "the text is a URL")]
fn googles_own() -> Url {
    Url::parse("https://androidpublisher.googleapis.com").expect("Google's address")
}

fn products(text: &str) -> Result<Products, &'static str> {
    const WRONG: &str = "must be products and what they give, such as com.example.credits.100=100, each once, \
                         separated by commas; whole credits from 1 to 1000000000";
    let mut products = BTreeMap::new();
    for product in text.split(',').map(str::trim).filter(|product| !product.is_empty()) {
        let (id, credits) = product.rsplit_once('=').ok_or(WRONG)?;
        let (id, credits) = (id.trim_end(), credits.trim_start().parse().map_err(|_| WRONG)?);
        let fits = (1..=MAX_ID_BYTES).contains(&id.len()) && (1..=MAX_CREDITS).contains(&credits);
        if !fits || products.insert(id.to_owned(), credits).is_some() {
            return Err(WRONG);
        }
    }
    if products.is_empty() { Err(WRONG) } else { Ok(Products(products)) }
}

/// Certificates as DER. Where a variable can't have line breaks, they are written `\n`.
fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, &'static str> {
    const WRONG: &str = "must be one or more certificates as PEM";
    let pem = pem.replace("\\n", "\n");
    let mut roots = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|_| WRONG)?;
        if block.label != "CERTIFICATE" || !apple::is_certificate(&block.contents) {
            return Err(WRONG);
        }
        roots.push(block.contents);
    }
    if roots.is_empty() { Err(WRONG) } else { Ok(roots) }
}

fn app_id(text: &str) -> Result<Option<String>, &'static str> {
    let fits = text.len() <= MAX_ID_BYTES
        && text.contains(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits { Ok(Some(text.to_owned())) } else { Err("must be an app's id, such as com.example.app") }
}
