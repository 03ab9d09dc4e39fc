use jsonwebtoken::{EncodingKey, crypto, jwk::Jwk};
use serde_json::json;

use super::*;

/// When it is in these tests: a Thursday in 2024, in seconds.
pub(super) const NOW: i64 = 1_717_000_000;

const SECRET: &str = "a secret of the tests, longer than 32 bytes";
const RSA_PUBLIC: &str = include_str!("../../../tests/jwt/rsa.pub.pem");
const EC_PUBLIC: &str = include_str!("../../../tests/jwt/ec.pub.pem");

/// Somebody who signs.
pub(super) enum Signer {
    Secret(&'static str),
    Rsa,
    OtherRsa,
    Ec,
    OtherEc,
}

impl Signer {
    pub fn sign(&self, header: &Value, claims: &Value) -> String {
        self.sign_text(&header.to_string(), &claims.to_string())
    }

    fn sign_text(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let rsa = |pem: &str| (Algorithm::RS256, EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap());
        let ec = |pem: &str| (Algorithm::ES256, EncodingKey::from_ec_pem(pem.as_bytes()).unwrap());
        let (algorithm, key) = match self {
            Signer::Secret(secret) => (Algorithm::HS256, EncodingKey::from_secret(secret.as_bytes())),
            Signer::Rsa => rsa(include_str!("../../../tests/jwt/rsa.pem")),
            Signer::OtherRsa => rsa(include_str!("../../../tests/jwt/rsa_other.pem")),
            Signer::Ec => ec(include_str!("../../../tests/jwt/ec.pem")),
            Signer::OtherEc => ec(include_str!("../../../tests/jwt/ec_other.pem")),
        };
        let signature = crypto::sign(message.as_bytes(), &key, algorithm).unwrap();
        format!("{message}.{signature}")
    }

    /// A token of `ann`'s that is in order, by the key of that id.
    pub fn token(&self, key_id: Option<&str>) -> String {
        let algorithm = match self {
            Signer::Secret(_) => "HS256",
            Signer::Rsa | Signer::OtherRsa => "RS256",
            Signer::Ec | Signer::OtherEc => "ES256",
        };
        let mut header = json!({"alg": algorithm, "typ": "JWT"});
        if let Some(id) = key_id {
            header["kid"] = id.into();
        }
        self.sign(&header, &claims())
    }

    /// The public half, as a member of a set.
    pub fn jwk(&self, key_id: &str) -> Value {
        let rsa = |pem: &str| DecodingKey::from_rsa_pem(pem.as_bytes()).unwrap();
        let ec = |pem: &str| DecodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        let key = match self {
            Signer::Secret(secret) => DecodingKey::from_secret(secret.as_bytes()),
            Signer::Rsa => rsa(RSA_PUBLIC),
            Signer::OtherRsa => rsa(include_str!("../../../tests/jwt/rsa_other.pub.pem")),
            Signer::Ec => ec(EC_PUBLIC),
            Signer::OtherEc => ec(include_str!("../../../tests/jwt/ec_other.pub.pem")),
        };
        let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
        jwk["kid"] = key_id.into();
        jwk["use"] = "sig".into();
        jwk
    }
}

pub(super) fn claims() -> Value {
    json!({"sub": "ann", "exp": NOW + 600})
}

pub(super) fn at(seconds: i64) -> Time {
    Time(seconds * 1_000)
}

fn verifier(settings: &Settings) -> Verifier {
    Verifier::new(settings, Clock::manual(at(NOW))).unwrap()
}

fn secret() -> Settings {
    Settings { secret: Some(SECRET.into()), ..Settings::default() }
}

fn public(pem: &str) -> Settings {
    Settings { public_key: Some(PublicKey::from_pem(pem).unwrap()), ..Settings::default() }
}

/// A token by [`SECRET`].
fn by_secret(claims: &Value) -> String {
    Signer::Secret(SECRET).sign(&json!({"alg": "HS256"}), claims)
}

/// The claims of a token in order, with these instead, `null` taking one away.
fn with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().shift_remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

#[track_caller]
fn assert_refused(given: Result<String, TokenError>, part: &str, case: &str) {
    let refused = matches!(given, Err(TokenError::Invalid(why)) if why.contains(part));
    assert!(refused, "{case}: {given:?} instead of a refusal with {part:?}");
}

#[tokio::test]
async fn each_algorithm_is_taken_with_its_own_key() {
    let ann = Ok("ann".to_owned());
    let hs256 = verifier(&secret());
    assert_eq!(hs256.user_of(&Signer::Secret(SECRET).token(None)).await, ann);
    let rs256 = verifier(&public(RSA_PUBLIC));
    assert_eq!(rs256.user_of(&Signer::Rsa.token(None)).await, ann);
    assert_eq!(rs256.user_of(&Signer::Rsa.token(Some("any"))).await, ann);
    let es256 = verifier(&public(EC_PUBLIC));
    assert_eq!(es256.user_of(&Signer::Ec.token(None)).await, ann);
    let both = verifier(&Settings { secret: Some(SECRET.into()), ..public(RSA_PUBLIC) });
    assert_eq!(both.user_of(&Signer::Secret(SECRET).token(None)).await, ann);
    assert_eq!(both.user_of(&Signer::Rsa.token(None)).await, ann);
}

#[tokio::test]
async fn another_key_is_refused() {
    for (settings, signer) in [
        (secret(), Signer::Secret("another secret of more than 32 bytes, too")),
        (public(RSA_PUBLIC), Signer::OtherRsa),
        (public(EC_PUBLIC), Signer::OtherEc),
    ] {
        assert_refused(verifier(&settings).user_of(&signer.token(None)).await, "signature", "another key");
    }
}

#[tokio::test]
async fn another_algorithm_is_refused_whatever_it_is_signed_with() {
    let rsa = verifier(&public(RSA_PUBLIC));
    let ec = verifier(&public(EC_PUBLIC));
    let both = verifier(&Settings { secret: Some(SECRET.into()), ..public(RSA_PUBLIC) });
    // The public key as a secret: what libraries fell for that believed the token's `alg`.
    for secret in [RSA_PUBLIC, RSA_PUBLIC.trim_end()] {
        let confused = Signer::Secret(secret).token(None);
        assert_refused(rsa.user_of(&confused).await, "no tokens of that `alg`", "HS256 by the public key");
        assert_refused(both.user_of(&confused).await, "signature", "HS256 by the public key");
    }
    assert_refused(ec.user_of(&Signer::Rsa.token(None)).await, "`alg`", "RS256 for an ES256 key");
    assert_refused(rsa.user_of(&Signer::Ec.token(None)).await, "`alg`", "ES256 for an RS256 key");
    assert_refused(
        verifier(&secret()).user_of(&Signer::Rsa.token(None)).await,
        "`alg`",
        "RS256 for a secret",
    );
    let nobody = verifier(&Settings::default());
    for signer in [Signer::Secret(SECRET), Signer::Secret(""), Signer::Rsa, Signer::Ec] {
        assert_refused(nobody.user_of(&signer.token(None)).await, "`alg`", "no key is configured");
    }
    // A signature in order under a name that is not.
    for algorithm in
        ["none", "None", "NONE", "", "HS384", "HS512", "hs256", "PS256", "RS512", "EdDSA", " HS256"]
    {
        let token = Signer::Secret(SECRET).sign(&json!({"alg": algorithm}), &claims());
        assert_refused(both.user_of(&token).await, "HS256, RS256 or ES256", algorithm);
    }
    for header in [json!({}), json!({"alg": null}), json!({"alg": ["HS256"]}), json!({"alg": 256})] {
        let token = Signer::Secret(SECRET).sign(&header, &claims());
        assert_refused(both.user_of(&token).await, "HS256, RS256 or ES256", "no name of an algorithm");
    }
    let swapped = Signer::Rsa.sign(&json!({"alg": "ES256"}), &claims());
    assert_refused(ec.user_of(&swapped).await, "signature", "an RSA signature named ES256");
    let swapped = Signer::Secret(SECRET).sign(&json!({"alg": "RS256"}), &claims());
    assert_refused(both.user_of(&swapped).await, "signature", "an HMAC named RS256");
}

#[tokio::test]
async fn without_its_signature_it_is_nothing() {
    for settings in [secret(), public(RSA_PUBLIC), public(EC_PUBLIC)] {
        let verifier = verifier(&settings);
        for algorithm in ["none", "HS256", "RS256", "ES256"] {
            let header = URL_SAFE_NO_PAD.encode(json!({"alg": algorithm}).to_string());
            let unsigned = format!("{header}.{}.", URL_SAFE_NO_PAD.encode(claims().to_string()));
            assert!(has_shape(&unsigned));
            assert_refused(verifier.user_of(&unsigned).await, "", algorithm);
            assert_refused(verifier.user_of(unsigned.trim_end_matches('.')).await, "", algorithm);
        }
    }
}

#[tokio::test]
async fn what_is_signed_can_not_be_changed() {
    for (settings, signer) in [
        (secret(), Signer::Secret(SECRET)),
        (public(RSA_PUBLIC), Signer::Rsa),
        (public(EC_PUBLIC), Signer::Ec),
    ] {
        let verifier = verifier(&settings);
        let token = signer.token(None);
        let parts: Vec<&str> = token.split('.').collect();
        let [header, payload, signature] = parts.as_slice() else { panic!("{token}") };
        let bob = URL_SAFE_NO_PAD.encode(with(json!({"sub": "bob"})).to_string());
        let other_header = URL_SAFE_NO_PAD.encode(
            String::from_utf8(URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap().replace("JWT", "jwt"),
        );
        let mut bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bytes[0] ^= 1;
        let flipped = URL_SAFE_NO_PAD.encode(&bytes);
        let cut = URL_SAFE_NO_PAD.encode(&bytes[1..]);
        for changed in [
            format!("{header}.{bob}.{signature}"),
            format!("{other_header}.{payload}.{signature}"),
            format!("{header}.{payload}.{flipped}"),
            format!("{header}.{payload}.{cut}"),
            format!("{header}.{payload}.{signature}AA"),
            format!("{header}.{payload}.{signature}="),
            format!("{header}.{payload}."),
            format!("{header}.{payload}.{signature}.{signature}"),
            format!("{header}.{payload}"),
            format!("{header}..{signature}"),
            format!(".{payload}.{signature}"),
        ] {
            assert_refused(verifier.user_of(&changed).await, "", &changed);
        }
        assert_eq!(verifier.user_of(&token).await, Ok("ann".to_owned()));
    }
}

#[tokio::test]
async fn it_ends_to_the_millisecond() {
    let clock = Clock::manual(at(NOW));
    let verifier = Verifier::new(&secret(), clock.clone()).unwrap();
    let token = by_secret(&json!({"sub": "ann", "exp": NOW, "nbf": NOW, "iat": NOW}));
    const { assert!(LEEWAY_MS <= 60_000) };
    let moments = [
        (-LEEWAY_MS - 1, "not valid yet"),
        (-LEEWAY_MS, ""),
        (0, ""),
        (LEEWAY_MS - 1, ""),
        (LEEWAY_MS, "expired"),
        (LEEWAY_MS + 86_400_000, "expired"),
    ];
    for (after, refusal) in moments {
        clock.set(Time(at(NOW).0 + after));
        let given = verifier.user_of(&token).await;
        match refusal {
            "" => assert_eq!(given, Ok("ann".to_owned()), "{after} ms after"),
            refusal => assert_refused(given, refusal, &format!("{after} ms after")),
        }
    }
}

#[tokio::test]
async fn times_may_be_any_number_and_nothing_else() {
    let verifier = verifier(&secret());
    // As text, since some of them are no JSON that a value could hold.
    let token = |claims: &str| Signer::Secret(SECRET).sign_text(r#"{"alg":"HS256"}"#, claims);
    let exp = |exp: &str| token(&format!(r#"{{"sub":"ann","exp":{exp}}}"#));
    for taken in [
        "1717000000.5",
        "1.7171e9",
        "9007199254740993",
        "9223372036854775807",
        "1e300",
        "99999999999999999999999999",
    ] {
        assert_eq!(verifier.user_of(&exp(taken)).await, Ok("ann".to_owned()), "{taken}");
    }
    for past in ["0", "-1", "-0.0", "-9223372036854775808", "-1e300", "1716999969.9", "1e-300"] {
        assert_refused(verifier.user_of(&exp(past)).await, "expired", past);
    }
    for nonsense in
        ["\"1717000600\"", "null", "true", "[1717000600]", "{}", "1e400", "-1e999999999", "\"NaN\""]
    {
        assert_refused(verifier.user_of(&exp(nonsense)).await, "`exp` is not a time", nonsense);
    }
    for unreadable in ["NaN", "Infinity", "0x66", "1717000600,", "01717000600"] {
        assert_refused(verifier.user_of(&exp(unreadable)).await, "can't be read", unreadable);
    }
    let many = exp(&"9".repeat(8_000));
    assert_refused(verifier.user_of(&many).await, "`exp` is not a time", "8000 digits");
    assert_refused(verifier.user_of(&by_secret(&with(json!({"exp": null})))).await, "no `exp`", "none");
    for name in ["nbf", "iat"] {
        for past in [json!(0), json!(-1e300), json!(i64::MIN), json!(NOW)] {
            let claims = with(json!({ name: past }));
            assert_eq!(verifier.user_of(&by_secret(&claims)).await, Ok("ann".to_owned()), "{claims}");
        }
        for future in [json!(NOW + 61), json!(u64::MAX), json!(1e300), json!(NOW + 86_400)] {
            let claims = with(json!({ name: future }));
            assert_refused(verifier.user_of(&by_secret(&claims)).await, "not valid yet", &claims.to_string());
        }
        for nonsense in [json!("now"), json!([NOW]), json!({}), json!(false)] {
            let claims = with(json!({ name: nonsense }));
            assert_refused(verifier.user_of(&by_secret(&claims)).await, "is not a time", &claims.to_string());
        }
        let null = token(&format!(r#"{{"sub":"ann","exp":{},"{name}":null}}"#, NOW + 600));
        assert_refused(verifier.user_of(&null).await, "is not a time", "null");
    }
}

#[tokio::test]
async fn issuer_and_audience_have_to_fit_where_they_are_configured() {
    let strict = verifier(&Settings {
        issuer: Some("https://id.example".to_owned()),
        audience: Some("billing".to_owned()),
        ..secret()
    });
    let fitting = json!({"iss": "https://id.example", "aud": "billing"});
    for audience in [json!("billing"), json!(["billing"]), json!(["web", 5, "billing"])] {
        let claims = with(json!({"iss": "https://id.example", "aud": audience}));
        assert_eq!(strict.user_of(&by_secret(&claims)).await, Ok("ann".to_owned()), "{claims}");
    }
    for issuer in
        [json!(null), json!("https://id.example/"), json!(["https://id.example"]), json!(""), json!(5)]
    {
        let claims = with(json!({"iss": issuer, "aud": "billing"}));
        assert_refused(strict.user_of(&by_secret(&claims)).await, "issuer", &claims.to_string());
    }
    for audience in [
        json!(null),
        json!("Billing"),
        json!([]),
        json!(["web"]),
        json!([["billing"]]),
        json!({"billing": 1}),
    ] {
        let claims = with(json!({"iss": "https://id.example", "aud": audience}));
        assert_refused(strict.user_of(&by_secret(&claims)).await, "not meant", &claims.to_string());
    }
    let lax = verifier(&secret());
    for changes in [fitting, json!({"aud": ["anyone"]}), json!({"aud": 5, "iss": {}})] {
        assert_eq!(lax.user_of(&by_secret(&with(changes))).await, Ok("ann".to_owned()));
    }
}

#[tokio::test]
async fn the_subject_is_a_text_that_can_be_a_user() {
    let verifier = verifier(&secret());
    for user in ["ann", "5f1c", "auth0|5f7c8ec7", "Zoë 株", "a b", &"x".repeat(255), "acct_root", "null"] {
        let token = by_secret(&with(json!({"sub": user})));
        assert_eq!(verifier.user_of(&token).await, Ok(user.to_owned()));
    }
    for wrong in [json!(""), json!("x".repeat(256)), json!("a\nb"), json!("\u{7f}"), json!("\u{85}")] {
        assert_refused(verifier.user_of(&by_secret(&with(json!({"sub": wrong})))).await, "`sub`", "text");
    }
    for wrong in [json!(42), json!(["ann"]), json!({"id": "ann"}), json!(true), json!(1.5)] {
        assert_refused(verifier.user_of(&by_secret(&with(json!({"sub": wrong})))).await, "`sub`", "no text");
    }
    assert_refused(verifier.user_of(&by_secret(&with(json!({"sub": null})))).await, "no `sub`", "none");
    let nul = Signer::Secret(SECRET)
        .sign_text(r#"{"alg":"HS256"}"#, &format!(r#"{{"sub":"a\u0000b","exp":{}}}"#, NOW + 600));
    assert_refused(verifier.user_of(&nul).await, "can't be read", "NUL");
}

#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let verifier = verifier(&Settings { secret: Some(SECRET.into()), ..public(RSA_PUBLIC) });
    let exp = NOW + 600;
    let sign = |header: &str, claims: &str| Signer::Secret(SECRET).sign_text(header, claims);
    let (header, claims) = (r#"{"alg":"HS256"}"#, format!(r#"{{"sub":"ann","exp":{exp}}}"#));
    assert_eq!(verifier.user_of(&sign(header, &claims)).await, Ok("ann".to_owned()));
    for twice in [
        format!(r#"{{"sub":"ann","sub":"bob","exp":{exp}}}"#),
        format!(r#"{{"sub":"ann","exp":1,"exp":{exp}}}"#),
        format!(r#"{{"sub":"ann","s\u0075b":"bob","exp":{exp}}}"#),
        format!(r#"{{"sub":"ann","exp":{exp}}} {{}}"#),
        format!(r#"[{{"sub":"ann","exp":{exp}}}]"#),
        format!("{}{}", r#"{"sub":"ann","x":"#, "[".repeat(4_000)),
        "null".to_owned(),
        String::new(),
    ] {
        assert_refused(verifier.user_of(&sign(header, &twice)).await, "can't be read", &twice);
    }
    for header in [
        r#"{"alg":"HS256","alg":"none"}"#,
        r#"{"alg":"none","alg":"HS256"}"#,
        r#"{"alg":"HS256"} x"#,
        r#""HS256""#,
        r#"["HS256"]"#,
        "",
    ] {
        assert_refused(verifier.user_of(&sign(header, &claims)).await, "can be read", header);
    }
}

#[tokio::test]
async fn a_header_can_call_for_nothing_and_bring_no_key() {
    let verifier = verifier(&Settings { secret: Some(SECRET.into()), ..public(RSA_PUBLIC) });
    for extension in [json!(["b64"]), json!([]), json!(["exp"]), json!("x"), json!(null)] {
        let header = json!({"alg": "HS256", "crit": extension, "b64": true});
        let token = Signer::Secret(SECRET).sign(&header, &claims());
        assert_refused(verifier.user_of(&token).await, "extension", &header.to_string());
    }
    for id in [json!(5), json!(null), json!(["k"]), json!({"k": 1})] {
        let token = Signer::Secret(SECRET).sign(&json!({"alg": "HS256", "kid": id}), &claims());
        assert_refused(verifier.user_of(&token).await, "`kid`", &id.to_string());
    }
    for brought in [
        json!({"alg": "RS256", "jwk": Signer::OtherRsa.jwk("own")}),
        json!({"alg": "RS256", "kid": "own", "jku": "http://127.0.0.1:1/keys", "x5c": ["AAAA"]}),
    ] {
        let token = Signer::OtherRsa.sign(&brought, &claims());
        assert_refused(verifier.user_of(&token).await, "signature", &brought.to_string());
    }
}

#[tokio::test]
async fn a_long_token_is_not_looked_at() {
    let verifier = verifier(&secret());
    let long = |bytes: usize| by_secret(&with(json!({"padding": "x".repeat(bytes)})));
    assert_eq!(verifier.user_of(&long(10_000)).await, Ok("ann".to_owned()));
    for bytes in [MAX_TOKEN_BYTES, 1 << 20] {
        assert_refused(verifier.user_of(&long(bytes)).await, "too long", "padding");
    }
    let dots = ".".repeat(1 << 20);
    assert!(!has_shape(&dots));
    assert_refused(verifier.user_of(&dots).await, "too long", "dots");
    for nonsense in ["", ".", "..", "...", "a.b.c", "é.é.é", "e30.e30.e30", "e30=.e30.e30", "\0.\0.\0"] {
        assert_refused(verifier.user_of(nonsense).await, "", nonsense);
    }
}

#[test]
fn tokens_and_keys_can_be_told_apart() {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for token in [
        by_secret(&claims()),
        format!("{}.x.", part(r#"{"alg":"none"}"#)),
        format!("{}.é.%", part(r#"{"alg":null}"#)),
    ] {
        assert!(has_shape(&token), "{token}");
    }
    for other in [
        "sk_live_0123456789abcdefghijklmnop".to_owned(),
        "a.b.c".to_owned(),
        format!("{}.x.x", part(r#"{"typ":"JWT"}"#)),
        format!("{}.x.x", part(r#""alg""#)),
        format!("{}.x", part(r#"{"alg":"none"}"#)),
        format!("{}.x.x.x", part(r#"{"alg":"none"}"#)),
        r#"{"alg":"none"}.x.x"#.to_owned(),
    ] {
        assert!(!has_shape(&other), "{other}");
    }
}

#[test]
fn a_public_key_is_read_as_pem_however_its_lines_break() {
    let algorithm = |pem: &str| PublicKey::from_pem(pem).map(|key| key.algorithm());
    let pkcs1 = include_str!("../../../tests/jwt/rsa_pkcs1.pub.pem");
    for (pem, expected) in [
        (RSA_PUBLIC, Algorithm::RS256),
        (pkcs1, Algorithm::RS256),
        (include_str!("../../../tests/jwt/rsa_4096.pub.pem"), Algorithm::RS256),
        (EC_PUBLIC, Algorithm::ES256),
    ] {
        let escaped = pem.replace('\n', "\\n");
        for written in [
            pem.to_owned(),
            pem.trim().to_owned(),
            pem.replace('\n', "\r\n"),
            pem.replace('\n', "\\r\\n"),
            escaped,
        ] {
            assert_eq!(algorithm(&written), Ok(expected), "{written:?}");
        }
    }
}

#[test]
fn what_is_no_public_key_for_an_algorithm_of_ours_is_refused() {
    let wrong = |pem: &str| PublicKey::from_pem(pem).map(|key| key.algorithm()).unwrap_err();
    assert!(wrong(include_str!("../../../tests/jwt/rsa_1024.pub.pem")).contains("at least 2048 bits"));
    let damaged = RSA_PUBLIC.replacen("MIIB", "MIIC", 1);
    for pem in [
        "",
        "hunter2",
        "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----",
        &damaged,
        &RSA_PUBLIC[..200],
        &format!("{RSA_PUBLIC}{EC_PUBLIC}"),
        &format!("{EC_PUBLIC}{RSA_PUBLIC}"),
        include_str!("../../../tests/jwt/rsa.pem"),
        include_str!("../../../tests/jwt/ec.pem"),
        include_str!("../../../tests/jwt/p384.pub.pem"),
        include_str!("../../../tests/jwt/secp256k1.pub.pem"),
        include_str!("../../../tests/jwt/ed25519.pub.pem"),
        &EC_PUBLIC.replace("PUBLIC KEY", "CERTIFICATE"),
    ] {
        assert!(wrong(pem).contains("public key as PEM"), "{pem}");
    }
}

#[test]
fn nothing_secret_shows_in_a_key() {
    let shown = format!("{:?}", PublicKey::from_pem(RSA_PUBLIC).unwrap());
    assert!(shown.contains("RS256") && shown.contains("redacted"), "{shown}");
}
