//! The rows of the table: where it runs, and what goes wrong meanwhile.

/// Which database, and how many processes on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Sqlite,
    Postgres(usize),
}

impl Place {
    pub const ALL: [Place; 3] = [Place::Sqlite, Place::Postgres(1), Place::Postgres(3)];

    pub fn processes(self) -> usize {
        match self {
            Place::Sqlite => 1,
            Place::Postgres(count) => count,
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Sqlite => write!(f, "SQLite, 1 process"),
            Place::Postgres(1) => write!(f, "PostgreSQL, 1 process"),
            Place::Postgres(count) => write!(f, "PostgreSQL, {count} processes"),
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    Nothing,
    Kills,
    Redis,
    Cuts,
    Clock,
    Limits,
    Upstreams,
    Webhooks,
}

impl Trouble {
    pub const ALL: [Trouble; 8] = [
        Trouble::Nothing,
        Trouble::Kills,
        Trouble::Redis,
        Trouble::Cuts,
        Trouble::Clock,
        Trouble::Limits,
        Trouble::Upstreams,
        Trouble::Webhooks,
    ];
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Trouble::Nothing => "plain load",
            Trouble::Kills => "`kill -9` of a process every second",
            Trouble::Redis => "Redis stopped and started",
            Trouble::Cuts => "PostgreSQL cut off for a second at a time",
            Trouble::Clock => "the clock goes over every window's edge",
            Trouble::Limits => "limits changed under load",
            Trouble::Upstreams => "slow and failing upstreams, holds expire",
            Trouble::Webhooks => "webhooks grant credits meanwhile",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub place: Place,
    pub trouble: Trouble,
}

impl Row {
    /// Every row that there can be: no network to cut lies before SQLite.
    pub fn all() -> Vec<Row> {
        let rows =
            Place::ALL.into_iter().flat_map(|place| Trouble::ALL.map(|trouble| Row { place, trouble }));
        rows.filter(|row| *row != Row { place: Place::Sqlite, trouble: Trouble::Cuts }).collect()
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} | {}", self.place, self.trouble)
    }
}
