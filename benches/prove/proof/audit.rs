//! Compares what the clients were told with the books.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{
    books::{End, Limit, Record, Scope, false_refusals, passed},
    row::{Row, Trouble},
    stage::{EDGE, Stage},
    world::{ACCOUNTS, Dice, KEYS, World},
};
use crate::harness::{Client, all_casts, all_of, usage_cents};

/// How many casts of each account try the limits once nothing goes on any more.
const PROBES: usize = 6;

/// What was found; every count has to be 0.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    pub cents_over: i64,
    pub missing: i64,
    pub twice: i64,
    pub held: i64,
    pub false_refusals: i64,
    /// What exactly, for whoever has to look into it.
    pub notes: Vec<String>,
}

impl Findings {
    pub fn counts(&self) -> [i64; 5] {
        [self.cents_over, self.missing, self.twice, self.held, self.false_refusals]
    }

    fn over(&mut self, cents: i64, what: impl FnOnce() -> String) {
        self.cents_over += cents.max(0);
        if cents > 0 {
            self.notes.push(format!("{cents} cents over: {}", what()));
        }
    }

    fn missing(&mut self, count: i64, what: impl FnOnce() -> String) {
        self.missing += count.max(0);
        if count > 0 {
            self.notes.push(format!("{count} missing: {}", what()));
        }
    }

    fn twice(&mut self, count: i64, what: impl FnOnce() -> String) {
        self.twice += count.max(0);
        if count > 0 {
            self.notes.push(format!("{count} twice: {}", what()));
        }
    }

    fn false_refusal(&mut self, what: impl FnOnce() -> String) {
        self.false_refusals += 1;
        self.notes.push(format!("refused while there was room: {}", what()));
    }
}

/// A line of `GET /v1/usage`.
struct Line {
    key: usize,
    spell: usize,
    after_the_edge: bool,
    calls: i64,
    cents: i64,
}

/// One account's books, as the API shows them.
struct Books {
    casts: Vec<Value>,
    lines: Vec<Line>,
}

impl Books {
    async fn read(world: &World, account: usize) -> Books {
        let client = &world.customers[account][0];
        let casts = all_casts(client).await;
        let usage = "/v1/usage?by=day,key,spell&from=2020-01-01&to=2030-12-31&limit=1000";
        let lines = all_of(client, usage).await;
        let lines = lines.iter().map(|line| Line {
            key: key_of(world, account, &line["key_id"]),
            spell: spell_of(world, line["spell"].as_str().unwrap()),
            after_the_edge: line["day"].as_str().unwrap() >= &EDGE[..10],
            calls: line["calls"].as_i64().unwrap(),
            cents: line["cost_cents"].as_i64().unwrap(),
        });
        Books { casts, lines: lines.collect() }
    }

    /// What the books say was spent under a limit, in one of its windows.
    fn spent(&self, world: &World, limit: &Limit, after_the_edge: bool) -> (i64, i64) {
        let covered = self.lines.iter().filter(|line| {
            let in_window = limit.period == "lifetime" || line.after_the_edge == after_the_edge;
            in_window
                && match limit.scope {
                    Scope::Account => true,
                    Scope::Key(key) => line.key == key,
                    Scope::Spell(spell) => line.spell == spell,
                    Scope::Credits => world.spells[line.spell].from_credits,
                }
        });
        covered.fold((0, 0), |(calls, cents), line| (calls + line.calls, cents + line.cents))
    }
}

fn key_of(world: &World, account: usize, id: &Value) -> usize {
    world.customers[account].iter().position(|key| *id == key.key_id).unwrap()
}

fn spell_of(world: &World, name: &str) -> usize {
    world.spells.iter().position(|spell| spell.name == name).unwrap()
}

/// Everything that can be found, of which trying the limits is the last.
pub async fn audit(
    row: Row,
    stage: &Stage,
    world: &World,
    limits: &[Limit],
    records: &[Record],
    dice: &mut Dice,
) -> Findings {
    let mut findings = Findings::default();
    let after_the_edge = row.trouble == Trouble::Clock;
    let mut all = Vec::new();
    for account in 0..ACCOUNTS {
        let books = Books::read(world, account).await;
        let told: Vec<&Record> = records.iter().filter(|record| record.account == account).collect();
        compare(&mut findings, world, account, &books, &told);
        all.push(books);
    }
    for limit in limits {
        let books = &all[limit.account];
        let spent = |side| books.spent(world, limit, side).1;
        let above = spent(false).max(spent(true)) - limit.highest_ever();
        findings.over(above.max(passed(limit, records)), || format!("{limit:?}"));
        check_counter(&mut findings, world, limit, books, after_the_edge).await;
    }
    for record in false_refusals(limits, records) {
        findings.false_refusal(|| format!("{record:?}"));
    }
    for metric in ["ledger_late_total", "ledger_overrun_total"] {
        let value = stage.metric(metric).await;
        assert!(value == 0.0, "{metric} is {value}, though nothing was settled from outside");
    }
    for account in 0..ACCOUNTS {
        for _ in 0..PROBES {
            probe(&mut findings, world, limits, account, dice).await;
        }
    }
    findings
}

/// What was told, against the casts and the spend in one account's books.
fn compare(findings: &mut Findings, world: &World, account: usize, books: &Books, records: &[&Record]) {
    let mut booked: BTreeMap<&str, (usize, usize, i64)> = BTreeMap::new();
    for cast in books.casts.iter().filter(|cast| cast["status"] == "COMPLETED") {
        let id = cast["id"].as_str().unwrap();
        let (key, spell) =
            (key_of(world, account, &cast["key_id"]), spell_of(world, cast["spell_name"].as_str().unwrap()));
        if booked.insert(id, (key, spell, cast["cost_cents"].as_i64().unwrap())).is_some() {
            findings.twice(1, || format!("{id} is listed twice"));
        }
    }
    let mut told = BTreeSet::new();
    for record in records {
        if let (End::Told { id, .. }, Some(spell)) = (&record.end, record.spell) {
            if booked.get(id.as_str()) != Some(&(record.key, spell, record.cents)) {
                findings.missing(1, || format!("{record:?}, booked: {:?}", booked.get(id.as_str())));
            }
            if !told.insert(id.as_str()) {
                findings.missing(1, || format!("{id} was told to two casts"));
            }
            match &record.repeated {
                Some(Ok(again)) if again != id => {
                    findings.twice(1, || format!("{again} for the key of {record:?}"))
                }
                Some(Err(status)) => findings.missing(1, || format!("{status} for the key of {record:?}")),
                _ => {}
            }
        }
    }
    for (key, spell) in (0..KEYS).flat_map(|key| (0..world.spells.len()).map(move |spell| (key, spell))) {
        let of = |record: &&&Record| record.key == key && record.spell == Some(spell);
        let unknown = records.iter().filter(of).filter(|record| matches!(record.end, End::Unknown)).count();
        let casts: Vec<_> = booked.iter().filter(|(_, cast)| (cast.0, cast.1) == (key, spell)).collect();
        let untold = casts.iter().filter(|(id, _)| !told.contains(**id)).count();
        findings.twice(untold as i64 - unknown as i64, || {
            format!(
                "account {account}, key {key}, spell {spell}: {untold} that nobody asked for a first time"
            )
        });
        let lines = books.lines.iter().filter(|line| (line.key, line.spell) == (key, spell));
        let (calls, cents) = lines.fold((0, 0), |sum, line| (sum.0 + line.calls, sum.1 + line.cents));
        let listed: i64 = casts.iter().map(|(_, cast)| cast.2).sum();
        let off = || {
            format!(
                "account {account}, key {key}, spell {spell}: {calls} calls for {cents} cents are spent, {} casts for {listed} cents are listed",
                casts.len()
            )
        };
        let count = casts.len() as i64;
        findings.twice((calls - count).max(i64::from(cents > listed)), off);
        findings.missing((count - calls).max(i64::from(cents < listed)), off);
    }
}

/// What a limit's own counter says, against the spend in the books.
async fn check_counter(
    findings: &mut Findings,
    world: &World,
    limit: &Limit,
    books: &Books,
    after_the_edge: bool,
) {
    let (calls, spent) = books.spent(world, limit, after_the_edge);
    if limit.scope == Scope::Credits {
        let left = credits(&world.customers[limit.account][0]).await;
        let off = left + spent - limit.last();
        return findings
            .over(off.abs(), || format!("{left} credits are left and {spent} spent of {limit:?}"));
    }
    let (counted_calls, counted, held) = usage_cents(&usage(world, limit).await);
    let off = || {
        format!("{counted} cents for {counted_calls} calls are counted, {spent} for {calls} spent: {limit:?}")
    };
    findings.twice(i64::from(counted > spent || counted_calls > calls), off);
    findings.missing(i64::from(counted < spent || counted_calls < calls), off);
    findings.held += i64::from(held != 0);
    if held != 0 {
        findings.notes.push(format!("{held} cents are still reserved: {limit:?}"));
    }
}

async fn credits(client: &Client) -> i64 {
    client.get("/api/billing/balance").await.expect(200)["credits"].as_i64().unwrap()
}

async fn usage(world: &World, limit: &Limit) -> Value {
    let narrowed = world.query(limit.account, limit.scope).map_or(String::new(), |query| format!("&{query}"));
    world.customers[limit.account][0].usage(&format!("?period={}{narrowed}", limit.period)).await
}

/// Casts once more, and finds whether that was let in or refused as the counters say it has to be.
async fn probe(findings: &mut Findings, world: &World, limits: &[Limit], account: usize, dice: &mut Dice) {
    let instant: Vec<usize> = (0..world.spells.len()).filter(|spell| world.spells[*spell].instant).collect();
    let (key, spell) = (dice.pick(KEYS), instant[dice.pick(instant.len())]);
    let Some(cast) = world.spells.get(spell) else { return };
    let mut room = i64::MAX;
    for limit in limits.iter().filter(|limit| limit.account == account) {
        let covers = match limit.scope {
            Scope::Account => true,
            Scope::Key(of) => of == key,
            Scope::Spell(of) => of == spell,
            Scope::Credits => cast.from_credits,
        };
        if covers {
            let left = match limit.scope {
                Scope::Credits => credits(&world.customers[account][0]).await,
                _ => limit.last() - usage_cents(&usage(world, limit).await).1,
            };
            room = room.min(left);
        }
    }
    let answer = world.customers[account][key].cast(&cast.name, json!("a probe")).await;
    match answer.status {
        200 => findings.over(cast.cents - room, || format!("a probe: {answer}")),
        402 if cast.cents <= room => {
            findings.false_refusal(|| format!("a probe with {room} cents left: {answer}"))
        }
        402 => {}
        _ => panic!("{answer}"),
    }
}
