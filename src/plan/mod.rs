//! Plans: what can be subscribed to, for how much, and what it brings. One catalogue for what
//! Stripe sells and for quotas.

/// Whether `text` could be a plan's code: 1 to 64 letters from a to z, digits, `_`, `-` or `.`.
pub fn could_be_code(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// A currency's three letters as Stripe writes them, in lower case; `None` if it is none.
pub fn currency(text: &str) -> Option<String> {
    (text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_alphabetic()))
        .then(|| text.to_ascii_lowercase())
}

/// The condition by which a row of `plans` is the plan of the row of `accounts` beside it.
macro_rules! is_accounts {
    () => {
        "plans.code = accounts.plan OR (accounts.plan IS NULL AND plans.is_default)"
    };
}
pub(crate) use is_accounts;
