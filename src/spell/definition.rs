//! What an admin states about a spell. It is stored in the form in which it came, its secrets filled
//! in, and read by the same function, so that there is one account of what a definition means.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use url::Url;

use super::{Kind, Spell, upstream::check_headers};
use crate::{
    ledger::OnLost,
    money::{MAX_CENTS, Nanos},
};

/// What stands for a secret in all that is sent out, and, sent back, for the one that is stored.
pub const MASK: &str = "***";

/// Every kind, with the fields that only some kinds have.
const KINDS: [(&str, &[&str]); 2] = [("echo", &[]), ("http", &["url", "headers", "timeout_ms"])];

/// How long an upstream may take, in milliseconds: where nothing is said, and at most.
const DEFAULT_TIMEOUT_MS: u64 = 30_000;
const MAX_TIMEOUT_MS: u64 = 600_000;

const MAX_NAME_BYTES: usize = 128;

/// The body of `PUT /v1/spells/{name}`. A plain struct and not an enum by kind, because what reads
/// bodies can't name the unknown fields of a tagged enum; [`Definition::spell`] sorts it out.
#[derive(Clone, Deserialize, Serialize)]
pub struct Definition {
    kind: String,
    url: Option<String>,
    headers: Option<BTreeMap<String, String>>,
    timeout_ms: Option<i64>,
    price: Option<Price>,
    on_lost: Option<OnLost>,
    pay_from: Option<String>,
}

#[derive(Clone, Deserialize, Serialize)]
struct Price {
    flat_cents: i64,
}

/// Says why a spell can't have that name, if so. A part that URLs take for a way up, or for nothing,
/// would give a spell that some clients can't name.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@/-".contains(&byte);
    let fits = name.len() <= MAX_NAME_BYTES
        && name.bytes().all(known)
        && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    match fits {
        true => Ok(()),
        false => Err(format!(
            "a spell's name must have 1 to {MAX_NAME_BYTES} characters, each a letter from a to z, a digit or \
             one of . _ : @ / -, and no part between slashes may be empty, . or .."
        )),
    }
}

/// Says why there is no such kind, if so.
pub fn check_kind(kind: &str) -> Result<(), String> {
    match kind {
        kind if KINDS.iter().any(|(known, _)| *known == kind) => Ok(()),
        "llm" => Err("`kind` can't be llm: the gateway to models is not part of this version".to_owned()),
        _ => Err(format!("`kind` must be one of {}", KINDS.map(|(known, _)| known).join(", "))),
    }
}

impl Definition {
    /// Reads what was stored; `None` if that is more than this version understands.
    pub(super) fn stored(text: &str) -> Option<Definition> {
        let mut understood = true;
        let mut json = serde_json::Deserializer::from_str(text);
        let definition = serde_ignored::deserialize(&mut json, |_| understood = false).ok()?;
        understood.then_some(definition)
    }

    /// The spell that this defines, its URL read by `read_url`.
    ///
    /// Errors: a sentence about what is wrong with the definition, without any secret in it.
    pub(super) fn spell(
        &self,
        name: &str,
        default_price: Nanos,
        read_url: impl FnOnce(&str) -> Result<Url, String>,
    ) -> Result<Spell, String> {
        let from_credits = match self.pay_from.as_deref() {
            None => false,
            Some("credits") => true,
            Some(_) => return Err("`pay_from` can only be \"credits\"".to_owned()),
        };
        let price = match &self.price {
            None => default_price,
            Some(Price { flat_cents }) => Nanos::from_cents(*flat_cents)
                .ok_or_else(|| format!("`price.flat_cents` must be from 0 to {MAX_CENTS}"))?,
        };
        Ok(Spell {
            name: name.to_owned(),
            price,
            on_lost: self.on_lost.unwrap_or_default(),
            from_credits,
            kind: self.read_kind(read_url)?,
            created_at: None,
            updated_at: None,
        })
    }

    fn read_kind(&self, read_url: impl FnOnce(&str) -> Result<Url, String>) -> Result<Kind, String> {
        check_kind(&self.kind)?;
        self.check_fields()?;
        if self.kind == "echo" {
            return Ok(Kind::Echo);
        }
        let url = self.url.as_deref().ok_or("`url` must be there: it is what an http spell calls")?;
        let none = BTreeMap::new();
        let headers = self.headers.as_ref().unwrap_or(&none);
        let timeout_ms = match self.timeout_ms.map(u64::try_from) {
            None => DEFAULT_TIMEOUT_MS,
            Some(Ok(ms @ 1..=MAX_TIMEOUT_MS)) => ms,
            Some(_) => return Err(format!("`timeout_ms` must be from 1 to {MAX_TIMEOUT_MS}")),
        };
        Ok(Kind::Http {
            url: read_url(url)?,
            headers: check_headers(headers)?,
            header_names: headers.keys().cloned().collect(),
            timeout: Duration::from_millis(timeout_ms),
        })
    }

    /// Refuses the fields that this kind has no use for: whoever set one expects it to do something.
    fn check_fields(&self) -> Result<(), String> {
        let stated = [
            ("url", self.url.is_some()),
            ("headers", self.headers.is_some()),
            ("timeout_ms", self.timeout_ms.is_some()),
        ];
        let own = KINDS.iter().find(|(kind, _)| *kind == self.kind).map_or(&[][..], |(_, own)| *own);
        let foreign = stated.iter().filter(|(field, stated)| *stated && !own.contains(field));
        let foreign: Vec<String> = foreign.map(|(field, _)| format!("`{field}`")).collect();
        match foreign.is_empty() {
            true => Ok(()),
            false => Err(format!("a spell of kind {} has no {}", self.kind, foreign.join(", "))),
        }
    }

    /// Puts the stored secrets where this one has [`MASK`], so that who reads a spell, changes it and
    /// sends it back does not wipe them. A secret stays with the origin that it was given to: else
    /// moving the URL would be a way to read what can only be written.
    ///
    /// Errors: a sentence naming the mask that nothing is stored for.
    pub(super) fn unmask(&mut self, stored: Option<&Definition>) -> Result<(), String> {
        let (before, now) = (stored.and_then(Definition::parsed_url), self.parsed_url());
        if let Some(now) = now.as_ref().filter(|now| now.query() == Some(MASK)) {
            match before.as_ref().filter(|before| super::masked(before) == *now) {
                Some(before) => self.url = Some(before.to_string()),
                None => {
                    return Err(format!(
                        "`url` has the query {MASK}, which stands for one that is stored; state it"
                    ));
                }
            }
        }
        let same_origin = before.zip(now).is_some_and(|(before, now)| before.origin() == now.origin());
        let kept = stored.filter(|_| same_origin).and_then(|stored| stored.headers.as_ref());
        for (name, value) in self.headers.iter_mut().flatten().filter(|(_, value)| *value == MASK) {
            let secret = kept.into_iter().flatten().find(|(kept, _)| kept.eq_ignore_ascii_case(name));
            *value = secret.map(|(_, secret)| secret.clone()).ok_or_else(|| {
                format!("`headers` has {MASK} for {name:?}, which stands for a value stored for this host; state it")
            })?;
        }
        Ok(())
    }

    fn parsed_url(&self) -> Option<Url> {
        self.url.as_deref().and_then(|url| Url::parse(url).ok())
    }
}

impl fmt::Debug for Definition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definition").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DEFAULT_PRICE: Nanos = Nanos(10_000_000);

    fn definition(value: Value) -> Definition {
        serde_json::from_value(value).unwrap()
    }

    fn spell(value: Value) -> Result<Spell, String> {
        let read_url = |url: &str| Url::parse(url).map_err(|_| "url is not a URL".to_owned());
        definition(value).spell("some", DEFAULT_PRICE, read_url)
    }

    #[test]
    fn what_is_not_stated_has_a_default() {
        let echo = spell(json!({"kind": "echo"})).unwrap();
        assert_eq!((echo.price, echo.on_lost, echo.kind.as_str()), (DEFAULT_PRICE, OnLost::Release, "echo"));
        assert_eq!((echo.is_instant(), echo.timeout()), (true, Duration::ZERO));

        let http = spell(json!({"kind": "http", "url": "https://a.example/x"})).unwrap();
        assert_eq!((http.is_instant(), http.timeout()), (false, Duration::from_secs(30)));
        let Kind::Http { url, headers, .. } = http.kind else { panic!("an http spell") };
        assert_eq!((url.as_str(), headers.len()), ("https://a.example/x", 0));

        let nulls = json!({
            "kind": "echo", "url": null, "headers": null, "timeout_ms": null, "price": null, "on_lost": null,
            "pay_from": null
        });
        assert!(spell(nulls).is_ok());
    }

    #[test]
    fn what_is_stated_is_taken() {
        let stated = spell(json!({
            "kind": "http", "url": "https://a.example/x?y=z", "headers": {"X-Tenant": "seven"},
            "timeout_ms": 600_000, "price": {"flat_cents": 99_999_999}, "on_lost": "charge",
        }))
        .unwrap();
        assert_eq!((stated.price, stated.on_lost), (Nanos(999_999_990_000_000), OnLost::Charge));
        assert_eq!(stated.timeout(), Duration::from_secs(600));
        let Kind::Http { headers, header_names, .. } = stated.kind else { panic!("an http spell") };
        assert_eq!((headers[0].0.as_str(), headers[0].1.as_bytes()), ("x-tenant", &b"seven"[..]));
        assert_eq!(header_names, ["X-Tenant"]);
        assert_eq!(spell(json!({"kind": "echo", "price": {"flat_cents": 0}})).unwrap().price, Nanos::ZERO);
    }

    #[test]
    fn what_can_not_be_run_is_refused_by_name() {
        let http =
            |field: &str, value: Value| json!({"kind": "http", "url": "https://a.example/", field: value});
        for (bad, part) in [
            (json!({"kind": "ritual"}), "echo, http"),
            (json!({"kind": "Echo"}), "echo, http"),
            (json!({"kind": "llm"}), "not part of this version"),
            (json!({"kind": "http"}), "`url`"),
            (http("url", json!("hidden")), "url"),
            (http("timeout_ms", json!(0)), "`timeout_ms`"),
            (http("timeout_ms", json!(-1)), "`timeout_ms`"),
            (http("timeout_ms", json!(600_001)), "`timeout_ms`"),
            (http("headers", json!({"Host": "hidden"})), "host"),
            (http("headers", json!({"x-a": "hidden\r\nx-b: c"})), "x-a"),
            (http("price", json!({"flat_cents": -1})), "`price.flat_cents`"),
            (http("price", json!({"flat_cents": 900_000_000_001i64})), "`price.flat_cents`"),
            (http("price", json!({"flat_cents": i64::MAX})), "`price.flat_cents`"),
            (http("pay_from", json!("hidden")), "`pay_from`"),
            (json!({"kind": "echo", "url": "hidden", "timeout_ms": 1}), "echo has no `url`, `timeout_ms`"),
            (json!({"kind": "echo", "headers": {}}), "echo has no `headers`"),
        ] {
            let problem = spell(bad.clone()).unwrap_err();
            assert!(problem.contains(part) && !problem.contains("hidden"), "{bad}: {problem}");
        }
    }

    #[test]
    fn names() {
        for good in ["a", "echo", "openai/gpt-4.1:free", "a.b_c@d-E/9", "...", &"x".repeat(128)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "a\0", "é", "a%2f", "a?", &"x".repeat(129)]
        {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mask_that_comes_back_stands_for_what_is_stored() {
        let stored = definition(json!({
            "kind": "http", "url": "https://a.example/x?key=hidden",
            "headers": {"Authorization": "Bearer hidden", "X-Old": "hidden"},
        }));
        let mut sent = definition(json!({
            "kind": "http", "url": "https://a.example/x?***",
            "headers": {"authorization": "***", "X-New": "new"},
        }));
        sent.unmask(Some(&stored)).unwrap();
        assert_eq!(sent.url.as_deref(), Some("https://a.example/x?key=hidden"));
        let headers = sent.headers.unwrap();
        assert_eq!(headers.get("authorization").map(String::as_str), Some("Bearer hidden"));
        assert_eq!(headers.get("X-New").map(String::as_str), Some("new"));
        assert_eq!(headers.len(), 2);
    }

    #[test]
    fn a_secret_does_not_move_to_another_host() {
        let stored = definition(json!({
            "kind": "http", "url": "https://a.example/x?key=hidden", "headers": {"X-Key": "hidden"},
        }));
        let unmasked = |url: &str, header: &str, stored: Option<&Definition>| {
            definition(json!({"kind": "http", "url": url, "headers": {header: "***"}})).unmask(stored)
        };
        assert_eq!(unmasked("https://a.example/y", "x-key", Some(&stored)), Ok(()));
        for url in ["https://b.example/x", "http://a.example/x", "https://a.example:8443/x"] {
            assert!(unmasked(url, "X-Key", Some(&stored)).unwrap_err().contains("X-Key"), "{url}");
        }
        assert!(unmasked("https://a.example/x", "X-Other", Some(&stored)).is_err());
        assert!(unmasked("https://a.example/x", "X-Key", None).is_err());
        for url in ["https://b.example/x?***", "https://a.example/y?***"] {
            assert!(unmasked(url, "X-Key", Some(&stored)).unwrap_err().contains("query"), "{url}");
        }
    }

    #[test]
    fn secrets_are_not_in_debug_prints() {
        let stated = json!({
            "kind": "http", "url": "https://a.example/x?key=hidden#hidden", "headers": {"X-Key": "hidden"},
        });
        let shown = format!("{:?} {:?}", definition(stated.clone()), spell(stated).unwrap());
        assert!(!shown.contains("hidden"), "{shown}");
        assert!(shown.contains("https://a.example/x?***") && shown.contains("X-Key"), "{shown}");
    }

    #[test]
    fn what_is_stored_reads_back_and_what_a_newer_version_stored_does_not() {
        let stated = json!({
            "kind": "http", "url": "https://a.example/", "headers": {"X-Key": "hidden"}, "timeout_ms": 5,
            "price": {"flat_cents": 3}, "on_lost": "charge",
        });
        let text = serde_json::to_string(&definition(stated)).unwrap();
        let again = serde_json::to_string(&Definition::stored(&text).unwrap()).unwrap();
        assert_eq!(again, text);
        for newer in [
            r#"{"kind":"echo","free_on":"monday"}"#,
            r#"{"kind":"echo","price":{"flat_cents":1,"per":2}}"#,
            "",
            "[]",
        ] {
            assert!(Definition::stored(newer).is_none(), "{newer}");
        }
    }
}
