//! Public keys that tokens are checked with: RSA for RS256, P-256 for ES256. Each is for one
//! algorithm alone, whatever a token says.
//!
//! # Failure behavior
//!
//! What is no such key is refused where it is read, and not when the first token comes.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use rsa::{BigUint, RsaPublicKey, pkcs1::DecodeRsaPublicKey, pkcs8::DecodePublicKey, traits::PublicKeyParts};
use serde_json::Value;

use super::Token;

/// An RSA key of fewer bits can be broken. Of more than 4096 it is not read at all.
const MIN_RSA_BITS: usize = 2_048;

/// A public key, and the one algorithm that it is for.
#[derive(Clone, Debug)]
pub struct PublicKey {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl PublicKey {
    /// Reads a PEM; its line breaks may be written as `\n`, for a variable's sake.
    ///
    /// # Errors
    ///
    /// What is wrong with it, without repeating it.
    pub fn from_pem(text: &str) -> Result<PublicKey, &'static str> {
        const WRONG: &str = "must be one public key as PEM: RSA of 2048 to 4096 bits, or P-256";
        let pem = text.replace("\\r", "").replace("\\n", "\n");
        if pem.matches("-----BEGIN").count() != 1 {
            return Err(WRONG);
        }
        let rsa = RsaPublicKey::from_public_key_pem(&pem).ok();
        if let Some(rsa) = rsa.or_else(|| RsaPublicKey::from_pkcs1_pem(&pem).ok()) {
            return PublicKey::of_rsa(&rsa).ok_or("must be an RSA key of at least 2048 bits");
        }
        let key = match pem.contains("-----BEGIN PUBLIC KEY-----") {
            true => DecodingKey::from_ec_pem(pem.as_bytes()).ok(),
            false => None,
        };
        key.and_then(PublicKey::of_p256).ok_or(WRONG)
    }

    /// Reads a member of a JWK set; `None` if it is not one that is meant and fit for RS256 or ES256.
    pub(super) fn from_jwk(jwk: &Value) -> Option<PublicKey> {
        let member = |name: &str| jwk.get(name).filter(|value| !value.is_null());
        let text = |name: &str| member(name).and_then(Value::as_str);
        let is_absent_or = |name: &str, fits: &str| member(name).is_none_or(|value| value == fits);
        let may_verify = match member("key_ops") {
            None => true,
            Some(operations) => operations.as_array()?.iter().any(|operation| operation == "verify"),
        };
        if !may_verify || !is_absent_or("use", "sig") {
            return None;
        }
        match (text("kty")?, text("crv")) {
            ("RSA", _) if is_absent_or("alg", "RS256") => {
                let number = |name| {
                    let bytes = URL_SAFE_NO_PAD.decode(text(name)?).ok()?;
                    Some(BigUint::from_bytes_be(&bytes))
                };
                PublicKey::of_rsa(&RsaPublicKey::new(number("n")?, number("e")?).ok()?)
            }
            ("EC", Some("P-256")) if is_absent_or("alg", "ES256") => {
                PublicKey::of_p256(DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            _ => None,
        }
    }

    fn of_rsa(key: &RsaPublicKey) -> Option<PublicKey> {
        let (n, e) = (key.n().to_bytes_be(), key.e().to_bytes_be());
        let key = (key.n().bits() >= MIN_RSA_BITS).then(|| DecodingKey::from_rsa_raw_components(&n, &e))?;
        Some(PublicKey { algorithm: Algorithm::RS256, key })
    }

    /// Whether it is a point of that curve shows where a signature, which is none, is to be checked.
    fn of_p256(key: DecodingKey) -> Option<PublicKey> {
        let readable = crypto::verify("", b"", &key, Algorithm::ES256).is_ok();
        readable.then_some(PublicKey { algorithm: Algorithm::ES256, key })
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub(super) fn has_signed(&self, token: &Token<'_>) -> bool {
        token.algorithm == self.algorithm && token.is_signed_by(&self.key)
    }
}
