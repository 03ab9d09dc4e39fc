//! What a delivery says was paid, read strictly, since it is turned into units: only fields that
//! nobody asks for may be anything.

use serde_json::Value;

use crate::{
    identity,
    json::{self, Source},
    plan,
    quota::{self, MAX_UNITS, Order, Payment},
};

/// How many characters an amount has at most.
const MAX_AMOUNT: usize = 40;

/// The one status that is credited.
const SUCCEEDED: &str = "succeeded";

/// An order, and the user who gets what it brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PaidOrder {
    pub user_id: String,
    pub order: Order,
}

impl PaidOrder {
    /// Reads a delivery's body.
    ///
    /// Errors: a sentence about the first thing that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<PaidOrder, String> {
        let value = json::parse(body, Source::Caller)
            .map_err(|problem| format!("The body is not valid JSON: {problem}."))?;
        if !value.is_object() {
            return Err("The body must be a JSON object.".to_owned());
        }
        let text = |field: &str, fits: fn(&str) -> bool, what: &str| {
            let text = value[field].as_str().filter(|text| fits(text));
            text.map(str::to_owned).ok_or_else(|| format!("`{field}` must be {what}."))
        };
        let units = |field: &str| {
            let units = value[field].as_i64().filter(|units| (0..=MAX_UNITS).contains(units));
            units.ok_or_else(|| format!("`{field}` must be a whole number from 0 to {MAX_UNITS}."))
        };
        let order_id =
            text("order_id", quota::could_be_name, "1 to 200 bytes of text without control characters")?;
        let user_id =
            text("user_id", identity::could_be_user, "1 to 255 bytes of text without control characters")?;
        let plan_code = text("plan_code", plan::could_be_code, "a plan's code")?;
        let (units_chat, units_tpl) = (units("units_chat")?, units("units_tpl")?);
        let amount = decimal(&value["amount"])
            .ok_or("`amount` must be a decimal such as 9.90, not negative, as a number or a string.")?;
        let currency = value["currency"].as_str().and_then(plan::currency);
        let currency = currency.ok_or("`currency` must be the three letters of a currency, such as usd.")?;
        let status =
            text("payment_status", |status| status == SUCCEEDED, "`succeeded`: nothing else is credited")?;
        let payment = Some(Payment { amount, currency, status });
        Ok(PaidOrder { user_id, order: Order { order_id, plan_code, units_chat, units_tpl, payment } })
    }
}

/// Whether two decimals are the same number.
pub fn same_amount(one: &str, other: &str) -> bool {
    fn plain(decimal: &str) -> &str {
        match decimal.contains('.') {
            true => decimal.trim_end_matches('0').trim_end_matches('.'),
            false => decimal,
        }
    }
    plain(one) == plain(other)
}

/// The decimal as it stands, and written out where it has an exponent, as some libraries write large
/// numbers.
fn decimal(value: &Value) -> Option<String> {
    let text = match value {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        None => (text.as_str(), None),
        Some((mantissa, exponent)) => (mantissa, Some(exponent.parse::<i16>().ok()?)),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((_, "")) => return None,
        Some(parts) => parts,
        None => (mantissa, ""),
    };
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = whole.len() > 1 && whole.starts_with('0');
    if whole.is_empty() || leading_zero || !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let decimal = match exponent {
        None => mantissa.to_owned(),
        Some(exponent) if mantissa.len() <= MAX_AMOUNT => written_out(whole, fraction, exponent.into())?,
        Some(_) => return None,
    };
    (decimal.len() <= MAX_AMOUNT).then_some(decimal)
}

/// Moves the point of `whole.fraction` by `exponent` digits to the right.
fn written_out(whole: &str, fraction: &str, exponent: i64) -> Option<String> {
    let digits = format!("{whole}{fraction}");
    let point = i64::try_from(whole.len()).ok()?.checked_add(exponent)?;
    let most = i64::try_from(MAX_AMOUNT).ok()?;
    if !(-most..=most).contains(&point) {
        return None;
    }
    let missing = usize::try_from(-point).unwrap_or(0);
    let point = usize::try_from(point).unwrap_or(0);
    let digits = format!("{}{digits}", "0".repeat(missing));
    let (whole, fraction) = match digits.split_at_checked(point) {
        Some(parts) => (parts.0.to_owned(), parts.1),
        None => (format!("{digits:0<point$}"), ""),
    };
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    Some(if fraction.is_empty() { whole.to_owned() } else { format!("{whole}.{fraction}") })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn order(changes: Value) -> Result<PaidOrder, String> {
        let mut body = json!({
            "order_id": "ord_1", "user_id": "user 1", "plan_code": "pro_month", "units_chat": 100,
            "units_tpl": 0, "amount": 1, "currency": "USD", "payment_status": "succeeded",
            "customer": {"order_id": 7}, "note": null,
        });
        for (field, value) in changes.as_object().unwrap() {
            body[field] = value.clone();
        }
        PaidOrder::parse(body.to_string().as_bytes())
    }

    #[test]
    fn what_is_asked_for_is_read_and_the_rest_may_be_anything() {
        let read = order(json!({"amount": "9.90"})).unwrap();
        assert_eq!(read.user_id, "user 1");
        let payment = Payment { amount: "9.90".into(), currency: "usd".into(), status: "succeeded".into() };
        let expected = Order {
            order_id: "ord_1".into(),
            plan_code: "pro_month".into(),
            units_chat: 100,
            units_tpl: 0,
            payment: Some(payment),
        };
        assert_eq!(read.order, expected);
        for good in [
            json!({"units_chat": 0, "units_tpl": 0}),
            json!({"units_chat": 1_000_000_000_000_000_i64}),
            json!({"order_id": "ż".repeat(100), "user_id": "auth0|株式会社"}),
        ] {
            assert!(order(good.clone()).is_ok(), "{good}");
        }
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        for (field, wrongs) in [
            ("order_id", json!([null, "", 7, {}, "a\nb", "a".repeat(201)])),
            ("user_id", json!([null, "", 7, "a\u{7f}", "é".repeat(128)])),
            ("plan_code", json!([null, "", 7, "a b", "a".repeat(65)])),
            ("units_chat", json!([null, -1, "1", 1.5, 1_000_000_000_000_001_i64, true, [1]])),
            ("units_tpl", json!([null, -1, u64::MAX])),
            ("amount", json!([null, -1, "", "-1", "1,5", "9.", ".5", "007", "NaN", "1e", "1e99", [], "+1"])),
            ("currency", json!([null, "", "us", "usdt", "u d", "€€€", 840])),
            ("payment_status", json!([null, "", "pending", "SUCCEEDED", "failed", true])),
        ] {
            for wrong in wrongs.as_array().unwrap() {
                let problem = order(json!({field: wrong})).unwrap_err();
                assert!(problem.starts_with(&format!("`{field}` must be")), "{field} {wrong}: {problem}");
            }
        }
        for body in ["", "null", "[]", "7", "{", "{}", r#"{"a":1,"a":1}"#, "{\"a\":\"\\u0000\"}", "\u{0}"] {
            assert!(PaidOrder::parse(body.as_bytes()).is_err(), "{body:?}");
        }
        assert!(PaidOrder::parse(b"{\"order_id\":\"\xff\"}").is_err());
        for literal in ["5.0", "5e0", "1E2", "9223372036854775808", "-0.0"] {
            let body = json!({"order_id": "o", "user_id": "u", "plan_code": "p"}).to_string();
            let body = body.replace('}', &format!(",\"units_chat\":{literal}}}"));
            let problem = PaidOrder::parse(body.as_bytes()).unwrap_err();
            assert!(problem.starts_with("`units_chat`"), "{literal}: {problem}");
        }
    }

    #[test]
    fn an_amount_stays_exact() {
        for (given, exact) in [
            ("0", "0"),
            ("9.90", "9.90"),
            ("0.1", "0.1"),
            ("123456789012345678901234567890.12345678", "123456789012345678901234567890.12345678"),
            ("1.0E7", "10000000"),
            ("1.25e1", "12.5"),
            ("1e+2", "100"),
            ("125e-2", "1.25"),
            ("125e-3", "0.125"),
            ("125e-5", "0.00125"),
            ("0.5e1", "5"),
            ("0e5", "0"),
            ("1e0", "1"),
        ] {
            assert_eq!(decimal(&Value::from(given)).as_deref(), Some(exact), "\"{given}\"");
            let number: Value = serde_json::from_str(given).unwrap();
            assert_eq!(decimal(&number).as_deref(), Some(exact), "{given}");
        }
        for wrong in
            ["1e40", "1e-41", "1e32768", "1e-99999", "1e1.5", "1ee1", "0x1", " 1", "٣", &"1".repeat(41)]
        {
            assert_eq!(decimal(&Value::from(wrong)), None, "{wrong}");
        }
        for (one, other, same) in [
            ("9.9", "9.90", true),
            ("10", "10.00", true),
            ("10", "1", false),
            ("10", "100", false),
            ("0.0", "0", true),
            ("9.90", "9.09", false),
        ] {
            assert_eq!((same_amount(one, other), same_amount(other, one)), (same, same), "{one} {other}");
        }
    }
}
