//! Random prices, keys, spells, budgets and holds against a model small enough to be seen to be
//! right. The cases are the same on every run.

use std::collections::BTreeMap;

use proptest::{
    collection::vec,
    prelude::*,
    sample::Index,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};

use crate::harness::{Backend, Customer, Options, Server, storm, usage_cents};

const KEYS: usize = 3;
const SPELLS: usize = 3;
const PERIODS: [&str; 5] = ["daily", "weekly", "monthly", "yearly", "lifetime"];

/// What a budget covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    Account,
    Key(usize),
    Spell(usize),
}

#[derive(Clone, Debug)]
enum Step {
    Cast { key: usize, spell: usize },
    Hold { key: usize, spell: Option<usize>, cents: i64 },
    Settle { hold: Index, cents: i64 },
    Drop { hold: Index },
    SetBudget { scope: Scope, period: usize, hard_limit: i64 },
    DeleteBudget { scope: Scope, period: usize },
}

#[derive(Clone, Debug)]
struct Plan {
    prices: [i64; SPELLS],
    steps: Vec<Step>,
    /// What may be spent more, when all come at once at the end.
    room: i64,
    crowd: Vec<(usize, usize)>,
}

fn scopes() -> impl Strategy<Value = Scope> {
    prop_oneof![
        2 => Just(Scope::Account),
        2 => (0..KEYS).prop_map(Scope::Key),
        2 => (0..SPELLS).prop_map(Scope::Spell),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS;
    prop_oneof![
        14 => (key(), 0..SPELLS).prop_map(|(key, spell)| Step::Cast { key, spell }),
        3 => (key(), proptest::option::of(0..SPELLS), 1..15_i64)
            .prop_map(|(key, spell, cents)| Step::Hold { key, spell, cents }),
        2 => (any::<Index>(), 0..20_i64).prop_map(|(hold, cents)| Step::Settle { hold, cents }),
        1 => any::<Index>().prop_map(|hold| Step::Drop { hold }),
        4 => (scopes(), 0..PERIODS.len(), 0..60_i64)
            .prop_map(|(scope, period, hard_limit)| Step::SetBudget { scope, period, hard_limit }),
        1 => (scopes(), 0..PERIODS.len()).prop_map(|(scope, period)| Step::DeleteBudget { scope, period }),
    ]
}

fn plans() -> impl Strategy<Value = Plan> {
    let prices = [1..10_i64, 1..10_i64, 1..10_i64];
    (prices, vec(steps(), 20..60), 0..80_i64, vec((0..KEYS, 0..SPELLS), 60))
        .prop_map(|(prices, steps, room, crowd)| Plan { prices, steps, room, crowd })
}

/// Something that was spent, or is held.
#[derive(Clone, Copy)]
struct Line {
    key: usize,
    spell: Option<usize>,
    cents: i64,
}

impl Line {
    fn is_in(&self, scope: Scope) -> bool {
        match scope {
            Scope::Account => true,
            Scope::Key(key) => self.key == key,
            Scope::Spell(spell) => self.spell == Some(spell),
        }
    }
}

/// The books as they ought to be.
#[derive(Default)]
struct Model {
    budgets: BTreeMap<(Scope, usize), i64>,
    spent: Vec<Line>,
    held: BTreeMap<String, Line>,
}

impl Model {
    fn spent(&self, scope: Scope) -> i64 {
        self.spent.iter().filter(|line| line.is_in(scope)).map(|line| line.cents).sum()
    }

    fn held(&self, scope: Scope) -> i64 {
        self.held.values().filter(|line| line.is_in(scope)).map(|line| line.cents).sum()
    }

    fn calls(&self, scope: Scope) -> i64 {
        self.spent.iter().filter(|line| line.is_in(scope)).count() as i64
    }

    /// The budgets that have no room for this.
    fn refusals(&self, wanted: Line) -> Vec<(Scope, usize)> {
        let covering = self.budgets.iter().filter(|((scope, _), _)| wanted.is_in(*scope));
        let full = covering
            .filter(|((scope, _), limit)| self.spent(*scope) + self.held(*scope) + wanted.cents > **limit);
        full.map(|(budget, _)| *budget).collect()
    }
}

/// One account that plays one plan.
struct World {
    keys: Vec<Customer>,
    spells: Vec<String>,
    prices: [i64; SPELLS],
}

impl World {
    async fn new(server: &Server, prices: [i64; SPELLS]) -> World {
        let admin = server.admin();
        let first = server.customer("model").await;
        let mut keys = vec![first.clone()];
        while keys.len() < KEYS {
            keys.push(first.another_key(&admin, json!({})).await);
        }
        let mut spells = Vec::new();
        for cents in prices {
            let name = format!("spell_{}", uuid::Uuid::now_v7().simple());
            let spell = json!({"kind": "echo", "price": {"flat_cents": cents}});
            admin.put(&format!("/v1/spells/{name}"), spell).await.expect(201);
            spells.push(name);
        }
        World { keys, spells, prices }
    }

    fn line(&self, key: usize, spell: usize) -> Line {
        Line { key, spell: Some(spell), cents: self.prices[spell] }
    }

    /// How a refusal names the scope.
    fn name(&self, scope: Scope) -> String {
        match scope {
            Scope::Account => "account".to_owned(),
            Scope::Key(key) => format!("key:{}", self.keys[key].key_id),
            Scope::Spell(spell) => format!("spell:{}", self.spells[spell]),
        }
    }

    /// How a query names the scope.
    fn query(&self, scope: Scope) -> String {
        match scope {
            Scope::Account => "?".to_owned(),
            Scope::Key(key) => format!("?key_id={}&", self.keys[key].key_id),
            Scope::Spell(spell) => format!("?spell={}&", self.spells[spell]),
        }
    }

    fn assert_refused_by_one_of(
        &self,
        refusal: &Value,
        full: &[(Scope, usize)],
        wanted: Line,
        model: &Model,
    ) {
        let named = full.iter().find(|(scope, period)| {
            refusal["scope"] == self.name(*scope) && refusal["period"] == PERIODS[*period]
        });
        let (scope, period) = named.unwrap_or_else(|| panic!("{refusal} names none of {full:?}"));
        for (field, cents) in [
            ("hard_limit_cents", model.budgets[&(*scope, *period)]),
            ("spent_cents", model.spent(*scope)),
            ("reserved_cents", model.held(*scope)),
            ("requested_cents", wanted.cents),
        ] {
            assert_eq!(refusal[field], cents, "{field} of {refusal}");
        }
    }

    async fn play(&self, step: &Step, model: &mut Model) {
        match *step {
            Step::Cast { key, spell } => {
                let wanted = self.line(key, spell);
                let answer = self.keys[key].cast(&self.spells[spell], json!(1)).await;
                match model.refusals(wanted).as_slice() {
                    [] => {
                        assert_eq!(answer.expect(200)["cost_cents"], wanted.cents);
                        model.spent.push(wanted);
                    }
                    full => {
                        let refusal = answer.expect_code(402, "budget_exceeded");
                        self.assert_refused_by_one_of(&refusal, full, wanted, model);
                    }
                }
            }
            Step::Hold { key, spell, cents } => {
                let wanted = Line { key, spell, cents };
                let body = json!({"amount_cents": cents, "spell": spell.map(|spell| &self.spells[spell])});
                let answer = self.keys[key].post("/v1/holds", body).await;
                match model.refusals(wanted).as_slice() {
                    [] => {
                        let id = answer.expect(201)["id"].as_str().unwrap().to_owned();
                        model.held.insert(id, wanted);
                    }
                    full => {
                        let refusal = answer.expect_code(402, "budget_exceeded");
                        self.assert_refused_by_one_of(&refusal, full, wanted, model);
                    }
                }
            }
            Step::Settle { ref hold, cents } => {
                if let Some(id) = self.pick(hold, model) {
                    let path = format!("/v1/holds/{id}/settle");
                    self.keys[0].post(&path, json!({"amount_cents": cents})).await.expect(200);
                    let held = model.held.remove(&id).unwrap();
                    model.spent.push(Line { cents, ..held });
                }
            }
            Step::Drop { ref hold } => {
                if let Some(id) = self.pick(hold, model) {
                    assert_eq!(self.keys[0].delete(&format!("/v1/holds/{id}")).await.status, 204);
                    model.held.remove(&id);
                }
            }
            Step::SetBudget { scope, period, hard_limit } => {
                let path = format!("/v1/budgets{}", self.query(scope).trim_end_matches(['?', '&']));
                let body = json!({"period": PERIODS[period], "hard_limit_cents": hard_limit});
                let known = model.budgets.insert((scope, period), hard_limit).is_some();
                self.keys[0].post(&path, body).await.expect(if known { 200 } else { 201 });
            }
            Step::DeleteBudget { scope, period } => {
                let path = format!("/v1/budgets{}period={}", self.query(scope), PERIODS[period]);
                let known = model.budgets.remove(&(scope, period)).is_some();
                let answer = self.keys[0].delete(&path).await;
                assert_eq!(answer.status, if known { 204 } else { 404 }, "{answer}");
            }
        }
    }

    fn pick(&self, hold: &Index, model: &Model) -> Option<String> {
        let open: Vec<&String> = model.held.keys().collect();
        (!open.is_empty()).then(|| hold.get(&open).to_string())
    }

    async fn assert_usage(&self, model: &Model) {
        for ((scope, period), limit) in &model.budgets {
            let usage =
                self.keys[0].usage(&format!("{}period={}", self.query(*scope), PERIODS[*period])).await;
            let (calls, spent, held) = (model.calls(*scope), model.spent(*scope), model.held(*scope));
            assert_eq!(usage_cents(&usage), (calls, spent, held), "{scope:?}");
            assert_eq!(usage["hard_limit_cents"], *limit);
            assert_eq!(usage["remaining_cents"], (limit - spent - held).max(0), "{scope:?}");
        }
        let usage = self.keys[0].usage("?period=lifetime").await;
        let all = Scope::Account;
        assert_eq!(usage_cents(&usage), (model.calls(all), model.spent(all), model.held(all)));
    }

    /// All at once: nothing passes its limit, and what was refused did not fit in what is left.
    async fn crowd(&self, plan: &Plan, model: &mut Model) {
        let room = Step::SetBudget {
            scope: Scope::Account,
            period: 2,
            hard_limit: model.spent(Scope::Account) + model.held(Scope::Account) + plan.room,
        };
        self.play(&room, model).await;
        let before: BTreeMap<_, _> =
            model.budgets.keys().map(|budget| (*budget, model.spent(budget.0))).collect();
        let casts: Vec<_> = plan
            .crowd
            .iter()
            .map(|(key, spell)| (self.keys[*key].client(), self.spells[*spell].clone(), *key, *spell))
            .collect();
        let answers = storm(24, casts.len(), move |number| {
            let (client, name, key, spell) = casts[number].clone();
            async move { (client.cast(&name, json!(1)).await, key, spell) }
        })
        .await;
        let mut refused = Vec::new();
        for (answer, key, spell) in answers {
            let line = self.line(key, spell);
            match answer.status {
                200 => model.spent.push(line),
                _ => {
                    answer.expect_code(402, "budget_exceeded");
                    refused.push(line);
                }
            }
        }
        for ((scope, period), limit) in &model.budgets {
            let (spent, held) = (model.spent(*scope), model.held(*scope));
            let grew = spent > before[&(*scope, *period)];
            assert!(!grew || spent + held <= *limit, "{scope:?} passed {limit}: {spent} spent, {held} held");
        }
        for line in refused {
            assert!(
                !model.refusals(line).is_empty(),
                "refused though there was room for {} cents",
                line.cents
            );
        }
    }
}

fn play_all(backend: impl Future<Output = Backend>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let backend = runtime.block_on(backend);
    let server = runtime.block_on(Server::start(Options::on(&backend)));
    let config = Config { cases: 8, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let outcome = runner.run(&plans(), |plan| {
        runtime.block_on(async {
            let world = World::new(&server, plan.prices).await;
            let mut model = Model::default();
            for step in &plan.steps {
                world.play(step, &mut model).await;
            }
            world.assert_usage(&model).await;
            world.crowd(&plan, &mut model).await;
            world.assert_usage(&model).await;
        });
        Ok(())
    });
    if let Err(problem) = outcome {
        panic!("{problem}");
    }
}

#[test]
fn random_casts_end_as_the_model_says_on_sqlite() {
    play_all(Backend::sqlite());
}

#[test]
fn random_casts_end_as_the_model_says_on_postgres() {
    play_all(Backend::postgres());
}
