//! Quotas: units of an action that a plan allows in a window, and units that were bought.
//!
//! Both are balances of the ledger. A debit takes from the plan's window first, since what is left of
//! that is lost when it ends, and then from what was bought, which stays until it is used. A window is a
//! row of its own, named by its start: nothing is ever reset, so that no reset can be missed, come twice,
//! or wipe what was used since. It begins with the first debit in it, with what the plan's terms of then
//! allow ([`terms`]).
//!
//! # Failure behavior
//!
//! A debit or a credit and the name that it came under (`ref`, `order_id`) are one transaction: what was
//! answered is done once, and whoever asks again gets the first answer. What was refused changed nothing.

use std::collections::{BTreeSet, HashMap};

use crate::{
    budget,
    clock::Time,
    id::AccountId,
    ledger::{
        self, Action, Fund, GrantTo, Ledger, LedgerError, Once, Outcome, Request, Standing, TakeFrom,
        Transfer,
        reference::{References, Seen},
    },
    plan,
    store::{Db, Rows, StoreError, Tx, binds, despite_conflicts, statements},
    window::Window,
};

pub mod receipt;
pub mod terms;
#[cfg(test)]
mod tests;

use terms::Terms;

/// The most units that one debit or credit moves: beyond it a program that reads JSON numbers as floats
/// would miscount.
pub const MAX_UNITS: i64 = 1_000_000_000_000_000;

/// Whether others may call an effect so (a `ref`, an `order_id`): 1 to 200 bytes, without control
/// characters.
pub fn could_be_name(name: &str) -> bool {
    (1..=200).contains(&name.len()) && !name.contains(char::is_control)
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metered {
    Chat,
    Template,
}

impl Metered {
    pub const ALL: [Metered; 2] = [Metered::Chat, Metered::Template];

    /// As it stands in requests and in a plan's limits.
    pub fn as_str(self) -> &'static str {
        match self {
            Metered::Chat => "chat_tokens",
            Metered::Template => "tpl_run",
        }
    }

    /// The action of that name.
    pub fn parse(name: &str) -> Option<Metered> {
        Metered::ALL.into_iter().find(|action| action.as_str() == name)
    }

    /// What a debit takes from, in this order.
    fn funds(self) -> [Fund; 2] {
        [Fund::Plan(self.as_str().to_owned()), Fund::Credited(self.as_str().to_owned())]
    }
}

/// What a user has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub chat: i64,
    pub template: i64,
    /// `None`: there is no default plan, and the user is on none.
    pub plan: Option<String>,
    /// When the plan's own units begin anew.
    pub resets_at: Option<Time>,
}

impl Left {
    pub fn of(&self, action: Metered) -> i64 {
        match action {
            Metered::Chat => self.chat,
            Metered::Template => self.template,
        }
    }
}

impl From<Standing> for Left {
    fn from(standing: Standing) -> Left {
        Left {
            chat: standing.left_of(&Metered::Chat.funds()),
            template: standing.left_of(&Metered::Template.funds()),
            resets_at: standing.plan.as_ref().map(|plan| Time(plan.resets_at)),
            plan: standing.plan.map(|plan| plan.code),
        }
    }
}

/// An order that was paid, or that another service credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub order_id: String,
    pub plan_code: String,
    pub units_chat: i64,
    pub units_tpl: i64,
    /// `None`: credited without a payment.
    pub payment: Option<Payment>,
}

/// What a payment service says of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// An exact decimal, as it was stated.
    pub amount: String,
    pub currency: String,
    pub status: String,
}

/// What came of a debit or a credit. Only `Done` changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Done(Left),
    /// The same came before: its first answer.
    Repeated(Left),
    /// The same reference came before, with other content.
    Reused,
    /// There is not enough left.
    Exceeded(Left),
    Suspended,
    /// There is no plan of that code.
    NoPlan,
    /// A total would not fit its integer.
    OutOfRange,
}

impl Effect {
    fn of(outcome: Outcome) -> Effect {
        match outcome {
            Outcome::Moved(standing) => Effect::Done(standing.into()),
            Outcome::Repeated(standing) => Effect::Repeated(standing.into()),
            Outcome::NameReused => Effect::Reused,
            Outcome::Short(short) => Effect::Exceeded(short.standing.into()),
            Outcome::Suspended => Effect::Suspended,
            _ => Effect::OutOfRange,
        }
    }
}

fn told() -> Vec<Fund> {
    Metered::ALL.into_iter().flat_map(Metered::funds).collect()
}

/// What the account has left.
pub async fn check(ledger: &Ledger, account: &AccountId, now: Time) -> Result<Effect, LedgerError> {
    let action = Action::Transfer(Transfer { tell: told(), ..Transfer::default() });
    ledger.ask(Request { account: account.clone(), at: now, action }).await.map(Effect::of)
}

/// Takes `units` of an action, once per `reference`.
pub async fn debit(
    ledger: &Ledger,
    account: &AccountId,
    action: Metered,
    units: i64,
    reference: &str,
    now: Time,
) -> Result<Effect, LedgerError> {
    let transfer = Transfer {
        reference: line(reference),
        takes: vec![TakeFrom { cause: "debit", from: action.funds().to_vec(), amount: units }],
        tell: told(),
        once: Some(Once {
            id: reference.to_owned(),
            content: format!("debit {units} of {}", action.as_str()),
        }),
        ..Transfer::default()
    };
    let request = Request { account: account.clone(), at: now, action: Action::Transfer(transfer) };
    ledger.ask(request).await.map(Effect::of)
}

/// The reference of the ledger's lines of what others call `name`.
fn line(name: &str) -> String {
    format!("quota/{name}")
}

statements! {
    KNOWN_PLAN = "SELECT code FROM plans WHERE code = $1";
    PLANS_OF = concat!("
        SELECT accounts.id, plans.code, COALESCE(accounts.plan_since, accounts.created_at)
        FROM accounts JOIN plans ON ", plan::is_accounts!(), "
        WHERE accounts.id IN (SELECT given.value ->> 0 FROM {rows})");
    PUT_ON_PLAN = "UPDATE accounts SET plan = $2, plan_since = $3 WHERE id = $1";
}

/// As [`credit_in`], in a transaction of its own.
pub async fn credit(db: &Db, account: &AccountId, order: &Order, now: Time) -> Result<Effect, StoreError> {
    despite_conflicts(async || {
        let mut tx = db.begin().await?;
        let effect = credit_in(&mut tx, account, order, now).await?;
        match effect {
            Effect::Done(_) => tx.commit().await?,
            _ => tx.rollback().await?,
        }
        Ok(effect)
    })
    .await
}

/// Credits an order's units to the account and puts it on the order's plan, once.
pub async fn credit_in(
    tx: &mut Tx,
    account: &AccountId,
    order: &Order,
    now: Time,
) -> Result<Effect, StoreError> {
    let Order { order_id, plan_code, units_chat, units_tpl, .. } = order;
    let once = Once {
        id: order_id.clone(),
        content: format!("credit {units_chat} of chat_tokens and {units_tpl} of tpl_run on {plan_code}"),
    };
    let mut references = References::claim(tx, [(account, &once)], now).await?;
    match references.seen(account, &once) {
        Seen::First => {}
        Seen::Repeated(standing) => return Ok(Effect::Repeated(standing.into())),
        Seen::Reused => return Ok(Effect::Reused),
    }
    let plan: Option<(String,)> = tx.optional(&KNOWN_PLAN, binds![plan_code]).await?;
    if plan.is_none() {
        references.write(tx).await?;
        return Ok(Effect::NoPlan);
    }
    let units = [(Metered::Chat, *units_chat), (Metered::Template, *units_tpl)];
    let grants = units.map(|(action, amount)| GrantTo {
        cause: "credit",
        to: Fund::Credited(action.as_str().to_owned()),
        amount,
    });
    let granted = transfer(tx, account, line(order_id), grants.to_vec(), now).await?;
    if !matches!(granted, Outcome::Moved(_)) {
        references.write(tx).await?;
        return Ok(Effect::OutOfRange);
    }
    put_on_plan(tx, account, plan_code, now).await?;
    // Asked again, since what is left is the new plan's.
    let Outcome::Moved(standing) = transfer(tx, account, line(order_id), Vec::new(), now).await? else {
        return Err(StoreError::Refused("an account that is locked is gone".to_owned()));
    };
    references.answer(account, &once, &standing);
    references.write(tx).await?;
    receipt::add(tx, account, order, now).await?;
    Ok(Effect::Done(standing.into()))
}

async fn transfer(
    tx: &mut Tx,
    account: &AccountId,
    reference: String,
    grants: Vec<GrantTo>,
    now: Time,
) -> Result<Outcome, StoreError> {
    let action = Action::Transfer(Transfer { reference, grants, tell: told(), ..Transfer::default() });
    let request = Request { account: account.clone(), at: now, action };
    let mut outcomes = ledger::apply(tx, &[&request]).await?.outcomes;
    Ok(outcomes.pop().unwrap_or(Outcome::OutOfRange))
}

/// Puts the account on the plan from now on, unless it is on it. Under the account's lock.
async fn put_on_plan(tx: &mut Tx, account: &AccountId, code: &str, now: Time) -> Result<(), StoreError> {
    let on: Option<(String, String, i64)> =
        tx.optional(&PLANS_OF, binds![Rows::of([account.as_str()])]).await?;
    let since = match on {
        // Its window goes on, also where it was on it for want of another.
        Some((_, on, since)) if on == code => Time(since),
        _ => {
            budget::forget_the_plans(tx, account).await?;
            now
        }
    };
    tx.execute(&PUT_ON_PLAN, binds![account, code, since]).await?;
    Ok(())
}

/// The plan that an account is on, as far as its quotas go.
pub struct PlanOf {
    pub code: String,
    since: Time,
    versions: Vec<Terms>,
}

impl PlanOf {
    /// What the plan allows the account at `now`, and in which window.
    pub fn in_force(&self, now: Time) -> Option<(&Terms, Window)> {
        terms::in_force(&self.versions, self.since, now)
    }
}

/// The plans of `accounts`, for requests at or before `now`.
pub async fn plans_of(
    tx: &mut Tx,
    accounts: BTreeSet<&AccountId>,
    now: Time,
) -> Result<HashMap<AccountId, PlanOf>, StoreError> {
    if accounts.is_empty() {
        return Ok(HashMap::new());
    }
    let ids = Rows::of(accounts.iter().map(|account| account.as_str()));
    let on: Vec<(String, String, i64)> = tx.all(&PLANS_OF, binds![ids]).await?;
    let codes: Vec<&str> = on.iter().map(|(_, code, _)| code.as_str()).collect();
    let versions = terms::versions(tx, &codes, now).await?;
    let plans = on.into_iter().map(|(account, code, since)| {
        let versions = versions.get(&code).cloned().unwrap_or_default();
        (account.into(), PlanOf { code, since: Time(since), versions })
    });
    Ok(plans.collect())
}
