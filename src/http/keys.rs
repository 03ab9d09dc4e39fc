//! `/v1/keys`: made, listed, rotated and revoked. A secret goes out once, in the answer that made it.
//!
//! # Failure behavior
//!
//! Nobody gets by a new key, or by a new secret of an old one, what they may not do themselves.
//! Where the answer that carried a secret is lost, the secret is: make the key, or rotate it, again.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, http::header::CACHE_CONTROL, web};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::{
    caller::{named_account, no_account},
    error::{ApiError, Code},
    extract::{Body, NoQuery, OptionalBody, Page, Query, id_of, name},
    state::AppState,
};
use crate::{
    clock::Time,
    id::{AccountId, KeyId},
    identity::{ApiKey, Caller, KeyScope, NewKey, key},
};

/// The longest that an old secret goes on after its key was rotated: a week.
const MAX_GRACE_SECONDS: i64 = 604_800;

/// The highest rate a key may have.
const MAX_RATE: i64 = 1_000_000_000;

#[derive(Deserialize)]
pub struct Wanted {
    name: String,
    expires_at: Option<String>,
    scopes: Option<Vec<KeyScope>>,
    rate_limit_per_minute: Option<i64>,
    account_id: Option<String>,
}

#[derive(Deserialize)]
pub struct Rotation {
    grace_seconds: Option<i64>,
}

#[derive(Deserialize)]
pub struct Listing {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `POST /v1/keys`
pub async fn create(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<Wanted>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Keys)?;
    let mut wanted = body.value;
    let account_id = wanted.account_id.take();
    let new = caller.grant(new_key(wanted, state.clock.now())?)?;
    let account = account_for(&caller, named_account(request.query_string())?, account_id)?;
    let (key, secret) = state.identity.create_key(&account, new).await?.ok_or_else(no_account)?;
    Ok(shown_once(HttpResponse::Created(), &key, &secret))
}

/// `GET /v1/keys`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    query: Query<Listing>,
) -> Result<HttpResponse, ApiError> {
    caller.require_any(&[KeyScope::Read, KeyScope::Keys])?;
    let Query(Listing { limit, cursor }) = query;
    let page = Page::new(limit.as_deref(), cursor, "key_")?;
    let mut keys = key::list(&state.db, &caller.account, page.cursor.as_deref(), page.limit + 1).await?;
    keys.iter_mut().for_each(|key| show_last_use(&state, key));
    Ok(HttpResponse::Ok().json(page.answer(keys, |key| key.id.to_string())))
}

/// `GET /v1/keys/{id}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require_any(&[KeyScope::Read, KeyScope::Keys])?;
    let mut key = find(&state, &caller, &request, path).await?;
    show_last_use(&state, &mut key);
    Ok(HttpResponse::Ok().json(key))
}

/// `DELETE /v1/keys/{id}`
pub async fn revoke(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Keys)?;
    let key = find(&state, &caller, &request, path).await?;
    caller.require_revoke(&key.id, key.scopes.as_deref())?;
    match state.identity.revoke_key(&key.account, &key.id).await? {
        true => Ok(HttpResponse::NoContent().finish()),
        false => Err(no_key()),
    }
}

/// `POST /v1/keys/{id}/rotate`
pub async fn rotate(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    path: web::Path<String>,
    _: NoQuery,
    body: OptionalBody<Rotation>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Keys)?;
    let grace = grace(body.value)?;
    let key = find(&state, &caller, &request, path).await?;
    // The answer shows a secret that may do what that key may, just as making such a key would.
    caller.require_grant(key.scopes.as_deref())?;
    caller.require_limits(key.rate_limit_per_minute, key.expires_at)?;
    if let Some(end) = key.expires_at.filter(|end| *end <= state.clock.now()) {
        return Err(ApiError::invalid(format!("This key expired at {end}; make a new one.")));
    }
    let rotated = state.identity.rotate_key(&key.account, &key.id, grace).await?;
    let (key, secret) = rotated.ok_or_else(no_key)?;
    Ok(shown_once(HttpResponse::Ok(), &key, &secret))
}

/// One of the caller's keys; for an admin who names no account, one of whichever account has it.
async fn find(
    state: &AppState,
    caller: &Caller,
    request: &HttpRequest,
    path: web::Path<String>,
) -> Result<ApiKey, ApiError> {
    let id: KeyId = id_of(path.into_inner()).ok_or_else(no_key)?;
    let of_any = caller.is_admin() && named_account(request.query_string())?.is_none();
    let found = match of_any {
        true => key::get_of_any(&state.db, &id).await?,
        false => key::get(&state.db, &caller.account, &id).await?,
    };
    found.ok_or_else(no_key)
}

/// Uses are written every few seconds; what this replica took is shown at once.
fn show_last_use(state: &AppState, key: &mut ApiKey) {
    key.last_used_at = key.last_used_at.max(state.identity.unwritten_use(&key.id));
}

fn no_key() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such key.")
}

/// The account that a new key is for: the one that the body names, or else the caller's, which is the
/// one `in_query` if the query names one.
fn account_for(
    caller: &Caller,
    in_query: Option<AccountId>,
    named: Option<String>,
) -> Result<AccountId, ApiError> {
    let Some(named) = named else { return Ok(caller.account.clone()) };
    let named: AccountId = id_of(named).ok_or_else(no_account)?;
    if in_query.is_some_and(|in_query| in_query != named) {
        return Err(ApiError::invalid("`account_id` is one in the query and another in the body."));
    }
    match caller.is_admin() || named == caller.account {
        true => Ok(named),
        false => Err(no_account()),
    }
}

fn new_key(wanted: Wanted, now: Time) -> Result<NewKey, ApiError> {
    let expires_at = wanted.expires_at.map(|text| expiry(&text, now)).transpose()?;
    let rate_limit_per_minute = wanted.rate_limit_per_minute.map(rate).transpose()?;
    let scopes = match wanted.scopes {
        Some(scopes) if scopes.is_empty() => {
            return Err(ApiError::invalid(format!(
                "`scopes` must name at least one, there are {}; leave it out for a key that may do \
                 everything in its account.",
                KeyScope::all_named()
            )));
        }
        scopes => scopes.map(|mut scopes| {
            scopes.sort();
            scopes.dedup();
            scopes
        }),
    };
    Ok(NewKey { name: name("name", wanted.name)?, scopes, rate_limit_per_minute, expires_at })
}

fn expiry(text: &str, now: Time) -> Result<Time, ApiError> {
    match Time::parse(text) {
        Some(end) if end > now => Ok(end),
        Some(_) => Err(ApiError::invalid("`expires_at` must be in the future.")),
        None => Err(ApiError::invalid("`expires_at` must be RFC 3339, such as 2030-01-31T12:00:00Z.")),
    }
}

fn rate(given: i64) -> Result<u32, ApiError> {
    u32::try_from(given)
        .ok()
        .filter(|_| (1..=MAX_RATE).contains(&given))
        .ok_or_else(|| ApiError::invalid(format!("`rate_limit_per_minute` must be from 1 to {MAX_RATE}.")))
}

fn grace(rotation: Rotation) -> Result<Duration, ApiError> {
    let seconds = rotation.grace_seconds.unwrap_or(0);
    u64::try_from(seconds)
        .ok()
        .filter(|_| seconds <= MAX_GRACE_SECONDS)
        .map(Duration::from_secs)
        .ok_or_else(|| ApiError::invalid(format!("`grace_seconds` must be from 0 to {MAX_GRACE_SECONDS}.")))
}

/// The one answer that carries the secret; nothing on the way may keep it.
fn shown_once(mut response: HttpResponseBuilder, key: &ApiKey, secret: &SecretString) -> HttpResponse {
    response.insert_header((CACHE_CONTROL, "no-store")).json(json!({
        "id": key.id,
        "name": key.name,
        "prefix": key.prefix,
        "api_key": secret.expose_secret(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::extract::decode;

    const NOW: Time = Time(1_763_689_320_123);

    fn wanted(body: &str) -> Result<NewKey, ApiError> {
        new_key(decode(body.as_bytes())?, NOW)
    }

    fn problem(body: &str) -> String {
        let error = wanted(body).unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest);
        error.message
    }

    #[test]
    fn a_key_is_made_of_what_was_asked() {
        let plain = wanted(r#"{"name":"ci","scopes":null}"#).unwrap();
        assert_eq!((plain.scopes, plain.rate_limit_per_minute, plain.expires_at), (None, None, None));
        let full = r#"{"name":"ci","scopes":["read","cast","cast"],"rate_limit_per_minute":1000000000,
                       "expires_at":"2999-06-01T12:00:00+09:00"}"#;
        let full = wanted(full).unwrap();
        assert_eq!(full.scopes, Some(vec![KeyScope::Cast, KeyScope::Read]));
        assert_eq!(full.rate_limit_per_minute, Some(1_000_000_000));
        assert_eq!(full.expires_at, Time::parse("2999-06-01T03:00:00Z"));
    }

    #[test]
    fn what_a_key_can_not_be_is_named() {
        assert!(problem("{}").contains("name"));
        assert!(problem(r#"{"name":" "}"#).contains("`name`"));
        let unknown = problem(r#"{"name":"a","scopes":["cast","root"]}"#);
        assert!(
            unknown.contains("`scopes[1]`") && unknown.contains("`root`") && unknown.contains("`budgets`")
        );
        let none = problem(r#"{"name":"a","scopes":[]}"#);
        assert!(KeyScope::ALL.iter().all(|scope| none.contains(&format!("`{scope}`"))), "{none}");
        for rate in ["0", "-1", "1000000001", "5.0", "99999999999999999999"] {
            let problem = problem(&format!(r#"{{"name":"a","rate_limit_per_minute":{rate}}}"#));
            assert!(problem.contains("`rate_limit_per_minute`"), "{problem}");
        }
        for end in ["2001-01-01T00:00:00Z", "2025-11-21T01:42:00.123Z", "tomorrow", "2999-01-01"] {
            let problem = problem(&format!(r#"{{"name":"a","expires_at":"{end}"}}"#));
            assert!(problem.contains("`expires_at`"), "{problem}");
        }
    }

    #[test]
    fn a_grace_is_at_most_a_week() {
        let grace = |seconds| grace(Rotation { grace_seconds: seconds });
        assert_eq!(grace(None).unwrap(), Duration::ZERO);
        assert_eq!(grace(Some(604_800)).unwrap(), Duration::from_secs(604_800));
        assert!(grace(Some(-1)).is_err() && grace(Some(604_801)).is_err());
    }

    #[test]
    fn only_an_admin_makes_keys_for_others() {
        let caller = |scopes| Caller::of_key("acct_1".into(), "key_1".into(), false, scopes, None, None);
        let account = |caller: &Caller, named: Option<&str>| {
            account_for(caller, None, named.map(str::to_owned)).map(|account| account.to_string())
        };
        let (owner, admin) = (caller(None), caller(Some(vec![KeyScope::Admin])));
        for named in [None, Some("acct_1")] {
            assert_eq!(account(&owner, named).unwrap(), "acct_1");
        }
        assert_eq!(account(&admin, Some("acct_2")).unwrap(), "acct_2");
        for (caller, named) in [(&owner, "acct_2"), (&owner, ""), (&admin, "acct\0")] {
            assert_eq!(account(caller, Some(named)).unwrap_err().code, Code::NotFound);
        }
    }

    #[test]
    fn a_new_keys_account_is_not_named_in_two_ways() {
        let scopes = Some(vec![KeyScope::Admin]);
        let admin = Caller::of_key("acct_root".into(), "key_1".into(), false, scopes, None, None)
            .acting_for("acct_1".into(), false);
        let account = |named: Option<&str>| {
            let in_query = Some("acct_1".into());
            account_for(&admin, in_query, named.map(str::to_owned)).map(|account| account.to_string())
        };
        assert_eq!(account(None).unwrap(), "acct_1");
        assert_eq!(account(Some("acct_1")).unwrap(), "acct_1");
        assert_eq!(account(Some("acct_2")).unwrap_err().code, Code::InvalidRequest);
    }
}
