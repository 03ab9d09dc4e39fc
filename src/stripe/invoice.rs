//! What an invoice of Stripe's says, wherever the version of the API that it is written in puts it.
//! Nothing here asks anybody: an event and the audit read the same invoice in the same way.

use super::event::Object;
use crate::clock::Time;

/// What was paid; what was paid from a balance at Stripe is in the total alone.
pub(super) fn amount(invoice: &Object) -> Option<i64> {
    invoice.cents("amount_paid").filter(|paid| *paid > 0).or(invoice.cents("total"))
}

/// The purchase that its subscription's metadata name.
pub(super) fn names_purchase(invoice: &Object) -> Option<&str> {
    ["parent/subscription_details", "subscription_details", "lines/data/0"]
        .iter()
        .find_map(|path| invoice.text(&format!("{path}/metadata/purchase_id")))
}

/// Its lines that begin a period.
pub(super) fn periods(invoice: &Object) -> Vec<Object> {
    let mut lines = invoice.list("lines/data");
    lines.retain(begins_period);
    lines
}

/// Whether it is for a period that begins, which is what brings credits.
pub(super) fn begins_a_period(invoice: &Object) -> bool {
    match invoice.list("lines/data").is_empty() {
        true => invoice.text("billing_reason") != Some("subscription_update"),
        false => !periods(invoice).is_empty(),
    }
}

/// Whether an invoice's line begins a period: not one that settles what is left of another, nor
/// something that was put on the bill beside it. Where that is said changed with the versions of the API.
fn begins_period(line: &Object) -> bool {
    let proration =
        ["proration", "parent/subscription_item_details/proration", "parent/invoice_item_details/proration"];
    let beside =
        line.text("type") == Some("invoiceitem") || line.text("parent/type") == Some("invoice_item_details");
    !proration.iter().any(|path| line.is_true(path))
        && !beside
        && line.int("amount").is_none_or(|amount| amount > 0)
}

/// Whether an invoice's lines come to its subtotal.
pub(super) fn adds_up(invoice: &Object) -> bool {
    let lines = invoice.list("lines/data");
    let sum = lines.iter().try_fold(0i64, |sum, line| sum.checked_add(line.int("amount")?));
    sum.is_some() && sum == invoice.int("subtotal")
}

/// Where an invoice names its subscription; that changed with the versions of the API.
pub(super) fn subscription_of(invoice: &Object) -> Option<String> {
    [
        "subscription",
        "parent/subscription_details/subscription",
        "lines/data/0/parent/subscription_item_details/subscription",
        "lines/data/0/subscription",
    ]
    .iter()
    .find_map(|path| invoice.id(path))
}

/// The end of the latest period that an invoice is for.
pub(super) fn period_end(invoice: &Object) -> Option<Time> {
    invoice.list("lines/data").iter().filter_map(|line| line.time("period/end")).max()
}
