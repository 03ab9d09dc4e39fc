//! What is sold, and how: the purchase is written before Stripe hears of it, and its id is on
//! everything that Stripe makes of it.
//!
//! # Failure behavior
//!
//! A crash between the purchase and Stripe's answer loses nobody: the events of a session that was
//! made lead back to the purchase, and who asks again with the same `Idempotency-Key` goes on with
//! the same purchase, for which Stripe gives the same session. Whether Stripe failed is answered
//! within [`STRIPE_WITHIN`](super::STRIPE_WITHIN); whatever is to be written after that is tried
//! until [`ABANDONED_AFTER`](idempotency::ABANDONED_AFTER) has nearly passed.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Failure, STRIPE_WITHIN, Session, Stripe, StripeError, session, subscription};
use crate::{
    clock::Time,
    id::{AccountId, PurchaseId},
    identity::{Account, account},
    ledger::{Answer, Keyed, Outcome, idempotency},
    money::{NANOS_PER_CENT, Nanos},
    plan::{Interval, MAX_PRICE_CENTS, Plan},
    store::{StoreError, Tx, binds, statements},
};

/// How long what came of it is tried to be written: less than until another takes the purchase over.
const WRITTEN_WITHIN: Duration = Duration::from_secs(15);

/// What is sold, for how much.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sale {
    pub item: Item,
    pub amount_cents: i64,
    pub currency: String,
    /// What a credit pays for that comes with it: as it was when it was sold, whatever credits cost
    /// by the time the money has come.
    pub credit_value: Nanos,
    /// The credits that come with a plan's first period.
    pub included_credits: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Plan { code: String, name: String, interval: Interval, stripe_price_id: Option<String> },
    Credits(i64),
}

impl Sale {
    /// A subscription to the plan; credits that come with it pay for `credit_value` each.
    ///
    /// Errors: a sentence about why it is not for sale.
    pub fn of_plan(plan: Plan, credit_value: Nanos) -> Result<Sale, String> {
        let Plan { code, terms, .. } = plan;
        if terms.price_cents == 0 {
            return Err(format!("The plan `{code}` costs nothing, so there is nothing to buy."));
        }
        let (name, interval, stripe_price_id) = (terms.name, terms.interval, terms.stripe_price_id);
        Ok(Sale {
            item: Item::Plan { code, name, interval, stripe_price_id },
            amount_cents: terms.price_cents,
            currency: terms.currency,
            credit_value,
            included_credits: terms.included_credits,
        })
    }

    /// So many credits at that price each.
    ///
    /// Errors: a sentence about how many there may be.
    pub fn of_credits(credits: i64, price: Nanos, currency: &str) -> Result<Sale, String> {
        let price_cents = price.0 / NANOS_PER_CENT;
        let most = MAX_PRICE_CENTS.checked_div(price_cents).unwrap_or(0);
        match credits {
            credits if (1..=most).contains(&credits) => Ok(Sale {
                item: Item::Credits(credits),
                amount_cents: credits.saturating_mul(price_cents),
                currency: currency.to_owned(),
                credit_value: price,
                included_credits: 0,
            }),
            _ => Err(format!("`credits` must be from 1 to {most}, which is what Stripe charges at once.")),
        }
    }
}

/// What somebody wants to buy.
pub struct Order {
    pub account: AccountId,
    pub sale: Sale,
    pub success_url: String,
    pub cancel_url: String,
    pub keyed: Option<Keyed>,
}

/// What an order came to.
#[derive(Debug)]
pub enum Bought {
    /// It went to Stripe, and this came of it.
    Answered(Answer),
    /// The idempotency key's first answer.
    Replayed(Answer),
    KeyReused,
    InProgress,
    /// There is a subscription already.
    SubscriptionActive,
    NoAccount,
}

/// How what Stripe said is put into words, for the buyer and for the idempotency key.
pub type Render = fn(&Result<Session, StripeError>) -> Answer;

/// A purchase that is being made: the part of its row that Stripe is told.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub id: PurchaseId,
    pub customer: String,
    pub amount_cents: i64,
    pub currency: String,
}

statements! {
    LOCK_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
    INSERT_PURCHASE = "
        INSERT INTO purchases (id, account_id, customer_id, plan, credits, amount_cents, currency,
                               credit_value, included_credits, status, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 'open', $10, $10)";
    PURCHASE = "SELECT customer_id, amount_cents, currency FROM purchases WHERE id = $1";
    MOVE_PURCHASE = "UPDATE purchases SET customer_id = $2, updated_at = $3 WHERE id = $1 AND status = 'open'";
    // An event may have been faster: what it said stands.
    OPEN_SESSION = "UPDATE purchases SET session_id = $2, updated_at = $3 WHERE id = $1";
    FAIL_PURCHASE = "UPDATE purchases SET status = 'failed', updated_at = $2 WHERE id = $1 AND status = 'open'";
}

/// A purchase to go on with, or an end before that.
enum Begun {
    Purchase(Account, Draft),
    Ended(Bought),
}

impl Stripe {
    /// What the order's idempotency key came to before, if there is one and it is known: a look
    /// before anything is done.
    pub async fn earlier(
        &self,
        account: &AccountId,
        keyed: Option<&Keyed>,
    ) -> Result<Option<Bought>, StoreError> {
        let Some(keyed) = keyed else { return Ok(None) };
        let earlier = idempotency::earlier_purchase(&self.db, account, keyed, self.clock.now()).await?;
        Ok(earlier.map(Bought::of))
    }

    /// Sells. `tell` hears what it came to, as soon as that is known and written; what is left to be
    /// written then goes on. Run it where who asked can't drop it.
    pub async fn sell(&self, order: Order, render: Render, tell: impl FnOnce(Result<Bought, StoreError>)) {
        let deadline = Instant::now() + STRIPE_WITHIN;
        let (account, mut purchase) = match self.begin(&order, render, deadline).await {
            Ok(Begun::Purchase(account, purchase)) => (account, purchase),
            Ok(Begun::Ended(bought)) => return tell(Ok(bought)),
            Err(error) => return tell(Err(error)),
        };
        let opened = match self.open(&account, &mut purchase, &order, deadline).await {
            Ok(session) => Ok(session),
            Err(Failure::Stripe(error)) => Err(error),
            Err(Failure::Store(error)) => return tell(Err(error)),
        };
        let answer = render(&opened);
        let until = Instant::now() + WRITTEN_WITHIN;
        let mut tell = Some(tell);
        loop {
            let (told, again) = match self.end(&order, &purchase, &opened, &answer).await {
                Ok(()) => (Ok(Bought::Answered(answer.clone())), false),
                Err(error) => {
                    let passing = matches!(error, StoreError::Unavailable(_) | StoreError::Conflict(_));
                    (Err(error), passing && Instant::now() < until)
                }
            };
            if let Some(tell) = tell.take() {
                tell(told);
            }
            if !again {
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// Everything before Stripe hears of the purchase.
    async fn begin(&self, order: &Order, render: Render, deadline: Instant) -> Result<Begun, StoreError> {
        let Some(account) = account::get(&self.db, &order.account).await? else {
            return Ok(Begun::Ended(Bought::NoAccount));
        };
        let subscribes = matches!(order.sale.item, Item::Plan { .. });
        if subscribes && subscription::blocks_another(&self.db, &order.account, self.clock.now()).await? {
            return Ok(Begun::Ended(Bought::SubscriptionActive));
        }
        let customer = match self.customer(&account, None, deadline).await {
            Ok(customer) => customer,
            Err(Failure::Store(error)) => return Err(error),
            Err(Failure::Stripe(error)) => {
                return self.keep_failure(order, render(&Err(error))).await.map(Begun::Ended);
            }
        };
        let purchase = Draft {
            id: PurchaseId::fresh(),
            customer,
            amount_cents: order.sale.amount_cents,
            currency: order.sale.currency.clone(),
        };
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        if !lock(&mut tx, &order.account).await? {
            return tx.rollback().await.map(|()| Begun::Ended(Bought::NoAccount));
        }
        if let Some(keyed) = &order.keyed {
            match idempotency::claim(&mut tx, &order.account, keyed, &purchase.id, now).await? {
                idempotency::Claim::Claimed => {}
                idempotency::Claim::Abandoned(id) => {
                    let row: Option<(String, i64, String)> = tx.optional(&PURCHASE, binds![&id]).await?;
                    let Some((customer, amount_cents, currency)) = row else {
                        return tx.rollback().await.map(|()| Begun::Ended(Bought::InProgress));
                    };
                    tx.commit().await?;
                    tracing::info!(purchase = id.as_str(), "a purchase that was left is gone on with");
                    return Ok(Begun::Purchase(account, Draft { id, customer, amount_cents, currency }));
                }
                idempotency::Claim::Known(outcome) => {
                    return tx.rollback().await.map(|()| Begun::Ended(Bought::of(outcome)));
                }
            }
        }
        insert(&mut tx, &purchase, order, now).await?;
        tx.commit().await?;
        Ok(Begun::Purchase(account, purchase))
    }

    /// Has Stripe open a session for the purchase. A customer that Stripe does not know any more is
    /// replaced, once.
    async fn open(
        &self,
        account: &Account,
        purchase: &mut Draft,
        order: &Order,
        deadline: Instant,
    ) -> Result<Session, Failure> {
        let gone = match self.open_once(purchase, order, deadline).await {
            Err(StripeError::NoSuchCustomer) => purchase.customer.clone(),
            opened => return Ok(opened?),
        };
        tracing::warn!(customer = gone, "Stripe does not know the account's customer; another one is made");
        purchase.customer = self.customer(account, Some(&gone), deadline).await?;
        let values = binds![&purchase.id, &purchase.customer, self.clock.now()];
        self.db.execute(&MOVE_PURCHASE, values).await?;
        Ok(self.open_once(purchase, order, deadline).await?)
    }

    async fn open_once(
        &self,
        purchase: &Draft,
        order: &Order,
        deadline: Instant,
    ) -> Result<Session, StripeError> {
        // With the customer, because under a key Stripe takes no other request than the first.
        let key = format!("checkout/{}/{}", purchase.id, purchase.customer);
        self.client.create_session(&session::request(purchase, order), &key, deadline).await
    }

    /// Writes what came of the purchase, with its idempotency key's answer.
    async fn end(
        &self,
        order: &Order,
        purchase: &Draft,
        opened: &Result<Session, StripeError>,
        answer: &Answer,
    ) -> Result<(), StoreError> {
        let now = self.clock.now();
        let mut tx = self.db.begin().await?;
        lock(&mut tx, &order.account).await?;
        match opened {
            Ok(session) => {
                tx.execute(&OPEN_SESSION, binds![&purchase.id, &session.id, now]).await?;
            }
            // Otherwise there may be a session, of which an event tells.
            Err(error) if error.is_final() => {
                tx.execute(&FAIL_PURCHASE, binds![&purchase.id, now]).await?;
            }
            Err(_) => {}
        }
        if let Some(keyed) = &order.keyed {
            let kept = is_kept(answer).then_some(answer);
            idempotency::end_claim(&mut tx, &order.account, keyed, &purchase.id, kept).await?;
        }
        tx.commit().await
    }

    /// Keeps the answer to an order for which Stripe failed before there was a purchase.
    async fn keep_failure(&self, order: &Order, answer: Answer) -> Result<Bought, StoreError> {
        let Some(keyed) = order.keyed.as_ref().filter(|_| is_kept(&answer)) else {
            return Ok(Bought::Answered(answer));
        };
        let mut tx = self.db.begin().await?;
        if !lock(&mut tx, &order.account).await? {
            return tx.rollback().await.map(|()| Bought::NoAccount);
        }
        let known = idempotency::keep(&mut tx, &order.account, keyed, &answer, self.clock.now()).await?;
        tx.commit().await?;
        Ok(known.map_or(Bought::Answered(answer), Bought::of))
    }
}

/// A refusal that the buyer can mend is not kept: the same key may come again.
fn is_kept(answer: &Answer) -> bool {
    !(400..500).contains(&answer.status)
}

async fn lock(tx: &mut Tx, account: &AccountId) -> Result<bool, StoreError> {
    let locked: Option<(String,)> = tx.optional(&LOCK_ACCOUNT, binds![account]).await?;
    Ok(locked.is_some())
}

async fn insert(tx: &mut Tx, purchase: &Draft, order: &Order, now: Time) -> Result<(), StoreError> {
    let (plan, credits) = match &order.sale.item {
        Item::Plan { code, .. } => (Some(code.as_str()), None),
        Item::Credits(credits) => (None, Some(*credits)),
    };
    let values = binds![
        &purchase.id,
        &order.account,
        &purchase.customer,
        plan,
        credits,
        purchase.amount_cents,
        &purchase.currency,
        order.sale.credit_value,
        order.sale.included_credits,
        now,
    ];
    tx.execute(&INSERT_PURCHASE, values).await?;
    Ok(())
}

impl Bought {
    fn of(outcome: Outcome) -> Bought {
        match outcome {
            Outcome::Replayed(answer) => Bought::Replayed(answer),
            Outcome::KeyReused => Bought::KeyReused,
            _ => Bought::InProgress,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan;

    #[test]
    fn credits_are_sold_up_to_what_stripe_charges_at_once() {
        let sold = |credits, cents: i64| Sale::of_credits(credits, Nanos(cents * NANOS_PER_CENT), "usd");
        for (credits, price, amount) in
            [(1, 1, 1), (1_000, 1, 1_000), (99_999_999, 1, 99_999_999), (7, 3, 21)]
        {
            let sale = sold(credits, price).unwrap();
            assert_eq!((sale.item, sale.amount_cents), (Item::Credits(credits), amount));
        }
        assert_eq!(sold(99, 1_000_000).unwrap().amount_cents, 99_000_000);
        for (credits, price) in [
            (0, 1),
            (-1, 1),
            (i64::MIN, 1),
            (100_000_000, 1),
            (i64::MAX, 1),
            (100, 1_000_000),
            (i64::MAX, 7),
            (1, 0),
        ] {
            assert!(sold(credits, price).unwrap_err().contains("`credits`"), "{credits} at {price}");
        }
    }

    #[test]
    fn a_plan_is_sold_at_its_price_if_it_has_one() {
        let definition = |price_cents| plan::Definition {
            name: "Pro".to_owned(),
            price_cents,
            stripe_price_id: Some("price_1".to_owned()),
            ..plan::Definition::default()
        };
        let plan = |price_cents| Plan {
            code: "pro".to_owned(),
            terms: definition(price_cents).terms("eur").unwrap(),
            created_at: Time(0),
            updated_at: Time(0),
        };
        let sale = Sale::of_plan(plan(1_000), Nanos(1)).unwrap();
        assert_eq!((sale.amount_cents, sale.currency.as_str()), (1_000, "eur"));
        assert!(Sale::of_plan(plan(0), Nanos(1)).unwrap_err().contains("`pro` costs nothing"));
    }
}
