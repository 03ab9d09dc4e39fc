//! The set of public keys at `JWKS_URL`: fetched when it is needed, kept for [`FRESH_MS`], and fetched
//! anew for a token whose key is not in it, since whoever signs may have begun to use another key.
//!
//! Anybody can make up a token. So a fetch for a key that is not there, or one that failed, is
//! followed by a pause of [`PAUSE_MS`] in which none begins, and all who wait share one fetch.
//!
//! # Failure behavior
//!
//! If a fetch fails, the set that was there stays in use and is fetched anew after the pause. If there was
//! none yet, or if it does not have the token's key, nobody can tell whether the token is valid:
//! [`TokenError::KeysUnavailable`]. Who hangs up does not end the fetch that others wait for. The log
//! hears of the first failure and of the recovery, in fixed words.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use reqwest::{Client, redirect};
use serde_json::Value;
use tokio::{runtime::Handle, sync::Mutex};
use url::{Host, Url};

use super::{PublicKey, Token, TokenError};
use crate::{
    clock::{Clock, Time},
    json::{self, Source},
};

/// How long a set is believed: a key that left it is refused after that.
const FRESH_MS: i64 = 600_000;

/// How long no fetch begins after one that was made for an unknown key, or failed.
const PAUSE_MS: i64 = 3_000;

/// How long a fetch may take, connecting and the whole answer included.
const FETCH_WITHIN: Duration = Duration::from_secs(3);

/// The largest answer that is read.
const MAX_BYTES: usize = 262_144;

/// Reads what `JWKS_URL` is: `https`, or `http` where nobody is in between.
///
/// # Errors
///
/// What is wrong with it, without repeating it.
pub fn url_of_key_set(text: &str) -> Result<Url, &'static str> {
    const WRONG: &str =
        "must be a URL that begins with https://, or with http:// on loopback, without a user";
    let url = Url::parse(text).map_err(|_| WRONG)?;
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::V4(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::V6(ip).is_loopback(),
        None => return Err(WRONG),
    };
    let is_safe = url.scheme() == "https" || (url.scheme() == "http" && is_loopback);
    match is_safe && url.username().is_empty() && url.password().is_none() {
        true => Ok(url),
        false => Err(WRONG),
    }
}

/// The keys of a URL.
pub(super) struct KeySet(Arc<Inner>);

struct Inner {
    url: Url,
    client: Client,
    clock: Clock,
    /// Where fetches run, so that they end with no request.
    runtime: Handle,
    known: RwLock<Known>,
    /// Whose turn it is to fetch.
    turn: Arc<Mutex<()>>,
}

/// What is known of the set.
#[derive(Clone, Default)]
struct Known {
    /// `None`: it was never had.
    keys: Option<Arc<Vec<Key>>>,
    fetched_at: Time,
    /// Since when no fetch begins.
    paused_at: Option<Time>,
    /// Whether the last fetch failed.
    failing: bool,
}

struct Key {
    id: Option<String>,
    key: PublicKey,
}

impl KeySet {
    /// # Errors
    ///
    /// When the system's certificate authorities can't be loaded.
    pub fn new(url: Url, clock: Clock) -> Result<KeySet, reqwest::Error> {
        // The whole process agrees on one provider; whoever installed one before has done our work.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("spell-platform/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .pool_max_idle_per_host(0)
            .timeout(FETCH_WITHIN)
            .build()?;
        let (runtime, known, turn) = (Handle::current(), RwLock::default(), Arc::default());
        Ok(KeySet(Arc::new(Inner { url, client, clock, runtime, known, turn })))
    }

    /// Whether a key of the set has signed the token.
    pub async fn has_signed(&self, token: &Token<'_>) -> Result<bool, TokenError> {
        let set = &self.0;
        let now = set.clock.now();
        if let Some(verdict) = set.known().verdict_while_fresh(token, now) {
            return Ok(verdict);
        }
        let turn = set.turn.clone().lock_owned().await;
        // Somebody else may have fetched it meanwhile.
        let now = set.clock.now();
        let known = set.known();
        if let Some(verdict) = known.verdict_while_fresh(token, now) {
            return Ok(verdict);
        }
        if !known.is_paused(now) {
            let fetching = set.clone();
            let fetched = set.runtime.spawn(async move {
                fetching.fetch().await;
                drop(turn);
            });
            let _ = fetched.await;
        }
        let known = set.known();
        match known.keys.as_deref().and_then(|keys| verdict(keys, token)) {
            Some(verdict) => Ok(verdict),
            None if known.keys.is_none() || known.failing => Err(TokenError::KeysUnavailable),
            None => Ok(false),
        }
    }
}

impl Known {
    fn verdict_while_fresh(&self, token: &Token<'_>, now: Time) -> Option<bool> {
        self.is_fresh(now).then_some(self.keys.as_deref()?).and_then(|keys| verdict(keys, token))
    }

    /// A set from the future is none: the clock was corrected.
    fn is_fresh(&self, now: Time) -> bool {
        self.keys.is_some() && (0..FRESH_MS).contains(&now.0.saturating_sub(self.fetched_at.0))
    }

    fn is_paused(&self, now: Time) -> bool {
        self.paused_at.is_some_and(|since| (0..PAUSE_MS).contains(&now.0.saturating_sub(since.0)))
    }
}

/// What the keys say of a token; `None` if the one that it means is not among them. Without a `kid` it
/// means the only one of its algorithm, which may have been replaced if it says no.
fn verdict(keys: &[Key], token: &Token<'_>) -> Option<bool> {
    let mut of_algorithm = keys.iter().filter(|known| known.key.algorithm() == token.algorithm);
    match &token.key_id {
        Some(id) => {
            let named = of_algorithm.filter(|known| known.id.as_ref() == Some(id));
            named.map(|known| known.key.has_signed(token)).reduce(|one, other| one || other)
        }
        None => match (of_algorithm.next(), of_algorithm.next()) {
            (Some(only), None) => only.key.has_signed(token).then_some(true),
            _ => None,
        },
    }
}

impl Inner {
    fn known(&self) -> Known {
        // It is replaced whole, so a panic can't leave it half done.
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fetches the set, and writes down what came of it. One at a time.
    async fn fetch(&self) {
        let (before, asked_at) = (self.known(), self.clock.now());
        let fetched = self.download().await;
        let now = self.clock.now();
        let known = match fetched {
            Ok(keys) => {
                if before.failing {
                    tracing::info!("the keys at JWKS_URL were fetched again");
                }
                // A fresh set is only fetched for a key that is not in it.
                let paused_at = before.is_fresh(asked_at).then_some(now);
                Known { keys: Some(Arc::new(keys)), fetched_at: asked_at, paused_at, failing: false }
            }
            Err(problem) => {
                if !before.failing {
                    tracing::warn!(problem, "the keys at JWKS_URL can't be fetched; trying on");
                }
                Known { paused_at: Some(now), failing: true, ..before }
            }
        };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = known;
    }

    async fn download(&self) -> Result<Vec<Key>, &'static str> {
        let response = self.client.get(self.url.clone()).send().await;
        let mut response = response.map_err(|error| told(&error))?;
        if response.status() != 200 {
            return Err("the answer is not 200");
        }
        let mut answer = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| told(&error))? {
            if chunk.len() > MAX_BYTES.saturating_sub(answer.len()) {
                return Err("the answer is too long");
            }
            answer.extend_from_slice(&chunk);
        }
        read(&answer).ok_or("the answer is no set of keys")
    }
}

/// The keys of a set that are fit to check tokens; others, such as those that encrypt, may be in it.
fn read(answer: &[u8]) -> Option<Vec<Key>> {
    let set = json::parse(answer, Source::Upstream).ok()?;
    let keys = set.get("keys")?.as_array()?.iter().filter_map(|jwk| {
        let id = jwk.get("kid").and_then(Value::as_str).map(str::to_owned);
        PublicKey::from_jwk(jwk).map(|key| Key { id, key })
    });
    Some(keys.collect())
}

/// A client's error in words of ours: its own have the URL in them.
fn told(error: &reqwest::Error) -> &'static str {
    match () {
        () if error.is_timeout() => "there was no answer in time",
        () if error.is_connect() => "there is no connection",
        () => "the answer broke off",
    }
}

#[cfg(test)]
mod tests;
