//! What must hold of whatever strangers send: one property per target, for any bytes at all.
//!
//! The fuzz targets call these, and so does `tests/fuzz.rs`, over the corpus and its mutations. They
//! judge by other means than what they judge: by the plain `serde_json`, by an HMAC of their own, by
//! decimals as digits and an exponent.

mod cast_body;
mod money;
mod stripe_signature;
mod webhook_body;

pub use cast_body::cast_body;
pub use money::money;
pub use stripe_signature::stripe_signature;
pub use webhook_body::webhook_body;
