//! Credits that are added to wallets: by whom, for whom, and once.

use serde_json::json;

use crate::{
    harness::{Backend, Client, Options, both, postgres, shape, storm},
    pricing::refused,
    stripe_events::{Event, tell},
    stripe_server::{StripeServer, Trouble},
    users::{House, lines},
    wallet::{ADD, addition, allocate, balance, holding},
};

both!(a_service_and_an_admin_add_credits_for_a_user_or_an_account);
async fn a_service_and_an_admin_add_credits_for_a_user_or_an_account(backend: Backend) {
    let house = House::open(&backend).await;
    let customer = house.server.customer("acme").await;
    let mut transaction = 0;
    for client in [house.service(), house.server.admin()] {
        for (credits, user) in [(500, Some("ann")), (70, Some("Bob 株式会社"))] {
            transaction += 1;
            let before = balance(&house.user(user.unwrap())).await["credits"].as_i64().unwrap();
            let added =
                client.post(ADD, addition(credits, &format!("t-{transaction}"), user)).await.expect(200);
            shape(&added, &["success", "new_balance"]);
            assert_eq!(added["new_balance"], before + credits);
            assert_eq!(balance(&house.user(user.unwrap())).await["credits"], before + credits);
        }
        transaction += 1;
        let path = format!("{ADD}?account_id={}", customer.account_id);
        client.post(&path, addition(25, &format!("t-{transaction}"), None)).await.expect(200);
    }
    assert_eq!(balance(&customer).await, holding(50, json!({})));
    // To add is to spend nothing of one's own, and to be heard of makes the user.
    assert_eq!(balance(&house.server.admin()).await, holding(0, json!({})));
    house.give("never seen", 3).await;
    assert_eq!(balance(&house.user("never seen")).await, holding(3, json!({})));
    let nowhere = format!("{ADD}?account_id=acct_never");
    refused(&house.service().post(&nowhere, addition(1, "t-x", None)).await, 404, "NOT_FOUND");
    refused(&house.service().post(ADD, addition(1, "t-x", Some(""))).await, 400, "BAD_REQUEST");
    // A service has no wallet of its own, an admin's key has its account's.
    refused(&house.service().post(ADD, addition(1, "t-x", None)).await, 403, "FORBIDDEN");
    // Of two that are named nobody knows who is meant.
    let other = format!("{ADD}?account_id={}", customer.account_id);
    refused(&house.service().post(&other, addition(1, "t-x", Some("ann"))).await, 400, "BAD_REQUEST");
    house.service().post(ADD, addition(1, "t-x", Some("ann"))).await.expect(200);
}

both!(nobody_gets_credits_by_saying_so);
async fn nobody_gets_credits_by_saying_so(backend: Backend) {
    let house = House::open(&backend).await;
    let (ann, customer) = (house.user("ann"), house.server.customer("acme").await);
    let reader = customer.another_key(&house.server.admin(), json!({"scopes": ["read", "cast"]})).await;
    for client in [&ann, &customer.client(), &reader.client()] {
        for body in [
            addition(1_000, "t-1", None),
            json!({"credits": 1_000, "purchase_record": {
                "productId": "p", "transactionId": "t-1", "receipt": "paid", "verified": true,
                "verified_by": "admin"
            }}),
            // Nobody has told this server how to verify these.
            json!({"credits": 1_000, "purchase_record": {
                "productId": "p", "transactionId": "t-1", "signedTransaction": "a.b.c"
            }}),
            json!({"credits": 1_000, "purchase_record": {
                "productId": "p", "transactionId": "t-1", "purchaseToken": "x"
            }}),
            json!({"credits": 1_000, "purchase_record": {"productId": "p", "transactionId": "pi_123"}}),
            // Not even for oneself.
            addition(1_000, "t-1", Some("ann")),
            addition(1_000, "t-1", Some("bob")),
        ] {
            refused(&client.post(ADD, body).await, 403, "FORBIDDEN");
        }
        assert_eq!(balance(client).await, holding(0, json!({})));
    }
    let anyone = house.server.anonymous();
    assert_eq!(
        refused(&anyone.post(ADD, addition(1, "t-1", None)).await, 403, "FORBIDDEN"),
        "Not authenticated"
    );
    for wrong in [
        anyone.with_header("X-Internal-Key", "wrong"),
        anyone.with_key("a.b.c"),
        anyone.with_key("sk_live_x"),
    ] {
        refused(&wrong.post(ADD, addition(1, "t-1", Some("ann"))).await, 401, "UNAUTHORIZED");
    }
    let others = format!("{ADD}?account_id={}", customer.account_id);
    refused(&ann.post(&others, addition(1, "t-1", None)).await, 404, "NOT_FOUND");
    // The transaction was never used up by all that.
    house.service().post(ADD, addition(1_000, "t-1", Some("ann"))).await.expect(200);
}

both!(a_transaction_is_credited_once_by_whomever_it_is_brought);
async fn a_transaction_is_credited_once_by_whomever_it_is_brought(backend: Backend) {
    let mut house = House::open(&backend).await;
    let (service, customer) = (house.service(), house.server.customer("acme").await);
    service.post(ADD, addition(1_000, "t-1", Some("ann"))).await.expect(200);
    let again = async || {
        let for_account = format!("{ADD}?account_id={}", customer.account_id);
        for (client, path, body) in [
            (&service, ADD, addition(1_000, "t-1", Some("ann"))),
            (&service, ADD, addition(1_000, "t-1", Some("bob"))),
            (&service, ADD, addition(7, "t-1", Some("ann"))),
            (&house.server.admin(), ADD, addition(1_000, "t-1", Some("bob"))),
            (&house.server.admin(), &for_account, addition(1_000, "t-1", None)),
        ] {
            refused(&client.post(path, body).await, 409, "CONFLICT");
        }
        assert_eq!(balance(&house.user("ann")).await, holding(1_000, json!({})));
        assert_eq!(balance(&house.user("bob")).await, holding(0, json!({})));
        assert_eq!(balance(&customer).await, holding(0, json!({})));
        assert_eq!(lines(&house.user("ann")).await.len(), 1);
        assert_eq!(lines(&house.user("bob")).await.len(), 0);
    };
    again().await;
    house.server.kill9();
    house.server.restart().await;
    let again_later = service.post(ADD, addition(1_000, "t-1", Some("bob"))).await;
    refused(&again_later, 409, "CONFLICT");
    assert_eq!(balance(&house.user("ann")).await, holding(1_000, json!({})));
}

/// Twelve times the same purchase, at once, at these servers.
async fn assert_one_of_twelve(house: &House, clients: Vec<Client>) {
    for round in 0..5 {
        let clients = clients.clone();
        let answers = storm(12, 12, move |number| {
            let client = clients[number % clients.len()].clone();
            // Some for another user: the number is what counts.
            let user = if number % 3 == 0 { "bob" } else { "ann" };
            async move { client.post(ADD, addition(100, &format!("t-{round}"), Some(user))).await }
        })
        .await;
        for answer in answers.iter().filter(|answer| answer.status != 200) {
            refused(answer, 409, "CONFLICT");
        }
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1, "in round {round}");
        let mut total = 0;
        for user in ["ann", "bob"] {
            let user = house.user(user);
            let credits = balance(&user).await["credits"].as_i64().unwrap();
            assert_eq!(lines(&user).await.len() as i64 * 100, credits);
            total += credits;
        }
        assert_eq!(total, 100 * (round + 1));
    }
}

both!(of_twelve_equal_purchases_at_once_one_is_credited);
async fn of_twelve_equal_purchases_at_once_one_is_credited(backend: Backend) {
    let house = House::open(&backend).await;
    assert_one_of_twelve(&house, vec![house.service()]).await;
}

postgres!(of_twelve_equal_purchases_at_once_on_two_replicas_one_is_credited);
async fn of_twelve_equal_purchases_at_once_on_two_replicas_one_is_credited(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_one_of_twelve(&one, vec![one.service(), two.service()]).await;
}

both!(credits_beyond_what_the_books_hold_are_400);
async fn credits_beyond_what_the_books_hold_are_400(backend: Backend) {
    // A credit is worth so much that a few of the largest additions fill an account.
    let house = House::open_with(Options::on(&backend).var("CREDIT_PRICE_CENTS", 400)).await;
    let mut added = 0;
    let refusal = loop {
        let body = addition(1_000_000_000, &format!("t-{added}"), Some("ann"));
        match house.service().post(ADD, body).await {
            answer if answer.status == 200 => added += 1,
            answer => break answer,
        }
    };
    assert_eq!(added, 2, "9,223,372,036 dollars fit");
    refused(&refusal, 400, "BAD_REQUEST");
    assert_eq!(balance(&house.user("ann")).await, holding(2_000_000_000, json!({})));
    // It is not used up, and what fits still does.
    house.service().post(ADD, addition(1, "t-2", Some("ann"))).await.expect(200);
    refused(&allocate(&house.user("ann"), &[("gpt-5-mini", 9_000_000_000_000)]).await, 400, "BAD_REQUEST");
}

both!(what_stripe_took_from_a_user_is_credited_once_and_taken_back_with_the_money);
async fn what_stripe_took_from_a_user_is_credited_once_and_taken_back_with_the_money(backend: Backend) {
    let stripe = StripeServer::start().await;
    let house = House::open_with(stripe.sells_for(Options::on(&backend))).await;
    let customer = house.server.customer("acme").await;
    let paid = |id: &str, metadata: serde_json::Value| {
        let intent = json!({
            "id": id, "object": "payment_intent", "status": "succeeded", "amount": 300,
            "amount_received": 300, "currency": "usd", "metadata": metadata,
            "latest_charge": {"id": format!("ch_{id}"), "amount_refunded": 0, "disputed": false},
        });
        stripe.always(&format!("/v1/payment_intents/{id}"), Some(Trouble::Status(200, intent)));
    };
    paid("pi_ann", json!({"user_id": "ann"}));
    paid("pi_acme", json!({"account_id": customer.account_id}));
    // What this server's own Checkout took is credited by its webhook.
    paid("pi_checkout", json!({"purchase_id": "pur_1", "user_id": "ann"}));
    let (ann, bob) = (house.user("ann"), house.user("bob"));
    refused(&bob.post(ADD, addition(300, "pi_ann", None)).await, 403, "FORBIDDEN");
    refused(&ann.post(ADD, addition(301, "pi_ann", None)).await, 400, "BAD_REQUEST");
    refused(&ann.post(ADD, addition(300, "pi_checkout", None)).await, 403, "FORBIDDEN");
    refused(&ann.post(ADD, addition(300, "pi_acme", None)).await, 403, "FORBIDDEN");
    let failing = Trouble::Status(500, json!({"error": {"type": "api_error"}}));
    stripe.always("/v1/payment_intents/pi_down", Some(failing));
    refused(&ann.post(ADD, addition(300, "pi_down", None)).await, 502, "BAD_GATEWAY");
    assert_eq!(balance(&ann).await, holding(0, json!({})));

    let added = ann.post(ADD, addition(300, "pi_ann", None)).await.expect(200);
    assert_eq!(added, json!({"success": true, "new_balance": 300}));
    refused(&ann.post(ADD, addition(300, "pi_ann", None)).await, 409, "CONFLICT");
    customer.post(ADD, addition(300, "pi_acme", None)).await.expect(200);
    assert_eq!(balance(&customer).await, holding(300, json!({})));

    // The app's own customer, of whom this server never heard.
    let refund = |refunded: i64| {
        let charge = json!({"id": "ch_pi_ann", "object": "charge", "customer": "cus_of_the_app", "amount": 300,
                            "payment_intent": "pi_ann", "amount_refunded": refunded, "currency": "usd"});
        Event::about("charge.refunded", &charge)
    };
    for (refunded, left) in [(100, 200), (100, 200), (300, 0)] {
        tell(house.server.anonymous(), &refund(refunded)).await;
        assert_eq!(balance(&ann).await, holding(left, json!({})));
    }
    assert_eq!(balance(&customer).await, holding(300, json!({})));
}

both!(many_purchases_of_one_user_at_once_are_all_added_and_casts_go_on);
async fn many_purchases_of_one_user_at_once_are_all_added_and_casts_go_on(backend: Backend) {
    let house = House::open(&backend).await;
    let (service, caster) = (house.service(), house.server.customer("acme").await.client());
    let answers = storm(16, 32, move |number| {
        let (service, caster) = (service.clone(), caster.clone());
        async move {
            match number % 4 {
                0 => caster.cast("echo", json!({"number": number})).await,
                _ => service.post(ADD, addition(10, &format!("t-{number}"), Some("ann"))).await,
            }
        }
    })
    .await;
    for answer in &answers {
        answer.expect(200);
    }
    assert_eq!(balance(&house.user("ann")).await, holding(240, json!({})));
}
