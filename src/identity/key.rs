//! API keys as rows. A secret is shown when it is made and never again: what is kept is its SHA-256,
//! which is enough for 256 random bits.
//!
//! A key that is revoked keeps its rows, so that what it spent still has a name, and so that its
//! secret is never taken for a new one.
//!
//! # Failure behavior
//!
//! Each change is one transaction. Where the answer to a creation or a rotation is lost, the key, or
//! its new secret, is there but known to nobody: it is made again, and the lost one revoked or
//! rotated away.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    account,
    caller::{Caller, KeyScope},
};
use crate::{
    clock::Time,
    id::{AccountId, KeyId},
    store::{Db, Rows, StoreError, Tx, Value, binds, statements},
};

/// What every secret that is made here begins with, so that leak scanners recognize it.
const SECRET_PREFIX: &str = "sk_live_";

/// How many of a secret's own characters are shown, to tell keys apart by.
const SHOWN_CHARS: usize = 4;

/// A key as it goes out: everything but its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    pub id: KeyId,
    pub name: String,
    pub prefix: String,
    pub created_at: Time,
    pub last_used_at: Option<Time>,
    pub expires_at: Option<Time>,
    /// `None`: everything in its own account.
    pub scopes: Option<Vec<KeyScope>>,
    /// `None`: the server's.
    pub rate_limit_per_minute: Option<u32>,
    #[serde(rename = "account_id")]
    pub account: AccountId,
}

/// What a new key is to be.
#[derive(Clone, Debug, Default)]
pub struct NewKey {
    pub name: String,
    pub scopes: Option<Vec<KeyScope>>,
    pub rate_limit_per_minute: Option<u32>,
    pub expires_at: Option<Time>,
}

/// What is kept of a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretHash([u8; 32]);

impl SecretHash {
    pub fn of(secret: &str) -> SecretHash {
        SecretHash(Sha256::digest(secret).into())
    }
}

impl fmt::Display for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Whom a secret stands for, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub caller: Caller,
    /// The end of the key or of this secret, whichever comes first.
    pub expires_at: Option<Time>,
}

/// Where the first admin's secret comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The operator set it, for all replicas.
    Configured,
    /// This process made it up.
    Generated,
}

/// The columns that [`KeyRow`] reads.
macro_rules! key_columns {
    () => {
        "id, account_id, name, prefix, scopes, rate_limit_per_minute, expires_at, created_at, last_used_at"
    };
}

statements! {
    INSERT_KEY = "
        INSERT INTO api_keys (id, account_id, name, prefix, scopes, rate_limit_per_minute, expires_at,
                              created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    INSERT_SECRET = "INSERT INTO api_key_secrets (hash, key_id, created_at) VALUES ($1, $2, $3)";
    KEYS = concat!("SELECT ", key_columns!(), " FROM api_keys
        WHERE account_id = $1 AND revoked_at IS NULL AND (CAST($2 AS TEXT) IS NULL OR id < $2)
        ORDER BY id DESC LIMIT $3");
    KEY = concat!("SELECT ", key_columns!(), " FROM api_keys
        WHERE account_id = $1 AND id = $2 AND revoked_at IS NULL");
    KEY_OF_ANY = concat!("SELECT ", key_columns!(), " FROM api_keys WHERE id = $1 AND revoked_at IS NULL");
    REVOKE = "
        UPDATE api_keys SET revoked_at = $3 WHERE account_id = $1 AND id = $2 AND revoked_at IS NULL";
    SHOW_NEW_PREFIX = concat!("
        UPDATE api_keys SET prefix = $3 WHERE account_id = $1 AND id = $2 AND revoked_at IS NULL
        RETURNING ", key_columns!());
    // What would end earlier is not given more time.
    END_SECRETS = "
        UPDATE api_key_secrets SET expires_at = $2
        WHERE key_id = $1 AND (expires_at IS NULL OR expires_at > $2)";
    FIND_SECRET = "
        SELECT api_keys.id, api_keys.account_id, accounts.suspended, api_keys.scopes,
               api_keys.rate_limit_per_minute, plans.rate_limit_per_minute AS plan_rate_per_minute,
               api_keys.expires_at AS key_expires_at, api_key_secrets.expires_at AS secret_expires_at
        FROM api_key_secrets
        JOIN api_keys ON api_keys.id = api_key_secrets.key_id
        JOIN accounts ON accounts.id = api_keys.account_id
        LEFT JOIN plans
            ON plans.code = COALESCE(accounts.plan, (SELECT MIN(code) FROM plans WHERE is_default))
        WHERE api_key_secrets.hash = $1 AND api_keys.revoked_at IS NULL";
    SECRET_WAS_THERE = "SELECT key_id FROM api_key_secrets WHERE hash = $1";
    REACH_MILESTONE = "
        INSERT INTO milestones (name, reached_at) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING";
    // Locks the rows in order, so that replicas that write the same keys' uses can't deadlock.
    TOUCH = "
        UPDATE api_keys SET last_used_at = used.used_at
        FROM (SELECT api_keys.id AS id, CAST(given.value ->> 1 AS BIGINT) AS used_at
              FROM {rows} JOIN api_keys ON api_keys.id = given.value ->> 0
              WHERE api_keys.last_used_at IS NULL
                 OR api_keys.last_used_at < CAST(given.value ->> 1 AS BIGINT)
              ORDER BY api_keys.id {for_update}) AS used
        WHERE api_keys.id = used.id";
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    id: String,
    account_id: String,
    name: String,
    prefix: String,
    scopes: Option<String>,
    rate_limit_per_minute: Option<i64>,
    expires_at: Option<i64>,
    created_at: i64,
    last_used_at: Option<i64>,
}

impl TryFrom<KeyRow> for ApiKey {
    type Error = StoreError;

    fn try_from(row: KeyRow) -> Result<ApiKey, StoreError> {
        Ok(ApiKey {
            scopes: read_scopes(row.scopes.as_deref(), &row.id)?,
            rate_limit_per_minute: read_rate(row.rate_limit_per_minute),
            id: row.id.into(),
            account: row.account_id.into(),
            name: row.name,
            prefix: row.prefix,
            created_at: Time(row.created_at),
            last_used_at: row.last_used_at.map(Time),
            expires_at: row.expires_at.map(Time),
        })
    }
}

#[derive(sqlx::FromRow)]
struct CredentialRow {
    id: String,
    account_id: String,
    suspended: bool,
    scopes: Option<String>,
    rate_limit_per_minute: Option<i64>,
    plan_rate_per_minute: Option<i64>,
    key_expires_at: Option<i64>,
    secret_expires_at: Option<i64>,
}

impl TryFrom<CredentialRow> for Credential {
    type Error = StoreError;

    fn try_from(row: CredentialRow) -> Result<Credential, StoreError> {
        let scopes = read_scopes(row.scopes.as_deref(), &row.id)?;
        let rate = read_rate(row.rate_limit_per_minute);
        let ends = [row.key_expires_at, row.secret_expires_at];
        let key_end = row.key_expires_at.map(Time);
        Ok(Credential {
            caller: Caller::of_key(
                row.account_id.into(),
                row.id.into(),
                row.suspended,
                scopes,
                rate,
                key_end,
            )
            .with_plan_rate(read_rate(row.plan_rate_per_minute)),
            expires_at: ends.into_iter().flatten().min().map(Time),
        })
    }
}

/// Reads stored scopes. One that only a newer replica knows grants nothing here, and is left out; a
/// list that can't be read is no reason to let the key do everything.
fn read_scopes(stored: Option<&str>, key: &str) -> Result<Option<Vec<KeyScope>>, StoreError> {
    let Some(stored) = stored else { return Ok(None) };
    let names: Vec<String> = serde_json::from_str(stored)
        .map_err(|_| StoreError::Refused(format!("the scopes of key {key} can't be read")))?;
    Ok(Some(names.iter().filter_map(|name| KeyScope::parse(name)).collect()))
}

fn read_rate(stored: Option<i64>) -> Option<u32> {
    stored.and_then(|rate| u32::try_from(rate).ok())
}

/// A new secret: 256 random bits behind [`SECRET_PREFIX`].
pub(super) fn new_secret() -> Result<SecretString, StoreError> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random)
        .map_err(|error| StoreError::Unavailable(format!("the system gives no random bytes: {error}")))?;
    Ok(format!("{SECRET_PREFIX}{}", hex::encode(random)).into())
}

/// Whether a text could be a secret: what was made here is, and what an operator may choose as
/// BOOTSTRAP_API_KEY, which is any 32 characters or more that a header carries.
pub fn could_be(secret: &str) -> bool {
    (32..=1_024).contains(&secret.len())
        && secret.bytes().all(|byte| matches!(byte, b' '..=b'~'))
        && secret == secret.trim()
}

/// What is shown of a secret. One that the operator chose may be guessed from much more than this.
fn prefix_of(secret: &SecretString) -> String {
    let secret = secret.expose_secret();
    let known = if secret.starts_with(SECRET_PREFIX) { SECRET_PREFIX.len() } else { 0 };
    secret.chars().take(known + SHOWN_CHARS).collect()
}

/// Makes a key, and its secret, which is known only now. `None`: there is no such account.
pub async fn create(
    db: &Db,
    account: &AccountId,
    new: NewKey,
    now: Time,
) -> Result<Option<(ApiKey, SecretString)>, StoreError> {
    let secret = new_secret()?;
    let mut tx = db.begin().await?;
    if !account::exists(&mut tx, account).await? {
        tx.rollback().await?;
        return Ok(None);
    }
    let key = insert(&mut tx, account, new, &secret, now).await?;
    tx.commit().await?;
    Ok(Some((key, secret)))
}

async fn insert(
    tx: &mut Tx,
    account: &AccountId,
    new: NewKey,
    secret: &SecretString,
    now: Time,
) -> Result<ApiKey, StoreError> {
    let key = ApiKey {
        id: KeyId::fresh(),
        name: new.name,
        prefix: prefix_of(secret),
        created_at: now,
        last_used_at: None,
        expires_at: new.expires_at,
        scopes: new.scopes,
        rate_limit_per_minute: new.rate_limit_per_minute,
        account: account.clone(),
    };
    let scopes = key
        .scopes
        .as_ref()
        .map(|scopes| serde_json::Value::from_iter(scopes.iter().map(|scope| scope.as_str())).to_string());
    let rate = key.rate_limit_per_minute.map(i64::from);
    let values = binds![&key.id, account, &key.name, &key.prefix, scopes, rate, key.expires_at, now];
    tx.execute(&INSERT_KEY, values).await?;
    insert_secret(tx, &key.id, secret, now).await?;
    Ok(key)
}

async fn insert_secret(tx: &mut Tx, key: &KeyId, secret: &SecretString, now: Time) -> Result<(), StoreError> {
    let hash = SecretHash::of(secret.expose_secret());
    tx.execute(&INSERT_SECRET, binds![hash.to_string(), key, now]).await?;
    Ok(())
}

/// The account's keys that were not revoked, newest first, from below `before` on.
pub async fn list(
    db: &Db,
    account: &AccountId,
    before: Option<&str>,
    limit: i64,
) -> Result<Vec<ApiKey>, StoreError> {
    let rows: Vec<KeyRow> = db.all(&KEYS, binds![account, before, limit]).await?;
    rows.into_iter().map(ApiKey::try_from).collect()
}

/// The key of that id, whosever it is, unless it was revoked.
pub async fn get_of_any(db: &Db, id: &KeyId) -> Result<Option<ApiKey>, StoreError> {
    let row: Option<KeyRow> = db.optional(&KEY_OF_ANY, binds![id]).await?;
    row.map(ApiKey::try_from).transpose()
}

/// One of the account's keys, unless it was revoked.
pub async fn get(db: &Db, account: &AccountId, id: &KeyId) -> Result<Option<ApiKey>, StoreError> {
    let row: Option<KeyRow> = db.optional(&KEY, binds![account, id]).await?;
    row.map(ApiKey::try_from).transpose()
}

/// Revokes one of the account's keys; `false` if there is none that was not revoked before.
pub(super) async fn revoke(db: &Db, account: &AccountId, id: &KeyId, now: Time) -> Result<bool, StoreError> {
    Ok(db.execute(&REVOKE, binds![account, id, now]).await? > 0)
}

/// Gives one of the account's keys a new secret. All it had before end after `grace`, or earlier if
/// they were to.
pub(super) async fn rotate(
    db: &Db,
    account: &AccountId,
    id: &KeyId,
    grace: Duration,
    now: Time,
) -> Result<Option<(ApiKey, SecretString)>, StoreError> {
    let secret = new_secret()?;
    let mut tx = db.begin().await?;
    // Also locks the key, so that of two rotations one ends the other's secret.
    let values = binds![account, id, prefix_of(&secret)];
    let row: Option<KeyRow> = tx.optional(&SHOW_NEW_PREFIX, values).await?;
    let Some(row) = row else {
        tx.rollback().await?;
        return Ok(None);
    };
    let key = ApiKey::try_from(row)?;
    tx.execute(&END_SECRETS, binds![id, now.plus(grace)]).await?;
    insert_secret(&mut tx, id, &secret, now).await?;
    tx.commit().await?;
    Ok(Some((key, secret)))
}

/// Whom the secret stands for; whether it has expired is for the caller to see, at each use.
pub async fn find_by_hash(db: &Db, hash: &SecretHash) -> Result<Option<Credential>, StoreError> {
    let row: Option<CredentialRow> = db.optional(&FIND_SECRET, binds![hash.to_string()]).await?;
    row.map(Credential::try_from).transpose()
}

/// Writes when keys were last used, all in one statement. Never sets a time back.
pub(super) async fn touch(
    db: &Db,
    uses: impl IntoIterator<Item = (&KeyId, &Time)>,
) -> Result<(), StoreError> {
    let mut rows = Rows::default();
    for (key, at) in uses {
        rows.push(&[Value::from(key), Value::from(*at)]);
    }
    if !rows.is_empty() {
        db.execute(&TOUCH, binds![rows]).await?;
    }
    Ok(())
}

/// Makes the root account and its first admin key with this secret. A configured secret becomes a
/// key once in its life, whatever happened to that key later; a generated one only where there
/// never was an admin's key. Any number of replicas may try at once.
///
/// Tells whether there is such a key thanks to this call, or, for a generated secret, to an earlier
/// one whose commit went unanswered.
pub(super) async fn create_first(
    db: &Db,
    secret: &SecretString,
    origin: Origin,
    now: Time,
) -> Result<bool, StoreError> {
    let hash = SecretHash::of(secret.expose_secret()).to_string();
    let mut tx = db.begin().await?;
    let first = reach(&mut tx, "first_admin_key", now).await?;
    // The milestone outlives the secret's own row, which the sweeper forgets after a rotation.
    let unseen = reach(&mut tx, &format!("admin_key:{hash}"), now).await?;
    let row: Option<(String,)> = tx.optional(&SECRET_WAS_THERE, binds![hash]).await?;
    let was_there = !unseen || row.is_some();
    let wanted = match origin {
        Origin::Configured => !was_there,
        Origin::Generated => first,
    };
    if !wanted {
        tx.rollback().await?;
        return Ok(origin == Origin::Generated && was_there);
    }
    account::create_root(&mut tx, now).await?;
    let scopes = Some(vec![KeyScope::Admin]);
    let new = NewKey { name: "bootstrap".to_owned(), scopes, ..NewKey::default() };
    insert(&mut tx, &account::root(), new, secret, now).await?;
    tx.commit().await?;
    Ok(true)
}

/// Whether this is the first time that the milestone is reached.
async fn reach(tx: &mut Tx, milestone: &str, now: Time) -> Result<bool, StoreError> {
    Ok(tx.execute(&REACH_MILESTONE, binds![milestone, now]).await? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{plan, store::testing::each_backend};

    statements! {
        SUBSCRIBE = "UPDATE accounts SET plan = $2 WHERE id = $1";
    }

    fn hash(secret: &SecretString) -> SecretHash {
        SecretHash::of(secret.expose_secret())
    }

    fn named(name: &str) -> NewKey {
        NewKey { name: name.to_owned(), ..NewKey::default() }
    }

    async fn an_account(db: &Db) -> AccountId {
        account::create(db, "acme".to_owned(), None, Time(1)).await.unwrap().id
    }

    #[test]
    fn a_secret_is_256_random_bits_behind_a_known_prefix() {
        let (one, two) = (new_secret().unwrap(), new_secret().unwrap());
        let text = one.expose_secret();
        assert_eq!(text.len(), "sk_live_".len() + 64);
        assert!(text.starts_with("sk_live_") && text[8..].bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(text, two.expose_secret());
        assert_eq!(prefix_of(&one), text[..12]);
        assert!(!format!("{one:?}").contains(&text[8..]));
    }

    #[test]
    fn of_a_secret_that_was_not_made_here_four_characters_are_shown() {
        assert_eq!(prefix_of(&"correct horse battery staple, again".into()), "corr");
        assert_eq!(prefix_of(&"sk_test_0123456789abcdef0123456789abcdef".into()), "sk_t");
        assert_eq!(prefix_of(&"sk_live_0123456789abcdef0123456789abcdef".into()), "sk_live_0123");
    }

    #[test]
    fn a_hash_is_sha_256_in_hex() {
        assert_eq!(
            SecretHash::of("abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn unknown_stored_scopes_grant_nothing() {
        assert_eq!(read_scopes(None, "k").unwrap(), None);
        let read = read_scopes(Some(r#"["cast","from_the_future"]"#), "k").unwrap();
        assert_eq!(read, Some(vec![KeyScope::Cast]));
        assert_eq!(read_scopes(Some(r#"["from_the_future"]"#), "k").unwrap(), Some(vec![]));
        assert!(read_scopes(Some("everything"), "k").is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_is_made_found_listed_and_revoked_once() {
        each_backend(|db| async move {
            let account = an_account(&db).await;
            let new = NewKey {
                name: "ci".to_owned(),
                scopes: Some(vec![KeyScope::Cast]),
                rate_limit_per_minute: Some(1_000_000_000),
                expires_at: Some(Time(99)),
            };
            let (key, secret) = create(&db, &account, new, Time(2)).await.unwrap().unwrap();
            let found = find_by_hash(&db, &hash(&secret)).await.unwrap().unwrap();
            let caller = Caller::of_key(
                account.clone(),
                key.id.clone(),
                false,
                Some(vec![KeyScope::Cast]),
                Some(1_000_000_000),
                Some(Time(99)),
            );
            assert_eq!(found, Credential { caller, expires_at: Some(Time(99)) });

            let (second, _) = create(&db, &account, named("two"), Time(3)).await.unwrap().unwrap();
            let page = list(&db, &account, None, 1).await.unwrap();
            assert_eq!(page, std::slice::from_ref(&second));
            let rest = list(&db, &account, Some(second.id.as_str()), 9).await.unwrap();
            assert_eq!(rest, std::slice::from_ref(&key));
            assert_eq!(get(&db, &account, &key.id).await.unwrap(), Some(key.clone()));

            let other = an_account(&db).await;
            assert_eq!(get(&db, &other, &key.id).await.unwrap(), None);
            assert!(!revoke(&db, &other, &key.id, Time(4)).await.unwrap());
            assert!(revoke(&db, &account, &key.id, Time(4)).await.unwrap());
            assert!(!revoke(&db, &account, &key.id, Time(5)).await.unwrap());
            assert_eq!(find_by_hash(&db, &hash(&secret)).await.unwrap(), None);
            assert_eq!(get(&db, &account, &key.id).await.unwrap(), None);
            assert_eq!(list(&db, &account, None, 9).await.unwrap(), [second]);
            let gone = rotate(&db, &account, &key.id, Duration::ZERO, Time(6)).await.unwrap();
            assert!(gone.is_none());
            let nowhere = create(&db, &"acct_never".into(), named("x"), Time(6)).await.unwrap();
            assert!(nowhere.is_none());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_rotation_ends_older_secrets_and_extends_none() {
        each_backend(|db| async move {
            let account = an_account(&db).await;
            let (key, one) = create(&db, &account, named("ci"), Time(0)).await.unwrap().unwrap();
            let turn = |grace, now| {
                let (db, account, id) = (db.clone(), account.clone(), key.id.clone());
                async move {
                    let grace = Duration::from_millis(grace);
                    rotate(&db, &account, &id, grace, Time(now)).await.unwrap().unwrap()
                }
            };
            let end = |secret: &SecretString| {
                let (db, hash) = (db.clone(), hash(secret));
                async move { find_by_hash(&db, &hash).await.unwrap().unwrap().expires_at }
            };
            let (same, two) = turn(100, 1_000).await;
            assert_eq!((&same.id, &same.name), (&key.id, &key.name));
            assert_eq!(same.prefix, prefix_of(&two));
            assert_eq!((end(&one).await, end(&two).await), (Some(Time(1_100)), None));
            let (_, three) = turn(500, 1_010).await;
            assert_eq!((end(&one).await, end(&two).await), (Some(Time(1_100)), Some(Time(1_510))));
            turn(0, 1_020).await;
            for ended in [&one, &two, &three] {
                assert_eq!(end(ended).await, Some(Time(1_020)));
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_comes_with_its_accounts_plans_rate() {
        each_backend(|db| async move {
            let account = an_account(&db).await;
            let new = NewKey { rate_limit_per_minute: Some(5), ..named("ci") };
            let (_, secret) = create(&db, &account, new, Time(0)).await.unwrap().unwrap();
            let rates = || async {
                let caller = find_by_hash(&db, &hash(&secret)).await.unwrap().unwrap().caller;
                (caller.rate_limit_per_minute, caller.plan_rate_per_minute)
            };
            assert_eq!(rates().await, (Some(5), None));
            plan::seed(&db, "free", "usd", Time(0)).await.unwrap();
            for (code, rate_limit_per_minute) in [("free", Some(30)), ("pro", Some(900))] {
                let plan = plan::get(&db, code).await.unwrap().unwrap();
                let terms = plan::Terms { rate_limit_per_minute, ..plan.terms };
                plan::put(&db, code, terms, "free", Time(0)).await.unwrap();
            }
            assert_eq!(rates().await, (Some(5), Some(30)));
            db.execute(&SUBSCRIBE, binds![&account, "pro"]).await.unwrap();
            assert_eq!(rates().await, (Some(5), Some(900)));
            db.execute(&SUBSCRIBE, binds![&account, "gone"]).await.unwrap();
            assert_eq!(rates().await, (Some(5), None));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn uses_are_written_in_bulk_and_never_set_back() {
        each_backend(|db| async move {
            let account = an_account(&db).await;
            let (one, _) = create(&db, &account, named("one"), Time(0)).await.unwrap().unwrap();
            let (two, _) = create(&db, &account, named("two"), Time(0)).await.unwrap().unwrap();
            let never = KeyId::from("key_never");
            let uses = [(&one.id, &Time(10)), (&two.id, &Time(20)), (&never, &Time(30))];
            touch(&db, uses).await.unwrap();
            touch(&db, [(&one.id, &Time(11)), (&two.id, &Time(19))]).await.unwrap();
            touch(&db, []).await.unwrap();
            let used: Vec<_> =
                list(&db, &account, None, 9).await.unwrap().iter().map(|key| key.last_used_at).collect();
            assert_eq!(used, [Some(Time(20)), Some(Time(11))]);
        })
        .await;
    }
}
