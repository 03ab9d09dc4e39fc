//! What the clients were told, what the limits were meanwhile, and what can be proven from these two
//! alone. Nothing here asks the server.

use std::time::Instant;

/// What a limit covers, by the places of keys and spells in their lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Account,
    Key(usize),
    Spell(usize),
    /// What is paid from credits.
    Credits,
}

/// A limit, and since when it holds: from some moment between asking for it and hearing that it does.
#[derive(Clone, Debug)]
struct Change {
    asked: Instant,
    answered: Instant,
    cents: i64,
}

/// A limit and all that it ever was.
#[derive(Clone, Debug)]
pub struct Limit {
    pub account: usize,
    pub scope: Scope,
    /// As the API names it; `lifetime` has no window's edge.
    pub period: &'static str,
    changes: Vec<Change>,
}

impl Limit {
    /// One that was set before anything was cast.
    pub fn new(account: usize, scope: Scope, period: &'static str, cents: i64) -> Limit {
        let now = Instant::now();
        Limit { account, scope, period, changes: vec![Change { asked: now, answered: now, cents }] }
    }

    /// It became `cents` after it was `asked` for, and by now.
    pub fn changed(&mut self, asked: Instant, cents: i64) {
        self.changes.push(Change { asked, answered: Instant::now(), cents });
    }

    pub fn last(&self) -> i64 {
        self.changes.last().map_or(0, |change| change.cents)
    }

    pub fn highest_ever(&self) -> i64 {
        self.changes.iter().map(|change| change.cents).max().unwrap_or(0)
    }

    /// What it may have been at some moment of that time.
    fn between(&self, from: Instant, to: Instant) -> impl Iterator<Item = i64> {
        self.changes.iter().enumerate().filter_map(move |(number, change)| {
            let over = self.changes.get(number + 1).is_some_and(|next| next.answered < from);
            (change.asked <= to && !over).then_some(change.cents)
        })
    }

    pub fn covers(&self, record: &Record) -> bool {
        self.account == record.account
            && match self.scope {
                Scope::Account => true,
                Scope::Key(key) => record.key == key,
                Scope::Spell(spell) => record.spell == Some(spell),
                Scope::Credits => record.from_credits,
            }
    }

    /// Whether what was spent in one of the two windows counts in the other.
    fn has_edge(&self) -> bool {
        self.period != "lifetime"
    }
}

/// The figures of a 402.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub scope: Scope,
    pub period: String,
    pub limit: i64,
    pub spent: i64,
    pub reserved: i64,
    pub requested: i64,
    /// Whether it was the window after the edge that had no room.
    pub after_the_edge: bool,
}

/// How something ended, as its client knows it.
#[derive(Clone, Debug)]
pub enum End {
    /// 200, with that id.
    Told {
        id: String,
        after_the_edge: bool,
    },
    Refused(Refusal),
    /// 502 or 504: it cost nothing.
    Failed,
    /// It may have been booked or not: no answer, or a 503.
    Unknown,
    /// An external hold: it stays until it expires or is dropped.
    Held,
}

/// One cast or hold, from its first request to its last answer.
#[derive(Clone, Debug)]
pub struct Record {
    pub account: usize,
    pub key: usize,
    /// `None` for holds.
    pub spell: Option<usize>,
    pub from_credits: bool,
    pub cents: i64,
    /// Named an `Idempotency-Key`.
    pub keyed: bool,
    pub first_sent: Instant,
    pub last_sent: Instant,
    pub answered: Instant,
    pub end: End,
    /// The id that the same key was told when it came again, or that it was refused.
    pub repeated: Option<Result<String, u16>>,
}

impl Record {
    /// Whether it may have taken room from that window between `from` and `to`.
    fn may_take(&self, limit: &Limit, after_the_edge: bool, from: Instant, to: Instant) -> bool {
        limit.covers(self)
            && self.first_sent <= to
            && match &self.end {
                Told { after_the_edge: side, .. } => *side == after_the_edge || !limit.has_edge(),
                End::Refused(_) | End::Failed => self.answered >= from,
                End::Unknown | End::Held => true,
            }
    }
}

use End::Told;

/// By how many cents casts passed this limit that had been told of too many before they were sent: what
/// was answered by then had certainly been booked.
pub fn passed(limit: &Limit, records: &[Record]) -> i64 {
    let told = |record: &&Record| limit.covers(record) && matches!(record.end, Told { .. });
    let side = |record: &Record| match record.end {
        Told { after_the_edge, .. } => after_the_edge && limit.has_edge(),
        _ => false,
    };
    let covered: Vec<&Record> = records.iter().filter(told).collect();
    let by = covered.iter().map(|cast| {
        let before =
            covered.iter().filter(|other| other.answered < cast.first_sent && side(other) == side(cast));
        let spent: i64 = before.map(|other| other.cents).sum();
        let highest = limit.between(cast.first_sent, cast.answered).max().unwrap_or(0);
        spent + cast.cents - highest
    });
    by.max().unwrap_or(0).max(0)
}

/// The refusals while there was room: by their own figures, or because there was some even if all that
/// may have been booked or held by then was.
pub fn false_refusals<'a>(limits: &[Limit], records: &'a [Record]) -> Vec<&'a Record> {
    let is_false = |record: &&Record| {
        let End::Refused(refusal) = &record.end else { return false };
        let named = limits.iter().find(|limit| {
            limit.covers(record) && limit.scope == refusal.scope && limit.period == refusal.period
        });
        let Some(limit) = named else { return true };
        if refusal.spent + refusal.reserved + refusal.requested <= refusal.limit
            || refusal.requested != record.cents
        {
            return true;
        }
        let may_take = |other: &&Record| {
            other.may_take(limit, refusal.after_the_edge, record.last_sent, record.answered)
                && !std::ptr::eq(*other, *record)
        };
        let taken: i64 = records.iter().filter(may_take).map(|other| other.cents).sum();
        let lowest = limit.between(record.last_sent, record.answered).min().unwrap_or(0);
        taken + record.cents <= lowest
    };
    records.iter().filter(is_false).collect()
}

#[cfg(test)]
#[allow(dead_code, reason = "the program has no tests of its own: they run in tests/it")]
mod tests {
    use std::time::Duration;

    use super::*;

    const PRICE: i64 = 10;

    struct Day(Instant);

    impl Day {
        fn at(&self, ms: u64) -> Instant {
            self.0 + Duration::from_millis(ms)
        }

        fn limit(&self, cents: i64) -> Limit {
            let first = Change { asked: self.0, answered: self.0, cents };
            Limit { account: 0, scope: Scope::Account, period: "daily", changes: vec![first] }
        }

        fn record(&self, sent: u64, answered: u64, end: End) -> Record {
            Record {
                account: 0,
                key: 0,
                spell: Some(0),
                from_credits: false,
                cents: PRICE,
                keyed: false,
                first_sent: self.at(sent),
                last_sent: self.at(sent),
                answered: self.at(answered),
                end,
                repeated: None,
            }
        }

        fn told(&self, sent: u64, answered: u64) -> Record {
            self.record(sent, answered, Told { id: format!("{sent}"), after_the_edge: false })
        }

        fn refused(&self, sent: u64, answered: u64, limit: i64, spent: i64) -> Record {
            let refusal = Refusal {
                scope: Scope::Account,
                period: "daily".to_owned(),
                limit,
                spent,
                reserved: 0,
                requested: PRICE,
                after_the_edge: false,
            };
            self.record(sent, answered, End::Refused(refusal))
        }
    }

    #[test]
    fn a_cast_after_the_limit_was_full_is_counted_by_its_excess() {
        let day = Day(Instant::now());
        let limit = day.limit(25);
        let mut records = vec![day.told(0, 1), day.told(2, 3)];
        assert_eq!(passed(&limit, &records), 0);
        records.push(day.told(4, 5));
        assert_eq!(passed(&limit, &records), 5);
        records[2].account = 1;
        assert_eq!(passed(&limit, &records), 0, "another account's");
        records[2].account = 0;
        records[2].end = Told { id: "next".to_owned(), after_the_edge: true };
        assert_eq!(passed(&limit, &records), 0, "another window's");
    }

    #[test]
    fn a_limit_that_is_being_changed_is_either_of_the_two() {
        let day = Day(Instant::now());
        let mut limit = day.limit(20);
        limit.changes.push(Change { asked: day.at(10), answered: day.at(20), cents: 10 });
        let first = day.told(0, 1);
        let second = |sent, answered| vec![first.clone(), day.told(sent, answered)];
        assert_eq!(passed(&limit, &second(12, 14)), 0);
        assert_eq!(passed(&limit, &second(21, 22)), 10);
        let refused = |sent, answered| vec![first.clone(), day.refused(sent, answered, 10, 10)];
        let of = |records: &[Record]| false_refusals(std::slice::from_ref(&limit), records).len();
        assert_eq!(of(&refused(12, 14)), 0);
        assert_eq!(of(&refused(2, 9)), 1, "it was 20 still");
    }

    #[test]
    fn a_refusal_is_false_by_its_figures_or_because_nothing_can_have_filled_the_limit() {
        let day = Day(Instant::now());
        let limits = [day.limit(25)];
        let of = |records: &[Record]| false_refusals(&limits, records).len();
        let full = [day.told(0, 1), day.told(2, 3), day.refused(4, 5, 25, 20)];
        assert_eq!(of(&full), 0);
        assert_eq!(
            of(&[day.told(0, 1), day.told(2, 3), day.refused(4, 5, 25, 15)]),
            1,
            "it says there is room"
        );
        assert_eq!(of(&[day.told(0, 1), day.refused(4, 5, 25, 20)]), 1, "who took the rest?");
        assert_eq!(of(&[day.told(0, 1), day.told(6, 7), day.refused(4, 5, 25, 20)]), 1, "nobody yet");
        let unknown = day.record(2, 3, End::Unknown);
        assert_eq!(of(&[day.told(0, 1), unknown, day.refused(4, 5, 25, 20)]), 0, "perhaps that one");
        let failed = day.record(2, 3, End::Failed);
        assert_eq!(of(&[day.told(0, 1), failed, day.refused(4, 5, 25, 20)]), 1, "it had given it back");
    }
}
