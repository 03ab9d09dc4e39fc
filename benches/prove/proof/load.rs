//! The clients: each asks for what was drawn, asks again where it may, and keeps what it was told.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    books::{End, Record, Refusal, Scope},
    stage::EDGE,
    world::{Wanted, What, World},
};
use crate::harness::{Answer, Call, Client, storm};

const CLIENTS: usize = 24;
/// How long a client goes on asking while there is trouble.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(60);

/// The clients of one row.
pub struct Load {
    pub world: Arc<World>,
    pub wanted: Vec<Wanted>,
    /// The processes.
    pub doors: Vec<Client>,
    pub began: Instant,
    pub lasts: Duration,
    /// Keeps `Idempotency-Key`s apart.
    pub seed: u64,
}

impl Load {
    /// Asks for everything, once its time has come.
    pub async fn run(self: &Arc<Load>) -> Vec<Record> {
        let load = self.clone();
        let mut records = storm(CLIENTS, self.wanted.len(), move |number| {
            let load = load.clone();
            async move {
                let due = load.began + load.lasts.mul_f64(load.wanted[number].when);
                tokio::time::sleep_until(due.into()).await;
                (number, load.ask(number, PATIENCE).await)
            }
        })
        .await;
        records.sort_by_key(|(number, _)| *number);
        records.into_iter().map(|(_, record)| record).collect()
    }

    /// Asks once more, under their keys, for the casts that got no answer, now that nothing is held.
    pub async fn ask_again(&self, records: &mut [Record]) {
        for (number, record) in records.iter_mut().enumerate() {
            if record.keyed && matches!(record.end, End::Unknown) {
                let first_sent = record.first_sent;
                *record = Record { first_sent, ..self.ask(number, 3 * PATIENCE).await };
            }
        }
    }

    fn call(&self, number: usize, attempt: usize) -> Call {
        let wanted = &self.wanted[number];
        let door = &self.doors[(number + attempt) % self.doors.len()];
        let client = self.world.customers[wanted.account][wanted.key].at(door);
        let call = match &wanted.what {
            What::Cast { spell } => client.casting(&self.world.spells[*spell].name, json!({"n": number})),
            What::Hold { cents, ttl_seconds, .. } => client
                .call("POST", "/v1/holds")
                .json(&json!({"amount_cents": cents, "ttl_seconds": ttl_seconds})),
        };
        match wanted.key > 0 {
            true => call.header("Idempotency-Key", &format!("{}-{number}", self.seed)),
            false => call,
        }
    }

    async fn ask(&self, number: usize, patience: Duration) -> Record {
        let wanted = &self.wanted[number];
        let spell = match wanted.what {
            What::Cast { spell } => Some(spell),
            What::Hold { .. } => None,
        };
        let cents = match wanted.what {
            What::Cast { spell } => self.world.spells[spell].cents,
            What::Hold { cents, .. } => cents,
        };
        let first_sent = Instant::now();
        let mut record = Record {
            account: wanted.account,
            key: wanted.key,
            spell,
            from_credits: spell.is_some_and(|spell| self.world.spells[spell].from_credits),
            cents,
            keyed: wanted.key > 0,
            first_sent,
            last_sent: first_sent,
            answered: first_sent,
            end: End::Unknown,
            repeated: None,
        };
        for attempt in 0.. {
            record.last_sent = Instant::now();
            let answer = self.call(number, attempt).try_send().await;
            record.answered = Instant::now();
            let not_sent = answer.as_ref().is_err_and(reqwest::Error::is_connect);
            if let Some(end) = answer.ok().and_then(|answer| self.end(wanted, &answer)) {
                record.end = end;
                break;
            }
            // Without a key, asking again would be asking for another one.
            if !(record.keyed || not_sent) || first_sent.elapsed() > patience {
                if !record.keyed && not_sent {
                    record.end = End::Failed;
                }
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        match (&record.end, &wanted.what) {
            (End::Told { .. }, _) if wanted.again => {
                record.repeated =
                    self.call(number, 1).try_send().await.ok().and_then(|answer| told_again(&answer));
            }
            (End::Told { id, .. }, What::Hold { dropped, .. }) => {
                if *dropped {
                    let client = &self.world.customers[wanted.account][wanted.key];
                    let _ = client.call("DELETE", &format!("/v1/holds/{id}")).try_send().await;
                }
                record.end = End::Held;
            }
            _ => {}
        }
        record
    }

    /// What an answer means; `None` if nobody knows.
    fn end(&self, wanted: &Wanted, answer: &Answer) -> Option<End> {
        let body = answer.body();
        match answer.status {
            200 | 201 => {
                let id = body["id"].as_str().unwrap().to_owned();
                Some(End::Told {
                    id,
                    after_the_edge: body["created_at"].as_str().is_some_and(|at| at >= EDGE),
                })
            }
            402 => Some(End::Refused(self.refusal(wanted, &body))),
            502 | 504 => Some(End::Failed),
            409 | 503 => None,
            _ => panic!("nobody counted with this: {answer}"),
        }
    }

    fn refusal(&self, wanted: &Wanted, body: &Value) -> Refusal {
        let number = |field: &str| body[field].as_i64().unwrap_or_else(|| panic!("{field} of {body}"));
        if body["error"] == "insufficient_credits" {
            return Refusal {
                scope: Scope::Credits,
                period: "lifetime".to_owned(),
                limit: number("credits_cents"),
                spent: 0,
                reserved: number("reserved_cents"),
                requested: number("requested_cents"),
                after_the_edge: false,
            };
        }
        assert_eq!(body["error"], "budget_exceeded", "{body}");
        Refusal {
            scope: self.world.scope(wanted.account, body["scope"].as_str().unwrap()),
            period: body["period"].as_str().unwrap().to_owned(),
            limit: number("hard_limit_cents"),
            spent: number("spent_cents"),
            reserved: number("reserved_cents"),
            requested: number("requested_cents"),
            after_the_edge: body["resets_at"].as_str().is_some_and(|end| end > EDGE),
        }
    }
}

/// What a key was told when it came again; `None` where there was no answer to go by.
fn told_again(answer: &Answer) -> Option<Result<String, u16>> {
    match answer.status {
        200 => Some(Ok(answer.body()["id"].as_str().unwrap().to_owned())),
        409 | 503 => None,
        status => Some(Err(status)),
    }
}
