//! Quotas under load: many callers at once, several servers, and `kill -9`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::{
    harness::{Answer, Backend, Client, both, eventually, postgres, storm},
    quota::{check, debit, debiting},
    users::House,
};

async fn credit(service: &Client, order: &str, chat: i64) {
    let body = json!({
        "order_id": order, "user_id": "ann", "plan_code": "free", "units_chat": chat, "units_tpl": 0
    });
    service.post("/internal/billing/quota/credit", body).await.expect(200);
}

async fn chat_left(service: &Client) -> i64 {
    check(service, "ann").await["remain_chat"].as_i64().unwrap()
}

/// 64 that debit at these servers, each name twice, more than there is.
async fn assert_exact(clients: Vec<Client>) {
    const UNITS: i64 = 7;
    credit(&clients[0], "o-1", 1_900).await;
    let servers = clients.clone();
    let answers: Vec<(usize, Answer)> =
        storm(64, 800, move |number| {
            let client = servers[(number / 2) % servers.len()].clone();
            let reference = number % 400;
            async move {
                (reference, debit(&client, "ann", "chat_tokens", UNITS, &format!("r-{reference}")).await)
            }
        })
        .await;
    let mut left_after: BTreeMap<usize, BTreeSet<i64>> = BTreeMap::new();
    for (reference, answer) in &answers {
        match answer.status {
            200 => drop(
                left_after
                    .entry(*reference)
                    .or_default()
                    .insert(answer.body()["remain_chat"].as_i64().unwrap()),
            ),
            _ => drop(answer.expect_code(402, "quota_exceeded")),
        }
    }
    assert!(left_after.values().all(|left| left.len() == 1), "a name has two answers: {left_after:?}");
    // 285 of 400 fit into 2,000, and each took its own part.
    let left: BTreeSet<i64> = left_after.values().flatten().copied().collect();
    let expected: BTreeSet<i64> = (1..=285).map(|debits| 2_000 - debits * UNITS).collect();
    assert_eq!(left, expected);
    assert_eq!(left_after.len(), 285);
    for client in &clients {
        assert_eq!(chat_left(client).await, 2_000 - 285 * UNITS);
    }
}

both!(of_64_that_debit_at_once_each_gets_what_there_is_and_none_more);
async fn of_64_that_debit_at_once_each_gets_what_there_is_and_none_more(backend: Backend) {
    let house = House::open(&backend).await;
    assert_exact(vec![house.service()]).await;
}

postgres!(of_64_that_debit_at_once_on_two_replicas_each_gets_what_there_is_and_none_more);
async fn of_64_that_debit_at_once_on_two_replicas_each_gets_what_there_is_and_none_more(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_exact(vec![one.service(), two.service()]).await;
}

/// A debit that was answered: its units, and the answer.
type Debits = BTreeMap<String, (i64, String)>;

fn load(
    service: &Client,
    round: usize,
    answered: &Arc<Mutex<Debits>>,
) -> (Vec<tokio::task::JoinHandle<()>>, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let clients = (0..32).map(|client| {
        let (service, answered, count) = (service.clone(), answered.clone(), count.clone());
        tokio::spawn(async move {
            for number in 0.. {
                let (reference, units) = (format!("r-{round}-{client}-{number}"), number % 5 + 1);
                let call = service.call("POST", "/internal/billing/quota/debit");
                let call = call.json(&debiting("ann", "chat_tokens", units, &reference));
                let Ok(answer) = call.try_send().await else { return };
                answer.expect(200);
                answered.lock().unwrap().insert(reference, (units, answer.text));
                count.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    (clients.collect(), count)
}

both!(what_was_debited_before_a_kill_is_debited_once);
async fn what_was_debited_before_a_kill_is_debited_once(backend: Backend) {
    const CREDITED: i64 = 10_000_000;
    let mut house = House::open(&backend).await;
    let service = house.service();
    credit(&service, "o-1", CREDITED).await;
    let answered = Arc::new(Mutex::new(Debits::new()));
    for round in 1..=3 {
        let (clients, count) = load(&service, round, &answered);
        eventually(Duration::from_secs(60), "some load", || async {
            (count.load(Ordering::Relaxed) > 150 * round).then_some(())
        })
        .await;
        house.server.kill9();
        for client in clients {
            client.await.unwrap();
        }
        house.server.restart().await;
        // Of each name that the books know the content tells how much it took.
        let known =
            backend.texts("SELECT id || ' ' || content FROM quota_references WHERE id LIKE 'r-%'").await;
        let in_books: BTreeMap<String, i64> = known
            .into_iter()
            .map(|line| {
                let line = line.unwrap();
                let words: Vec<&str> = line.split(' ').collect();
                assert_eq!((words[1], words[3], words[4]), ("debit", "of", "chat_tokens"), "{line}");
                (words[0].to_owned(), words[2].parse().unwrap())
            })
            .collect();
        let answered = answered.lock().unwrap().clone();
        for (reference, (units, _)) in &answered {
            assert_eq!(in_books.get(reference), Some(units), "{reference} was answered");
        }
        let stands = 100 + CREDITED - in_books.values().sum::<i64>();
        assert_eq!(chat_left(&service).await, stands);
        for (reference, (units, first)) in &answered {
            let again = debit(&service, "ann", "chat_tokens", *units, reference).await;
            assert_eq!((again.status, &again.text), (200, first), "{reference}");
        }
        assert_eq!(chat_left(&service).await, stands, "asking again takes nothing");
    }
}
