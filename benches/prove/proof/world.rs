//! Who casts what at which prices under which limits: all of it drawn from the seed.

use serde_json::json;

use super::{
    books::{Limit, Scope},
    row::{Row, Trouble},
};
use crate::harness::{Client, Customer, Server, Upstream};

pub const ACCOUNTS: usize = 3;
/// The first key of an account never names an `Idempotency-Key`, the others always do.
pub const KEYS: usize = 3;
/// How many groups the casts come in.
const BURSTS: usize = 24;

/// SplitMix64: the same numbers for the same seed, everywhere.
pub struct Dice(pub u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Anything from `low` to `high`, both included.
    pub fn roll(&mut self, low: i64, high: i64) -> i64 {
        low + (self.next() % (high - low + 1).unsigned_abs()).cast_signed()
    }

    pub fn pick(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}

pub struct Spell {
    pub name: String,
    pub cents: i64,
    pub from_credits: bool,
    /// Runs without an upstream.
    pub instant: bool,
}

/// Something that a client is going to ask for.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub account: usize,
    pub key: usize,
    pub what: What,
    /// Its place in the row's time, from 0 to 1.
    pub when: f64,
    /// Asked once more under its key, after it was answered.
    pub again: bool,
}

#[derive(Clone, Debug)]
pub enum What {
    Cast {
        spell: usize,
    },
    /// A hold that nobody settles: it is dropped, or expires.
    Hold {
        cents: i64,
        ttl_seconds: i64,
        dropped: bool,
    },
}

/// What the clients of one row find.
pub struct World {
    /// By account and key.
    pub customers: Vec<Vec<Customer>>,
    pub spells: Vec<Spell>,
}

impl World {
    /// Makes accounts, keys, spells and limits on that server, whose credits have no limit yet.
    pub async fn make(
        row: Row,
        server: &Server,
        upstream: &Upstream,
        dice: &mut Dice,
        casts: usize,
    ) -> (World, Vec<Limit>) {
        let mut spells = Vec::new();
        let paths: &[Option<&str>] = match row.trouble {
            Trouble::Upstreams => &[
                None,
                Some("/json"),
                Some("/slow"),
                Some("/coin"),
                Some("/fail"),
                Some("/gate"),
                Some("/hangup"),
            ],
            Trouble::Clock | Trouble::Webhooks => &[None, None, None, None],
            _ => &[None, None, None, Some("/slow")],
        };
        for (number, path) in paths.iter().enumerate() {
            let (name, cents) = (format!("spell-{number}"), dice.roll(1, 9));
            let from_credits = row.trouble == Trouble::Webhooks && number % 2 == 1;
            let mut spell = match path {
                None => json!({"kind": "echo"}),
                Some(path) => json!({"kind": "http", "url": upstream.url(path), "timeout_ms": 400}),
            };
            spell["price"] = json!({"flat_cents": cents});
            if from_credits {
                spell["pay_from"] = json!("credits");
            }
            server.admin().put(&format!("/v1/spells/{name}"), spell).await.expect(201);
            spells.push(Spell { name, cents, from_credits, instant: path.is_none() });
        }
        let mut customers = Vec::new();
        for account in 0..ACCOUNTS {
            let first = server.customer(&format!("account {account}")).await;
            let mut keys = vec![first];
            while keys.len() < KEYS {
                keys.push(keys[0].another_key(&server.admin(), json!({})).await);
            }
            customers.push(keys);
        }
        let world = World { customers, spells };
        let mut limits = Vec::new();
        for account in 0..ACCOUNTS {
            for (scope, period, cents) in world.draw_limits(row, account, dice, casts) {
                world.set(account, scope, period, cents, &world.customers[account][0]).await;
                limits.push(Limit::new(account, scope, period, cents));
            }
        }
        (world, limits)
    }

    /// Limits of which some are reached early, some late, and some never.
    fn draw_limits(
        &self,
        row: Row,
        account: usize,
        dice: &mut Dice,
        casts: usize,
    ) -> Vec<(Scope, &'static str, i64)> {
        let total: i64 = self.spells.iter().map(|spell| spell.cents).sum();
        // Of what is asked for, a window sees half, or half of it costs nothing.
        let part = if matches!(row.trouble, Trouble::Clock | Trouble::Upstreams) { 2 } else { 1 };
        let all = casts as i64 * total / (self.spells.len() * ACCOUNTS) as i64 / part;
        let share = |percent: i64| (all * percent / 100).max(1);
        let of_account = match account {
            0 => dice.roll(110, 130),
            1 => dice.roll(65, 90),
            _ => dice.roll(35, 60),
        };
        let periods = ["daily", "weekly", "monthly", "yearly", "lifetime"];
        let mut period = || match row.trouble {
            Trouble::Clock => periods[dice.pick(4)],
            _ => periods[dice.pick(5)],
        };
        let (first, second, third) = (period(), period(), period());
        let (key, spell) = (dice.pick(KEYS), dice.pick(self.spells.len()));
        vec![
            (Scope::Account, first, share(of_account)),
            (Scope::Key(key), second, share(dice.roll(15, 35))),
            (Scope::Spell(spell), third, share(dice.roll(10, 30))),
        ]
    }

    /// Sets a limit through that client; whether that was answered by yes.
    pub async fn set(&self, account: usize, scope: Scope, period: &str, cents: i64, client: &Client) -> bool {
        let path = match self.query(account, scope) {
            None => "/v1/budgets".to_owned(),
            Some(query) => format!("/v1/budgets?{query}"),
        };
        let budget = json!({"period": period, "hard_limit_cents": cents});
        let answer = client.call("PUT", &path).json(&budget).try_send().await;
        answer.is_ok_and(|answer| [200, 201].contains(&answer.status))
    }

    /// How the API narrows to a scope.
    pub fn query(&self, account: usize, scope: Scope) -> Option<String> {
        match scope {
            Scope::Key(key) => Some(format!("key_id={}", self.customers[account][key].key_id)),
            Scope::Spell(spell) => Some(format!("spell={}", self.spells[spell].name)),
            Scope::Account | Scope::Credits => None,
        }
    }

    /// The scope that a 402 names.
    pub fn scope(&self, account: usize, named: &str) -> Scope {
        let key = named.strip_prefix("key:");
        let key = key.and_then(|id| self.customers[account].iter().position(|key| key.key_id == id));
        let spell = named.strip_prefix("spell:");
        let spell = spell.and_then(|name| self.spells.iter().position(|spell| spell.name == name));
        key.map(Scope::Key).or(spell.map(Scope::Spell)).unwrap_or(Scope::Account)
    }

    /// What is going to be asked for, in bursts.
    pub fn draw(&self, row: Row, dice: &mut Dice, casts: usize) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for number in 0..casts {
            let (account, key) = (dice.pick(ACCOUNTS), dice.pick(KEYS));
            let burst = number * BURSTS / casts;
            let what = What::Cast { spell: dice.pick(self.spells.len()) };
            let again = key > 0 && dice.pick(5) == 0;
            let when = burst as f64 / BURSTS as f64;
            wanted.push(Wanted { account, key, what, when, again });
            if row.trouble == Trouble::Upstreams && dice.pick(10) == 0 {
                let (cents, ttl_seconds, dropped) = (dice.roll(1, 20), dice.roll(1, 3), dice.pick(3) == 0);
                let what = What::Hold { cents, ttl_seconds, dropped };
                wanted.push(Wanted { account, key, what, when, again: false });
            }
        }
        wanted
    }
}
