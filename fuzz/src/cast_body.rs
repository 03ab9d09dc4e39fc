use serde::Deserialize;
use serde_json::Value;
use spell_platform::{
    http::{casts::CastBody, extract::decode},
    json::{self, MAX_DEPTH, Source},
};

/// The bytes are the body of a cast.
pub fn cast_body(data: &[u8]) {
    let by_caller = json::parse(data, Source::Caller);
    let by_upstream = json::parse(data, Source::Upstream);
    if let Ok(value) = &by_caller {
        assert!(by_upstream.as_ref().is_ok_and(|upstreams| upstreams == value));
        assert!(!has_nul(value), "NUL came through");
    }
    if let Ok(value) = &by_upstream {
        assert!(depth(value) <= MAX_DEPTH, "{} levels came through", depth(value));
        // Nothing is read otherwise than others read it, and what goes out comes in again.
        assert_eq!(plain(data).as_ref(), Some(value));
        let text = value.to_string();
        assert_eq!(json::parse(text.as_bytes(), Source::Upstream).ok().as_ref(), Some(value));
    }
    // What is refused though it is JSON is too deep, or has a key that can be read in two ways.
    if let (Err(problem), Some(value)) = (&by_upstream, plain(data)) {
        let said = problem.to_string();
        assert!(depth(&value) > MAX_DEPTH || data.len() > 30 && private(data), "{said}: {value}");
    }

    let Ok(CastBody { spell_name, payload }) = decode::<CastBody>(data) else { return };
    let Ok(Value::Object(fields)) = by_caller else { panic!("it is no object, and was read") };
    assert!(fields.keys().all(|key| ["spell_name", "payload"].contains(&key.as_str())));
    assert_eq!(fields["spell_name"], spell_name.as_str());
    let given = fields.get("payload").filter(|payload| !payload.is_null());
    assert_eq!(given.map(unsigned_zeros), payload);
    // Null is as good as nothing, and a field more is an error.
    let again = serde_json::json!({"spell_name": spell_name, "payload": payload});
    let again = decode::<CastBody>(again.to_string().as_bytes()).expect("what was read is read again");
    assert_eq!((again.spell_name, again.payload), (spell_name.clone(), payload));
    let more = serde_json::json!({"spell_name": spell_name, "model": 1});
    assert!(decode::<CastBody>(more.to_string().as_bytes()).is_err());
}

/// As the plain `serde_json` reads it, without a limit of its own; but not so deep that it would not return.
fn plain(data: &[u8]) -> Option<Value> {
    let opened = data.iter().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if opened > 1_000 {
        return None;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(data);
    deserializer.disable_recursion_limit();
    let value = Value::deserialize(&mut deserializer).ok()?;
    deserializer.end().ok().map(|()| value)
}

/// Whether a key may be there that `serde_json` keeps for itself.
fn private(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    text.contains("private::") || text.contains("\\u")
}

/// The one thing that becomes another on its way into a body's type: the integer -0 is read as 0.
fn unsigned_zeros(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.to_string() == "-0" => Value::from(0),
        Value::Array(items) => items.iter().map(unsigned_zeros).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), unsigned_zeros(value))).collect()
        }
        other => other.clone(),
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}
