//! Prepaid credits: granted when they were paid for, spent by casts, and taken back with the money
//! that goes back.
//!
//! What an account has is one balance of the ledger, in nano-dollars: a credit is worth what it cost
//! when it was bought. What was paid for is a row of `credit_grants`, and what was paid back a row of
//! `reversals`, however their events are ordered: whichever comes second finds the first. How many of
//! a grant's credits stand follows from both, and the balance is moved by the difference to what
//! stood before, so that telling the same thing again moves nothing.
//!
//! # Failure behavior
//!
//! All of it happens inside its caller's transaction, which also marks the event as applied. The
//! caller holds the lock of the event's source, so that a grant and its refund can't pass each other.

use crate::{
    clock::Time,
    id::{AccountId, PurchaseId},
    ledger::{self, Action, BalanceId, Fund, GrantTo, Outcome, Record, Request, Transfer},
    money::Nanos,
    store::{Db, StoreError, Tx, binds, statements},
};

/// By what a payment is known at its provider; an event names some of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payment {
    pub intent: Option<String>,
    pub charge: Option<String>,
    pub invoice: Option<String>,
}

/// Credits that were paid for.
#[derive(Clone, Debug)]
pub struct Grant {
    pub paid_for: PaidFor,
    pub account: AccountId,
    pub credits: i64,
    /// What one of them pays for.
    pub credit_value: Nanos,
    pub amount_cents: i64,
    pub payment: Payment,
}

/// What a grant was for. It is granted once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaidFor {
    Purchase(PurchaseId),
    /// A subscription's invoice, by its provider's id.
    Invoice(String),
    /// What was bought elsewhere, by its number there.
    Transaction(String),
}

/// What the references of grants begin with that were bought elsewhere.
const ELSEWHERE: &str = "transaction/";

impl PaidFor {
    fn reference(&self) -> String {
        match self {
            PaidFor::Purchase(id) => format!("purchase/{id}"),
            PaidFor::Invoice(id) => format!("invoice/{id}"),
            PaidFor::Transaction(id) => format!("{ELSEWHERE}{id}"),
        }
    }

    fn cause(&self) -> &'static str {
        match self {
            PaidFor::Purchase(_) | PaidFor::Transaction(_) => "purchase",
            PaidFor::Invoice(_) => "invoice",
        }
    }
}

/// Money that went back, or may.
#[derive(Clone, Debug)]
pub struct Reversal {
    /// The charge's id for its refunds, or the dispute's.
    pub id: String,
    pub payment: Payment,
    /// Of a charge, all that was refunded so far.
    pub amount_cents: i64,
    pub status: ReversalStatus,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReversalStatus {
    Refunded,
    /// A dispute that is not decided: what it is about is frozen.
    Open,
    Lost,
    Won,
}

impl ReversalStatus {
    fn as_str(self) -> &'static str {
        match self {
            ReversalStatus::Refunded => "refunded",
            ReversalStatus::Open => "open",
            ReversalStatus::Lost => "lost",
            ReversalStatus::Won => "won",
        }
    }

    fn is_final(self) -> bool {
        matches!(self, ReversalStatus::Lost | ReversalStatus::Won)
    }

    fn cause(self) -> &'static str {
        match self {
            ReversalStatus::Refunded => "refund",
            ReversalStatus::Open | ReversalStatus::Lost | ReversalStatus::Won => "dispute",
        }
    }
}

/// Why nothing was granted.
#[derive(Debug, thiserror::Error)]
pub enum GrantError {
    #[error("the credits would not fit the account's total")]
    Unfit,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// For who grants what was sold here, where no customer can do anything about it.
impl From<GrantError> for StoreError {
    fn from(error: GrantError) -> StoreError {
        match error {
            GrantError::Unfit => StoreError::Refused(error.to_string()),
            GrantError::Store(error) => error,
        }
    }
}

/// Whether what is told of a reversal is newer than what is known of it.
macro_rules! newer {
    () => {
        "(excluded.event_at > reversals.event_at
          OR (excluded.event_at = reversals.event_at AND excluded.amount_cents >= reversals.amount_cents
              AND ($8 OR reversals.status NOT IN ('lost', 'won'))))"
    };
}

statements! {
    CREDITS = "SELECT granted, posted, pending FROM balances WHERE id = $1";
    ADD_GRANT = "
        INSERT INTO credit_grants (reference, account_id, credits, credit_value, standing, amount_cents,
                                   payment_intent, charge_id, invoice_id, created_at)
        VALUES ($1, $2, $3, $4, 0, $5, $6, $7, $8, $9) ON CONFLICT (reference) DO NOTHING";
    GRANTS_OF_PAYMENT = "
        SELECT reference, account_id, credits, credit_value, standing, amount_cents, payment_intent,
               charge_id, invoice_id
        FROM credit_grants
        WHERE payment_intent = $1 OR charge_id = $2 OR invoice_id = $3 ORDER BY reference";
    GRANT = "
        SELECT reference, account_id, credits, credit_value, standing, amount_cents, payment_intent,
               charge_id, invoice_id
        FROM credit_grants WHERE reference = $1";
    SET_STANDING = "UPDATE credit_grants SET standing = $2 WHERE reference = $1";
    // Of two that were told in one second a decided dispute is the later one, and of a charge's
    // refunds the greater sum. What the payment is called is kept from both.
    PUT_REVERSAL = concat!("
        INSERT INTO reversals (id, charge_id, payment_intent, invoice_id, amount_cents, status, event_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (id) DO UPDATE SET
            charge_id = COALESCE(excluded.charge_id, reversals.charge_id),
            payment_intent = COALESCE(excluded.payment_intent, reversals.payment_intent),
            invoice_id = COALESCE(excluded.invoice_id, reversals.invoice_id),
            amount_cents = CASE WHEN ", newer!(), " THEN excluded.amount_cents ELSE reversals.amount_cents END,
            status = CASE WHEN ", newer!(), " THEN excluded.status ELSE reversals.status END,
            event_at = CASE WHEN ", newer!(), " THEN excluded.event_at ELSE reversals.event_at END");
    REVERSED = "
        SELECT CAST(COALESCE(SUM(amount_cents), 0) AS BIGINT) FROM reversals
        WHERE status <> 'won' AND (payment_intent = $1 OR charge_id = $2 OR invoice_id = $3)";
}

#[derive(sqlx::FromRow)]
struct GrantRow {
    reference: String,
    account_id: String,
    credits: i64,
    credit_value: i64,
    standing: i64,
    amount_cents: i64,
    payment_intent: Option<String>,
    charge_id: Option<String>,
    invoice_id: Option<String>,
}

/// What an account has in credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credits {
    /// What is left to be spent, less what is held: never below nothing.
    pub available: Nanos,
    /// What was spent and then taken back: the next purchase pays it first.
    pub owed: Nanos,
}

/// The account's credits.
pub async fn credits(db: &Db, account: &AccountId) -> Result<Credits, StoreError> {
    let id = BalanceId::credits(account);
    let row: Option<(Option<i64>, i64, i64)> = db.optional(&CREDITS, binds![id.as_str()]).await?;
    let (granted, posted, pending) = row.unwrap_or_default();
    let unspent = granted.unwrap_or(0).saturating_sub(posted);
    Ok(Credits {
        available: Nanos(unspent.saturating_sub(pending).max(0)),
        owed: Nanos(unspent.min(0).saturating_neg()),
    })
}

/// Grants what was paid for, less what was paid back already. Doing it again does nothing.
///
/// Errors: after one, `tx` is to be rolled back.
pub async fn grant(tx: &mut Tx, grant: &Grant, event: &str, now: Time) -> Result<(), GrantError> {
    let Grant { paid_for, account, credits, credit_value, amount_cents, payment } = grant;
    let Payment { intent, charge, invoice } = payment.clone();
    let reference = paid_for.reference();
    let values =
        binds![&reference, account, *credits, *credit_value, *amount_cents, intent, charge, invoice, now];
    tx.execute(&ADD_GRANT, values).await?;
    let granted: GrantRow = tx.one(&GRANT, binds![&reference]).await?;
    settle(tx, granted, paid_for.cause(), event, now).await
}

/// Whether that payment paid for anything that was granted.
pub async fn paid_for_any(tx: &mut Tx, payment: &Payment) -> Result<bool, StoreError> {
    Ok(!grants_of(tx, payment).await?.is_empty())
}

/// Whether that payment paid for something that was bought elsewhere, and verified.
pub async fn verified_any(tx: &mut Tx, payment: &Payment) -> Result<bool, StoreError> {
    let grants = grants_of(tx, payment).await?;
    Ok(grants.iter().any(|grant| grant.reference.starts_with(ELSEWHERE)))
}

async fn grants_of(tx: &mut Tx, payment: &Payment) -> Result<Vec<GrantRow>, StoreError> {
    let Payment { intent, charge, invoice } = payment.clone();
    tx.all(&GRANTS_OF_PAYMENT, binds![intent, charge, invoice]).await
}

/// Takes back, freezes or restores what a reversal says. `false`: no grant of that payment is known;
/// the reversal waits for it.
pub async fn reverse(tx: &mut Tx, reversal: &Reversal, event: &str, now: Time) -> Result<bool, StoreError> {
    note(tx, reversal).await?;
    let grants = grants_of(tx, &reversal.payment).await?;
    let known = !grants.is_empty();
    for grant in grants {
        settle(tx, grant, reversal.status.cause(), event, now).await?;
    }
    Ok(known)
}

/// Keeps what a reversal says, for a grant of that payment that is yet to come.
pub async fn note(tx: &mut Tx, reversal: &Reversal) -> Result<(), StoreError> {
    let Payment { intent, charge, invoice } = reversal.payment.clone();
    let values = binds![
        &reversal.id,
        charge,
        intent,
        invoice,
        reversal.amount_cents,
        reversal.status.as_str(),
        reversal.at,
        reversal.status.is_final()
    ];
    tx.execute(&PUT_REVERSAL, values).await?;
    Ok(())
}

/// Brings a grant to what stands of it, and its account's balance along.
async fn settle(
    tx: &mut Tx,
    grant: GrantRow,
    cause: &'static str,
    event: &str,
    now: Time,
) -> Result<(), GrantError> {
    let GrantRow { reference, payment_intent, charge_id, invoice_id, .. } = grant;
    let (reversed,): (i64,) = tx.one(&REVERSED, binds![payment_intent, charge_id, invoice_id]).await?;
    let standing = standing(grant.credits, grant.amount_cents, reversed);
    let change = standing.checked_sub(grant.standing).and_then(|more| more.checked_mul(grant.credit_value));
    let change = Nanos(change.ok_or(GrantError::Unfit)?);
    if change == Nanos::ZERO {
        return Ok(());
    }
    let bought = Record { kind: "purchase", amount: standing - grant.standing, model: None };
    let transfer = Transfer {
        reference: format!("{reference}/{event}"),
        grants: vec![GrantTo { cause, to: Fund::Credits, amount: change.0 }],
        // What is given back after a dispute was bought before.
        records: if matches!(cause, "purchase" | "invoice") { vec![bought] } else { Vec::new() },
        ..Transfer::default()
    };
    let action = Action::Transfer(transfer);
    let request = Request { account: grant.account_id.into(), at: now, action };
    match ledger::apply(tx, &[&request]).await?.outcomes.as_slice() {
        [Outcome::Moved(_)] => {}
        _ => return Err(GrantError::Unfit),
    }
    tx.execute(&SET_STANDING, binds![&reference, standing]).await?;
    Ok(())
}

/// How many of `credits`, bought for `amount`, stand when `reversed` of it went back: those that the
/// rest paid for in full.
pub fn standing(credits: i64, amount: i64, reversed: i64) -> i64 {
    if amount <= 0 {
        return credits;
    }
    let kept = i128::from(amount - reversed.clamp(0, amount));
    // Not more than `credits`, since `kept` is not more than `amount`.
    i64::try_from(i128::from(credits) * kept / i128::from(amount)).unwrap_or(credits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::account, store::testing::each_backend};
    use ReversalStatus::{Lost, Open, Refunded, Won};

    const CENT: i64 = 10_000_000;

    #[test]
    fn what_stands_is_what_the_rest_paid_for_in_full() {
        for (credits, amount, reversed, expected) in [
            (1000, 1000, 0, 1000),
            (1000, 1000, 1, 999),
            (1000, 1000, 1000, 0),
            (1000, 1000, 5000, 0),
            (3, 10, 5, 1),
            (3, 10, 1, 2),
            (500, 0, 10, 500),
            (i64::MAX, i64::MAX, 0, i64::MAX),
            (1000, 1000, -5, 1000),
        ] {
            assert_eq!(standing(credits, amount, reversed), expected, "{credits} {amount} {reversed}");
        }
    }

    #[derive(Clone, Debug)]
    enum Told {
        Paid,
        Back(&'static str, i64, ReversalStatus, i64),
    }

    async fn tell(db: &Db, account: &AccountId, told: &Told, event: usize) {
        let payment = Payment { intent: Some(format!("pi_{account}")), ..Payment::default() };
        let event = format!("evt_{event}");
        let mut tx = db.begin().await.unwrap();
        match told {
            Told::Paid => {
                let paid = Grant {
                    paid_for: PaidFor::Purchase(account.as_str().into()),
                    account: account.clone(),
                    credits: 1000,
                    credit_value: Nanos(CENT),
                    amount_cents: 1000,
                    payment,
                };
                grant(&mut tx, &paid, &event, Time(5)).await.unwrap();
            }
            Told::Back(id, amount_cents, status, at) => {
                let id = format!("{id}_{account}");
                let back =
                    Reversal { id, payment, amount_cents: *amount_cents, status: *status, at: Time(*at) };
                reverse(&mut tx, &back, &event, Time(6)).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
    }

    fn permutations(items: &[Told]) -> Vec<Vec<Told>> {
        let Some((first, rest)) = items.split_first() else { return vec![vec![]] };
        let mut all = Vec::new();
        for permuted in permutations(rest) {
            for at in 0..=permuted.len() {
                let mut next = permuted.clone();
                next.insert(at, first.clone());
                all.push(next);
            }
        }
        all
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn in_whatever_order_and_however_often_it_is_told_the_same_credits_stand() {
        each_backend(|db| async move {
            for (told, left) in [
                (vec![Told::Paid], 1000),
                (
                    vec![Told::Paid, Told::Back("ch", 300, Refunded, 7), Told::Back("ch", 500, Refunded, 8)],
                    500,
                ),
                (
                    vec![Told::Paid, Told::Back("ch", 300, Refunded, 7), Told::Back("ch", 500, Refunded, 7)],
                    500,
                ),
                (vec![Told::Paid, Told::Back("dp", 1000, Open, 7)], 0),
                (vec![Told::Paid, Told::Back("dp", 1000, Open, 7), Told::Back("dp", 1000, Won, 8)], 1000),
                (vec![Told::Paid, Told::Back("dp", 1000, Open, 7), Told::Back("dp", 1000, Won, 7)], 1000),
                (vec![Told::Paid, Told::Back("dp", 1000, Open, 7), Told::Back("dp", 1000, Lost, 9)], 0),
                (vec![Told::Paid, Told::Back("ch", 400, Refunded, 7), Told::Back("dp", 900, Lost, 9)], 0),
                (vec![Told::Paid, Told::Back("dp", 200, Open, 3), Told::Back("dq", 300, Lost, 3)], 500),
            ] {
                for order in permutations(&told) {
                    let account = account::create(&db, "a".to_owned(), None, Time(1)).await.unwrap().id;
                    for (event, told) in order.iter().enumerate() {
                        tell(&db, &account, told, event).await;
                        tell(&db, &account, told, event + 100).await;
                    }
                    let has = credits(&db, &account).await.unwrap();
                    let expected = Credits { available: Nanos(left * CENT), owed: Nanos(0) };
                    assert_eq!(has, expected, "{order:?}");
                }
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_older_word_still_tells_what_the_payment_is_called() {
        each_backend(|db| async move {
            let account = account::create(&db, "a".to_owned(), None, Time(1)).await.unwrap().id;
            let charge = || Some("ch_1".to_owned());
            let mut tx = db.begin().await.unwrap();
            for (amount_cents, at, invoice) in [(1000, 20, None), (400, 10, Some("in_1".to_owned()))] {
                let payment = Payment { intent: None, charge: charge(), invoice };
                let (id, status, at) = ("ch_1".to_owned(), Refunded, Time(at));
                let back = Reversal { id, payment, amount_cents, status, at };
                assert!(!reverse(&mut tx, &back, "evt", Time(5)).await.unwrap());
            }
            let paid = Grant {
                paid_for: PaidFor::Invoice("in_1".to_owned()),
                account: account.clone(),
                credits: 1000,
                credit_value: Nanos(CENT),
                amount_cents: 1000,
                payment: Payment { invoice: Some("in_1".to_owned()), ..Payment::default() },
            };
            grant(&mut tx, &paid, "evt_2", Time(6)).await.unwrap();
            tx.commit().await.unwrap();
            assert_eq!(credits(&db, &account).await.unwrap(), Credits::default());
        })
        .await;
    }
}
