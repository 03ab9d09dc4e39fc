//! Users whom another service has signed in: their JSON Web Tokens, checked against the keys that
//! the operator has configured.
//!
//! A token says itself how it wants to be checked, and is not believed: its `alg` and `kid` only pick
//! among what is configured. HS256 is checked with `JWT_SECRET` and nothing else, RS256 and ES256 with
//! public keys and nothing else, so that no public key can pass for a secret. Keys that a token
//! brings along (`jwk`, `jku`, `x5c`) are not looked at.
//!
//! Header and claims are read here, once and strictly: where a key stands twice in an object, another
//! reader might see the other one.
//!
//! # Failure behavior
//!
//! What is wrong with a token is a fixed sentence, so that nothing of one gets into a log or an
//! answer. While the keys of `JWKS_URL` were never had, nobody can tell whether a token is valid, and
//! it is [`TokenError::KeysUnavailable`] instead. No token makes this panic.

mod jwks;
mod public_key;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Map, Value};
use url::Url;

use super::could_be_user;
use crate::{
    clock::{Clock, Time},
    json::{self, Source},
};

pub use jwks::url_of_key_set;
pub use public_key::PublicKey;

use jwks::KeySet;

/// How far the clocks of those who sign may be off from ours.
const LEEWAY_MS: i64 = 30_000;

/// Longest token that is looked at.
const MAX_TOKEN_BYTES: usize = 16_384;

/// What an HS256 secret has to have at least (RFC 7518, 3.2).
const STRONG_SECRET_BYTES: usize = 32;

/// Which tokens are taken. Of the three sources of keys any may be there; without one, none is.
#[derive(Default)]
pub struct Settings {
    /// Signs HS256.
    pub secret: Option<SecretString>,
    pub public_key: Option<PublicKey>,
    /// Where a set of public keys is.
    pub key_set: Option<Url>,
    /// What `iss` has to be.
    pub issuer: Option<String>,
    /// What `aud` has to be, or have among others.
    pub audience: Option<String>,
}

/// Why a token names nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The sentence holds nothing of the token.
    #[error("{0}")]
    Invalid(&'static str),
    #[error("the keys that tokens are checked with can't be had")]
    KeysUnavailable,
}

/// Knows whose a token is.
pub struct Verifier {
    secret: Option<DecodingKey>,
    public_key: Option<PublicKey>,
    key_set: Option<KeySet>,
    issuer: Option<String>,
    audience: Option<String>,
    clock: Clock,
}

impl Verifier {
    /// Must be called inside a tokio runtime: keys are fetched there.
    ///
    /// # Errors
    ///
    /// When there is a key set to fetch, and the system's certificate authorities can't be loaded.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Verifier, reqwest::Error> {
        let secret = settings.secret.as_ref().map(|secret| secret.expose_secret().as_bytes());
        if secret.is_some_and(|secret| secret.len() < STRONG_SECRET_BYTES) {
            tracing::warn!(
                "JWT_SECRET has less than the {STRONG_SECRET_BYTES} bytes that HS256 calls for: who has a token may guess it"
            );
        }
        let key_set = settings.key_set.clone().map(|url| KeySet::new(url, clock.clone())).transpose()?;
        Ok(Verifier {
            secret: secret.map(DecodingKey::from_secret),
            public_key: settings.public_key.clone(),
            key_set,
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            clock,
        })
    }

    /// The token's subject: a user of the service that signed it.
    pub async fn user_of(&self, token: &str) -> Result<String, TokenError> {
        let token = Token::read(token)?;
        if !self.is_signed(&token).await? {
            return Err(TokenError::Invalid("The token's signature is not valid."));
        }
        let claims = object(token.payload).ok_or(TokenError::Invalid("The token's claims can't be read."))?;
        self.check_times(&claims)?;
        self.check_parties(&claims)?;
        match claims.get("sub") {
            Some(Value::String(user)) if could_be_user(user) => Ok(user.clone()),
            Some(_) => Err(TokenError::Invalid(
                "The token's `sub` is not a text of 1 to 255 bytes without control characters.",
            )),
            None => Err(TokenError::Invalid("The token has no `sub`.")),
        }
    }

    async fn is_signed(&self, token: &Token<'_>) -> Result<bool, TokenError> {
        let not_taken = TokenError::Invalid("This server takes no tokens of that `alg`.");
        if token.algorithm == Algorithm::HS256 {
            let secret = self.secret.as_ref().ok_or(not_taken)?;
            return Ok(token.is_signed_by(secret));
        }
        let public_key = self.public_key.as_ref().filter(|key| key.algorithm() == token.algorithm);
        match (public_key, &self.key_set) {
            (Some(key), _) if key.has_signed(token) => Ok(true),
            (_, Some(key_set)) => key_set.has_signed(token).await,
            (Some(_), None) => Ok(false),
            (None, None) => Err(not_taken),
        }
    }

    fn check_times(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        let now = self.clock.now().0;
        let end = moment(claims, "exp", "The token's `exp` is not a time.")?;
        let end = end.ok_or(TokenError::Invalid("The token has no `exp`."))?;
        if end.0.saturating_add(LEEWAY_MS) <= now {
            return Err(TokenError::Invalid("The token has expired."));
        }
        let begin = moment(claims, "nbf", "The token's `nbf` is not a time.")?;
        let issued = moment(claims, "iat", "The token's `iat` is not a time.")?;
        match [begin, issued].into_iter().flatten().all(|at| at.0.saturating_sub(LEEWAY_MS) <= now) {
            true => Ok(()),
            false => Err(TokenError::Invalid("The token is not valid yet.")),
        }
    }

    fn check_parties(&self, claims: &Map<String, Value>) -> Result<(), TokenError> {
        if let Some(issuer) = &self.issuer
            && claims.get("iss").and_then(Value::as_str) != Some(issuer)
        {
            return Err(TokenError::Invalid("The token is not from the issuer that this server trusts."));
        }
        let Some(audience) = &self.audience else { return Ok(()) };
        let named = match claims.get("aud") {
            Some(Value::Array(several)) => several.iter().any(|one| one.as_str() == Some(audience)),
            one => one.and_then(Value::as_str) == Some(audience),
        };
        match named {
            true => Ok(()),
            false => Err(TokenError::Invalid("The token is not meant for this server.")),
        }
    }
}

/// Whether it is meant as a JWT, valid or not: three parts, the first a JSON object with `alg`. No key
/// of ours looks like that.
pub fn has_shape(presented: &str) -> bool {
    match presented.split('.').collect::<Vec<_>>().as_slice() {
        [header, _, _] => object(header).is_some_and(|header| header.contains_key("alg")),
        _ => false,
    }
}

/// A token's parts, of which nothing is to be believed yet.
struct Token<'t> {
    algorithm: Algorithm,
    key_id: Option<String>,
    /// What is signed.
    message: &'t str,
    payload: &'t str,
    signature: &'t str,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Result<Token<'t>, TokenError> {
        const UNREADABLE: TokenError = TokenError::Invalid("This is no token that can be read.");
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Invalid("The token is too long."));
        }
        let (message, signature) = token.rsplit_once('.').ok_or(UNREADABLE)?;
        let (header, payload) = message.split_once('.').ok_or(UNREADABLE)?;
        let header = object(header).ok_or(UNREADABLE)?;
        // What it names has to be understood (RFC 7515, 4.1.11), and nothing is.
        if header.contains_key("crit") {
            return Err(TokenError::Invalid("The token calls for an extension that is not known here."));
        }
        let algorithm = match header.get("alg").and_then(Value::as_str) {
            Some("HS256") => Algorithm::HS256,
            Some("RS256") => Algorithm::RS256,
            Some("ES256") => Algorithm::ES256,
            _ => return Err(TokenError::Invalid("A token's `alg` has to be HS256, RS256 or ES256.")),
        };
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(TokenError::Invalid("The token's `kid` is not a text.")),
        };
        Ok(Token { algorithm, key_id, message, payload, signature })
    }

    /// Whether that key has signed it by the algorithm that it names.
    fn is_signed_by(&self, key: &DecodingKey) -> bool {
        jsonwebtoken::crypto::verify(self.signature, self.message.as_bytes(), key, self.algorithm)
            .unwrap_or(false)
    }
}

/// The JSON object that a part of a token holds.
fn object(part: &str) -> Option<Map<String, Value>> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    match json::parse(&bytes, Source::Caller) {
        Ok(Value::Object(object)) => Some(object),
        _ => None,
    }
}

/// A claim that is seconds since 1970, maybe with a fraction; beyond all time is its end.
fn moment(
    claims: &Map<String, Value>,
    name: &str,
    problem: &'static str,
) -> Result<Option<Time>, TokenError> {
    let Some(claim) = claims.get(name) else { return Ok(None) };
    let seconds = match claim {
        Value::Number(number) => number.as_f64().filter(|seconds| seconds.is_finite()),
        _ => None,
    };
    let seconds = seconds.ok_or(TokenError::Invalid(problem))?;
    // A cast of a float stays within the integer's range.
    Ok(Some(Time((seconds * 1_000.0) as i64)))
}

#[cfg(test)]
mod tests;
