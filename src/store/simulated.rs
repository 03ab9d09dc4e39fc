//! A database for simulations: SQLite with the real statements, whose every call may fail, lose its
//! answer, take its time, or be the last that its process makes.
//!
//! What becomes of a call is asked of the simulation ([`Fate`]). Nothing in here waits for anything but
//! the runtime's own time: a statement runs while the one thread stands still ([`at_once`]), so that
//! whoever draws the fates from a seed gets the same history again.
//!
//! Every process has the one connection that writes, and one that reads, in common with the others.
//! A transaction therefore waits for the one before it, as it does for SQLite's lock on a file, and
//! one that was left behind holds up the others for as long as its [`End::UnderWay`] says.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use sqlx::{
    Sqlite,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::{
    Db, Purpose, StoreError, Value, dialect,
    transaction::{Connection, Lease, within},
    writer::{SqliteLease, Writer},
};

/// What a call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connect,
    Begin,
    Statement,
    Commit,
    Rollback,
}

/// What becomes of a call: it waits, ends somehow, and its answer is under way for a while.
pub struct Fate {
    pub waits: Duration,
    pub end: End,
    pub answer_takes: Duration,
}

#[derive(Clone, Debug)]
pub enum End {
    Done,
    /// Nothing of it happens.
    Fails(StoreError),
    /// It happens, and nobody hears of it.
    Unheard,
    /// It is given up while the database is still at it. Its transaction stays open so long, and then is
    /// rolled back, unless the call was a commit that `lands`. A text that is a whole transaction keeps nothing
    /// open: as on PostgreSQL, it may still be on its way, and reach the database so much later.
    UnderWay {
        lands: bool,
        lasts: Duration,
    },
    /// The process dies, before or after the call is `done`.
    Dies {
        done: bool,
    },
}

/// A process as the database knows it. Once it died, none of its calls ends.
pub struct Process {
    died: CancellationToken,
    fate: Box<dyn Fn(Kind, &'static str) -> Fate + Send + Sync>,
    committed: Box<dyn Fn() + Send + Sync>,
}

impl Process {
    /// `fate` is asked at each call, and `committed` told after each commit that took effect.
    pub fn new(
        fate: impl Fn(Kind, &'static str) -> Fate + Send + Sync + 'static,
        committed: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Process> {
        let died = CancellationToken::new();
        Arc::new(Process { died, fate: Box::new(fate), committed: Box::new(committed) })
    }

    pub fn die(&self) {
        self.died.cancel();
    }

    pub fn is_dead(&self) -> bool {
        self.died.is_cancelled()
    }

    pub async fn death(&self) {
        self.died.cancelled().await;
    }

    /// Lets `time` pass, but not beyond `deadline`, nor the process's end.
    async fn pass(&self, time: Duration, deadline: Instant) -> Result<(), StoreError> {
        if time.is_zero() {
            return Ok(());
        }
        let until = Instant::now() + time;
        tokio::select! {
            biased;
            () = self.death() => Err(away("the process died")),
            () = sleep_until(until.min(deadline)) => match until > deadline {
                true => Err(away("no answer in time")),
                false => Ok(()),
            },
        }
    }
}

fn away(why: &str) -> StoreError {
    StoreError::Unavailable(format!("simulated: {why}"))
}

/// The file that the processes share, migrated already.
#[derive(Clone)]
pub struct Disk {
    write: Writer,
    read: Writer,
    options: SqliteConnectOptions,
}

impl Disk {
    pub fn at(path: &str) -> Disk {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            // Only processes die in here, never the machine.
            .synchronous(SqliteSynchronous::Off)
            .foreign_keys(true);
        let disk = Disk { write: Writer::new(options.clone()), read: Writer::new(options.clone()), options };
        for writer in [&disk.write, &disk.read] {
            at_once(writer.acquire()).unwrap();
        }
        disk
    }

    /// A connection of its own to the same file, for who looks on: it is there in any moment.
    pub fn aside(&self) -> Disk {
        let aside = Writer::new(self.options.clone());
        at_once(aside.acquire()).unwrap();
        Disk { write: aside.clone(), read: aside, options: self.options.clone() }
    }
}

/// A [`Db`]'s place in a simulation.
#[derive(Clone)]
pub(super) struct Simulated {
    disk: Disk,
    process: Arc<Process>,
}

impl Db {
    /// The database as `process` reaches it.
    pub fn simulated(disk: &Disk, process: &Arc<Process>) -> Db {
        let mut db = Db::open("sqlite:simulated.db").unwrap();
        db.migrated.store(true, std::sync::atomic::Ordering::Release);
        db.simulated = Some(Simulated { disk: disk.clone(), process: process.clone() });
        db
    }
}

impl Simulated {
    pub async fn lease(&self, purpose: Purpose, deadline: Instant) -> Result<Lease, StoreError> {
        if self.process.is_dead() {
            return std::future::pending().await;
        }
        let Fate { waits, end, answer_takes } = (self.process.fate)(Kind::Connect, "");
        self.process.pass(waits, deadline).await?;
        match end {
            End::Done => {}
            End::Fails(error) => return Err(error),
            End::Unheard | End::UnderWay { .. } => return Err(away("not connected")),
            End::Dies { .. } => {
                self.process.die();
                return Err(away("the process died"));
            }
        }
        let writer = if purpose == Purpose::Write { &self.disk.write } else { &self.disk.read };
        let lease = tokio::select! {
            biased;
            () = self.process.death() => return Err(away("the process died")),
            lease = timeout_at(deadline, writer.acquire()) => lease,
        };
        let lease = lease.map_err(|_| away("no turn in time"))?.map_err(dialect::classify)?;
        let lease =
            Lease { connection: Some(Connection::Sqlite(lease)), clean: true, simulated: Some(self.clone()) };
        self.process.pass(answer_takes, deadline).await?;
        Ok(lease)
    }

    /// Takes a connection back, out of whatever transaction it is in.
    pub fn take_back(connection: Connection, clean: bool) {
        if let Connection::Sqlite(mut lease) = connection
            && !clean
        {
            roll_back(&mut lease);
        }
    }
}

fn roll_back(lease: &mut SqliteLease) {
    let connection = lease.connection().unwrap();
    // It fails where nothing had begun yet.
    let _ = at_once(sqlx::raw_sql("ROLLBACK").execute(connection));
}

/// A call whose fate is drawn, and that is now to be carried out.
pub(super) enum Met {
    /// It is of no simulation.
    Real,
    Simulated {
        process: Arc<Process>,
        kind: Kind,
        end: End,
        answer_takes: Duration,
    },
}

impl Lease {
    /// Meets the fate of a call, up to where the call is carried out.
    pub(super) async fn meet(
        &mut self,
        text: &'static str,
        values: &[Value],
        deadline: Instant,
    ) -> Result<Met, StoreError> {
        let Some(Simulated { process, disk }) = self.simulated.clone() else { return Ok(Met::Real) };
        let kind = match text.trim() {
            "ROLLBACK" => Kind::Rollback,
            commit if commit.ends_with("COMMIT") => Kind::Commit,
            begin if begin.starts_with("BEGIN") => Kind::Begin,
            _ => Kind::Statement,
        };
        let Fate { waits, end, answer_takes } = (process.fate)(kind, text);
        process.pass(waits, deadline).await?;
        match end {
            End::Fails(error) => return Err(error),
            End::Dies { done: false } => {
                process.die();
                return Err(away("the process died"));
            }
            End::UnderWay { lands, lasts } => {
                let is_whole = kind == Kind::Commit && text.starts_with("BEGIN");
                let left = self.connection.take().filter(|_| !is_whole);
                let values = values.to_vec();
                tokio::spawn(async move {
                    sleep(lasts).await;
                    let mut lease = match left {
                        Some(Connection::Sqlite(lease)) => lease,
                        _ if is_whole && lands => disk.write.acquire().await.unwrap(),
                        _ => return,
                    };
                    let landed = lands && kind == Kind::Commit && land(&mut lease, text, values);
                    if landed {
                        (process.committed)();
                    } else {
                        roll_back(&mut lease);
                    }
                });
                return Err(away("no answer in time"));
            }
            End::Done | End::Unheard | End::Dies { done: true } => {}
        }
        Ok(Met::Simulated { process, kind, end, answer_takes })
    }
}

fn land(lease: &mut SqliteLease, text: &'static str, values: Vec<Value>) -> bool {
    let connection = lease.connection().unwrap();
    if values.is_empty() {
        return at_once(sqlx::raw_sql(text).execute(connection)).is_ok();
    }
    let query = values.into_iter().fold(sqlx::query::<Sqlite>(text), |query, value| match value {
        Value::Text(text) => query.bind(text),
        Value::Int(number) => query.bind(number),
        Value::Bool(truth) => query.bind(truth),
    });
    at_once(query.execute(connection)).is_ok()
}

impl Met {
    /// Does the `work` that the call is.
    pub async fn carry_out<T: Send>(
        self,
        deadline: Instant,
        work: impl Future<Output = Result<T, sqlx::Error>> + Send,
    ) -> Result<T, StoreError> {
        let Met::Simulated { process, kind, end, answer_takes } = self else {
            return within(deadline, work).await;
        };
        let done = at_once(work).map_err(dialect::classify);
        if kind == Kind::Commit && done.is_ok() {
            (process.committed)();
        }
        match end {
            End::Dies { .. } => {
                process.die();
                Err(away("the process died"))
            }
            End::Unheard => Err(away("the answer was lost")),
            _ => process.pass(answer_takes, deadline).await.and(done),
        }
    }
}

/// Runs `work` to its end while this thread does nothing else, so that no time passes in the runtime.
pub fn at_once<T>(work: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut work = pin!(tokio::task::unconstrained(work));
    loop {
        match work.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}
