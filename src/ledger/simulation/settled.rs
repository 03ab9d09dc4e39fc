//! What was told against the books, once nothing is under way any more.

use std::collections::BTreeMap;

use super::{
    books::Books,
    promises::{Asked, Promises, Told},
};
use crate::ledger::Action;

/// How long an idempotency key is kept.
const KEPT_FOR: i64 = 24 * 60 * 60 * 1_000;

impl Promises {
    /// What must hold once nothing is under way any more: `crashed` tells which processes died.
    pub fn settled(&self, books: &Books, crashed: impl Fn(usize) -> bool) -> Result<(), String> {
        for (effect, asked) in &self.by_effect {
            let asked: Vec<&Asked> = asked.iter().map(|number| &self.asked[*number]).collect();
            let stands = match &asked[0].request.action {
                Action::Hold(_) => {
                    books.holds.get(effect).is_some_and(|hold| hold.state == "open" || hold.state == "posted")
                }
                Action::Charge { .. } => {
                    books.casts.get(effect).is_some_and(|(status, _)| status == "COMPLETED")
                }
                _ => books.has_lines(effect) && !books.has_lines(&format!("{effect}/undone")),
            };
            let there = match &asked[0].request.action {
                Action::Hold(_) => books.holds.contains_key(effect),
                Action::Charge { .. } => books.casts.contains_key(effect),
                _ => books.has_lines(effect),
            };
            let may = |asked: &&&Asked| match asked.told {
                Told::Done | Told::Nothing => true,
                Told::Unavailable => asked.is_kept() || crashed(asked.incarnation),
                Told::Not | Told::Waits => false,
            };
            let told: Vec<(Told, bool)> =
                asked.iter().map(|asked| (asked.told, crashed(asked.incarnation))).collect();
            if stands && !asked.iter().any(|asked| may(&asked)) {
                return Err(format!("{effect} stands, and was told {told:?}"));
            }
            if there && asked.iter().all(|asked| asked.told == Told::Not) {
                return Err(format!("{effect} is in the books, and was told {told:?}"));
            }
            let is_charge = matches!(asked[0].request.action, Action::Charge { .. });
            if is_charge && !stands && asked.iter().any(|asked| asked.told == Told::Done) {
                return Err(format!("{effect} was done, and is not in the books: {told:?}"));
            }
        }
        self.once_each(books)
    }

    /// One key or name, one effect.
    fn once_each(&self, books: &Books) -> Result<(), String> {
        let mut by_key: BTreeMap<(&str, &str), Vec<(i64, &str)>> = BTreeMap::new();
        let mut by_name: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for asked in &self.asked {
            let Some(effect) = asked.effect() else { continue };
            if let Some(once) = asked.once()
                && books.has_lines(effect)
            {
                by_name.entry(&once.id).or_default().push(effect);
            }
            let Some(keyed) = asked.request.action.keyed() else { continue };
            let stands = match books.holds.get(effect) {
                Some(hold) => hold.state == "open" || (hold.state == "posted" && hold.late == 0),
                None => books.casts.get(effect).is_some_and(|(status, _)| status == "COMPLETED"),
            };
            if stands {
                let key = (asked.request.account.as_str(), keyed.key.as_str());
                by_key.entry(key).or_default().push((asked.request.at.0, effect));
            }
        }
        for (name, mut effects) in by_name {
            effects.dedup();
            if effects.len() > 1 {
                return Err(format!("{name} named {effects:?}"));
            }
        }
        for (key, mut effects) in by_key {
            effects.sort_unstable();
            effects.dedup();
            if let Some(pair) = effects.windows(2).find(|pair| pair[1].0 - pair[0].0 < KEPT_FOR) {
                return Err(format!("{key:?} was charged twice: {pair:?}"));
            }
        }
        Ok(())
    }
}
