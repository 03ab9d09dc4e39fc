//! Where people are sent back to from Stripe's pages.

use std::net::{Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// The longest that is taken.
const MAX_BYTES: usize = 2_048;

/// Takes an address as Stripe will be told it: https, or http on loopback. It goes on as it was
/// given, since Stripe fills in `{CHECKOUT_SESSION_ID}`, which a URL's normal form would encode.
///
/// Errors: a sentence about the `field`.
pub fn checked(field: &str, text: String) -> Result<String, String> {
    match could_be(&text) {
        true => Ok(text),
        false => Err(format!(
            "`{field}` must be an address that begins with https://, or with http:// on loopback, of \
             {MAX_BYTES} bytes at most, without a user name."
        )),
    }
}

fn could_be(text: &str) -> bool {
    // A browser forgives what a parser might read in another way: none of it is needed here.
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != '\\';
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Ok(url) = Url::parse(text) else { return false };
    text.len() <= MAX_BYTES
        && text.chars().all(plain)
        && !authority.is_empty()
        && !authority.contains('@')
        && scheme.eq_ignore_ascii_case(url.scheme())
        && match url.scheme() {
            "https" => url.has_host(),
            "http" => url.host().is_some_and(is_loopback),
            _ => false,
        }
}

fn is_loopback(host: Host<&str>) -> bool {
    match host {
        Host::Domain(name) => name == "localhost",
        Host::Ipv4(address) => Ipv4Addr::is_loopback(&address),
        Host::Ipv6(address) => Ipv6Addr::is_loopback(&address),
    }
}

/// The page of ours to which Checkout returns.
pub fn after_checkout(public_url: &Url, bought: bool) -> String {
    let outcome = match bought {
        true => "success&session_id={CHECKOUT_SESSION_ID}",
        false => "canceled",
    };
    format!("{}/billing/return?checkout={outcome}", public_url.as_str().trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn https_anywhere_and_http_on_loopback() {
        for good in [
            "https://example.com",
            "HTTPS://example.com/a?b=c&session={CHECKOUT_SESSION_ID}#d",
            "https://user-pages.example/@someone?mail=a@b",
            "https://münchen.example/",
            "http://localhost:3000/back",
            "http://127.0.0.1",
            "http://127.9.9.9:8080/",
            "http://[::1]:8080/x",
        ] {
            assert_eq!(checked("success_url", good.to_owned()).as_deref(), Ok(good));
        }
        for bad in [
            "",
            "example.com",
            "/relative",
            "//example.com",
            "http://example.com",
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://[::2]",
            "http://[::ffff:10.0.0.1]",
            "ftp://example.com",
            "javascript:alert(1)//",
            "javascript://example.com/%0aalert(1)",
            "data:text/html,x",
            "https://",
            "https:///path",
            "https:example.com",
            "https:/example.com",
            "https:\\\\example.com",
            "https://example.com\\@evil.example",
            "https://user@example.com",
            "https://user:password@example.com",
            "https://@example.com",
            "https://example.com:99999",
            " https://example.com",
            "https://example.com/a b",
            "https://example.com/a\nb",
            "https://exam\tple.com/",
            "https://example.com/\u{0}",
            "https://example.com/\u{2028}",
        ] {
            let problem = checked("cancel_url", bad.to_owned()).unwrap_err();
            assert!(problem.contains("`cancel_url`"), "{bad:?}");
        }
        let long = |bytes: usize| format!("https://e.example/{}", "a".repeat(bytes - 18));
        assert!(checked("x", long(2_048)).is_ok() && checked("x", long(2_049)).is_err());
    }

    #[test]
    fn our_own_page_lies_under_the_public_url() {
        let at = |url: &str, bought| after_checkout(&url.parse().unwrap(), bought);
        assert_eq!(
            at("https://pay.example", true),
            "https://pay.example/billing/return?checkout=success&session_id={CHECKOUT_SESSION_ID}"
        );
        assert_eq!(
            at("https://pay.example/a/b/", false),
            "https://pay.example/a/b/billing/return?checkout=canceled"
        );
    }
}
