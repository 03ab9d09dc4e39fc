//! The environment, read once at the start into a [`Config`] that is right or refused.
//!
//! # Failure behavior
//!
//! Every variable that can't be parsed is reported, by name and with what is wrong, in one go; its
//! value is not repeated, since it may be a secret.

use std::{fmt, net::IpAddr, time::Duration};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use url::Url;

use crate::{
    identity::{jwt, key},
    money::{NANOS_PER_CENT, Nanos},
    payment::signature::Keys,
    plan, retention,
    wallet::purchase::settings::{self as purchase, Purchases},
};

/// The variables as they stand, before anything is made of them. An empty one counts as absent.
#[derive(Deserialize, Default)]
struct Environment {
    database_url: Option<String>,
    redis_url: Option<String>,
    stripe_secret_key: Option<String>,
    stripe_webhook_secret: Option<String>,
    stripe_api_base: Option<String>,
    billing_plan_default: Option<String>,
    billing_currency: Option<String>,
    credit_price_cents: Option<String>,
    public_url: Option<String>,
    cost_per_cast_cents: Option<String>,
    rate_limit_per_minute: Option<String>,
    rate_limit_anon_per_minute: Option<String>,
    trusted_proxies: Option<String>,
    max_body_bytes: Option<String>,
    service_token: Option<String>,
    payment_webhook_public_key: Option<String>,
    jwt_secret: Option<String>,
    jwt_public_key: Option<String>,
    jwks_url: Option<String>,
    jwt_issuer: Option<String>,
    jwt_audience: Option<String>,
    upstream_allow_private: Option<String>,
    allow_wallet_reset: Option<String>,
    metrics_per_user: Option<String>,
    audit_interval_seconds: Option<String>,
    retention_days: Option<String>,
    bootstrap_api_key: Option<String>,
    host: Option<String>,
    port: Option<String>,
    rust_log: Option<String>,
    #[serde(flatten)]
    purchases: purchase::Variables,
}

/// What the process runs with.
pub struct Config {
    /// `sqlite:PATH` or `postgres://…`.
    pub database_url: SecretString,
    /// Where rates are counted for all replicas; `None`: in this process.
    pub redis_url: Option<SecretString>,
    /// What a cast costs whose spell states no price.
    pub cost_per_cast: Nanos,
    pub rate_limit_per_minute: u32,
    pub rate_limit_anon_per_minute: u32,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    pub max_body_bytes: usize,
    /// Any of them, as `X-Internal-Key`, is an admin.
    pub service_tokens: Vec<SecretString>,
    /// By any of them the payment service signs what it tells. None: it is believed by the service key alone.
    pub payment_webhook_keys: Keys,
    /// Which tokens of other services' users are taken.
    pub jwt: jwt::Settings,
    /// Whether spells may call private and loopback addresses.
    pub upstream_allow_private: bool,
    /// Whether an admin may empty wallets.
    pub allow_wallet_reset: bool,
    /// Whether each user's quota has a series of its own in the metrics.
    pub metrics_per_user: bool,
    /// How often the server audits its books; `None`: never by itself.
    pub audit_every: Option<Duration>,
    /// After how many whole days casts, holds, their lines and events' bodies leave; `None`: never.
    pub retention_days: Option<u16>,
    pub bootstrap_api_key: Option<SecretString>,
    pub host: IpAddr,
    pub port: u16,
    pub log_filter: EnvFilter,
    pub billing: Billing,
    pub purchases: Purchases,
}

/// How plans and credits are sold.
pub struct Billing {
    /// Without it nothing can be bought: checkout and portal are switched off.
    pub secret_key: Option<SecretString>,
    /// Without one, Stripe's events are not believed. Any of them will do.
    pub webhook_secrets: Vec<SecretString>,
    /// Where Stripe is; `None`: where it always is.
    pub api_base: Option<Url>,
    /// The plan of accounts without a subscription.
    pub default_plan: String,
    /// In lower case, as Stripe writes it.
    pub currency: String,
    /// What a credit costs, and how much it pays for.
    pub credit_price: Nanos,
    /// Where people reach this server.
    pub public_url: Url,
}

impl Billing {
    /// The variables without which a part of billing is switched off.
    pub fn missing(&self) -> Vec<&'static str> {
        let key = self.secret_key.is_none().then_some("STRIPE_SECRET_KEY");
        let webhook = self.webhook_secrets.is_empty().then_some("STRIPE_WEBHOOK_SECRET");
        key.into_iter().chain(webhook).collect()
    }
}

/// Everything that is wrong with the environment: a line for each variable.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads the process's environment.
    ///
    /// Errors: every variable that can't be parsed, by name.
    pub fn from_env() -> Result<Config, ConfigError> {
        // A variable that is not UTF-8 would stop envy at all others; name it instead.
        let mut problems = Vec::new();
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            match value.into_string() {
                Ok(value) => Some((name, value)),
                Err(_) => {
                    problems.push(name);
                    None
                }
            }
        });
        let config = Config::from_variables(variables.collect::<Vec<_>>());
        let unreadable = problems.into_iter().filter(|name| Environment::KNOWN.contains(&name.as_str()));
        let unreadable: Vec<String> = unreadable.map(|name| format!("{name}: is not UTF-8")).collect();
        match (config, unreadable.is_empty()) {
            (config, true) => config,
            (Ok(_), false) => Err(ConfigError(unreadable)),
            (Err(ConfigError(others)), false) => Err(ConfigError([unreadable, others].concat())),
        }
    }

    fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Config, ConfigError> {
        let variables = variables.into_iter().filter(|(_, value)| !value.trim().is_empty());
        let given: Environment =
            envy::from_iter(variables).map_err(|problem| ConfigError(vec![problem.to_string()]))?;
        let mut problems = Problems(Vec::new());
        let host = problems.read("HOST", given.host, IpAddr::from([127, 0, 0, 1]), |text| match text {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            text => text.trim_matches(['[', ']']).parse().map_err(|_| "must be an IP address"),
        });
        let port = problems.read("PORT", given.port, 8080, |text| {
            text.parse().map_err(|_| "must be a port number from 0 to 65535")
        });
        let billing = Billing {
            secret_key: problems.read("STRIPE_SECRET_KEY", given.stripe_secret_key, None, |text| match text
                .bytes()
                .all(|byte| byte.is_ascii_graphic())
            {
                true => Ok(Some(SecretString::from(text))),
                false => Err("must be visible ASCII characters"),
            }),
            webhook_secrets: problems.read(
                "STRIPE_WEBHOOK_SECRET",
                given.stripe_webhook_secret,
                Vec::new(),
                secrets,
            ),
            api_base: problems.read("STRIPE_API_BASE", given.stripe_api_base, None, |text| {
                let url = web_url(text)?;
                match url.path().trim_end_matches('/').ends_with("/v1") {
                    true => Err("must not end in /v1, which is added to it"),
                    false => Ok(Some(url)),
                }
            }),
            default_plan: problems.read(
                "BILLING_PLAN_DEFAULT",
                given.billing_plan_default,
                "free".to_owned(),
                |text| match plan::could_be_code(text) {
                    true => Ok(text.to_owned()),
                    false => Err("must be a plan's code"),
                },
            ),
            currency: problems.read("BILLING_CURRENCY", given.billing_currency, "usd".to_owned(), |text| {
                plan::currency(text).ok_or("must be the three letters of a currency, such as usd")
            }),
            credit_price: problems.read(
                "CREDIT_PRICE_CENTS",
                given.credit_price_cents,
                Nanos(NANOS_PER_CENT),
                |text| match text.parse() {
                    Ok(cents @ 1..=1_000_000) => Ok(Nanos(cents * NANOS_PER_CENT)),
                    _ => Err("must be a whole number of cents from 1 to 1000000"),
                },
            ),
            public_url: problems.read("PUBLIC_URL", given.public_url, own_url(host, port), web_url),
        };
        let jwt = jwt::Settings {
            secret: problems.read("JWT_SECRET", given.jwt_secret, None, |text| {
                match text.starts_with("-----BEGIN") {
                    // By it anybody could sign.
                    true => Err("must be a secret, not a PEM"),
                    false => Ok(Some(SecretString::from(text))),
                }
            }),
            public_key: problems.read("JWT_PUBLIC_KEY", given.jwt_public_key, None, |text| {
                jwt::PublicKey::from_pem(text).map(Some)
            }),
            key_set: problems
                .read("JWKS_URL", given.jwks_url, None, |text| jwt::url_of_key_set(text).map(Some)),
            issuer: given.jwt_issuer.map(|issuer| issuer.trim().to_owned()),
            audience: given.jwt_audience.map(|audience| audience.trim().to_owned()),
        };
        let config = Config {
            billing,
            jwt,
            purchases: given.purchases.read(&mut problems),
            database_url: given.database_url.unwrap_or_else(|| "sqlite:spell-platform.db".to_owned()).into(),
            redis_url: given.redis_url.map(SecretString::from),
            cost_per_cast: problems.read(
                "COST_PER_CAST_CENTS",
                given.cost_per_cast_cents,
                Nanos(10_000_000),
                |text| {
                    let cents = text.parse().map_err(|_| "must be a whole number of cents")?;
                    Nanos::from_cents(cents).ok_or("must be between 0 and 900000000000 cents")
                },
            ),
            rate_limit_per_minute: problems.read(
                "RATE_LIMIT_PER_MINUTE",
                given.rate_limit_per_minute,
                60,
                per_minute,
            ),
            rate_limit_anon_per_minute: problems.read(
                "RATE_LIMIT_ANON_PER_MINUTE",
                given.rate_limit_anon_per_minute,
                10,
                per_minute,
            ),
            trusted_proxies: problems.read("TRUSTED_PROXIES", given.trusted_proxies, Vec::new(), networks),
            max_body_bytes: problems.read("MAX_BODY_BYTES", given.max_body_bytes, 1 << 20, |text| match text
                .parse()
            {
                Ok(bytes @ 1..=1_073_741_824) => Ok(bytes),
                _ => Err("must be a whole number of bytes from 1 to 1073741824"),
            }),
            service_tokens: problems.read("SERVICE_TOKEN", given.service_token, Vec::new(), secrets),
            payment_webhook_keys: problems.read(
                "PAYMENT_WEBHOOK_PUBLIC_KEY",
                given.payment_webhook_public_key,
                Keys::default(),
                Keys::parse,
            ),
            upstream_allow_private: problems.read(
                "UPSTREAM_ALLOW_PRIVATE",
                given.upstream_allow_private,
                false,
                boolean,
            ),
            allow_wallet_reset: problems.read("ALLOW_WALLET_RESET", given.allow_wallet_reset, false, boolean),
            metrics_per_user: problems.read("METRICS_PER_USER", given.metrics_per_user, false, boolean),
            audit_every: problems.read(
                "AUDIT_INTERVAL_SECONDS",
                given.audit_interval_seconds,
                Some(Duration::from_secs(24 * 60 * 60)),
                |text| match text.parse() {
                    Ok(0) => Ok(None),
                    Ok(seconds @ 1..=31_536_000) => Ok(Some(Duration::from_secs(seconds))),
                    _ => Err("must be a whole number of seconds up to 31536000; 0 for never"),
                },
            ),
            retention_days: problems.read("RETENTION_DAYS", given.retention_days, None, |text| {
                match text.parse() {
                    Ok(days @ retention::LEAST_DAYS..=36_500) => Ok(Some(days)),
                    _ => Err("must be a whole number of days from 35 to 36500"),
                }
            }),
            bootstrap_api_key: problems.read("BOOTSTRAP_API_KEY", given.bootstrap_api_key, None, |text| {
                match key::could_be(text) {
                    true => Ok(Some(SecretString::from(text))),
                    false => Err("must be 32 to 1024 printable ASCII characters"),
                }
            }),
            host,
            port,
            log_filter: problems.read("RUST_LOG", given.rust_log, EnvFilter::new("info"), |text| {
                EnvFilter::try_new(text)
                    .map_err(|_| "must be a log filter such as info or spell_platform=debug")
            }),
        };
        if let Err(problem) = crate::store::Db::check_url(config.database_url.expose_secret()) {
            problems.0.push(format!("DATABASE_URL: {problem}"));
        }
        if let Some(url) = &config.redis_url {
            let scheme = Url::parse(url.expose_secret()).map(|url| url.scheme().to_owned());
            if !matches!(scheme.as_deref(), Ok("redis" | "rediss" | "redis+unix" | "unix")) {
                problems.0.push("REDIS_URL: must be a URL that begins with redis:// or rediss://".to_owned());
            }
        }
        match problems.0.is_empty() {
            true => Ok(config),
            false => Err(ConfigError(problems.0)),
        }
    }
}

impl Environment {
    const KNOWN: [&str; 38] = [
        "DATABASE_URL",
        "REDIS_URL",
        "STRIPE_SECRET_KEY",
        "STRIPE_WEBHOOK_SECRET",
        "STRIPE_API_BASE",
        "BILLING_PLAN_DEFAULT",
        "BILLING_CURRENCY",
        "CREDIT_PRICE_CENTS",
        "PUBLIC_URL",
        "COST_PER_CAST_CENTS",
        "RATE_LIMIT_PER_MINUTE",
        "RATE_LIMIT_ANON_PER_MINUTE",
        "TRUSTED_PROXIES",
        "MAX_BODY_BYTES",
        "SERVICE_TOKEN",
        "PAYMENT_WEBHOOK_PUBLIC_KEY",
        "JWT_SECRET",
        "JWT_PUBLIC_KEY",
        "JWKS_URL",
        "JWT_ISSUER",
        "JWT_AUDIENCE",
        "UPSTREAM_ALLOW_PRIVATE",
        "ALLOW_WALLET_RESET",
        "METRICS_PER_USER",
        "AUDIT_INTERVAL_SECONDS",
        "RETENTION_DAYS",
        "BOOTSTRAP_API_KEY",
        "HOST",
        "PORT",
        "RUST_LOG",
        "CREDIT_PRODUCTS",
        "APPLE_ROOT_CERTIFICATES",
        "APPLE_BUNDLE_ID",
        "APPLE_ALLOW_SANDBOX",
        "GOOGLE_PLAY_PACKAGE",
        "GOOGLE_PLAY_CREDENTIALS",
        "GOOGLE_PLAY_API_BASE",
        "GOOGLE_PLAY_ALLOW_TEST",
    ];
}

/// What is wrong with the environment so far.
pub(crate) struct Problems(pub(crate) Vec<String>);

impl Problems {
    /// Notes what is wrong with that variable.
    pub(crate) fn add(&mut self, name: &str, problem: &str) {
        self.0.push(format!("{name}: {problem}"));
    }

    /// The variable's value by `parse`, or `default` where it is absent or, noting the problem, wrong.
    pub(crate) fn read<T>(
        &mut self,
        name: &str,
        given: Option<String>,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> T {
        match given.as_deref().map(str::trim).map(parse) {
            None => default,
            Some(Ok(value)) => value,
            Some(Err(problem)) => {
                self.add(name, problem);
                default
            }
        }
    }
}

pub(crate) fn boolean(text: &str) -> Result<bool, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("must be true or false"),
    }
}

fn per_minute(text: &str) -> Result<u32, &'static str> {
    match text.parse() {
        Ok(number @ 1..=1_000_000_000) => Ok(number),
        _ => Err("must be a whole number from 1 to 1000000000"),
    }
}

fn secrets(text: &str) -> Result<Vec<SecretString>, &'static str> {
    let named = text.split(',').map(str::trim).filter(|secret| !secret.is_empty());
    let secrets: Vec<SecretString> = named.map(SecretString::from).collect();
    match secrets.is_empty() {
        false => Ok(secrets),
        true => Err("must name one (several are separated by commas)"),
    }
}

pub(crate) fn web_url(text: &str) -> Result<Url, &'static str> {
    const WRONG: &str = "must be a URL that begins with https:// or http://, without a query";
    let url = Url::parse(text).map_err(|_| WRONG)?;
    let fits = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    if fits { Ok(url) } else { Err(WRONG) }
}

#[expect(clippy::expect_used, reason = "an address and a port always make a URL")]
fn own_url(host: IpAddr, port: u16) -> Url {
    let address = std::net::SocketAddr::from((host, port));
    Url::parse(&format!("http://{address}")).expect("a URL of an address")
}

fn networks(text: &str) -> Result<Vec<IpNet>, &'static str> {
    let network = |text: &str| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(network)
        .collect::<Result<_, _>>()
        .map_err(|_| "must be IP addresses or networks such as 10.0.0.0/8, separated by commas")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        Config::from_variables(
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        )
    }

    #[test]
    fn without_any_variable_it_runs_on_a_file_on_loopback() {
        let config = config(&[]).unwrap();
        assert_eq!(config.database_url.expose_secret(), "sqlite:spell-platform.db");
        assert_eq!((config.host.to_string(), config.port), ("127.0.0.1".to_owned(), 8080));
        assert_eq!((config.rate_limit_per_minute, config.rate_limit_anon_per_minute), (60, 10));
        assert_eq!(config.cost_per_cast, Nanos(10_000_000));
        assert_eq!(config.retention_days, None, "everything is kept");
        let billing = config.billing;
        assert_eq!(billing.missing(), ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"]);
        assert_eq!((billing.default_plan.as_str(), billing.currency.as_str()), ("free", "usd"));
        assert_eq!(billing.credit_price, Nanos(10_000_000));
        assert_eq!((billing.api_base, billing.public_url.as_str()), (None, "http://127.0.0.1:8080/"));
    }

    #[test]
    fn every_problem_is_reported_at_once_by_name_without_the_value() {
        let wrong = [
            ("DATABASE_URL", "mysql://root:hunter2@db/x"),
            ("REDIS_URL", "hunter2"),
            ("STRIPE_SECRET_KEY", "hunter2\u{e9}"),
            ("STRIPE_WEBHOOK_SECRET", ","),
            ("STRIPE_API_BASE", "https://hunter2.example/v1"),
            ("BILLING_PLAN_DEFAULT", "hunter 2"),
            ("BILLING_CURRENCY", "hunter2"),
            ("CREDIT_PRICE_CENTS", "0"),
            ("PUBLIC_URL", "hunter2"),
            ("COST_PER_CAST_CENTS", "-1"),
            ("RATE_LIMIT_PER_MINUTE", "0"),
            ("RATE_LIMIT_ANON_PER_MINUTE", "many"),
            ("TRUSTED_PROXIES", "hunter2"),
            ("MAX_BODY_BYTES", "1e6"),
            ("SERVICE_TOKEN", " , ,"),
            ("PAYMENT_WEBHOOK_PUBLIC_KEY", "-----BEGIN PUBLIC KEY-----\\nhunter2"),
            ("JWT_SECRET", "-----BEGIN PUBLIC KEY-----hunter2"),
            ("JWT_PUBLIC_KEY", "hunter2"),
            ("JWKS_URL", "http://hunter2.example/keys"),
            ("UPSTREAM_ALLOW_PRIVATE", "perhaps"),
            ("RETENTION_DAYS", "34"),
            ("BOOTSTRAP_API_KEY", "hunter2"),
            ("HOST", "hunter2"),
            ("PORT", "65536"),
            ("RUST_LOG", "a=b=c"),
            ("CREDIT_PRODUCTS", "hunter2"),
            ("APPLE_ROOT_CERTIFICATES", "hunter2"),
            ("APPLE_BUNDLE_ID", "hunter2!"),
            ("APPLE_ALLOW_SANDBOX", "hunter2"),
            ("GOOGLE_PLAY_PACKAGE", "hunter2/"),
            ("GOOGLE_PLAY_CREDENTIALS", "hunter2"),
            ("GOOGLE_PLAY_API_BASE", "hunter2"),
            ("GOOGLE_PLAY_ALLOW_TEST", "hunter2"),
        ];
        let report = config(&wrong).err().unwrap().to_string();
        assert_eq!(report.lines().count(), wrong.len(), "{report}");
        for (name, _) in wrong {
            assert!(report.contains(&format!("{name}: ")), "{name} in {report}");
        }
        assert!(!report.contains("hunter2"), "{report}");
    }

    #[test]
    fn an_empty_variable_counts_as_absent() {
        assert_eq!(config(&[("PORT", " "), ("REDIS_URL", "")]).unwrap().port, 8080);
    }

    #[test]
    fn several_tokens_and_networks_may_be_named() {
        let config = config(&[
            ("SERVICE_TOKEN", "short, the-other-of-two-tokens,"),
            ("TRUSTED_PROXIES", "10.0.0.0/8, ::1"),
        ])
        .unwrap();
        let tokens: Vec<&str> = config.service_tokens.iter().map(|token| token.expose_secret()).collect();
        assert_eq!(tokens, ["short", "the-other-of-two-tokens"]);
        assert_eq!(config.trusted_proxies.len(), 2);
    }

    #[test]
    fn the_first_admins_key_may_be_any_32_printable_characters_or_more() {
        let read = |text: &str| config(&[("BOOTSTRAP_API_KEY", text)]);
        for text in ["correct horse battery staple ~ !!", &"a".repeat(32), &"a".repeat(1_024)] {
            let config = read(&format!(" {text}\n")).unwrap();
            assert_eq!(config.bootstrap_api_key.unwrap().expose_secret(), text);
        }
        for wrong in ["a".repeat(31), "a".repeat(1_025), "é".repeat(32), format!("{0}\t{0}", "a".repeat(20))]
        {
            assert!(read(&wrong).is_err(), "{wrong}");
        }
    }
}
