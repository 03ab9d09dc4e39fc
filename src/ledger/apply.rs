//! The one way into the books: loads what a batch of requests touches, lets the core decide on each
//! in turn, and writes the result in bulk, inside a transaction of the caller's.
//!
//! The order of locks is the same everywhere: accounts (sorted), then everything that belongs to
//! them, which nobody touches without that lock. What is read after it is therefore the truth, and
//! stays so until the transaction ends.
//!
//! Spend is kept per (account, key, spell, day) in `spend` balances, with a ledger line for each
//! change. A budget's window is the sum of the spend it covers; it is summed up once, when the
//! first cast meets it, and moves along from then on.
//!
//! # Failure behavior
//!
//! An error leaves the transaction to be rolled back: nothing of the batch happened. What a limit
//! forbids is no error but an [`Outcome`].

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    balance::{Balance, BalanceId, Leg},
    decide::{Books, Decision, Hold, HoldState, Operation, decide},
    hold::{HoldRow, StoredHold, hold_columns},
    idempotency::{self, KEPT_FOR, KnownKey},
    request::{Action, Answer, HeldFor, Keyed, NewHold, OnLost, Outcome, Refusal, Request, Spending, Undone},
    write::Writes,
};
use crate::{
    budget::{self, Budget},
    clock::Time,
    id::{AccountId, HoldId, KeyId},
    money::{Nanos, sum_of_halves},
    store::{Rows, StoreError, Tx, Value, binds, statements},
    window::{self, Window},
};

statements! {
    LOCK_ACCOUNTS = "
        SELECT id, suspended FROM accounts WHERE id IN (SELECT given.value ->> 0 FROM {rows})
        ORDER BY id {for_update}";
    HOLDS = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})");
    BALANCES = "
        SELECT id, posted, pending, calls FROM balances
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    SPENT_IN_WINDOW = "
        SELECT CAST(COALESCE(SUM(posted / 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(posted % 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(pending / 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(pending % 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(calls), 0) AS BIGINT)
        FROM balances
        WHERE account_id = $1 AND kind = 'spend' AND starts_at >= $2 AND starts_at < $3
          AND (CAST($4 AS TEXT) IS NULL OR key_id = $4) AND (CAST($5 AS TEXT) IS NULL OR spell = $5)";
}

/// What a batch came to: an outcome per request, in their order.
pub struct Applied {
    pub outcomes: Vec<Outcome>,
    /// Whether anything was written. If not, there is nothing to commit.
    pub wrote: bool,
    pub late: u64,
    pub overrun: u64,
}

/// Applies `requests` in their order, inside `tx`.
pub async fn apply(tx: &mut Tx, requests: &[&Request]) -> Result<Applied, StoreError> {
    let mut working = Working::load(tx, requests).await?;
    let outcomes = requests.iter().map(|request| working.decide(request)).collect();
    let (late, overrun) = (working.writes.late, working.writes.overrun);
    let wrote = working.write(tx).await?;
    Ok(Applied { outcomes, wrote, late, overrun })
}

/// What was spent and held in a window, and by how many calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub posted: Nanos,
    pub pending: Nanos,
    pub calls: i64,
}

/// Sums up `account`'s spend in `window`, narrowed to one key or spell where given.
pub async fn spent_in_window(
    tx: &mut Tx,
    account: &AccountId,
    window: Window,
    (key, spell): (Option<&str>, Option<&str>),
) -> Result<Spent, StoreError> {
    let end = window.end.unwrap_or(Time(i64::MAX));
    let values = binds![account, window.start, end, key, spell];
    let (billions, rest, pending_billions, pending_rest, calls): (i64, i64, i64, i64, i64) =
        tx.one(&SPENT_IN_WINDOW, values).await?;
    Ok(Spent {
        posted: Nanos(sum_of_halves(billions, rest)),
        pending: Nanos(sum_of_halves(pending_billions, pending_rest)),
        calls,
    })
}

/// What a balance is of, for the row that holds it and for the refusal that names it.
#[derive(Clone)]
enum Subject {
    Spend { account: AccountId, key: KeyId, spell: String, day: Time },
    Window { budget: Budget, window: Window },
}

/// The part of the books that a batch touches, and what it will write back.
struct Working {
    suspended: HashMap<AccountId, bool>,
    budgets: HashMap<AccountId, Vec<Budget>>,
    subjects: BTreeMap<BalanceId, Subject>,
    /// The balances as they were loaded, to write back only those that changed.
    loaded: HashMap<BalanceId, Balance>,
    books: Books,
    holds: HashMap<HoldId, HoldRow>,
    keys: HashMap<(AccountId, String), KnownKey>,
    changed_holds: BTreeSet<HoldId>,
    writes: Writes,
}

#[derive(sqlx::FromRow)]
struct BalanceRow {
    id: String,
    posted: i64,
    pending: i64,
    calls: i64,
}

impl Working {
    async fn load(tx: &mut Tx, requests: &[&Request]) -> Result<Working, StoreError> {
        let accounts: BTreeSet<&AccountId> = requests.iter().map(|request| &request.account).collect();
        let known: Vec<(String, bool)> =
            tx.all(&LOCK_ACCOUNTS, binds![Rows::of(accounts.iter().map(|account| account.as_str()))]).await?;
        let mut budgets: HashMap<AccountId, Vec<Budget>> = HashMap::new();
        for budget in budget::of_accounts(tx, accounts).await? {
            budgets.entry(budget.account.clone()).or_default().push(budget);
        }
        let mut working = Working {
            suspended: known.into_iter().map(|(id, suspended)| (id.into(), suspended)).collect(),
            budgets,
            subjects: BTreeMap::new(),
            loaded: HashMap::new(),
            books: Books::default(),
            holds: HashMap::new(),
            keys: HashMap::new(),
            changed_holds: BTreeSet::new(),
            writes: Writes::default(),
        };
        working.load_holds(tx, requests).await?;
        working.load_balances(tx, requests).await?;
        working.load_keys(tx, requests).await?;
        Ok(working)
    }

    async fn load_holds(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let named = Rows::of(requests.iter().filter_map(|request| match &request.action {
            Action::Post { hold, .. }
            | Action::Void { hold, .. }
            | Action::Expire { hold, .. }
            | Action::Undo { undone: Undone::Hold { id: hold }, .. }
            | Action::Extend { hold, .. } => Some(hold.as_str()),
            Action::Probe(_) | Action::Charge { .. } | Action::Hold(_) | Action::Undo { .. } => None,
        }));
        if named.is_empty() {
            return Ok(());
        }
        let rows: Vec<StoredHold> = tx.all(&HOLDS, binds![named]).await?;
        self.holds = rows.into_iter().map(HoldRow::from).map(|hold| (hold.id.clone(), hold)).collect();
        Ok(())
    }

    async fn load_balances(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let mut spent_from = BTreeSet::new();
        for request in requests {
            match &request.action {
                Action::Probe(spending)
                | Action::Charge { spending, .. }
                | Action::Hold(NewHold { spending, .. }) => {
                    let named =
                        self.name_balances(&request.account, &spending.key, &spending.spell, request.at);
                    spent_from.extend(named);
                }
                Action::Undo { undone: Undone::Charge { spending, .. }, .. } => {
                    self.name_balances(&request.account, &spending.key, &spending.spell, request.at);
                }
                Action::Post { hold, .. }
                | Action::Void { hold, .. }
                | Action::Expire { hold, .. }
                | Action::Undo { undone: Undone::Hold { id: hold }, .. }
                | Action::Extend { hold, .. } => {
                    if let Some(hold) = self.holds.get(hold).cloned() {
                        self.name_balances(
                            &hold.account,
                            &hold.key.as_str().into(),
                            &hold.spell,
                            hold.began_at,
                        );
                    }
                }
            }
        }
        let ids = Rows::of(self.subjects.keys().map(BalanceId::as_str));
        let rows: Vec<BalanceRow> = tx.all(&BALANCES, binds![ids]).await?;
        let mut stored: HashMap<BalanceId, BalanceRow> =
            rows.into_iter().map(|row| (BalanceId::from(row.id.clone()), row)).collect();
        for (id, subject) in std::mem::take(&mut self.subjects) {
            let row = stored.remove(&id);
            let balance = match (&subject, row) {
                (Subject::Spend { .. }, Some(row)) => row.into_balance(None, true),
                (Subject::Spend { .. }, None) => Balance { journaled: true, ..Balance::default() },
                (Subject::Window { budget, .. }, Some(row)) => row.into_balance(budget.limits.hard, false),
                (Subject::Window { budget, window }, None) if spent_from.contains(&id) => {
                    let spent = spent_in_window(tx, &budget.account, *window, budget.scope.parts()).await?;
                    Balance {
                        granted: budget.limits.hard.map(|limit| limit.0),
                        posted: spent.posted.0,
                        pending: spent.pending.0,
                        calls: spent.calls,
                        journaled: false,
                    }
                }
                // A window that no cast has met yet: whoever meets it first will sum it up.
                (Subject::Window { .. }, None) => continue,
            };
            self.loaded.insert(id.clone(), balance.clone());
            self.books.balances.insert(id.clone(), balance);
            self.subjects.insert(id, subject);
        }
        for hold in self.holds.values() {
            let balances =
                self.balances_of(&hold.account, &hold.key.as_str().into(), &hold.spell, hold.began_at);
            let legs = legs(balances.into_iter().filter(|id| self.subjects.contains_key(id)), hold.amount);
            let hold_in_books = Hold { legs, expires_at: hold.expires_at, state: hold.state };
            self.books.holds.insert(hold.id.clone(), hold_in_books);
        }
        Ok(())
    }

    async fn load_keys(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let mut named = Rows::default();
        let mut oldest = i64::MAX;
        for request in requests {
            if let Some(keyed) = request.action.keyed() {
                named.push([Value::from(request.account.as_str()), Value::from(&keyed.key)]);
                oldest = oldest.min(request.at.0);
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        self.keys = idempotency::known(tx, named, Time(oldest)).await?.into_iter().collect();
        Ok(())
    }

    /// The balances that this spending counts on: its spend first, then every window that covers it.
    fn name_balances(&mut self, account: &AccountId, key: &KeyId, spell: &str, at: Time) -> Vec<BalanceId> {
        let spend = BalanceId::spend(account, key, spell, at);
        let day = window::midnight(window::day_of(at));
        self.subjects.entry(spend.clone()).or_insert_with(|| Subject::Spend {
            account: account.clone(),
            key: key.clone(),
            spell: spell.to_owned(),
            day,
        });
        let mut named = vec![spend];
        for budget in self.budgets.get(account).into_iter().flatten() {
            if budget.scope.covers(key, spell) {
                let window = budget.period.window(at);
                let id = BalanceId::window(&budget.id, window.start);
                let subject = || Subject::Window { budget: budget.clone(), window };
                self.subjects.entry(id.clone()).or_insert_with(subject);
                named.push(id);
            }
        }
        named
    }

    /// As [`Working::name_balances`], for what has been loaded.
    fn balances_of(&self, account: &AccountId, key: &KeyId, spell: &str, at: Time) -> Vec<BalanceId> {
        let covering = self.budgets.get(account).into_iter().flatten().filter(|b| b.scope.covers(key, spell));
        let windows = covering.map(|budget| BalanceId::window(&budget.id, budget.period.window(at).start));
        std::iter::once(BalanceId::spend(account, key, spell, at)).chain(windows).collect()
    }

    fn decide(&mut self, request: &Request) -> Outcome {
        let Some(&suspended) = self.suspended.get(&request.account) else { return Outcome::NoAccount };
        if let Some(keyed) = request.action.keyed()
            && let Some(known) = self.keys.get(&(request.account.clone(), keyed.key.clone()))
        {
            return known.outcome_for(keyed);
        }
        match &request.action {
            Action::Probe(_) | Action::Charge { .. } | Action::Hold(_) if suspended => Outcome::Suspended,
            Action::Probe(spending) => {
                let legs = self.legs_of(request, spending);
                self.spend(request, spending, &Operation::Probe { legs })
            }
            Action::Charge { cast, spending, kept } => {
                let legs = self.legs_of(request, spending);
                let operation = Operation::Charge { reference: cast.to_string(), legs };
                let outcome = self.spend(request, spending, &operation);
                if outcome == Outcome::Done {
                    self.record_cast(request, cast.as_str(), spending, "COMPLETED");
                    if let Some((keyed, answer)) = kept {
                        self.keep_answer(request, keyed, None, Some(answer));
                    }
                }
                outcome
            }
            Action::Hold(hold) => {
                let legs = self.legs_of(request, &hold.spending);
                let operation = Operation::Hold { id: hold.id.clone(), legs, expires_at: hold.expires_at };
                let outcome = self.spend(request, &hold.spending, &operation);
                if outcome == Outcome::Done {
                    self.record_hold(request, hold);
                }
                outcome
            }
            Action::Post { hold, held_for, amount, answer } => {
                let operation = Operation::Post { id: hold.clone(), amount: amount.0 };
                let outcome = self.end_hold(request, hold, Some(*held_for), &operation);
                if let Outcome::Hold(ended) = &outcome
                    && *held_for == HeldFor::Cast
                {
                    let ended = ended.clone();
                    self.end_cast(request, &ended, "COMPLETED", *amount, None);
                    self.answer_key(hold, answer.as_ref());
                }
                outcome
            }
            Action::Void { hold, held_for, error_code, answer } => {
                // Our own cast says what became of it, however late: nothing else is to be charged then.
                let operation = Operation::Void { id: hold.clone(), late: *held_for == HeldFor::Cast };
                let mut outcome = self.end_hold(request, hold, Some(*held_for), &operation);
                if *held_for == HeldFor::Cast {
                    // Its hold may have expired meanwhile, which gave the money back just as well.
                    if let Outcome::EndedOtherwise(ended) = &outcome
                        && ended.state == HoldState::Expired
                    {
                        outcome = Outcome::Hold(ended.clone());
                    }
                    if let Outcome::Hold(ended) = &outcome {
                        let ended = ended.clone();
                        self.end_cast(request, &ended, "FAILED", Nanos::ZERO, *error_code);
                        self.answer_key(hold, answer.as_ref());
                    }
                }
                outcome
            }
            Action::Expire { hold, answer } => {
                let charge = self.holds.get(hold).is_some_and(|hold| hold.on_lost == OnLost::Charge);
                let operation = Operation::Expire { id: hold.clone(), charge };
                let outcome = self.end_hold(request, hold, None, &operation);
                if let Outcome::Hold(ended) = &outcome {
                    let ended = ended.clone();
                    let cost = if charge { ended.amount } else { Nanos::ZERO };
                    self.end_cast(request, &ended, "FAILED", cost, Some("lost"));
                    match charge {
                        true => self.answer_key(hold, Some(answer)),
                        // Nobody paid, so whoever asks again with the same key is served anew.
                        false => self.writes.keys_of_lost_holds.push([Value::from(hold.as_str())]),
                    }
                }
                outcome
            }
            Action::Extend { hold, held_for, expires_at } => {
                let operation = Operation::Extend { id: hold.clone(), expires_at: *expires_at };
                self.end_hold(request, hold, Some(*held_for), &operation)
            }
            Action::Undo { undone, keyed } => self.undo(request, undone, keyed.as_ref()),
        }
    }

    fn undo(&mut self, request: &Request, undone: &Undone, keyed: Option<&Keyed>) -> Outcome {
        let (cast, outcome) = match undone {
            Undone::Charge { cast, spending } => {
                let legs = self.legs_of(request, spending);
                let operation = Operation::Reverse { reference: cast.to_string(), legs };
                (cast.as_str(), self.spend(request, spending, &operation))
            }
            Undone::Hold { id } => {
                let operation = Operation::Void { id: id.clone(), late: true };
                (id.as_str(), self.end_hold(request, id, None, &operation))
            }
        };
        if matches!(outcome, Outcome::Done | Outcome::Hold(_)) {
            // For a hold that was no cast's this finds no row.
            self.writes.ended_casts.push(binds![cast, "FAILED", Nanos::ZERO, "unanswered", request.at]);
            if let Some(Keyed { key, .. }) = keyed {
                self.writes.dropped_keys.push(binds![&request.account, key]);
            }
        }
        outcome
    }

    fn legs_of(&self, request: &Request, spending: &Spending) -> Vec<Leg> {
        let balances = self.balances_of(&request.account, &spending.key, &spending.spell, request.at);
        legs(balances.into_iter().filter(|id| self.subjects.contains_key(id)), spending.amount)
    }

    /// Lets the core decide on something that spends.
    fn spend(&mut self, request: &Request, spending: &Spending, operation: &Operation) -> Outcome {
        match self.decide_operation(request.at, operation) {
            Decision::Applied | Decision::Repeated => Outcome::Done,
            Decision::Refused(full) => match (self.subjects.get(&full), self.books.balances.get(&full)) {
                (Some(Subject::Window { budget, window }), Some(balance)) => Outcome::Refused(Refusal {
                    scope: budget.scope.clone(),
                    period: budget.period,
                    hard_limit: Nanos(balance.granted.unwrap_or_default()),
                    spent: Nanos(balance.posted),
                    reserved: Nanos(balance.pending),
                    requested: spending.amount,
                    resets_at: window.end,
                }),
                _ => Outcome::OutOfRange,
            },
            Decision::EndedOtherwise(_) | Decision::Nothing | Decision::OutOfRange => Outcome::OutOfRange,
        }
    }

    /// Lets the core decide on a hold, if it is the account's and of the kind that is meant.
    fn end_hold(
        &mut self,
        request: &Request,
        id: &HoldId,
        held_for: Option<HeldFor>,
        operation: &Operation,
    ) -> Outcome {
        let meant = |hold: &&HoldRow| {
            hold.account == request.account && held_for.is_none_or(|held_for| held_for == hold.held_for)
        };
        let Some(mut hold) = self.holds.get(id).filter(meant).cloned() else { return Outcome::NoHold };
        match self.decide_operation(request.at, operation) {
            Decision::Applied => {
                if let Some(in_books) = self.books.holds.get(id) {
                    hold.state = in_books.state;
                    hold.expires_at = in_books.expires_at;
                }
                if hold.state != HoldState::Open {
                    hold.ended_at = Some(request.at);
                }
                if let HoldState::Posted { amount, late } = hold.state {
                    self.writes.late += u64::from(late);
                    self.writes.overrun += u64::from(amount > hold.amount.0);
                }
                self.changed_holds.insert(id.clone());
                self.holds.insert(id.clone(), hold.clone());
                Outcome::Hold(hold)
            }
            Decision::Repeated => Outcome::Hold(hold),
            Decision::EndedOtherwise(state) => Outcome::EndedOtherwise(HoldRow { state, ..hold }),
            Decision::Nothing => Outcome::NoHold,
            Decision::OutOfRange | Decision::Refused(_) => Outcome::OutOfRange,
        }
    }

    fn decide_operation(&mut self, at: Time, operation: &Operation) -> Decision {
        let mut entries = Vec::new();
        let decision = decide(&mut self.books, operation, at, &mut entries);
        for entry in &entries {
            self.writes.add_entry(entry, at);
        }
        decision
    }

    fn record_cast(&mut self, request: &Request, id: &str, spending: &Spending, status: &str) {
        let completed = status == "COMPLETED";
        self.writes.casts.push([
            Value::from(id),
            Value::from(request.account.as_str()),
            Value::from(spending.key.as_str()),
            Value::from(&spending.spell),
            Value::from(status),
            Value::from(if completed { spending.amount } else { Nanos::ZERO }),
            Value::from(request.at),
            Value::from(completed.then_some(request.at)),
        ]);
    }

    fn record_hold(&mut self, request: &Request, hold: &NewHold) {
        let row = HoldRow {
            id: hold.id.clone(),
            account: request.account.clone(),
            key: hold.spending.key.to_string(),
            spell: hold.spending.spell.clone(),
            held_for: hold.held_for,
            amount: hold.spending.amount,
            began_at: request.at,
            expires_at: hold.expires_at,
            on_lost: hold.on_lost,
            state: HoldState::Open,
            ended_at: None,
        };
        self.holds.insert(hold.id.clone(), row);
        self.changed_holds.insert(hold.id.clone());
        if hold.held_for == HeldFor::Cast {
            self.record_cast(request, hold.id.as_str(), &hold.spending, "PENDING");
        }
        if let Some(keyed) = &hold.keyed {
            self.keep_answer(request, keyed, Some(&hold.id), hold.answer.as_ref());
        }
    }

    fn end_cast(
        &mut self,
        request: &Request,
        hold: &HoldRow,
        status: &str,
        cost: Nanos,
        error: Option<&str>,
    ) {
        if hold.held_for == HeldFor::Cast {
            self.writes.ended_casts.push([
                Value::from(hold.id.as_str()),
                Value::from(status),
                Value::from(cost),
                Value::from(error),
                Value::from(request.at),
            ]);
        }
    }

    /// Keeps the answer, or that there is none yet, under the request's idempotency key.
    fn keep_answer(
        &mut self,
        request: &Request,
        keyed: &Keyed,
        hold: Option<&HoldId>,
        answer: Option<&Answer>,
    ) {
        self.writes.keys.push([
            Value::from(request.account.as_str()),
            Value::from(&keyed.key),
            Value::from(&keyed.request_hash),
            Value::from(hold.map(HoldId::as_str)),
            Value::from(answer.map(|answer| i64::from(answer.status))),
            Value::from(answer.map(|answer| answer.body.as_str())),
            Value::from(request.at.plus(KEPT_FOR)),
        ]);
        let known = KnownKey { request_hash: keyed.request_hash.clone(), answer: answer.cloned() };
        self.keys.insert((request.account.clone(), keyed.key.clone()), known);
    }

    /// Keeps the answer of the request that waited for this hold, if it came with a key.
    fn answer_key(&mut self, hold: &HoldId, answer: Option<&Answer>) {
        if let Some(Answer { status, body }) = answer {
            let status = Value::from(i64::from(*status));
            self.writes.answered_keys.push([Value::from(hold.as_str()), status, Value::from(body)]);
        }
    }

    /// Writes back what changed; gives whether anything did.
    async fn write(mut self, tx: &mut Tx) -> Result<bool, StoreError> {
        for (id, subject) in &self.subjects {
            let now = &self.books.balances[id];
            if *now != self.loaded[id] {
                self.writes.balances.push(subject.row(id, now));
            }
        }
        for id in &self.changed_holds {
            self.writes.put_hold(&self.holds[id]);
        }
        self.writes.write(tx).await
    }
}

impl Action {
    /// The idempotency key it came with.
    pub fn keyed(&self) -> Option<&Keyed> {
        match self {
            Action::Charge { kept, .. } => kept.as_ref().map(|(keyed, _)| keyed),
            Action::Hold(NewHold { keyed, .. }) => keyed.as_ref(),
            _ => None,
        }
    }
}

impl BalanceRow {
    fn into_balance(self, granted: Option<Nanos>, journaled: bool) -> Balance {
        let granted = granted.map(|limit| limit.0);
        Balance { granted, posted: self.posted, pending: self.pending, calls: self.calls, journaled }
    }
}

impl Subject {
    fn row(&self, id: &BalanceId, balance: &Balance) -> Vec<Value> {
        let (account, kind, key, spell, budget, starts_at) = match self {
            Subject::Spend { account, key, spell, day } => {
                (account, "spend", Some(key.as_str()), Some(spell.as_str()), None, *day)
            }
            Subject::Window { budget, window } => {
                (&budget.account, "window", None, None, Some(budget.id.as_str()), window.start)
            }
        };
        binds![
            id.as_str(),
            account,
            kind,
            key,
            spell,
            budget,
            starts_at,
            balance.posted,
            balance.pending,
            balance.calls
        ]
    }
}

fn legs(balances: impl Iterator<Item = BalanceId>, amount: Nanos) -> Vec<Leg> {
    balances.map(|balance| Leg { balance, amount: amount.0 }).collect()
}
