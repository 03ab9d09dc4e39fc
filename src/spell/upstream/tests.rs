//! Upstreams of every kind of misbehaviour, on a real socket.

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::*;

const SOON: Duration = Duration::from_secs(10);
const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\n";

/// What the upstream of a test does once it has read the request.
enum Then {
    Close,
    Hang,
    Reset,
    /// Sends this for as long as somebody takes it.
    Repeat(&'static [u8]),
}

fn upstream() -> Upstream {
    Upstream::new(true, 1000).unwrap()
}

fn strict() -> Upstream {
    Upstream::new(false, 1000).unwrap()
}

/// Reads one request whole: its head, and as much of a body as it announces.
async fn request(socket: &mut TcpStream) -> String {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        assert_ne!(socket.read_buf(&mut got).await.unwrap(), 0, "the request broke off: {text}");
    }
}

/// A server for one connection: reads a request, sends `answer`, then does `then`. Gives its
/// port, and the request when it is over.
async fn serve(answer: impl Into<Vec<u8>>, then: Then) -> (u16, JoinHandle<String>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let got = request(&mut socket).await;
        socket.write_all(&answer).await.unwrap();
        match then {
            Then::Close => socket.shutdown().await.unwrap_or(()),
            Then::Hang => std::future::pending().await,
            Then::Reset => {
                // Lets what was sent arrive first: a reset throws away what is under way.
                tokio::time::sleep(Duration::from_millis(100)).await;
                socket.set_zero_linger().unwrap();
            }
            Then::Repeat(piece) => while socket.write_all(piece).await.is_ok() {},
        }
        got
    });
    (port, served)
}

async fn call(upstream: &Upstream, port: u16, timeout: Duration) -> Result<Value, UpstreamError> {
    let url = upstream.check_url(&format!("http://127.0.0.1:{port}/hidden?token=hidden")).unwrap();
    let outcome = upstream.call(&url, &[], timeout, &json!({"n": 1})).await;
    if let Err(error) = &outcome {
        assert!(!error.to_string().contains("hidden"), "{error}");
        assert!(!format!("{error:?}").contains("127.0.0.1"), "{error:?}");
    }
    outcome
}

/// The outcome of a call that is answered with these bytes and a closed connection.
async fn answered(answer: impl Into<Vec<u8>>) -> Result<Value, UpstreamError> {
    let (port, _) = serve(answer, Then::Close).await;
    call(&upstream(), port, SOON).await
}

fn failed(sentence: &str) -> Result<Value, UpstreamError> {
    Err(UpstreamError::failed(sentence))
}

#[tokio::test]
async fn json_is_taken_whatever_it_calls_itself() {
    let outcome = answered(format!("{OK}content-type: text/html\r\n\r\n{{\"a\":[1,1e400,\"\\u0000\"]}}"));
    let value = outcome.await.unwrap();
    assert_eq!(value["a"][2], "\0");
    assert_eq!(value.to_string(), r#"{"a":[1,1e+400,"\u0000"]}"#);
    assert_eq!(answered(format!("{OK}content-length: 5\r\n\r\nfalse")).await, Ok(json!(false)));
    let created = "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\n[]";
    assert_eq!(answered(created).await, Ok(json!([])));
}

#[tokio::test]
async fn text_is_a_string_and_nothing_is_null() {
    assert_eq!(answered(format!("{OK}\r\nhello, {{}}")).await, Ok(json!("hello, {}")));
    assert_eq!(answered([OK.as_bytes(), b"\r\na\xff\0"].concat()).await, Ok(json!("a\u{fffd}\0")));
    assert_eq!(answered(format!("{OK}\r\n")).await, Ok(Value::Null));
    assert_eq!(answered("HTTP/1.1 204 No Content\r\n\r\n").await, Ok(Value::Null));
}

#[tokio::test]
async fn only_2xx_is_an_answer() {
    let error = "HTTP/1.1 500 Hidden\r\ncontent-length: 6\r\n\r\nhidden";
    assert_eq!(answered(error).await, failed("the upstream answered 500"));
    assert_eq!(answered("HTTP/1.1 404 No\r\n\r\n").await, failed("the upstream answered 404"));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for status in [301, 302, 303, 307, 308] {
        let (target, followed) = serve(format!("{OK}\r\n1"), Then::Close).await;
        let answer = format!("HTTP/1.1 {status} Go\r\nlocation: http://127.0.0.1:{target}/\r\n\r\n");
        assert_eq!(answered(answer).await, failed(&format!("the upstream answered {status}")));
        assert!(!followed.is_finished());
        followed.abort();
    }
}

#[tokio::test]
async fn a_slow_upstream_times_out_wherever_it_stops() {
    let short = Duration::from_millis(200);
    for answer in ["", "HTTP/1.1 200 OK\r\nx-a", &format!("{OK}content-length: 9\r\n\r\n[1,")] {
        let (port, _) = serve(answer, Then::Hang).await;
        let began = std::time::Instant::now();
        assert_eq!(call(&upstream(), port, short).await, Err(UpstreamError::TimedOut), "{answer}");
        assert!(began.elapsed() < SOON);
    }
}

#[tokio::test]
async fn an_answer_is_read_to_its_bound_and_no_further() {
    let over = "the upstream answered more than 1000 bytes";
    let exact = format!("{OK}content-length: 1000\r\n\r\n{}", "x".repeat(1000));
    assert_eq!(answered(exact).await, Ok(json!("x".repeat(1000))));
    let more = format!("{OK}content-length: 1001\r\n\r\n{}", "x".repeat(1001));
    assert_eq!(answered(more).await, failed(over));
    assert_eq!(answered(format!("{OK}\r\n{}", "x".repeat(5000))).await, failed(over));
    // What is announced takes no memory before it comes.
    let vast = format!("{OK}content-length: {}\r\n\r\n", u64::MAX / 2);
    assert_eq!(answered(vast).await, failed("the upstream's answer broke off: unexpected end of file"));
}

#[tokio::test]
async fn an_endless_answer_ends() {
    let chunked = format!("{OK}transfer-encoding: chunked\r\n\r\n");
    let (port, served) = serve(chunked, Then::Repeat(b"4\r\n1234\r\n")).await;
    let outcome = call(&upstream(), port, SOON).await;
    assert_eq!(outcome, failed("the upstream answered more than 1000 bytes"));
    served.await.unwrap();
    // Nor does a head that never ends, or one that is put off for ever.
    for (head, piece) in [
        (OK, &b"x-more: 0123456789\r\n"[..]),
        ("", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
    ] {
        let (port, _) = serve(head, Then::Repeat(Box::leak(Box::from(piece)))).await;
        call(&upstream(), port, Duration::from_secs(1)).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_failure() {
    let part = format!("{OK}content-length: 9\r\n\r\n[1,");
    let (port, _) = serve(part.clone(), Then::Reset).await;
    let reset = "the upstream's answer broke off: connection reset";
    assert_eq!(call(&upstream(), port, SOON).await, failed(reset));
    let cut = "the upstream's answer broke off: unexpected end of file";
    assert_eq!(answered(part).await, failed(cut));
    assert_eq!(answered("").await, failed("the call failed"));
    assert_eq!(answered("SSH-2.0-OpenSSH_9.7\r\n").await, failed("the call failed"));

    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = "no connection to the upstream could be made: connection refused";
    assert_eq!(call(&upstream(), closed, SOON).await, failed(refused));
    let url = Url::parse("http://hidden.invalid/").unwrap();
    let unknown = "the upstream's host name could not be resolved";
    assert_eq!(upstream().call(&url, &[], SOON, &json!(1)).await, failed(unknown));
}

#[tokio::test]
async fn https_does_not_fall_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n1").await.unwrap();
        let _ = socket.read(&mut [0; 1024]).await;
    });
    let url = Url::parse(&format!("https://127.0.0.1:{port}/")).unwrap();
    let outcome = upstream().call(&url, &[], SOON, &json!(1)).await;
    assert_eq!(outcome, failed("no secure connection to the upstream could be made"));
}

#[tokio::test]
async fn what_is_sent() {
    let (port, served) = serve(format!("{OK}\r\n1"), Then::Close).await;
    let headers = BTreeMap::from([
        ("Authorization".to_owned(), "Bearer hidden".to_owned()),
        ("X-Tenant".to_owned(), "seven".to_owned()),
    ]);
    let headers = check_headers(&headers).unwrap();
    assert!(!format!("{headers:?}").contains("hidden"), "{headers:?}");
    let url = upstream().check_url(&format!("http://localhost:{port}/a/b?c=d#e")).unwrap();
    let payload = json!({"text": "ünï\0", "n": 12});
    assert_eq!(upstream().call(&url, &headers, SOON, &payload).await, Ok(json!(1)));

    let got = served.await.unwrap();
    let (head, body) = got.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, payload.to_string());
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("POST /a/b?c=d HTTP/1.1"));
    let mut lines: Vec<_> = lines.map(str::to_ascii_lowercase).collect();
    lines.sort();
    let expected = [
        "accept: */*".to_owned(),
        "authorization: bearer hidden".to_owned(),
        format!("content-length: {}", body.len()),
        "content-type: application/json".to_owned(),
        format!("host: localhost:{port}"),
        format!("user-agent: spell-platform/{}", env!("CARGO_PKG_VERSION")),
        "x-tenant: seven".to_owned(),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn headers_that_are_not_the_spells_to_set() {
    let check = |name: &str, value: &str| {
        check_headers(&BTreeMap::from([(name.to_owned(), value.to_owned())])).map(|_| ())
    };
    for name in RESERVED {
        let name = name.as_str();
        for spelling in [name.to_owned(), name.to_ascii_uppercase()] {
            let sentence = format!("headers can't set {name}: the platform does");
            assert_eq!(check(&spelling, "x"), Err(sentence));
        }
    }
    for name in ["", " host", "host ", "ho st", "host:", ":authority", "a\r\nhost", "a\0", "é"] {
        assert!(check(name, "x").unwrap_err().contains("not a header's name"), "{name:?}");
    }
    for value in ["hidden\r\nhost: evil", "hidden\n", "hidden\0", "hidden\u{7f}"] {
        let error = check("x-a", value).unwrap_err();
        assert!(error.contains("x-a") && !error.contains("hidden"), "{error}");
    }
    assert!(check("x-a", &"v".repeat(MAX_HEADER_BYTES)).is_ok());
    assert!(check("x-a", &"v".repeat(MAX_HEADER_BYTES + 1)).is_err());
    let twice = BTreeMap::from([("X-A".to_owned(), "1".to_owned()), ("x-a".to_owned(), "2".to_owned())]);
    assert_eq!(check_headers(&twice), Err("headers has x-a twice".to_owned()));
    let many = (0..=MAX_HEADERS).map(|n| (format!("x-{n}"), String::new())).collect();
    assert!(check_headers(&many).is_err());
}

#[tokio::test]
async fn a_call_refuses_headers_that_were_not_checked() {
    let url = Url::parse("http://127.0.0.1:1/").unwrap();
    let host = [(header::HOST, HeaderValue::from_static("evil"))];
    let sentence = "the spell's headers can't be sent";
    assert_eq!(upstream().call(&url, &host, SOON, &json!(1)).await, failed(sentence));
    let flood: Vec<_> = (0..40_000)
        .map(|n| (HeaderName::try_from(format!("x-{n}")).unwrap(), HeaderValue::from_static("")))
        .collect();
    assert_eq!(upstream().call(&url, &flood, SOON, &json!(1)).await, failed(sentence));
}

const REFUSED: [&str; 72] = [
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://100.64.0.1/",
    "http://100.100.100.200/",
    "http://100.127.255.255/",
    "http://127.0.0.1/",
    "http://127.255.255.254:8080/",
    "http://168.63.129.16/",
    "http://169.254.169.254/latest/meta-data/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.0.0.192/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://192.168.1.1/",
    "http://198.18.0.1/",
    "http://198.19.255.255/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://239.255.255.255/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    // The same in other spellings.
    "http://127.0.0.1./",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0X7F.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://3232235777/",
    "http://%31%32%37.0.0.1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http:127.0.0.1/",
    "http:\\\\127.0.0.1\\",
    "http://1\t2\n7.0.0.1/",
    "HTTPS://127.0.0.1/",
    "https://localhost/",
    "http://LocalHost:80/",
    "http://localhost./",
    "http://app.localhost/",
    "http://app.localhost.:1/",
    "http://ｌocalhost/",
    // IPv6, and IPv4 in it.
    "http://[::]/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::2]/",
    "http://[::7f00:1]/",
    "http://[::8.8.8.8]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:a00:1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[::ffff:0:8.8.8.8]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::8.8.8.8]/",
    "http://[100::1]/",
    "http://[2001::1]/",
    "http://[2001:2::1]/",
    "http://[2001:db8::1]/",
    "http://[2002:7f00:1::]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
];

#[tokio::test]
async fn private_addresses_are_refused_in_every_spelling() {
    let (strict, lax) = (strict(), upstream());
    for text in REFUSED {
        let error = strict.check_url(text).unwrap_err();
        assert!(error.contains("UPSTREAM_ALLOW_PRIVATE"), "{text}: {error}");
        // Allowed as such, so that the refusal above is about the address.
        let url = lax.check_url(text).unwrap();
        // And again at the call, should a URL get there that was never checked.
        assert_eq!(strict.call(&url, &[], SOON, &json!(1)).await, failed(NOT_CALLED), "{text}");
    }
}

#[test]
fn public_addresses_are_allowed() {
    let strict = strict();
    for text in [
        "http://example.com",
        "https://api.example.com:8443/v1/run?key=value#part",
        "https://localhost.example.com/",
        "https://notlocalhost/",
        "https://bücher.example/",
        "http://1.1.1.1/",
        "http://8.8.8.8:8080/",
        "http://9.255.255.255/",
        "http://11.0.0.0/",
        "http://100.63.255.255/",
        "http://100.128.0.0/",
        "http://172.15.255.255/",
        "http://172.32.0.0/",
        "http://192.0.1.1/",
        "http://198.20.0.0/",
        "http://223.255.255.255/",
        "http://[2606:4700:4700::1111]/",
        "http://[2a00:1450:4001::200e]:443/",
        "http://[::ffff:8.8.8.8]/",
        "http://[64:ff9b::8.8.8.8]/",
    ] {
        assert_eq!(strict.check_url(text).map(|_| ()), Ok(()), "{text}");
    }
}

#[test]
fn what_is_no_url_of_an_upstream() {
    for (text, part) in [
        ("", "not a URL"),
        ("example.com", "not a URL"),
        ("/v1/run", "not a URL"),
        ("http://", "not a URL"),
        ("http://exa mple.com/", "not a URL"),
        ("http://256.0.0.1/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://[fe80::1%25eth0]/", "not a URL"),
        ("http://example.com:99999/", "not a URL"),
        ("ftp://example.com/", "http://"),
        ("file:///etc/passwd", "http://"),
        ("gopher://example.com/", "http://"),
        ("unix:/run/docker.sock", "http://"),
        ("data:text/plain,x", "http://"),
        ("javascript:alert(1)", "http://"),
        ("http://user@example.com/", "user and password"),
        ("http://user:hidden@example.com/", "user and password"),
        ("http://:hidden@example.com/", "user and password"),
        (&format!("http://example.com/{}", "x".repeat(MAX_URL_BYTES)), "at most"),
    ] {
        for upstream in [strict(), upstream()] {
            let error = upstream.check_url(text).unwrap_err();
            assert!(error.contains(part) && !error.contains("hidden"), "{text}: {error}");
        }
    }
}

#[tokio::test]
async fn odd_hosts_and_queries_do_not_panic() {
    for text in ["http://./", "http://a..b/", "http://a_b,c!d.invalid/", "http://x.invalid/?{}|^`\"\\"] {
        for upstream in [strict(), upstream()] {
            if let Ok(url) = upstream.check_url(text) {
                upstream.call(&url, &[], SOON, &json!(1)).await.unwrap_err();
            }
        }
    }
}

#[tokio::test]
async fn a_name_is_judged_by_what_it_resolves_to() {
    // A name that passes `check_url` meets this resolver; `localhost` stands for it here.
    let resolve = |allow_private| Guard { allow_private }.resolve("localhost".parse().unwrap());
    let error = resolve(false).await.err().unwrap();
    assert!(error.is::<NonePublic>(), "{error}");
    assert!(resolve(true).await.unwrap().all(|at| at.ip().is_loopback()));

    let at = |ip: &str| SocketAddr::new(ip.parse().unwrap(), 0);
    let mixed = [at("10.0.0.1"), at("1.1.1.1"), at("::1"), at("2606:4700:4700::1111")];
    let public = vec![mixed[1], mixed[3]];
    assert_eq!(Guard::pass(false, mixed.into_iter()), Ok(public));
    assert_eq!(Guard::pass(true, mixed.into_iter()), Ok(mixed.to_vec()));
    assert_eq!(Guard::pass(false, [at("::ffff:10.0.0.1")].into_iter()), Err(NonePublic));
    assert_eq!(Guard::pass(true, [].into_iter()), Err(NonePublic));
}

#[tokio::test]
async fn the_resolver_is_the_one_that_connects() {
    // With the check of the URL out of the way, the connector itself must not get through.
    let (port, served) = serve(format!("{OK}\r\n1"), Then::Close).await;
    let lax_about_urls = Upstream { allow_private: true, ..strict() };
    let url = Url::parse(&format!("http://localhost:{port}/")).unwrap();
    let outcome = lax_about_urls.call(&url, &[], SOON, &json!(1)).await;
    assert_eq!(outcome, failed(NOT_CALLED));
    assert!(!served.is_finished());
    served.abort();
}

#[test]
fn json_nested_too_deep_is_text() {
    let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
    assert!(read(nested(128).as_bytes()).is_array());
    assert!(read(nested(129).as_bytes()).is_string());
    assert!(read("[".repeat(1_000_000).as_bytes()).is_string());
    assert!(read("{\"a\":".repeat(1_000_000).as_bytes()).is_string());
}

#[test]
fn json_is_read_as_it_stands() {
    let text =
        r#"{"b":null,"a":[true,false,-1,0,18446744073709551616,0.10,1e-7,"é\n\u0000\ud83d\ude00"],"":{}}"#;
    let value: Value = serde_json::from_str(text).unwrap();
    assert_eq!(read(text.as_bytes()), value);
    assert_eq!(read(format!(" {text}\r\n").as_bytes()), value);
    for text in ["{", "1 2", "nul", "\"\\ud800\"", " ", "01", "NaN", "{\"a\":1,}"] {
        assert_eq!(read(text.as_bytes()), json!(text));
    }
}
