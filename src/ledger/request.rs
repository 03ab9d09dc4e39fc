//! What is asked of the ledger, and what it answers.

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
    /// Undoes what was booked for a caller who had been told that nothing was, and forgets the
    /// answer that was kept for its idempotency key.
    Undo { undone: Undone, keyed: Option<Keyed> },
    /// Grants prepaid credits worth `amount`, or takes back what a negative one says.
    Grant { reference: String, cause: &'static str, amount: Nanos },
}

#[derive(Clone, Debug)]
pub enum Undone {
    Charge { cast: CastId, spending: Spending },
    Hold { id: HoldId },
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

/// What came of a [`Request`]. All but `Done` and `Hold` changed nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The hold as it is now, whether this request or an equal one before ended it.
    Hold(HoldRow),
    Refused(Refusal),
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
