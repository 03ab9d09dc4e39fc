//! The middle of several measurements, and how far apart they were.

/// The value below which `share` of the sorted values lie; 0 where there are none.
pub fn percentile(sorted: &[u32], share: f64) -> u32 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at).or(sorted.last()).copied().unwrap_or(0)
}

/// Several measurements of the same thing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (values[0], values[values.len() - 1]);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { median, low, high }
    }

    /// Of what was measured of one thing against what was measured of another in the same round, round by
    /// round: what slows the machine for a while slows both.
    pub fn of_ratios(these: &[f64], those: &[f64]) -> Spread {
        Spread::of(these.iter().zip(those).map(|(this, that)| this / that))
    }

    /// The median, and the lowest and the highest unless all are written alike.
    pub fn shown(&self, number: impl Fn(f64) -> String) -> String {
        let (median, low, high) = (number(self.median), number(self.low), number(self.high));
        if low == high { median } else { format!("{median} ({low} to {high})") }
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no tests of its own: they run in tests/it")]
mod tests {
    use super::*;
    use crate::figures::{ratio, whole};

    #[test]
    fn a_percentile_is_the_value_that_the_share_lies_below() {
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(percentile(&hundred, 0.5), 51);
        assert_eq!(percentile(&hundred, 0.99), 100);
        assert_eq!(percentile(&hundred, 1.0), 100);
        assert_eq!(percentile(&[7], 0.99), 7);
        assert_eq!(percentile(&[], 0.5), 0);
    }

    #[test]
    fn the_middle_is_between_the_two_middle_ones_of_an_even_number() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Spread { median: 2.0, low: 1.0, high: 3.0 });
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 3.0]).median, 2.5);
        assert_eq!(Spread::of([5.0]), Spread { median: 5.0, low: 5.0, high: 5.0 });
    }

    #[test]
    fn a_ratio_is_taken_within_each_round() {
        // The machine was half as fast in the second round: the ratio is the same.
        assert_eq!(Spread::of_ratios(&[10.0, 5.0], &[20.0, 10.0]).shown(ratio), "0.500");
        assert_eq!(Spread::of_ratios(&[10.0, 10.0], &[20.0, 10.0]).shown(ratio), "0.750 (0.500 to 1.00)");
    }

    #[test]
    fn what_is_written_alike_has_no_spread() {
        assert_eq!(Spread::of([1000.1, 1000.2]).shown(whole), "1,000");
        assert_eq!(Spread::of([999.0, 1000.0, 1002.0]).shown(whole), "1,000 (999 to 1,002)");
    }
}
