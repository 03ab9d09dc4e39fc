//! The chain of certificates behind a signed transaction: the signer's, Apple's intermediate one, and
//! a root that this server was told to trust.
//!
//! # Failure behavior
//!
//! Whatever is not exactly such a chain is refused with a phrase. Revocation lists are not asked for:
//! that would need the network, and who could not reach it would have to guess.

use std::ops::RangeInclusive;

use base64::{Engine, prelude::BASE64_STANDARD};
use x509_parser::{
    certificate::X509Certificate,
    der_parser::{Oid, oid},
    oid_registry::{
        OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_X509_EXT_BASIC_CONSTRAINTS,
        OID_X509_EXT_KEY_USAGE,
    },
    prelude::FromDer,
};

/// By which Apple marks the certificates that sign receipts and transactions of its stores.
const SIGNS_RECEIPTS: Oid = oid!(1.2.840.113635.100.6.11.1);

/// By which Apple marks the intermediate certificates of its Worldwide Developer Relations.
const INTERMEDIATE: Oid = oid!(1.2.840.113635.100.6.2.1);

/// Who signed, by a chain that holds.
pub struct Signer {
    /// Its public key: a point in SEC 1's form.
    pub key: Vec<u8>,
    /// When all three certificates are valid, in seconds since 1970.
    pub valid: RangeInclusive<i64>,
}

/// Whether it is one certificate as DER, and nothing else.
pub fn is_certificate(der: &[u8]) -> bool {
    parse(der).is_ok()
}

/// The signer, if the certificates of a JWS's `x5c` lead from it to one of `roots`.
///
/// Errors: why they don't, as a phrase.
pub fn signer(x5c: &[String], roots: &[Vec<u8>]) -> Result<Signer, &'static str> {
    let [leaf, intermediate, root] = x5c else { return Err("it has not exactly three certificates") };
    let (leaf, intermediate, root) = (decode(leaf)?, decode(intermediate)?, decode(root)?);
    if !roots.contains(&root) {
        return Err("its root certificate is none that this server trusts");
    }
    let (leaf, intermediate, root) = (parse(&leaf)?, parse(&intermediate)?, parse(&root)?);
    if !may_issue(&root, 1) || !may_issue(&intermediate, 0) {
        return Err("one of its certificates was issued by one that may not issue any");
    }
    if !issued(&intermediate, &root) || !issued(&leaf, &intermediate) {
        return Err("its certificates do not sign each other");
    }
    if leaf.is_ca() || !may(&leaf, |usage| usage.digital_signature()) {
        return Err("its certificate may not sign");
    }
    if !is_marked(&intermediate, &INTERMEDIATE) || !is_marked(&leaf, &SIGNS_RECEIPTS) {
        return Err("its certificates are not those that Apple signs transactions with");
    }
    if has_unknown_demands(&leaf) || has_unknown_demands(&intermediate) {
        return Err("one of its certificates demands what is not understood");
    }
    let chain = [&leaf, &intermediate, &root].map(|one| one.validity());
    let from = chain.iter().map(|valid| valid.not_before.timestamp()).max().unwrap_or(i64::MAX);
    let until = chain.iter().map(|valid| valid.not_after.timestamp()).min().unwrap_or(i64::MIN);
    Ok(Signer { key: leaf.public_key().subject_public_key.data.to_vec(), valid: from..=until })
}

fn decode(text: &str) -> Result<Vec<u8>, &'static str> {
    BASE64_STANDARD.decode(text).map_err(|_| "one of its certificates is not base64")
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, &'static str> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err("one of its certificates is none"),
    }
}

/// Whether it is an authority's, with so many others between what it issues and the end of a chain.
fn may_issue(certificate: &X509Certificate<'_>, between: u32) -> bool {
    let is_authority = match certificate.basic_constraints() {
        Ok(Some(basic)) => {
            basic.value.ca && basic.value.path_len_constraint.is_none_or(|most| between <= most)
        }
        _ => false,
    };
    is_authority && may(certificate, |usage| usage.key_cert_sign())
}

/// What its key may be used for; for anything where it does not say.
fn may(
    certificate: &X509Certificate<'_>,
    allows: impl FnOnce(&x509_parser::extensions::KeyUsage) -> bool,
) -> bool {
    match certificate.key_usage() {
        Ok(usage) => usage.is_none_or(|usage| allows(usage.value)),
        Err(_) => false,
    }
}

/// Whether the one names the other as its issuer and is signed by its key, with ECDSA as all of Apple's
/// are.
fn issued(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> bool {
    let algorithm = &certificate.signature_algorithm;
    certificate.issuer().as_raw() == issuer.subject().as_raw()
        && *algorithm == certificate.tbs_certificate.signature
        && [OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384].contains(&algorithm.algorithm)
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

fn is_marked(certificate: &X509Certificate<'_>, mark: &Oid<'_>) -> bool {
    matches!(certificate.get_extension_unique(mark), Ok(Some(_)))
}

/// Whether it has a critical extension other than those that are checked here (RFC 5280 section 4.2).
fn has_unknown_demands(certificate: &X509Certificate<'_>) -> bool {
    let known = [OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE];
    certificate.extensions().iter().any(|extension| extension.critical && !known.contains(&extension.oid))
}
