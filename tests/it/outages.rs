//! The database or Redis goes away, behind a proxy, and comes back: 503 while what can't be checked
//! isn't spent, no difference without Redis, and nobody has to restart anything.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use url::Url;

use crate::harness::{
    Backend, Client, Options, Proxy, Server, Stopwatch, all_casts, both, eventually, names, postgres,
    redis_url, usage_cents,
};

/// The bound of the contract for an answer without the database, and some slack for the machine.
const REFUSED_WITHIN: Duration = Duration::from_millis(3_700);
const HEALED_WITHIN: Duration = Duration::from_secs(15);

#[derive(Clone, Copy)]
enum Outage {
    Cut,
    Hang,
}

impl Outage {
    async fn strike(self, proxy: &Proxy) {
        match self {
            Outage::Cut => proxy.cut().await,
            Outage::Hang => proxy.hang().await,
        }
    }
}

/// Until casts succeed, one after the other: the first that does may have been lucky with its
/// connection.
async fn until_it_casts(client: &Client) {
    eventually(HEALED_WITHIN, "casts succeed again", || async {
        for _ in 0..20 {
            let answer = client.echo().await;
            if answer.status != 200 {
                answer.expect_error(503);
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// Every answered cast is in the books, once; what was spent is what the books hold.
async fn assert_books_are_exact(client: &Client, answered: &[String]) {
    eventually(Duration::from_secs(60), "nothing is held", || async {
        (client.usage("").await["reserved_cents"] == 0).then_some(())
    })
    .await;
    let casts = all_casts(client).await;
    let ids = names(&casts, "id");
    let booked: HashSet<&String> = ids.iter().collect();
    assert_eq!(booked.len(), ids.len(), "a cast is in the books twice");
    for id in answered {
        assert!(booked.contains(id), "{id} was answered and is not in the books");
    }
    let completed = casts.iter().filter(|cast| cast["status"] == "COMPLETED").count() as i64;
    assert_eq!(usage_cents(&client.usage("").await), (completed, completed, 0));
}

postgres!(without_postgres_casts_are_503_within_3_seconds_and_it_heals);
async fn without_postgres_casts_are_503_within_3_seconds_and_it_heals(backend: Backend) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let server = Server::start(options).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 1_000_000).await;
    let mut answered = Vec::new();
    for outage in [Outage::Cut, Outage::Hang, Outage::Cut] {
        answered.push(customer.echo().await.expect(200)["id"].as_str().unwrap().to_owned());
        outage.strike(&proxy).await;
        // At first, and when it is known to be away.
        for _ in 0..2 {
            let watch = Stopwatch::start();
            customer.echo().await.expect_error(503);
            watch.assert_under(REFUSED_WITHIN, "a cast without the database");
        }
        assert_eq!(server.anonymous().get("/healthz").await.status, 200);
        let watch = Stopwatch::start();
        let ready = server.anonymous().get("/ready").await;
        assert_eq!(ready.status, 503, "{ready}");
        assert!(ready.text.contains("database"), "the part is not named: {ready}");
        watch.assert_under(REFUSED_WITHIN, "/ready without the database");
        for path in ["/v1/keys", "/v1/casts", "/v1/budgets/usage"] {
            let watch = Stopwatch::start();
            customer.get(path).await.expect_error(503);
            watch.assert_under(REFUSED_WITHIN, path);
        }
        proxy.restore().await;
        until_it_casts(&customer).await;
        eventually(HEALED_WITHIN, "/ready is 200 again", || async {
            (server.anonymous().get("/ready").await.status == 200).then_some(())
        })
        .await;
        assert_books_are_exact(&customer, &answered).await;
    }
}

postgres!(many_casts_at_once_without_postgres_are_all_answered_in_time);
async fn many_casts_at_once_without_postgres_are_all_answered_in_time(backend: Backend) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let server = Server::start(options).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    for outage in [Outage::Hang, Outage::Cut] {
        outage.strike(&proxy).await;
        let client = customer.client();
        crate::harness::storm(64, 192, move |_| {
            let client = client.clone();
            async move {
                let watch = Stopwatch::start();
                client.echo().await.expect_error(503);
                watch.assert_under(REFUSED_WITHIN, "one of 64 casts without the database");
            }
        })
        .await;
        proxy.restore().await;
        until_it_casts(&customer).await;
    }
}

postgres!(under_load_an_outage_loses_and_doubles_nothing);
async fn under_load_an_outage_loses_and_doubles_nothing(backend: Backend) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let server = Server::start(options).await;
    let customer = server.customer("acme").await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..16)
        .map(|_| {
            let (client, answered, stop) = (customer.client(), answered.clone(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.echo().await;
                    match answer.status {
                        200 => {
                            answered.lock().unwrap().push(answer.body()["id"].as_str().unwrap().to_owned())
                        }
                        _ => drop(answer.expect_error(503)),
                    }
                }
            })
        })
        .collect();
    let count = || answered.lock().unwrap().len();
    for outage in [Outage::Cut, Outage::Hang, Outage::Cut, Outage::Hang] {
        let before = count();
        eventually(HEALED_WITHIN, "casts succeed", || async { (count() > before + 50).then_some(()) }).await;
        outage.strike(&proxy).await;
        eventually(REFUSED_WITHIN + HEALED_WITHIN, "casts are refused", || async {
            (customer.echo().await.status == 503).then_some(())
        })
        .await;
        proxy.restore().await;
    }
    let before = count();
    eventually(HEALED_WITHIN, "casts succeed at last", || async { (count() > before + 50).then_some(()) })
        .await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    let answered = answered.lock().unwrap().clone();
    assert_books_are_exact(&customer, &answered).await;
}

postgres!(a_server_that_starts_without_postgres_serves_once_it_is_there);
async fn a_server_that_starts_without_postgres_serves_once_it_is_there(backend: Backend) {
    for outage in [Outage::Cut, Outage::Hang] {
        let proxy = Proxy::to(backend.address()).await;
        outage.strike(&proxy).await;
        let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
        let mut server = Server::spawn(options);
        let anonymous = server.anonymous().clone();
        eventually(Duration::from_secs(20), "it lives without its database", || async {
            match anonymous.call("GET", "/healthz").try_send().await {
                Ok(answer) => (answer.status == 200).then_some(()),
                Err(_) => None,
            }
        })
        .await;
        assert_eq!(anonymous.get("/ready").await.status, 503);
        let watch = Stopwatch::start();
        server.admin().echo().await.expect_error(503);
        watch.assert_under(REFUSED_WITHIN, "a cast before there ever was a database");
        proxy.restore().await;
        eventually(Duration::from_secs(30), "it is ready", || async {
            (anonymous.get("/ready").await.status == 200).then_some(())
        })
        .await;
        let customer = server.customer("acme").await;
        customer.echo().await.expect(200);
        assert!(server.terminate(Duration::from_secs(15)).await.success());
    }
}

/// `REDIS_URL` through a proxy on that port.
fn redis_through(port: u16) -> String {
    let mut url = Url::parse(&redis_url()).unwrap();
    url.set_host(Some("127.0.0.1")).unwrap();
    url.set_port(Some(port)).unwrap();
    url.into()
}

async fn proxy_to_redis() -> Proxy {
    let url = Url::parse(&redis_url()).unwrap();
    Proxy::to((url.host_str().unwrap().to_owned(), url.port().unwrap_or(6379))).await
}

/// Nobody waits for a Redis that is away: not regularly, and not long now and then.
#[track_caller]
fn assert_not_slowed(mut casts: Vec<Duration>) {
    casts.sort_unstable();
    let (median, longest) = (casts[casts.len() / 2], casts[casts.len() - 1]);
    assert!(median < Duration::from_millis(250), "a cast without Redis took {median:?} in the median");
    assert!(longest < Duration::from_secs(1), "a cast without Redis took {longest:?}");
}

both!(without_redis_casts_go_on_and_are_no_slower);
async fn without_redis_casts_go_on_and_are_no_slower(backend: Backend) {
    let proxy = proxy_to_redis().await;
    let server = Server::start(Options::on(&backend).var("REDIS_URL", redis_through(proxy.port()))).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    let mut errors = server.metric("redis_errors_total").await;
    for outage in [Outage::Cut, Outage::Hang] {
        outage.strike(&proxy).await;
        let mut took = Vec::new();
        for _ in 0..40 {
            let watch = Stopwatch::start();
            customer.echo().await.expect(200);
            took.push(watch.elapsed());
        }
        assert_not_slowed(took);
        let now = server.metric("redis_errors_total").await;
        assert!(now > errors, "{now} errors after {errors}");
        // It is told, and is no failure.
        let ready = server.anonymous().get("/ready").await;
        assert!(ready.status == 200 && ready.text.contains("redis"), "{ready}");
        proxy.restore().await;
        // Once it is asked again, nothing is counted any more.
        errors = eventually(HEALED_WITHIN, "Redis is used again", || async {
            let before = server.metric("redis_errors_total").await;
            for _ in 0..20 {
                customer.echo().await.expect(200);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            (server.metric("redis_errors_total").await == before).then_some(before)
        })
        .await;
    }
    assert!(usage_cents(&customer.usage("").await).0 > 80);
}

both!(a_server_that_starts_without_redis_serves_at_once);
async fn a_server_that_starts_without_redis_serves_at_once(backend: Backend) {
    for outage in [Outage::Cut, Outage::Hang] {
        let proxy = proxy_to_redis().await;
        outage.strike(&proxy).await;
        let options = Options::on(&backend).var("REDIS_URL", redis_through(proxy.port()));
        let server = Server::start(options.var("RATE_LIMIT_PER_MINUTE", 5)).await;
        let customer = server.customer("acme").await;
        let mut statuses = Vec::new();
        let mut took = Vec::new();
        for _ in 0..8 {
            let watch = Stopwatch::start();
            statuses.push(customer.echo().await.status);
            took.push(watch.elapsed());
        }
        assert_not_slowed(took);
        // The process limits in Redis' place.
        assert_eq!(statuses[..5], [200; 5], "{statuses:?}");
        assert_eq!(statuses.last(), Some(&429), "{statuses:?}");
        assert!(server.metric("redis_errors_total").await > 0.0);
    }
}

both!(after_an_outage_redis_counts_for_all_again);
async fn after_an_outage_redis_counts_for_all_again(backend: Backend) {
    let proxy = proxy_to_redis().await;
    let options = Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 10);
    let cut_off = Server::start(options.clone().var("REDIS_URL", redis_through(proxy.port()))).await;
    let other = Server::start(options.with_redis()).await;
    proxy.cut().await;
    let customer = cut_off.customer("acme").await;
    customer.echo().await.expect(200);
    proxy.restore().await;
    // A new key per attempt: what the other process lets in is missing here, once Redis is shared.
    eventually(HEALED_WITHIN, "both count in Redis", || async {
        let key = customer.another_key(&cut_off.admin(), json!({})).await;
        let elsewhere = key.at(other.anonymous());
        while elsewhere.echo().await.status == 200 {}
        (key.echo().await.status == 429).then_some(())
    })
    .await;
}
