//! `/v1/accounts`: made, listed, changed and suspended by admins.
//!
//! # Failure behavior
//!
//! A suspension is in force, on the replica that took it, when it is answered, and on the others
//! within a second. When the database does not answer, nothing has changed, or the caller finds out
//! by asking again: each change may be repeated.

use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::{
    caller::{Admin, no_account},
    error::ApiError,
    extract::{Body, NoQuery, Page, Query, id_of, name},
    state::AppState,
};
use crate::{id::AccountId, identity::account};

#[derive(Deserialize)]
pub struct NewAccount {
    name: String,
    email: Option<String>,
}

#[derive(Deserialize)]
pub struct ChangedAccount {
    name: Option<String>,
    email: Option<String>,
    suspended: Option<bool>,
}

#[derive(Deserialize)]
pub struct Listing {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `POST /v1/accounts`
pub async fn create(
    state: web::Data<AppState>,
    _: Admin,
    _: NoQuery,
    body: Body<NewAccount>,
) -> Result<HttpResponse, ApiError> {
    let NewAccount { name: given, email: address } = body.value;
    let address = address.map(email).transpose()?;
    let account = account::create(&state.db, name("name", given)?, address, state.clock.now()).await?;
    Ok(HttpResponse::Created().json(account))
}

/// `GET /v1/accounts`
pub async fn list(
    state: web::Data<AppState>,
    _: Admin,
    query: Query<Listing>,
) -> Result<HttpResponse, ApiError> {
    let Query(Listing { limit, cursor }) = query;
    let page = Page::new(limit.as_deref(), cursor, "acct_")?;
    let accounts = account::list(&state.db, page.cursor.as_deref(), page.limit + 1).await?;
    Ok(HttpResponse::Ok().json(page.answer(accounts, |account| account.id.to_string())))
}

/// `GET /v1/accounts/{id}`
pub async fn get(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let id: AccountId = id_of(path.into_inner()).ok_or_else(no_account)?;
    let account = account::get(&state.db, &id).await?.ok_or_else(no_account)?;
    Ok(HttpResponse::Ok().json(account))
}

/// `PATCH /v1/accounts/{id}`
pub async fn update(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
    body: Body<ChangedAccount>,
) -> Result<HttpResponse, ApiError> {
    let ChangedAccount { name: given, email: address, suspended } = body.value;
    if given.is_none() && address.is_none() && suspended.is_none() {
        return Err(ApiError::invalid("Say what to change: `suspended`, `name` or `email`."));
    }
    let change = account::Change {
        name: given.map(|given| name("name", given)).transpose()?,
        email: address.map(email).transpose()?,
        suspended,
    };
    let id: AccountId = id_of(path.into_inner()).ok_or_else(no_account)?;
    let account = state.identity.change_account(&id, change).await?.ok_or_else(no_account)?;
    Ok(HttpResponse::Ok().json(account))
}

/// Something that could be an e-mail address. Whether it is one, only a mail to it can tell.
fn email(text: String) -> Result<String, ApiError> {
    let parts = text.rsplit_once('@');
    let fits = parts.is_some_and(|(local, host)| !local.is_empty() && !host.is_empty())
        && text.len() <= 254
        && !text.chars().any(|c| c.is_whitespace() || c.is_control());
    match fits {
        true => Ok(text),
        false => Err(ApiError::invalid("`email` must be an e-mail address such as billing@example.com.")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_email_has_two_sides_and_no_blanks() {
        assert!(email("billing@example.com".to_owned()).is_ok());
        for wrong in ["", "@", "a@", "@b", "ab", "a b@c", "a@b\n"] {
            assert!(email(wrong.to_owned()).is_err(), "{wrong:?}");
        }
    }
}
