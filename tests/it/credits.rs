//! Prepaid credits: bought through Checkout, granted once the money is there, spent by casts, and taken
//! back with the money.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    harness::{
        Answer, Backend, Client, Customer, Options, Server, all_casts, both, eventually, shape, storm,
        usage_cents,
    },
    stripe_events::{
        Event, Purchase, Shape, Shop, assert_nothing_granted, credits, credits_owed, fresh, permutations,
    },
};

/// A spell that is paid from credits, at so many cents a cast.
async fn put_paid_spell(server: &Server, cents: i64) {
    let spell = json!({"kind": "echo", "price": {"flat_cents": cents}, "pay_from": "credits"});
    let put = server.admin().put("/v1/spells/paid", spell).await;
    assert!([200, 201].contains(&put.status), "{put}");
}

async fn cast_paid(client: &Client) -> Answer {
    client.cast("paid", json!({"hello": "world"})).await
}

async fn hold_paid(client: &Client, amount_cents: i64, ttl_seconds: i64) -> Answer {
    let body = json!({"amount_cents": amount_cents, "ttl_seconds": ttl_seconds, "spell": "paid"});
    client.post("/v1/holds", body).await
}

#[track_caller]
fn id_of(answer: &Answer) -> String {
    answer.expect(201)["id"].as_str().unwrap().to_owned()
}

both!(what_was_paid_for_is_granted_once_and_the_balance_shows_it);
async fn what_was_paid_for_is_granted_once_and_the_balance_shows_it(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        let (customer, other) = (shop.customer().await, shop.customer().await);
        let purchase = shop.checkout(&customer, json!({"credits": 1_000})).await.shaped(shape);
        assert_nothing_granted(&customer, "a Checkout that is only opened").await;
        for event in [purchase.paid(), purchase.paid()] {
            for _ in 0..2 {
                shop.tell(&event).await;
                let balance = customer.get("/api/billing/balance").await.expect(200);
                assert_eq!(balance, json!({"credits": 1_000, "allocated_tokens": {}}));
            }
        }
        shop.sell_credits(&customer, 1).await;
        assert_eq!(credits(&customer).await, 1_001);
        assert_nothing_granted(&other, "what another bought").await;
    }
    assert_eq!(shop.open_events().await, []);
}

both!(a_payment_that_takes_days_is_granted_when_it_has_come_and_not_when_it_failed);
async fn a_payment_that_takes_days_is_granted_when_it_has_come_and_not_when_it_failed(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        for (ends, granted) in [
            ("checkout.session.async_payment_succeeded", 500),
            ("checkout.session.async_payment_failed", 0),
            ("checkout.session.expired", 0),
        ] {
            let customer = shop.customer().await;
            let purchase = shop.checkout(&customer, json!({"credits": 500})).await.shaped(shape);
            let unpaid =
                purchase.but(json!({"payment_status": "unpaid"})).event("checkout.session.completed", 0);
            shop.tell(&unpaid).await;
            assert_nothing_granted(&customer, "an unpaid session").await;
            let end = purchase.event(ends, 60);
            for event in [&end, &end, &unpaid, &unpaid.anew(), &end.anew()] {
                shop.tell(event).await;
                assert_eq!(credits(&customer).await, granted, "{shape:?} {ends}");
            }
        }
    }
    assert_eq!(shop.open_events().await, []);
}

/// Events about a purchase that were not paid, or not as it was sold, and whether they are kept for an
/// operator.
fn not_as_sold(purchase: &Purchase, other: &Purchase) -> Vec<(Event, bool)> {
    let paid = purchase.paid();
    let stranger = Purchase::somebody_elses();
    let about = |field: &str, value: Value| paid.anew().with(&format!("/data/object/{field}"), value);
    let mut events = vec![
        (about("payment_status", json!("unpaid")), false),
        (about("payment_status", json!("no_payment_required")), false),
        (about("payment_status", json!("PAID")), false),
        (about("payment_status", json!(null)), false),
        (about("payment_status", json!(true)), false),
        (stranger.paid(), true),
        (stranger.event("checkout.session.async_payment_succeeded", 0), true),
    ];
    for amount in [json!(0), json!(1), json!(999), json!(1_001), json!(-1_000), json!(1e3), json!("1000")] {
        events.push((about("amount_total", amount), true));
    }
    for currency in [json!("eur"), json!("usd "), json!(null), json!(840)] {
        events.push((about("currency", currency), true));
    }
    for (field, name) in [("customer", "customer"), ("id", "session"), ("client_reference_id", "purchase")] {
        for value in [stranger.id(name), other.id(name)] {
            events.push((about(field, json!(value)), true));
        }
    }
    for field in ["customer", "id"] {
        events.push((about(field, json!(5)), true));
    }
    let nameless = about("client_reference_id", json!(5));
    events.push((nameless.with("/data/object/metadata", json!({})), true));
    events
}

both!(what_was_not_paid_as_it_was_sold_grants_nothing_and_is_kept_if_money_came);
async fn what_was_not_paid_as_it_was_sold_grants_nothing_and_is_kept_if_money_came(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        let (customer, other) = (shop.customer().await, shop.customer().await);
        let purchase = shop.checkout(&customer, json!({"credits": 1_000})).await.shaped(shape);
        let others = shop.checkout(&other, json!({"credits": 1_000})).await;
        for (event, kept) in not_as_sold(&purchase, &others) {
            let before = shop.open_events().await;
            shop.tell(&event).await;
            shop.tell(&event).await;
            assert_nothing_granted(&customer, &event.body).await;
            assert_nothing_granted(&other, &event.body).await;
            let open = shop.open_events().await;
            let added: Vec<_> = open.into_iter().filter(|event| !before.contains(event)).collect();
            let expected = if kept { vec![(event.id.clone(), "kept".to_owned())] } else { vec![] };
            assert_eq!(added, expected, "{}", event.body);
        }
        // And what is true is believed after all that.
        shop.tell(&purchase.paid()).await;
        assert_eq!((credits(&customer).await, credits(&other).await), (1_000, 0));
    }
}

both!(a_refund_takes_back_what_it_paid_for_counted_over_all_of_them);
async fn a_refund_takes_back_what_it_paid_for_counted_over_all_of_them(backend: Backend) {
    let shop = Shop::open(&backend).await;
    for shape in Shape::BOTH {
        let customer = shop.customer().await;
        let kept = shop.sell_credits(&customer, 10).await;
        let purchase = shop.sell_credits(&customer, 1_000).await.shaped(shape);
        // A charge of no invoice, as the older shape says it.
        let purchase = purchase.but(json!({"invoice": null}));
        let (first, second) = (purchase.refunded(300, 1), purchase.refunded(600, 2));
        for (event, left) in [
            (&first, 710),
            (&second, 410),
            (&first, 410),
            // What was told late, and what was told in the same second.
            (&first.anew(), 410),
            (&purchase.refunded(500, 2), 410),
            (&purchase.refunded(601, 2), 409),
            (&purchase.refunded(1_000, 3), 10),
            (&purchase.refunded(1_000, 4), 10),
        ] {
            shop.tell(event).await;
            assert_eq!(credits(&customer).await, left, "{shape:?} after {}", event.body);
        }
        shop.tell(&kept.refunded(10, 1)).await;
        assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 0));
    }
    assert_eq!(shop.open_events().await, []);
}

both!(a_refund_that_comes_before_the_purchase_is_kept_and_counts_when_it_comes);
async fn a_refund_that_comes_before_the_purchase_is_kept_and_counts_when_it_comes(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let purchase = shop.checkout(&customer, json!({"credits": 1_000})).await;
    let refunded = purchase.refunded(400, 5);
    shop.tell(&refunded).await;
    assert_nothing_granted(&customer, "a refund").await;
    assert_eq!(shop.open_events().await, [(refunded.id.clone(), "kept".to_owned())]);
    shop.tell(&purchase.paid()).await;
    assert_eq!(credits(&customer).await, 600);
    let path = format!("/v1/webhooks/{}/replay", refunded.id);
    for _ in 0..2 {
        let replayed = shop.server.admin().post(&path, json!({})).await.expect(200);
        assert_eq!((&replayed["status"], &replayed["attempts"]), (&json!("applied"), &json!(2)));
        assert_eq!(credits(&customer).await, 600);
    }
    assert_eq!(shop.open_events().await, []);
}

both!(a_dispute_freezes_and_its_end_gives_back_or_takes);
async fn a_dispute_freezes_and_its_end_gives_back_or_takes(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    for shape in Shape::BOTH {
        for (end, left) in [("won", 100), ("lost", 0), ("warning_closed", 100)] {
            let customer = shop.customer().await;
            let purchase = shop.sell_credits(&customer, 100).await.shaped(shape);
            shop.tell(&purchase.dispute_opened(1)).await;
            assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 0));
            cast_paid(&customer).await.expect_code(402, "insufficient_credits");
            shop.tell(&purchase.dispute_closed(end, 2)).await;
            assert_eq!(credits(&customer).await, left, "{shape:?} {end}");
            // Its beginning, told late.
            shop.tell(&purchase.dispute_opened(1)).await;
            assert_eq!(credits(&customer).await, left, "{shape:?} {end}");
            let status = if left > 0 { 200 } else { 402 };
            assert_eq!(cast_paid(&customer).await.status, status, "{shape:?} {end}");
        }
    }
    assert_eq!(shop.open_events().await, []);
}

both!(in_whatever_order_money_went_back_the_same_credits_are_left);
async fn in_whatever_order_money_went_back_the_same_credits_are_left(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    for order in 0..24 {
        let purchase = shop.checkout(&customer, json!({"credits": 1_000})).await;
        let disputed = purchase.but(json!({"amount": 200}));
        let events = [
            purchase.paid(),
            purchase.refunded(300, 1),
            disputed.dispute_opened(2),
            disputed.dispute_closed("lost", 3),
        ];
        for event in &permutations(&events)[order] {
            shop.tell(event).await;
        }
        assert_eq!(credits(&customer).await, 500 * (order as i64 + 1), "order {order}");
    }
}

both!(what_was_spent_and_goes_back_is_owed_and_the_next_purchase_pays_it_first);
async fn what_was_spent_and_goes_back_is_owed_and_the_next_purchase_pays_it_first(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 12).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_credits(&customer, 100).await;
    for _ in 0..5 {
        cast_paid(&customer).await.expect(200);
    }
    assert_eq!(credits(&customer).await, 40);
    shop.tell(&purchase.refunded(100, 1)).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 60));
    let refusal = cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    assert_eq!((&refusal["credits_cents"], &refusal["owed_cents"]), (&json!(0), &json!(60)));
    hold_paid(&customer, 1, 60).await.expect_code(402, "insufficient_credits");
    // What is not paid from credits goes on.
    customer.echo().await.expect(200);
    shop.sell_credits(&customer, 50).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 10));
    cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    shop.sell_credits(&customer, 50).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (40, 0));
    cast_paid(&customer).await.expect(200);
    assert_eq!(credits(&customer).await, 28);
    // A dispute of what is spent freezes into a debt too, and its end lifts that.
    let disputed = shop.sell_credits(&customer, 8).await;
    for _ in 0..3 {
        cast_paid(&customer).await.expect(200);
    }
    shop.tell(&disputed.dispute_opened(1)).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 8));
    shop.tell(&disputed.dispute_closed("won", 2)).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 0));
}

both!(a_budget_holds_beside_credits_and_is_named_first);
async fn a_budget_holds_beside_credits_and_is_named_first(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    customer.limit("monthly", 0).await;
    cast_paid(&customer).await.expect_code(402, "budget_exceeded");
    shop.sell_credits(&customer, 10).await;
    cast_paid(&customer).await.expect_code(402, "budget_exceeded");
    customer.limit("monthly", 4).await;
    for _ in 0..4 {
        cast_paid(&customer).await.expect(200);
    }
    cast_paid(&customer).await.expect_code(402, "budget_exceeded");
    assert_eq!((usage_cents(&customer.usage("").await), credits(&customer).await), ((4, 4, 0), 6));
    customer.limit("monthly", 100).await;
    for _ in 0..6 {
        cast_paid(&customer).await.expect(200);
    }
    let refusal = cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    let fields = ["error", "message", "credits_cents", "reserved_cents", "requested_cents", "owed_cents"];
    shape(&refusal, &fields);
    assert_eq!(usage_cents(&customer.usage("").await), (10, 10, 0));
}

both!(of_600_casts_at_once_as_many_succeed_as_there_are_credits);
async fn of_600_casts_at_once_as_many_succeed_as_there_are_credits(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    shop.sell_credits(&customer, 100).await;
    let client = customer.client();
    let answers = storm(64, 600, move |_| {
        let client = client.clone();
        async move { cast_paid(&client).await }
    })
    .await;
    let succeeded = answers.iter().filter(|answer| answer.status == 200).count();
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        refused.expect_code(402, "insufficient_credits");
    }
    assert_eq!((succeeded, credits(&customer).await), (100, 0));
    assert_eq!(usage_cents(&customer.usage("").await), (100, 100, 0));
    let completed = all_casts(&customer).await.iter().filter(|cast| cast["status"] == "COMPLETED").count();
    assert_eq!(completed, 100);
    shop.sell_credits(&customer, 2).await;
    for status in [200, 200, 402] {
        assert_eq!(cast_paid(&customer).await.status, status);
    }
}

both!(what_casts_cost_is_rounded_over_the_sum_of_them);
async fn what_casts_cost_is_rounded_over_the_sum_of_them(backend: Backend) {
    let shop = Shop::open_with(Options::on(&backend).var("CREDIT_PRICE_CENTS", 2)).await;
    put_paid_spell(&shop.server, 3).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_credits(&customer, 10).await;
    assert_eq!(shop.stripe.opened(purchase.id("session"))["line_items[0][price_data][unit_amount]"], "20");
    for left in [8, 7, 5, 4, 2, 1] {
        cast_paid(&customer).await.expect(200);
        assert_eq!(credits(&customer).await, left);
    }
    cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    // Half of what was paid went back: five credits, worth ten cents, of which two were left.
    shop.tell(&purchase.refunded(10, 1)).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 4));
}

both!(a_hold_sets_credits_aside_and_its_end_gives_back_what_was_not_used);
async fn a_hold_sets_credits_aside_and_its_end_gives_back_what_was_not_used(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    shop.sell_credits(&customer, 100).await;
    // One that names no spell is not paid from credits.
    id_of(&customer.post("/v1/holds", json!({"amount_cents": 5_000})).await);
    let settled = id_of(&hold_paid(&customer, 60, 300).await);
    let voided = id_of(&hold_paid(&customer, 30, 300).await);
    assert_eq!(credits(&customer).await, 10);
    let refusal = hold_paid(&customer, 11, 300).await.expect_code(402, "insufficient_credits");
    assert_eq!((&refusal["reserved_cents"], &refusal["requested_cents"]), (&json!(90), &json!(11)));
    assert_eq!(customer.delete(&format!("/v1/holds/{voided}")).await.status, 204);
    assert_eq!(credits(&customer).await, 40);
    customer.post(&format!("/v1/holds/{settled}/settle"), json!({"amount_cents": 25})).await.expect(200);
    assert_eq!(credits(&customer).await, 75);
    // What goes over what was held is booked whole, into a debt if need be.
    let over = id_of(&hold_paid(&customer, 75, 300).await);
    cast_paid(&customer).await.expect_code(402, "insufficient_credits");
    customer.post(&format!("/v1/holds/{over}/settle"), json!({"amount_cents": 80})).await.expect(200);
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 5));
}

both!(a_hold_that_expires_gives_its_credits_back);
async fn a_hold_that_expires_gives_its_credits_back(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    shop.sell_credits(&customer, 100).await;
    for _ in 0..3 {
        id_of(&hold_paid(&customer, 30, 1).await);
    }
    eventually(Duration::from_secs(20), "the credits come back", || async {
        (credits(&customer).await == 100).then_some(())
    })
    .await;
    id_of(&hold_paid(&customer, 100, 60).await);
}

both!(what_is_held_when_money_goes_back_is_still_settled);
async fn what_is_held_when_money_goes_back_is_still_settled(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_credits(&customer, 100).await;
    let held = id_of(&hold_paid(&customer, 80, 300).await);
    shop.tell(&purchase.refunded(100, 1)).await;
    assert_eq!(credits(&customer).await, 0);
    customer.post(&format!("/v1/holds/{held}/settle"), json!({"amount_cents": 80})).await.expect(200);
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 80));
}

both!(buying_spending_and_refunding_at_once_comes_out_even);
async fn buying_spending_and_refunding_at_once_comes_out_even(backend: Backend) {
    let shop = Shop::open(&backend).await;
    put_paid_spell(&shop.server, 1).await;
    let customer = shop.customer().await;
    let mut events = Vec::new();
    for _ in 0..20 {
        let purchase = shop.checkout(&customer, json!({"credits": 50})).await;
        events.extend([purchase.paid(), purchase.refunded(20, 1)]);
    }
    // Until the first of them is there, nothing would be cast.
    shop.sell_credits(&customer, 50).await;
    let teller = shop.server.anonymous().clone();
    let telling = storm(4, events.len(), move |number| {
        let (teller, event) = (teller.clone(), events[number].clone());
        async move { drop(event.deliver(&teller).await.expect(200)) }
    });
    let caster: Customer = customer.clone();
    let casting = storm(16, 300, move |_| {
        let client = caster.client();
        async move { cast_paid(&client).await.status == 200 }
    });
    let (_, cast) = tokio::join!(telling, casting);
    let cast = cast.into_iter().filter(|succeeded| *succeeded).count() as i64;
    let left = credits(&customer).await - credits_owed(&customer).await;
    assert_eq!(left, 50 + 20 * 30 - cast, "after {cast} casts");
    assert_eq!(usage_cents(&customer.usage("").await), (cast, cast, 0));
}

both!(a_refund_of_nothing_or_of_a_stranger_takes_nothing);
async fn a_refund_of_nothing_or_of_a_stranger_takes_nothing(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let purchase = shop.sell_credits(&customer, 100).await;
    let stranger = Purchase::somebody_elses();
    let others = purchase.but(json!({"customer": fresh("cus")}));
    for event in [
        purchase.refunded(0, 1),
        purchase.refunded(-50, 1),
        stranger.refunded(100, 1),
        stranger.dispute_opened(1),
        others.refunded(100, 1),
        purchase.but(json!({"amount": -100})).dispute_opened(1),
        purchase.but(json!({"amount": 0})).dispute_closed("lost", 1),
    ] {
        shop.tell(&event).await;
        assert_eq!(credits(&customer).await, 100, "after {}", event.body);
    }
    // More than was paid takes no more than was granted.
    shop.tell(&purchase.refunded(100_000, 2)).await;
    assert_eq!((credits(&customer).await, credits_owed(&customer).await), (0, 0));
}
