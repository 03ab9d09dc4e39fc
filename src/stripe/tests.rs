//! Events against the books, on both databases: in every order, twice, at once, and not as they were
//! sold.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::SecretString;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{
    subscription::{self, Standing, Status},
    webhook::{Rejected, Webhook},
};
use crate::{
    clock::{Clock, Time},
    id::{AccountId, PurchaseId},
    identity::{Identity, account},
    inbox::{self, Delivery, Inbox, Verdict},
    money::Nanos,
    store::{Db, binds, statements, testing::each_backend},
    telemetry::Metrics,
    wallet,
};

const SECRET: &str = "whsec_of_the_tests";
const NOW: i64 = 1_900_000_000;
const CENT: i64 = 10_000_000;

statements! {
    ADD_PLAN = "
        INSERT INTO plans (code, name, price_cents, currency, billing_interval, stripe_price_id,
            included_credits, period, limits, is_default, version, created_at, updated_at)
        VALUES ($1, $1, $2, 'usd', 'month', $3, $4, 'monthly', '{}', $5, $1, 0, 0)";
    ADD_CUSTOMER = "INSERT INTO stripe_customers (account_id, customer_id, created_at) VALUES ($1, $2, 0)";
    ADD_PURCHASE = "
        INSERT INTO purchases (id, account_id, customer_id, plan, credits, amount_cents, currency,
            credit_value, included_credits, status, session_id, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, 1000, 'usd', 10000000, 250, 'open', $6, 0, 0)";
    PURCHASE_STATUS = "SELECT status FROM purchases WHERE id = $1";
    PLAN_OF = "SELECT plan FROM accounts WHERE id = $1";
    GRANTED_BY_ENTRIES = "
        SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT), COUNT(*) FROM entries WHERE balance_id = $1";
}

struct World {
    db: Db,
    webhook: Webhook,
}

/// An account that is about to buy something; what Stripe calls its things ends in the account's id.
struct Customer {
    account: AccountId,
    purchase: PurchaseId,
}

impl World {
    async fn new(db: Db) -> World {
        for (code, price, included, default) in
            [("free", 0, 0, true), ("pro", 1000, 250, false), ("max", 5000, 900, false)]
        {
            let values = binds![code, price, format!("price_{code}"), included, default];
            db.execute(&ADD_PLAN, values).await.unwrap();
        }
        let clock = Clock::manual(Time(NOW * 1_000));
        let identity = Identity::new(db.clone(), clock.clone());
        let webhook = Webhook::new(Inbox::new(db.clone(), clock, identity), Arc::new(Metrics::new()), None);
        World { db, webhook }
    }

    async fn customer(&self, plan: Option<&str>, credits: Option<i64>) -> Customer {
        let account = account::create(&self.db, "a".to_owned(), None, Time(1)).await.unwrap().id;
        self.db.execute(&ADD_CUSTOMER, binds![&account, format!("cus_{account}")]).await.unwrap();
        let purchase = PurchaseId::fresh();
        let session = format!("cs_{account}");
        let values = binds![&purchase, &account, format!("cus_{account}"), plan, credits, session];
        self.db.execute(&ADD_PURCHASE, values).await.unwrap();
        Customer { account, purchase }
    }

    async fn deliver(&self, event: &Value) -> Result<Delivery, Rejected> {
        let body = event.to_string();
        self.webhook.receive(Some(&signed(&body)), body.as_bytes(), &[SecretString::from(SECRET)]).await
    }

    /// What the event was found to be; it is delivered a second time, which must change nothing.
    async fn tell(&self, event: &Value) -> Verdict {
        let Delivery::First(verdict) = self.deliver(event).await.unwrap() else {
            panic!("told before: {event}")
        };
        assert_eq!(self.deliver(event).await.unwrap(), Delivery::Again);
        verdict
    }

    async fn standing(&self, customer: &Customer) -> Standing {
        let standing = subscription::standing(&self.db, &customer.account).await.unwrap();
        let (plan,): (Option<String>,) = self.db.one(&PLAN_OF, binds![&customer.account]).await.unwrap();
        let in_force = standing.plan.clone().filter(|_| standing.in_force);
        assert_eq!(plan, in_force, "the account's row says the same");
        standing
    }

    /// The account's credits, which the ledger's lines must come to as well.
    async fn credits(&self, customer: &Customer) -> i64 {
        let credits = wallet::credits(&self.db, &customer.account).await.unwrap();
        let balance = format!("credits/{}", customer.account);
        let (sum, _): (i64, i64) = self.db.one(&GRANTED_BY_ENTRIES, binds![balance]).await.unwrap();
        assert_eq!(sum, credits.available.0 - credits.owed.0);
        sum / CENT
    }

    async fn blocks_another(&self, customer: &Customer, seconds: i64) -> bool {
        let now = Time(seconds * 1_000);
        subscription::blocks_another(&self.db, &customer.account, now).await.unwrap()
    }

    async fn status(&self, customer: &Customer) -> String {
        let (status,): (String,) = self.db.one(&PURCHASE_STATUS, binds![&customer.purchase]).await.unwrap();
        status
    }
}

fn signed(body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{NOW}.{body}").as_bytes());
    format!("t={NOW},v1={}", hex::encode(mac.finalize().into_bytes()))
}

impl Customer {
    fn event(&self, number: usize, kind: &str, created: i64, object: Value) -> Value {
        json!({"id": format!("evt_{number}_{}", self.account), "type": kind, "created": created,
               "data": {"object": object}})
    }

    fn session(&self, payment_status: &str) -> Value {
        json!({"id": format!("cs_{}", self.account), "client_reference_id": self.purchase,
               "customer": format!("cus_{}", self.account), "amount_total": 1000, "currency": "usd",
               "payment_status": payment_status, "payment_intent": format!("pi_{}", self.account),
               "subscription": format!("sub_{}", self.account)})
    }

    fn subscription(&self, status: &str) -> Value {
        json!({"id": format!("sub_{}", self.account), "customer": format!("cus_{}", self.account),
               "status": status, "cancel_at_period_end": false,
               "items": {"data": [{"current_period_end": NOW + 5, "quantity": 1,
                                   "price": {"id": "price_inline", "unit_amount": 1000, "currency": "usd"}}]}})
    }

    fn invoice(&self, number: usize) -> Value {
        json!({"id": format!("in_{number}_{}", self.account), "customer": format!("cus_{}", self.account),
               "status": "paid", "total": 1000, "currency": "usd", "billing_reason": "subscription_cycle",
               "parent": {"subscription_details": {"subscription": format!("sub_{}", self.account)}},
               "lines": {"data": [{"period": {"end": NOW + 9}}]}})
    }

    /// What Stripe tells when a plan is bought.
    fn buys_a_plan(&self) -> Vec<Value> {
        vec![
            self.event(1, "customer.subscription.created", 100, self.subscription("incomplete")),
            self.event(2, "customer.subscription.updated", 100, self.subscription("active")),
            self.event(3, "invoice.paid", 100, self.invoice(1)),
            self.event(4, "checkout.session.completed", 101, self.session("paid")),
        ]
    }
}

fn permutations(items: &[Value]) -> Vec<Vec<Value>> {
    let Some((first, rest)) = items.split_first() else { return vec![vec![]] };
    let insert = |permuted: &Vec<Value>, at: usize| {
        let mut next = permuted.clone();
        next.insert(at, first.clone());
        next
    };
    let rest = permutations(rest);
    rest.iter().flat_map(|permuted| (0..=permuted.len()).map(move |at| insert(permuted, at))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_a_purchases_events_ends_in_the_same_state() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        for order in 0..24 {
            let customer = world.customer(Some("pro"), None).await;
            for event in &permutations(&customer.buys_a_plan())[order] {
                let verdict = world.tell(event).await;
                assert!(matches!(verdict, Verdict::Applied(_)), "{verdict:?} {event}");
            }
            let standing = world.standing(&customer).await;
            assert_eq!((standing.status, standing.plan.as_deref()), (Status::Active, Some("pro")), "{order}");
            assert_eq!(standing.current_period_end, Some(Time((NOW + 9) * 1_000)));
            assert_eq!(world.credits(&customer).await, 250, "order {order}");
            assert_eq!(world.status(&customer).await, "paid");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_period_and_an_end_that_were_told_before_checkout_named_the_purchase_are_not_lost() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        for last in ["active", "canceled"] {
            for order in 0..6 {
                let customer = world.customer(Some("pro"), None).await;
                // Offered later and never paid: the subscription is taken for this one's at first.
                let customer_id = format!("cus_{}", customer.account);
                let later = PurchaseId::fresh();
                let session = format!("cs_later_{}", customer.account);
                let values = binds![&later, &customer.account, customer_id, "pro", None::<i64>, session];
                world.db.execute(&ADD_PURCHASE, values).await.unwrap();
                let at = if last == "active" { 100 } else { 300 };
                let events = [
                    customer.event(
                        1,
                        "customer.subscription.created",
                        100,
                        customer.subscription("incomplete"),
                    ),
                    customer.event(2, "customer.subscription.updated", at, customer.subscription(last)),
                    customer.event(3, "checkout.session.completed", 101, customer.session("paid")),
                ];
                for event in &permutations(&events)[order] {
                    world.tell(event).await;
                }
                let standing = world.standing(&customer).await;
                let expected = if last == "active" { Status::Active } else { Status::Canceled };
                assert_eq!(standing.status, expected, "{last} {order}");
                assert_eq!(standing.current_period_end, Some(Time((NOW + 5) * 1_000)), "{last} {order}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_order_of_a_renewal_that_fails_and_an_end_ends_in_the_end() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        for order in 0..120 {
            let customer = world.customer(Some("pro"), None).await;
            let mut failed = customer.invoice(2);
            failed["status"] = json!("open");
            let events = [
                customer.event(1, "checkout.session.completed", 100, customer.session("paid")),
                customer.event(2, "invoice.paid", 100, customer.invoice(1)),
                customer.event(3, "invoice.payment_failed", 200, failed),
                customer.event(4, "customer.subscription.updated", 200, customer.subscription("past_due")),
                customer.event(5, "customer.subscription.deleted", 300, customer.subscription("canceled")),
            ];
            for event in &permutations(&events)[order] {
                world.tell(event).await;
            }
            let standing = world.standing(&customer).await;
            assert_eq!((standing.status, standing.plan), (Status::Canceled, None), "order {order}");
            assert_eq!(world.credits(&customer).await, 250, "order {order}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paid_checkout_alone_makes_the_plan_active_and_each_word_of_stripes_counts() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(Some("pro"), None).await;
        world.tell(&customer.event(1, "checkout.session.completed", 100, customer.session("paid"))).await;
        assert_eq!(world.standing(&customer).await.status, Status::Active);
        for (number, (word, status)) in [
            ("past_due", Status::PastDue),
            ("active", Status::Active),
            ("paused", Status::Inactive),
            ("trialing", Status::Active),
            ("unpaid", Status::PastDue),
            ("incomplete_expired", Status::Canceled),
        ]
        .into_iter()
        .enumerate()
        {
            let at = 200 + number as i64;
            let object = customer.subscription(word);
            world.tell(&customer.event(10 + number, "customer.subscription.updated", at, object)).await;
            assert_eq!(world.standing(&customer).await.status, status, "{word}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_event_by_24_deliveries_at_once_is_one_grant() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(None, Some(1000)).await;
        let event = customer.event(1, "checkout.session.completed", 100, customer.session("paid"));
        let deliveries = futures_util::future::join_all((0..24).map(|_| world.deliver(&event))).await;
        let is_first = |delivery: &Result<Delivery, Rejected>| matches!(delivery, Ok(Delivery::First(_)));
        let first = deliveries.iter().filter(|delivery| is_first(delivery)).count();
        assert!(deliveries.iter().all(Result::is_ok), "{deliveries:?}");
        assert_eq!((first, world.credits(&customer).await), (1, 1000));
        let balance = format!("credits/{}", customer.account);
        let (_, lines): (i64, i64) = world.db.one(&GRANTED_BY_ENTRIES, binds![balance]).await.unwrap();
        assert_eq!(lines, 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_paid_as_it_was_sold_grants_nothing() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let completed = "checkout.session.completed";
        for (kind, change, kept) in [
            (completed, json!({"payment_status": "unpaid"}), false),
            (completed, json!({"payment_status": "no_payment_required"}), false),
            (completed, json!({"payment_status": null}), false),
            (completed, json!({"payment_status": "PAID"}), false),
            ("checkout.session.async_payment_failed", json!({"payment_status": "unpaid"}), false),
            ("checkout.session.async_payment_succeeded", json!({"payment_status": "unpaid"}), false),
            ("checkout.session.expired", json!({}), false),
            (completed, json!({"amount_total": 999}), true),
            (completed, json!({"amount_total": 1001}), true),
            (completed, json!({"amount_total": null}), true),
            (completed, json!({"amount_total": "1000"}), true),
            (completed, json!({"currency": "eur"}), true),
            (completed, json!({"customer": "cus_other"}), true),
            (completed, json!({"customer": null}), true),
            (completed, json!({"id": "cs_other"}), true),
            (completed, json!({"client_reference_id": "pur_never"}), true),
            (completed, json!({"client_reference_id": null}), true),
            (completed, json!({"client_reference_id": 5}), true),
        ] {
            for credits in [None, Some(1000)] {
                let customer = world.customer(credits.is_none().then_some("pro"), credits).await;
                let mut session = customer.session("paid");
                for (field, value) in change.as_object().unwrap() {
                    session[field] = value.clone();
                }
                let event = customer.event(1, kind, 100, session);
                let verdict = world.tell(&event).await;
                assert_eq!(matches!(verdict, Verdict::Kept(_)), kept, "{verdict:?} {event}");
                assert_eq!(world.standing(&customer).await, Standing::default(), "{event}");
                assert_eq!(world.credits(&customer).await, 0, "{event}");
                assert_ne!(world.status(&customer).await, "paid", "{event}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_payment_grants_when_it_has_come() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let plan = world.customer(Some("pro"), None).await;
        let credits = world.customer(None, Some(1000)).await;
        for customer in [&plan, &credits] {
            world
                .tell(&customer.event(1, "checkout.session.completed", 100, customer.session("unpaid")))
                .await;
            assert_eq!(world.status(customer).await, "processing");
        }
        // No second subscription meanwhile, but not for ever.
        assert!(world.blocks_another(&plan, NOW + 20 * 24 * 3_600).await);
        assert!(!world.blocks_another(&plan, NOW + 22 * 24 * 3_600).await);
        assert!(!world.blocks_another(&credits, NOW).await);
        // Stripe calls it active before the money has come; we do not.
        world.tell(&plan.event(2, "customer.subscription.updated", 101, plan.subscription("active"))).await;
        assert_eq!(world.standing(&plan).await.status, Status::Inactive);
        for customer in [&plan, &credits] {
            let event =
                customer.event(3, "checkout.session.async_payment_succeeded", 900, customer.session("paid"));
            world.tell(&event).await;
            assert_eq!(world.status(customer).await, "paid");
        }
        assert_eq!(world.standing(&plan).await.status, Status::Active);
        assert_eq!(world.credits(&credits).await, 1000);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_canceled_does_not_come_back_when_its_money_comes() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let mut customer = world.customer(Some("pro"), None).await;
        for order in 0..120 {
            customer = world.customer(Some("pro"), None).await;
            let events = [
                customer.event(1, "checkout.session.completed", 100, customer.session("unpaid")),
                customer.event(2, "customer.subscription.deleted", 200, customer.subscription("canceled")),
                customer.event(3, "checkout.session.async_payment_succeeded", 300, customer.session("paid")),
                customer.event(5, "customer.subscription.created", 100, customer.subscription("active")),
                customer.event(6, "invoice.paid", 900, customer.invoice(1)),
            ];
            for event in &permutations(&events)[order] {
                world.tell(event).await;
            }
            let standing = world.standing(&customer).await;
            assert_eq!((standing.status, standing.plan), (Status::Canceled, None), "order {order}");
            assert!(!world.blocks_another(&customer, NOW).await);
        }
        // Bought anew, under whatever id.
        let again = PurchaseId::fresh();
        let customer_id = format!("cus_{}", customer.account);
        let values = binds![&again, &customer.account, customer_id, "pro", None::<i64>, "cs_again"];
        world.db.execute(&ADD_PURCHASE, values).await.unwrap();
        let mut session = customer.session("paid");
        session["client_reference_id"] = json!(again);
        session["id"] = json!("cs_again");
        world.tell(&customer.event(4, "checkout.session.completed", 400, session)).await;
        assert_eq!(world.standing(&customer).await.status, Status::Active);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_turns_out_not_to_be_paid_as_it_was_sold_holds_no_more() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        for (kind, change) in [
            ("checkout.session.completed", json!({"amount_total": 1190})),
            ("checkout.session.completed", json!({"currency": "eur"})),
            ("checkout.session.async_payment_failed", json!({"payment_status": "unpaid"})),
            ("checkout.session.expired", json!({"subscription": null})),
        ] {
            for order in 0..2 {
                let customer = world.customer(Some("pro"), None).await;
                let mut session = customer.session("paid");
                for (field, value) in change.as_object().unwrap() {
                    session[field] = value.clone();
                }
                let events = [
                    customer.event(1, "customer.subscription.created", 100, customer.subscription("active")),
                    customer.event(2, kind, 101, session),
                ];
                for event in &permutations(&events)[order] {
                    world.tell(event).await;
                }
                let standing = world.standing(&customer).await;
                assert!(!standing.in_force, "{kind} {change} {order}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_subscription_that_was_paid_is_shown_to_the_operator() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(Some("pro"), None).await;
        world.tell(&customer.event(1, "checkout.session.completed", 100, customer.session("paid"))).await;
        let second = PurchaseId::fresh();
        let customer_id = format!("cus_{}", customer.account);
        let values = binds![&second, &customer.account, customer_id, "pro", None::<i64>, "cs_second"];
        world.db.execute(&ADD_PURCHASE, values).await.unwrap();
        let mut session = customer.session("paid");
        session["client_reference_id"] = json!(second);
        session["id"] = json!("cs_second");
        session["subscription"] = json!("sub_second");
        let verdict = world.tell(&customer.event(2, "checkout.session.completed", 101, session)).await;
        assert!(matches!(verdict, Verdict::Kept(_)), "{verdict:?}");
        assert_eq!(world.standing(&customer).await.status, Status::Active);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stripe_has_given_up_on_has_the_plan_no_more() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(Some("pro"), None).await;
        world.tell(&customer.event(1, "checkout.session.completed", 100, customer.session("paid"))).await;
        for (number, word, plan) in
            [(2, "past_due", Some("pro")), (3, "unpaid", None), (4, "active", Some("pro"))]
        {
            let at = 200 + number as i64;
            let object = customer.subscription(word);
            world.tell(&customer.event(number, "customer.subscription.updated", at, object)).await;
            let standing = world.standing(&customer).await;
            assert_eq!(
                (standing.in_force, standing.plan.as_deref()),
                (plan.is_some(), Some("pro")),
                "{word}"
            );
            let blocks = world.blocks_another(&customer, NOW).await;
            assert_eq!(blocks, plan.is_some(), "{word}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn amounts_that_nobody_could_have_paid_are_none() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(None, Some(1000)).await;
        world.tell(&customer.event(1, "checkout.session.completed", 100, customer.session("paid"))).await;
        for (number, amount) in [(2, i64::MAX), (3, i64::MAX), (4, -5), (5, 0)] {
            let dispute = json!({"id": format!("dp_{number}"), "status": "lost", "amount": amount,
                                 "payment_intent": format!("pi_{}", customer.account)});
            world.tell(&customer.event(number, "charge.dispute.closed", 200, dispute)).await;
        }
        assert_eq!(world.credits(&customer).await, 1000);
        let free = json!({"id": "in_free", "customer": "cus_unknown", "status": "paid", "total": 0});
        assert!(matches!(
            world.tell(&customer.event(9, "invoice.paid", 300, free)).await,
            Verdict::Ignored(_)
        ));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invoice_brings_its_credits_once_and_only_at_the_price_that_was_agreed() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(Some("pro"), None).await;
        world.tell(&customer.event(1, "checkout.session.completed", 100, customer.session("paid"))).await;
        let tell = async |number: usize, change: Value| {
            let mut invoice = customer.invoice(number);
            for (field, value) in change.as_object().unwrap() {
                invoice[field] = value.clone();
            }
            world.tell(&customer.event(10 + number, "invoice.paid", 200 + number as i64, invoice)).await;
            world.credits(&customer).await
        };
        assert_eq!(tell(1, json!({"billing_reason": "subscription_create"})).await, 250);
        assert_eq!(tell(2, json!({})).await, 500);
        // Told by another event of the same invoice.
        assert_eq!(tell(3, json!({"id": format!("in_2_{}", customer.account)})).await, 500);
        assert_eq!(
            tell(4, json!({"total": 77, "lines": {"data": [{"amount": 77, "proration": true}]}})).await,
            500
        );
        assert_eq!(tell(5, json!({"total": 1})).await, 500);
        assert_eq!(tell(6, json!({"currency": "eur"})).await, 500);
        assert_eq!(tell(7, json!({"status": "open"})).await, 500);
        assert_eq!(tell(8, json!({"customer": "cus_other"})).await, 500);
        // Changed to another plan of ours in the portal.
        let mut other = customer.subscription("active");
        other["items"]["data"][0]["price"] =
            json!({"id": "price_max", "unit_amount": 5000, "currency": "usd"});
        world.tell(&customer.event(30, "customer.subscription.updated", 300, other)).await;
        assert_eq!(world.standing(&customer).await.plan.as_deref(), Some("max"));
        let price = json!({"data": [{"amount": 5000, "pricing": {"price_details": {"price": "price_max"}}}]});
        assert_eq!(tell(9, json!({"total": 5000, "lines": price})).await, 1400);
        // What is settled between two plans begins no period, in the newer shape too.
        let details = json!({"type": "invoice_item_details", "invoice_item_details": {"proration": true}});
        let line = |price: &str, amount: i64| {
            json!({"amount": amount, "parent": details, "pricing": {"price_details": {"price": price}}})
        };
        let upgrade = json!({"data": [line("price_pro", -10), line("price_max", 50)]});
        assert_eq!(tell(13, json!({"total": 40, "lines": upgrade})).await, 1400);
        // Paid from what Stripe owed the customer; and not in another currency.
        let listed = json!({"data": [{"amount": 5000, "pricing": {"price_details": {"price": "price_max"}}}]});
        let balance = json!({"total": 5000, "amount_paid": 0, "lines": listed});
        assert_eq!(tell(14, balance.clone()).await, 2300);
        let mut foreign = balance;
        foreign["currency"] = json!("jpy");
        assert_eq!(tell(15, foreign).await, 2300);
        // Of the plan that was left, delivered late: its own credits, not the new one's.
        assert_eq!(tell(10, json!({})).await, 2550);
        // With a discount and a tax, which are not in the line.
        let discounted = json!({"total": 890, "subtotal": 1000, "lines": {"data": [{"amount": 1000}]}});
        assert_eq!(tell(11, discounted).await, 2800);
        let tampered = json!({"total": 10, "subtotal": 10, "lines": {"data": [{"amount": 1000}]}});
        assert_eq!(tell(12, tampered).await, 2800);
        let kept = inbox::list(&world.db, None, &["kept"], None, 100).await.unwrap();
        assert_eq!(kept.len(), 5, "two other prices, two other currencies, another customer: {kept:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_goes_back_takes_its_credits_along() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(None, Some(1000)).await;
        let charge = |refunded: i64| {
            json!({"id": format!("ch_{}", customer.account), "customer": format!("cus_{}", customer.account),
                   "payment_intent": format!("pi_{}", customer.account), "amount": 1000, "amount_refunded": refunded})
        };
        let dispute = |status: &str| {
            json!({"id": format!("dp_{}", customer.account), "charge": format!("ch_{}", customer.account),
                   "payment_intent": format!("pi_{}", customer.account), "amount": 700, "status": status})
        };
        // The refund comes before what it refunds.
        let early = world.tell(&customer.event(1, "charge.refunded", 150, charge(100))).await;
        assert!(matches!(early, Verdict::Kept(_)), "{early:?}");
        world.tell(&customer.event(2, "checkout.session.completed", 100, customer.session("paid"))).await;
        assert_eq!(world.credits(&customer).await, 900);
        world.tell(&customer.event(3, "charge.refunded", 200, charge(300))).await;
        assert_eq!(world.credits(&customer).await, 700);
        world.tell(&customer.event(4, "charge.refunded", 160, charge(200))).await;
        assert_eq!(world.credits(&customer).await, 700, "an older word");
        world.tell(&customer.event(5, "charge.dispute.created", 300, dispute("needs_response"))).await;
        assert_eq!(world.credits(&customer).await, 0);
        world.tell(&customer.event(6, "charge.dispute.closed", 400, dispute("won"))).await;
        assert_eq!(world.credits(&customer).await, 700);
        world.tell(&customer.event(7, "charge.dispute.created", 300, dispute("needs_response"))).await;
        assert_eq!(world.credits(&customer).await, 700, "told late");
        // The operator asks again about what waited.
        let replayed = world.webhook.replay(&format!("evt_1_{}", customer.account)).await.unwrap();
        assert!(matches!(replayed, Some(Delivery::First(Verdict::Applied(_)))), "{replayed:?}");
        assert_eq!(world.credits(&customer).await, 700);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_of_a_payment_that_an_app_took_from_a_customer_of_its_own_takes_its_credits_along() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(None, None).await;
        let charge = json!({"id": "ch_app", "customer": "cus_of_the_app", "payment_intent": "pi_app",
                            "amount": 1000, "amount_refunded": 400});
        let unknown = world.tell(&customer.event(1, "charge.refunded", 100, charge)).await;
        assert!(matches!(unknown, Verdict::Ignored(_)), "{unknown:?}");
        let grant = wallet::Grant {
            paid_for: wallet::PaidFor::Transaction("pi_app".to_owned()),
            account: customer.account.clone(),
            credits: 1000,
            credit_value: Nanos(CENT),
            amount_cents: 1000,
            payment: wallet::Payment { intent: Some("pi_app".to_owned()), ..Default::default() },
        };
        let mut tx = world.db.begin().await.unwrap();
        wallet::grant(&mut tx, &grant, "pi_app", Time(NOW)).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(world.credits(&customer).await, 600, "it came between verifying and booking");
        let more = json!({"id": "ch_app", "customer": "cus_of_the_app", "payment_intent": "pi_app",
                          "amount": 1000, "amount_refunded": 700});
        world.tell(&customer.event(2, "charge.refunded", 200, more)).await;
        assert_eq!(world.credits(&customer).await, 300);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_applied_is_listed_and_applied_when_it_can() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let customer = world.customer(None, Some(i64::MAX)).await;
        let event = customer.event(1, "checkout.session.completed", 100, customer.session("paid"));
        for attempts in 1..=2 {
            assert!(matches!(world.deliver(&event).await, Err(Rejected::Store(_))));
            let listed = inbox::list(&world.db, None, &inbox::OPEN, None, 10).await.unwrap();
            assert_eq!((listed.len(), listed[0].attempts), (1, attempts));
            assert_eq!(listed[0].status, "failed");
        }
        assert_eq!((world.credits(&customer).await, world.status(&customer).await.as_str()), (0, "open"));
        let id = format!("evt_1_{}", customer.account);
        assert!(world.webhook.replay(&id).await.is_err());
        assert!(world.webhook.replay("evt_never").await.unwrap().is_none());
        assert_eq!(inbox::get(&world.db, &id).await.unwrap().unwrap().attempts, 3);
    })
    .await;
}
