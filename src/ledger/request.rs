//! What is asked of the ledger, and what it answers.

use serde::{Deserialize, Serialize};

use crate::{
    budget::Scope,
    clock::Time,
    id::{AccountId, CastId, HoldId, KeyId},
    money::Nanos,
    window::Period,
};

use super::hold::HoldRow;

/// One thing asked for one account. `at` is when it was asked: it decides the day and the windows
/// that it counts in.
#[derive(Clone, Debug)]
pub struct Request {
    pub account: AccountId,
    pub at: Time,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    /// Asks whether a hard limit would refuse this now: a look that takes and writes nothing.
    Probe(Spending),
    /// An instant cast: held and posted at once. Its answer is kept with its key, if it has one.
    Charge { cast: CastId, spending: Spending, kept: Option<(Keyed, Answer)> },
    /// Sets money aside. `answer` is kept for the idempotency key now, if it is known already.
    Hold(NewHold),
    /// Ends a hold by booking what was really spent.
    Post { hold: HoldId, held_for: HeldFor, amount: Nanos, answer: Option<Answer> },
    /// Ends a hold by giving it back; a cast's ends as failed with `error_code`.
    Void { hold: HoldId, held_for: HeldFor, error_code: Option<&'static str>, answer: Option<Answer> },
    /// Ends a hold that is due, in the way its spell chose. If that charged, `answer` is what its
    /// idempotency key is told from then on.
    Expire { hold: HoldId, answer: Answer },
    /// Moves an open hold's expiry.
    Extend { hold: HoldId, held_for: HeldFor, expires_at: Time },
    /// Undoes what was booked for a caller who had been told that nothing was, and sets the idempotency key free
    /// that waits for it.
    Undo(Undone),
    /// Grants on some of what the account has and takes from other, all of it or nothing.
    Transfer(Transfer),
}

/// What an account has, apart from what it may spend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fund {
    /// Prepaid credits, in nano-dollars.
    Credits,
    /// Tokens of a model.
    Tokens(String),
    /// Units of an action that its plan allows in the window in which the request is made.
    Plan(String),
    /// Units of an action that it bought.
    Credited(String),
}

/// What is granted, what is taken, and what may not be passed; in the words of
/// [`super::decide::Operation::Transfer`].
#[derive(Clone, Debug, Default)]
pub struct Transfer {
    /// Names its lines in the ledger.
    pub reference: String,
    pub grants: Vec<GrantTo>,
    pub takes: Vec<TakeFrom>,
    pub caps: Vec<CapOver>,
    /// What the wallet's owner is told of it later.
    pub records: Vec<Record>,
    /// Whose balances the answer tells.
    pub tell: Vec<Fund>,
    pub once: Option<Once>,
}

#[derive(Clone, Debug)]
pub struct GrantTo {
    pub cause: &'static str,
    pub to: Fund,
    pub amount: i64,
}

#[derive(Clone, Debug)]
pub struct TakeFrom {
    pub cause: &'static str,
    /// In this order, from each as far as it goes.
    pub from: Vec<Fund>,
    pub amount: i64,
}

#[derive(Clone, Debug)]
pub struct CapOver {
    pub over: Vec<Fund>,
    pub most: i64,
}

/// A line of a wallet's transactions.
#[derive(Clone, Debug)]
pub struct Record {
    pub kind: &'static str,
    pub amount: i64,
    pub model: Option<String>,
}

/// A name that others gave an effect: it is done once, and told from another by its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Once {
    pub id: String,
    pub content: String,
}

/// How an account stands after a transfer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Where a fund of its plan was asked for.
    pub plan: Option<PlanStanding>,
    /// What is left of each fund that was to be told: never less than nothing.
    pub left: Vec<(Fund, i64)>,
}

impl Standing {
    /// What is left of some of the funds that were to be told, together.
    pub fn left_of(&self, funds: &[Fund]) -> i64 {
        let left = self.left.iter().filter(|(fund, _)| funds.contains(fund));
        left.fold(0, |sum, (_, left)| sum.saturating_add(*left))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStanding {
    pub code: String,
    /// When its window ends, in milliseconds since 1970.
    pub resets_at: i64,
}

/// Why a transfer was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub what: Short,
    pub standing: Standing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// The take of this position finds only so much.
    Take { position: usize, available: i64 },
    /// Of the cap of this position so much is held already.
    Cap { position: usize, held: i64 },
}

#[derive(Clone, Debug)]
pub enum Undone {
    Charge { cast: CastId, spending: Spending },
    Hold { id: HoldId },
    Transfer(Transfer),
}

#[derive(Clone, Debug)]
pub struct NewHold {
    pub id: HoldId,
    pub held_for: HeldFor,
    pub spending: Spending,
    pub expires_at: Time,
    pub on_lost: OnLost,
    pub keyed: Option<Keyed>,
    pub answer: Option<Answer>,
}

/// What is spent, by which key, on what.
#[derive(Clone, Debug)]
pub struct Spending {
    pub key: KeyId,
    pub spell: String,
    pub amount: Nanos,
    /// Whether prepaid credits pay for it; budgets count it in any case.
    pub from_credits: bool,
}

/// Who settles a hold: our own cast, whose id it then has, or code that runs elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldFor {
    Cast,
    External,
}

/// What becomes of a hold whose owner was never heard of again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLost {
    #[default]
    Release,
    Charge,
}

/// An `Idempotency-Key` and a hash of the request it came with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    pub key: String,
    pub request_hash: String,
}

/// An answer as it went out, kept to be given again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// What came of a [`Request`]. All but `Done`, `Hold` and `Moved` changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The hold as it is now, whether this request or an equal one before ended it.
    Hold(HoldRow),
    Refused(Refusal),
    /// The transfer was made, and this is how the account stands.
    Moved(Standing),
    /// The transfer's name came with the same content before: how the account stood then.
    Repeated(Standing),
    /// The transfer's name came with other content before.
    NameReused,
    Short(Shortage),
    Suspended,
    NoAccount,
    NoHold,
    EndedOtherwise(HoldRow),
    /// The idempotency key's first answer.
    Replayed(Answer),
    /// The idempotency key came with another request before.
    KeyReused,
    /// The first request with that idempotency key still runs.
    InProgress,
    /// A total would not fit its integer.
    OutOfRange,
}

/// A hard limit said no: which, and the figures a program needs to act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub limit: Limit,
    /// What the limit allows in all.
    pub granted: Nanos,
    pub spent: Nanos,
    pub reserved: Nanos,
    pub requested: Nanos,
}

/// What can say no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Limit {
    Budget { scope: Scope, period: Period, resets_at: Option<Time> },
    Credits,
}
