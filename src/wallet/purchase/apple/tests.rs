//! Transactions signed by an App Store of our own, right and wrong in every way that there is a check
//! for.

use base64::prelude::BASE64_STANDARD;
use jsonwebtoken::EncodingKey;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, date_time_ymd,
};
use serde_json::{Value, json};

use super::*;

const INTERMEDIATE: &[u64] = &[1, 2, 840, 113635, 100, 6, 2, 1];
const SIGNS_RECEIPTS: &[u64] = &[1, 2, 840, 113635, 100, 6, 11, 1];

/// 2025-11-21, when the transactions are signed and verified.
const NOW: Time = Time(1_763_689_320_123);

/// A certificate with its key.
struct Holder {
    params: CertificateParams,
    key: KeyPair,
    der: Vec<u8>,
}

/// What Apple's certificate of that name is like, without a marker.
fn params(name: &str, ca: bool) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.not_before, params.not_after) = (date_time_ymd(2025, 1, 1), date_time_ymd(2026, 1, 1));
    (params.is_ca, params.key_usages) = match ca {
        true => (IsCa::Ca(BasicConstraints::Unconstrained), vec![KeyUsagePurpose::KeyCertSign]),
        false => (IsCa::ExplicitNoCa, vec![KeyUsagePurpose::DigitalSignature]),
    };
    params
}

fn marked(name: &str, ca: bool, mark: &[u64]) -> CertificateParams {
    let mut params = params(name, ca);
    params.custom_extensions.push(CustomExtension::from_oid_content(mark, vec![5, 0]));
    params
}

fn root() -> Holder {
    let (params, key) = (params("root", true), KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap());
    let der = params.self_signed(&key).unwrap().der().to_vec();
    Holder { params, key, der }
}

impl Holder {
    /// Issues a certificate for a new key: an authority's of P-384, as Apple's are, or a signer's.
    fn issue(&self, params: CertificateParams) -> Holder {
        let algorithm = match params.is_ca {
            IsCa::Ca(_) => &PKCS_ECDSA_P384_SHA384,
            _ => &PKCS_ECDSA_P256_SHA256,
        };
        let key = KeyPair::generate_for(algorithm).unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let der = params.signed_by(&key, &issuer).unwrap().der().to_vec();
        Holder { params, key, der }
    }

    fn sign(&self, message: &str) -> String {
        let key = EncodingKey::from_ec_der(self.key.serialized_der());
        let signature = crypto::sign(message.as_bytes(), &key, Algorithm::ES256).unwrap();
        format!("{message}.{signature}")
    }
}

/// A root, an intermediate and a signer.
struct Store([Holder; 3]);

impl Store {
    fn new() -> Store {
        Store::of(root(), marked("intermediate", true, INTERMEDIATE), marked("signer", false, SIGNS_RECEIPTS))
    }

    fn of(root: Holder, intermediate: CertificateParams, signer: CertificateParams) -> Store {
        let intermediate = root.issue(intermediate);
        let signer = intermediate.issue(signer);
        Store([root, intermediate, signer])
    }

    fn signer(&self) -> &Holder {
        &self.0[2]
    }

    fn x5c(&self) -> Vec<String> {
        self.0.iter().rev().map(|holder| BASE64_STANDARD.encode(&holder.der)).collect()
    }

    fn sign(&self, payload: &Value) -> String {
        self.signer().sign(&message(&json!({"alg": "ES256", "x5c": self.x5c()}), payload))
    }

    fn settings(&self) -> Settings {
        let roots = vec![root().der, self.0[0].der.clone()];
        Settings { roots, bundle_id: "com.example.app".to_owned(), allow_sandbox: false }
    }

    /// What becomes of a purchase of 100 credits with this signed transaction.
    fn verify(&self, jws: &str) -> Result<Verified, Unverified> {
        verify(&self.settings(), &products(), &record(), jws, 100, NOW)
    }
}

fn message(header: &Value, payload: &Value) -> String {
    let part = |part: &Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    format!("{}.{}", part(header), part(payload))
}

fn record() -> Record {
    let proof = None;
    Record { product_id: "credits.100".to_owned(), transaction_id: "2000000001".to_owned(), proof }
}

fn products() -> Products {
    Products([("credits.100".to_owned(), 100)].into())
}

fn payload() -> Value {
    json!({
        "transactionId": "2000000001", "originalTransactionId": "2000000001", "productId": "credits.100",
        "bundleId": "com.example.app", "environment": "Production", "type": "Consumable", "quantity": 1,
        "purchaseDate": NOW.0 - 1_000, "signedDate": NOW.0, "price": 990, "currency": "USD",
        "appAccountToken": "7e3fb204-2d1c-4f5c-8b3c-0d6a5d3f7c11", "storefront": "USA",
    })
}

/// The payload with another value for that field; null takes it away.
fn with(field: &str, value: Value) -> Value {
    let mut payload = payload();
    payload[field] = value;
    payload
}

fn refused(outcome: Result<Verified, Unverified>, why: &str) {
    match outcome {
        Err(Unverified::Invalid(sentence)) => assert!(sentence.contains(why), "{why}: {sentence}"),
        other => panic!("{why}: {other:?}"),
    }
}

#[test]
fn what_the_app_store_signed_is_taken() {
    let store = Store::new();
    let verified = Verified {
        transaction_id: "2000000001".to_owned(),
        product_id: "credits.100".to_owned(),
        verified_by: Provider::Apple,
        credits: 100,
        payment: Payment::default(),
        amount_cents: 0,
    };
    assert_eq!(store.verify(&store.sign(&payload())), Ok(verified));
}

#[test]
fn so_many_of_a_product_give_so_many_times_its_credits() {
    let store = Store::new();
    let three = store.sign(&with("quantity", json!(3)));
    let bought = |credits| verify(&store.settings(), &products(), &record(), &three, credits, NOW);
    assert_eq!(bought(300).unwrap().credits, 300);
    let told = "The purchase of 3 × `credits.100` gives 300 credits, not 100.".to_owned();
    assert_eq!(bought(100), Err(Unverified::Mismatch(told)));
}

#[test]
fn a_chain_ends_in_a_root_that_was_configured() {
    let (ours, other) = (Store::new(), Store::new());
    refused(ours.verify(&other.sign(&payload())), "its root certificate");
    // Their chain, with our root at its end.
    let [signer, intermediate, _] = other.x5c().try_into().unwrap();
    let header = json!({"alg": "ES256", "x5c": [signer, intermediate, ours.x5c()[2]]});
    refused(ours.verify(&other.signer().sign(&message(&header, &payload()))), "do not sign each other");
    // A signer of theirs under an intermediate of ours, of the same name.
    let header = json!({"alg": "ES256", "x5c": [other.x5c()[0], ours.x5c()[1], ours.x5c()[2]]});
    refused(ours.verify(&other.signer().sign(&message(&header, &payload()))), "do not sign each other");
}

#[test]
fn each_certificate_is_what_it_is_there_for() {
    let (intermediate, signer) =
        (|| marked("intermediate", true, INTERMEDIATE), || marked("signer", false, SIGNS_RECEIPTS));
    let changed = |mut params: CertificateParams, change: fn(&mut CertificateParams)| {
        change(&mut params);
        params
    };
    let demands = |params: &mut CertificateParams| {
        let mut demand = CustomExtension::from_oid_content(&[2, 5, 29, 36], vec![48, 0]);
        demand.set_criticality(true);
        params.custom_extensions.push(demand);
    };
    const MARK: &str = "not those that Apple signs";
    const MAY_NOT: &str = "may not issue";
    for (intermediate, signer, why) in [
        (params("intermediate", true), signer(), MARK),
        (intermediate(), params("signer", false), MARK),
        (marked("intermediate", true, SIGNS_RECEIPTS), marked("signer", false, INTERMEDIATE), MARK),
        (changed(intermediate(), |params| params.is_ca = IsCa::NoCa), signer(), MAY_NOT),
        (changed(intermediate(), |params| params.is_ca = IsCa::ExplicitNoCa), signer(), MAY_NOT),
        (
            changed(intermediate(), |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]),
            signer(),
            MAY_NOT,
        ),
        (intermediate(), changed(signer(), |params| params.key_usages = vec![]), ""),
        (
            intermediate(),
            changed(signer(), |params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            "may not sign",
        ),
        (changed(intermediate(), demands), signer(), "demands"),
        (intermediate(), changed(signer(), demands), "demands"),
    ] {
        let store = Store::of(root(), intermediate, signer);
        let outcome = store.verify(&store.sign(&payload()));
        match why {
            "" => assert!(outcome.is_ok(), "{outcome:?}"),
            why => refused(outcome, why),
        }
    }
    let short = params("root", true);
    let short = changed(short, |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let der = short.self_signed(&key).unwrap().der().to_vec();
    let store = Store::of(Holder { params: short, key, der }, intermediate(), signer());
    refused(store.verify(&store.sign(&payload())), MAY_NOT);
}

#[test]
fn an_authority_signs_no_transactions_itself() {
    let store = Store::new();
    let Store([root, intermediate, _]) = &store;
    let mut authority = marked("signer", true, SIGNS_RECEIPTS);
    authority.key_usages.push(KeyUsagePurpose::DigitalSignature);
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let issuer = Issuer::from_params(&intermediate.params, &intermediate.key);
    let der = authority.signed_by(&key, &issuer).unwrap().der().to_vec();
    let x5c = [&der, &intermediate.der, &root.der].map(|der| BASE64_STANDARD.encode(der));
    let signer = Holder { params: authority, key, der };
    let jws = signer.sign(&message(&json!({"alg": "ES256", "x5c": x5c}), &payload()));
    refused(store.verify(&jws), "may not sign");
}

#[test]
fn certificates_are_valid_when_it_is_signed_and_that_is_not_in_the_future() {
    let store = Store::new();
    let at = |moment: &str| Time::parse(moment).unwrap();
    let signed = |moment: &str| store.sign(&with("signedDate", json!(at(moment).0)));
    let later = at("2030-01-01T00:00:00Z");
    let verify_at = |jws: &str, now| verify(&store.settings(), &products(), &record(), jws, 100, now);
    for moment in ["2024-12-31T23:59:59.999Z", "2026-01-01T00:00:01Z", "1931-01-01T00:00:00Z"] {
        refused(verify_at(&signed(moment), later), "were not valid when");
    }
    for moment in ["2025-01-01T00:00:00Z", "2025-12-31T23:59:59.999Z"] {
        assert!(verify_at(&signed(moment), later).is_ok(), "{moment}");
    }
    // Another clock is a little ahead, but not a day.
    assert!(verify_at(&signed("2025-06-01T00:04:00Z"), at("2025-06-01T00:00:00Z")).is_ok());
    refused(verify_at(&signed("2025-06-02T00:00:00Z"), at("2025-06-01T00:00:00Z")), "in the future");
    for odd in [i64::MIN, i64::MAX] {
        assert!(verify_at(&store.sign(&with("signedDate", json!(odd))), later).is_err());
    }

    let mut expired = marked("intermediate", true, INTERMEDIATE);
    expired.not_after = date_time_ymd(2025, 2, 1);
    let store = Store::of(root(), expired, marked("signer", false, SIGNS_RECEIPTS));
    refused(store.verify(&store.sign(&payload())), "were not valid when");
}

#[test]
fn nothing_but_es256_by_the_certificates_own_key_is_a_signature() {
    let store = Store::new();
    let (x5c, good) = (store.x5c(), store.sign(&payload()));
    for alg in ["none", "HS256", "ES384", "RS256", "es256", ""] {
        let header = json!({"alg": alg, "x5c": x5c});
        refused(store.verify(&store.signer().sign(&message(&header, &payload()))), "not signed by ES256");
        refused(store.verify(&format!("{}.", message(&header, &payload()))), "not signed by ES256");
    }
    // The classical confusion: the public key taken for a secret.
    let secret = EncodingKey::from_secret(store.signer().key.public_key_raw());
    let hs256 = message(&json!({"alg": "HS256", "x5c": x5c}), &payload());
    let signature = crypto::sign(hs256.as_bytes(), &secret, Algorithm::HS256).unwrap();
    refused(store.verify(&format!("{hs256}.{signature}")), "not signed by ES256");
    let critical = json!({"alg": "ES256", "x5c": x5c, "crit": ["b64"], "b64": false});
    refused(store.verify(&store.signer().sign(&message(&critical, &payload()))), "not signed by ES256");

    const ANOTHER: &str = "its signature is not";
    let header = json!({"alg": "ES256", "x5c": x5c});
    let other = Store::new();
    refused(store.verify(&other.signer().sign(&message(&header, &payload()))), ANOTHER);
    let (_, signature) = good.rsplit_once('.').unwrap();
    let tampered = message(&header, &with("quantity", json!(100)));
    refused(store.verify(&format!("{tampered}.{signature}")), ANOTHER);
    for wrong in ["", "AAAA", "*", &"A".repeat(86), &signature[..80]] {
        refused(store.verify(&format!("{}.{wrong}", message(&header, &payload()))), ANOTHER);
    }
    // A signer's key that is of another curve.
    let mut p384 = marked("signer", false, SIGNS_RECEIPTS);
    p384.is_ca = IsCa::NoCa;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
    let issuer = Issuer::from_params(&store.0[1].params, &store.0[1].key);
    let der = p384.signed_by(&key, &issuer).unwrap().der().to_vec();
    let header = json!({"alg": "ES256", "x5c": [BASE64_STANDARD.encode(der), x5c[1], x5c[2]]});
    refused(store.verify(&store.signer().sign(&message(&header, &payload()))), ANOTHER);
}

#[test]
fn a_chain_has_three_certificates_and_each_is_one() {
    let store = Store::new();
    let with_chain = |x5c: Value| {
        store.verify(&store.signer().sign(&message(&json!({"alg": "ES256", "x5c": x5c}), &payload())))
    };
    let [signer, intermediate, root] = store.x5c().try_into().unwrap();
    for x5c in [
        json!([]),
        json!([signer]),
        json!([signer, root]),
        json!([signer, intermediate, root, root]),
        json!([signer, intermediate, intermediate, root]),
    ] {
        refused(with_chain(x5c), "exactly three");
    }
    refused(store.verify(&store.signer().sign(&message(&json!({"alg": "ES256"}), &payload()))), "exactly");
    refused(with_chain(json!(["***", intermediate, root])), "not base64");
    for garbage in [vec![], vec![0x30], b"garbage".to_vec(), vec![0xff; 9_000]] {
        let garbage = BASE64_STANDARD.encode(garbage);
        refused(with_chain(json!([garbage, intermediate, root])), "is none");
        refused(with_chain(json!([signer, garbage, root])), "is none");
        refused(with_chain(json!([signer, intermediate, garbage])), "its root certificate");
    }
    let der = |text: &str| BASE64_STANDARD.decode(text).unwrap();
    let longer = BASE64_STANDARD.encode([der(&signer), vec![0]].concat());
    refused(with_chain(json!([longer, intermediate, root])), "is none");
    refused(with_chain(json!([intermediate, signer, root])), "may not issue");
    refused(with_chain(json!([signer, root, root])), "");
    // Broken anywhere, a certificate is refused, and never a panic.
    for at in (0..der(&signer).len()).step_by(7) {
        let mut broken = der(&signer);
        broken[at] ^= 0x55;
        assert!(with_chain(json!([BASE64_STANDARD.encode(broken), intermediate, root])).is_err(), "{at}");
        let cut = BASE64_STANDARD.encode(&der(&signer)[..at]);
        assert!(with_chain(json!([cut, intermediate, root])).is_err(), "{at}");
    }

    refused(with_chain(json!(vec!["A"; 5_000])), "exactly three");
    refused(with_chain(json!(["A".repeat(1_000_000), intermediate, root])), "too long");
    for x5c in [json!("chain"), json!([1, 2, 3]), json!({"0": signer})] {
        refused(with_chain(x5c), "no JWS");
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    for text in ["", ".", "..", "a.b", "a.b.c", "a.b.c.d", "\u{0}", &BASE64_URL_SAFE_NO_PAD.encode(deep)] {
        refused(store.verify(text), "no JWS");
    }
}

#[test]
fn a_transaction_is_of_this_app_paid_and_to_be_consumed() {
    let store = Store::new();
    for (field, value, why) in [
        ("bundleId", json!("com.example.other"), "another app"),
        ("environment", json!("Sandbox"), "sandbox"),
        ("environment", json!("Xcode"), "not of the App Store"),
        ("environment", json!("production"), "not of the App Store"),
        ("revocationDate", json!(NOW.0), "refunded or revoked"),
        ("type", json!("Auto-Renewable Subscription"), "no consumable"),
        ("type", json!("Non-Consumable"), "no consumable"),
        ("quantity", json!(0), "no quantity"),
        ("quantity", json!(-1), "no quantity"),
        ("quantity", json!(1.5), "no transaction"),
        ("quantity", json!("1"), "no transaction"),
        ("signedDate", Value::Null, "no transaction"),
        ("transactionId", json!(2_000_000_001), "no transaction"),
        ("environment", Value::Null, "no transaction"),
    ] {
        refused(store.verify(&store.sign(&with(field, value))), why);
    }
    for no_object in [json!([]), json!("text"), Value::Null] {
        refused(store.verify(&store.sign(&no_object)), "no transaction");
    }
    for field in payload().as_object().unwrap().keys() {
        let mut less = payload();
        less.as_object_mut().unwrap().remove(field);
        let informative =
            ["originalTransactionId", "purchaseDate", "price", "currency", "appAccountToken", "storefront"];
        let outcome = store.verify(&store.sign(&less));
        assert_eq!(outcome.is_ok(), informative.contains(&field.as_str()), "{field}: {outcome:?}");
    }
    assert!(store.verify(&store.sign(&with("revocationDate", Value::Null))).is_ok());
}

#[test]
fn the_sandbox_counts_where_it_was_allowed() {
    let store = Store::new();
    let settings = Settings { allow_sandbox: true, ..store.settings() };
    let verify = |environment: &str| {
        let jws = store.sign(&with("environment", json!(environment)));
        verify(&settings, &products(), &record(), &jws, 100, NOW)
    };
    assert!(verify("Sandbox").is_ok() && verify("Production").is_ok());
    refused(verify("LocalTesting"), "not of the App Store");
}

#[test]
fn the_record_is_of_the_transaction() {
    let store = Store::new();
    for (field, value) in [("transactionId", "2000000002"), ("productId", "credits.500")] {
        let told = store.verify(&store.sign(&with(field, json!(value)))).unwrap_err();
        let (Unverified::Mismatch(told), is) = (told, &record()) else { panic!("{field}") };
        let says = if field == "productId" { &is.product_id } else { &is.transaction_id };
        assert_eq!(told, format!("The signed transaction's `{field}` is `{value}`, not `{says}`."));
    }
    let other = Record { product_id: "credits.500".to_owned(), ..record() };
    let jws = store.sign(&with("productId", json!("credits.500")));
    let outcome = verify(&store.settings(), &products(), &other, &jws, 500, NOW);
    let told = "The product `credits.500` gives no credits on this server.".to_owned();
    assert_eq!(outcome, Err(Unverified::Mismatch(told)));
}
