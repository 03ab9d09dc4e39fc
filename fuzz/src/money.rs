use serde_json::{Value, json};
use spell_platform::{
    money::{MAX_CENTS, NANOS_PER_CENT, Nanos, sum_of_halves},
    payment::order::{PaidOrder, same_amount},
    wallet::pricing::tokens,
};

/// The bytes are two integers, and a decimal as somebody may write it.
pub fn money(data: &[u8]) {
    let (numbers, text) = data.split_at(data.len().min(16));
    let mut integers = [0; 16];
    integers[..numbers.len()].copy_from_slice(numbers);
    let [one, other] = [0, 8].map(|at| i64::from_le_bytes(integers[at..at + 8].try_into().unwrap()));
    printed(Nanos(one));
    rounded(Nanos(one));
    named(one);
    divided(one, other);
    let halves = (one / 1_000_000_000, one % 1_000_000_000);
    assert_eq!(sum_of_halves(halves.0, halves.1), one);
    if let Ok(text) = str::from_utf8(text) {
        amount(text);
    }
}

/// An amount goes out exactly, in the one way to write it.
fn printed(nanos: Nanos) {
    let text = nanos.to_usd();
    let (digits, exponent) = decimal(text.strip_prefix('-').unwrap_or(&text)).expect("it is a decimal");
    let back: i128 = digits.parse::<i128>().unwrap() * 10i128.pow(u32::try_from(9 + exponent).unwrap());
    assert_eq!(if text.starts_with('-') { -back } else { back }, i128::from(nanos.0), "{text}");
    assert!(!text.contains('.') || !text.ends_with(['0', '.']), "{text}");
}

/// Cents are rounded once, by less than one, in the direction that the name says.
fn rounded(nanos: Nanos) {
    let (up, down) = (i128::from(nanos.cents_rounded_up()), i128::from(nanos.cents_rounded_down()));
    let (exact, cent) = (i128::from(nanos.0), i128::from(NANOS_PER_CENT));
    assert!(up * cent >= exact && (up - 1) * cent < exact);
    assert!(down * cent <= exact && (down + 1) * cent > exact);
}

/// What callers may name is taken as it is, and comes out as it went in.
fn named(cents: i64) {
    match Nanos::from_cents(cents) {
        Some(nanos) => {
            assert!((0..=MAX_CENTS).contains(&cents));
            assert_eq!((nanos.cents_rounded_up(), nanos.cents_rounded_down()), (cents, cents));
        }
        None => assert!(!(0..=MAX_CENTS).contains(&cents)),
    }
}

/// Tokens are the whole ones that the credits pay for.
fn divided(credits: i64, price: i64) {
    let (credits, price) = (credits.saturating_abs(), price.saturating_abs());
    match tokens(credits, price) {
        Some(tokens) => {
            let paid = i128::from(credits) * 1_000_000;
            let (tokens, price) = (i128::from(tokens), i128::from(price));
            assert!(tokens * price <= paid && (tokens + 1) * price > paid);
        }
        None => assert!(price == 0 || i128::from(credits) * 1_000_000 / i128::from(price) > i64::MAX.into()),
    }
}

/// A payment's amount is kept as the number that was stated, to the last digit, whether it came as a
/// number or as text.
fn amount(text: &str) {
    // JSON allows space around a number.
    let number = serde_json::from_str(text).ok().filter(Value::is_number).filter(|_| text.trim() == text);
    let read: Vec<Option<String>> =
        [Some(Value::from(text)), number].into_iter().flatten().map(|value| order(&value)).collect();
    for read in read.iter().flatten() {
        assert_eq!(decimal(read), decimal(text), "{text} became {read}");
        assert!(read.len() <= 40 && read.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'));
        assert_eq!(order(&Value::from(read.as_str())).as_deref(), Some(read.as_str()));
        let more = format!("{read}{}", if read.contains('.') { "0" } else { ".0" });
        assert!(same_amount(read, &more) && !same_amount(read, &format!("1{read}")));
    }
    // serde_json writes the exponent's sign, and nothing else differs.
    if let [text, number] = &read[..] {
        assert!(number.is_none() || text == number, "{text:?} as text, {number:?} as a number");
    }
}

fn order(amount: &Value) -> Option<String> {
    let body = json!({
        "order_id": "ord_1", "user_id": "user_1", "plan_code": "pro", "units_chat": 1, "units_tpl": 0,
        "amount": amount, "currency": "usd", "payment_status": "succeeded",
    });
    Some(PaidOrder::parse(body.to_string().as_bytes()).ok()?.order.payment?.amount)
}

/// A decimal as its significant digits and the power of ten behind them.
fn decimal(text: &str) -> Option<(String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let exponent = exponent.parse::<i64>().ok()? - i64::try_from(fraction.len()).ok()?;
    let digits = digits.trim_start_matches('0');
    match digits.trim_end_matches('0') {
        "" => Some(("0".to_owned(), 0)),
        significant => {
            let moved = i64::try_from(digits.len() - significant.len()).ok()?;
            Some((significant.to_owned(), exponent + moved))
        }
    }
}
