//! Accounts: the parties that pay. They are never deleted, since the books name them.

use serde::Serialize;

use crate::{
    clock::Time,
    id::AccountId,
    store::{Db, StoreError, Tx, binds, statements},
};

/// The account of the first admin, made at the first start.
const ROOT: &str = "acct_root";

/// An account, as it is stored and as it goes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Account {
    pub id: AccountId,
    pub name: String,
    pub email: Option<String>,
    /// The name under which others know whom it is of: a JWT's subject, another service's user.
    pub user_id: Option<String>,
    /// Whether all its spending is stopped.
    pub suspended: bool,
    pub created_at: Time,
}

/// What a change of an account sets; the rest stays.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub name: Option<String>,
    pub email: Option<String>,
    pub suspended: Option<bool>,
}

/// The account in which admins are at home.
pub fn root() -> AccountId {
    ROOT.into()
}

/// The columns that [`AccountRow`] reads.
macro_rules! account_columns {
    () => {
        "id, name, email, user_id, suspended, created_at"
    };
}

statements! {
    INSERT_ACCOUNT = "
        INSERT INTO accounts (id, name, email, suspended, created_at) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (id) DO NOTHING";
    INSERT_USER = "
        INSERT INTO accounts (id, name, user_id, suspended, created_at) VALUES ($1, $2, $2, $3, $4)
        ON CONFLICT (user_id) DO NOTHING";
    ACCOUNT_OF_USER = concat!("SELECT ", account_columns!(), " FROM accounts WHERE user_id = $1");
    ACCOUNT = concat!("SELECT ", account_columns!(), " FROM accounts WHERE id = $1");
    LOCK_ACCOUNT = concat!("SELECT ", account_columns!(), " FROM accounts WHERE id = $1 {for_update}");
    ACCOUNTS = concat!("SELECT ", account_columns!(), " FROM accounts
        WHERE CAST($1 AS TEXT) IS NULL OR id < $1 ORDER BY id DESC LIMIT $2");
    UPDATE_ACCOUNT = "UPDATE accounts SET name = $2, email = $3, suspended = $4 WHERE id = $1";
}

#[derive(sqlx::FromRow)]
struct AccountRow {
    id: String,
    name: String,
    email: Option<String>,
    user_id: Option<String>,
    suspended: bool,
    created_at: i64,
}

impl From<AccountRow> for Account {
    fn from(row: AccountRow) -> Account {
        Account {
            id: row.id.into(),
            name: row.name,
            email: row.email,
            user_id: row.user_id,
            suspended: row.suspended,
            created_at: Time(row.created_at),
        }
    }
}

/// Makes an account.
pub async fn create(db: &Db, name: String, email: Option<String>, now: Time) -> Result<Account, StoreError> {
    let id = AccountId::fresh();
    let account = Account { id, name, email, user_id: None, suspended: false, created_at: now };
    let values = binds![&account.id, &account.name, account.email.clone(), false, now];
    db.execute(&INSERT_ACCOUNT, values).await?;
    Ok(account)
}

/// The account of a user whom others call `user_id`; made when it is first heard of.
pub(crate) async fn of_user(db: &Db, user_id: &str, now: Time) -> Result<Account, StoreError> {
    let found: Option<AccountRow> = db.optional(&ACCOUNT_OF_USER, binds![user_id]).await?;
    if let Some(row) = found {
        return Ok(row.into());
    }
    // Another replica may hear of it at the same moment.
    db.execute(&INSERT_USER, binds![&AccountId::fresh(), user_id, false, now]).await?;
    let row: AccountRow = db.one(&ACCOUNT_OF_USER, binds![user_id]).await?;
    Ok(row.into())
}

/// Makes the root account where there is none yet.
pub(super) async fn create_root(tx: &mut Tx, now: Time) -> Result<(), StoreError> {
    tx.execute(&INSERT_ACCOUNT, binds![ROOT, "root", None::<String>, false, now]).await?;
    Ok(())
}

/// All accounts, newest first, from below `before` on.
pub async fn list(db: &Db, before: Option<&str>, limit: i64) -> Result<Vec<Account>, StoreError> {
    let rows: Vec<AccountRow> = db.all(&ACCOUNTS, binds![before, limit]).await?;
    Ok(rows.into_iter().map(Account::from).collect())
}

/// The account of that id.
pub async fn get(db: &Db, id: &AccountId) -> Result<Option<Account>, StoreError> {
    let row: Option<AccountRow> = db.optional(&ACCOUNT, binds![id]).await?;
    Ok(row.map(Account::from))
}

/// Whether there is such an account, asked inside a transaction.
pub(super) async fn exists(tx: &mut Tx, id: &AccountId) -> Result<bool, StoreError> {
    let row: Option<AccountRow> = tx.optional(&ACCOUNT, binds![id]).await?;
    Ok(row.is_some())
}

/// Changes the account under its row's lock, which every cast takes: once this is answered, no cast
/// goes by the old state. `None`: there is no such account.
pub(super) async fn change(db: &Db, id: &AccountId, change: Change) -> Result<Option<Account>, StoreError> {
    let mut tx = db.begin().await?;
    let row: Option<AccountRow> = tx.optional(&LOCK_ACCOUNT, binds![id]).await?;
    let Some(old) = row.map(Account::from) else {
        tx.rollback().await?;
        return Ok(None);
    };
    let account = Account {
        name: change.name.unwrap_or(old.name),
        email: change.email.or(old.email),
        suspended: change.suspended.unwrap_or(old.suspended),
        ..old
    };
    let values = binds![id, &account.name, account.email.clone(), account.suspended];
    tx.execute(&UPDATE_ACCOUNT, values).await?;
    tx.commit().await?;
    Ok(Some(account))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;

    #[tokio::test(flavor = "multi_thread")]
    async fn an_account_is_made_found_listed_and_changed() {
        each_backend(|db| async move {
            let mut made = Vec::new();
            for name in ["one", "two", "Żółć 株式会社"] {
                let email = (name == "two").then(|| "two@example.com".to_owned());
                made.push(create(&db, name.to_owned(), email, Time(5)).await.unwrap());
            }
            assert_eq!(get(&db, &made[2].id).await.unwrap().as_ref(), Some(&made[2]));
            assert_eq!(get(&db, &"acct_never".into()).await.unwrap(), None);

            let page = list(&db, None, 2).await.unwrap();
            assert_eq!(page, [made[2].clone(), made[1].clone()]);
            let rest = list(&db, Some(page[1].id.as_str()), 2).await.unwrap();
            assert_eq!(rest, [made[0].clone()]);

            let suspend = Change { suspended: Some(true), ..Change::default() };
            let changed = change(&db, &made[1].id, suspend).await.unwrap().unwrap();
            assert_eq!(changed, Account { suspended: true, ..made[1].clone() });
            let rename = Change { name: Some("due".to_owned()), ..Change::default() };
            let changed = change(&db, &made[1].id, rename).await.unwrap().unwrap();
            assert!(changed.suspended && changed.name == "due" && changed.email == made[1].email);
            assert_eq!(get(&db, &made[1].id).await.unwrap(), Some(changed));
            assert_eq!(change(&db, &"acct_never".into(), Change::default()).await.unwrap(), None);
        })
        .await;
    }
}
