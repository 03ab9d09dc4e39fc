//! A plan's units over time: each definition it had, and which of them holds for a user now.
//!
//! A window keeps the definition that it began with. A change of the plan waits for the end of the
//! window that it was made in, which is each user's own: one whose units are a month's keeps them to
//! the month's end, though the plan has become a daily one. Nothing is stored per user: the history
//! of the plan and since when the user has it say it all, to every replica alike.
//!
//! # Failure behavior
//!
//! [`in_force`] is a function of its arguments. A clock that goes back gives a window from before,
//! never a later one. [`versions`] runs inside its caller's transaction.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    clock::Time,
    store::{Rows, StoreError, Tx, binds, statements},
    window::{Period, Window},
};

/// How a plan's units were defined, from a moment on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How often the units begin anew: daily or monthly.
    pub period: Period,
    /// Units by action. An action that is not there has none.
    pub limits: BTreeMap<String, i64>,
    pub from: Time,
}

/// The definition that holds at `now` for who has the plan since `plan_since`, and the calendar window
/// that its units are for. `versions` are all that the plan had, the oldest first; `None` if there
/// are none.
///
/// The first window has the version in force at `plan_since`, or the first one there is; each later
/// one the last version that was made before it began. So after a change from daily to monthly the day is
/// the last one, and at its end the month that it is in begins, with all of a month's units: a window
/// may start earlier than it came into force.
pub fn in_force(versions: &[Terms], plan_since: Time, now: Time) -> Option<(&Terms, Window)> {
    let now = now.max(plan_since);
    let mut current = versions.partition_point(|version| version.from <= plan_since).saturating_sub(1);
    loop {
        let terms = versions.get(current)?;
        // The end of the window in which the next change was made: all that were made in it act then.
        let end = versions.get(current + 1).and_then(|next| terms.period.window(next.from).end);
        match end.filter(|end| *end <= now) {
            None => return Some((terms, terms.period.window(now))),
            Some(end) => current = versions.partition_point(|version| version.from < end).saturating_sub(1),
        }
    }
}

/// How long a version can matter after another took its place. Every window ends with a month at the
/// latest, and the one after that has the last version made before it; the rest is for clocks.
const REACH_MS: i64 = 62 * 86_400_000;

statements! {
    VERSIONS = "
        SELECT plan_versions.code, period, limits, created_at
        FROM {rows} JOIN plan_versions ON plan_versions.code = given.value ->> 0
        WHERE created_at >= COALESCE((SELECT MAX(older.created_at) FROM plan_versions AS older
                                      WHERE older.code = plan_versions.code AND older.created_at < $2), $2)
        ORDER BY plan_versions.code, created_at, version";
}

/// What [`in_force`] needs to know at `now` of the plans of these codes, by code. A plan that does not
/// exist is not there.
pub async fn versions(
    tx: &mut Tx,
    codes: &[&str],
    now: Time,
) -> Result<BTreeMap<String, Vec<Terms>>, StoreError> {
    let codes: BTreeSet<&str> = codes.iter().copied().collect();
    if codes.is_empty() {
        return Ok(BTreeMap::new());
    }
    let since = Time(now.0.saturating_sub(REACH_MS));
    let rows: Vec<(String, String, String, i64)> = tx.all(&VERSIONS, binds![Rows::of(codes), since]).await?;
    let mut versions: BTreeMap<String, Vec<Terms>> = BTreeMap::new();
    for (code, period, limits, from) in rows {
        let unreadable = || StoreError::Refused(format!("a version of the plan {code} can't be read"));
        let terms = Terms {
            period: Period::parse(&period).ok_or_else(unreadable)?,
            limits: serde_json::from_str(&limits).map_err(|_| unreadable())?,
            from: Time(from),
        };
        versions.entry(code).or_default().push(terms);
    }
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;
    use proptest::prelude::*;

    const DAY: i64 = 86_400_000;

    fn at(text: &str) -> Time {
        Time::parse(text).unwrap()
    }

    /// Versions that their units tell apart.
    fn history(versions: &[(&str, Period)]) -> Vec<Terms> {
        let numbered = versions.iter().zip(1..);
        numbered
            .map(|((from, period), number)| Terms {
                period: *period,
                limits: BTreeMap::from([("tpl_run".to_owned(), number)]),
                from: at(from),
            })
            .collect()
    }

    /// The number of the version that holds, and its window's first and last day.
    fn held(versions: &[Terms], since: &str, now: &str) -> (i64, String) {
        let (terms, window) = in_force(versions, at(since), at(now)).unwrap();
        let last = Time(window.end.unwrap().0 - 1).to_string();
        (terms.limits["tpl_run"], format!("{} {}", &window.start.to_string()[5..10], &last[5..10]))
    }

    fn is(number: i64, days: &str) -> (i64, String) {
        (number, days.to_owned())
    }

    use Period::{Daily, Monthly};

    #[test]
    fn a_change_waits_for_the_end_of_the_month_it_was_made_in() {
        let versions = history(&[
            ("2024-01-01T00:00:00Z", Monthly),
            ("2024-02-10T12:00:00Z", Monthly),
            ("2024-02-29T23:59:59.999Z", Monthly),
            ("2024-03-01T00:00:00Z", Monthly),
        ]);
        let since = "2024-01-15T00:00:00Z";
        assert_eq!(held(&versions, since, since), is(1, "01-01 01-31"));
        assert_eq!(held(&versions, since, "2024-02-10T12:00:00Z"), is(1, "02-01 02-29"));
        assert_eq!(held(&versions, since, "2024-02-29T23:59:59.999Z"), is(1, "02-01 02-29"));
        // The last one that was made in February; that of the first moment of March is March's.
        assert_eq!(held(&versions, since, "2024-03-01T00:00:00Z"), is(3, "03-01 03-31"));
        assert_eq!(held(&versions, since, "2024-03-31T23:59:59.999Z"), is(3, "03-01 03-31"));
        assert_eq!(held(&versions, since, "2024-04-01T00:00:00Z"), is(4, "04-01 04-30"));
        assert_eq!(held(&versions, since, "2031-07-04T00:00:00Z"), is(4, "07-01 07-31"));
        // Who comes later begins with what was in force then.
        assert_eq!(held(&versions, "2024-02-20T00:00:00Z", "2024-02-20T00:00:00Z"), is(2, "02-01 02-29"));
        assert_eq!(held(&versions, "2024-03-01T00:00:00Z", "2024-03-01T00:00:00Z"), is(4, "03-01 03-31"));
    }

    #[test]
    fn a_daily_plan_that_becomes_monthly_ends_its_day() {
        let versions = history(&[("2024-02-01T00:00:00Z", Daily), ("2024-02-28T01:00:00Z", Monthly)]);
        let since = "2024-02-01T00:00:00Z";
        assert_eq!(held(&versions, since, "2024-02-28T23:59:59.999Z"), is(1, "02-28 02-28"));
        assert_eq!(held(&versions, since, "2024-02-29T00:00:00Z"), is(2, "02-01 02-29"));
        assert_eq!(held(&versions, since, "2024-03-01T00:00:00Z"), is(2, "03-01 03-31"));
    }

    #[test]
    fn a_monthly_plan_that_becomes_daily_ends_its_month() {
        let versions = history(&[
            ("2023-12-01T00:00:00Z", Monthly),
            ("2023-12-02T00:00:00Z", Daily),
            ("2024-01-01T12:00:00Z", Daily),
        ]);
        let since = "2023-12-01T06:00:00Z";
        assert_eq!(held(&versions, since, "2023-12-31T23:59:59.999Z"), is(1, "12-01 12-31"));
        assert_eq!(held(&versions, since, "2024-01-01T23:59:59.999Z"), is(2, "01-01 01-01"));
        assert_eq!(held(&versions, since, "2024-01-02T00:00:00Z"), is(3, "01-02 01-02"));
        assert_eq!(held(&versions, "2023-12-03T00:00:00Z", "2023-12-03T00:00:00Z"), is(2, "12-03 12-03"));
    }

    #[test]
    fn before_all_history_it_is_the_first_version() {
        assert_eq!(in_force(&[], Time(0), Time(0)), None);
        let versions = history(&[("2024-02-10T00:00:00Z", Daily), ("2024-02-10T00:00:00Z", Monthly)]);
        assert_eq!(
            held(&versions, "2024-02-09T00:00:00Z", "2024-02-10T00:00:00Z"),
            is(1, "02-10 02-10"),
            "it has the plan for longer than the plan's history goes back"
        );
        let since = "2024-02-10T00:00:00Z";
        assert_eq!(held(&versions, since, "2024-02-09T23:59:59.990Z"), is(2, "02-01 02-29"));
    }

    #[test]
    fn no_time_is_too_far_off() {
        let versions = history(&[("2024-02-10T00:00:00Z", Daily), ("2024-02-11T00:00:00Z", Monthly)]);
        for now in [i64::MIN, -1, 0, i64::MAX - 1, i64::MAX] {
            for since in [i64::MIN, 0, i64::MAX] {
                assert!(in_force(&versions, Time(since), Time(now)).is_some());
            }
        }
    }

    /// Windows one after the other, as the rule says them.
    fn walked(versions: &[Terms], since: Time, now: Time) -> (&Terms, Window) {
        let mut terms = versions.iter().rev().find(|version| version.from <= since).unwrap_or(&versions[0]);
        let mut window = terms.period.window(since);
        while let Some(end) = window.end.filter(|end| *end <= now) {
            terms = versions.iter().rev().find(|version| version.from < end).unwrap_or(&versions[0]);
            window = terms.period.window(end);
        }
        (terms, window)
    }

    /// A moment of early 2024, often the first or the last one of its day.
    fn moment() -> impl Strategy<Value = Time> {
        let of_day = prop_oneof![Just(0), Just(DAY - 1), 0..DAY];
        (0..150i64, of_day).prop_map(|(day, ms)| Time(1_704_067_200_000 + day * DAY + ms))
    }

    fn versions_of(most: usize) -> impl Strategy<Value = Vec<Terms>> {
        let version = (moment(), prop_oneof![Just(Daily), Just(Monthly)]);
        proptest::collection::vec(version, 1..=most).prop_map(|mut versions| {
            versions.sort_by_key(|(from, _)| *from);
            let numbered = versions.into_iter().zip(1..);
            let limits = |number| BTreeMap::from([("tpl_run".to_owned(), number)]);
            numbered.map(|((from, period), number)| Terms { period, limits: limits(number), from }).collect()
        })
    }

    statements! {
        ADD = "INSERT INTO plan_versions (code, version, period, limits, created_at)
               VALUES ($1, $2, 'daily', '{\"tpl_run\": 1}', $3)";
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_can_still_matter_is_loaded_by_code_and_in_order() {
        each_backend(|db| async move {
            for (code, version, day) in [
                ("one", "v1", 1),
                ("one", "v2", 37),
                ("one", "v3", 38),
                ("one", "v4", 99),
                ("one", "v5", 101),
                ("old", "v1", 1),
                ("old", "v2", 2),
                ("new", "v1", 90),
                ("another", "v1", 90),
            ] {
                db.execute(&ADD, binds![code, version, Time(day * DAY)]).await.unwrap();
            }
            let mut tx = db.begin_read().await.unwrap();
            let codes = ["new", "one", "one", "none", "old"];
            let loaded = versions(&mut tx, &codes, Time(100 * DAY)).await.unwrap();
            let days = loaded.iter().map(|(code, versions)| {
                let days: Vec<i64> = versions.iter().map(|version| version.from.0 / DAY).collect();
                (code.as_str(), days)
            });
            let wanted = [("new", vec![90]), ("old", vec![2]), ("one", vec![37, 38, 99, 101])];
            assert_eq!(days.collect::<Vec<_>>(), wanted);
            let one = BTreeMap::from([("tpl_run".to_owned(), 1)]);
            assert_eq!((loaded["new"][0].period, &loaded["new"][0].limits), (Daily, &one));
            assert!(versions(&mut tx, &[], Time(0)).await.unwrap().is_empty());
        })
        .await;
    }

    proptest! {
        #[test]
        fn it_is_what_a_walk_from_window_to_window_finds(
            versions in versions_of(12), since in moment(), now in moment(),
        ) {
            prop_assert_eq!(in_force(&versions, since, now), Some(walked(&versions, since, now)));
        }

        #[test]
        fn windows_follow_each_other_and_keep_what_they_began_with(
            versions in versions_of(12), since in moment(), part in 0.0..1.0f64,
        ) {
            let mut began = since;
            while began < Time(since.0 + 100 * DAY) {
                let (terms, window) = in_force(&versions, since, began).unwrap();
                let end = window.end.unwrap();
                prop_assert!(window.start <= began && began < end, "it holds the moment it begins at");
                let inside = Time(began.0 + ((end.0 - began.0) as f64 * part) as i64).min(Time(end.0 - 1));
                for now in [inside, Time(end.0 - 1)] {
                    prop_assert_eq!(in_force(&versions, since, now), Some((terms, window)));
                }
                if began > since {
                    let last = versions.iter().rev().find(|version| version.from < began);
                    prop_assert_eq!(terms, last.unwrap_or(&versions[0]), "every change before it acts");
                }
                began = end;
            }
        }

        #[test]
        fn a_clock_that_goes_back_never_gives_a_later_window(
            versions in versions_of(12), since in moment(), one in moment(), other in moment(),
        ) {
            let end = |now| in_force(&versions, since, now).unwrap().1.end.unwrap();
            prop_assert!(end(one.min(other)) <= end(one.max(other)));
        }

        #[test]
        fn what_is_not_loaded_does_not_matter(
            versions in versions_of(12), since in moment(), now in moment(),
        ) {
            let reach = Time(now.0 - REACH_MS);
            let older = versions.partition_point(|version| version.from < reach);
            let loaded = &versions[older.saturating_sub(1)..];
            prop_assert_eq!(in_force(loaded, since, now), in_force(&versions, since, now));
        }
    }
}
