//! The books as they are after a commit, and what must hold from one commit to the next.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::{
    budget::Scope,
    clock::Time,
    ledger::cause,
    store::{Db, Statement, binds},
    window::Period,
};

static LOOK: Statement = Statement::new(
    "SELECT json_object(
        'balances', (SELECT json_group_array(json_array(id, account_id, kind, key_id, spell, budget_id,
            starts_at, granted, posted, pending, calls)) FROM balances),
        'holds', (SELECT json_group_array(json_array(id, account_id, key_id, spell, amount, began_at,
            expires_at, state, posted, late, ended_at, pay_from IS NOT NULL)) FROM holds),
        'lines', (SELECT json_group_array(json_array(reference, cause, balance_id, amount)) FROM entries),
        'casts', (SELECT json_group_array(json_array(id, status, cost)) FROM casts),
        'limits', (SELECT json_group_array(json_array(id, account_id, scope, period, hard_limit))
            FROM budgets WHERE hard_limit IS NOT NULL))",
);

#[derive(Deserialize)]
struct Look {
    balances: Vec<Balance>,
    holds: Vec<Hold>,
    lines: Vec<(String, String, String, i64)>,
    casts: Vec<(String, String, i64)>,
    limits: Vec<(String, String, String, String, i64)>,
}

/// A row of `balances`, in the order in which it is asked for; likewise below.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Balance {
    pub id: String,
    pub account: String,
    pub kind: String,
    pub key: Option<String>,
    pub spell: Option<String>,
    pub budget: Option<String>,
    pub starts_at: Option<i64>,
    pub granted: Option<i64>,
    pub posted: i64,
    pub pending: i64,
    pub calls: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Hold {
    pub id: String,
    pub account: String,
    pub key: String,
    pub spell: String,
    pub amount: i64,
    pub began_at: i64,
    pub expires_at: i64,
    pub state: String,
    pub posted: Option<i64>,
    pub late: i64,
    pub ended_at: Option<i64>,
    pub from_credits: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LimitNow {
    pub budget: String,
    pub account: String,
    pub scope: Scope,
    pub period: Period,
    pub hard: i64,
}

/// A line's place: reference, cause and balance.
pub type Place = (String, String, String);

#[derive(Default)]
pub struct Books {
    pub balances: BTreeMap<String, Balance>,
    pub holds: BTreeMap<String, Hold>,
    pub lines: BTreeMap<Place, i64>,
    pub casts: BTreeMap<String, (String, i64)>,
    pub limits: Vec<LimitNow>,
}

impl Books {
    /// The books as they are now.
    pub async fn now(db: &Db) -> Books {
        let (text,): (String,) = db.one(&LOOK, binds![]).await.unwrap();
        let look: Look = serde_json::from_str(&text).unwrap();
        let lines = look.lines.into_iter();
        let lines =
            lines.map(|(reference, cause, balance, amount)| ((reference, cause, balance), amount)).collect();
        let limits = look.limits.into_iter().map(|(budget, account, scope, period, hard)| LimitNow {
            budget,
            account,
            scope: match scope.split_once(':') {
                Some(("key", key)) => Scope::Key(key.into()),
                Some((_, spell)) => Scope::Spell(spell.to_owned()),
                None => Scope::Account,
            },
            period: Period::parse(&period).unwrap(),
            hard,
        });
        Books {
            balances: look.balances.into_iter().map(|row| (row.id.clone(), row)).collect(),
            holds: look.holds.into_iter().map(|row| (row.id.clone(), row)).collect(),
            casts: look.casts.into_iter().map(|(id, status, cost)| (id, (status, cost))).collect(),
            limits: limits.collect(),
            lines,
        }
    }

    /// Whether a reference has lines of that cause.
    pub fn has_line(&self, reference: &str, cause: &str) -> bool {
        let from = (reference.to_owned(), cause.to_owned(), String::new());
        self.lines.range(from..).next().is_some_and(|((r, c, _), _)| r == reference && c == cause)
    }

    /// Whether a reference has lines at all.
    pub fn has_lines(&self, reference: &str) -> bool {
        let from = (reference.to_owned(), String::new(), String::new());
        self.lines.range(from..).next().is_some_and(|((r, _, _), _)| r == reference)
    }

    /// What is spent and held in each window of a limit, by where the window begins.
    pub fn taken(&self, limit: &LimitNow) -> BTreeMap<i64, (i64, i64)> {
        let mut taken: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for balance in self.covered(limit) {
            let window = taken.entry(window_of(limit, balance)).or_default();
            window.0 += balance.posted;
            window.1 += balance.pending;
        }
        taken
    }

    fn covered(&self, limit: &LimitNow) -> impl Iterator<Item = &Balance> {
        self.balances.values().filter(|balance| {
            balance.kind == "spend"
                && balance.account == limit.account
                && limit.scope.covers(
                    &balance.key.as_deref().unwrap_or_default().into(),
                    balance.spell.as_deref().unwrap_or_default(),
                )
        })
    }

    /// The spend's balance that a hold counts on.
    fn spend_of(&self, hold: &Hold) -> Option<&Balance> {
        let day = hold.began_at.div_euclid(DAY) * DAY;
        self.balances.values().find(|balance| {
            balance.kind == "spend"
                && balance.account == hold.account
                && balance.key.as_deref() == Some(&hold.key)
                && balance.spell.as_deref() == Some(&hold.spell)
                && balance.starts_at == Some(day)
        })
    }

    /// What must hold of any books, and of these as what came of `before` by one transaction.
    pub fn follow(&self, before: &Books) -> Result<(), String> {
        self.lines_stay(before)?;
        self.totals()?;
        self.windows()?;
        self.ends(before)?;
        let over = self.over(before);
        self.bounds(before, &over)?;
        self.limits_held(before, &over)
    }

    /// A line is never changed or removed.
    fn lines_stay(&self, before: &Books) -> Result<(), String> {
        match before.lines.iter().find(|(place, amount)| self.lines.get(*place) != Some(amount)) {
            None => Ok(()),
            Some(line) => Err(format!("{line:?} is not what it was")),
        }
    }

    /// Posted is what the lines say, pending what the open holds say.
    fn totals(&self) -> Result<(), String> {
        let mut sums: BTreeMap<&str, (i64, i64, i64)> = BTreeMap::new();
        for ((_, cause, balance), amount) in &self.lines {
            let sum = sums.entry(balance).or_default();
            match cause::grants(cause) {
                true => sum.1 += amount,
                false => sum.0 += amount,
            }
        }
        for hold in self.holds.values().filter(|hold| hold.state == "open" && hold.amount != 0) {
            let spend = self.spend_of(hold).ok_or(format!("{} is held on no balance", hold.id))?;
            sums.entry(&spend.id).or_default().2 += hold.amount;
            if hold.from_credits == 1 {
                let credits = self.balances.keys().find(|id| **id == format!("credits/{}", hold.account));
                sums.entry(credits.ok_or("held on no credits")?).or_default().2 += hold.amount;
            }
        }
        for balance in self.balances.values().filter(|balance| balance.kind != "window") {
            let stored = (balance.posted, balance.granted.unwrap_or(0), balance.pending);
            let expected = sums.get(balance.id.as_str()).copied().unwrap_or_default();
            if stored != expected {
                return Err(format!("{}: {stored:?} is stored, {expected:?} follows", balance.id));
            }
        }
        Ok(())
    }

    /// A window is the sum of the spend that it covers.
    fn windows(&self) -> Result<(), String> {
        for limit in &self.limits {
            let taken = self.taken(limit);
            for window in self.balances.values().filter(|row| row.budget.as_ref() == Some(&limit.budget)) {
                let start = window.starts_at.unwrap_or_default();
                let expected = taken.get(&start).copied().unwrap_or_default();
                if (window.posted, window.pending) != expected {
                    return Err(format!("{window:?} should be {expected:?}"));
                }
            }
        }
        Ok(())
    }

    /// A hold ends once, and not before it is due unless somebody ends it.
    fn ends(&self, before: &Books) -> Result<(), String> {
        for (id, was) in &before.holds {
            let Some(is) = self.holds.get(id) else { return Err(format!("{id} is gone")) };
            if was == is {
                continue;
            }
            let in_time = match (was.state.as_str(), is.state.as_str()) {
                ("open", "open" | "voided") => true,
                ("open", "posted") => {
                    let due = is.ended_at.is_some_and(|ended| ended >= is.expires_at);
                    // Who pays for what was lost is not late.
                    (is.late == 1) == due || (due && self.has_line(id, "lost"))
                }
                ("open", "expired") => is.ended_at.is_some_and(|ended| ended >= is.expires_at),
                ("expired", "posted") => is.late == 1,
                // It was lost and paid for, and only then found that nobody had been told of it.
                ("posted", "voided") => self.has_line(id, "lost") && self.has_line(id, "reversal"),
                _ => false,
            };
            if !in_time {
                return Err(format!("a hold went from {was:?} to {is:?}"));
            }
        }
        Ok(())
    }

    /// What was settled late or above its hold, by the balance it counts on.
    fn over(&self, before: &Books) -> BTreeMap<String, i64> {
        let mut over: BTreeMap<String, i64> = BTreeMap::new();
        for (id, hold) in &self.holds {
            let Some(posted) = hold.posted else { continue };
            let above = match before.holds.get(id).map(|was| was.state.as_str()) {
                Some("posted") => continue,
                Some("expired") => posted,
                _ => (posted - hold.amount).max(0),
            };
            if let Some(spend) = self.spend_of(hold) {
                *over.entry(spend.id.clone()).or_default() += above;
            }
            if hold.from_credits == 1 {
                *over.entry(format!("credits/{}", hold.account)).or_default() += above;
            }
        }
        over
    }

    /// No bounded balance falls below nothing, but by what is settled late or taken back.
    fn bounds(&self, before: &Books, over: &BTreeMap<String, i64>) -> Result<(), String> {
        for (id, balance) in &self.balances {
            let left = |balance: &Balance| Some(balance.granted? - balance.posted - balance.pending);
            let Some(now) = left(balance) else { continue };
            let was = before.balances.get(id).and_then(left).unwrap_or(0);
            let taken_back: i64 = self
                .new_lines(before)
                .filter(|((_, cause, on), amount)| on == id && cause::grants(cause) && **amount < 0)
                .map(|(_, amount)| -amount)
                .sum();
            if now < was.min(0) - over.get(id).copied().unwrap_or(0) - taken_back {
                return Err(format!("{id} went from {was} to {now}"));
            }
        }
        Ok(())
    }

    /// No window of a limit holds more than the limit, but by what is settled late or above its hold, or
    /// was in it before the limit fell.
    fn limits_held(&self, before: &Books, over: &BTreeMap<String, i64>) -> Result<(), String> {
        for limit in &self.limits {
            let was = before.taken(limit);
            let mut over_here: BTreeMap<i64, i64> = BTreeMap::new();
            for balance in self.covered(limit) {
                *over_here.entry(window_of(limit, balance)).or_default() +=
                    over.get(&balance.id).copied().unwrap_or(0);
            }
            for (start, (posted, pending)) in self.taken(limit) {
                let (posted_before, pending_before) = was.get(&start).copied().unwrap_or_default();
                let most = limit.hard.max(posted_before + pending_before) + over_here[&start];
                if posted + pending > most {
                    return Err(format!("{limit:?} from {start} holds {posted} + {pending}, at most {most}"));
                }
            }
        }
        Ok(())
    }

    pub fn new_lines<'a>(&'a self, before: &'a Books) -> impl Iterator<Item = (&'a Place, &'a i64)> {
        self.lines.iter().filter(|(place, _)| !before.lines.contains_key(*place))
    }

    pub fn new_holds<'a>(&'a self, before: &Books) -> BTreeSet<&'a str> {
        self.holds.keys().filter(|id| !before.holds.contains_key(*id)).map(String::as_str).collect()
    }
}

const DAY: i64 = 24 * 60 * 60 * 1_000;

fn window_of(limit: &LimitNow, balance: &Balance) -> i64 {
    limit.period.window(Time(balance.starts_at.unwrap_or_default())).start.0
}
