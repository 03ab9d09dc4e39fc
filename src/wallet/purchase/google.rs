//! Google Play's purchases: its Developer API is asked about the token that the app got, in the name
//! of a service account.
//!
//! # Failure behavior
//!
//! Everything that is asked for one purchase ends within [`WITHIN`]. What Google says of the purchase
//! is about the purchase; anything else (no connection, a server error, credentials that it refuses,
//! an answer that can't be read) is [`Unverified::Unavailable`] and a warning in the log. The URL has
//! the token in it, so neither it nor an error of the HTTP client is ever logged.

#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::{
    Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    redirect,
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tokio::{sync::Mutex, time::timeout};
use url::Url;

use super::{Owner, Products, Provider, Record, Unverified, Verified};
use crate::{
    clock::{Clock, Time},
    wallet::Payment,
};

/// What may be asked in the name of the service account.
const SCOPE: &str = "https://www.googleapis.com/auth/androidpublisher";

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const WITHIN: Duration = Duration::from_secs(8);

/// Most that is read of an answer; a purchase's has about 1 kB.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Longest purchase token; Google's have about 150 characters.
const MAX_TOKEN_BYTES: usize = 2048;

/// For how long an assertion is good: the longest that Google takes.
const ASSERTED_FOR: Duration = Duration::from_secs(60 * 60);

/// How long before its end an access token is not used any more.
const SPARE: Duration = Duration::from_secs(60);

/// What it takes to ask about purchases of one app.
#[derive(Clone)]
pub struct Settings {
    pub package: String,
    pub api_base: Url,
    pub account: ServiceAccount,
    /// Whether purchases of licensed testers, who pay nothing, are taken too.
    pub allow_test: bool,
}

/// In whose name Google is asked.
#[derive(Clone)]
pub struct ServiceAccount {
    email: String,
    key: Arc<EncodingKey>,
    token_uri: Url,
}

impl ServiceAccount {
    /// Reads the JSON key file that Google makes for a service account. `check_url` reads a web
    /// address.
    ///
    /// Errors: what is wrong with it, without anything of it.
    pub fn read(
        json: &str,
        check_url: fn(&str) -> Result<Url, &'static str>,
    ) -> Result<ServiceAccount, &'static str> {
        #[derive(Deserialize)]
        struct KeyFile {
            client_email: String,
            private_key: String,
            token_uri: String,
        }
        const WRONG: &str = "must be the JSON key of a service account, with client_email, private_key and \
                             token_uri";
        const NO_KEY: &str = "must have an RSA key as PEM in private_key";
        let KeyFile { client_email, private_key, token_uri } =
            serde_json::from_str(json).map_err(|_| WRONG)?;
        let token_uri = check_url(&token_uri).map_err(|_| "must have a web address in token_uri")?;
        let key = Arc::new(EncodingKey::from_rsa_pem(private_key.as_bytes()).map_err(|_| NO_KEY)?);
        let account = ServiceAccount { email: client_email, key, token_uri };
        // The key is looked into only when it signs.
        account.assertion(Time(0)).ok_or(NO_KEY)?;
        Ok(account)
    }

    /// What Google gives an access token for (RFC 7523).
    fn assertion(&self, now: Time) -> Option<SecretString> {
        #[derive(Serialize)]
        struct Claims<'a> {
            iss: &'a str,
            scope: &'a str,
            aud: &'a str,
            iat: i64,
            exp: i64,
        }
        let claims = Claims {
            iss: &self.email,
            scope: SCOPE,
            aud: self.token_uri.as_str(),
            iat: now.0.div_euclid(1_000),
            exp: now.plus(ASSERTED_FOR).0.div_euclid(1_000),
        };
        let signed = jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &self.key);
        signed.ok().map(SecretString::from)
    }
}

/// A purchase as Google Play tells of it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Purchase {
    /// 0: paid, 1: canceled, 2: pending.
    purchase_state: i64,
    order_id: Option<String>,
    product_id: Option<String>,
    quantity: Option<i64>,
    /// 0: a licensed tester's. A purchase that was paid has none.
    purchase_type: Option<i64>,
    obfuscated_external_account_id: Option<String>,
}

struct AccessToken {
    text: SecretString,
    until: Time,
}

/// Why Google does not tell of a purchase.
enum Silent {
    /// It does not know it.
    Unknown,
    /// It did not take the access token.
    Unauthorized,
    /// Anything else.
    Failed,
}

/// The way to Google.
pub(super) struct Client {
    settings: Settings,
    http: reqwest::Client,
    clock: Clock,
    within: Duration,
    /// The access token, if one is known. Who finds it locked waits for the one that is fetched.
    token: Mutex<Option<Arc<AccessToken>>>,
}

impl Client {
    pub fn new(settings: Settings, clock: Clock) -> Result<Client, reqwest::Error> {
        // The whole process agrees on one provider; whoever installed one before has done our work.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .user_agent(concat!("spell-platform/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .connect_timeout(CONNECT_WITHIN)
            .timeout(WITHIN)
            .build()?;
        Ok(Client { settings, http, clock, within: WITHIN, token: Mutex::new(None) })
    }

    /// Asks about the purchase token, and verifies that it is of the record's purchase and of this
    /// user.
    pub async fn verify(
        &self,
        products: &Products,
        record: &Record,
        token: &str,
        credits: i64,
        owner: Owner<'_>,
    ) -> Result<Verified, Unverified> {
        // Before Google is asked: it need not hear of what gives nothing here.
        products.each(&record.product_id)?;
        let Some(url) = self.url(&record.product_id, token) else {
            return Err(invalid("it is none"));
        };
        let answer = timeout(self.within, self.purchase(url)).await.unwrap_or(Err(Silent::Failed));
        let bought = answer.map_err(|silent| match silent {
            Silent::Unknown => invalid("Google Play knows no such purchase of this product"),
            Silent::Unauthorized | Silent::Failed => Unverified::Unavailable(Provider::Google),
        })?;
        self.judge(bought, products, record, credits, owner)
    }

    fn judge(
        &self,
        bought: Purchase,
        products: &Products,
        record: &Record,
        credits: i64,
        owner: Owner<'_>,
    ) -> Result<Verified, Unverified> {
        match bought.purchase_state {
            0 => {}
            1 => return Err(invalid("the purchase was canceled")),
            2 => return Err(invalid("the purchase is not paid yet")),
            _ => return Err(invalid("the purchase is in a state that is not known")),
        }
        match bought.purchase_type {
            // Beside what was paid: a promotion code, or a reward for watching an advertisement, which
            // the app's owner has given out.
            None | Some(1 | 2) => {}
            Some(0) if self.settings.allow_test => {}
            Some(0) => return Err(invalid("the purchase is a tester's, who paid nothing")),
            Some(_) => return Err(invalid("the purchase is of a type that is not known")),
        }
        if bought.obfuscated_external_account_id.is_some_and(|of| !is_of(&of, owner)) {
            return Err(invalid("the purchase is another user's"));
        }
        let Some(order) = bought.order_id.filter(|order| !order.is_empty()) else {
            return Err(invalid("the purchase has no order"));
        };
        let product = bought.product_id.unwrap_or_else(|| record.product_id.clone());
        for (field, of, says) in
            [("transactionId", &order, &record.transaction_id), ("productId", &product, &record.product_id)]
        {
            if of != says {
                return Err(Unverified::Mismatch(format!(
                    "The purchase token's `{field}` is `{of}`, not `{says}`."
                )));
            }
        }
        let quantity = bought.quantity.unwrap_or(1);
        if quantity < 1 {
            return Err(invalid("the purchase has no quantity"));
        }
        let credits = products.credits(&product, quantity, credits)?;
        Ok(Verified {
            transaction_id: order,
            product_id: product,
            verified_by: Provider::Google,
            credits,
            payment: Payment::default(),
            amount_cents: 0,
        })
    }

    /// Where Google tells of the purchase; `None` for a token that is none of Google's.
    fn url(&self, product: &str, token: &str) -> Option<Url> {
        // Of dots alone it would name another path.
        let may_be_token = token.len() <= MAX_TOKEN_BYTES
            && token.bytes().all(|byte| byte.is_ascii_graphic())
            && token.bytes().any(|byte| byte.is_ascii_alphanumeric());
        let mut url = self.settings.api_base.clone();
        let package = self.settings.package.as_str();
        url.path_segments_mut().ok()?.pop_if_empty().extend([
            "androidpublisher",
            "v3",
            "applications",
            package,
            "purchases",
            "products",
            product,
            "tokens",
            token,
        ]);
        may_be_token.then_some(url)
    }

    /// Consumes a purchase that was booked: until somebody does, Google sells no second one, and pays this one
    /// back after three days. Whether it is done; the app can do it as well.
    pub async fn consume(&self, product: &str, token: &str) -> bool {
        let Some(url) = self.url(product, &format!("{token}:consume")) else { return false };
        let consumed = timeout(self.within, async {
            let token = self.token().await.ok()?;
            let request = self.http.post(url).bearer_auth(token.text.expose_secret());
            let request = request.header(CONTENT_LENGTH, 0);
            let response = request.send().await.map_err(|error| unreached(&error)).ok()?;
            Some(response.status().as_u16())
        });
        let status = consumed.await.unwrap_or(None);
        let done = matches!(status, Some(200 | 204));
        if !done {
            tracing::warn!(?status, "Google Play did not consume a purchase that was booked");
        }
        done
    }

    async fn purchase(&self, url: Url) -> Result<Purchase, Silent> {
        let token = self.token().await?;
        match self.ask(&url, &token).await {
            Err(Silent::Unauthorized) => {}
            answer => return answer,
        }
        // Taken back before its time: another one may do.
        self.token.lock().await.take_if(|known| Arc::ptr_eq(known, &token));
        let token = self.token().await?;
        let answer = self.ask(&url, &token).await;
        if let Err(Silent::Unauthorized) = answer {
            tracing::warn!("Google Play does not take the access tokens of GOOGLE_PLAY_CREDENTIALS");
        }
        answer
    }

    async fn ask(&self, url: &Url, token: &AccessToken) -> Result<Purchase, Silent> {
        let request = self.http.get(url.clone()).bearer_auth(token.text.expose_secret());
        let response = request.send().await.map_err(|error| unreached(&error))?;
        match response.status().as_u16() {
            200 => read(response).await,
            400 | 404 | 410 => Err(Silent::Unknown),
            401 => Err(Silent::Unauthorized),
            status => {
                tracing::warn!(status, "Google Play did not tell of a purchase");
                Err(Silent::Failed)
            }
        }
    }

    /// An access token: the one that is known, for as long as it is good, or a new one.
    async fn token(&self) -> Result<Arc<AccessToken>, Silent> {
        let mut known = self.token.lock().await;
        let now = self.clock.now();
        if let Some(token) = known.as_ref().filter(|token| now < token.until) {
            return Ok(token.clone());
        }
        let fetched = Arc::new(self.fetch_token(now).await?);
        *known = Some(fetched.clone());
        Ok(fetched)
    }

    async fn fetch_token(&self, now: Time) -> Result<AccessToken, Silent> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: u64,
        }
        let account = &self.settings.account;
        let assertion = account.assertion(now).ok_or(Silent::Failed)?;
        let form = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"),
            ("assertion", assertion.expose_secret()),
        ];
        let body = serde_urlencoded::to_string(form).map_err(|_| Silent::Failed)?;
        let request = self.http.post(account.token_uri.clone()).body(body);
        let request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
        let response = request.send().await.map_err(|error| unreached(&error))?;
        let status = response.status().as_u16();
        if status != 200 {
            tracing::warn!(status, "Google gives no access token for GOOGLE_PLAY_CREDENTIALS");
            return Err(Silent::Failed);
        }
        let Granted { access_token, expires_in } = read(response).await?;
        let until = now.plus(Duration::from_secs(expires_in).saturating_sub(SPARE));
        Ok(AccessToken { text: access_token.into(), until })
    }
}

/// Whether the app named this owner when it began the purchase. A user is named as such or, since Google
/// wants nothing there that says who it is, by the SHA-256 in hexadecimal; one whose name could be an
/// account's id only by the latter, since as such it names the account.
fn is_of(named: &str, owner: Owner<'_>) -> bool {
    match owner {
        Owner::Account(id) => named == id,
        Owner::User(user) => {
            (named == user && !user.starts_with("acct_")) || named == hex::encode(Sha256::digest(user))
        }
    }
}

fn invalid(why: &str) -> Unverified {
    Unverified::Invalid(format!("The purchase token is not taken: {why}."))
}

/// Logs that Google was not reached; what the client says of it has the URL in it.
fn unreached(error: &reqwest::Error) -> Silent {
    let what = match (error.is_timeout(), error.is_connect()) {
        (true, _) => "it took too long",
        (_, true) => "no connection could be made",
        _ => "the connection broke off",
    };
    tracing::warn!(what, "Google Play could not be asked about a purchase");
    Silent::Failed
}

/// The answer's JSON.
async fn read<T: DeserializeOwned>(mut response: Response) -> Result<T, Silent> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreached(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_ANSWER_BYTES {
            tracing::warn!("Google answered more than is read");
            return Err(Silent::Failed);
        }
    }
    serde_json::from_slice(&body).map_err(|_| {
        tracing::warn!("Google answered in a way that is not understood");
        Silent::Failed
    })
}
