//! stub
use crate::store::{Db, StoreError};
use std::collections::BTreeMap;
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Category {
    Quick,
    Think,
}
impl Category {
    pub fn capacity(self) -> i64 {
        match self {
            Category::Quick => 5_000_000,
            Category::Think => 1_000_000,
        }
    }
    pub fn as_str(self) -> &'static str {
        match self {
            Category::Quick => "quick",
            Category::Think => "think",
        }
    }
    pub fn parse(text: &str) -> Option<Category> {
        [Category::Quick, Category::Think].into_iter().find(|c| c.as_str() == text)
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    pub price_per_m_token: i64,
    pub category: Category,
}
pub fn tokens(credits: i64, price: i64) -> Option<i64> {
    i64::try_from(i128::from(credits) * 1_000_000 / i128::from(price)).ok()
}
pub async fn prices(_db: &Db) -> Result<BTreeMap<String, Price>, StoreError> {
    Ok(BTreeMap::new())
}
