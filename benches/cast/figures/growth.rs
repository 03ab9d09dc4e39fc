//! Whether a process's memory grows.

use std::fmt;

use super::decimals;

/// Memory in use at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub seconds: f64,
    pub megabytes: f64,
}

/// Of the line fitted through all samples after the warm-up: it may rise by this share of where it begins...
const FLAT_SHARE: f64 = 0.05;
/// ...or by this much, from the first of them to the last, and is flat.
const FLAT_MEGABYTES: f64 = 2.0;

/// What the samples after the warm-up come to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    pub start: f64,
    pub end: f64,
    pub most: f64,
    /// Of the fitted line.
    pub per_hour: f64,
    /// Where the fitted line begins, and how far it rises.
    begins: f64,
    rises: f64,
}

impl Growth {
    /// Of the samples that are at least `warm_up` seconds old. `None`: they are fewer than two.
    pub fn of(samples: &[Sample], warm_up: f64) -> Option<Growth> {
        let kept: Vec<&Sample> = samples.iter().filter(|sample| sample.seconds >= warm_up).collect();
        let (first, last) = (kept.first()?, kept.last()?);
        let lasted = last.seconds - first.seconds;
        let count = kept.len() as f64;
        let mean_of =
            |value: fn(&Sample) -> f64| kept.iter().map(|sample| value(sample)).sum::<f64>() / count;
        let (middle, height) = (mean_of(|sample| sample.seconds), mean_of(|sample| sample.megabytes));
        let along = |sample: &Sample| sample.seconds - middle;
        let square: f64 = kept.iter().map(|sample| along(sample).powi(2)).sum();
        if square == 0.0 {
            return None;
        }
        let product: f64 = kept.iter().map(|sample| along(sample) * (sample.megabytes - height)).sum();
        let slope = product / square;
        Some(Growth {
            start: first.megabytes,
            end: last.megabytes,
            most: kept.iter().map(|sample| sample.megabytes).fold(0.0, f64::max),
            per_hour: slope * 3_600.0,
            begins: height - slope * (middle - first.seconds),
            rises: slope * lasted,
        })
    }

    pub fn is_flat(&self) -> bool {
        self.rises <= FLAT_MEGABYTES || self.rises <= self.begins * FLAT_SHARE
    }
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = decimals(1);
        write!(
            f,
            "{} MB after the warm-up, {} MB at the end, {} MB at most, {} MB an hour by the fitted line, which \
             rises by {} MB: {}",
            one(self.start),
            one(self.end),
            one(self.most),
            one(self.per_hour),
            one(self.rises),
            if self.is_flat() { "flat" } else { "NOT flat" }
        )
    }
}

#[cfg(test)]
#[allow(dead_code, unused_imports, reason = "the program has no tests of its own: they run in tests/it")]
mod tests {
    use super::*;

    fn line(from: f64, per_second: f64) -> Vec<Sample> {
        let at = |n| f64::from(n) * 5.0;
        (0..120)
            .map(|n| Sample { seconds: at(n), megabytes: from + per_second * at(n) + f64::from(n % 2) })
            .collect()
    }

    #[test]
    fn what_wobbles_is_flat_and_what_leaks_is_not() {
        assert!(Growth::of(&line(40.0, 0.0), 60.0).unwrap().is_flat());
        assert!(Growth::of(&line(40.0, -0.1), 60.0).unwrap().is_flat(), "it gave memory back");
        let leak = Growth::of(&line(40.0, 0.02), 60.0).unwrap();
        assert!(!leak.is_flat(), "{leak}");
        assert!((leak.per_hour - 72.0).abs() < 1.0, "{leak}");
    }

    #[test]
    fn a_twentieth_of_where_it_begins_is_allowed() {
        // Both rise by 5.35 MB.
        assert!(Growth::of(&line(200.0, 0.01), 60.0).unwrap().is_flat());
        assert!(!Growth::of(&line(50.0, 0.01), 60.0).unwrap().is_flat());
    }

    #[test]
    fn the_warm_up_counts_for_nothing() {
        let mut samples = line(100.0, 0.0);
        for sample in samples.iter_mut().filter(|sample| sample.seconds < 60.0) {
            sample.megabytes = 10.0;
        }
        let growth = Growth::of(&samples, 60.0).unwrap();
        assert!(growth.is_flat() && growth.start >= 100.0, "{growth}");
        assert!(!Growth::of(&samples, 0.0).unwrap().is_flat());
    }

    #[test]
    fn of_one_moment_nothing_can_be_said() {
        let once = Sample { seconds: 70.0, megabytes: 10.0 };
        assert_eq!(Growth::of(&[once, once], 60.0), None);
        assert_eq!(Growth::of(&[once], 80.0), None);
    }

    #[test]
    fn it_is_told_in_a_sentence() {
        let samples: Vec<Sample> =
            (0..3).map(|n| Sample { seconds: f64::from(n) * 10.0, megabytes: 30.0 - f64::from(n) }).collect();
        assert_eq!(
            Growth::of(&samples, 0.0).unwrap().to_string(),
            "30.0 MB after the warm-up, 28.0 MB at the end, 30.0 MB at most, -360.0 MB an hour by the fitted \
             line, which rises by -2.0 MB: flat"
        );
    }
}
