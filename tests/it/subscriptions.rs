//! Plans that are subscribed to: what Stripe tells, in whatever order, comes to one state, and that
//! state acts on the next cast.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{Backend, Client, Customer, Options, Server, both, eventually, postgres, storm, usage_cents},
    stripe_events::{
        Event, Purchase, Shape, Shop, assert_nothing_granted, credits, fresh, permutations, plan_and_status,
        tell,
    },
};

/// `pro` as it is sold, with `more` that it brings.
async fn put_pro(shop: &Shop, more: Value) {
    let mut plan = json!({"name": "Pro", "price_cents": 1_000});
    for (name, value) in more.as_object().unwrap() {
        plan[name] = value.clone();
    }
    shop.server.admin().put("/v1/plans/pro", plan).await.expect(200);
}

#[track_caller]
fn is(plan: &str, status: &str) -> (String, String) {
    (plan.to_owned(), status.to_owned())
}

/// A customer who is about to subscribe, for each of `orders`, told by `events` of the purchase, in
/// that order; then `check` looks at what came of it.
async fn in_every_order(
    shop: &Shop,
    shape: Shape,
    events: impl Fn(&Purchase) -> Vec<Event> + Clone + Send + Sync + 'static,
    expected: (&'static str, &'static str, i64),
) {
    let probe = Purchase::somebody_elses();
    let count = events(&probe.subscribing()).len();
    let orders = permutations(&(0..count).collect::<Vec<_>>());
    let mut sold = Vec::new();
    for _ in &orders {
        let customer = shop.customer().await;
        let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
        sold.push((customer, purchase));
    }
    let total = orders.len();
    storm(8, total, move |number| {
        let (customer, purchase) = sold[number].clone();
        let (order, events) = (orders[number].clone(), events.clone());
        async move {
            let told = events(&purchase);
            for place in &order {
                tell(&customer, &told[*place]).await;
            }
            let (plan, status, included) = expected;
            let order: Vec<&Event> = order.iter().map(|place| &told[*place]).collect();
            assert_eq!(plan_and_status(&customer).await, is(plan, status), "{shape:?} {order:?}");
            assert_eq!(credits(&customer).await, included, "{shape:?} {order:?}");
        }
    })
    .await;
}

both!(every_order_of_a_purchases_events_ends_active_with_its_credits_once);
async fn every_order_of_a_purchases_events_ends_active_with_its_credits_once(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    for shape in Shape::BOTH {
        // In one second, as they mostly are, and one after the other.
        for seconds in [[0; 4], [0, 1, 2, 3], [0, 1, 1, 2]] {
            let events = move |purchase: &Purchase| purchase.told_of_subscribing(seconds);
            in_every_order(&shop, shape, events, ("pro", "active", 250)).await;
        }
    }
    assert_eq!(shop.open_events().await, []);
}

both!(every_order_of_a_purchases_events_and_its_end_ends_canceled);
async fn every_order_of_a_purchases_events_and_its_end_ends_canceled(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    for (shape, seconds, end) in [(Shape::Older, [0, 1, 2, 3], 4), (Shape::Newer, [0; 4], 0)] {
        let events = move |purchase: &Purchase| {
            let mut events = purchase.told_of_subscribing(seconds);
            events.push(purchase.event("customer.subscription.deleted", end));
            events
        };
        in_every_order(&shop, shape, events, ("free", "canceled", 250)).await;
    }
    assert_eq!(shop.open_events().await, []);
}

both!(a_paid_checkout_alone_makes_the_plan_active);
async fn a_paid_checkout_alone_makes_the_plan_active(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        let customer = shop.customer().await;
        let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
        assert_nothing_granted(&customer, "a Checkout that is only opened").await;
        shop.tell(&purchase.paid()).await;
        let billing = customer.get("/v1/billing").await.expect(200);
        let fields = [
            "plan",
            "status",
            "current_period_end",
            "cancel_at_period_end",
            "stripe_customer_id",
            "credits",
            "credits_owed",
        ];
        crate::harness::shape(&billing, &fields);
        assert_eq!((&billing["plan"], &billing["status"]), (&json!("pro"), &json!("active")));
        assert_eq!(billing["stripe_customer_id"], purchase.id("customer"));
        let again = customer.post("/v1/billing/checkout", json!({"plan": "pro"})).await;
        assert_eq!(again.status, 409, "{again}");
        // Credits can be bought beside it.
        shop.sell_credits(&customer, 60).await;
        assert_eq!(credits(&customer).await, 60);
    }
}

both!(each_word_of_stripes_has_its_status);
async fn each_word_of_stripes_has_its_status(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        let customer = shop.customer().await;
        let purchase = shop.sell_pro(&customer).await.shaped(shape);
        let mut at = 10;
        for (word, plan, status) in [
            ("past_due", "pro", "past_due"),
            ("active", "pro", "active"),
            ("unpaid", "pro", "past_due"),
            ("trialing", "pro", "active"),
            ("incomplete", "free", "inactive"),
            ("active", "pro", "active"),
            ("paused", "free", "inactive"),
            ("something_new", "free", "inactive"),
            ("active", "pro", "active"),
            ("incomplete_expired", "free", "canceled"),
        ] {
            at += 1;
            let told = purchase.but(json!({"status": word}));
            shop.tell(&told.event("customer.subscription.updated", at)).await;
            assert_eq!(plan_and_status(&customer).await, is(plan, status), "{word}");
            // What is older says nothing more.
            shop.tell(&purchase.event("customer.subscription.updated", 5)).await;
            shop.tell(&purchase.event("customer.subscription.deleted", 6)).await;
            assert_eq!(plan_and_status(&customer).await, is(plan, status), "{word}");
        }
        let customer = shop.customer().await;
        let purchase = shop.sell_pro(&customer).await.shaped(shape);
        shop.tell(&purchase.event("customer.subscription.paused", 1)).await;
        assert_eq!(plan_and_status(&customer).await, is("free", "inactive"));
        shop.tell(&purchase.event("customer.subscription.resumed", 2)).await;
        assert_eq!(plan_and_status(&customer).await, is("pro", "active"));
    }
}

both!(a_renewal_brings_its_credits_once_and_one_that_fails_is_past_due);
async fn a_renewal_brings_its_credits_once_and_one_that_fails_is_past_due(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    for shape in Shape::BOTH {
        let customer = shop.customer().await;
        let purchase = shop.sell_pro(&customer).await.shaped(shape);
        let end = async || customer.get("/v1/billing").await.expect(200)["current_period_end"].clone();
        let first_end = end().await;
        let renewal = purchase.but(json!({
            "invoice": fresh("in"), "billing_reason": "subscription_cycle", "payment_intent": fresh("pi"),
            "charge": fresh("ch"), "period_end": 4_000_000_000i64,
        }));
        shop.tell(&renewal.event("invoice.payment_failed", 10)).await;
        assert_eq!(plan_and_status(&customer).await, is("pro", "past_due"));
        assert_eq!((credits(&customer).await, end().await), (250, first_end));
        let paid = renewal.event("invoice.paid", 20);
        for event in [&paid, &paid, &paid.anew(), &renewal.event("invoice.payment_failed", 11)] {
            shop.tell(event).await;
            assert_eq!(plan_and_status(&customer).await, is("pro", "active"));
            assert_eq!((credits(&customer).await, end().await), (500, json!("2096-10-02T07:06:40.000Z")));
        }
    }
    assert_eq!(shop.open_events().await, []);
}

both!(an_invoice_that_is_not_what_was_sold_brings_nothing_and_is_kept);
async fn an_invoice_that_is_not_what_was_sold_brings_nothing_and_is_kept(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    for shape in Shape::BOTH {
        let (customer, other) = (shop.customer().await, shop.customer().await);
        let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
        let others = shop.checkout(&other, json!({"credits": 1_000})).await;
        for change in [
            json!({"amount": 999}),
            json!({"amount": 1}),
            json!({"amount": 100_000}),
            json!({"currency": "eur"}),
            json!({"customer": others.id("customer")}),
            json!({"customer": fresh("cus")}),
        ] {
            let invoice = purchase.but(change).event("invoice.paid", 0);
            shop.tell(&invoice).await;
            assert_nothing_granted(&customer, &invoice.body).await;
            assert_nothing_granted(&other, &invoice.body).await;
            let open = shop.open_events().await;
            assert_eq!(open[0], (invoice.id.clone(), "kept".to_owned()), "{}", invoice.body);
        }
        // Neither does a subscription at another price, or somebody else's.
        for change in [json!({"amount": 1}), json!({"currency": "eur"}), json!({"customer": fresh("cus")})] {
            for kind in ["created", "updated", "resumed"] {
                let event = purchase.but(change.clone()).event(&format!("customer.subscription.{kind}"), 0);
                shop.tell(&event).await;
                assert_nothing_granted(&customer, &event.body).await;
            }
        }
        for event in purchase.told_of_subscribing([0; 4]) {
            shop.tell(&event).await;
        }
        assert_eq!(plan_and_status(&customer).await, is("pro", "active"));
        assert_eq!(credits(&customer).await, 250);
    }
}

both!(a_checkout_of_a_plan_that_was_not_paid_as_sold_makes_nothing_active);
async fn a_checkout_of_a_plan_that_was_not_paid_as_sold_makes_nothing_active(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        for (change, paid) in [
            (json!({"payment_status": "unpaid"}), false),
            (json!({"amount": 999}), true),
            (json!({"currency": "eur"}), true),
            (json!({"customer": fresh("cus")}), true),
            (json!({"session": fresh("cs")}), true),
            (json!({"purchase": fresh("pur")}), true),
        ] {
            let customer = shop.customer().await;
            let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
            let event = purchase.but(change).paid();
            shop.tell(&event).await;
            assert_nothing_granted(&customer, &event.body).await;
            let kept = shop.open_events().await.contains(&(event.id.clone(), "kept".to_owned()));
            assert_eq!(kept, paid, "{}", event.body);
        }
    }
}

both!(while_the_money_is_under_way_the_plan_waits_for_it);
async fn while_the_money_is_under_way_the_plan_waits_for_it(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for (end, expected) in [
        ("checkout.session.async_payment_succeeded", is("pro", "active")),
        ("checkout.session.async_payment_failed", is("free", "inactive")),
    ] {
        let customer = shop.customer().await;
        let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await;
        shop.tell(&purchase.but(json!({"payment_status": "unpaid"})).paid()).await;
        shop.tell(&purchase.event("customer.subscription.updated", 0)).await;
        assert_nothing_granted(&customer, "a subscription before its money").await;
        let ended = purchase.event(end, 1);
        let ended = ended.with("/data/object/subscription", json!(purchase.id("subscription")));
        shop.tell(&ended.with("/data/object/mode", json!("subscription"))).await;
        assert_eq!(plan_and_status(&customer).await, expected, "{end}");
    }
}

both!(an_older_invoices_refund_takes_its_included_credits_back);
async fn an_older_invoices_refund_takes_its_included_credits_back(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    let customer = shop.customer().await;
    let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(Shape::Older);
    for event in purchase.told_of_subscribing([0; 4]) {
        shop.tell(&event).await;
    }
    assert_eq!(credits(&customer).await, 250);
    shop.tell(&purchase.refunded(400, 5)).await;
    assert_eq!(credits(&customer).await, 150);
    shop.tell(&purchase.refunded(1_000, 6)).await;
    assert_eq!(credits(&customer).await, 0);
}

both!(a_newer_invoices_refund_takes_them_back_as_well_once_stripe_can_be_asked_for_the_invoice);
async fn a_newer_invoices_refund_takes_them_back_as_well_once_stripe_can_be_asked_for_the_invoice(
    backend: Backend,
) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"included_credits": 250})).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_pro(&customer).await;
    // A charge of newer shape does not name its invoice, and Stripe is not to be asked at first.
    let refunded = purchase.refunded(1_000, 5);
    shop.tell(&refunded).await;
    assert_eq!(shop.open_events().await, [(refunded.id.clone(), "kept".to_owned())]);
    assert_eq!(credits(&customer).await, 250);

    shop.stripe.pays(purchase.id("payment_intent"), purchase.id("invoice"));
    shop.server.admin().post(&format!("/v1/webhooks/{}/replay", refunded.id), json!({})).await.expect(200);
    assert_eq!((credits(&customer).await, shop.open_events().await), (0, vec![]));
    shop.tell(&purchase.dispute_opened(6)).await;
    shop.tell(&purchase.dispute_closed("won", 7)).await;
    assert_eq!((credits(&customer).await, shop.open_events().await), (0, vec![]));
}

/// What the rate's header says of the next cast.
async fn rate_of_a_cast(client: &Client) -> u64 {
    let answer = client.echo().await;
    answer.expect(200);
    answer.number_in("ratelimit-limit")
}

async fn hard_limit_met(client: &Client) -> Value {
    client.echo().await.expect_code(402, "budget_exceeded")["hard_limit_cents"].clone()
}

both!(an_active_plans_rate_acts_on_the_next_cast_and_goes_with_it);
async fn an_active_plans_rate_acts_on_the_next_cast_and_goes_with_it(backend: Backend) {
    let shop = Shop::open_with(Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 500)).await;
    put_pro(&shop, json!({"rate_limit_per_minute": 120})).await;
    let customer = shop.customer().await;
    let own = json!({"rate_limit_per_minute": 7});
    let own = customer.another_key(&shop.server.admin(), own).await;
    assert_eq!((rate_of_a_cast(&customer).await, rate_of_a_cast(&own).await), (500, 7));
    let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await;
    assert_eq!(rate_of_a_cast(&customer).await, 500);
    shop.tell(&purchase.paid()).await;
    assert_eq!((rate_of_a_cast(&customer).await, rate_of_a_cast(&own).await), (120, 7));
    put_pro(&shop, json!({"rate_limit_per_minute": 90})).await;
    assert_eq!(rate_of_a_cast(&customer).await, 90);
    shop.tell(&purchase.but(json!({"status": "past_due"})).event("customer.subscription.updated", 5)).await;
    assert_eq!(rate_of_a_cast(&customer).await, 90);
    shop.tell(&purchase.event("customer.subscription.deleted", 6)).await;
    assert_eq!((rate_of_a_cast(&customer).await, rate_of_a_cast(&own).await), (500, 7));
}

both!(an_active_plans_rate_is_what_refuses);
async fn an_active_plans_rate_is_what_refuses(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"rate_limit_per_minute": 3})).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_pro(&customer).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(customer.echo().await.status);
    }
    assert_eq!(&statuses[..3], [200, 200, 200]);
    assert!(statuses.contains(&429), "{statuses:?}");
    shop.tell(&purchase.event("customer.subscription.deleted", 5)).await;
    for _ in 0..6 {
        customer.echo().await.expect(200);
    }
}

both!(an_active_plans_limit_acts_on_the_next_cast_and_goes_with_it);
async fn an_active_plans_limit_acts_on_the_next_cast_and_goes_with_it(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 6})).await;
    let customer = shop.customer().await;
    for _ in 0..4 {
        customer.echo().await.expect(200);
    }
    let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await;
    customer.echo().await.expect(200);
    shop.tell(&purchase.paid()).await;
    // What was spent in the month before counts.
    customer.echo().await.expect(200);
    assert_eq!(hard_limit_met(&customer).await, 6);
    put_pro(&shop, json!({"hard_limit_cents": 7})).await;
    customer.echo().await.expect(200);
    assert_eq!(hard_limit_met(&customer).await, 7);
    shop.tell(&purchase.event("customer.subscription.deleted", 5)).await;
    for _ in 0..5 {
        customer.echo().await.expect(200);
    }
    // And again: everything that was spent meanwhile counts.
    put_pro(&shop, json!({"hard_limit_cents": 13})).await;
    shop.sell_pro(&customer).await;
    customer.echo().await.expect(200);
    assert_eq!(hard_limit_met(&customer).await, 13);
}

both!(what_was_spent_between_two_subscriptions_counts_on_the_second);
async fn what_was_spent_between_two_subscriptions_counts_on_the_second(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 8})).await;
    let customer = shop.customer().await;
    let first = shop.sell_pro(&customer).await;
    for _ in 0..3 {
        customer.echo().await.expect(200);
    }
    shop.tell(&first.event("customer.subscription.paused", 5)).await;
    customer.echo().await.expect(200);
    shop.tell(&first.event("customer.subscription.resumed", 6)).await;
    customer.echo().await.expect(200);
    shop.tell(&first.event("customer.subscription.deleted", 7)).await;
    for _ in 0..2 {
        customer.echo().await.expect(200);
    }
    shop.sell_pro(&customer).await;
    customer.echo().await.expect(200);
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["hard_limit_cents"], &refusal["spent_cents"]), (&json!(8), &json!(8)));
}

both!(what_is_held_while_a_plan_begins_and_ends_counts_once);
async fn what_is_held_while_a_plan_begins_and_ends_counts_once(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 20})).await;
    let customer = shop.customer().await;
    let hold = async |cents: i64| {
        let held = customer.post("/v1/holds", json!({"amount_cents": cents})).await.expect(201);
        held["id"].as_str().unwrap().to_owned()
    };
    let settle = async |id: &str, cents: i64| {
        let path = format!("/v1/holds/{id}/settle");
        customer.post(&path, json!({"amount_cents": cents})).await.expect(200);
    };
    let figures = async || {
        let asked = customer.post("/v1/holds", json!({"amount_cents": 1_000})).await;
        let refusal = asked.expect_code(402, "budget_exceeded");
        (refusal["spent_cents"].as_i64().unwrap(), refusal["reserved_cents"].as_i64().unwrap())
    };
    let before = hold(6).await;
    let first = shop.sell_pro(&customer).await;
    assert_eq!(figures().await, (0, 6));
    let during = hold(5).await;
    assert_eq!(figures().await, (0, 11));
    shop.tell(&first.event("customer.subscription.deleted", 5)).await;
    settle(&before, 2).await;
    let between = hold(100).await;
    assert_eq!(customer.delete(&format!("/v1/holds/{between}")).await.status, 204);
    let after = hold(4).await;
    let second = shop.sell_pro(&customer).await;
    assert_eq!(figures().await, (2, 9));
    settle(&during, 5).await;
    assert_eq!(figures().await, (7, 4));
    assert_eq!(customer.delete(&format!("/v1/holds/{after}")).await.status, 204);
    assert_eq!(figures().await, (7, 0));
    for _ in 0..13 {
        customer.echo().await.expect(200);
    }
    assert_eq!(hard_limit_met(&customer).await, 20);
    shop.tell(&second.event("customer.subscription.deleted", 6)).await;
    customer.echo().await.expect(200);
    assert_eq!(usage_cents(&customer.usage("").await), (16, 21, 0));
}

both!(a_limit_holds_while_plans_come_and_go_amid_casts);
async fn a_limit_holds_while_plans_come_and_go_amid_casts(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 60})).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_pro(&customer).await;
    let caster: Customer = customer.clone();
    let casting = tokio::spawn(storm(16, 400, move |_| {
        let client = caster.client();
        async move { client.echo().await.status }
    }));
    // Past due keeps the plan, active again too: each says the same limit anew.
    let mut at = 5;
    while !casting.is_finished() {
        at += 1;
        let word = if at % 2 == 0 { "past_due" } else { "active" };
        shop.tell(&purchase.but(json!({"status": word})).event("customer.subscription.updated", at)).await;
        put_pro(&shop, json!({"hard_limit_cents": 60, "rate_limit_per_minute": 1_000_000 - at})).await;
    }
    let statuses = casting.await.unwrap();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 60, "{statuses:?}");
    assert_eq!(usage_cents(&customer.usage("").await), (60, 60, 0));
}

both!(a_monthly_budget_of_ones_own_replaces_the_plans_limit_while_it_is_there);
async fn a_monthly_budget_of_ones_own_replaces_the_plans_limit_while_it_is_there(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 5})).await;
    let customer = shop.customer().await;
    shop.sell_pro(&customer).await;
    // Of another period: it stands beside.
    customer.limit("daily", 1_000).await;
    for _ in 0..5 {
        customer.echo().await.expect(200);
    }
    assert_eq!(hard_limit_met(&customer).await, 5);
    customer.limit("monthly", 8).await;
    for _ in 0..3 {
        customer.echo().await.expect(200);
    }
    assert_eq!(hard_limit_met(&customer).await, 8);
    assert_eq!(customer.delete("/v1/budgets?period=monthly").await.status, 204);
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["hard_limit_cents"], &refusal["spent_cents"]), (&json!(5), &json!(8)));
    put_pro(&shop, json!({"hard_limit_cents": 9})).await;
    customer.echo().await.expect(200);
    assert_eq!(hard_limit_met(&customer).await, 9);
    assert_eq!(usage_cents(&customer.usage("?period=daily").await), (9, 9, 0));
}

both!(a_plans_limit_holds_however_many_cast_at_once);
async fn a_plans_limit_holds_however_many_cast_at_once(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_pro(&shop, json!({"hard_limit_cents": 50})).await;
    let customer = shop.customer().await;
    shop.sell_pro(&customer).await;
    let caster: Customer = customer.clone();
    let answers = storm(32, 200, move |_| {
        let client = caster.client();
        async move { client.echo().await.status }
    })
    .await;
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 50);
    assert_eq!(answers.iter().filter(|status| **status == 402).count(), 150);
}

postgres!(what_one_replica_was_told_acts_on_the_other);
async fn what_one_replica_was_told_acts_on_the_other(backend: Backend) {
    let options = Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 500);
    let shop = Shop::open_with(options.clone()).await;
    let other = Server::start(shop.stripe.sells_for(options)).await;
    put_pro(&shop, json!({"rate_limit_per_minute": 120, "hard_limit_cents": 3})).await;
    let customer = shop.customer().await;
    let there = customer.at(other.anonymous());
    assert_eq!((rate_of_a_cast(&customer).await, rate_of_a_cast(&there).await), (500, 500));
    let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await;
    shop.tell(&purchase.paid()).await;
    assert_eq!(plan_and_status(&there).await, is("pro", "active"));
    // The limit at once, the rate within a second.
    there.echo().await.expect(200);
    assert_eq!(hard_limit_met(&there).await, 3);
    put_pro(&shop, json!({"rate_limit_per_minute": 120, "hard_limit_cents": 100_000})).await;
    eventually(Duration::from_millis(1_300), "the plan's rate on the other replica", || async {
        (rate_of_a_cast(&there).await == 120).then_some(())
    })
    .await;
    tell(other.anonymous(), &purchase.event("customer.subscription.deleted", 5)).await;
    assert_eq!(rate_of_a_cast(&there).await, 500);
    eventually(Duration::from_millis(1_300), "the rate without a plan", || async {
        (rate_of_a_cast(&customer).await == 500).then_some(())
    })
    .await;
}

both!(a_plan_with_a_price_at_stripe_is_the_one_that_its_price_says);
async fn a_plan_with_a_price_at_stripe_is_the_one_that_its_price_says(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for (code, price, included) in [("pro", 1_000, 100), ("team", 5_000, 900)] {
        let plan = json!({"name": code, "price_cents": price, "stripe_price_id": format!("price_{code}"),
                          "included_credits": included});
        let put = shop.server.admin().put(&format!("/v1/plans/{code}"), plan).await;
        assert!([200, 201].contains(&put.status), "{put}");
    }
    for shape in Shape::BOTH {
        let customer = shop.customer().await;
        let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
        assert_eq!(purchase.id("price"), "price_pro");
        for event in purchase.told_of_subscribing([0; 4]) {
            shop.tell(&event).await;
        }
        assert_eq!((plan_and_status(&customer).await, credits(&customer).await), (is("pro", "active"), 100));
        // Changed in the portal, and paid at the next renewal.
        let team = purchase.but(json!({
            "price": "price_team", "amount": 5_000, "invoice": fresh("in"),
            "billing_reason": "subscription_cycle", "payment_intent": fresh("pi"), "charge": fresh("ch"),
        }));
        shop.tell(&team.event("customer.subscription.updated", 5)).await;
        assert_eq!(plan_and_status(&customer).await, is("team", "active"));
        shop.tell(&team.event("invoice.paid", 6)).await;
        assert_eq!(
            (plan_and_status(&customer).await, credits(&customer).await),
            (is("team", "active"), 1_000)
        );
        shop.tell(&team.event("customer.subscription.deleted", 7)).await;
        assert_eq!(plan_and_status(&customer).await, is("free", "canceled"));
        // Who canceled can subscribe again.
        let again = shop.sell_pro(&customer).await;
        assert_ne!(again.id("subscription"), purchase.id("subscription"));
        shop.tell(&team.event("customer.subscription.deleted", 8)).await;
        assert_eq!(plan_and_status(&customer).await, is("pro", "active"));
    }
    assert_eq!(shop.open_events().await, []);
}
