//! What plan an account is on, from what Stripe's events said of its subscriptions.
//!
//! Events come twice, late and out of order. So the newest word of the subscription itself and the
//! newest of its invoices are kept, each by the event's own time, and what holds is worked out from
//! both whenever it is asked for.

use serde::Serialize;

use super::purchase;
use crate::{
    clock::Time,
    id::{AccountId, PurchaseId},
    plan,
    store::{Db, Rows, StoreError, Tx, binds, statements},
};

/// For how long money is waited for before the account may subscribe again: the slowest ways to pay
/// take two weeks, and whether they failed may never be told.
const MONEY_COMES_WITHIN_MS: i64 = 21 * 24 * 60 * 60 * 1_000;

/// How an account's subscription is, in the words that go out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    #[default]
    Inactive,
    Canceled,
    PastDue,
    Active,
}

impl Status {
    /// What one of Stripe's own words comes to.
    fn of(word: &str) -> Status {
        match word {
            "active" | "trialing" => Status::Active,
            "past_due" | "unpaid" => Status::PastDue,
            "canceled" | "incomplete_expired" => Status::Canceled,
            // incomplete, paused, and what Stripe may think of next.
            _ => Status::Inactive,
        }
    }
}

/// Who said that a subscription has a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// A paid Checkout, or the subscription when it was made: what can't have been preceded.
    Beginning,
    Change,
}

/// A subscription's status as one event has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Stripe's word.
    pub status: String,
    pub at: Time,
    pub teller: Teller,
}

impl Told {
    /// Of two that were told in one second: what ends a subscription comes last, what it begins with
    /// first.
    fn rank(&self) -> i64 {
        match (Status::of(&self.status), self.teller) {
            (Status::Canceled, _) => 3,
            _ if self.status == "incomplete" => 0,
            (_, Teller::Beginning) => 1,
            (_, Teller::Change) => 2,
        }
    }
}

/// What is known of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub id: String,
    pub account: AccountId,
    pub purchase: Option<PurchaseId>,
    /// By its price at Stripe, where that is one of the catalogue.
    pub plan: Option<String>,
    status: Option<String>,
    status_at: Time,
    status_rank: i64,
    object_at: Time,
    current_period_end: Option<Time>,
    cancel_at_period_end: bool,
    invoice_paid: Option<bool>,
    invoice_at: Time,
    invoice_period_end: Option<Time>,
    created_at: Time,
}

impl Subscription {
    /// One that nothing is known of yet.
    pub fn new(id: String, account: AccountId, now: Time) -> Subscription {
        Subscription {
            id,
            account,
            purchase: None,
            plan: None,
            status: None,
            status_at: Time(0),
            status_rank: 0,
            object_at: Time(0),
            current_period_end: None,
            cancel_at_period_end: false,
            invoice_paid: None,
            invoice_at: Time(0),
            invoice_period_end: None,
            created_at: now,
        }
    }

    /// Takes what an event told of the status, unless a newer one is known. Gives whether it was taken.
    ///
    /// A beginning is no news to who has heard of more than one.
    pub fn hear(&mut self, told: &Told) -> bool {
        let newer = match self.status.as_deref() {
            None => true,
            Some(known) => {
                (told.at, told.rank()) >= (self.status_at, self.status_rank)
                    && (told.teller == Teller::Change || known == "incomplete")
            }
        };
        if newer {
            self.status = Some(told.status.clone());
            self.status_at = told.at;
            self.status_rank = told.rank();
        }
        newer
    }

    /// Takes what one of its own events says beside the status, unless a newer one is known: a paid
    /// Checkout may have told of the status later, and knows none of this.
    pub fn see(&mut self, told: &Told, plan: Option<String>, period_end: Option<Time>, cancels: bool) {
        let newer = told.at > self.object_at || (told.at == self.object_at && told.teller == Teller::Change);
        if newer || self.object_at == Time(0) {
            self.object_at = told.at;
            self.plan = plan.or(self.plan.take());
            self.current_period_end = period_end.or(self.current_period_end);
            self.cancel_at_period_end = cancels;
        }
    }

    /// Takes what an event told of an invoice, unless a newer one is known.
    pub fn hear_invoice(&mut self, paid: bool, at: Time, period_end: Option<Time>) {
        self.invoice_period_end = self.invoice_period_end.max(period_end.filter(|_| paid));
        if at >= self.invoice_at || self.invoice_paid.is_none() {
            self.invoice_paid = Some(paid);
            self.invoice_at = at;
        }
    }

    /// What all of it comes to, given how far its purchase has come.
    fn standing(&self, purchase: purchase::Status) -> Status {
        use purchase::Status::{Open, Paid};
        let own = self.status.as_deref().map(Status::of);
        if own == Some(Status::Canceled) {
            return Status::Canceled;
        }
        if !matches!(purchase, Open | Paid) {
            return Status::Inactive;
        }
        // What is paid meanwhile may be something else; Stripe says itself when it goes on.
        let stopped = matches!(self.status.as_deref(), Some("paused" | "unpaid"));
        // The subscription's own word counts, until an invoice says something in the same second or later.
        match (own, self.invoice_paid) {
            (Some(own), Some(_)) if self.status_at > self.invoice_at => own,
            (_, Some(true)) if !stopped => Status::Active,
            (Some(Status::Active | Status::PastDue), Some(false)) => Status::PastDue,
            (own, _) => own.unwrap_or_default(),
        }
    }
}

/// What an account has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub status: Status,
    /// Whether the subscription's plan is in force: while it is active, and while Stripe still tries
    /// to get what is due.
    pub in_force: bool,
    /// The subscription's plan, until it ends; `None`: the default one.
    pub plan: Option<String>,
    pub current_period_end: Option<Time>,
    pub cancel_at_period_end: bool,
}

macro_rules! subscription_columns {
    () => {
        "subscriptions.id, subscriptions.account_id, subscriptions.purchase_id, subscriptions.plan,
         subscriptions.status, status_at, status_rank, object_at, current_period_end,
         cancel_at_period_end, invoice_status, invoice_at, invoice_period_end, subscriptions.created_at"
    };
}

statements! {
    BY_ID = concat!("SELECT ", subscription_columns!(), ", NULL AS purchase_plan, NULL AS purchase_status
        FROM subscriptions WHERE id = $1");
    OF_ACCOUNT = concat!("SELECT ", subscription_columns!(), ", purchases.plan AS purchase_plan,
               purchases.status AS purchase_status
        FROM subscriptions LEFT JOIN purchases ON purchases.id = subscriptions.purchase_id
        WHERE subscriptions.account_id = $1 ORDER BY subscriptions.created_at DESC, subscriptions.id DESC");
    BY_IDS = concat!("SELECT ", subscription_columns!(), ", purchases.plan AS purchase_plan,
               purchases.status AS purchase_status
        FROM subscriptions LEFT JOIN purchases ON purchases.id = subscriptions.purchase_id
        WHERE subscriptions.id IN (SELECT given.value ->> 0 FROM {rows})");
    NEXT_IDS = "SELECT id FROM subscriptions WHERE id > $1 ORDER BY id LIMIT $2";
    PUT = "
        INSERT INTO subscriptions (id, account_id, purchase_id, plan, status, status_at, status_rank, object_at,
                                   current_period_end, cancel_at_period_end, invoice_status, invoice_at,
                                   invoice_period_end, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        ON CONFLICT (id) DO UPDATE SET
            purchase_id = excluded.purchase_id, plan = excluded.plan, status = excluded.status,
            status_at = excluded.status_at, status_rank = excluded.status_rank,
            object_at = excluded.object_at,
            current_period_end = excluded.current_period_end,
            cancel_at_period_end = excluded.cancel_at_period_end,
            invoice_status = excluded.invoice_status, invoice_at = excluded.invoice_at,
            invoice_period_end = excluded.invoice_period_end";
    LOCK_ACCOUNT = "SELECT plan, subscribed_plan FROM accounts WHERE id = $1 {for_update}";
    PROCESSING = "
        SELECT id FROM purchases
        WHERE account_id = $1 AND plan IS NOT NULL AND status = 'processing' AND updated_at > $2
          AND NOT EXISTS (SELECT 1 FROM subscriptions
                          WHERE purchase_id = purchases.id
                            AND subscriptions.status IN ('canceled', 'incomplete_expired'))
        LIMIT 1";
    SET_SUBSCRIBED_PLAN = "UPDATE accounts SET subscribed_plan = $2 WHERE id = $1";
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    account_id: String,
    purchase_id: Option<String>,
    plan: Option<String>,
    status: Option<String>,
    status_at: i64,
    status_rank: i64,
    object_at: i64,
    current_period_end: Option<i64>,
    cancel_at_period_end: bool,
    invoice_status: Option<String>,
    invoice_at: i64,
    invoice_period_end: Option<i64>,
    created_at: i64,
    purchase_plan: Option<String>,
    purchase_status: Option<String>,
}

impl From<Row> for Subscription {
    fn from(row: Row) -> Subscription {
        Subscription {
            id: row.id,
            account: row.account_id.into(),
            purchase: row.purchase_id.map(PurchaseId::from),
            plan: row.plan,
            status: row.status,
            status_at: Time(row.status_at),
            status_rank: row.status_rank,
            object_at: Time(row.object_at),
            current_period_end: row.current_period_end.map(Time),
            cancel_at_period_end: row.cancel_at_period_end,
            invoice_paid: row.invoice_status.map(|status| status == "paid"),
            invoice_at: Time(row.invoice_at),
            invoice_period_end: row.invoice_period_end.map(Time),
            created_at: Time(row.created_at),
        }
    }
}

/// The subscription of that id at Stripe.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Option<Subscription>, StoreError> {
    let row: Option<Row> = tx.optional(&BY_ID, binds![id]).await?;
    Ok(row.map(Subscription::from))
}

/// Writes what is known of a subscription, and puts its account on the plan that follows from it.
pub async fn put(tx: &mut Tx, subscription: &Subscription, now: Time) -> Result<(), StoreError> {
    let Subscription { id, account, purchase, plan, status, .. } = subscription;
    let values = binds![
        id,
        account,
        purchase.as_ref().map(PurchaseId::as_str),
        plan.clone(),
        status.clone(),
        subscription.status_at,
        subscription.status_rank,
        subscription.object_at,
        subscription.current_period_end,
        subscription.cancel_at_period_end,
        subscription.invoice_paid.map(|paid| if paid { "paid" } else { "failed" }),
        subscription.invoice_at,
        subscription.invoice_period_end,
        subscription.created_at
    ];
    tx.execute(&PUT, values).await?;
    update_plan(tx, account, now).await
}

/// Puts the account on the plan that its subscriptions and purchases come to, under its row's lock,
/// which every cast takes. Where they come to the same as before, the account's plan stays: an order that
/// was paid elsewhere may have changed it since.
pub async fn update_plan(tx: &mut Tx, account: &AccountId, now: Time) -> Result<(), StoreError> {
    let (plan, subscribed): (Option<String>, Option<String>) = tx.one(&LOCK_ACCOUNT, binds![account]).await?;
    let standing = standing_of(tx.all(&OF_ACCOUNT, binds![account]).await?);
    let in_force = standing.plan.filter(|_| standing.in_force);
    if in_force == subscribed {
        return Ok(());
    }
    tx.execute(&SET_SUBSCRIBED_PLAN, binds![account, in_force.clone()]).await?;
    // What ended takes its own plan with it, and no other.
    if in_force.is_some() || plan == subscribed {
        plan::switch(tx, account, in_force.as_deref(), now).await?;
    }
    Ok(())
}

/// What plan the account is on, and how its subscription is.
pub async fn standing(db: &Db, account: &AccountId) -> Result<Standing, StoreError> {
    Ok(standing_of(db.all(&OF_ACCOUNT, binds![account]).await?))
}

/// A subscription as it is compared with Stripe's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub id: String,
    pub purchase: Option<String>,
    /// Whether its purchase's money is still to come.
    pub waits_for_money: bool,
    pub status: &'static str,
    pub plan: Option<String>,
    pub current_period_end: Option<Time>,
    pub cancel_at_period_end: bool,
}

/// In the words of `GET /v1/billing`, what one of Stripe's comes to; and `unpaid`, which is past due there
/// and not in force.
pub(super) fn word_of(stripes: &str) -> &'static str {
    word(Status::of(stripes), stripes == "unpaid")
}

fn word(status: Status, given_up: bool) -> &'static str {
    match status {
        Status::PastDue if given_up => "unpaid",
        Status::PastDue => "past_due",
        Status::Active => "active",
        Status::Canceled => "canceled",
        Status::Inactive => "inactive",
    }
}

/// Those of `ids` that are known.
pub(super) async fn known(db: &Db, ids: Rows) -> Result<Vec<Known>, StoreError> {
    let rows: Vec<Row> = db.scan(&BY_IDS, binds![ids]).await?;
    let known = rows.into_iter().map(|mut row| {
        let purchase = row.purchase_status.as_deref().map_or(purchase::Status::Open, purchase::Status::parse);
        let sold = row.purchase_plan.take();
        let subscription = Subscription::from(row);
        let given_up = subscription.status.as_deref() == Some("unpaid");
        Known {
            status: word(subscription.standing(purchase), given_up),
            waits_for_money: purchase == purchase::Status::Processing,
            purchase: subscription.purchase.map(|id| id.to_string()),
            plan: subscription.plan.or(sold),
            current_period_end: subscription.current_period_end.or(subscription.invoice_period_end),
            cancel_at_period_end: subscription.cancel_at_period_end,
            id: subscription.id,
        }
    });
    Ok(known.collect())
}

/// The ids of subscriptions that come after `after`, at most `limit` of them.
pub(super) async fn next_ids(db: &Db, after: &str, limit: i64) -> Result<Vec<String>, StoreError> {
    let rows: Vec<(String,)> = db.scan(&NEXT_IDS, binds![after, limit]).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// Whether the account has a subscription, or will when its money has come, that another one would be
/// paid beside.
pub async fn blocks_another(db: &Db, account: &AccountId, now: Time) -> Result<bool, StoreError> {
    let latest = Time(now.0.saturating_sub(MONEY_COMES_WITHIN_MS));
    let coming: Option<(String,)> = db.optional(&PROCESSING, binds![account, latest]).await?;
    Ok(coming.is_some() || standing(db, account).await?.in_force)
}

/// Whether a subscription of the account other than `id` is in force.
pub async fn another_in_force(tx: &mut Tx, account: &AccountId, id: &str) -> Result<bool, StoreError> {
    let mut rows: Vec<Row> = tx.all(&OF_ACCOUNT, binds![account]).await?;
    rows.retain(|row| row.id != id);
    Ok(standing_of(rows).in_force)
}

/// Of several subscriptions the best holds, and of equal ones the newest.
fn standing_of(rows: Vec<Row>) -> Standing {
    let standings = rows.into_iter().map(|mut row| {
        let purchase = row.purchase_status.as_deref().map_or(purchase::Status::Open, purchase::Status::parse);
        let sold = row.purchase_plan.take();
        let subscription = Subscription::from(row);
        let status = subscription.standing(purchase);
        let given_up = subscription.status.as_deref() == Some("unpaid");
        let in_force = status == Status::Active || (status == Status::PastDue && !given_up);
        Standing {
            status,
            in_force,
            plan: subscription.plan.or(sold).filter(|_| status >= Status::PastDue),
            current_period_end: subscription.current_period_end.max(subscription.invoice_period_end),
            cancel_at_period_end: subscription.cancel_at_period_end,
        }
    });
    // The newest comes first, and `reduce` keeps the first of equal ones.
    let rank = |standing: &Standing| (standing.in_force, standing.status);
    let better = |best: Standing, next: Standing| if rank(&next) > rank(&best) { next } else { best };
    standings.reduce(better).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use purchase::Status::{Expired, Failed, Mismatched, Open, Paid, Processing};

    fn told(status: &str, at: i64) -> Told {
        Told { status: status.to_owned(), at: Time(at), teller: Teller::Change }
    }

    fn after(events: &[Told]) -> Subscription {
        let mut subscription = Subscription::new("sub_1".to_owned(), "acct_1".into(), Time(1));
        for told in events {
            subscription.hear(told);
        }
        subscription
    }

    #[test]
    fn each_of_stripes_words_comes_to_one_of_ours() {
        for (word, status) in [
            ("active", Status::Active),
            ("trialing", Status::Active),
            ("past_due", Status::PastDue),
            ("unpaid", Status::PastDue),
            ("canceled", Status::Canceled),
            ("incomplete_expired", Status::Canceled),
            ("incomplete", Status::Inactive),
            ("paused", Status::Inactive),
            ("hibernating", Status::Inactive),
        ] {
            assert_eq!(after(&[told(word, 5)]).standing(Paid), status, "{word}");
        }
    }

    #[test]
    fn an_older_word_never_overwrites_a_newer_one() {
        assert_eq!(after(&[told("canceled", 9), told("active", 5)]).standing(Paid), Status::Canceled);
        assert_eq!(after(&[told("past_due", 9), told("active", 5)]).standing(Paid), Status::PastDue);
        assert_eq!(after(&[told("past_due", 5), told("active", 9)]).standing(Paid), Status::Active);
    }

    #[test]
    fn in_one_second_an_end_wins_a_beginning_loses_and_else_the_later_one_counts() {
        let created = Told { teller: Teller::Beginning, ..told("active", 5) };
        for (first, second, status) in [
            (told("canceled", 5), told("active", 5), Status::Canceled),
            (told("active", 5), told("canceled", 5), Status::Canceled),
            (told("incomplete", 5), told("active", 5), Status::Active),
            (told("active", 5), told("incomplete", 5), Status::Active),
            (told("past_due", 5), created.clone(), Status::PastDue),
            (created.clone(), told("past_due", 5), Status::PastDue),
            (told("incomplete", 5), created.clone(), Status::Active),
            (told("canceled", 4), created.clone(), Status::Canceled),
            (told("past_due", 4), created, Status::PastDue),
            (told("active", 5), told("past_due", 5), Status::PastDue),
            (told("past_due", 5), told("active", 5), Status::Active),
        ] {
            assert_eq!(
                after(&[first.clone(), second.clone()]).standing(Paid),
                status,
                "{first:?} {second:?}"
            );
        }
    }

    #[test]
    fn an_invoice_counts_until_the_subscription_says_something_newer() {
        let standing = |word: Option<(&str, i64)>, invoices: &[(bool, i64)]| {
            let mut subscription =
                after(&word.map(|(word, at)| told(word, at)).into_iter().collect::<Vec<_>>());
            for (paid, at) in invoices {
                subscription.hear_invoice(*paid, Time(*at), None);
            }
            subscription.standing(Paid)
        };
        assert_eq!(standing(None, &[(true, 5)]), Status::Active);
        assert_eq!(standing(None, &[(false, 5)]), Status::Inactive);
        assert_eq!(standing(Some(("active", 4)), &[(false, 5)]), Status::PastDue);
        assert_eq!(standing(Some(("active", 6)), &[(false, 5)]), Status::Active);
        assert_eq!(standing(Some(("active", 5)), &[(false, 5)]), Status::PastDue);
        assert_eq!(standing(Some(("past_due", 5)), &[(true, 5)]), Status::Active);
        assert_eq!(standing(Some(("active", 4)), &[(true, 5), (false, 5)]), Status::PastDue);
        assert_eq!(standing(Some(("active", 4)), &[(false, 5), (true, 6)]), Status::Active);
        assert_eq!(standing(Some(("active", 4)), &[(true, 6), (false, 5)]), Status::Active);
        assert_eq!(standing(Some(("past_due", 4)), &[(true, 5)]), Status::Active);
        assert_eq!(standing(Some(("incomplete", 4)), &[(false, 5)]), Status::Inactive);
        assert_eq!(standing(Some(("paused", 4)), &[(true, 5)]), Status::Inactive);
        assert_eq!(standing(Some(("canceled", 4)), &[(true, 5)]), Status::Canceled);
    }

    #[test]
    fn nothing_is_in_force_while_its_purchase_is_not_paid_as_it_was_sold() {
        let active = after(&[told("active", 5)]);
        for (purchase, status) in [
            (Open, Status::Active),
            (Paid, Status::Active),
            (Processing, Status::Inactive),
            (Failed, Status::Inactive),
            (Expired, Status::Inactive),
            (Mismatched, Status::Inactive),
        ] {
            assert_eq!(active.standing(purchase), status, "{purchase:?}");
        }
        assert_eq!(after(&[told("canceled", 5)]).standing(Processing), Status::Canceled);
    }
}
