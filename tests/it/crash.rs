//! `kill -9` under load: what was answered is in the books, once, and nothing stays held.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{
    Backend, Client, Customer, Options, Server, Upstream, all_casts, all_of, both, eventually, usage_cents,
};

/// What one spell costs, so that the books can be added up from the casts alone.
const PRICES: [(&str, i64); 3] = [("echo", 1), ("post", 3), ("coin", 7)];

/// A cast that was answered, and with what.
#[derive(Clone)]
struct Answered {
    id: String,
    status: u16,
}

/// 32 clients that cast and hold until the server is gone.
fn load(
    customer: &Customer,
    answered: &Arc<Mutex<Vec<Answered>>>,
) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let client_task = |number: usize| {
        let (client, answered, count) = (customer.client(), answered.clone(), count.clone());
        async move {
            for round in 0.. {
                let call = match (number + round) % 8 {
                    0 => client.call("POST", "/v1/holds").json(&json!({"amount_cents": 5, "ttl_seconds": 1})),
                    1 | 2 => client.casting("post", json!(round)),
                    3 => client.casting("coin", json!(round)),
                    4 => client
                        .casting("echo", json!(round))
                        .header("Idempotency-Key", &uuid::Uuid::now_v7().to_string()),
                    _ => client.casting("echo", json!(round)),
                };
                let Ok(answer) = call.try_send().await else { return };
                match answer.status {
                    200 | 502 => {
                        let id = answer.body()["id"].as_str().unwrap().to_owned();
                        answered.lock().unwrap().push(Answered { id, status: answer.status });
                    }
                    201 => {}
                    409 => drop(answer.expect_code(409, "in_progress")),
                    _ => panic!("{answer}"),
                }
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    ((0..32).map(|number| tokio::spawn(client_task(number))).collect(), count)
}

async fn until_nothing_is_held(client: &Client) {
    eventually(Duration::from_secs(120), "nothing is held", || async {
        (client.usage("").await["reserved_cents"] == 0).then_some(())
    })
    .await;
}

both!(what_was_answered_before_a_kill_is_in_the_books_once);
async fn what_was_answered_before_a_kill_is_in_the_books_once(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    for (name, cents) in &PRICES[1..] {
        let spell = json!({
            "kind": "http", "url": upstream.url(&format!("/{}", if *name == "post" { "json" } else { "coin" })),
            "timeout_ms": 1_000, "price": {"flat_cents": cents}
        });
        server.admin().put(&format!("/v1/spells/{name}"), spell).await.expect(201);
    }
    let customer = server.customer("acme").await;
    customer.limit("monthly", 1_000_000).await;
    customer.limit("lifetime", 1_000_000).await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    for kill in 1..=3 {
        let (clients, count) = load(&customer, &answered);
        eventually(Duration::from_secs(60), "some load", || async {
            (count.load(Ordering::Relaxed) > 150 * kill).then_some(())
        })
        .await;
        server.kill9();
        for client in clients {
            client.await.unwrap();
        }
        server.restart().await;
        let answered = answered.lock().unwrap().clone();
        assert_books_are_exact(&customer, &answered).await;
    }
    until_nothing_is_held(&customer).await;
    let answered = answered.lock().unwrap().clone();
    assert_books_are_exact(&customer, &answered).await;
    // And it still stops where it should.
    let (_, spent, _) = usage_cents(&customer.usage("").await);
    customer.limit("monthly", spent + 1).await;
    customer.echo().await.expect(200);
    customer.echo().await.expect_code(402, "budget_exceeded");
}

async fn assert_books_are_exact(customer: &Customer, answered: &[Answered]) {
    let casts = all_casts(customer).await;
    let booked: BTreeMap<&str, &Value> =
        casts.iter().map(|cast| (cast["id"].as_str().unwrap(), cast)).collect();
    assert_eq!(booked.len(), casts.len(), "a cast is in the books twice");
    let ids: HashSet<&str> = answered.iter().map(|answered| answered.id.as_str()).collect();
    assert_eq!(ids.len(), answered.len(), "two casts have one id");
    for Answered { id, status } in answered {
        let cast =
            booked.get(id.as_str()).unwrap_or_else(|| panic!("{id} was answered and is not in the books"));
        assert_eq!(cast["status"] == "COMPLETED", *status == 200, "answered with {status}: {cast}");
    }
    let completed: Vec<&Value> = casts.iter().filter(|cast| cast["status"] == "COMPLETED").collect();
    let mut spent = 0;
    for (name, cents) in PRICES {
        let query = format!("/v1/casts?limit=1000&status=COMPLETED&spell={name}");
        let of_spell = all_of(customer, &query).await;
        assert!(of_spell.iter().all(|cast| cast["cost_cents"] == cents), "{name} costs {cents}");
        spent += cents * of_spell.len() as i64;
    }
    assert_eq!(completed.iter().map(|cast| cast["cost_cents"].as_i64().unwrap()).sum::<i64>(), spent);
    for query in ["?period=monthly", "?period=lifetime"] {
        let (calls, cents, _) = usage_cents(&customer.usage(query).await);
        assert_eq!((calls, cents), (completed.len() as i64, spent), "{query}");
    }
}

both!(what_a_killed_process_held_comes_back_when_it_expires);
async fn what_a_killed_process_held_comes_back_when_it_expires(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    let gate = json!({
        "kind": "http", "url": upstream.url("/gate"), "timeout_ms": 1_000, "price": {"flat_cents": 10}
    });
    server.admin().put("/v1/spells/gate", gate).await.expect(201);
    let customer = server.customer("acme").await;
    customer.limit("monthly", 110).await;
    let running: Vec<_> =
        (0..10).map(|_| tokio::spawn(customer.casting("gate", json!(1)).try_send())).collect();
    upstream.wait_for_calls("/gate", 10).await;
    server.kill9();
    for cast in running {
        assert!(cast.await.unwrap().is_err(), "the process was gone");
    }
    server.restart().await;
    // It is either still held or already back, and never spent.
    let (calls, spent, held) = usage_cents(&customer.usage("").await);
    assert_eq!((calls, spent), (0, 0));
    assert!([0, 100].contains(&held), "{held}");
    until_nothing_is_held(&customer).await;
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
    let casts = all_casts(&customer).await;
    assert!(casts.iter().all(|cast| cast["status"] != "COMPLETED"), "{casts:?}");
    for _ in 0..110 {
        customer.echo().await.expect(200);
    }
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_hard_limit_holds_across_a_kill);
async fn a_hard_limit_holds_across_a_kill(backend: Backend) {
    let mut server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 300).await;
    let answered = Arc::new(AtomicUsize::new(0));
    for _ in 0..3 {
        let before = answered.load(Ordering::Relaxed);
        let clients: Vec<_> = (0..32)
            .map(|number| {
                let (client, answered) = (customer.client(), answered.clone());
                tokio::spawn(async move {
                    while let Ok(answer) = client.casting("echo", json!(number)).try_send().await {
                        answer.expect(200);
                        if answered.fetch_add(1, Ordering::Relaxed) > before + 80 {
                            return;
                        }
                    }
                })
            })
            .collect();
        eventually(Duration::from_secs(60), "some casts", || async {
            (answered.load(Ordering::Relaxed) > before + 40).then_some(())
        })
        .await;
        server.kill9();
        for client in clients {
            client.await.unwrap();
        }
        server.restart().await;
        let (calls, spent, _) = usage_cents(&customer.usage("").await);
        assert_eq!(calls, spent);
        assert!(spent <= 300 && spent >= answered.load(Ordering::Relaxed) as i64, "{spent} spent");
    }
    let (_, spent, _) = usage_cents(&customer.usage("").await);
    for _ in spent..300 {
        customer.echo().await.expect(200);
    }
    customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!(usage_cents(&customer.usage("").await), (300, 300, 0));
}
