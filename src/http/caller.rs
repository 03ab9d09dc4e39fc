//! Who is calling, out of a request's headers; and what happens to those who can't say.
//!
//! # Failure behavior
//!
//! While the database does not answer nobody can be told apart, and the answer is 503, not 401. So it is
//! while the keys that users' tokens are checked with were never had. A
//! 401 takes one from the allowance of the address it goes to, and beyond that it is a 429; a
//! valid key is never held up by what others do from the same address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use actix_web::{
    Error, FromRequest, HttpMessage, HttpRequest, HttpResponse, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::header::{HeaderMap, HeaderName, HeaderValue, WWW_AUTHENTICATE},
    middleware::Next,
    web,
};
use ipnet::IpNet;
use secrecy::SecretString;

use super::{
    error::{ApiError, Code},
    extract::id_of,
    state::AppState,
};
use crate::{
    id::AccountId,
    identity::{
        Caller, Denied, KeyScope,
        jwt::{self, TokenError},
    },
    rate::Standing,
};

/// Adds the headers that tell a limited caller how its allowance stands.
pub fn show_rate<B>(response: &mut HttpResponse<B>, standing: &Standing) {
    for (name, value) in [
        ("ratelimit-limit", u64::from(standing.limit)),
        ("ratelimit-remaining", u64::from(standing.remaining)),
        ("ratelimit-reset", standing.reset_seconds),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
}

/// Middleware for routes that need a caller: finds out who it is, or answers in their stead.
/// Handlers take the [`Caller`] as an argument.
pub async fn identify<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let found = caller_of(&request, Takes::Keys).await;
    go_on(found, request, next).await
}

/// Like [`identify`], for routes that users whom another service signed in may call as well: with
/// that service's token, as `Bearer`.
pub async fn identify_with_tokens<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let found = caller_of(&request, Takes::KeysAndTokens).await;
    go_on(found, request, next).await
}

async fn go_on<B: MessageBody + 'static>(
    found: Result<Caller, HttpResponse>,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    match found {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.call(request).await.map(ServiceResponse::map_into_left_body)
        }
        // As a response and not as an `Err`, so that the middleware around this one sees it as one.
        Err(refusal) => Ok(request.into_response(refusal).map_into_right_body()),
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Caller, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = request.extensions().get::<Caller>().cloned();
        std::future::ready(caller.ok_or_else(|| {
            tracing::error!(path = request.path(), "a route that needs a caller is not behind `identify`");
            Code::Internal.into()
        }))
    }
}

/// A caller who may do what only admins may. For anybody else the request ends here: taken before the body, it
/// answers 403 whatever that says.
pub struct Admin(pub Caller);

impl FromRequest for Admin {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Admin, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let caller = Caller::from_request(request, payload).into_inner();
        std::future::ready(caller.and_then(|caller| {
            caller.require(KeyScope::Admin)?;
            Ok(Admin(caller))
        }))
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> ApiError {
        ApiError::new(Code::Forbidden, denied.to_string())
    }
}

/// What a route's callers may be known by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Keys,
    KeysAndTokens,
}

/// The caller, acting for the account that the query names, or the answer that is given instead.
async fn caller_of(request: &ServiceRequest, takes: Takes) -> Result<Caller, HttpResponse> {
    let answer = |error: ApiError| error.error_response();
    let Some(state) = request.app_data::<web::Data<AppState>>() else {
        return Err(answer(Code::Internal.into()));
    };
    let known = match credentials(request.headers(), &state.config.service_tokens) {
        Ok(Presented::Service(service)) => Ok(service),
        Ok(Presented::Bearer(token)) if takes == Takes::KeysAndTokens && jwt::has_shape(token) => {
            user_of(state, token).await.map_err(answer)?
        }
        Ok(Presented::Bearer(key) | Presented::Key(key)) => {
            let known = state.identity.caller_of_key(key).await.map_err(|error| answer(error.into()))?;
            known.ok_or(Code::Unauthorized.sentence())
        }
        Err(problem) => Err(problem),
    };
    let caller = match known {
        Ok(caller) => caller,
        Err(problem) => return Err(refuse(request.request(), problem).await),
    };
    let named = named_account(request.query_string()).map_err(answer)?;
    acting_for(state, caller, named).await.map_err(answer)
}

/// The user whose token it is, or what its 401 says.
async fn user_of(state: &AppState, token: &str) -> Result<Result<Caller, &'static str>, ApiError> {
    match state.tokens.user_of(token).await {
        Ok(user) => Ok(Ok(state.identity.caller_of_user(&user).await?)),
        Err(TokenError::Invalid(problem)) => Ok(Err(problem)),
        Err(TokenError::KeysUnavailable) => Err(Code::KeysUnavailable.into()),
    }
}

async fn acting_for(state: &AppState, caller: Caller, named: Option<AccountId>) -> Result<Caller, ApiError> {
    let account = match named {
        Some(account) if caller.is_admin() => account,
        // Another's account is not there, for who is no admin.
        Some(account) if account != caller.account => return Err(no_account()),
        // Nothing has told yet how the service's own account stands; a key's came with the key.
        None if caller.service => caller.account.clone(),
        _ => return Ok(caller),
    };
    let suspended = state.identity.is_suspended(&account).await?.ok_or_else(no_account)?;
    Ok(caller.acting_for(account, suspended))
}

/// 404 for an account that is not there, or not the caller's.
pub(super) fn no_account() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such account.")
}

/// The 401 with this sentence, or beyond what its address is allowed of them, the 429.
pub(super) async fn refuse(request: &HttpRequest, problem: &str) -> HttpResponse {
    let Some(state) = request.app_data::<web::Data<AppState>>() else {
        return ApiError::from(Code::Internal).error_response();
    };
    let peer = request.peer_addr().map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |peer| peer.ip());
    let address = client_address(peer, request.headers(), &state.config.trusted_proxies);
    let bucket = format!("address/{}", limited_as(address));
    let standing = state.limiter.take(&bucket, state.config.rate_limit_anon_per_minute).await;
    let mut response = match standing.allowed {
        true => {
            let mut response = ApiError::new(Code::Unauthorized, problem).error_response();
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            response
        }
        false => {
            state.metrics.rate_limited.inc();
            ApiError::rate_limited(standing.retry_after_seconds).error_response()
        }
    };
    show_rate(&mut response, &standing);
    response
}

/// What a request is known by.
enum Presented<'r> {
    Service(Caller),
    /// What came as `Bearer`: a key, or a token.
    Bearer(&'r str),
    /// What may be a key.
    Key(&'r str),
}

/// What the request presents to be known by, or what its 401 says. A service key is enough, whatever
/// else is there; a wrong one is no reason to go on with what else is there.
fn credentials<'r>(headers: &'r HeaderMap, tokens: &[SecretString]) -> Result<Presented<'r>, &'static str> {
    if let Some(service) = service(headers, tokens)? {
        return Ok(Presented::Service(service));
    }
    let mut keys: Vec<&str> = readable(headers, "authorization").into_iter().filter_map(bearer).collect();
    let is_bearer = !keys.is_empty();
    keys.extend(readable(headers, "x-api-key"));
    let (first, others) = keys.split_first().ok_or(Code::Unauthorized.sentence())?;
    match others.iter().all(|other| other == first) {
        true if is_bearer => Ok(Presented::Bearer(first)),
        true => Ok(Presented::Key(first)),
        false => Err("The request carries several different keys; send one of them."),
    }
}

/// The service, if the request presents one of its `tokens`; `None`: it presents nothing as such, and
/// an error: what it presents is none. A sentence.
pub(super) fn service(headers: &HeaderMap, tokens: &[SecretString]) -> Result<Option<Caller>, &'static str> {
    let presented = readable(headers, "x-internal-key");
    match presented.iter().find_map(|token| Caller::of_service(token, tokens)) {
        None if !presented.is_empty() => Err("This `X-Internal-Key` is none of this server's service keys."),
        service => Ok(service),
    }
}

/// What the headers of that name say, apart from those that say nothing or can't be read.
fn readable<'r>(headers: &'r HeaderMap, name: &str) -> Vec<&'r str> {
    let texts = headers.get_all(name).filter_map(|value| value.to_str().ok());
    texts.map(str::trim).filter(|text| !text.is_empty()).collect()
}

/// The token of a `Bearer` header; other schemes are not ours to understand.
fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The account that `?account_id=` names.
pub(super) fn named_account(query: &str) -> Result<Option<AccountId>, ApiError> {
    let mut named = None;
    let pairs = serde_urlencoded::from_str::<Vec<(String, String)>>(query).unwrap_or_default();
    for (_, id) in pairs.into_iter().filter(|(name, _)| name == "account_id") {
        if named.is_some() {
            return Err(ApiError::invalid("The parameter `account_id` is there twice."));
        }
        named = Some(id_of(id).ok_or_else(no_account)?);
    }
    Ok(named)
}

/// Where the request comes from: its peer, or, where that is a proxy of ours, the last address on
/// its way that is not. Addresses further to the left are hearsay.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    if !is_trusted(&peer) {
        return peer;
    }
    let lines: Vec<&str> =
        headers.get_all("x-forwarded-for").map(|line| line.to_str().unwrap_or("?")).collect();
    let hops = lines.iter().rev().flat_map(|line| line.rsplit(','));
    for hop in hops {
        match address_of(hop.trim()) {
            Some(address) if is_trusted(&address) => {}
            Some(address) => return address,
            None => return peer,
        }
    }
    peer
}

/// An address, with or without a port.
fn address_of(text: &str) -> Option<IpAddr> {
    let parsed = text.parse::<IpAddr>().ok();
    let parsed = parsed.or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()));
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    parsed.or_else(bracketed).map(|address| address.to_canonical())
}

/// Who shares an allowance: an IPv4 address, or an IPv6 /64, which is the least that anyone has.
fn limited_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    fn key(lines: &[(&'static str, &str)]) -> Result<String, &'static str> {
        let tokens = ["older".to_owned().into(), "newer".to_owned().into()];
        credentials(&headers(lines), &tokens).map(|presented| match presented {
            Presented::Bearer(key) | Presented::Key(key) => key.to_owned(),
            Presented::Service(service) => service.key.to_string(),
        })
    }

    #[test]
    fn a_key_comes_in_either_header_and_only_one_of_it() {
        for lines in [
            &[("authorization", "Bearer k1")] as &[_],
            &[("authorization", "bearer  k1 ")],
            &[("x-api-key", "k1")],
            &[("authorization", "Bearer k1"), ("x-api-key", "k1")],
            &[("authorization", "Basic dTpw"), ("x-api-key", "k1")],
            &[("authorization", "Bearer "), ("x-api-key", "k1"), ("x-api-key", "")],
            &[("authorization", "Bearer é"), ("x-api-key", "k1"), ("x-internal-key", "é")],
            &[("x-api-key", "é"), ("authorization", "Bearer k1")],
        ] {
            assert_eq!(key(lines).as_deref(), Ok("k1"), "{lines:?}");
        }
        assert_eq!(key(&[("authorization", "Bearer a b  c")]).as_deref(), Ok("a b  c"));
        for lines in [
            &[] as &[_],
            &[("authorization", "k1")],
            &[("authorization", "Basic k1")],
            &[("x-api-key", "é")],
            &[("x-api-key", ""), ("x-internal-key", "")],
        ] {
            assert_eq!(key(lines), Err(Code::Unauthorized.sentence()), "{lines:?}");
        }
        for lines in [
            &[("authorization", "Bearer k1"), ("x-api-key", "k2")],
            &[("x-api-key", "k1"), ("x-api-key", "k2")],
        ] {
            assert!(key(lines).unwrap_err().contains("several different keys"), "{lines:?}");
        }
    }

    #[test]
    fn only_what_comes_as_bearer_can_be_a_token() {
        let is_bearer =
            |lines| matches!(credentials(&headers(lines), &[]), Ok(Presented::Bearer(token)) if token == "t");
        assert!(is_bearer(&[("authorization", "Bearer t")]));
        assert!(is_bearer(&[("x-api-key", "t"), ("authorization", "Bearer t")]));
        assert!(!is_bearer(&[("x-api-key", "t")]));
        assert!(!is_bearer(&[("authorization", "Basic t"), ("x-api-key", "t")]));
    }

    #[test]
    fn a_service_key_is_enough_whatever_else_is_there() {
        for lines in [
            &[("x-internal-key", "newer")] as &[_],
            &[("x-internal-key", "newer"), ("x-internal-key", "older")],
            &[("x-internal-key", "wrong"), ("x-internal-key", "older")],
            &[("x-api-key", "k1"), ("authorization", "Bearer k2"), ("x-internal-key", "newer")],
            &[("x-api-key", "é"), ("x-internal-key", "é"), ("x-internal-key", " newer")],
        ] {
            assert_eq!(key(lines).as_deref(), Ok("service"), "{lines:?}");
        }
        for lines in [
            &[("x-internal-key", "wrong")] as &[_],
            &[("x-internal-key", "k1"), ("x-api-key", "k1")],
            &[("x-internal-key", "newer,older")],
        ] {
            assert!(key(lines).unwrap_err().contains("`X-Internal-Key`"), "{lines:?}");
        }
    }

    fn client(peer: &str, forwarded: &[&str]) -> String {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let lines: Vec<_> = forwarded.iter().map(|line| ("x-forwarded-for", *line)).collect();
        client_address(peer.parse().unwrap(), &headers(&lines), &trusted).to_string()
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        assert_eq!(client("192.0.2.1", &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(client("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(client("10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("fd00::1", &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(client("::ffff:10.0.0.1", &["198.51.100.7"]), "198.51.100.7");
    }

    #[test]
    fn the_rightmost_address_that_is_no_proxy_of_ours_counts() {
        assert_eq!(client("10.0.0.1", &["1.1.1.1, 198.51.100.7, 10.9.9.9"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["1.1.1.1", "198.51.100.7", "10.2.3.4"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["198.51.100.7:4711"]), "198.51.100.7");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["[2001:db8::1]"]), "2001:db8::1");
        assert_eq!(client("10.0.0.1", &["::ffff:198.51.100.7"]), "198.51.100.7");
    }

    #[test]
    fn what_can_not_be_read_is_the_peers() {
        for line in ["unknown", "1.1.1.1, who knows", "1.1.1.1,", "", "10.1.1.1, 10.2.2.2"] {
            assert_eq!(client("10.0.0.1", &[line]), "10.0.0.1", "{line:?}");
        }
    }

    #[test]
    fn ipv6_is_limited_by_its_64() {
        let limited = |text: &str| limited_as(text.parse().unwrap()).to_string();
        assert_eq!(limited("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(limited("2001:db8:1:2::1"), "2001:db8:1:2::");
        assert_eq!(limited("192.0.2.1"), "192.0.2.1");
    }

    #[test]
    fn the_query_names_an_account_once() {
        let named = |query| named_account(query).map(|id| id.map(|id| id.to_string()));
        assert_eq!(named("limit=5").unwrap(), None);
        assert_eq!(named("limit=5&account_id=acct%5F1").unwrap().as_deref(), Some("acct_1"));
        assert_eq!(named("account_id=a&account_id=a").unwrap_err().code, Code::InvalidRequest);
        for impossible in ["account_id=", "account_id=%00", "account_id=%C3%A9"] {
            assert_eq!(named(impossible).unwrap_err().code, Code::NotFound, "{impossible}");
        }
    }

    #[test]
    fn an_allowance_is_told_in_three_headers() {
        let standing =
            Standing { allowed: true, limit: 60, remaining: 59, reset_seconds: 1, retry_after_seconds: 0 };
        let mut response = HttpResponse::Ok().finish();
        show_rate(&mut response, &standing);
        let told = ["ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"]
            .map(|name| response.headers().get(name).unwrap().to_str().unwrap().to_owned());
        assert_eq!(told, ["60", "59", "1"]);
        assert_eq!(response.headers().len(), 3);
    }
}
