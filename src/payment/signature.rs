//! The signature by which the payment service shows that a delivery is its own: RSA PKCS#1 v1.5 with
//! SHA-256 over the raw body, as base64 in the header `X-Signature`.

use std::sync::Arc;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use rsa::{
    RsaPublicKey,
    pkcs1::DecodeRsaPublicKey,
    pkcs1v15::{Signature, VerifyingKey},
    pkcs8::DecodePublicKey,
    sha2::Sha256,
    signature::Verifier,
    traits::PublicKeyParts,
};

/// With or without the padding at its end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// What is shorter can be broken; what is longer `rsa` does not read.
const FEWEST_BITS: usize = 2_048;

/// Why a signature is not good. None of it tells what would have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    #[error("the header `X-Signature` is not base64")]
    Malformed,
    #[error("the signature is not one of this body by a key in PAYMENT_WEBHOOK_PUBLIC_KEY")]
    Wrong,
}

/// The public keys of the payment service, any of which will do: hand them around by clone.
#[derive(Clone, Debug, Default)]
pub struct Keys(Arc<[VerifyingKey<Sha256>]>);

impl Keys {
    /// Reads one or several PEMs behind each other, of the type `PUBLIC KEY` or `RSA PUBLIC KEY`. A line
    /// may end in the two characters `\n`, as environment files have it.
    ///
    /// Errors: what the text must be.
    pub fn parse(text: &str) -> Result<Keys, &'static str> {
        const WRONG: &str = "must be RSA public keys as PEM, one behind the other, of 2048 to 4096 bits";
        let text = text.replace("\\r", "").replace("\\n", "\n");
        let mut rest = text.trim();
        let mut keys = Vec::new();
        while !rest.is_empty() {
            let (label, after) =
                rest.strip_prefix("-----BEGIN ").and_then(|text| text.split_once("-----")).ok_or(WRONG)?;
            let (body, after) = after.split_once(&format!("-----END {label}-----")).ok_or(WRONG)?;
            let der = BASE64.decode(body.split_whitespace().collect::<String>()).map_err(|_| WRONG)?;
            let key = match label {
                "PUBLIC KEY" => RsaPublicKey::from_public_key_der(&der).ok(),
                "RSA PUBLIC KEY" => RsaPublicKey::from_pkcs1_der(&der).ok(),
                "PRIVATE KEY" | "RSA PRIVATE KEY" | "ENCRYPTED PRIVATE KEY" => {
                    return Err("holds a private key; it must be the public one");
                }
                _ => None,
            };
            let key = key.ok_or(WRONG)?;
            if key.n().bits() < FEWEST_BITS {
                return Err("holds a key of less than 2048 bits");
            }
            keys.push(VerifyingKey::new(key));
            rest = after.trim_start();
        }
        Ok(Keys(keys.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Checks that `signature` is one of `body` by any of the keys.
    pub fn verify(&self, signature: &str, body: &[u8]) -> Result<(), Invalid> {
        let signature = BASE64.decode(signature.trim()).map_err(|_| Invalid::Malformed)?;
        let signature = Signature::try_from(signature.as_slice()).map_err(|_| Invalid::Wrong)?;
        match self.0.iter().any(|key| key.verify(body, &signature).is_ok()) {
            true => Ok(()),
            false => Err(Invalid::Wrong),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use rsa::{
        RsaPrivateKey,
        pkcs1::EncodeRsaPublicKey,
        pkcs1v15::SigningKey,
        pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding},
        rand_core::OsRng,
        signature::{SignatureEncoding, Signer},
    };

    use super::*;

    static FIRST: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut OsRng, 2_048).unwrap());
    static SECOND: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut OsRng, 2_048).unwrap());

    const BODY: &[u8] = br#"{"order_id":"ord_1"}"#;

    fn spki(key: &RsaPrivateKey) -> String {
        key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap()
    }

    fn pkcs1(key: &RsaPrivateKey) -> String {
        key.to_public_key().to_pkcs1_pem(LineEnding::LF).unwrap()
    }

    fn sign(key: &RsaPrivateKey, body: &[u8]) -> Vec<u8> {
        SigningKey::<Sha256>::new(key.clone()).sign(body).to_vec()
    }

    fn base64(bytes: &[u8]) -> String {
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    #[test]
    fn a_signature_by_any_of_the_keys_is_good_in_every_form() {
        let (first, second) = (base64(&sign(&FIRST, BODY)), base64(&sign(&SECOND, BODY)));
        for text in [
            spki(&FIRST) + &spki(&SECOND),
            pkcs1(&FIRST) + "\n\n" + &spki(&SECOND),
            (spki(&FIRST) + &pkcs1(&SECOND)).replace('\n', "\\n"),
            (spki(&SECOND) + &pkcs1(&FIRST)).replace('\n', "\r\n"),
            (spki(&SECOND) + &pkcs1(&FIRST)).replace('\n', " "),
        ] {
            let keys = Keys::parse(&text).unwrap();
            for good in [&first, &second, &format!(" {first} "), &first.trim_end_matches('=').to_owned()] {
                assert_eq!(keys.verify(good, BODY), Ok(()), "{good} by {text}");
            }
        }
        let keys = Keys::parse(&spki(&FIRST)).unwrap();
        assert_eq!(keys.verify(&first, BODY), Ok(()));
        assert_eq!(keys.verify(&second, BODY), Err(Invalid::Wrong));
    }

    #[test]
    fn what_is_no_signature_of_this_body_is_refused() {
        let keys = Keys::parse(&spki(&FIRST)).unwrap();
        let good = sign(&FIRST, BODY);
        let flipped = |place: usize| {
            let mut bytes = good.clone();
            bytes[place] ^= 1;
            base64(&bytes)
        };
        for wrong in [
            flipped(0),
            flipped(128),
            flipped(255),
            base64(&good[..255]),
            base64(&[&[0], good.as_slice()].concat()),
            base64(&[good.as_slice(), &[0]].concat()),
            base64(&[0; 256]),
            base64(&[255; 256]),
            base64(&[1]),
            base64(&sign(&FIRST, b"")),
            String::new(),
            " ".to_owned(),
        ] {
            assert_eq!(keys.verify(&wrong, BODY), Err(Invalid::Wrong), "{wrong}");
        }
        for garbage in ["?", "nonsense!", "a", "=", "====", "é", "AA-_"] {
            assert_eq!(keys.verify(garbage, BODY), Err(Invalid::Malformed), "{garbage}");
        }
        let good = base64(&good);
        for other in [&b""[..], br#"{"order_id":"ord_2"}"#, br#"{"order_id":"ord_1"} "#] {
            assert_eq!(keys.verify(&good, other), Err(Invalid::Wrong));
        }
        assert_eq!(Keys::default().verify(&good, BODY), Err(Invalid::Wrong));
        // The right key, and another digest or another padding.
        let unprefixed = SigningKey::<Sha256>::new_unprefixed(FIRST.clone()).sign(BODY).to_vec();
        assert_eq!(keys.verify(&base64(&unprefixed), BODY), Err(Invalid::Wrong));
        let pss = rsa::pss::SigningKey::<Sha256>::new(FIRST.clone());
        let pss = rsa::signature::RandomizedSigner::sign_with_rng(&pss, &mut OsRng, BODY).to_vec();
        assert_eq!(keys.verify(&base64(&pss), BODY), Err(Invalid::Wrong));
    }

    #[test]
    fn what_is_no_key_is_refused_and_said() {
        let good = spki(&FIRST);
        let private = FIRST.to_pkcs8_pem(LineEnding::LF).unwrap();
        let short = RsaPrivateKey::new(&mut OsRng, 1_024).unwrap();
        for (text, said) in [
            ("nonsense".to_owned(), "PEM"),
            (good.replace("PUBLIC KEY", "CERTIFICATE"), "PEM"),
            (good.replace("PUBLIC KEY", "RSA PUBLIC KEY"), "PEM"),
            (good.replacen("-----END", "-----FIN", 1), "PEM"),
            (good.clone() + "-----BEGIN PUBLIC KEY-----\nAAAA", "PEM"),
            (good.clone() + "and more", "PEM"),
            (good.replace("MII", "M!!"), "PEM"),
            ("-----BEGIN PUBLIC KEY----------END PUBLIC KEY-----".to_owned(), "PEM"),
            (good.clone() + &private, "private"),
            (spki(&short), "2048"),
            (good.clone() + &pkcs1(&short), "2048"),
        ] {
            let problem = Keys::parse(&text).unwrap_err();
            assert!(problem.contains(said), "{problem} of {text}");
        }
    }
}
