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
        missing.sort_unstable();
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
        let fits = is_store_id(id) && (1..=MAX_CREDITS).contains(&credits);
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
    match is_store_id(text) {
        true => Ok(Some(text.to_owned())),
        false => Err("must be an app's id, such as com.example.app"),
    }
}

/// Whether it could be the id of an app or a product in one of the stores.
fn is_store_id(text: &str) -> bool {
    text.len() <= MAX_ID_BYTES
        && text.contains(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = include_str!("google/service_account.pem");

    fn read(variables: &[(&str, &str)]) -> (Purchases, Vec<String>) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut problems = Problems(Vec::new());
        let purchases = envy::from_iter::<_, Variables>(variables).unwrap().read(&mut problems);
        (purchases, problems.0)
    }

    fn certificate() -> (String, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert;
        (made.pem(), made.der().to_vec())
    }

    fn account() -> String {
        let account = [("client_email", "a@b"), ("private_key", KEY), ("token_uri", "https://token.example")];
        serde_json::to_string(&BTreeMap::from(account)).unwrap()
    }

    #[test]
    fn without_its_variables_nothing_can_be_verified_and_nothing_is_wrong() {
        let (purchases, problems) = read(&[]);
        assert!(problems.is_empty() && purchases.apple.is_none() && purchases.google.is_none());
        let (purchases, problems) = read(&[("APPLE_ALLOW_SANDBOX", "1"), ("CREDIT_PRODUCTS", "a=1")]);
        assert!(problems.is_empty() && purchases.apple.is_none() && purchases.google.is_none());
    }

    #[test]
    fn both_app_stores_are_set_up_by_their_variables() {
        let ((one, der), (two, other), account) = (certificate(), certificate(), account());
        let several = format!("{}\n{two}", one.replace('\n', "\\n"));
        let (purchases, problems) = read(&[
            ("CREDIT_PRODUCTS", " c.100=100, c.500 = 500,"),
            ("APPLE_ROOT_CERTIFICATES", &several),
            ("APPLE_BUNDLE_ID", "com.example.app"),
            ("APPLE_ALLOW_SANDBOX", "true"),
            ("GOOGLE_PLAY_PACKAGE", "com.example.app_2"),
            ("GOOGLE_PLAY_CREDENTIALS", &account),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        let Purchases { products, apple: Some(apple), google: Some(google) } = purchases else { panic!() };
        assert_eq!(products.0, BTreeMap::from([("c.100".to_owned(), 100), ("c.500".to_owned(), 500)]));
        assert_eq!((apple.roots, apple.allow_sandbox), (vec![der, other], true));
        assert_eq!((google.package.as_str(), google.allow_test), ("com.example.app_2", false));
        assert_eq!(google.api_base.as_str(), "https://androidpublisher.googleapis.com/");
    }

    #[test]
    fn a_store_that_is_set_up_by_half_is_a_problem_that_names_the_rest() {
        let ((pem, _), account) = (certificate(), account());
        for (given, missing) in [
            (vec![("APPLE_BUNDLE_ID", "a")], vec!["APPLE_ROOT_CERTIFICATES", "CREDIT_PRODUCTS"]),
            (vec![("APPLE_ROOT_CERTIFICATES", pem.as_str())], vec!["APPLE_BUNDLE_ID", "CREDIT_PRODUCTS"]),
            (vec![("GOOGLE_PLAY_PACKAGE", "a"), ("CREDIT_PRODUCTS", "a=1")], vec!["GOOGLE_PLAY_CREDENTIALS"]),
            (
                vec![("APPLE_BUNDLE_ID", "a"), ("GOOGLE_PLAY_CREDENTIALS", account.as_str())],
                vec!["APPLE_ROOT_CERTIFICATES", "CREDIT_PRODUCTS", "GOOGLE_PLAY_PACKAGE"],
            ),
        ] {
            let (_, problems) = read(&given);
            let named: Vec<&str> =
                problems.iter().map(|problem| problem.split(": ").next().unwrap()).collect();
            assert_eq!(named, missing);
        }
    }

    #[test]
    fn values_that_mean_nothing_are_problems() {
        let (pem, _) = certificate();
        let (body, cut) = (pem.replace("CERTIFICATE", "PUBLIC KEY"), &pem[..pem.len() / 2]);
        let garbage = "-----BEGIN CERTIFICATE-----\nZ2FyYmFnZQ==\n-----END CERTIFICATE-----\n";
        let mixed = format!("{pem}{garbage}");
        for pem in [KEY, &body, cut, garbage, &mixed, "/etc/root.pem"] {
            assert!(certificates(pem).is_err(), "{pem}");
        }
        let long = format!("{}=1", "a".repeat(256));
        for text in [
            "a",
            "a=",
            "=1",
            "a=0",
            "a=-1",
            "a=1.5",
            "a=1,a=2",
            "a=1000000001",
            ",",
            "a=1;b=2",
            "a=b=1",
            "../a=1",
            &long,
        ] {
            assert!(products(text).is_err(), "{text}");
        }
        for text in ["com example", "..", "a/b", "a?", &"a".repeat(256)] {
            assert!(app_id(text).is_err(), "{text}");
        }
    }
}
