use hmac::{Hmac, KeyInit, Mac};
use secrecy::SecretString;
use sha2::Sha256;
use spell_platform::{
    clock::Time,
    stripe::signature::{Invalid, verify},
};

const NOW: i64 = 1_700_000_000;
const SECRETS: [&str; 2] = ["whsec_a", "whsec_b"];

fn sign(secret: &str, time: &str, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(&[time.as_bytes(), b".", body].concat());
    hex::encode(mac.finalize().into_bytes())
}

fn check(header: &str, body: &[u8]) -> Result<(), Invalid> {
    let secrets = SECRETS.map(SecretString::from);
    verify(Some(header), body, &secrets, Time(NOW * 1_000))
}

/// The bytes are a header, up to the first NUL, and a body. Where the header says `GOOD`, it means the
/// signature that would be right there.
pub fn stripe_signature(data: &[u8]) {
    let (header, body) = match data.iter().position(|byte| *byte == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &b""[..]),
    };
    let Ok(header) = str::from_utf8(header) else { return };
    let time = header.split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        (name.trim() == "t").then(|| value.trim())
    });
    let right = SECRETS.map(|secret| sign(secret, time.unwrap_or_default(), body));
    let header = header.replace("GOOD", &right[body.len() % 2]);

    let verdict = check(&header, body);
    assert_eq!(check(&header, body), verdict);
    // What is good, or would be in time, has one of the signatures that are right.
    let signed = header.split(',').any(|part| {
        let (name, value) = part.split_once('=').unwrap_or_default();
        name.trim() == "v1" && right.contains(&value.trim().to_ascii_lowercase())
    });
    match verdict {
        Ok(()) | Err(Invalid::OutOfTime) => assert!(signed, "{header:?} was believed"),
        Err(Invalid::Wrong) => assert!(!signed, "{header:?} was not believed"),
        Err(Invalid::Malformed) => {}
        Err(Invalid::Missing) => panic!("it is there"),
    }
    if verdict.is_ok() {
        let seconds: i64 = time.unwrap().parse().unwrap();
        assert!((NOW - 300..=NOW + 300).contains(&seconds), "{seconds} is not now");
        // It is of this body only, and by these secrets only.
        let other = [body, b"."].concat();
        assert_eq!(check(&header, &other), Err(Invalid::Wrong));
        let secrets = [SecretString::from("whsec_c")];
        let verdict = verify(Some(&header), body, &secrets, Time(NOW * 1_000));
        assert_eq!(verdict, Err(Invalid::Wrong));
    }
    // Whatever the body, its own signature is good, also beside another scheme's.
    let time = NOW.to_string();
    for secret in SECRETS {
        let good = format!("t={time},v0=00,v1={}", sign(secret, &time, body));
        assert_eq!(check(&good, body), Ok(()));
    }
}
