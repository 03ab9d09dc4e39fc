//! Apple's purchases: a transaction that the App Store signed, as StoreKit 2 hands it to the app. It
//! is verified here, offline, by the certificates that come with it (see [`chain`]).
//!
//! # Failure behavior
//!
//! Nothing of a transaction is believed before its signature was verified, and nothing but ES256 is
//! taken for one. Apple isn't asked, so a refund after the signature is not heard of.

mod chain;
#[cfg(test)]
mod tests;

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use serde::{Deserialize, de::DeserializeOwned, de::IgnoredAny};

use super::{Products, Provider, Record, Unverified, Verified};
use crate::{clock::Time, wallet::Payment};

/// Longest signed transaction; those of the App Store have about 6 kB.
const MAX_BYTES: usize = 32 * 1024;

/// How far Apple's clock may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(5 * 60);

/// What it takes to verify transactions of one app.
#[derive(Clone)]
pub struct Settings {
    /// The certificates, as DER, that a chain may end in.
    pub roots: Vec<Vec<u8>>,
    pub bundle_id: String,
    /// Whether purchases of the sandbox, which nobody paid for, are taken too.
    pub allow_sandbox: bool,
}

pub use chain::is_certificate;

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    x5c: Vec<String>,
    /// Extensions that must be understood: we know none.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Transaction {
    transaction_id: String,
    product_id: String,
    bundle_id: String,
    environment: String,
    #[serde(rename = "type")]
    kind: String,
    quantity: i64,
    /// Milliseconds since 1970.
    signed_date: i64,
    revocation_date: Option<IgnoredAny>,
}

/// Verifies the signed transaction, and that it is of the record's purchase.
pub(super) fn verify(
    settings: &Settings,
    products: &Products,
    record: &Record,
    jws: &str,
    credits: i64,
    now: Time,
) -> Result<Verified, Unverified> {
    let bought = transaction(settings, jws, now).map_err(invalid)?;
    if bought.bundle_id != settings.bundle_id {
        return Err(invalid("it is of another app"));
    }
    match bought.environment.as_str() {
        "Production" => {}
        "Sandbox" if settings.allow_sandbox => {}
        "Sandbox" => return Err(invalid("it is of the sandbox, where nothing is paid")),
        _ => return Err(invalid("it is not of the App Store")),
    }
    if bought.revocation_date.is_some() {
        return Err(invalid("it was refunded or revoked"));
    }
    if bought.kind != "Consumable" {
        return Err(invalid("it is of no consumable product, and credits are one"));
    }
    if bought.quantity < 1 {
        return Err(invalid("it has no quantity"));
    }
    for (field, of, says) in [
        ("transactionId", &bought.transaction_id, &record.transaction_id),
        ("productId", &bought.product_id, &record.product_id),
    ] {
        if of != says {
            return Err(Unverified::Mismatch(format!(
                "The signed transaction's `{field}` is `{of}`, not `{says}`."
            )));
        }
    }
    let credits = products.credits(&bought.product_id, bought.quantity, credits)?;
    Ok(Verified {
        transaction_id: bought.transaction_id,
        product_id: bought.product_id,
        verified_by: Provider::Apple,
        credits,
        payment: Payment::default(),
        amount_cents: 0,
    })
}

fn invalid(why: &'static str) -> Unverified {
    Unverified::Invalid(format!("The signed transaction is not taken: {why}."))
}

/// The transaction, if the App Store signed it with a certificate that was valid then.
fn transaction(settings: &Settings, jws: &str, now: Time) -> Result<Transaction, &'static str> {
    const NO_JWS: &str = "it is no JWS of three parts in base64url";
    if jws.len() > MAX_BYTES {
        return Err("it is too long");
    }
    let (message, signature) = jws.rsplit_once('.').ok_or(NO_JWS)?;
    let (header, payload) = message.split_once('.').ok_or(NO_JWS)?;
    let header: Header = part(header).ok_or(NO_JWS)?;
    if header.alg != "ES256" || header.crit.is_some() {
        return Err("it is not signed by ES256");
    }
    let signer = chain::signer(&header.x5c, &settings.roots)?;
    let key = DecodingKey::from_ec_der(&signer.key);
    if !crypto::verify(signature, message.as_bytes(), &key, Algorithm::ES256).unwrap_or(false) {
        return Err("its signature is not that of its certificate");
    }
    let transaction: Transaction = part(payload).ok_or("what is signed is no transaction")?;
    if Time(transaction.signed_date) > now.plus(AHEAD) {
        return Err("it is signed in the future");
    }
    if !signer.valid.contains(&transaction.signed_date.div_euclid(1_000)) {
        return Err("its certificates were not valid when it was signed");
    }
    Ok(transaction)
}

fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}
