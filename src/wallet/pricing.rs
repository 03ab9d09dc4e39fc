//! What tokens of a model cost, in credits. Each change of a price is kept with its date; the last one
//! counts.
//!
//! Nothing is cached: whoever turns credits into tokens reads the price from the database, so that a
//! change acts at once on every replica.
//!
//! # Failure behavior
//!
//! A change is one row of the model's next version, or none. Of two changes at once the second finds the
//! first one's row in its place, and goes on from it. Stating what holds already writes nothing, so that
//! a change may be repeated.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    clock::Time,
    store::{Db, StoreError, binds, statements},
};

/// The most that a million tokens of a model may cost, in credits.
pub const MAX_PRICE: i64 = 1_000_000_000;

/// What models are sorted by: an account may hold so many tokens of all models of a category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Category {
    Quick,
    Think,
}

impl Category {
    pub const ALL: [Category; 2] = [Category::Quick, Category::Think];

    /// As it stands in requests and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Quick => "quick",
            Category::Think => "think",
        }
    }

    pub fn parse(name: &str) -> Option<Category> {
        Category::ALL.into_iter().find(|category| category.as_str() == name)
    }

    /// The tokens that an account may hold, over all models of the category.
    pub fn capacity(self) -> i64 {
        match self {
            Category::Quick => 5_000_000,
            Category::Think => 1_000_000,
        }
    }
}

/// What a model's tokens cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Price {
    /// Credits per million tokens, from 1 to [`MAX_PRICE`].
    pub price_per_m_token: i64,
    pub category: Category,
}

impl Price {
    /// Errors: a sentence about what can't be so.
    pub fn new(price_per_m_token: i64, category: &str) -> Result<Price, String> {
        if !(1..=MAX_PRICE).contains(&price_per_m_token) {
            return Err(format!("`price_per_m_token` must be from 1 to {MAX_PRICE} credits."));
        }
        let category = Category::parse(category).ok_or("`category` must be quick or think.")?;
        Ok(Price { price_per_m_token, category })
    }
}

/// A price, and when it became one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stated {
    #[serde(flatten)]
    pub price: Price,
    pub created_at: Time,
}

/// What came of stating a price.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The model had none before.
    Made(Stated),
    Replaced(Stated),
    /// It was the model's price already, since then.
    Unchanged(Stated),
}

/// The whole tokens that so many credits pay for at that price per million; `None` if no integer holds
/// them.
pub fn tokens(credits: i64, price_per_m_token: i64) -> Option<i64> {
    let millionths = i128::from(credits) * 1_000_000;
    i64::try_from(millionths.checked_div_euclid(i128::from(price_per_m_token))?).ok()
}

/// Whether `text` could name a model: 1 to 200 bytes, no control characters.
pub fn could_be_model(text: &str) -> bool {
    (1..=200).contains(&text.len()) && !text.chars().any(char::is_control)
}

statements! {
    PRICES = "
        SELECT model, price_per_m_token, category FROM model_prices
        JOIN (SELECT model AS name, MAX(version) AS latest FROM model_prices GROUP BY model) AS newest
            ON model = name AND version = latest";
    HISTORY = "
        SELECT version, price_per_m_token, category, created_at FROM model_prices
        WHERE model = $1 ORDER BY version DESC LIMIT $2";
    ADD_PRICE = "
        INSERT INTO model_prices (model, version, price_per_m_token, category, created_at)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (model, version) DO NOTHING";
}

/// A version, its price and category, and when it was stated.
type PriceRow = (i64, i64, String, i64);

fn price(model: &str, price_per_m_token: i64, category: &str) -> Result<Price, StoreError> {
    Price::new(price_per_m_token, category)
        .map_err(|_| StoreError::Refused(format!("the price of {model} can't be read")))
}

/// What each model costs now, by model.
pub async fn prices(db: &Db) -> Result<BTreeMap<String, Price>, StoreError> {
    let rows: Vec<(String, i64, String)> = db.all(&PRICES, binds![]).await?;
    rows.into_iter()
        .map(|(model, credits, category)| {
            let price = price(&model, credits, &category)?;
            Ok((model, price))
        })
        .collect()
}

/// The last `limit` prices of a model, the one that counts first; none for a model without.
pub async fn history(db: &Db, model: &str, limit: i64) -> Result<Vec<Stated>, StoreError> {
    let versions = versions(db, model, limit).await?;
    Ok(versions.into_iter().map(|(_, stated)| stated).collect())
}

async fn versions(db: &Db, model: &str, limit: i64) -> Result<Vec<(i64, Stated)>, StoreError> {
    if !could_be_model(model) {
        return Ok(Vec::new());
    }
    let rows: Vec<PriceRow> = db.all(&HISTORY, binds![model, limit]).await?;
    rows.into_iter()
        .map(|(version, credits, category, at)| {
            let price = price(model, credits, &category)?;
            Ok((version, Stated { price, created_at: Time(at) }))
        })
        .collect()
}

/// How often a change begins anew because another came first. Each time it did, one of the others is done.
const ATTEMPTS: usize = 100;

/// States what a model costs, from now on. `model` could be one ([`could_be_model`]).
pub async fn put(db: &Db, model: &str, price: Price, now: Time) -> Result<Change, StoreError> {
    let stated = Stated { price, created_at: now };
    for _ in 0..ATTEMPTS {
        let last = versions(db, model, 1).await?.pop();
        let next = match &last {
            Some((_, last)) if last.price == price => return Ok(Change::Unchanged(last.clone())),
            Some((version, _)) => version + 1,
            None => 1,
        };
        let row = binds![model, next, price.price_per_m_token, price.category.as_str(), now];
        if db.execute(&ADD_PRICE, row).await? > 0 {
            return Ok(if last.is_none() { Change::Made(stated) } else { Change::Replaced(stated) });
        }
    }
    Err(StoreError::Conflict(format!("the price of {model} is changed all the time")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;
    use proptest::prelude::*;

    #[test]
    fn credits_make_whole_tokens() {
        for (credits, price, made) in [
            (100, 45, Some(2_222_222)),
            (0, 45, Some(0)),
            (1, 1, Some(1_000_000)),
            (1, 1_000_000_000, Some(0)),
            (999, 1_000_000_000, Some(0)),
            (1_000, 1_000_000_000, Some(1)),
            (1_010, 1_010, Some(1_000_000)),
            (9_223_372_036_854, 1, Some(9_223_372_036_854_000_000)),
            (9_223_372_036_855, 1, None),
            (i64::MAX, 1_000_000, Some(i64::MAX)),
            (i64::MAX, 999_999, None),
            (1, 0, None),
        ] {
            assert_eq!(tokens(credits, price), made, "{credits} at {price}");
        }
    }

    proptest! {
        #[test]
        fn no_fraction_of_a_token_is_given_or_kept(credits in 0..1_000_000_000i64, price in 1..=MAX_PRICE) {
            let made = i128::from(tokens(credits, price).unwrap());
            let (paid, price) = (i128::from(credits) * 1_000_000, i128::from(price));
            prop_assert!(made * price <= paid && paid < (made + 1) * price);
        }
    }

    #[test]
    fn prices_and_models_have_their_bounds() {
        for category in Category::ALL {
            assert_eq!(Category::parse(category.as_str()), Some(category));
            assert_eq!(serde_json::to_value(category).unwrap(), category.as_str());
        }
        assert!(Price::new(1, "quick").is_ok() && Price::new(MAX_PRICE, "think").is_ok());
        for (price, category, named) in [
            (0, "quick", "`price_per_m_token`"),
            (-1, "quick", "`price_per_m_token`"),
            (MAX_PRICE + 1, "quick", "`price_per_m_token`"),
            (1, "slow", "`category`"),
            (1, "Quick", "`category`"),
            (1, "", "`category`"),
        ] {
            assert!(Price::new(price, category).unwrap_err().contains(named), "{price} {category}");
        }
        for model in ["a", "anthropic/claude 4:beta", "模型", &"x".repeat(200)] {
            assert!(could_be_model(model), "{model}");
        }
        for model in ["", "a\0", "a\nb", "a\u{85}", &"x".repeat(201), &"é".repeat(101)] {
            assert!(!could_be_model(model), "{model}");
        }
    }

    fn price_of(price_per_m_token: i64, category: Category) -> Price {
        Price { price_per_m_token, category }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_price_counts_and_each_one_is_kept() {
        use Category::{Quick, Think};
        each_backend(|db| async move {
            let first = BTreeMap::from([
                ("gemini-2.0-flash".to_owned(), price_of(45, Quick)),
                ("gemini-2.0-pro".to_owned(), price_of(70, Quick)),
                ("gemini-2.5-flash".to_owned(), price_of(250, Quick)),
                ("gemini-2.5-pro".to_owned(), price_of(1_010, Think)),
                ("gpt-5-mini".to_owned(), price_of(200, Quick)),
            ]);
            assert_eq!(prices(&db).await.unwrap(), first);

            let model = "vendor/new one";
            let stated = |price, at| Stated { price, created_at: Time(at) };
            let (one, other) = (price_of(5, Quick), price_of(5, Think));
            assert_eq!(history(&db, model, 9).await.unwrap(), []);
            assert_eq!(put(&db, model, one, Time(10)).await.unwrap(), Change::Made(stated(one, 10)));
            assert_eq!(put(&db, model, one, Time(20)).await.unwrap(), Change::Unchanged(stated(one, 10)));
            assert_eq!(put(&db, model, other, Time(30)).await.unwrap(), Change::Replaced(stated(other, 30)));
            assert_eq!(put(&db, model, one, Time(40)).await.unwrap(), Change::Replaced(stated(one, 40)));
            let all = [stated(one, 40), stated(other, 30), stated(one, 10)];
            assert_eq!(history(&db, model, 9).await.unwrap(), all);
            assert_eq!(history(&db, model, 2).await.unwrap(), all[..2]);
            assert_eq!(history(&db, "a\0", 9).await.unwrap(), []);
            let now = prices(&db).await.unwrap();
            assert_eq!((now.len(), now[model]), (6, one));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_changes_at_once_one_makes_it_and_none_is_lost() {
        each_backend(|db| async move {
            let puts =
                (1..=20).map(|credits| put(&db, "m", price_of(credits, Category::Quick), Time(credits)));
            let changes = futures_util::future::join_all(puts).await;
            let made = changes.iter().filter(|change| matches!(change, Ok(Change::Made(_))));
            let replaced = changes.iter().filter(|change| matches!(change, Ok(Change::Replaced(_))));
            assert_eq!((made.count(), replaced.count()), (1, 19), "{changes:?}");
            let history = history(&db, "m", 99).await.unwrap();
            let mut kept: Vec<i64> = history.iter().map(|stated| stated.price.price_per_m_token).collect();
            assert_eq!(prices(&db).await.unwrap()["m"].price_per_m_token, kept[0]);
            kept.sort_unstable();
            assert_eq!(kept, (1..=20).collect::<Vec<_>>());

            let same = (0..20).map(|_| put(&db, "n", price_of(7, Category::Think), Time(1)));
            let changes = futures_util::future::join_all(same).await;
            let made = changes.iter().filter(|change| matches!(change, Ok(Change::Made(_))));
            assert_eq!(made.count(), 1, "{changes:?}");
            assert_eq!(super::history(&db, "n", 99).await.unwrap().len(), 1);
        })
        .await;
    }
}
