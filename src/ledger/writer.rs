//! The batching shell around the core: casts send what they ask to a lane, and the lane puts all
//! that waits into one transaction, so that under load one commit serves hundreds of casts and a
//! lone cast waits for nothing but its own.
//!
//! # Failure behavior
//!
//! What was answered was committed. The queue is bounded: when it is full the answer is
//! [`LedgerError::Busy`]. A batch that loses to another transaction runs again whole. One that fails
//! on its data is split until the poison is alone, so strangers share a transaction but never a
//! failure. While the database is away a batch is tried again until its callers' patience is over;
//! each of them has an answer within [`ANSWER_WITHIN`].
//!
//! After a commit whose outcome is unknown the lane finds out before it does anything else: each
//! writing batch leaves its id in `batches`, and the lane then leaves the same id there, as lost. If it was there
//! already, or came to be there because the lost transaction was still under way, the batch was
//! committed and is not run again. If it was not, the batch can't be committed any more, however late it
//! reaches the database: its id is taken. What was then committed for a caller who had already
//! been told "unavailable" is undone, unless an idempotency key keeps its answer; a hold also if another
//! replica took it for lost in the meantime, and charged it. (A process killed
//! between such a commit and its undoing leaves the charge.)

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};

use super::{
    apply::{Applied, Failure, commit},
    known::Known,
    request::{Action, Outcome, Request, Transfer, Undone},
};
use crate::{
    clock::Time,
    id::{AccountId, BatchId},
    reply::{self, Reply},
    store::{Backend, Db, StoreError, binds, statements},
    telemetry::Metrics,
};

/// Within this a caller has its answer, also when the database is away.
const ANSWER_WITHIN: Duration = Duration::from_millis(2_800);
/// How many requests may wait in one lane.
const QUEUE: usize = 4_096;
/// How many requests one transaction takes at most.
const BATCH: usize = 256;
/// A request that has less than this left is not begun: its caller would be gone before the commit.
const WORTH_BEGINNING: Duration = Duration::from_millis(300);

statements! {
    // Waits for the lost transaction, should the database still be at it.
    pub(super) TAKE_FOR_LOST = "
        INSERT INTO batches (id, created_at, lost) VALUES ($1, $2, true)
        ON CONFLICT (id) DO UPDATE SET lost = batches.lost
        RETURNING lost";
}

/// Why the ledger gave no answer.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LedgerError {
    /// Too many requests wait already; nothing was done. Waiting a second helps.
    #[error("too many requests are waiting")]
    Busy,
    /// The database is away; nothing was done.
    #[error("the database is not available")]
    Unavailable,
    /// The database refused this one request's data; nothing was done.
    #[error("the database refused the request")]
    Refused,
}

/// The way to the lanes: hand it around by clone.
#[derive(Clone)]
pub struct Ledger {
    lanes: Arc<[mpsc::Sender<Job>]>,
}

struct Job {
    request: Request,
    reply: Reply<Result<Outcome, LedgerError>>,
    progress: Arc<Progress>,
    deadline: Instant,
}

/// A caller's end of a job.
struct Awaited {
    answer: oneshot::Receiver<Result<Outcome, LedgerError>>,
    progress: Arc<Progress>,
    deadline: Instant,
}

impl Job {
    fn new(request: Request) -> (Job, Awaited) {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let (reply, answer) = reply::channel();
        let progress = Arc::new(Progress(AtomicU8::new(QUEUED)));
        let awaited = Awaited { answer, progress: progress.clone(), deadline };
        (Job { request, reply, progress, deadline }, awaited)
    }
}

impl Awaited {
    async fn wait(mut self) -> Result<Outcome, LedgerError> {
        let answered = match timeout_at(self.deadline, &mut self.answer).await {
            Err(_) if self.progress.give_up() => return Err(LedgerError::Unavailable),
            Err(_) => self.answer.await,
            Ok(answered) => answered,
        };
        answered.unwrap_or(Err(LedgerError::Unavailable))
    }
}

/// Where a job is, agreed on by its caller, who may give up, and its lane, which may have begun.
struct Progress(AtomicU8);

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const ANSWERED: u8 = 2;
const GIVEN_UP: u8 = 3;

impl Progress {
    /// The lane takes the job, unless its caller gave up: what was not taken never runs.
    fn take(&self) -> bool {
        self.step(TAKEN)
    }

    /// The lane answers, unless its caller gave up: then what was done is to be undone.
    fn answer(&self) -> bool {
        self.step(ANSWERED)
    }

    /// The caller gives up, unless the answer is already on its way.
    fn give_up(&self) -> bool {
        self.step(GIVEN_UP)
    }

    fn given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) == GIVEN_UP
    }

    fn step(&self, to: u8) -> bool {
        let may = |now| (now < to && now != ANSWERED && now != GIVEN_UP).then_some(to);
        self.0.try_update(Ordering::AcqRel, Ordering::Acquire, may).is_ok()
    }
}

impl Ledger {
    /// Starts the lanes. They end once every clone of the ledger is gone and what waited is done;
    /// await the handle for that.
    pub fn start(db: Db, metrics: Arc<Metrics>) -> (Ledger, JoinHandle<()>) {
        // SQLite has one writer in any case. On PostgreSQL a second lane works while the first
        // waits for its commit.
        let lanes = if db.backend() == Backend::Sqlite { 1 } else { 2 };
        let (senders, workers): (Vec<_>, Vec<_>) = (0..lanes)
            .map(|_| {
                let (sender, queue) = mpsc::channel(QUEUE);
                let lane = Lane { db: db.clone(), known: Known::default(), metrics: metrics.clone() };
                (sender, tokio::spawn(lane.run(queue)))
            })
            .unzip();
        let all = tokio::spawn(async move {
            for worker in workers {
                if worker.await.is_err() {
                    // Its accounts would be refused for ever by a process that calls itself ready.
                    tracing::error!("a lane of the ledger's writer ended in a panic");
                    std::process::abort();
                }
            }
        });
        (Ledger { lanes: senders.into() }, all)
    }

    /// Asks for one thing and waits until it is committed or refused. If too much waits already, the
    /// answer is [`LedgerError::Busy`] at once.
    pub async fn ask(&self, request: Request) -> Result<Outcome, LedgerError> {
        let (job, answer) = Job::new(request);
        self.lane_of(&job.request.account).try_send(job).map_err(|full| match full {
            mpsc::error::TrySendError::Full(_) => LedgerError::Busy,
            mpsc::error::TrySendError::Closed(_) => LedgerError::Unavailable,
        })?;
        answer.wait().await
    }

    /// As [`Ledger::ask`], for what ends something that was begun: it waits for a place in the queue
    /// instead of giving way to what is new.
    pub async fn settle(&self, request: Request) -> Result<Outcome, LedgerError> {
        let (job, answer) = Job::new(request);
        let lane = self.lane_of(&job.request.account);
        match timeout_at(answer.deadline, lane.send(job)).await {
            Ok(Ok(())) => answer.wait().await,
            Ok(Err(_)) => Err(LedgerError::Unavailable),
            Err(_) => Err(LedgerError::Busy),
        }
    }

    /// An account's requests share a lane, so that they share transactions instead of waiting for
    /// each other's locks.
    fn lane_of(&self, account: &AccountId) -> &mpsc::Sender<Job> {
        &self.lanes[self.lane_number(account)]
    }

    pub(crate) fn lane_number(&self, account: &AccountId) -> usize {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        (hasher.finish() % self.lanes.len() as u64) as usize
    }
}

struct Lane {
    db: Db,
    known: Known,
    metrics: Arc<Metrics>,
}

impl Lane {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut waiting = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut waiting, BATCH).await > 0 {
            let latest = Instant::now() + WORTH_BEGINNING;
            let in_time = |job: &Job| job.deadline > latest && job.progress.take();
            let batch: Vec<Job> = waiting.drain(..).filter(in_time).collect();
            self.run_batch(batch).await;
        }
    }

    async fn run_batch(&mut self, batch: Vec<Job>) {
        // Halves of a batch that failed on its data; the stack instead of recursion.
        let mut parts = vec![batch];
        while let Some(mut batch) = parts.pop() {
            let mut pause = Duration::from_millis(5);
            loop {
                batch.retain(|job| !job.progress.given_up());
                if batch.is_empty() {
                    break;
                }
                let id = BatchId::fresh();
                match self.attempt(&id, &batch).await {
                    Ok(applied) => {
                        self.answer(batch, applied).await;
                        break;
                    }
                    Err(Failure::Unknown(applied)) => {
                        tracing::warn!(batch = id.as_str(), "the outcome of a commit is unknown");
                        if self.was_committed(&id, &batch).await {
                            self.answer(batch, applied).await;
                            break;
                        }
                        if batch.iter().all(|job| Instant::now() + pause >= job.deadline) {
                            refuse(batch, || LedgerError::Unavailable);
                            break;
                        }
                        sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(200));
                    }
                    Err(Failure::Store(StoreError::Conflict(_) | StoreError::Unavailable(_)))
                        if batch.iter().any(|job| Instant::now() + pause < job.deadline) =>
                    {
                        sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(200));
                    }
                    Err(Failure::Store(StoreError::Conflict(_) | StoreError::Unavailable(_))) => {
                        refuse(batch, || LedgerError::Unavailable);
                        break;
                    }
                    Err(Failure::Store(error)) if batch.len() == 1 => {
                        tracing::error!(%error, "the database refused a request of the ledger");
                        refuse(batch, || LedgerError::Refused);
                        break;
                    }
                    Err(Failure::Store(_)) => {
                        let rest = batch.split_off(batch.len() / 2);
                        parts.push(rest);
                        parts.push(batch);
                        break;
                    }
                }
            }
        }
    }

    async fn attempt(&mut self, id: &BatchId, batch: &[Job]) -> Result<Applied, Failure> {
        let requests: Vec<&Request> = batch.iter().map(|job| &job.request).collect();
        commit(&self.db, &requests, &mut self.known, (id, asked_at(batch))).await
    }

    /// Finds out whether a batch was committed, for as long as that takes. If not, it never will be.
    async fn was_committed(&self, id: &BatchId, batch: &[Job]) -> bool {
        loop {
            let taken = async {
                let mut tx = self.db.begin().await?;
                let (lost,): (bool,) = tx.one(&TAKE_FOR_LOST, binds![id, asked_at(batch)]).await?;
                tx.commit().await?;
                Ok::<_, StoreError>(lost)
            };
            match taken.await {
                Ok(lost) => return !lost,
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn answer(&mut self, batch: Vec<Job>, applied: Applied) {
        self.metrics.ledger_batches.inc();
        self.metrics.ledger_operations.inc_by(batch.len() as u64);
        self.metrics.ledger_late.inc_by(applied.late);
        self.metrics.ledger_overrun.inc_by(applied.overrun);
        if let Some(right) = applied.guessed {
            let result = if right { "right" } else { "wrong" };
            self.metrics.ledger_guesses.with_label_values(&[result]).inc();
        }
        let (mut answers, mut undone) = (Vec::with_capacity(batch.len()), Vec::new());
        for (job, outcome) in batch.into_iter().zip(applied.outcomes) {
            if job.progress.answer() {
                answers.push((job.reply, Ok(outcome)));
            } else if matches!(outcome, Outcome::Done | Outcome::Moved(_)) {
                undone.extend(undo(&job.request));
            }
        }
        // A caller who hung up had its cast all the same.
        reply::send_all(answers);
        for request in undone {
            self.undo(request).await;
        }
    }

    /// Undoes what was committed for somebody who had been told that nothing was.
    async fn undo(&mut self, request: Request) {
        let batch = [Job::new(request).0];
        loop {
            let id = BatchId::fresh();
            match self.attempt(&id, &batch).await {
                Ok(_) => return,
                Err(Failure::Unknown(_)) if self.was_committed(&id, &batch).await => return,
                Err(Failure::Store(StoreError::Refused(error) | StoreError::Duplicate(error))) => {
                    tracing::error!(error, "what nobody was answered could not be undone");
                    return;
                }
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// What takes back an applied request, where something is to be taken back.
///
/// What has its answer kept under an idempotency key stands: whoever repeats the request gets that
/// answer, perhaps has it already, and is charged once.
fn undo(request: &Request) -> Option<Request> {
    let undone = match &request.action {
        Action::Charge { cast, spending, kept: None } => {
            Undone::Charge { cast: cast.clone(), spending: spending.clone() }
        }
        Action::Hold(hold) if hold.answer.is_none() || hold.keyed.is_none() => {
            Undone::Hold { id: hold.id.clone() }
        }
        Action::Transfer(transfer @ Transfer { once: None, .. }) => Undone::Transfer(transfer.clone()),
        _ => return None,
    };
    Some(Request { account: request.account.clone(), at: request.at, action: Action::Undo(undone) })
}

/// When the latest of them was asked for.
fn asked_at(batch: &[Job]) -> Time {
    batch.iter().map(|job| job.request.at).max().unwrap_or_default()
}

fn refuse(batch: Vec<Job>, error: impl Fn() -> LedgerError) {
    for job in batch {
        if job.progress.answer() {
            job.reply.send(Err(error()));
        }
    }
}
