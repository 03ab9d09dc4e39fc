//! A hard limit is hard: whoever comes at once, from however many processes.

use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Client, Options, Server, Upstream, all_casts, both, postgres, storm, usage_cents,
};

/// How many of them were 200; all others must be the refusal of that limit.
fn succeeded(answers: &[Answer], hard_limit_cents: i64) -> usize {
    let refused = answers.iter().filter(|answer| answer.status != 200);
    for answer in refused {
        let refusal = answer.expect_code(402, "budget_exceeded");
        assert_eq!(refusal["hard_limit_cents"], hard_limit_cents, "{refusal}");
    }
    answers.iter().filter(|answer| answer.status == 200).count()
}

async fn assert_spent_exactly(client: &Client, cents: i64) {
    assert_eq!(usage_cents(&client.usage("").await), (cents, cents, 0));
    let casts = all_casts(client).await;
    assert_eq!(casts.iter().filter(|cast| cast["status"] == "COMPLETED").count(), cents as usize);
}

both!(of_600_casts_by_64_clients_under_100_cents_exactly_100_succeed);
async fn of_600_casts_by_64_clients_under_100_cents_exactly_100_succeed(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("crowd").await;
    customer.limit("monthly", 100).await;
    let client = customer.client();
    let answers = storm(64, 600, move |number| {
        let client = client.clone();
        async move { client.cast("echo", json!(number)).await }
    })
    .await;
    assert_eq!(succeeded(&answers, 100), 100);
    assert_spent_exactly(&customer, 100).await;
}

postgres!(of_600_casts_over_three_processes_exactly_100_succeed);
async fn of_600_casts_over_three_processes_exactly_100_succeed(backend: Backend) {
    let options = Options::on(&backend).with_redis();
    let (one, two, three) = tokio::join!(
        Server::start(options.clone()),
        Server::start(options.clone()),
        Server::start(options.clone())
    );
    let customer = one.customer("crowd").await;
    customer.limit("daily", 100).await;
    let clients: Vec<Client> =
        [&one, &two, &three].iter().map(|server| customer.at(server.anonymous())).collect();
    let answers = storm(64, 600, {
        let clients = clients.clone();
        move |number| {
            let client = clients[number % 3].clone();
            async move { client.cast("echo", json!(number)).await }
        }
    })
    .await;
    assert_eq!(succeeded(&answers, 100), 100);
    for client in &clients {
        assert_spent_exactly(client, 100).await;
    }
}

both!(casts_that_wait_for_an_upstream_hold_what_they_may_cost);
async fn casts_that_wait_for_an_upstream_hold_what_they_may_cost(backend: Backend) {
    let server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    server.admin().put("/v1/spells/gate", upstream.spell("/gate")).await.expect(201);
    let customer = server.customer("crowd").await;
    customer.limit("monthly", 10).await;
    let client = customer.client();
    let running = tokio::spawn(storm(32, 32, move |number| {
        let client = client.clone();
        async move { client.cast("gate", json!(number)).await }
    }));
    upstream.wait_for_calls("/gate", 10).await;
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((0, 0, 10), &json!(0)));
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["spent_cents"], &refusal["reserved_cents"]), (&json!(0), &json!(10)));
    upstream.open_gate();
    assert_eq!(succeeded(&running.await.unwrap(), 10), 10);
    assert_eq!(upstream.calls("/gate"), 10, "what was refused never reached the upstream");
    assert_spent_exactly(&customer, 10).await;
}

both!(casts_that_fail_give_back_what_they_held_and_nothing_passes_the_limit);
async fn casts_that_fail_give_back_what_they_held_and_nothing_passes_the_limit(backend: Backend) {
    let server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    server.admin().put("/v1/spells/coin", upstream.spell("/coin")).await.expect(201);
    let customer = server.customer("crowd").await;
    customer.limit("weekly", 20).await;
    let client = customer.client();
    let answers = storm(32, 300, move |number| {
        let client = client.clone();
        async move { client.cast("coin", json!(number)).await }
    })
    .await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!(count(200) + count(502) + count(402), 300);
    // Whatever was refused while a cast that then failed held the last cent: there is room for
    // exactly the rest.
    let completed = count(200);
    assert!(completed <= 20, "{completed} passed a limit of 20");
    for _ in completed..20 {
        customer.echo().await.expect(200);
    }
    customer.echo().await.expect_code(402, "budget_exceeded");
    assert_spent_exactly(&customer, 20).await;
}

both!(holds_made_at_once_never_hold_more_than_the_limit);
async fn holds_made_at_once_never_hold_more_than_the_limit(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("crowd").await;
    customer.limit("monthly", 100).await;
    let client = customer.client();
    let answers = storm(64, 300, move |_| {
        let client = client.clone();
        async move { client.post("/v1/holds", json!({"amount_cents": 3})).await }
    })
    .await;
    let (held, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!(held.len(), 33);
    for answer in refused {
        assert_eq!(answer.expect_code(402, "budget_exceeded")["requested_cents"], 3);
    }
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 99));
    // Each ends once, though two clients at once try to settle it and a third to drop it.
    let ids: Vec<String> = held.iter().map(|hold| hold.body()["id"].as_str().unwrap().to_owned()).collect();
    let client = customer.client();
    let ends = storm(48, ids.len() * 3, move |number| {
        let (client, id) = (client.clone(), ids[number / 3].clone());
        async move {
            let end = match number % 3 {
                0 => client.delete(&format!("/v1/holds/{id}")).await,
                _ => client.post(&format!("/v1/holds/{id}/settle"), json!({"amount_cents": 2})).await,
            };
            (id, end)
        }
    })
    .await;
    let mut settled: Vec<&str> = Vec::new();
    for (id, end) in &ends {
        match end.status {
            200 => settled.push(id),
            204 => {}
            _ => drop(end.expect_error(409)),
        }
    }
    settled.sort_unstable();
    settled.dedup();
    for (id, end) in &ends {
        assert!(!(end.status == 204 && settled.contains(&id.as_str())), "{id} was settled and dropped");
    }
    let settled = i64::try_from(settled.len()).unwrap();
    assert_eq!(usage_cents(&customer.usage("").await), (settled, settled * 2, 0));
}

both!(a_limit_that_is_moved_under_load_is_never_passed);
async fn a_limit_that_is_moved_under_load_is_never_passed(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("crowd").await;
    customer.limit("monthly", 0).await;
    let client = customer.client();
    let answers = storm(32, 800, move |number| {
        let client = client.clone();
        async move {
            if number % 40 == 0 {
                let limit = [150, 60, 10][number / 40 % 3];
                let budget = json!({"period": "monthly", "hard_limit_cents": limit});
                client.put("/v1/budgets", budget).await.expect(200);
                None
            } else {
                Some(client.echo().await)
            }
        }
    })
    .await;
    let casts: Vec<Answer> = answers.into_iter().flatten().collect();
    let mut completed = 0;
    for cast in &casts {
        match cast.status {
            200 => completed += 1,
            _ => {
                let refusal = cast.expect_code(402, "budget_exceeded");
                let number = |field: &str| refusal[field].as_i64().unwrap();
                let would_be = number("spent_cents") + number("reserved_cents") + number("requested_cents");
                assert!(would_be > number("hard_limit_cents"), "{refusal}");
            }
        }
    }
    assert!(completed <= 150, "{completed} passed every limit there ever was");
    let usage: Value = customer.usage("").await;
    assert_eq!(usage_cents(&usage), (completed, completed, 0));
}
