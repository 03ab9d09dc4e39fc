//! The upstreams of `http` spells. A spell's URL is written by one person, called with the payload
//! of another, and answered by a third: none of them may use the platform to reach what only the
//! platform can reach, to hold it up, or to fill its memory. So there is one way out, and this is it.
//!
//! An address is checked where it is used: names are resolved by a resolver of ours that hands the
//! connector only the addresses that passed, so a name that changes its mind between the check and
//! the call gains nothing. An address written into the URL never meets a resolver, and is checked
//! before each call instead. Nothing is followed (redirects), asked the way (proxies of the
//! environment) or unpacked (compression).
//!
//! # Failure behavior
//!
//! A call ends within its time-out, name resolution, connecting and the whole answer included, as
//! [`UpstreamError::TimedOut`]; whatever else goes wrong is [`UpstreamError::Failed`] with a
//! sentence that is put together from fixed words, a status and the system's name for an error. It
//! never has the URL, a header or anything the upstream wrote in it, so it can be stored, logged and
//! shown to the caller. Nothing is tried again once the upstream may have seen it. Nothing panics.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    header::{self, HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use serde_json::Value;
use url::{Host, Url};

use crate::json::{self, Source};

/// Longest URL of an upstream, in bytes as it is sent.
const MAX_URL_BYTES: usize = 2048;

/// Most headers that a spell adds.
const MAX_HEADERS: usize = 64;

/// Longest value of such a header, in bytes.
const MAX_HEADER_BYTES: usize = 8192;

/// How long an idle connection is kept for the next cast: less than what most servers and balancers
/// wait before they hang up, so that a cast is rarely sent into a connection that is closing.
const IDLE: Duration = Duration::from_secs(30);

/// Idle connections kept per host.
const MAX_IDLE_PER_HOST: usize = 64;

/// Headers that a spell can't set, because they frame the message or are about this one connection,
/// and set wrongly let one request be read as two; or, for `Accept-Encoding`, ask for what is not
/// unpacked here.
const RESERVED: [HeaderName; 13] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::EXPECT,
    HeaderName::from_static("http2-settings"),
    header::ACCEPT_ENCODING,
];

/// IPv4 addresses that are not on the public internet, each with what it is instead.
const REFUSED_V4: [(Ipv4Net, &str); 16] = [
    (v4(0, 0, 0, 0, 8), "this network, RFC 1122"),
    (v4(10, 0, 0, 0, 8), "private, RFC 1918"),
    (v4(100, 64, 0, 0, 10), "shared by a carrier's customers, RFC 6598"),
    (v4(127, 0, 0, 0, 8), "loopback, RFC 1122"),
    // Public by its number, but inside Azure it is the host's own agent, on every machine.
    (v4(168, 63, 129, 16, 32), "a cloud's host agent"),
    (v4(169, 254, 0, 0, 16), "link-local, RFC 3927"),
    (v4(172, 16, 0, 0, 12), "private, RFC 1918"),
    (v4(192, 0, 0, 0, 24), "protocol assignments, RFC 6890"),
    (v4(192, 0, 2, 0, 24), "documentation, RFC 5737"),
    (v4(192, 88, 99, 0, 24), "6to4 relays, RFC 7526"),
    (v4(192, 168, 0, 0, 16), "private, RFC 1918"),
    (v4(198, 18, 0, 0, 15), "benchmarks, RFC 2544"),
    (v4(198, 51, 100, 0, 24), "documentation, RFC 5737"),
    (v4(203, 0, 113, 0, 24), "documentation, RFC 5737"),
    (v4(224, 0, 0, 0, 4), "multicast, RFC 5771"),
    (v4(240, 0, 0, 0, 4), "reserved, RFC 1112, with the broadcast address, RFC 919"),
];

/// The part of IPv6 that is handed out to the public internet (RFC 4291 section 2.4, IANA's registry
/// of global unicast). All of the rest is refused; the ranges below only give some of it a name.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// IPv6 addresses that are not on the public internet, each with what it is instead.
const REFUSED_V6: [(Ipv6Net, &str); 14] = [
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 128), "unspecified, RFC 4291"),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), "loopback, RFC 4291"),
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 96), "IPv4-compatible, RFC 4291"),
    (v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96), "IPv4-translated, RFC 2765"),
    (v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48), "local NAT64, RFC 8215"),
    (v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64), "discarded, RFC 6666"),
    // Teredo, benchmarks and ORCHID among them.
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), "protocol assignments, RFC 2928"),
    (v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), "documentation, RFC 3849"),
    // It carries an IPv4 address, but to a relay of its own choice: no address in it is safe.
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), "6to4, RFC 7526"),
    (v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), "documentation, RFC 9637"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "unique local, RFC 4193"),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), "link-local, RFC 4291"),
    (v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10), "site-local, RFC 3879"),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), "multicast, RFC 4291"),
];

/// IPv6 addresses that stand for the IPv4 address in their last 32 bits, which is then the one to
/// judge: mapped (RFC 4291), and NAT64 (RFC 6052), by which a network without IPv4 reaches all of it.
const CARRIES_V4: [Ipv6Net; 2] =
    [v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96)];

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(s: [u16; 8], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]), prefix)
}

/// Why a call to an upstream has no result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// It could not be reached, broke off, answered something other than 2xx, or too much. The
    /// sentence holds no secret, no URL and nothing that the upstream wrote.
    #[error("{0}")]
    Failed(String),
    /// Its answer was not complete within the time-out. It may have run all the same.
    #[error("the upstream did not answer in time")]
    TimedOut,
}

impl UpstreamError {
    /// The error's code, as it stands in the cast's row.
    pub fn code(&self) -> &'static str {
        match self {
            UpstreamError::Failed(_) => "upstream_failed",
            UpstreamError::TimedOut => "upstream_timeout",
        }
    }

    fn failed(sentence: impl Into<String>) -> UpstreamError {
        UpstreamError::Failed(sentence.into())
    }
}

/// The way out to upstreams: a pool of connections and the rules above. Clones share both. Belongs
/// to the runtime it is first used on, which must live as long as the calls.
#[derive(Clone, Debug)]
pub struct Upstream {
    client: Client,
    allow_private: bool,
    max_answer_bytes: usize,
}

impl Upstream {
    /// `allow_private` (`UPSTREAM_ALLOW_PRIVATE`) lets calls go to any address, the platform's own
    /// network included; `max_answer_bytes` is the most that is read of an answer.
    ///
    /// # Errors
    ///
    /// When the system's certificate authorities can't be loaded: without them no `https` upstream
    /// could be told from an impostor.
    pub fn new(allow_private: bool, max_answer_bytes: usize) -> Result<Upstream, reqwest::Error> {
        // The whole process agrees on one provider; whoever installed one before has done our work.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("spell-platform/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .dns_resolver(Arc::new(Guard { allow_private }))
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE_PER_HOST)
            .build()?;
        Ok(Upstream { client, allow_private, max_answer_bytes })
    }

    /// Reads a spell's URL as it will be called: `http` or `https`, with a host, without user and
    /// password, and not at an address that is refused here. What a name leads to is only known
    /// when it is called, and judged then.
    ///
    /// # Errors
    ///
    /// A sentence about `url` that whoever wrote the spell can act on.
    pub fn check_url(&self, url: &str) -> Result<Url, String> {
        let url = Url::parse(url).map_err(|error| format!("url is not a URL: {error}"))?;
        self.admit(&url)?;
        Ok(url)
    }

    /// POSTs `payload` as JSON to `url`, with `headers` from [`check_headers`], and gives what was
    /// answered within `timeout`, which counts from now to the answer's last byte.
    ///
    /// An answer that is JSON is taken as such, whatever type it says it has. An empty one is null.
    /// Any other one, JSON nested over 128 levels included, becomes a JSON string, with U+FFFD for
    /// what is not UTF-8, which makes it up to three times as long. Strings in it may have NUL
    /// characters: written as JSON they are escaped and harm nothing, but a string taken out of it
    /// is no text that PostgreSQL would store.
    ///
    /// # Errors
    ///
    /// See [`UpstreamError`]. An answer of 3xx is a failure like one of 4xx or 5xx. `url` is checked
    /// again, as the setting or the rules may have changed since it was stored.
    pub async fn call(
        &self,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        timeout: Duration,
        payload: &Value,
    ) -> Result<Value, UpstreamError> {
        match tokio::time::timeout(timeout, self.exchange(url, headers, payload)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(UpstreamError::TimedOut),
        }
    }

    async fn exchange(
        &self,
        url: &Url,
        headers: &[(HeaderName, HeaderValue)],
        payload: &Value,
    ) -> Result<Value, UpstreamError> {
        // The sentence of `admit` is for who wrote the URL. Who casts it need not know where it goes.
        self.admit(url).map_err(|_| UpstreamError::failed(NOT_CALLED))?;
        let body = serde_json::to_vec(payload)
            .map_err(|_| UpstreamError::failed("the payload could not be written as JSON"))?;
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            // Without the `try_`, a map that is too large panics.
            if RESERVED.contains(name) || all.try_insert(name.clone(), value.clone()).is_err() {
                return Err(UpstreamError::failed("the spell's headers can't be sent"));
            }
        }
        all.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));

        let request = self.client.post(url.clone()).headers(all).body(body);
        let mut response = request.send().await.map_err(|error| told(&error, "the call failed"))?;
        let status = response.status();
        if !status.is_success() {
            return Err(UpstreamError::failed(format!("the upstream answered {}", status.as_u16())));
        }
        let mut answer = Vec::new();
        while let Some(chunk) =
            response.chunk().await.map_err(|error| told(&error, "the upstream's answer broke off"))?
        {
            if chunk.len() > self.max_answer_bytes.saturating_sub(answer.len()) {
                return Err(UpstreamError::failed(format!(
                    "the upstream answered more than {} bytes",
                    self.max_answer_bytes
                )));
            }
            answer.extend_from_slice(&chunk);
        }
        Ok(read(&answer))
    }

    /// What [`Upstream::check_url`] says, for a URL that is parsed already.
    fn admit(&self, url: &Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err("url must begin with http:// or https://".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("url must have no user and password in it; use headers for them".to_owned());
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(format!("url must be at most {MAX_URL_BYTES} bytes long"));
        }
        let refused = match url.host() {
            None => return Err("url must have a host".to_owned()),
            _ if self.allow_private => None,
            Some(Host::Domain(name)) => local_name(name).then_some("loopback, RFC 6761"),
            Some(Host::Ipv4(ip)) => refused(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => refused(IpAddr::V6(ip)),
        };
        match refused {
            None => Ok(()),
            Some(why) => Err(format!(
                "url leads to {}, which is not a public address ({why}); UPSTREAM_ALLOW_PRIVATE=true allows it",
                url.host_str().unwrap_or_default()
            )),
        }
    }
}

/// Turns a spell's headers into those that [`Upstream::call`] sends, their values marked so that
/// neither a debug print nor HTTP/2's compression table ever holds them.
///
/// # Errors
///
/// A sentence naming the header that can't be sent: no valid name or value, given twice (names do
/// not differ by case), or one that is not the spell's to set, like `Host` or `Content-Type`. The
/// value is never in it.
pub fn check_headers(headers: &BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    if headers.len() > MAX_HEADERS {
        return Err(format!("headers must be at most {MAX_HEADERS}"));
    }
    let mut checked: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        let Ok(parsed) = HeaderName::from_bytes(name.as_bytes()) else {
            return Err(format!("headers has {name:?}, which is not a header's name"));
        };
        if RESERVED.contains(&parsed) {
            return Err(format!("headers can't set {parsed}: the platform does"));
        }
        if checked.iter().any(|(other, _)| *other == parsed) {
            return Err(format!("headers has {parsed} twice"));
        }
        if value.len() > MAX_HEADER_BYTES {
            return Err(format!("headers has a value for {parsed} of more than {MAX_HEADER_BYTES} bytes"));
        }
        let Ok(mut value) = HeaderValue::from_str(value) else {
            return Err(format!("headers has a value for {parsed} with a line break or control character"));
        };
        value.set_sensitive(true);
        checked.push((parsed, value));
    }
    Ok(checked)
}

/// Whether a host name means this machine without being asked for (RFC 6761 section 6.3).
fn local_name(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    let last = name.rsplit('.').next().unwrap_or(name);
    last.eq_ignore_ascii_case("localhost")
}

/// Why `ip` may not be called; `None` for an address on the public internet.
fn refused(ip: IpAddr) -> Option<&'static str> {
    match ip {
        IpAddr::V4(ip) => refused_v4(ip),
        IpAddr::V6(ip) => {
            if CARRIES_V4.iter().any(|net| net.contains(&ip)) {
                let [.., a, b, c, d] = ip.octets();
                return refused_v4(Ipv4Addr::new(a, b, c, d));
            }
            let named = REFUSED_V6.iter().find(|(net, _)| net.contains(&ip)).map(|(_, why)| *why);
            named.or_else(|| (!GLOBAL_V6.contains(&ip)).then_some("not global unicast, RFC 4291"))
        }
    }
}

fn refused_v4(ip: Ipv4Addr) -> Option<&'static str> {
    REFUSED_V4.iter().find(|(net, _)| net.contains(&ip)).map(|(_, why)| *why)
}

/// Resolves names, and lets only the addresses through that may be called.
struct Guard {
    allow_private: bool,
}

impl Guard {
    /// Those of `found` that may be called; an error if that is none of them.
    fn pass(
        allow_private: bool,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, NonePublic> {
        let passed: Vec<_> = found.filter(|at| allow_private || refused(at.ip()).is_none()).collect();
        if passed.is_empty() { Err(NonePublic) } else { Ok(passed) }
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            // Port 0 is replaced by the URL's.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let passed = Guard::pass(allow_private, found)?;
            Ok(Box::new(passed.into_iter()) as Addrs)
        })
    }
}

/// All addresses of a name were refused.
#[derive(Debug, PartialEq, Eq)]
struct NonePublic;

impl fmt::Display for NonePublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NOT_CALLED)
    }
}

impl Error for NonePublic {}

const NOT_CALLED: &str = "the upstream has no address that may be called";

/// What a client's error comes to, in words of ours: its own have the URL in them. `otherwise` is
/// said of what has no better name.
fn told(error: &reqwest::Error, otherwise: &str) -> UpstreamError {
    if error.is_timeout() {
        return UpstreamError::TimedOut;
    }
    let mut system = None;
    let mut cause = error.source();
    while let Some(at) = cause {
        if at.is::<NonePublic>() {
            return UpstreamError::failed(NOT_CALLED);
        }
        if let Some(tls) = at.downcast_ref::<rustls::Error>() {
            return UpstreamError::failed(match tls {
                rustls::Error::InvalidCertificate(_) => "the upstream's certificate is not valid",
                _ => "no secure connection to the upstream could be made",
            });
        }
        let io = at.downcast_ref::<io::Error>();
        system = io.map(io::Error::kind).filter(names_a_cause).or(system);
        // The `source` of an io::Error that was made from another error skips that one.
        let inner = io.and_then(io::Error::get_ref).map(|inner| inner as &(dyn Error + 'static));
        cause = inner.or_else(|| at.source());
    }
    let what = if error.is_dns() {
        return UpstreamError::failed("the upstream's host name could not be resolved");
    } else if error.is_connect() {
        "no connection to the upstream could be made"
    } else {
        otherwise
    };
    UpstreamError::failed(match system {
        Some(kind) => format!("{what}: {kind}"),
        None => what.to_owned(),
    })
}

/// Whether the system's name for an error says more than that there was one.
fn names_a_cause(kind: &io::ErrorKind) -> bool {
    !matches!(kind, io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput)
}

/// An answer's bytes as a value; see [`Upstream::call`].
fn read(answer: &[u8]) -> Value {
    if answer.is_empty() {
        return Value::Null;
    }
    // What was answered is stored as JSON, where NUL is an escape like any other.
    json::parse(answer, Source::Upstream)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(answer).into_owned()))
}

#[cfg(test)]
mod tests;
