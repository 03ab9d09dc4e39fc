//! The wallet under load: many callers at once, several servers, and `kill -9`.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::{Backend, Client, both, eventually, postgres, storm},
    pricing::refused,
    users::{House, consumed, lines},
};

const MODEL: &str = "gpt-5-mini";
/// What a credit makes of them.
const TOKENS: i64 = 5_000;

fn allocation(credits: i64) -> Value {
    json!({"allocations": [{"model_id": MODEL, "credits": credits}]})
}

fn consumption(tokens: i64) -> Value {
    json!({"model_id": MODEL, "input_tokens": tokens - 1, "output_tokens": 1})
}

/// Credits, and tokens of [`MODEL`].
async fn balance(client: &Client) -> (i64, i64) {
    let balance = client.get("/api/billing/balance").await.expect(200);
    let tokens = balance["allocated_tokens"][MODEL].as_i64();
    (balance["credits"].as_i64().unwrap(), tokens.unwrap_or(0))
}

/// Sums of a wallet's lines by their type, and how many there are of each.
async fn sums(client: &Client) -> BTreeMap<String, (i64, i64)> {
    let mut sums: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    for line in lines(client).await {
        let sum = sums.entry(line["type"].as_str().unwrap().to_owned()).or_default();
        *sum = (sum.0 + line["amount"].as_i64().unwrap(), sum.1 + 1);
    }
    sums
}

/// 64 that allocate and consume at these servers, more than there is.
async fn assert_exact(house: &House, clients: Vec<Client>) {
    const CREDITS: i64 = 100;
    const PART: i64 = 700;
    house.give("ann", CREDITS).await;
    let at = |clients: &[Client], number: usize| clients[number % clients.len()].clone();
    let both = clients.clone();
    let mixed = storm(64, 600, move |number| {
        let client = at(&both, number);
        async move {
            match number % 3 {
                0 => (0, client.post("/api/billing/credits/allocate", allocation(1)).await),
                _ => (1, client.post("/api/billing/tokens/consume", consumption(PART)).await),
            }
        }
    })
    .await;
    let drained = storm(64, 800, move |number| {
        let client = at(&clients, number);
        async move { (1, client.post("/api/billing/tokens/consume", consumption(PART)).await) }
    })
    .await;
    let (mut allocated, mut taken) = (0, 0);
    for (what, answer) in mixed.iter().chain(&drained) {
        match (answer.status, what) {
            (200, 0) => allocated += 1,
            (200, _) => taken += 1,
            _ => assert!(refused(answer, 400, "BAD_REQUEST").starts_with("Insufficient"), "{answer}"),
        }
    }
    let left: Vec<i64> = mixed
        .iter()
        .chain(&drained)
        .filter(|(what, answer)| *what == 1 && answer.status == 200)
        .map(|(_, answer)| consumed(answer))
        .collect();
    assert!(left.iter().all(|left| *left >= 0), "{left:?}");
    // 200 asked for one of 100, and 1,200 for a part of what those made.
    assert_eq!((allocated, taken), (CREDITS, CREDITS * TOKENS / PART));
    let ann = house.user("ann");
    assert_eq!(balance(&ann).await, (0, CREDITS * TOKENS % PART));
    let sums = sums(&ann).await;
    assert_eq!(sums["purchase"], (CREDITS, 1));
    assert_eq!(sums["allocation"], (CREDITS, CREDITS));
    assert_eq!(sums["consumption"], (taken * PART, taken));
}

both!(of_64_at_once_each_gets_what_there_is_and_none_more);
async fn of_64_at_once_each_gets_what_there_is_and_none_more(backend: Backend) {
    let house = House::open(&backend).await;
    assert_exact(&house, vec![house.user("ann")]).await;
}

postgres!(of_64_at_once_on_two_replicas_each_gets_what_there_is_and_none_more);
async fn of_64_at_once_on_two_replicas_each_gets_what_there_is_and_none_more(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_exact(&one, vec![one.user("ann"), two.user("ann")]).await;
}

/// A capacity is kept by many who fill it at once, from credits that suffice for more.
async fn assert_capacity_is_kept(house: &House, clients: Vec<Client>) {
    house.give("ann", 2_000).await;
    let answers = storm(32, 80, move |number| {
        let client = clients[number % clients.len()].clone();
        // 100,000 tokens each, of two models: 50 of them fit.
        let (model, credits) = if number % 2 == 0 { (MODEL, 20) } else { ("gemini-2.5-flash", 25) };
        let body = json!({"allocations": [{"model_id": model, "credits": credits}]});
        async move { client.post("/api/billing/credits/allocate", body).await }
    })
    .await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 50);
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        let told = refused(answer, 400, "BAD_REQUEST");
        assert_eq!(
            told,
            "Over the capacity of quick tokens. Held: 5000000, asked for: 100000, capacity: 5000000"
        );
    }
    let total = house.user("ann").get("/api/billing/balance/category/quick").await.expect(200);
    assert_eq!(total["total_tokens"], 5_000_000);
}

both!(a_capacity_is_filled_to_the_token_by_many_at_once);
async fn a_capacity_is_filled_to_the_token_by_many_at_once(backend: Backend) {
    let house = House::open(&backend).await;
    assert_capacity_is_kept(&house, vec![house.user("ann")]).await;
}

postgres!(a_capacity_is_filled_to_the_token_by_many_on_two_replicas);
async fn a_capacity_is_filled_to_the_token_by_many_on_two_replicas(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_capacity_is_kept(&one, vec![one.user("ann"), two.user("ann")]).await;
}

/// Tokens that were consumed, and what its answer said was left.
type Consumed = (i64, i64);

fn load(
    client: &Client,
    answered: &Arc<Mutex<Vec<Consumed>>>,
) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let clients = (0..32).map(|number: i64| {
        let (client, answered, count) = (client.clone(), answered.clone(), count.clone());
        tokio::spawn(async move {
            for round in 1.. {
                let tokens = number * 3 + round % 7 + 1;
                let call = client.call("POST", "/api/billing/tokens/consume").json(&consumption(tokens));
                let Ok(answer) = call.try_send().await else { return };
                answered.lock().unwrap().push((tokens, consumed(&answer)));
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    (clients.collect(), count)
}

both!(what_was_answered_before_a_kill_is_in_the_wallet_once);
async fn what_was_answered_before_a_kill_is_in_the_wallet_once(backend: Backend) {
    const CREDITS: i64 = 1_000;
    let mut house = House::open(&backend).await;
    house.give("ann", CREDITS).await;
    let ann = house.user("ann");
    ann.post("/api/billing/credits/allocate", allocation(CREDITS)).await.expect(200);
    let answered = Arc::new(Mutex::new(Vec::new()));
    for kill in 1..=3 {
        let (clients, count) = load(&ann, &answered);
        eventually(Duration::from_secs(60), "some load", || async {
            (count.load(Ordering::Relaxed) > 150 * kill).then_some(())
        })
        .await;
        house.server.kill9();
        for client in clients {
            client.await.unwrap();
        }
        house.server.restart().await;
        // Each line as it was taken, and what was left after it.
        let mut left = CREDITS * TOKENS;
        let mut taken: BTreeMap<i64, i64> = BTreeMap::new();
        for line in lines(&ann).await.iter().rev().filter(|line| line["type"] == "consumption") {
            assert_eq!(line["model_id"], MODEL);
            let tokens = line["amount"].as_i64().unwrap();
            left -= tokens;
            taken.insert(left, tokens);
        }
        assert_eq!(balance(&ann).await, (0, left), "what was allocated less what the lines say");
        for (tokens, left) in answered.lock().unwrap().iter() {
            assert_eq!(taken.get(left), Some(tokens), "{left} left was answered and is not in the lines");
        }
        let total = answered.lock().unwrap().len();
        assert!(total <= taken.len(), "{total} were answered, {} are in the lines", taken.len());
    }
}
