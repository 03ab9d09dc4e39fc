//! Reads JSON as it stands, within bounds: what callers and upstreams send us comes through here.
//!
//! `serde_json::Value` alone would not do. It reads an object whose only key is one that
//! `serde_json` keeps for itself ([`RAW`]) as JSON inside a string, where nesting is counted from
//! nothing again, so that half a megabyte overflows a stack. And it counts 127 levels where the
//! contract promises 128.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// How many arrays and objects may stand inside each other.
pub const MAX_DEPTH: usize = 128;

/// The key by which `serde_json` recognizes its own `RawValue`.
const RAW: &str = "$serde_json::private::RawValue";

/// The key under which `serde_json` hands over a number of arbitrary precision. An object that has
/// it, alone and with digits, can't be told from a number, and is read as one.
const NUMBER: &str = "$serde_json::private::Number";

/// Who wrote it. From a caller, a string with the character NUL is refused, since PostgreSQL can't
/// keep it as text, and so is a key that stands twice in an object, since it could be read as either.
/// What an upstream answers is only passed on, and of two equal keys the last one counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Caller,
    Upstream,
}

/// Reads one JSON document.
///
/// Errors: a sentence about what is wrong with it, and where.
pub fn parse(bytes: &[u8], source: Source) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    deserializer.disable_recursion_limit();
    let value = Plain { depth: 0, source }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// A value that begins `depth` levels down.
#[derive(Clone, Copy)]
struct Plain {
    depth: usize,
    source: Source,
}

impl Plain {
    fn deeper<E: Error>(self) -> Result<Plain, E> {
        match self.depth < MAX_DEPTH {
            true => Ok(Plain { depth: self.depth + 1, ..self }),
            false => Err(E::custom(format_args!("more than {MAX_DEPTH} levels of nesting"))),
        }
    }

    fn text<E: Error>(self, text: String) -> Result<String, E> {
        match self.source == Source::Caller && text.contains('\0') {
            true => Err(E::custom("a string holds the character NUL")),
            false => Ok(text),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Plain {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Plain {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.text(value.to_owned()).map(Value::String)
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        self.text(value).map(Value::String)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut all = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            all.push(item);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key == NUMBER && all.is_empty() {
                let number = entries.next_value::<String>()?.parse::<Number>().map_err(Error::custom)?;
                // There is nothing after a number; after what only looks like one, there may be.
                return match entries.next_key::<String>()? {
                    None => Ok(Value::Number(number)),
                    Some(_) => Err(Error::custom("a number with fields")),
                };
            }
            if key == RAW || key == NUMBER {
                return Err(Error::custom("a key that is not read the same way twice"));
            }
            // Not before the first key: a number is no level of nesting, though it comes as a map.
            let inner = self.deeper()?;
            let key = self.text(key)?;
            if self.source == Source::Caller && all.contains_key(&key) {
                return Err(Error::custom("a key is there twice"));
            }
            all.insert(key, entries.next_value_seed(inner)?);
        }
        self.deeper()?;
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Value, String> {
        parse(text.as_bytes(), Source::Caller).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_within_bounds_comes_out_as_it_went_in() {
        for text in [
            "null",
            r#"{"b":[1,-2.50,1e400,true,"é\ud83d\ude00"],"a":{}}"#,
            "123456789012345678901234567890",
            r#""$serde_json::private::RawValue""#,
        ] {
            let value = read(text).unwrap();
            assert_eq!(parse(value.to_string().as_bytes(), Source::Caller).unwrap(), value, "{text}");
        }
        assert_eq!(read(r#"{"b":1,"a":-2.50}"#).unwrap().to_string(), r#"{"b":1,"a":-2.50}"#);
    }

    #[test]
    fn exactly_128_levels_are_read() {
        for (open, close, inner) in
            [("[", "]", "1"), (r#"{"a":"#, "}", "1.5"), ("[", "]", ""), (r#"{"a":"#, "}", "{}")]
        {
            let levels = |n: usize| open.repeat(n) + inner + &close.repeat(n);
            let own = usize::from(inner == "{}");
            assert!(read(&levels(MAX_DEPTH - own)).is_ok(), "{open}{inner}");
            assert!(read(&levels(MAX_DEPTH + 1 - own)).unwrap_err().contains("128 levels"), "{open}{inner}");
        }
        assert!(read(&"[".repeat(1_000_000)).is_err());
    }

    #[test]
    fn nesting_can_not_hide_in_strings() {
        let hidden = r#"{"$serde_json::private::RawValue":"[[1]]"}"#;
        assert!(read(hidden).is_err());
        assert!(read(&hidden.replace('$', r"\u0024")).is_err());
        for text in [
            format!("[{hidden}]"),
            format!("[{{\"a\":1,\"{RAW}\":2}}]"),
            format!("{{\"{NUMBER}\":\"x\"}}"),
            format!("{{\"{NUMBER}\":\"1\",\"a\":2}}"),
            format!("{{\"a\":2,\"{NUMBER}\":\"1\"}}"),
        ] {
            assert!(read(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_text_is_refused() {
        for text in [
            "\"\\u0000\"",
            r#"{"\u0000":1}"#,
            r#"["\ud800"]"#,
            "\"\u{0}\"",
            r#"{"a":1,"a":1}"#,
            "{",
            "",
            "1 2",
            "{'a':1}",
            "NaN",
        ] {
            assert!(read(text).is_err(), "{text:?}");
        }
        assert!(parse(b"\"\xff\"", Source::Upstream).is_err());
        assert!(parse(b"\"\\u0000\"", Source::Upstream).is_ok());
    }
}
