//! Spells: what can be cast for a price, and how each kind of them is run.
//!
//! A spell is stated by an admin as a [`Definition`], kept by [`Spells`], and run from there. What
//! is secret in one (header values, the URL's query) goes to its upstream and to the database, and
//! nowhere else: neither `Debug` nor anything that is sent out has it.
//!
//! # Failure behavior
//!
//! A definition that can't be run as it stands is refused when it is stated, with a sentence. One
//! that is stored and can't be read, because a newer version wrote it, is an error of the database
//! ([`StoreError::Refused`](crate::store::StoreError::Refused)): nothing is run, or priced, on a
//! guess. Stating it anew and deleting it work all the same.

mod definition;
mod registry;
pub mod upstream;

use std::{fmt, time::Duration};

use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use crate::{clock::Time, ledger::OnLost, money::Nanos};

pub use definition::{Definition, MASK, check_kind};
pub use registry::{Change, Spells};

/// The spell that is there without anybody having stated it.
pub const ECHO: &str = "echo";

/// Something that can be run for a price.
#[derive(Clone, Debug)]
pub struct Spell {
    pub name: String,
    /// For each cast, whatever its payload.
    pub price: Nanos,
    pub on_lost: OnLost,
    pub kind: Kind,
    /// `None` for the built-in.
    /// Whether its price is taken from prepaid credits.
    pub from_credits: bool,
    pub created_at: Option<Time>,
    pub updated_at: Option<Time>,
}

/// What casting a spell does. A new kind is a variant here and a line in `definition::KINDS`; the
/// compiler names the matches that want it.
#[derive(Clone)]
pub enum Kind {
    /// Answers with the payload.
    Echo,
    /// POSTs the payload to `url` and answers what that answered.
    Http {
        url: Url,
        headers: Vec<(HeaderName, HeaderValue)>,
        /// The headers' names as they were stated; a `HeaderName` is in lower case.
        header_names: Vec<String>,
        timeout: Duration,
    },
}

impl Spell {
    fn built_in(price: Nanos) -> Spell {
        Spell {
            name: ECHO.to_owned(),
            price,
            on_lost: OnLost::default(),
            from_credits: false,
            kind: Kind::Echo,
            created_at: None,
            updated_at: None,
        }
    }

    /// Whether running it takes no time and can't fail, so that nothing needs to be held meanwhile.
    pub fn is_instant(&self) -> bool {
        match self.kind {
            Kind::Echo => true,
            Kind::Http { .. } => false,
        }
    }

    /// How long running it may take.
    pub fn timeout(&self) -> Duration {
        match self.kind {
            Kind::Echo => Duration::ZERO,
            Kind::Http { timeout, .. } => timeout,
        }
    }
}

impl Kind {
    /// The kind's name, as a definition states it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Kind::Echo => "echo",
            Kind::Http { .. } => "http",
        }
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Echo => f.write_str("Echo"),
            Kind::Http { url, header_names, timeout, .. } => f
                .debug_struct("Http")
                .field("url", &masked(url).as_str())
                .field("headers", header_names)
                .field("timeout", timeout)
                .finish(),
        }
    }
}

/// The URL as it may be shown: what stands in a query is often a key.
pub fn masked(url: &Url) -> Url {
    let mut shown = url.clone();
    if shown.query().is_some() {
        shown.set_query(Some(MASK));
    }
    // It is never sent, so it is of no use to anybody.
    shown.set_fragment(None);
    shown
}
