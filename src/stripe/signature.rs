//! The signature by which Stripe shows that an event is its own: an HMAC-SHA256 of the time and the
//! raw body, in the header `Stripe-Signature: t=<seconds>,v1=<hex>[,v1=…]`.
//!
//! Scheme: <https://docs.stripe.com/webhooks#verify-manually>.

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;

use crate::clock::Time;

/// How far the signature's time may be from ours, in seconds: what is older may be somebody's replay.
const TOLERANCE_SECONDS: i64 = 300;

/// How many signatures a header may hold; Stripe sends one for each of an endpoint's secrets.
const MAX_SIGNATURES: usize = 16;

/// Why a signature is not good. None of it tells what would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the header `Stripe-Signature` is missing")]
    Missing,
    #[error("the header `Stripe-Signature` is not of the form t=…,v1=…")]
    Malformed,
    #[error("the signature is more than 5 minutes from now")]
    OutOfTime,
    #[error("no signature in the header is one by a secret of this server")]
    Wrong,
}

/// Checks that one of the header's signatures is of `body` by one of `secrets`, made within 5 minutes
/// of `now`. Comparing takes the same time wherever the difference is.
pub fn verify(header: Option<&str>, body: &[u8], secrets: &[SecretString], now: Time) -> Result<(), Invalid> {
    let header = header.ok_or(Invalid::Missing)?;
    let mut timestamp = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        let (name, value) = part.split_once('=').ok_or(Invalid::Malformed)?;
        match name.trim() {
            "t" if timestamp.is_some() => return Err(Invalid::Malformed),
            "t" => timestamp = Some(value.trim()),
            "v1" if signatures.len() == MAX_SIGNATURES => return Err(Invalid::Malformed),
            "v1" => signatures.extend(hex::decode(value.trim()).ok()),
            // Of another scheme.
            _ => {}
        }
    }
    let timestamp = timestamp.ok_or(Invalid::Malformed)?;
    let digits = !timestamp.is_empty() && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let seconds: i64 = timestamp.parse().ok().filter(|_| digits).ok_or(Invalid::Malformed)?;
    if signatures.is_empty() {
        return Err(Invalid::Malformed);
    }
    let good = |secret: &SecretString, signature: &Vec<u8>| {
        mac(secret, timestamp, body).is_some_and(|mac| mac.verify_slice(signature).is_ok())
    };
    if !secrets.iter().any(|secret| signatures.iter().any(|signature| good(secret, signature))) {
        return Err(Invalid::Wrong);
    }
    // After the comparison, so that only who has the secret learns of it.
    match seconds.abs_diff(now.0.div_euclid(1_000)) <= TOLERANCE_SECONDS.unsigned_abs() {
        true => Ok(()),
        false => Err(Invalid::OutOfTime),
    }
}

fn mac(secret: &SecretString, timestamp: &str, body: &[u8]) -> Option<Hmac<Sha256>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose_secret().as_bytes()).ok()?;
    mac.update(timestamp.as_bytes());
    mac.update(b".");
    mac.update(body);
    Some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    const NOW: Time = Time(1_700_000_000_000);

    fn secrets(named: &[&str]) -> Vec<SecretString> {
        named.iter().map(|secret| SecretString::from(*secret)).collect()
    }

    fn signature(secret: &str, seconds: &str, body: &[u8]) -> String {
        hex::encode(mac(&SecretString::from(secret), seconds, body).unwrap().finalize().into_bytes())
    }

    fn header(secret: &str, seconds: i64, body: &[u8]) -> String {
        format!("t={seconds},v1={}", signature(secret, &seconds.to_string(), body))
    }

    fn check(header: &str) -> Result<(), Invalid> {
        verify(Some(header), BODY, &secrets(&["whsec_a", "whsec_b"]), NOW)
    }

    #[test]
    fn a_signature_by_any_of_the_secrets_is_good_for_five_minutes() {
        for secret in ["whsec_a", "whsec_b"] {
            for seconds in [1_700_000_000, 1_699_999_700, 1_700_000_300] {
                assert_eq!(check(&header(secret, seconds, BODY)), Ok(()), "{secret} {seconds}");
            }
            for seconds in [1_699_999_699, 1_700_000_301, 0] {
                assert_eq!(check(&header(secret, seconds, BODY)), Err(Invalid::OutOfTime), "{seconds}");
            }
        }
    }

    #[test]
    fn any_of_several_signatures_will_do_and_other_schemes_do_not_matter() {
        let good = signature("whsec_b", "1700000000", BODY);
        let wrong = signature("whsec_c", "1700000000", BODY);
        for header in [
            format!("t=1700000000,v1={wrong},v1={good}"),
            format!("v1={good},t=1700000000,v0=abc"),
            format!("t=1700000000, v1=zz, v1={}", good.to_uppercase()),
        ] {
            assert_eq!(check(&header), Ok(()), "{header}");
        }
    }

    #[test]
    fn what_is_no_signature_of_this_body_is_refused() {
        let good = signature("whsec_a", "1700000000", BODY);
        for (header, expected) in [
            (String::new(), Invalid::Malformed),
            ("nonsense".to_owned(), Invalid::Malformed),
            (format!("v1={good}"), Invalid::Malformed),
            ("t=1700000000".to_owned(), Invalid::Malformed),
            ("t=1700000000,v1=".to_owned(), Invalid::Wrong),
            ("t=1700000000,v1=xyz".to_owned(), Invalid::Malformed),
            (format!("t=,v1={good}"), Invalid::Malformed),
            (format!("t=-1700000000,v1={good}"), Invalid::Malformed),
            (format!("t=+1700000000,v1={good}"), Invalid::Malformed),
            (format!("t=99999999999999999999,v1={good}"), Invalid::Malformed),
            (format!("t=1700000000,t=1700000000,v1={good}"), Invalid::Malformed),
            (format!("t=1700000000,v0={good}"), Invalid::Malformed),
            (format!("t=1700000001,v1={good}"), Invalid::Wrong),
            (format!("t=1700000000,v1={}", &good[..62]), Invalid::Wrong),
            (format!("t=1700000000,v1={}", "0".repeat(64)), Invalid::Wrong),
            (header("whsec_c", 1_700_000_000, BODY), Invalid::Wrong),
            (header("", 1_700_000_000, BODY), Invalid::Wrong),
            (header("whsec_a", 1_700_000_000, br#"{"id":"evt_2"}"#), Invalid::Wrong),
            (header("whsec_a", 1_700_000_000, b""), Invalid::Wrong),
            (format!("t=1700000000,{}", vec!["v1=00"; 17].join(",")), Invalid::Malformed),
        ] {
            assert_eq!(check(&header), Err(expected), "{header}");
        }
        assert_eq!(verify(None, BODY, &secrets(&["whsec_a"]), NOW), Err(Invalid::Missing));
        let signed = header("whsec_a", 1_700_000_000, BODY);
        assert_eq!(verify(Some(&signed), BODY, &[], NOW), Err(Invalid::Wrong));
    }
}
