//! The world of one schedule: a database, processes that live and die, a clock that jumps, and what
//! is known of all of it.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    books::Books,
    dice::{Dice, Temper},
    promises::{Promises, Told},
};
use crate::{
    clock::Time,
    ledger::{Ledger, LedgerError, Outcome, Request},
    store::{
        Db, StoreError,
        simulated::{Disk, End, Fate, Kind, Process, at_once},
    },
    telemetry::Metrics,
};

/// A process that serves.
#[derive(Clone)]
pub struct Replica {
    pub process: Arc<Process>,
    pub db: Db,
    pub ledger: Ledger,
    /// Which of all processes that ever were.
    pub incarnation: usize,
    pub place: usize,
}

pub struct World {
    pub temper: Temper,
    pub disk: Disk,
    /// Looks on, and never fails.
    pub observer: Db,
    metrics: Arc<Metrics>,
    began: Instant,
    state: Mutex<State>,
}

pub struct State {
    dice: Dice,
    pub books: Books,
    pub promises: Promises,
    pub replicas: Vec<Replica>,
    processes: Vec<Arc<Process>>,
    skews: Vec<i64>,
    now: i64,
    /// Until when the database is away, by the place that it is away from.
    away_until: Vec<Instant>,
    /// From here on nothing goes wrong any more.
    pub healed: bool,
    pub violation: Option<String>,
    history: DefaultHasher,
    told_aloud: bool,
    pub steps: u64,
    pub commits: u64,
}

impl State {
    pub fn has_died(&self, incarnation: usize) -> bool {
        self.processes[incarnation].is_dead()
    }
}

/// Minutes before the end of a day, a week, a month and a year, and noon.
const BEGINNINGS: [i64; 3] = [1_767_225_300_000, 1_764_546_900_000, 1_763_726_400_000];

impl World {
    pub fn new(path: &str, mut dice: Dice, metrics: Arc<Metrics>, told_aloud: bool) -> Arc<World> {
        let temper = Temper::drawn(&mut dice);
        let disk = Disk::at(path);
        let onlooker = Process::new(
            |_, _| Fate { waits: Duration::ZERO, end: End::Done, answer_takes: Duration::ZERO },
            || {},
        );
        let observer = Db::simulated(&disk.aside(), &onlooker);
        let books = at_once(Books::now(&observer));
        let now = *dice.pick(&BEGINNINGS);
        let state = State {
            dice,
            books,
            promises: Promises::default(),
            replicas: Vec::new(),
            processes: Vec::new(),
            skews: vec![0; temper.replicas],
            now,
            away_until: vec![Instant::now(); temper.replicas],
            healed: false,
            violation: None,
            history: DefaultHasher::new(),
            told_aloud,
            steps: 0,
            commits: 0,
        };
        let world =
            World { temper, disk, observer, metrics, began: Instant::now(), state: Mutex::new(state) };
        world.note(|| format!("{:?}", world.temper));
        Arc::new(world)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Dice for somebody of this world.
    pub fn fork(&self) -> Dice {
        self.state().dice.fork()
    }

    /// Writes a line of the history.
    pub fn note(&self, line: impl FnOnce() -> String) {
        let at = self.began.elapsed().as_millis();
        let mut state = self.state();
        let line = line();
        (at, &line).hash(&mut state.history);
        state.steps += 1;
        if state.told_aloud {
            eprintln!("{at:>7} {line}");
        }
    }

    /// What tells this history from another.
    pub fn fingerprint(&self) -> u64 {
        self.state().history.finish()
    }

    pub fn hold(&self, what: Result<(), String>) {
        if let Err(violation) = what {
            self.note(|| format!("VIOLATION: {violation}"));
            self.state().violation.get_or_insert(violation);
        }
    }

    /// The time as a replica knows it.
    pub fn now(&self, place: usize) -> Time {
        let state = self.state();
        let skew = if state.healed { 0 } else { state.skews[place] };
        Time(state.now + skew + i64::try_from(self.began.elapsed().as_millis()).unwrap())
    }

    /// It is suddenly later.
    pub fn jump(&self, by: i64) {
        self.note(|| format!("the clocks jump by {by} ms"));
        self.state().now += by;
    }

    pub fn shift(&self, place: usize, to: i64) {
        self.note(|| format!("replica {place} is off by {to} ms"));
        self.state().skews[place] = to;
    }

    /// The database goes away, from one place or from all.
    pub fn go_away(&self, from: Option<usize>, lasts: Duration) {
        self.note(|| format!("the database is away from {from:?} for {lasts:?}"));
        let until = Instant::now() + lasts;
        for (place, away_until) in self.state().away_until.iter_mut().enumerate() {
            if from.is_none_or(|from| from == place) {
                *away_until = until;
            }
        }
    }

    pub fn heal(&self) {
        self.note(|| "healed".to_owned());
        self.state().healed = true;
    }

    /// Starts a process at a replica's place, which may be a new one.
    pub fn start(self: &Arc<World>, place: usize) -> Replica {
        let incarnation = self.state().processes.len();
        // The world holds its processes.
        let (drawn, told) = (Arc::downgrade(self), Arc::downgrade(self));
        let process = Process::new(
            move |kind, text| {
                drawn.upgrade().map_or_else(over, |world| world.fate((place, incarnation), kind, text))
            },
            move || told.upgrade().into_iter().for_each(|world| world.committed(incarnation)),
        );
        let db = Db::simulated(&self.disk, &process);
        let (ledger, _) = Ledger::start(db.clone(), self.metrics.clone());
        self.note(|| format!("process {incarnation} starts at {place}"));
        let replica = Replica { process: process.clone(), db, ledger, incarnation, place };
        let mut state = self.state();
        state.processes.push(process);
        match state.replicas.get_mut(place) {
            Some(old) => *old = replica.clone(),
            None => state.replicas.push(replica.clone()),
        }
        replica
    }

    pub fn replica(&self, place: usize) -> Replica {
        self.state().replicas[place].clone()
    }

    fn fate(&self, (place, incarnation): (usize, usize), kind: Kind, text: &'static str) -> Fate {
        let fate = {
            let mut guard = self.state();
            let state = &mut *guard;
            let dice = &mut state.dice;
            let waits = if dice.chance(500) { dice.ms(2) } else { Duration::ZERO };
            let mut fate = Fate { waits, end: End::Done, answer_takes: Duration::ZERO };
            // A commit is where it hurts.
            let faults = self.temper.faults * if kind == Kind::Commit { 4 } else { 1 };
            if state.healed {
            } else if Instant::now() < state.away_until[place] {
                fate.end = End::Fails(StoreError::Unavailable("simulated: away".to_owned()));
            } else if dice.chance(faults) {
                match dice.roll(7) {
                    _ if dice.chance(self.temper.deadly) => fate.end = End::Dies { done: dice.chance(500) },
                    0 => fate.end = End::Fails(StoreError::Unavailable("simulated".to_owned())),
                    1 => fate.end = End::Fails(StoreError::Conflict("simulated".to_owned())),
                    2 => fate.end = End::Unheard,
                    3 => fate.end = End::UnderWay { lands: dice.chance(500), lasts: dice.ms(4_000) },
                    4 => fate.answer_takes = dice.ms(3_000),
                    // At the very moment at which somebody's patience ends.
                    5 => {
                        let waits = state.promises.asked.iter().find(|asked| asked.told == Told::Waits);
                        let ends = waits.map(|asked| asked.patience_ends - Instant::now());
                        fate.answer_takes = ends.unwrap_or_default();
                    }
                    _ => fate.waits = dice.ms(3_000),
                }
            }
            fate
        };
        self.note(|| {
            let Fate { waits, end, answer_takes } = &fate;
            let begins: String = text.split_whitespace().take(6).collect::<Vec<_>>().join(" ");
            format!("  {incarnation} {kind:?} {begins}: {waits:?}, {end:?}, {answer_takes:?}")
        });
        if matches!(fate.end, End::Dies { .. }) {
            self.note(|| format!("process {incarnation} dies"));
        }
        fate
    }

    /// Looks at the books after a commit.
    fn committed(&self, incarnation: usize) {
        let before = std::mem::take(&mut self.state().books);
        let after = at_once(Books::now(&self.observer));
        self.note(|| format!("  {incarnation} committed {} lines", after.new_lines(&before).count()));
        let follows = after.follow(&before);
        let mut state = self.state();
        state.commits += 1;
        let allowed = state.promises.allow(&before, &after);
        state.books = after;
        drop(state);
        self.hold(follows.and(allowed));
    }

    /// Asks a replica's ledger; `None`: it died first, or nobody waited for the answer.
    pub async fn ask(
        &self,
        replica: &Replica,
        request: Request,
        settles: bool,
        hangs_up_after: Option<Duration>,
    ) -> Option<Outcome> {
        let number = {
            let mut state = self.state();
            state.promises.ask(request.clone(), replica.incarnation)
        };
        self.note(|| format!("{number} asks {}: {request:?}", replica.incarnation));
        let began = Instant::now();
        let ledger = replica.ledger.clone();
        let asks =
            async move { if settles { ledger.settle(request).await } else { ledger.ask(request).await } };
        let hangs_up = async {
            match hangs_up_after {
                Some(after) => tokio::time::sleep(after).await,
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            biased;
            () = replica.process.death() => None,
            answer = asks => Some(answer),
            () = hangs_up => None,
        };
        // What dies with its process tells nobody anything.
        let answer = answer.filter(|_| !replica.process.is_dead());
        self.note(|| format!("{number} hears {answer:?}"));
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(answer) = answer else {
            state.promises.asked[number].told = Told::Nothing;
            return None;
        };
        let heard = state.promises.hear(number, &answer, began.elapsed(), &state.books);
        drop(guard);
        self.hold(heard);
        answer.map_err(|_: LedgerError| ()).ok()
    }
}

fn over() -> Fate {
    let end = End::Fails(StoreError::Unavailable("simulated: it is over".to_owned()));
    Fate { waits: Duration::ZERO, end, answer_takes: Duration::ZERO }
}
