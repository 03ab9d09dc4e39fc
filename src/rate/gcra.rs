//! The algorithm, as arithmetic without a clock or a store, so that its twin `gcra.lua` can be held against it
//! line by line.
//!
//! It is the Generic Cell Rate Algorithm (ITU-T I.371, the virtual scheduling form): a bucket has a theoretical
//! arrival time (TAT), each take moves it on by the emission interval of 60 s / `per_minute`, and a take is
//! there while the TAT is then no more than the tolerance of 60 s ahead of now. So the whole allowance may come
//! as one burst, and refills evenly.
//!
//! What is kept is not the TAT but how far it was ahead when last written (`owed`), and when that was (`at`):
//! `TAT = at + owed / per_minute`. `owed` counts **ticks** of 1/`per_minute` µs. In ticks an emission interval is
//! the integer 60,000,000 at every rate, so nothing is rounded, a give-back undoes a take to the last bit, and
//! Lua's doubles, which have no room for fractions beside a date, agree with the integers here.

/// A minute in µs; and an emission interval in ticks, whatever the rate.
const MINUTE: u64 = 60_000_000;

/// What a call does to a bucket. The numbers are what `gcra.lua` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    GiveBack = -1,
    Look = 0,
    Take = 1,
}

/// What is kept of a bucket that is not full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bucket {
    /// When this was written: µs on the clock of whoever keeps it.
    at: u64,
    /// How far the TAT was ahead of `at`, in ticks of the rate below.
    owed: u64,
    /// The rate that these ticks belong to, at least 1.
    per_minute: u32,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// A take: whether one was taken. Else: whether one is there to be taken.
    pub allowed: bool,
    /// How far the TAT is ahead of now, in ticks.
    pub owed: u64,
}

impl Bucket {
    /// What `kept` owes at `now` (µs), in ticks of `per_minute`.
    ///
    /// When the rate has changed, the share of the allowance that is used stays: whoever had used half of the
    /// old one has half of the new one left, and neither gains nor loses by the change itself.
    fn owed(kept: Option<Bucket>, now: u64, per_minute: u32) -> u64 {
        let Some(Bucket { at, owed, per_minute: was }) = kept else { return 0 };
        let owed = owed.saturating_sub(now.saturating_sub(at).saturating_mul(was.into()));
        if was == per_minute {
            return owed;
        }
        let rescaled = u128::from(owed) * u128::from(per_minute) / u128::from(was.max(1));
        u64::try_from(rescaled).unwrap_or(u64::MAX)
    }

    /// Applies `change` at `now` (µs) under an allowance of `per_minute`, at least 1. Gives what became of it and
    /// what is to be kept, which may be nothing: then the bucket is full.
    pub fn apply(
        kept: Option<Bucket>,
        now: u64,
        per_minute: u32,
        change: Change,
    ) -> (Verdict, Option<Bucket>) {
        let owed = Bucket::owed(kept, now, per_minute);
        let there = |owed: u64| owed.saturating_add(MINUTE) <= MINUTE * u64::from(per_minute);
        let (allowed, after) = match change {
            Change::Take if there(owed) => (true, owed + MINUTE),
            Change::Take | Change::Look => (there(owed), owed),
            Change::GiveBack => {
                let after = owed.saturating_sub(MINUTE);
                (there(after), after)
            }
        };
        // A clock set back: count on from where it now stands, else nothing would refill until it has caught up.
        let ahead = kept.is_some_and(|kept| kept.at > now);
        let keep = match after {
            _ if after == owed && !ahead => kept,
            0 => None,
            owed => Some(Bucket { at: now, owed, per_minute }),
        };
        (Verdict { allowed, owed: after }, keep)
    }

    /// Whether nothing is owed any more at `now` (µs), so that keeping it says nothing.
    pub fn is_full(&self, now: u64) -> bool {
        Bucket::owed(Some(*self), now, self.per_minute) == 0
    }
}

impl Verdict {
    /// How many more can be taken at once.
    pub fn remaining(&self, per_minute: u32) -> u32 {
        let used = u32::try_from(self.owed.div_ceil(MINUTE)).unwrap_or(u32::MAX);
        per_minute.saturating_sub(used)
    }

    /// Seconds until the whole allowance is there again, rounded up.
    pub fn full_in_seconds(&self, per_minute: u32) -> u64 {
        seconds(self.owed, per_minute)
    }

    /// Seconds until one can be taken, rounded up; 0 when one can be now.
    pub fn one_in_seconds(&self, per_minute: u32) -> u64 {
        let all_but_one = MINUTE * u64::from(per_minute.saturating_sub(1));
        seconds(self.owed.saturating_sub(all_but_one), per_minute)
    }
}

/// Ticks of `per_minute` as seconds, rounded up.
fn seconds(ticks: u64, per_minute: u32) -> u64 {
    ticks.div_ceil(u64::from(per_minute.max(1)) * 1_000_000)
}
