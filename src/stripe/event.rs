//! A Stripe event, as much of it as is needed: the rest, and with it the version of the API that it
//! was written in, does not matter. What is missing or of another type counts as not there.

use serde_json::Value;

use crate::{
    clock::Time,
    json::{self, Source},
};

/// The types that are acted on.
pub const HANDLED: [&str; 14] = [
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.paid",
    "invoice.payment_failed",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
];

/// The longest id that is believed to be one.
const MAX_ID: usize = 255;

/// More than any payment comes to; sums of such amounts fit their integer.
const MAX_AMOUNT_CENTS: i64 = 1_000_000_000_000;

/// The last second of the year 9999.
const LAST_SECOND: i64 = 253_402_300_799;

#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub kind: String,
    pub created_at: Time,
    pub object: Object,
}

impl Event {
    /// Reads a delivery's body. An event that does not say when it happened happened `now`.
    ///
    /// Errors: a sentence about what is missing without which nothing can be done with it.
    pub fn parse(body: &[u8], now: Time) -> Result<Event, String> {
        let mut value = json::parse(body, Source::Upstream)
            .map_err(|problem| format!("The body is not valid JSON: {problem}."))?;
        let object = value.pointer_mut("/data/object").map(Value::take).unwrap_or_default();
        let event = Object(value);
        let id = event.text("id").filter(|id| id.bytes().all(|byte| byte.is_ascii_graphic()));
        let id = id.ok_or("The event has no `id`.")?.to_owned();
        let kind = event.text("type").ok_or("The event has no `type`.")?.to_owned();
        let created_at = event.time("created").unwrap_or(now);
        Ok(Event { id, kind, created_at, object: Object(object) })
    }

    /// The type if it is one that is acted on, else `other`: a metric's label.
    pub fn label(&self) -> &'static str {
        HANDLED.into_iter().find(|handled| *handled == self.kind).unwrap_or("other")
    }
}

/// One of Stripe's objects. Paths are JSON pointers without the leading slash.
#[derive(Clone, Debug, Default)]
pub struct Object(Value);

impl Object {
    pub fn new(value: Value) -> Object {
        Object(value)
    }

    fn at(&self, path: &str) -> Option<&Value> {
        self.0.pointer(&format!("/{path}"))
    }

    /// A text of a length that an id or a word can have.
    pub fn text(&self, path: &str) -> Option<&str> {
        let text = self.at(path)?.as_str()?;
        ((1..=MAX_ID).contains(&text.len()) && !text.contains('\0')).then_some(text)
    }

    /// An id, whether it stands alone or its object was put in its place.
    pub fn id(&self, path: &str) -> Option<String> {
        self.text(path).or_else(|| self.text(&format!("{path}/id"))).map(str::to_owned)
    }

    pub fn int(&self, path: &str) -> Option<i64> {
        self.at(path)?.as_i64()
    }

    /// An amount in cents, if it is one that anybody could have paid.
    pub fn cents(&self, path: &str) -> Option<i64> {
        self.int(path).filter(|cents| (0..=MAX_AMOUNT_CENTS).contains(cents))
    }

    pub fn is_true(&self, path: &str) -> bool {
        self.at(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A time in seconds, of a year that has four digits.
    pub fn time(&self, path: &str) -> Option<Time> {
        let seconds = self.int(path).filter(|seconds| (0..=LAST_SECOND).contains(seconds))?;
        Some(Time(seconds * 1_000))
    }

    /// A currency in lower case.
    pub fn currency(&self, path: &str) -> Option<String> {
        self.text(path).map(str::to_ascii_lowercase)
    }

    /// An object inside this one; `None` where its id stands for it.
    pub fn part(&self, path: &str) -> Option<Object> {
        self.at(path).filter(|part| part.is_object()).map(|part| Object(part.clone()))
    }

    /// What a list holds.
    pub fn list(&self, path: &str) -> Vec<Object> {
        let items = self.at(path).and_then(Value::as_array);
        items.into_iter().flatten().map(|item| Object(item.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_is_read_and_the_rest_does_not_matter() {
        let body = br#"{"id":"evt_1","type":"invoice.paid","created":1700000000,"api_version":"1999-01-01",
            "data":{"object":{"customer":{"id":"cus_1","deleted":true},"total":5,"lines":{"data":[{"a":1}]},
            "paid":true,"currency":"USD","odd":1.5,"nul":"a\u0000b"}},"new_field":[{}]}"#;
        let event = Event::parse(body, Time(7)).unwrap();
        assert_eq!(
            (event.id.as_str(), event.label(), event.created_at),
            ("evt_1", "invoice.paid", Time(1_700_000_000_000))
        );
        let object = &event.object;
        assert_eq!(object.id("customer").as_deref(), Some("cus_1"));
        assert_eq!((object.int("total"), object.int("odd"), object.int("none")), (Some(5), None, None));
        assert_eq!(object.currency("currency").as_deref(), Some("usd"));
        assert_eq!(object.list("lines/data")[0].int("a"), Some(1));
        assert!(object.is_true("paid") && !object.is_true("total"));
        assert_eq!(object.text("nul"), None);
    }

    #[test]
    fn an_event_has_an_id_and_a_type() {
        for bad in [
            "",
            "null",
            "[]",
            "{}",
            "evt_1",
            r#"{"id":"evt_1"}"#,
            r#"{"type":"a"}"#,
            r#"{"id":1,"type":"a"}"#,
            r#"{"id":"","type":"a"}"#,
            r#"{"id":"a b","type":"a"}"#,
            r#"{"id":"evt_1","type":{}}"#,
            r#"{"id":"evt_1","type":"a\u0000"}"#,
        ] {
            assert!(Event::parse(bad.as_bytes(), Time(7)).is_err(), "{bad}");
        }
        for (created, at) in
            [("null", 7), ("-1", 7), ("1e30", 7), ("\"2026\"", 7), ("999999999999999", 7), ("5", 5_000)]
        {
            let body = format!(r#"{{"id":"evt_1","type":"a","created":{created}}}"#);
            let event = Event::parse(body.as_bytes(), Time(7)).unwrap();
            assert_eq!((event.created_at, event.label()), (Time(at), "other"), "{created}");
        }
    }
}
