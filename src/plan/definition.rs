//! What an admin states of a plan, and what is made of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Interval;
use crate::{money::MAX_CENTS, window::Period};

/// The most that Stripe charges at once.
pub const MAX_PRICE_CENTS: i64 = 99_999_999;

const MAX_CREDITS: i64 = 1_000_000_000;
const MAX_RATE: i64 = 1_000_000_000;

/// Units of an action: beyond this a program that reads JSON numbers as floats would miscount.
const MAX_UNITS: i64 = 1_000_000_000_000_000;

/// The most actions that one plan limits.
const MAX_ACTIONS: usize = 50;

/// A plan as it is stated: what is absent has a default, and nothing is checked yet.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Definition {
    /// No other than the one under which it is stated.
    pub code: Option<String>,
    pub name: String,
    pub price_cents: i64,
    pub currency: Option<String>,
    pub interval: Option<String>,
    pub stripe_price_id: Option<String>,
    pub included_credits: Option<i64>,
    pub rate_limit_per_minute: Option<i64>,
    pub hard_limit_cents: Option<i64>,
    pub period: Option<String>,
    pub limits: Option<BTreeMap<String, Option<i64>>>,
}

/// A plan's content: what it costs and what it brings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Terms {
    pub name: String,
    pub price_cents: i64,
    /// In lower case, as Stripe writes it.
    pub currency: String,
    pub interval: Interval,
    /// `None`: sold with the price stated here.
    pub stripe_price_id: Option<String>,
    /// Granted once per paid invoice.
    pub included_credits: i64,
    /// For keys without a rate of their own; `None`: the server's.
    pub rate_limit_per_minute: Option<u32>,
    /// A month's, for accounts without a monthly budget of their own.
    pub hard_limit_cents: Option<i64>,
    /// How often the units by action begin anew: daily or monthly.
    pub period: Period,
    /// Units by action.
    pub limits: BTreeMap<String, i64>,
}

/// Parts of a plan as they are stated: what is absent stays as it was, also the units of an action
/// that `limits` does not name.
#[derive(Clone, Debug, Default)]
pub struct Edit {
    pub name: Option<String>,
    pub price_cents: Option<i64>,
    pub currency: Option<String>,
    pub period: Option<String>,
    pub limits: Option<BTreeMap<String, Option<i64>>>,
}

impl Edit {
    /// Whether it changes what the plan costs.
    pub fn reprices(&self, terms: &Terms) -> bool {
        self.price_cents.is_some_and(|price| price != terms.price_cents)
            || self.currency.as_ref().is_some_and(|code| !code.eq_ignore_ascii_case(&terms.currency))
    }

    /// The terms after it.
    ///
    /// Errors: a sentence about what can't be so.
    pub fn onto(self, terms: Terms) -> Result<Terms, String> {
        let mut limits: BTreeMap<_, _> =
            terms.limits.into_iter().map(|(action, units)| (action, Some(units))).collect();
        limits.extend(self.limits.unwrap_or_default().into_iter().filter(|(_, units)| units.is_some()));
        let stated = Definition {
            code: None,
            name: self.name.unwrap_or(terms.name),
            price_cents: self.price_cents.unwrap_or(terms.price_cents),
            currency: self.currency,
            period: self.period.or(Some(terms.period.as_str().to_owned())),
            limits: Some(limits),
            interval: Some(terms.interval.as_str().to_owned()),
            stripe_price_id: terms.stripe_price_id,
            included_credits: Some(terms.included_credits),
            rate_limit_per_minute: terms.rate_limit_per_minute.map(i64::from),
            hard_limit_cents: terms.hard_limit_cents,
        };
        stated.terms(&terms.currency)
    }
}

impl Definition {
    /// The terms, in `default_currency` where none is stated.
    ///
    /// Errors: a sentence about what can't be so.
    pub fn terms(self, default_currency: &str) -> Result<Terms, String> {
        let interval = self.interval.as_deref().unwrap_or("month");
        let period = self.period.as_deref().unwrap_or("monthly");
        let code = self.currency.as_deref().unwrap_or(default_currency);
        let rate = self.rate_limit_per_minute.map(|rate| within("rate_limit_per_minute", rate, 1, MAX_RATE));
        let hard = self.hard_limit_cents.map(|limit| within("hard_limit_cents", limit, 0, MAX_CENTS));
        Ok(Terms {
            price_cents: within("price_cents", self.price_cents, 0, MAX_PRICE_CENTS)?,
            currency: currency(code)
                .ok_or("`currency` must be the three letters of a currency, such as usd.")?,
            interval: Interval::parse(interval).ok_or("`interval` must be day, week, month or year.")?,
            stripe_price_id: self.stripe_price_id.map(price_id).transpose()?,
            included_credits: within("included_credits", self.included_credits.unwrap_or(0), 0, MAX_CREDITS)?,
            rate_limit_per_minute: rate.transpose()?.and_then(|rate| u32::try_from(rate).ok()),
            hard_limit_cents: hard.transpose()?,
            period: Period::parse(period)
                .filter(|period| matches!(period, Period::Daily | Period::Monthly))
                .ok_or("`period` must be daily or monthly.")?,
            limits: limits(self.limits.unwrap_or_default())?,
            name: self.name,
        })
    }
}

fn within(field: &str, number: i64, least: i64, most: i64) -> Result<i64, String> {
    match (least..=most).contains(&number) {
        true => Ok(number),
        false => Err(format!("`{field}` must be from {least} to {most}.")),
    }
}

fn price_id(text: String) -> Result<String, String> {
    let rest = text.strip_prefix("price_").unwrap_or_default();
    let fits = (1..=200).contains(&rest.len())
        && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match fits {
        true => Ok(text),
        false => {
            Err("`stripe_price_id` must be the id of a price at Stripe, which begins with price_.".to_owned())
        }
    }
}

/// The units that are stated: null is as absent.
fn limits(limits: BTreeMap<String, Option<i64>>) -> Result<BTreeMap<String, i64>, String> {
    let stated = limits.into_iter().filter_map(|(action, units)| Some((action, units?)));
    let limits: BTreeMap<String, i64> = stated.collect();
    if limits.len() > MAX_ACTIONS {
        return Err(format!("`limits` may name {MAX_ACTIONS} actions at most."));
    }
    for (action, units) in &limits {
        let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte);
        if !(1..=64).contains(&action.len()) || !action.bytes().all(letter) {
            return Err(
                "An action in `limits` is named by 1 to 64 letters from a to z, digits, `_`, `-` or `.`."
                    .to_owned(),
            );
        }
        within(&format!("limits.{action}"), *units, 0, MAX_UNITS)?;
    }
    Ok(limits)
}

/// Whether `text` could be a plan's code: 1 to 64 letters from a to z, of either case, digits, `_`,
/// `-` or `.`.
pub fn could_be_code(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// A currency's three letters as Stripe writes them, in lower case; `None` if it is none.
pub fn currency(text: &str) -> Option<String> {
    (text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic()))
        .then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn terms(changes: Value) -> Result<Terms, String> {
        let mut stated = json!({"name": "Pro", "price_cents": 1_000});
        for (field, value) in changes.as_object().unwrap() {
            stated[field] = value.clone();
        }
        serde_json::from_value::<Definition>(stated).unwrap().terms("usd")
    }

    #[test]
    fn what_is_not_stated_has_a_default() {
        let terms = terms(json!({})).unwrap();
        let shown = json!({
            "name": "Pro", "price_cents": 1_000, "currency": "usd", "interval": "month",
            "stripe_price_id": null, "included_credits": 0, "rate_limit_per_minute": null,
            "hard_limit_cents": null, "period": "monthly", "limits": {},
        });
        assert_eq!(serde_json::to_value(terms).unwrap(), shown);
    }

    #[test]
    fn the_ends_of_each_range_are_inside() {
        for fits in [
            json!({"price_cents": 0, "included_credits": 0, "rate_limit_per_minute": 1, "hard_limit_cents": 0}),
            json!({"price_cents": 99_999_999, "included_credits": 1_000_000_000,
                   "rate_limit_per_minute": 1_000_000_000, "hard_limit_cents": MAX_CENTS}),
            json!({"currency": "EUR", "interval": "year", "period": "daily", "stripe_price_id": "price_1Ab_2"}),
            json!({"limits": {"a": 0, "chat_tokens.v-2": MAX_UNITS, "x".repeat(64): 1}}),
        ] {
            assert!(terms(fits.clone()).is_ok(), "{fits}");
        }
        assert_eq!(terms(json!({"currency": "EUR"})).unwrap().currency, "eur");
        let plan = terms(json!({"rate_limit_per_minute": 1_000_000_000})).unwrap();
        assert_eq!(plan.rate_limit_per_minute, Some(1_000_000_000));
    }

    #[test]
    fn an_edit_changes_what_it_names() {
        let full = terms(json!({
            "currency": "eur", "interval": "year", "stripe_price_id": "price_1", "included_credits": 5,
            "rate_limit_per_minute": 1_000_000_000, "hard_limit_cents": 0, "period": "daily",
            "limits": {"chat_tokens": 1, "images": 2},
        }))
        .unwrap();
        assert_eq!(Edit::default().onto(full.clone()), Ok(full.clone()));
        let edit = Edit {
            name: Some("New".to_owned()),
            price_cents: Some(7),
            currency: Some("USD".to_owned()),
            period: Some("monthly".to_owned()),
            limits: Some(BTreeMap::from([("chat_tokens".to_owned(), Some(3))])),
        };
        let edited = Terms {
            name: "New".to_owned(),
            price_cents: 7,
            currency: "usd".to_owned(),
            period: Period::Monthly,
            limits: BTreeMap::from([("chat_tokens".to_owned(), 3), ("images".to_owned(), 2)]),
            ..full.clone()
        };
        assert_eq!(edit.onto(full.clone()), Ok(edited));
        let many = (0..49).map(|number| (format!("a{number}"), Some(1))).collect();
        for (edit, named) in [
            (Edit { price_cents: Some(-1), ..Edit::default() }, "`price_cents`"),
            (Edit { currency: Some("€".to_owned()), ..Edit::default() }, "`currency`"),
            (Edit { period: Some("weekly".to_owned()), ..Edit::default() }, "`period`"),
            (Edit { limits: Some(many), ..Edit::default() }, "`limits`"),
        ] {
            assert!(edit.onto(full.clone()).unwrap_err().contains(named), "{named}");
        }
    }

    #[test]
    fn beyond_them_the_sentence_names_the_field() {
        for (field, wrong) in [
            ("price_cents", json!(-1)),
            ("price_cents", json!(100_000_000)),
            ("included_credits", json!(-1)),
            ("included_credits", json!(1_000_000_001)),
            ("rate_limit_per_minute", json!(0)),
            ("rate_limit_per_minute", json!(1_000_000_001)),
            ("hard_limit_cents", json!(-1)),
            ("hard_limit_cents", json!(MAX_CENTS + 1)),
            ("currency", json!("us")),
            ("currency", json!("us1")),
            ("currency", json!("€")),
            ("interval", json!("fortnight")),
            ("period", json!("weekly")),
            ("stripe_price_id", json!("prod_1")),
            ("stripe_price_id", json!("price_")),
            ("stripe_price_id", json!("price_a b")),
            ("limits", json!({"": 1})),
            ("limits", json!({"Chat": 1})),
            ("limits", json!({"x".repeat(65): 1})),
            ("limits", json!({"chat_tokens": -1})),
            ("limits", json!({"chat_tokens": i64::MAX})),
            ("limits", (0..51).map(|number| (format!("a{number}"), json!(1))).collect()),
        ] {
            let problem = terms(json!({field: wrong})).unwrap_err();
            assert!(problem.contains(&format!("`{field}")), "{problem} for {wrong}");
        }
    }
}
