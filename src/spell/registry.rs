//! The spells that can be cast: those an admin stated, and the built-in `echo`, which a row of that
//! name overrides for as long as it is there.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use moka::future::Cache;
use serde_json::Value;
use url::Url;

use super::{
    Definition, ECHO, Kind, Spell,
    definition::check_name,
    upstream::{Upstream, UpstreamError},
};
use crate::{
    clock::Time,
    money::Nanos,
    store::{Db, StoreError, binds, statements},
};

/// How long another replica's change may go unnoticed here.
const STALE: Duration = Duration::from_millis(500);

/// Most names that are remembered, those among them that no spell has.
const REMEMBERED: u64 = 10_000;

/// The registry: hand it around by clone.
#[derive(Clone)]
pub struct Spells {
    db: Db,
    upstream: Upstream,
    /// Of spells that state none.
    default_price: Nanos,
    /// By generation and name. A change of ours begins a new generation, so that a lookup that read
    /// the old row, and is put in here only after the change, is not found by anybody.
    cache: Cache<(u64, String), Option<Arc<Spell>>>,
    generation: Arc<AtomicU64>,
}

/// What came of stating a spell.
#[derive(Debug)]
pub enum Change {
    Made(Spell),
    Replaced(Spell),
    /// It can't be run as stated; a sentence says why.
    Refused(String),
}

statements! {
    SPELL = "SELECT name, definition, created_at, updated_at FROM spells WHERE name = $1";
    // The built-in takes its place in the database's own order, whatever its collation.
    SPELLS = "
        SELECT name, definition, created_at, updated_at FROM spells WHERE name > $1
        UNION ALL
        SELECT 'echo', NULL, NULL, NULL
        WHERE 'echo' > $1 AND NOT EXISTS (SELECT 1 FROM spells WHERE name = 'echo')
        ORDER BY name
        LIMIT $2";
    SPELL_TO_REPLACE = "SELECT definition FROM spells WHERE name = $1 {for_update}";
    PUT_SPELL = "
        INSERT INTO spells (name, definition, created_at, updated_at) VALUES ($1, $2, $3, $3)
        ON CONFLICT (name) DO UPDATE SET definition = excluded.definition, updated_at = excluded.updated_at
        RETURNING created_at";
    DELETE_SPELL = "DELETE FROM spells WHERE name = $1";
}

/// A row, or the built-in, which has no definition and no dates.
#[derive(sqlx::FromRow)]
struct SpellRow {
    name: String,
    definition: Option<String>,
    created_at: Option<i64>,
    updated_at: Option<i64>,
}

impl Spells {
    /// `default_price` (`COST_PER_CAST_CENTS`) is what a spell costs that states no price.
    pub fn new(db: Db, upstream: Upstream, default_price: Nanos) -> Spells {
        let cache = Cache::builder().max_capacity(REMEMBERED).time_to_live(STALE).build();
        Spells { db, upstream, default_price, cache, generation: Arc::default() }
    }

    /// The spell of that name, to be cast. It may be as old as half a second, unless it was changed
    /// here.
    pub async fn find(&self, name: &str) -> Result<Option<Arc<Spell>>, StoreError> {
        let key = (self.generation.load(Ordering::SeqCst), name.to_owned());
        let load = async { Ok(self.get(name).await?.map(Arc::new)) };
        // Whoever waited for the same lookup shares its error.
        self.cache.try_get_with(key, load).await.map_err(|error: Arc<StoreError>| (*error).clone())
    }

    /// The spell of that name as it is now.
    pub async fn get(&self, name: &str) -> Result<Option<Spell>, StoreError> {
        if check_name(name).is_err() {
            return Ok(None);
        }
        let row: Option<SpellRow> = self.db.optional(&SPELL, binds![name]).await?;
        match row {
            Some(row) => self.read(row).map(Some),
            None => Ok((name == ECHO).then(|| Spell::built_in(self.default_price))),
        }
    }

    /// Up to `limit` spells by name, beginning after `after`.
    pub async fn list(&self, after: Option<&str>, limit: i64) -> Result<Vec<Spell>, StoreError> {
        // No name is empty, so all of them come after the empty one.
        let rows: Vec<SpellRow> = self.db.all(&SPELLS, binds![after.unwrap_or_default(), limit]).await?;
        rows.into_iter().map(|row| self.read(row)).collect()
    }

    /// Makes the spell, or replaces all of it.
    pub async fn put(&self, name: &str, mut definition: Definition, now: Time) -> Result<Change, StoreError> {
        let check = |definition: &Definition| {
            check_name(name)?;
            definition.spell(name, self.default_price, |url| self.upstream.check_url(url))
        };
        // Before the database is asked for anything; below it is read again with its secrets.
        if let Err(problem) = check(&definition) {
            return Ok(Change::Refused(problem));
        }
        let mut tx = self.db.begin().await?;
        let existing: Option<(String,)> = tx.optional(&SPELL_TO_REPLACE, binds![name]).await?;
        let stored = existing.as_ref().and_then(|(text,)| Definition::stored(text));
        let spell = match definition.unmask(stored.as_ref()).and_then(|()| check(&definition)) {
            Ok(spell) => spell,
            Err(problem) => {
                tx.rollback().await?;
                return Ok(Change::Refused(problem));
            }
        };
        let text = serde_json::to_string(&definition)
            .map_err(|_| StoreError::Refused(format!("spell {name} can't be written")))?;
        let (created_at,): (i64,) = tx.one(&PUT_SPELL, binds![name, text, now]).await?;
        let committed = tx.commit().await;
        // Also when it failed: it may have been done all the same.
        self.changed();
        committed?;
        let spell = Spell { created_at: Some(Time(created_at)), updated_at: Some(now), ..spell };
        Ok(if existing.is_some() { Change::Replaced(spell) } else { Change::Made(spell) })
    }

    /// Deletes what was stated under that name; false if nothing was. The built-in can't be deleted:
    /// it comes back when the row that overrode it is gone.
    pub async fn delete(&self, name: &str) -> Result<bool, StoreError> {
        if check_name(name).is_err() {
            return Ok(false);
        }
        let deleted = self.db.execute(&DELETE_SPELL, binds![name]).await;
        self.changed();
        Ok(deleted? > 0)
    }

    /// Runs the spell on `payload`.
    pub async fn run(&self, spell: &Spell, payload: &Value) -> Result<Value, UpstreamError> {
        match &spell.kind {
            Kind::Echo => Ok(payload.clone()),
            Kind::Http { url, headers, timeout, .. } => {
                self.upstream.call(url, headers, *timeout, payload).await
            }
        }
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn read(&self, row: SpellRow) -> Result<Spell, StoreError> {
        let Some(text) = row.definition else {
            return Ok(Spell::built_in(self.default_price));
        };
        // Whether the URL may be called is asked at each call, so that a changed setting fails the
        // cast with its reason and not the lookup.
        let read_url = |url: &str| Url::parse(url).map_err(|error| error.to_string());
        let spell = Definition::stored(&text)
            .and_then(|definition| definition.spell(&row.name, self.default_price, read_url).ok())
            .ok_or_else(|| StoreError::Refused(format!("spell {} can't be read", row.name)))?;
        Ok(Spell { created_at: row.created_at.map(Time), updated_at: row.updated_at.map(Time), ..spell })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;
    use serde_json::json;

    const DEFAULT_PRICE: Nanos = Nanos(10_000_000);

    fn registry(db: Db) -> Spells {
        Spells::new(db, Upstream::new(false, 1 << 20).unwrap(), DEFAULT_PRICE)
    }

    fn definition(value: Value) -> Definition {
        serde_json::from_value(value).unwrap()
    }

    fn priced(cents: i64) -> Definition {
        definition(json!({"kind": "echo", "price": {"flat_cents": cents}}))
    }

    async fn price(spells: &Spells, name: &str) -> Option<i64> {
        spells.find(name).await.unwrap().map(|spell| spell.price.cents_rounded_up())
    }

    async fn names(spells: &Spells, after: Option<&str>, limit: i64) -> Vec<String> {
        spells.list(after, limit).await.unwrap().into_iter().map(|spell| spell.name).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_spell_is_made_replaced_and_deleted_with_effect_on_the_next_cast() {
        each_backend(|db| async move {
            let spells = registry(db);
            assert_eq!(price(&spells, "dear").await, None);
            let made = spells.put("dear", priced(3), Time(1_000)).await.unwrap();
            assert!(matches!(made, Change::Made(spell) if spell.created_at == Some(Time(1_000))));
            assert_eq!(price(&spells, "dear").await, Some(3));
            let replaced = spells.put("dear", priced(5), Time(2_000)).await.unwrap();
            let Change::Replaced(spell) = replaced else { panic!("{replaced:?}") };
            assert_eq!((spell.created_at, spell.updated_at), (Some(Time(1_000)), Some(Time(2_000))));
            assert_eq!(price(&spells, "dear").await, Some(5));
            assert!(spells.delete("dear").await.unwrap());
            assert_eq!(price(&spells, "dear").await, None);
            assert!(!spells.delete("dear").await.unwrap());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_replicas_change_is_seen_within_a_second() {
        each_backend(|db| async move {
            let (one, other) = (registry(db.clone()), registry(db));
            assert_eq!(price(&one, "dear").await, None);
            other.put("dear", priced(3), Time(1)).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            assert_eq!(price(&one, "dear").await, Some(3));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn echo_is_there_and_a_row_overrides_it() {
        each_backend(|db| async move {
            let spells = registry(db);
            assert_eq!(price(&spells, "echo").await, Some(1));
            assert_eq!(names(&spells, None, 10).await, ["echo"]);
            assert!(!spells.delete("echo").await.unwrap());
            assert!(matches!(spells.put("echo", priced(7), Time(1)).await.unwrap(), Change::Made(_)));
            assert_eq!(price(&spells, "echo").await, Some(7));
            assert_eq!(names(&spells, None, 10).await, ["echo"]);
            assert!(spells.delete("echo").await.unwrap());
            assert_eq!(price(&spells, "echo").await, Some(1));

            let echo = spells.find("echo").await.unwrap().unwrap();
            assert_eq!(spells.run(&echo, &json!({"a": [1]})).await, Ok(json!({"a": [1]})));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_list_goes_on_where_its_page_ended() {
        each_backend(|db| async move {
            let spells = registry(db);
            for name in ["beta", "alpha", "zeta", "gamma"] {
                spells.put(name, priced(1), Time(1)).await.unwrap();
            }
            assert_eq!(names(&spells, None, 10).await, ["alpha", "beta", "echo", "gamma", "zeta"]);
            assert_eq!(names(&spells, None, 2).await, ["alpha", "beta"]);
            assert_eq!(names(&spells, Some("beta"), 2).await, ["echo", "gamma"]);
            assert_eq!(names(&spells, Some("echo"), 2).await, ["gamma", "zeta"]);
            assert_eq!(names(&spells, Some("zeta"), 2).await, [""; 0]);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn secrets_survive_being_sent_back_masked() {
        each_backend(|db| async move {
            let spells = registry(db);
            let put = async |url: &str, value: &str| {
                let http = json!({"kind": "http", "url": url, "headers": {"X-Key": value}});
                spells.put("http", definition(http), Time(1)).await.unwrap()
            };
            assert!(matches!(put("https://a.example/", "***").await, Change::Refused(_)));
            assert!(matches!(put("https://a.example/", "first").await, Change::Made(_)));
            assert!(matches!(put("https://a.example/other", "***").await, Change::Replaced(_)));
            assert!(matches!(put("https://b.example/", "***").await, Change::Refused(_)));
            let spell = spells.find("http").await.unwrap().unwrap();
            let Kind::Http { url, headers, .. } = &spell.kind else { panic!("{spell:?}") };
            assert_eq!((url.as_str(), headers[0].1.as_bytes()), ("https://a.example/other", &b"first"[..]));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_refused_changes_nothing() {
        each_backend(|db| async move {
            let spells = registry(db);
            let private = json!({"kind": "http", "url": "http://127.0.0.1/"});
            for (name, stated) in
                [("a b", json!({"kind": "echo"})), ("x", json!({"kind": "ritual"})), ("x", private)]
            {
                let refused = spells.put(name, definition(stated), Time(1)).await.unwrap();
                assert!(matches!(refused, Change::Refused(_)), "{refused:?}");
            }
            assert_eq!(names(&spells, None, 10).await, ["echo"]);
            for name in ["a\0", "a b", ""] {
                assert!(spells.find(name).await.unwrap().is_none(), "{name:?}");
                assert!(!spells.delete(name).await.unwrap(), "{name:?}");
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_row_of_a_newer_version_is_neither_run_nor_in_the_way() {
        each_backend(|db| async move {
            let spells = registry(db.clone());
            let newer = r#"{"kind":"echo","free_on":"monday"}"#;
            let mut tx = db.begin().await.unwrap();
            let _: (i64,) = tx.one(&PUT_SPELL, binds!["newer", newer, Time(1)]).await.unwrap();
            tx.commit().await.unwrap();
            assert!(matches!(spells.find("newer").await, Err(StoreError::Refused(_))));
            assert!(matches!(spells.put("newer", priced(2), Time(2)).await.unwrap(), Change::Replaced(_)));
            assert_eq!(price(&spells, "newer").await, Some(2));
        })
        .await;
    }
}
