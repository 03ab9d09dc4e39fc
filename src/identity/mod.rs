//! Who is calling: accounts, API keys, users of others, and the [`Caller`] that what is presented
//! stands for.
//!
//! Every request asks, so what the database said is kept for [`FRESH`]: short enough that every
//! replica hears of a revocation or a suspension within a second without being told, long enough
//! that a key in use costs two lookups a second however often it calls.
//!
//! # Failure behavior
//!
//! While the database does not answer, nobody is known and nobody is refused as unknown: it is an
//! error, which the outside hears as 503. So it is until [`Identity::bootstrap`] has seen to the
//! first admin's key: who comes early with that key must not be told that it is wrong. When keys were last used is written late, and tried again
//! until it is written; a process that is killed loses the last seconds of it and nothing else.

pub mod account;
mod caller;
pub mod jwt;
pub mod key;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moka::future::Cache;
use secrecy::SecretString;

use crate::{
    clock::{Clock, Time},
    id::{AccountId, KeyId},
    store::{Db, StoreError},
};

pub use account::Account;
pub use caller::{Caller, Denied, KeyScope};
pub use key::{ApiKey, NewKey};

use key::{Credential, Origin, SecretHash};

/// How long what the database said is believed: half of the second within which a revoked key must
/// be refused, the other half being for the lookup itself.
const FRESH: Duration = Duration::from_millis(500);

const KEPT_FOR: Duration = Duration::from_secs(30);

/// How many secrets, and how many accounts, are kept. Guesses are kept as well, so it is bounded.
const KEPT: u64 = 50_000;

/// Whether others may call a user so: 1 to 255 bytes, without control characters.
pub fn could_be_user(user_id: &str) -> bool {
    (1..=255).contains(&user_id.len()) && !user_id.chars().any(char::is_control)
}

/// Knows who is calling, and changes it; hand it around by clone.
#[derive(Clone)]
pub struct Identity(Arc<Inner>);

struct Inner {
    db: Db,
    clock: Clock,
    credentials: Cache<SecretHash, Option<Arc<Credential>>>,
    /// Whether an account is suspended; `None`: there is no such account.
    accounts: Cache<AccountId, Option<bool>>,
    /// Accounts by what others call their user. The two belong together for good, in this database: kept
    /// for [`KEPT_FOR`], since another state of it may take its place.
    users: Cache<String, AccountId>,
    /// When keys were last used, as far as it is not written yet.
    uses: Mutex<HashMap<KeyId, Time>>,
    /// Whether the first admin's key has been seen to, so that who is not found is unknown.
    ready: AtomicBool,
    /// A first admin's secret whose commit went unanswered, so that it is not lost when it was made.
    unanswered: tokio::sync::Mutex<Option<SecretString>>,
}

impl Identity {
    pub fn new(db: Db, clock: Clock) -> Identity {
        Identity(Arc::new(Inner {
            db,
            clock,
            credentials: Cache::builder().max_capacity(KEPT).time_to_live(FRESH).build(),
            accounts: Cache::builder().max_capacity(KEPT).time_to_live(FRESH).build(),
            users: Cache::builder().max_capacity(KEPT).time_to_live(KEPT_FOR).build(),
            uses: Mutex::default(),
            ready: AtomicBool::new(false),
            unanswered: tokio::sync::Mutex::default(),
        }))
    }

    /// Whom the presented key stands for, if it is one and has not ended.
    pub async fn caller_of_key(&self, presented: &str) -> Result<Option<Caller>, StoreError> {
        if !key::could_be(presented) {
            return Ok(None);
        }
        let hash = SecretHash::of(presented);
        let lookup =
            self.found_or_unknown(async { Ok(key::find_by_hash(&self.0.db, &hash).await?.map(Arc::new)) });
        let found = self.0.credentials.try_get_with(hash, lookup).await.map_err(shared)?;
        let Some(credential) = found else { return Ok(None) };
        let now = self.0.clock.now();
        // Here and not at the lookup: no answer of the database is older than its key's end.
        if credential.expires_at.is_some_and(|end| end <= now) {
            return Ok(None);
        }
        self.note_use(&credential.caller.key, now);
        Ok(Some(credential.caller.clone()))
    }

    /// Whether the account is suspended; `None`: there is no such account.
    pub async fn is_suspended(&self, id: &AccountId) -> Result<Option<bool>, StoreError> {
        let lookup = self.found_or_unknown(async {
            Ok(account::get(&self.0.db, id).await?.map(|account| account.suspended))
        });
        self.0.accounts.try_get_with(id.clone(), lookup).await.map_err(shared)
    }

    /// The account of the user whom others call `user_id`, made when it is first heard of. Which ids
    /// there can be is [`could_be_user`].
    pub async fn account_of_user(&self, user_id: &str) -> Result<AccountId, StoreError> {
        let found = async {
            account::of_user(&self.0.db, user_id, self.0.clock.now()).await.map(|account| account.id)
        };
        self.0.users.try_get_with(user_id.to_owned(), found).await.map_err(shared)
    }

    /// The user whom others call `user_id`, acting in the account of its own, which is made when it is
    /// first heard of. Who says that it is that user is checked before.
    pub async fn caller_of_user(&self, user_id: &str) -> Result<Caller, StoreError> {
        let account = self.account_of_user(user_id).await?;
        // Accounts are never removed: one that is not there is not there yet, on this connection.
        let suspended = self.is_suspended(&account).await?;
        let suspended = suspended
            .ok_or_else(|| StoreError::Unavailable("a user's account is not there yet".to_owned()))?;
        Ok(Caller::of_user(user_id, account, suspended))
    }

    /// Passes on what `lookup` finds, and that it finds nothing only if that says anything.
    async fn found_or_unknown<T>(
        &self,
        lookup: impl Future<Output = Result<Option<T>, StoreError>>,
    ) -> Result<Option<T>, StoreError> {
        // Asked before the lookup, which may be answered from before the first admin's key was there.
        let ready = self.is_ready();
        match lookup.await? {
            None if !ready => {
                Err(StoreError::Unavailable("the first admin's key is not seen to yet".to_owned()))
            }
            found => Ok(found),
        }
    }

    /// Whether the first admin's key has been seen to: before, nobody is refused as unknown.
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// Whether the account has that key, and has not revoked it.
    pub async fn has_key(&self, account: &AccountId, id: &KeyId) -> Result<bool, StoreError> {
        Ok(key::get(&self.0.db, account, id).await?.is_some())
    }

    /// Changes an account; this replica acts on it at once, the others within a second. `None`:
    /// there is no such account.
    pub async fn change_account(
        &self,
        id: &AccountId,
        change: account::Change,
    ) -> Result<Option<Account>, StoreError> {
        let changed = account::change(&self.0.db, id, change).await;
        self.forget();
        changed
    }

    /// Makes a key, and its secret, which is known only now. `None`: there is no such account.
    pub async fn create_key(
        &self,
        account: &AccountId,
        new: NewKey,
    ) -> Result<Option<(ApiKey, SecretString)>, StoreError> {
        key::create(&self.0.db, account, new, self.0.clock.now()).await
    }

    /// Revokes one of the account's keys: here at once, on the other replicas within a second.
    /// `false` if there is none that was not revoked before.
    pub async fn revoke_key(&self, account: &AccountId, id: &KeyId) -> Result<bool, StoreError> {
        let revoked = key::revoke(&self.0.db, account, id, self.0.clock.now()).await;
        self.forget();
        revoked
    }

    /// Gives one of the account's keys a new secret; those it had end after `grace`, or earlier if
    /// they were to. `None`: there is no such key.
    pub async fn rotate_key(
        &self,
        account: &AccountId,
        id: &KeyId,
        grace: Duration,
    ) -> Result<Option<(ApiKey, SecretString)>, StoreError> {
        let rotated = key::rotate(&self.0.db, account, id, grace, self.0.clock.now()).await;
        self.forget();
        rotated
    }

    /// Makes the root account and the first admin key, where they are still to be made: with the
    /// `configured` secret, or with one of our own, which is returned so that it can be shown. Any
    /// number of replicas may do so at once; one of them makes it.
    ///
    /// A configured secret that was a key once and was revoked or rotated away stays so.
    pub async fn bootstrap(
        &self,
        configured: Option<&SecretString>,
    ) -> Result<Option<SecretString>, StoreError> {
        let made = self.make_first_admin(configured).await?;
        self.0.ready.store(true, Ordering::Release);
        self.forget();
        Ok(made)
    }

    async fn make_first_admin(
        &self,
        configured: Option<&SecretString>,
    ) -> Result<Option<SecretString>, StoreError> {
        let now = self.0.clock.now();
        if let Some(secret) = configured {
            key::create_first(&self.0.db, secret, Origin::Configured, now).await?;
            return Ok(None);
        }
        let mut unanswered = self.0.unanswered.lock().await;
        let secret = match unanswered.take() {
            Some(secret) => secret,
            None => key::new_secret()?,
        };
        *unanswered = Some(secret.clone());
        let made = key::create_first(&self.0.db, &secret, Origin::Generated, now).await?;
        *unanswered = None;
        Ok(made.then_some(secret))
    }

    /// Writes when keys were last used; called every few seconds, and at the end. What can't be written is kept for the next time.
    pub async fn flush(&self) -> Result<(), StoreError> {
        let uses = self.uses().clone();
        key::touch(&self.0.db, &uses).await?;
        // Only now, and only what was written: this may be cut short, and keys go on being used.
        self.uses().retain(|key, at| uses.get(key) != Some(at));
        Ok(())
    }

    /// Drops what was kept of keys and accounts, among it the rates of plans. All of it: changes are
    /// rare, and a lookup is cheap.
    pub fn forget(&self) {
        self.0.credentials.invalidate_all();
        self.0.accounts.invalidate_all();
    }

    /// When the key was last used, as far as this process knows of a use that is not written yet.
    pub fn unwritten_use(&self, key: &KeyId) -> Option<Time> {
        self.uses().get(key).copied()
    }

    fn note_use(&self, key: &KeyId, now: Time) {
        let mut uses = self.uses();
        match uses.get_mut(key) {
            Some(at) => *at = now.max(*at),
            None => drop(uses.insert(key.clone(), now)),
        }
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<KeyId, Time>> {
        // A map of times has no half-done state that a panic could leave behind.
        self.0.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error that several who waited for one lookup share.
fn shared(error: Arc<StoreError>) -> StoreError {
    match &*error {
        StoreError::Unavailable(text) => StoreError::Unavailable(text.clone()),
        StoreError::Conflict(text) => StoreError::Conflict(text.clone()),
        StoreError::Duplicate(text) => StoreError::Duplicate(text.clone()),
        StoreError::Refused(text) => StoreError::Refused(text.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;
    use secrecy::ExposeSecret;

    const CONFIGURED: &str = "the-first-admin-key-as-it-was-configured";

    fn identity(db: &Db) -> (Identity, Clock) {
        let clock = Clock::manual(Time(1_000_000));
        let identity = Identity::new(db.clone(), clock.clone());
        identity.0.ready.store(true, Ordering::Release);
        (identity, clock)
    }

    async fn a_key(identity: &Identity, expires_at: Option<Time>) -> (ApiKey, SecretString) {
        let account = account::create(&identity.0.db, "acme".to_owned(), None, Time(1)).await.unwrap();
        let new = NewKey { name: "ci".to_owned(), expires_at, ..NewKey::default() };
        identity.create_key(&account.id, new).await.unwrap().unwrap()
    }

    async fn caller(identity: &Identity, secret: &SecretString) -> Option<Caller> {
        identity.caller_of_key(secret.expose_secret()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_is_known_here_until_it_is_revoked_and_elsewhere_a_second_longer() {
        each_backend(|db| async move {
            let (here, elsewhere) = (identity(&db).0, identity(&db).0);
            let (key, secret) = a_key(&here, None).await;
            for replica in [&here, &elsewhere] {
                let caller = caller(replica, &secret).await.unwrap();
                assert_eq!((&caller.account, &caller.key), (&key.account, &key.id));
            }
            assert!(here.revoke_key(&key.account, &key.id).await.unwrap());
            assert_eq!(caller(&here, &secret).await, None);
            tokio::time::sleep(FRESH + Duration::from_millis(50)).await;
            assert_eq!(caller(&elsewhere, &secret).await, None);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_suspension_is_heard_at_once_here() {
        each_backend(|db| async move {
            let (identity, _) = identity(&db);
            let (key, secret) = a_key(&identity, None).await;
            assert!(!caller(&identity, &secret).await.unwrap().suspended);
            assert_eq!(identity.is_suspended(&key.account).await.unwrap(), Some(false));
            let change = account::Change { suspended: Some(true), ..Default::default() };
            identity.change_account(&key.account, change).await.unwrap().unwrap();
            assert!(caller(&identity, &secret).await.unwrap().suspended);
            assert_eq!(identity.is_suspended(&key.account).await.unwrap(), Some(true));
            assert_eq!(identity.is_suspended(&"acct_never".into()).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_user_of_others_has_one_account_from_the_first_sight_on() {
        each_backend(|db| async move {
            let replicas: Vec<Identity> = (0..8).map(|_| identity(&db).0).collect();
            let sights = replicas.iter().map(|replica| replica.caller_of_user("ann"));
            let seen = futures_util::future::join_all(sights).await;
            let ann = seen[0].as_ref().unwrap().clone();
            assert!(seen.iter().all(|caller| caller.as_ref().unwrap() == &ann));
            assert_ne!(replicas[0].caller_of_user("Ann").await.unwrap().account, ann.account);
            // An account's id is no user's name, and the other way round.
            let named_so = replicas[0].caller_of_user(ann.account.as_str()).await.unwrap();
            assert_ne!(named_so.account, ann.account);
            let change = account::Change { suspended: Some(true), ..Default::default() };
            replicas[0].change_account(&ann.account, change).await.unwrap().unwrap();
            assert!(replicas[0].caller_of_user("ann").await.unwrap().suspended);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn ends_are_kept_to_the_millisecond_whatever_is_cached() {
        each_backend(|db| async move {
            let (identity, clock) = identity(&db);
            let (_, secret) = a_key(&identity, Some(Time(1_000_500))).await;
            clock.set(Time(1_000_499));
            assert!(caller(&identity, &secret).await.is_some());
            clock.set(Time(1_000_500));
            assert_eq!(caller(&identity, &secret).await, None);

            let (key, old) = a_key(&identity, None).await;
            let grace = Duration::from_millis(20);
            let (_, new) = identity.rotate_key(&key.account, &key.id, grace).await.unwrap().unwrap();
            assert!(caller(&identity, &old).await.is_some() && caller(&identity, &new).await.is_some());
            clock.set(Time(1_000_520));
            assert!(caller(&identity, &old).await.is_none() && caller(&identity, &new).await.is_some());
            let (_, newer) =
                identity.rotate_key(&key.account, &key.id, Duration::ZERO).await.unwrap().unwrap();
            assert!(caller(&identity, &new).await.is_none() && caller(&identity, &newer).await.is_some());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_can_not_be_a_key_is_not_looked_up() {
        each_backend(|db| async move {
            let (identity, _) = identity(&db);
            db.close().await;
            for nonsense in
                [String::new(), "a".repeat(31), "a".repeat(1_025), "é".repeat(40), "\t".repeat(32)]
            {
                assert_eq!(identity.caller_of_key(&nonsense).await.unwrap(), None);
            }
            for possible in ["a".repeat(32), "a".repeat(1_024), "a b ~".repeat(9)] {
                assert!(identity.caller_of_key(&possible).await.is_err());
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_is_unknown_before_the_first_admin_is_seen_to() {
        each_backend(|db| async move {
            let starting = Identity::new(db.clone(), Clock::manual(Time(1_000_000)));
            assert!(starting.caller_of_key(CONFIGURED).await.is_err());
            assert!(starting.is_suspended(&account::root()).await.is_err());
            let (_, secret) = a_key(&starting, None).await;
            assert!(caller(&starting, &secret).await.is_some(), "who is known is known");
            starting.bootstrap(Some(&CONFIGURED.into())).await.unwrap();
            assert!(starting.caller_of_key(CONFIGURED).await.unwrap().unwrap().is_admin());
            assert_eq!(starting.is_suspended(&account::root()).await.unwrap(), Some(false));
            assert_eq!(starting.caller_of_key(&"a".repeat(32)).await.unwrap(), None);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_last_use_is_written_when_it_is_flushed() {
        each_backend(|db| async move {
            let (identity, clock) = identity(&db);
            let (key, secret) = a_key(&identity, None).await;
            let last_use = async || {
                identity.flush().await.unwrap();
                key::get(&db, &key.account, &key.id).await.unwrap().unwrap().last_used_at
            };
            assert_eq!(last_use().await, None);
            caller(&identity, &secret).await.unwrap();
            assert_eq!(last_use().await, Some(Time(1_000_000)));
            assert!(identity.uses().is_empty());
            for at in [1_000_007, 1_000_005] {
                clock.set(Time(at));
                caller(&identity, &secret).await.unwrap();
            }
            assert_eq!(last_use().await, Some(Time(1_000_007)));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_many_replicas_one_makes_the_first_admin() {
        each_backend(|db| async move {
            let replicas: Vec<Identity> = (0..8).map(|_| identity(&db).0).collect();
            let starts = replicas.iter().map(|replica| replica.bootstrap(None));
            let made = futures_util::future::join_all(starts).await;
            let made: Vec<SecretString> = made.into_iter().filter_map(Result::unwrap).collect();
            let [secret] = made.as_slice() else { panic!("{} first admins", made.len()) };
            let admin = caller(&replicas[0], secret).await.unwrap();
            assert!(admin.is_admin());
            assert_eq!(admin.account, account::root());
            let keys = key::list(&db, &admin.account, None, 9).await.unwrap();
            assert_eq!(keys.len(), 1);
            // Also when it is gone: whoever lost it is helped by the operator's command.
            assert!(replicas[0].revoke_key(&admin.account, &admin.key).await.unwrap());
            assert!(replicas[1].bootstrap(None).await.unwrap().is_none());
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_configured_first_admin_is_made_once_in_its_life() {
        each_backend(|db| async move {
            let configured = SecretString::from(CONFIGURED);
            let replicas: Vec<Identity> = (0..8).map(|_| identity(&db).0).collect();
            let starts = replicas.iter().map(|replica| replica.bootstrap(Some(&configured)));
            for made in futures_util::future::join_all(starts).await {
                assert!(made.unwrap().is_none(), "a configured secret is not shown");
            }
            let identity = &replicas[0];
            let admin = caller(identity, &configured).await.unwrap();
            assert!(admin.is_admin());
            let keys = key::list(&db, &admin.account, None, 9).await.unwrap();
            assert_eq!((keys.len(), keys[0].prefix.as_str()), (1, &CONFIGURED[..4]));
            assert!(identity.bootstrap(None).await.unwrap().is_none(), "there is an admin");

            // Another one may be configured; one that was rotated away does not come back.
            let second = SecretString::from("another-admin-key-that-was-configured");
            identity.bootstrap(Some(&second)).await.unwrap();
            assert!(caller(identity, &second).await.unwrap().is_admin());
            identity.rotate_key(&admin.account, &admin.key, Duration::ZERO).await.unwrap().unwrap();
            identity.bootstrap(Some(&configured)).await.unwrap();
            assert_eq!(caller(identity, &configured).await, None);
            assert_eq!(key::list(&db, &admin.account, None, 9).await.unwrap().len(), 2);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_ordinary_key_is_not_made_an_admin_by_configuring_it() {
        each_backend(|db| async move {
            let (identity, _) = identity(&db);
            let (_, secret) = a_key(&identity, None).await;
            identity.bootstrap(Some(&secret)).await.unwrap();
            assert!(!caller(&identity, &secret).await.unwrap().is_admin());
            assert!(identity.bootstrap(None).await.unwrap().is_some(), "there is no admin yet");
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_whose_commit_went_unanswered_is_shown_at_the_next_try() {
        each_backend(|db| async move {
            let (identity, clock) = identity(&db);
            let secret = key::new_secret().unwrap();
            key::create_first(&db, &secret, Origin::Generated, clock.now()).await.unwrap();
            *identity.0.unanswered.lock().await = Some(secret.clone());
            let shown = identity.bootstrap(None).await.unwrap().unwrap();
            assert_eq!(shown.expose_secret(), secret.expose_secret());
            assert!(identity.bootstrap(None).await.unwrap().is_none());
        })
        .await;
    }
}
