//! What a limiter on Redis does: one script per request, which compares a counter with its limit and raises it.
//! Redis keeps it in memory alone: a Redis that is restarted has forgotten all of it.
//!
//! All requests share one multiplexed connection; a pool of connections is slower.

use actix_web::{HttpRequest, HttpResponse, web};
use deadpool_redis::redis::{AsyncCommands, Client, Script, aio::MultiplexedConnection};
use serde_json::Value;

use super::{LIMIT, PRICE, account, accounts, serve};
use crate::{
    load::{Measured, Pace, load},
    row::Drift,
};

const SPEND: &str = "
    local spent = tonumber(redis.call('GET', KEYS[1]) or '0')
    if spent + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return false end
    return redis.call('INCRBY', KEYS[1], ARGV[1])";

#[derive(Clone)]
struct Counter {
    connection: MultiplexedConnection,
    /// Its hash is what is sent.
    script: Script,
}

fn key(account: i64) -> String {
    format!("floor:{account}")
}

pub async fn measure(url: &str, pace: Pace) -> (Measured, Drift) {
    let client = Client::open(url).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    let before: Option<i64> = connection.get(key(1)).await.unwrap();
    let counter = Counter { connection: connection.clone(), script: Script::new(SPEND) };
    let serving = serve(move |routes| {
        routes.app_data(web::Data::new(counter.clone())).route("/v1/cast", web::post().to(cast));
    });
    let measured = load(&[serving.address], &accounts(1), pace).await;
    serving.handle.stop(false).await;
    let after: i64 = connection.get(key(1)).await.unwrap();
    let drift = Drift::between((after - before.unwrap_or(0)) / PRICE, &measured);
    (measured, drift)
}

async fn cast(counter: web::Data<Counter>, request: HttpRequest, body: web::Json<Value>) -> HttpResponse {
    let Some(account) = account(&request) else { return HttpResponse::Unauthorized().finish() };
    let mut connection = counter.connection.clone();
    let mut call = counter.script.key(key(account));
    let spent = call.arg(PRICE).arg(LIMIT).invoke_async::<Option<i64>>(&mut connection).await;
    match spent {
        Ok(Some(_)) => HttpResponse::Ok().json(body),
        Ok(None) => HttpResponse::PaymentRequired().finish(),
        Err(error) => HttpResponse::ServiceUnavailable().body(error.to_string()),
    }
}
