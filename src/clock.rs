//! Time, injected. Every part that needs to know what time it is asks a [`Clock`] it was given, so
//! that tests walk over midnight at will and replicas agree with their database instead of with
//! their own machine. Calling `SystemTime::now` elsewhere is refused by clippy (`clippy.toml`).

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde::{Serialize, Serializer};

/// A moment: milliseconds since 1970 in UTC. Goes out as RFC 3339.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub i64);

impl Time {
    /// The moment `after` this one; stays at the end of time rather than wrap.
    pub fn plus(self, after: Duration) -> Time {
        Time(self.0.saturating_add(i64::try_from(after.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Reads RFC 3339, with any offset; `None` if it is not that.
    pub fn parse(text: &str) -> Option<Time> {
        text.parse::<jiff::Timestamp>().ok().map(|at| Time(at.as_millisecond()))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(at) => write!(f, "{at:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a part gets the time from: the database's clock as it was last heard, or a hand that a test
/// moves.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    /// The time at `since`, which the monotonic clock carries on: a step of the machine's clock
    /// must not move everybody's windows.
    System {
        since: Instant,
        then_ms: AtomicI64,
    },
    Manual(AtomicI64),
}

impl Clock {
    /// The machine's clock as it stands now, until [`Clock::follow`] corrects it.
    pub fn system() -> Clock {
        Clock(Arc::new(Source::System { since: Instant::now(), then_ms: AtomicI64::new(machine_ms()) }))
    }

    /// A clock that stands at `start` until [`Clock::set`] moves it.
    pub fn manual(start: Time) -> Clock {
        Clock(Arc::new(Source::Manual(AtomicI64::new(start.0))))
    }

    pub fn now(&self) -> Time {
        match &*self.0 {
            Source::System { since, then_ms } => Time(then_ms.load(Ordering::Relaxed) + elapsed_ms(*since)),
            Source::Manual(at) => Time(at.load(Ordering::SeqCst)),
        }
    }

    /// Corrects a system clock so that it now reads `reference`. A manual clock does not follow.
    pub fn follow(&self, reference: Time) {
        if let Source::System { since, then_ms } = &*self.0 {
            then_ms.store(reference.0 - elapsed_ms(*since), Ordering::Relaxed);
        }
    }

    /// Moves a manual clock, forwards or back. A system clock does not move.
    pub fn set(&self, to: Time) {
        if let Source::Manual(at) = &*self.0 {
            at.store(to.0, Ordering::SeqCst);
        }
    }
}

fn elapsed_ms(since: Instant) -> i64 {
    i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
fn machine_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_go_out_and_come_back_as_rfc_3339() {
        assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00.000Z");
        assert_eq!(Time(1_763_689_320_123).to_string(), "2025-11-21T01:42:00.123Z");
        assert_eq!(Time::parse("2025-11-21T02:42:00.123+01:00"), Some(Time(1_763_689_320_123)));
        assert_eq!(Time::parse("yesterday"), None);
        assert_eq!(Time(i64::MAX).to_string(), "9223372036854775807ms");
    }

    #[test]
    fn a_system_clock_follows_its_database() {
        let clock = Clock::system();
        clock.follow(Time(1_000_000));
        assert!((1_000_000..1_060_000).contains(&clock.now().0));
    }
}
