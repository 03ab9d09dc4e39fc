//! The audit of what Stripe has on its books: what was paid there, what went back, and what is subscribed to,
//! against purchases, grants, reversals and subscriptions here. It only reads, on both sides.
//!
//! Stripe's lists are read a page at a time, and each page is held against ours by a few short reads, so that no
//! transaction is open while Stripe is asked and nothing waits for an audit. Then whatever we have of the same
//! time that was in no page is asked for by its id.
//!
//! Both sides change meanwhile. What looks like a difference is only suspected: after a moment it is read again,
//! at Stripe first and then here, and called drift if it is the very same as before and no event can explain it.
//! Such an event is one that Stripe has made within the last quarter of an hour and that was not applied yet, or
//! one that waits in the inbox for an operator. So what Stripe did before a suspicion was confirmed has either
//! been applied by then, which the second reading sees, or is found among those events.
//!
//! An operator's command compares whenever it is told to; of the servers one does in each interval of their audits
//! ([`crate::audit`]). Either asks for one page after the other, which leaves Checkout what it needs of the requests
//! that Stripe allows an account.
//!
//! Not compared: payments of before the time that is asked for, unless a subscription or an open dispute reaches
//! into it; payments that an app took by itself, but what went back of them; a payment that has no payment intent;
//! credits of later periods, which were those of the catalogue of then.
//!
//! # Failure behavior
//!
//! A page that can't be read or understood ends the comparison with an error: what was compared by then is no
//! clean bill.

mod compare;
mod examine;
mod here;
mod pending;
mod sweep;
#[cfg(test)]
mod tests;
mod there;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    str::FromStr,
    time::Duration,
};

use serde::Serialize;

use super::{Failure, Stripe};
use crate::clock::Time;

pub use compare::Difference;
use pending::Pending;

/// After how long what is suspected is read again.
const PAUSE: Duration = Duration::from_secs(2);
/// Of how many days payments are compared where nothing else is asked for.
const DAYS: i64 = 90;
/// How often it is read until it is called changing.
const ROUNDS: usize = 5;

/// From when on payments are compared; `None`: all that there ever were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(pub Option<Time>);

impl FromStr for Since {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Since, &'static str> {
        if text == "all" {
            return Ok(Since(None));
        }
        let at = Time::parse(text).or_else(|| Time::parse(&format!("{text}T00:00:00Z")));
        let at = at.filter(|at| at.0 > 0);
        at.map(|at| Since(Some(at))).ok_or("must be a day such as 2026-08-01, a moment in RFC 3339, or all")
    }
}

/// What the comparison came to.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Of when on payments were compared; `None`: of all times.
    pub since: Option<Time>,
    pub purchases: usize,
    pub invoices: usize,
    pub subscriptions: usize,
    /// Refunded charges, and disputes.
    pub reversals: usize,
    /// How many differences are drift.
    pub drifts: usize,
    /// How many are none, since an event explains them.
    pub open: usize,
    #[serde(skip)]
    pub differences: Vec<Difference>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { since, purchases, invoices, subscriptions, reversals, drifts, open, .. } = self;
        match since {
            Some(since) => write!(f, "Stripe since {since}: ")?,
            None => write!(f, "Stripe: ")?,
        }
        write!(f, "{purchases} purchases, {invoices} invoices, {subscriptions} subscriptions, ")?;
        write!(f, "{reversals} refunds and disputes; {open} to be applied or seen to: ")?;
        match drifts {
            0 => write!(f, "no drift"),
            some => write!(f, "drift in {some}"),
        }
    }
}

/// What is held against each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// By its id, and the Checkout that names it if that is known.
    Purchase(String, Option<String>),
    Invoice(String),
    Subscription(String),
    /// All that went back of a payment, by its intent.
    Payment(String),
    /// What stands of a grant of a payment that has no name of its own here, by the grant's reference.
    Grant(String),
}

/// What is to be looked at again, with the differences that it had.
type Suspects = BTreeMap<Subject, Vec<Difference>>;

/// One comparison under way.
struct Comparison<'a> {
    stripe: &'a Stripe,
    since: Time,
    plans: HashMap<String, String>,
    suspects: Suspects,
    report: Report,
}

/// Compares what was made since then; where nothing is said, within [`DAYS`].
pub async fn compare(stripe: &Stripe, since: Option<Since>) -> Result<Report, Failure> {
    let lately = stripe.db.now().await?.0.saturating_sub(DAYS * 86_400_000);
    let Since(since) = since.unwrap_or(Since(Some(Time(lately))));
    let plans = here::plans_by_price(&stripe.db).await?;
    let report = Report { since, ..Report::default() };
    let since = since.unwrap_or(Time(0));
    let mut comparison = Comparison { stripe, since, plans, suspects: Suspects::new(), report };
    comparison.look_at_purchases().await?;
    comparison.look_at_invoices().await?;
    comparison.look_at_subscriptions().await?;
    comparison.look_at_reversals().await?;
    comparison.confirm().await
}

impl Comparison<'_> {
    fn suspect(&mut self, subject: Subject, differences: Vec<Difference>) {
        if !differences.is_empty() {
            self.suspects.entry(subject).or_default().extend(differences);
        }
    }

    /// Has it asked for by its id: it was in no page.
    fn miss(&mut self, subject: Subject) {
        self.suspects.entry(subject).or_default();
    }

    /// Reads what is suspected again until it is known to be drift or none.
    async fn confirm(mut self) -> Result<Report, Failure> {
        let mut found: BTreeMap<(String, &'static str), Difference> = BTreeMap::new();
        for round in 0..ROUNDS {
            if self.suspects.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            let pending = Pending::read(self.stripe, self.since).await?;
            for (subject, before) in std::mem::take(&mut self.suspects) {
                let mut now = self.examine(&subject).await?;
                let mut settled = true;
                for difference in &mut now {
                    // Drift is what was the same before the events were asked for that may explain it.
                    let same = before.iter().any(|known| same(known, difference));
                    difference.open = pending.explains(difference);
                    if difference.open.is_none() && !same {
                        settled = false;
                        difference.open = (round + 1 == ROUNDS).then_some("changing");
                    }
                }
                if !settled && round + 1 < ROUNDS {
                    self.suspects.insert(subject, now);
                    continue;
                }
                for difference in now {
                    found.insert((difference.subject.clone(), difference.what), difference);
                }
            }
        }
        self.report.differences = found.into_values().collect();
        self.report.open = self.report.differences.iter().filter(|one| one.open.is_some()).count();
        self.report.drifts = self.report.differences.len() - self.report.open;
        Ok(self.report)
    }
}

fn same(one: &Difference, other: &Difference) -> bool {
    let key = |difference: &Difference| {
        let Difference { subject, what, stored, expected, .. } = difference.clone();
        (subject, what, stored, expected)
    };
    key(one) == key(other)
}
