//! The events that explain why the two sides differ: those that Stripe has made and that were not applied yet,
//! and those that wait here for an operator.

use std::collections::{HashMap, HashSet};

use super::{
    super::{Failure, Stripe},
    compare::Difference,
    here,
    there::{List, Sent},
};
use crate::clock::Time;

/// For how long an event is waited for: Stripe's first repetitions, and a server that restarts, fit in it.
const COMES_WITHIN_MS: i64 = 15 * 60 * 1_000;

/// What events are about, by the ids of Stripe's objects.
pub struct Pending {
    under_way: HashSet<String>,
    /// With `kept`, `failed` or `dismissed`.
    seen_to: HashMap<String, &'static str>,
}

impl Pending {
    /// The events of now; of those that an operator has dismissed, the ones received `since` then.
    pub async fn read(stripe: &Stripe, since: Time) -> Result<Pending, Failure> {
        let Stripe { db, client, .. } = stripe;
        let lately = Time(db.now().await?.0.saturating_sub(COMES_WITHIN_MS));
        let mut pending = Pending { under_way: HashSet::new(), seen_to: HashMap::new() };
        let mut list = List::events(lately);
        while let Some(page) = list.next(client).await? {
            let sent = page.iter().map(Sent::read).collect::<Result<Vec<_>, _>>()?;
            let here = here::statuses(db, sent.iter().map(|event| &event.id)).await?;
            let waits = |event: &Sent| {
                !matches!(here.get(&event.id).map(String::as_str), Some("applied" | "ignored" | "dismissed"))
            };
            pending.under_way.extend(sent.into_iter().filter(waits).map(|event| event.about));
        }
        for (about, status) in here::unsettled(db, since).await? {
            match status.as_str() {
                "kept" => drop(pending.seen_to.insert(about, "kept")),
                "failed" => drop(pending.seen_to.entry(about).or_insert("failed")),
                "dismissed" => drop(pending.seen_to.entry(about).or_insert("dismissed")),
                _ => drop(pending.under_way.insert(about)),
            }
        }
        Ok(pending)
    }

    /// Why a difference is no drift, if an event explains it.
    pub fn explains(&self, difference: &Difference) -> Option<&'static str> {
        let about = &difference.about;
        let seen_to = about.iter().find_map(|id| self.seen_to.get(id).copied());
        let under_way = || about.iter().any(|id| self.under_way.contains(id)).then_some("under way");
        seen_to.or_else(under_way)
    }
}
