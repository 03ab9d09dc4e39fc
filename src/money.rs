//! Money as integers of nano-dollars, with arithmetic that says so when it does not fit.
//!
//! One cent is 10,000,000 nanos, so an `i64` reaches 922,337,203,685 cents. Nothing here rounds
//! unless its name says in which direction.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Nano-dollars in one cent.
pub const NANOS_PER_CENT: i64 = 10_000_000;

/// The largest amount a caller may name, in cents. It leaves room below `i64::MAX` nanos, so that
/// a balance at its limit can still be added to without wrapping.
pub const MAX_CENTS: i64 = 900_000_000_000;

/// An exact amount of money in nano-dollars. Negative only for what is taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    pub const ZERO: Nanos = Nanos(0);

    /// Whole cents as nanos; `None` outside `0..=MAX_CENTS`, which is what callers may name.
    pub fn from_cents(cents: i64) -> Option<Nanos> {
        (0..=MAX_CENTS).contains(&cents).then(|| Nanos(cents * NANOS_PER_CENT))
    }

    /// Cents, rounded up (towards positive infinity): how every `*_cents` of a cost goes out.
    pub fn cents_rounded_up(self) -> i64 {
        self.0.div_euclid(NANOS_PER_CENT) + i64::from(self.0.rem_euclid(NANOS_PER_CENT) != 0)
    }

    /// Cents, rounded down: for what remains, so that nobody is promised a cent that is not there.
    pub fn cents_rounded_down(self) -> i64 {
        self.0.div_euclid(NANOS_PER_CENT)
    }

    /// The exact amount in dollars as a decimal string without trailing zeros: `0.00858`, `12`.
    pub fn to_usd(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let dollars = self.0.unsigned_abs() / 1_000_000_000;
        let fraction = format!("{:09}", self.0.unsigned_abs() % 1_000_000_000);
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{sign}{dollars}"),
            fraction => write!(f, "{sign}{dollars}.{fraction}"),
        }
    }
}

/// A sum read from the database in two halves, because the sum of many `BIGINT`s need not fit one:
/// `billions` is the sum of `x / 1_000_000_000`, `rest` the sum of `x % 1_000_000_000`.
/// Saturates at the ends of `i64`.
pub fn sum_of_halves(billions: i64, rest: i64) -> i64 {
    let sum = i128::from(billions) * 1_000_000_000 + i128::from(rest);
    sum.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_exact_decimal_strings() {
        for (nanos, text) in [
            (8_580_000, "0.00858"),
            (0, "0"),
            (1, "0.000000001"),
            (12_000_000_000, "12"),
            (-10_000_000, "-0.01"),
            (i64::MIN, "-9223372036.854775808"),
        ] {
            assert_eq!(Nanos(nanos).to_usd(), text);
        }
    }

    #[test]
    fn cents_round_in_the_stated_direction() {
        for (nanos, up, down) in [(0, 0, 0), (1, 1, 0), (10_000_000, 1, 1), (10_000_001, 2, 1), (-1, 0, -1)] {
            assert_eq!(Nanos(nanos).cents_rounded_up(), up, "{nanos} up");
            assert_eq!(Nanos(nanos).cents_rounded_down(), down, "{nanos} down");
        }
        assert_eq!(Nanos(i64::MAX).cents_rounded_up(), 922_337_203_686);
    }

    #[test]
    fn only_amounts_that_leave_room_are_taken() {
        assert_eq!(Nanos::from_cents(MAX_CENTS), Some(Nanos(9_000_000_000_000_000_000)));
        for cents in [-1, MAX_CENTS + 1, i64::MAX, i64::MIN] {
            assert_eq!(Nanos::from_cents(cents), None);
        }
    }

    #[test]
    fn a_sum_too_large_for_the_database_saturates() {
        assert_eq!(sum_of_halves(2, 5), 2_000_000_005);
        assert_eq!(sum_of_halves(i64::MAX, 0), i64::MAX);
    }
}
