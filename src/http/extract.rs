//! What a request says, read strictly: a field nobody knows is an error that names it, not a
//! setting that silently does nothing.
//!
//! # Failure behavior
//!
//! Whatever is wrong with a request is a 4xx with a sentence; nothing of it is done.

use std::{collections::BTreeSet, future::Future, pin::Pin, time::Duration};

use actix_web::{FromRequest, HttpRequest, dev::Payload, http::header, web};
use futures_util::StreamExt;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    error::{ApiError, Code},
    state::AppState,
};
use crate::json::{self, Source};

/// A JSON body as a `T`: `application/json` (below `/internal` any type), within the size limit, without
/// unknown fields. What may be absent is an `Option` in `T`, so that null counts as absent.
pub struct Body<T> {
    pub value: T,
    /// The bytes as they came, for what is hashed or signed.
    pub raw: web::Bytes,
}

/// As [`Body`], but an empty body counts as `{}`.
pub struct OptionalBody<T> {
    pub value: T,
    pub raw: web::Bytes,
}

/// A body of any type as it came, within the size limit.
pub struct Raw(pub web::Bytes);

impl FromRequest for Raw {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move { read(&request, payload).await.map(Raw) })
    }
}

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let raw = read(&request, payload).await?;
            require_json(&request)?;
            Ok(Body { value: decode(&raw)?, raw })
        })
    }
}

impl<T: DeserializeOwned + 'static> FromRequest for OptionalBody<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self, ApiError>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let (request, payload) = (request.clone(), payload.take());
        Box::pin(async move {
            let raw = read(&request, payload).await?;
            if raw.is_empty() {
                return Ok(OptionalBody { value: decode(b"{}")?, raw });
            }
            require_json(&request)?;
            Ok(OptionalBody { value: decode(&raw)?, raw })
        })
    }
}

/// How long the next part of a body may take.
const CHUNK_WITHIN: Duration = Duration::from_secs(10);

/// Reads the whole body, or stops where it passes the limit.
async fn read(request: &HttpRequest, mut payload: Payload) -> Result<web::Bytes, ApiError> {
    let limit =
        request.app_data::<web::Data<AppState>>().map_or(1 << 20, |state| state.config.max_body_bytes);
    let too_large = || {
        ApiError::new(
            Code::BodyTooLarge,
            format!("The body is larger than the {limit} bytes this server takes."),
        )
    };
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut body = web::BytesMut::new();
    let broke_off = || ApiError::invalid("The body broke off, or took too long.");
    while let Some(chunk) = timeout(CHUNK_WITHIN, payload.next()).await.map_err(|_| broke_off())? {
        let chunk = chunk.map_err(|_| broke_off())?;
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn require_json(request: &HttpRequest) -> Result<(), ApiError> {
    let given = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = given.and_then(|value| value.split(';').next()).map(str::trim);
    let is_json = essence.is_some_and(|essence| essence.eq_ignore_ascii_case("application/json"));
    match is_json || takes_any_type(request) {
        true => Ok(()),
        false => Err(Code::UnsupportedMediaType.into()),
    }
}

/// Other services may name their JSON as they like. By the route, since a path can be written in
/// several ways.
fn takes_any_type(request: &HttpRequest) -> bool {
    request.match_pattern().is_some_and(|route| route.starts_with("/internal/"))
}

/// Reads a JSON object strictly.
pub fn decode<T: DeserializeOwned>(raw: &[u8]) -> Result<T, ApiError> {
    let value = || {
        json::parse(raw, Source::Caller)
            .map_err(|problem| ApiError::invalid(format!("The body is not valid JSON: {problem}.")))
    };
    let object = value()?;
    if !object.is_object() {
        return Err(ApiError::invalid("The body must be a JSON object."));
    }
    // Most bodies are right: only of those that are not it is worked out where they go wrong.
    let mut all_known = true;
    match serde_ignored::deserialize(object, |_| all_known = false) {
        Ok(read) if all_known => Ok(read),
        _ => strictly(value()?, "field"),
    }
}

/// Reads `value` as a `T`, refusing what `T` does not know and naming each `what` of it.
fn strictly<T: DeserializeOwned>(value: Value, what: &str) -> Result<T, ApiError> {
    let mut unknown = BTreeSet::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let read = serde_ignored::deserialize(tracked, |path| {
        unknown.insert(shown(&path.to_string()));
    });
    let plural = if unknown.len() == 1 { "" } else { "s" };
    let names: Vec<String> = unknown.into_iter().take(MAX_NAMED).collect();
    let unknown = match names.is_empty() {
        true => None,
        false => Some(format!("Unknown {what}{plural} {}.", names.join(", "))),
    };
    match (read, unknown) {
        (Ok(read), None) => Ok(read),
        (Ok(_), Some(unknown)) => Err(ApiError::invalid(unknown)),
        (Err(problem), unknown) => {
            let path = track.path().to_string();
            let at = if path == "." { String::new() } else { format!("{}: ", shown(&path)) };
            // It may quote what was sent, however long that is.
            let problem: String = problem.to_string().chars().take(300).collect();
            // What is missing is often there under another name.
            let unknown = unknown.map(|unknown| format!(" {unknown}")).unwrap_or_default();
            Err(ApiError::invalid(format!("{at}{problem}.{unknown}")))
        }
    }
}

/// How many unknown fields an error names, and how much of each: it answers a caller, and need not
/// repeat a megabyte.
const MAX_NAMED: usize = 20;

fn shown(path: &str) -> String {
    // An optional part of the path stands as a question mark.
    format!("`{}`", path.replace(".?", "").chars().take(80).collect::<String>())
}

/// A query string as a `T`, without unknown or repeated parameters. `account_id` is not `T`'s
/// business: it has been understood where the caller was.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequest for Query<T> {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        std::future::ready(query(request.query_string()).map(Query))
    }
}

fn query<T: DeserializeOwned>(text: &str) -> Result<T, ApiError> {
    let unreadable = || ApiError::invalid("The query string is not percent-encoded UTF-8.");
    // The decoder below would put a replacement character where there was no text.
    percent_decode_str(text).decode_utf8().map_err(|_| unreadable())?;
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(text).map_err(|_| unreadable())?;
    let mut fields = serde_json::Map::new();
    for (name, value) in pairs {
        if value.contains('\0') || name.contains('\0') {
            return Err(ApiError::invalid("The query string holds the character NUL."));
        }
        if fields.insert(name.clone(), Value::String(value)).is_some() {
            return Err(ApiError::invalid(format!("The parameter `{name}` is there twice.")));
        }
    }
    fields.shift_remove("account_id");
    strictly(Value::Object(fields), "parameter")
}

/// For routes that take no parameters: a query string with one is refused.
pub struct NoQuery;

#[derive(serde::Deserialize)]
struct Nothing {}

impl FromRequest for NoQuery {
    type Error = ApiError;
    type Future = std::future::Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        std::future::ready(query(request.query_string()).map(|Nothing {}| NoQuery))
    }
}

/// How much of a list is wanted.
#[derive(Debug)]
pub struct Page {
    pub limit: i64,
    /// The id after which to go on.
    pub cursor: Option<String>,
}

/// The largest page a list gives.
const MAX_PAGE: i64 = 1_000;

impl Page {
    /// Reads `limit` (50 where absent, from 1 to 1000) and `cursor`, which begins as all do that the
    /// list gives out.
    pub fn new(limit: Option<&str>, cursor: Option<String>, begins: &str) -> Result<Page, ApiError> {
        let limit = match limit.map(str::parse) {
            None => 50,
            Some(Ok(limit @ 1..=MAX_PAGE)) => limit,
            Some(_) => return Err(ApiError::invalid(format!("`limit` must be from 1 to {MAX_PAGE}."))),
        };
        let ours = |cursor: &String| cursor.starts_with(begins) && id_of::<String>(cursor.clone()).is_some();
        if cursor.as_ref().is_some_and(|cursor| !ours(cursor)) {
            return Err(ApiError::invalid("`cursor` is none that a list gave out."));
        }
        Ok(Page { limit, cursor })
    }

    /// A list's answer: `rows` were read with a limit of one more than the page's, so that the last
    /// one tells whether there are more. `id` is what the next page goes on after.
    pub fn answer<T: serde::Serialize>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> String) -> Value {
        let more = rows.len() as i64 > self.limit;
        rows.truncate(self.limit as usize);
        let next = if more { rows.last().map(id) } else { None };
        serde_json::json!({ "data": rows, "next_cursor": next })
    }
}

/// An id out of a path or a query, if it could be one. What no id can be is not asked of a database,
/// which would choke on some of it.
pub fn id_of<T: From<String>>(text: String) -> Option<T> {
    let fits = (1..=200).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| text.into())
}

/// A name that people give: 1 to 200 characters, not only blanks, no control characters.
pub fn name(field: &str, text: String) -> Result<String, ApiError> {
    let fits = !text.trim().is_empty() && text.chars().count() <= 200 && !text.chars().any(char::is_control);
    match fits {
        true => Ok(text),
        false => Err(ApiError::invalid(format!(
            "`{field}` must have 1 to 200 characters, not all of them blank, and no control characters."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Deserialize, Debug, PartialEq)]
    struct Form {
        name: String,
        cents: Option<i64>,
        payload: Option<Value>,
    }

    fn message(body: &str) -> String {
        decode::<Form>(body.as_bytes()).unwrap_err().message
    }

    #[test]
    fn each_unknown_field_is_named() {
        assert_eq!(message(r#"{"name":"a","nmae":1,"x":{}}"#), "Unknown fields `nmae`, `x`.");
        assert_eq!(message(r#"{"name":"a","x":null}"#), "Unknown field `x`.");
    }

    #[test]
    fn a_wrong_type_is_named_by_its_field() {
        for cents in ["5.0", "\"5\"", "true", "1e3", "99999999999999999999"] {
            let problem = message(&format!(r#"{{"name":"a","cents":{cents}}}"#));
            assert!(problem.contains("`cents`"), "{problem}");
        }
        assert!(message(r#"{"nmae":"a"}"#).contains("missing field `name`. Unknown field `nmae`."));
        assert!(message("[]").contains("object"));
    }

    #[test]
    fn null_is_as_absent_and_payloads_are_free() {
        let form: Form = decode(br#"{"name":"a","cents":null,"payload":{"any":[null,5.0]}}"#).unwrap();
        assert_eq!(form.cents, None);
        assert_eq!(form.payload.unwrap().to_string(), r#"{"any":[null,5.0]}"#);
    }

    #[test]
    fn a_query_is_read_as_strictly() {
        #[derive(Deserialize, Debug)]
        struct Filter {
            limit: Option<String>,
        }
        let filter = query::<Filter>("limit=5&account_id=acct_1").unwrap();
        assert_eq!(filter.limit.as_deref(), Some("5"));
        assert!(query::<Filter>("limit=5&limit=6").is_err());
        assert!(query::<Filter>("limti=5").is_err());
        assert!(query::<Filter>("limit=%00").is_err());
    }

    #[test]
    fn a_page_has_1_to_1000_rows() {
        for wrong in ["0", "1001", "-1", "abc", "5.0", "", "99999999999999999999"] {
            assert!(Page::new(Some(wrong), None, "").is_err(), "{wrong}");
        }
        let page = Page::new(Some("2"), None, "").unwrap();
        let more = page.answer(vec!["a", "b", "c"], |row| (*row).to_owned());
        assert_eq!(more, serde_json::json!({"data": ["a", "b"], "next_cursor": "b"}));
        assert_eq!(page.answer(vec!["a"], |row| (*row).to_owned())["next_cursor"], Value::Null);
        for wrong in ["", "cast", "key_1", "cast_ 1", "cast_é"] {
            assert!(Page::new(None, Some(wrong.to_owned()), "cast_").is_err(), "{wrong}");
        }
    }
}
