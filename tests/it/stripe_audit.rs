//! `spell-platform audit` against Stripe's books: after all that can be bought, with each difference planted,
//! and where Stripe can't be read. And the same by servers themselves.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{Backend, Client, Customer, Options, Proxy, Server, both, eventually, unix_now},
    stripe_events::{credits, plan_and_status},
    stripe_server::SECRET_KEY,
    stripe_stand_in::StandIn,
};

/// A server, and a Stripe that has books of its own.
struct Shop {
    server: Server,
    stripe: StandIn,
}

impl Shop {
    async fn open(backend: &Backend) -> Shop {
        Shop::open_with(Options::on(backend)).await
    }

    async fn open_with(options: Options) -> Shop {
        let stripe = StandIn::start();
        let server = Server::start(stripe.sells_for(options)).await;
        stripe.tells(&server).await;
        let plan = json!({"name": "Pro", "price_cents": 1_000, "included_credits": 40});
        server.admin().put("/v1/plans/pro", plan).await.expect(200);
        Shop { server, stripe }
    }

    async fn customer(&self) -> Customer {
        self.server.customer("acme").await
    }

    /// Opens a Checkout; its session.
    async fn opens(&self, buyer: &Client, order: Value) -> String {
        let opened = buyer.post("/v1/billing/checkout", order).await.expect(200);
        opened["session_id"].as_str().unwrap().to_owned()
    }

    /// Opens a Checkout and pays it; the session.
    async fn buys(&self, buyer: &Client, order: Value) -> Value {
        let session = self.opens(buyer, order).await;
        self.stripe.happens(&format!("sessions/{session}/pay"), json!({})).await
    }

    async fn subscription(&self, id: &Value, what: &str) -> Value {
        self.stripe.happens(&format!("subscriptions/{}/{what}", id.as_str().unwrap()), json!({})).await
    }

    /// Runs an audit, and gives what it printed if it ended with that code.
    async fn audit(&self, arguments: &[&str], code: i32) -> String {
        let output = self.server.operate(&[&["audit"], arguments].concat()).await;
        let (printed, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{printed}{complained}");
        assert!(!printed.contains(SECRET_KEY) && !complained.contains(SECRET_KEY), "{printed}{complained}");
        printed.into_owned()
    }

    /// What an audit found at Stripe as (subject, what, stored, expected, open), and its summary.
    async fn found(&self, arguments: &[&str], code: i32) -> (Vec<[String; 5]>, Value) {
        let printed = self.audit(&[&["--json"], arguments].concat(), code).await;
        let mut lines: Vec<Value> = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let summary = lines.pop().unwrap();
        let field = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let row = |line| ["subject", "what", "stored", "expected", "open"].map(|name| field(line, name));
        (lines.iter().map(row).collect(), summary)
    }
}

fn row(subject: &str, what: &str, stored: &str, expected: &str, open: &str) -> [String; 5] {
    [subject, what, stored, expected, open].map(str::to_owned)
}

fn sorted(mut rows: Vec<[String; 5]>) -> Vec<[String; 5]> {
    rows.sort();
    rows
}

fn named<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("no {field} in {object}"))
}

fn purchase_of(session: &Value) -> String {
    format!("purchase/{}", named(session, "client_reference_id"))
}

both!(after_a_whole_life_both_books_agree);
async fn after_a_whole_life_both_books_agree(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let stripe = &shop.stripe;
    let (buyer, other) = (shop.customer().await, shop.customer().await);
    let top_up = shop.buys(&buyer, json!({"credits": 1_000})).await;
    let intent = named(&top_up, "payment_intent");
    stripe.happens("refund", json!({"payment_intent": intent, "amount": 300})).await;
    stripe.happens("dispute", json!({"payment_intent": intent})).await;
    let (differences, summary) = shop.found(&[], 0).await;
    assert_eq!((differences, &summary["stripe"]["reversals"]), (vec![], &json!(2)), "a dispute is open");
    stripe.happens("dispute", json!({"close": "won"})).await;
    stripe.happens("refund", json!({"payment_intent": intent, "amount": 100})).await;
    let lost = shop.buys(&other, json!({"credits": 500})).await;
    stripe.happens("dispute", json!({"payment_intent": named(&lost, "payment_intent")})).await;
    stripe.happens("dispute", json!({"close": "lost"})).await;

    let subscribed = shop.buys(&buyer, json!({"plan": "pro"})).await;
    let subscription = &subscribed["subscription"];
    shop.subscription(subscription, "renew").await;
    stripe.happens("refund", json!({"invoice": subscribed["invoice"]})).await;
    assert_eq!((credits(&buyer).await, credits(&other).await), (600 + 40, 0));
    let (differences, summary) = shop.found(&[], 0).await;
    assert_eq!(differences, Vec::<[String; 5]>::new());
    let compared = &summary["stripe"];
    assert_eq!(summary["drifts"], 0);
    let counts =
        ["purchases", "invoices", "subscriptions", "reversals", "drifts", "open"].map(|of| &compared[of]);
    assert_eq!(counts, [3, 2, 1, 4, 0, 0].map(|count| json!(count)).each_ref(), "{summary}");
    assert_eq!(compared["compared"], true);

    for (what, status) in [("fail_payment", "past_due"), ("renew", "active"), ("pause", "inactive")] {
        shop.subscription(subscription, what).await;
        assert_eq!(plan_and_status(&buyer).await.1, status);
        shop.audit(&[], 0).await;
    }
    shop.subscription(subscription, "resume").await;
    shop.subscription(subscription, "cancel?at_period_end=true").await;
    shop.audit(&["--since", "all"], 0).await;
    shop.subscription(subscription, "cancel").await;
    // Also what is not settled agrees.
    let waits = shop.opens(&other, json!({"credits": 100})).await;
    shop.opens(&other, json!({"credits": 200})).await;
    stripe.happens(&format!("sessions/{waits}/pay?async=true"), json!({})).await;
    let printed = shop.audit(&["--since", "2020-02-29"], 0).await;
    let last = printed.lines().last().unwrap();
    assert!(
        last.starts_with("Stripe since 2020-02-29T00:00:00.000Z: ") && last.ends_with(": no drift"),
        "{printed}"
    );
    assert_eq!(printed.lines().count(), 2, "{printed}");

    // An audit reads and does nothing else, in the way that Stripe takes.
    let mut requests = stripe.requests().await;
    requests.retain(|request| request["method"] == "GET");
    assert!(requests.len() > 20, "{requests:?}");
    assert!(requests.iter().all(|request| request["status"] == 200), "{requests:?}");
    StandIn::judge(requests).await;
}

both!(each_planted_difference_is_found);
async fn each_planted_difference_is_found(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let stripe = &shop.stripe;
    let buyer = shop.customer().await;
    let refunded = shop.buys(&buyer, json!({"credits": 1_000})).await;
    let disputed = shop.buys(&buyer, json!({"credits": 300})).await;
    let taken_back = shop.buys(&buyer, json!({"credits": 200})).await;
    let charge = stripe.happens("refund", json!({"payment_intent": taken_back["payment_intent"]})).await;
    let subscribed = shop.buys(&buyer, json!({"plan": "pro"})).await;
    let stale = shop.customer().await;
    let stale = shop.buys(&stale, json!({"plan": "pro"})).await;
    let wrong = shop.customer().await;
    let wrong = shop.buys(&wrong, json!({"plan": "pro"})).await;
    let claimed = shop.opens(&buyer, json!({"credits": 77})).await;
    let forgotten = shop.opens(&buyer, json!({"credits": 78})).await;
    shop.audit(&[], 0).await;

    // Of these no event ever comes.
    stripe.tells_nobody().await;
    let unheard = shop.buys(&buyer, json!({"credits": 50})).await;
    let newcomer = shop.customer().await;
    let unheard_plan = shop.buys(&newcomer, json!({"plan": "pro"})).await;
    let back = json!({"payment_intent": refunded["payment_intent"], "amount": 400});
    let unheard_refund = stripe.happens("refund", back).await;
    let stale_back = stripe.happens("refund", json!({"invoice": stale["invoice"]})).await;
    let back = json!({"payment_intent": disputed["payment_intent"]});
    let unheard_dispute = stripe.happens("dispute", back).await;
    // These were done to the books.
    let purchase_id = async |session: &str| {
        let ids = backend.texts(&format!("SELECT id FROM purchases WHERE session_id = '{session}'")).await;
        format!("purchase/{}", ids[0].as_deref().unwrap())
    };
    let (claimed_id, forgotten_id) = (purchase_id(&claimed).await, purchase_id(&forgotten).await);
    let forget = "UPDATE purchases SET status = 'paid', session_id = NULL";
    backend.execute(&format!("{forget} WHERE session_id = '{forgotten}'")).await;
    let wrong_grant = format!("invoice/{}", named(&wrong, "invoice"));
    backend
        .execute(&format!("UPDATE credit_grants SET standing = 41 WHERE reference = '{wrong_grant}'"))
        .await;
    backend.execute(&format!("UPDATE purchases SET status = 'paid' WHERE session_id = '{claimed}'")).await;
    let stale_id = named(&stale, "subscription");
    let stale_set = "status = 'past_due', status_at = status_at + 1000, plan = 'team', current_period_end = 1000, cancel_at_period_end = TRUE";
    backend.execute(&format!("UPDATE subscriptions SET {stale_set} WHERE id = '{stale_id}'")).await;
    let charge_id = named(&charge, "id");
    backend.execute(&format!("UPDATE reversals SET amount_cents = 199 WHERE id = '{charge_id}'")).await;
    let invoice = named(&subscribed, "invoice");
    backend.execute(&format!("DELETE FROM credit_grants WHERE reference = 'invoice/{invoice}'")).await;

    let stale_subject = format!("subscription/{stale_id}");
    let (unheard_id, plan_id) = (purchase_of(&unheard), purchase_of(&unheard_plan));
    let unheard_subscription = format!("subscription/{}", named(&unheard_plan, "subscription"));
    let unheard_invoice = format!("invoice/{}", named(&unheard_plan, "invoice"));
    let charge_subject = format!("charge/{}", named(&unheard_refund, "id"));
    let dispute_subject = format!("dispute/{}", named(&unheard_dispute, "id"));
    let stale_charge = format!("charge/{}", named(&stale_back, "id"));
    let stale_grant = format!("grant/invoice/{}", named(&stale, "invoice"));
    let grant = |session: &Value| format!("grant/{}", purchase_of(session));
    let end = period_end(&shop, stale_id).await;
    let planted = vec![
        row(&claimed_id, "status", "paid", "open", ""),
        row(&forgotten_id, "status", "paid", "open", ""),
        row(&format!("grant/{wrong_grant}"), "credits standing", "41", "40", ""),
        row(&stale_subject, "status", "past_due", "active", ""),
        row(&stale_subject, "current_period_end", "1970-01-01T00:00:01.000Z", &end, ""),
        row(&stale_subject, "cancel_at_period_end", "true", "false", ""),
        row(&format!("charge/{charge_id}"), "amount_refunded", "199", "200", ""),
        row(&format!("invoice/{invoice}"), "paid_cents, granted for", "0", "1000", ""),
    ];
    let by = |open: &str| {
        vec![
            row(&unheard_id, "status", "open", "paid", open),
            row(&unheard_id, "credits granted", "0", "50", open),
            row(&plan_id, "status", "open", "paid", open),
            row(&plan_id, "subscription", "none", named(&unheard_plan, "subscription"), open),
            row(&unheard_subscription, "status", "none", "active", open),
            row(&unheard_invoice, "paid_cents, granted for", "0", "1000", open),
            row(&charge_subject, "amount_refunded", "0", "400", open),
            row(&grant(&refunded), "credits standing", "1000", "600", open),
            row(&stale_charge, "amount_refunded", "0", "1000", open),
            row(&stale_grant, "credits standing", "40", "0", open),
            row(&dispute_subject, "status", "none", "open", open),
            row(&grant(&disputed), "credits standing", "300", "0", open),
        ]
    };
    // The books themselves lack what stood of the grant that is gone, and of the one that is wrong.
    let at_stripe = |found: Vec<[String; 5]>| {
        let (books, stripe): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|row| row[0].starts_with("credits/"));
        assert_eq!(books.len(), 2, "{books:?}");
        sorted(stripe)
    };

    // Stripe made their events a moment ago.
    let (found, summary) = shop.found(&[], 1).await;
    assert_eq!(at_stripe(found), sorted([planted.clone(), by("under way")].concat()));
    let counts = [&summary["drifts"], &summary["stripe"]["drifts"], &summary["stripe"]["open"]];
    assert_eq!(counts, [2 + 8, 8, 12].map(|count| json!(count)).each_ref(), "{summary}");
    stripe.ages().await;
    let (found, summary) = shop.found(&[], 1).await;
    assert_eq!(at_stripe(found), sorted([planted, by("")].concat()));
    let counts = [&summary["drifts"], &summary["stripe"]["drifts"], &summary["stripe"]["open"]];
    assert_eq!(counts, [2 + 20, 20, 0].map(|count| json!(count)).each_ref(), "{summary}");
    let printed = shop.audit(&[], 1).await;
    assert!(printed.contains(&format!("{unheard_id}: status is open, at Stripe paid\n")), "{printed}");
    // Without Stripe nothing of that is told.
    let printed = shop.audit(&["--no-stripe"], 1).await;
    assert!(printed.ends_with("Stripe: not compared, --no-stripe was given\n"), "{printed}");
    assert!(!printed.contains("purchase/"), "{printed}");
}

async fn period_end(shop: &Shop, subscription: &str) -> String {
    let get = Client::new(shop.stripe.base.clone()).with_key(SECRET_KEY);
    let found = get.get(&format!("/v1/subscriptions/{subscription}")).await.expect(200);
    let seconds = found["items"]["data"][0]["current_period_end"].as_i64().unwrap();
    jiff::Timestamp::from_second(seconds).map(|at| format!("{at:.3}")).unwrap()
}

both!(what_waits_for_an_operator_is_no_drift);
async fn what_waits_for_an_operator_is_no_drift(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let buyer = shop.customer().await;
    shop.buys(&buyer, json!({"credits": 100})).await;
    // Somebody pays for a purchase that is not in these books, and for something else altogether.
    let sold = |named| {
        [
            ("mode", "payment"),
            ("success_url", "https://shop.example/"),
            ("line_items[0][quantity]", "1"),
            ("line_items[0][price_data][currency]", "usd"),
            ("line_items[0][price_data][unit_amount]", "900"),
            ("line_items[0][price_data][product_data][name]", "Things"),
            ("client_reference_id", named),
        ]
    };
    for named in ["pur_of_another_copy", "order 7"] {
        let session = shop.stripe.asks("/v1/checkout/sessions", &sold(named)).await;
        let path = format!("sessions/{}/pay", named_id(&session));
        shop.stripe.happens(&path, json!({})).await;
    }
    shop.stripe.ages().await;
    let kept = |open| vec![row("purchase/pur_of_another_copy", "status", "none", "paid", open)];
    assert_eq!(shop.found(&[], 0).await.0, kept("kept"));
    let printed = shop.audit(&[], 0).await;
    assert!(
        printed.contains("at Stripe paid; no drift: its event is kept, see spell-platform webhooks list\n")
    );
    let listed = shop.server.operate(&["webhooks", "list"]).await;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let ids: Vec<&str> = listed.lines().filter_map(|line| line.split('\t').nth(1)).collect();
    assert_eq!(ids.len(), 2, "{listed}");
    assert!(shop.server.operate(&[&["webhooks", "dismiss"], &ids[..]].concat()).await.status.success());
    assert_eq!(shop.found(&[], 0).await.0, kept("dismissed"));
    // Where nothing tells of it, it is drift.
    backend.execute("DELETE FROM webhook_events").await;
    assert_eq!(shop.found(&[], 1).await.0, kept(""));
}

fn named_id(object: &Value) -> &str {
    named(object, "id")
}

both!(a_stripe_that_can_not_be_read_is_no_clean_bill);
async fn a_stripe_that_can_not_be_read_is_no_clean_bill(backend: Backend) {
    let mut shop = Shop::open(&backend).await;
    let buyer = shop.customer().await;
    shop.buys(&buyer, json!({"credits": 100})).await;
    // What passes is asked again.
    for status in [429, 500, 503] {
        shop.stripe.control("fail", json!({"status": status, "times": 2})).await;
        shop.audit(&[], 0).await;
    }
    for (status, path) in
        [(401, "/v1/checkout"), (403, "/v1/events"), (400, "/v1/disputes"), (404, "/v1/refunds")]
    {
        // Events are asked for only where something differs.
        backend.execute("UPDATE purchases SET status = 'open'").await;
        shop.stripe.control("fail", json!({"status": status, "times": 1_000, "path": path})).await;
        let printed = shop.audit(&[], 2).await;
        let summary: Vec<&str> = printed.lines().collect();
        assert!(summary.len() == 2 && summary[0].ends_with(": no drift"), "{printed}");
        assert_eq!(summary[1], "Stripe: could not be compared");
        shop.stripe.control("recover", json!({})).await;
    }
    let (rows, summary) = {
        shop.stripe.ends();
        shop.found(&[], 2).await
    };
    assert_eq!(rows, Vec::<[String; 5]>::new());
    let told = json!({"compared": false, "why": "Stripe can't be reached"});
    assert_eq!((&summary["stripe"], &summary["drifts"]), (&told, &json!(0)), "{summary}");
    shop.audit(&["--no-stripe"], 0).await;
    let usage = shop.server.operate(&["audit", "--since", "yesterday"]).await;
    assert_eq!(usage.status.code(), Some(2), "{usage:?}");
}

both!(lists_are_read_to_their_end);
async fn lists_are_read_to_their_end(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let stripe = &shop.stripe;
    let buyer = shop.customer().await;
    stripe.tells_nobody().await;
    let first = shop.buys(&buyer, json!({"credits": 100})).await;
    // Whatever else is sold by the same account at Stripe.
    for number in 0..210 {
        let product = format!("Thing {number}");
        let sold = [
            ("mode", "payment"),
            ("success_url", "https://shop.example/"),
            ("line_items[0][quantity]", "1"),
            ("line_items[0][price_data][currency]", "usd"),
            ("line_items[0][price_data][unit_amount]", "900"),
            ("line_items[0][price_data][product_data][name]", &product),
        ];
        let session = stripe.asks("/v1/checkout/sessions", &sold).await;
        stripe.happens(&format!("sessions/{}/pay", named_id(&session)), json!({})).await;
    }
    stripe.ages().await;
    let (found, _) = shop.found(&[], 1).await;
    let drift = |what, stored, expected| row(&purchase_of(&first), what, stored, expected, "");
    assert_eq!(found, vec![drift("credits granted", "0", "100"), drift("status", "open", "paid")]);
    let mut requests = stripe.requests().await;
    requests.retain(|request| request["path"].as_str().unwrap().starts_with("/v1/checkout/sessions?"));
    assert_eq!(requests.len(), 3, "of 211 sessions");
    StandIn::judge(requests).await;
    // Of a later time there is nothing to compare.
    let tomorrow = jiff::Timestamp::from_millisecond(unix_now() + 86_400_000).unwrap();
    assert_eq!(shop.found(&["--since", &tomorrow.to_string()], 0).await.0, Vec::<[String; 5]>::new());
}

both!(everything_goes_on_while_stripe_is_compared);
async fn everything_goes_on_while_stripe_is_compared(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let buyer = shop.customer().await;
    let subscribed = shop.buys(&buyer, json!({"plan": "pro"})).await;
    shop.buys(&buyer, json!({"credits": 100})).await;
    // Each answer is late, so that what is bought meanwhile comes between what is read.
    let slow = json!({"seconds": 0.4, "times": 1_000_000, "path": "/v1/", "when": "after"});
    shop.stripe.control("hang", slow).await;
    let ended = AtomicBool::new(false);
    let auditing = async {
        let printed = shop.audit(&[], 0).await;
        ended.store(true, Ordering::Relaxed);
        printed
    };
    let working = async {
        let (mut casts, mut bought) = (0, 0);
        while !ended.load(Ordering::Relaxed) {
            let begun = Instant::now();
            buyer.echo().await.expect(200);
            assert!(begun.elapsed() < Duration::from_secs(3), "a cast took {:?}", begun.elapsed());
            if casts % 20 == 0 {
                let top_up = shop.buys(&buyer, json!({"credits": 100})).await;
                let back = json!({"payment_intent": top_up["payment_intent"], "amount": 50});
                shop.stripe.happens("refund", back).await;
                shop.subscription(&subscribed["subscription"], "renew").await;
                bought += 1;
            }
            casts += 1;
        }
        (casts, bought)
    };
    let (printed, (casts, bought)) = tokio::join!(auditing, working);
    assert!(casts > 10 && bought > 0, "{casts} casts, {bought} bought");
    assert!(printed.lines().last().unwrap().ends_with(": no drift"), "{printed}");
    shop.stripe.control("recover", json!({})).await;
    assert_eq!(shop.found(&[], 0).await.0, Vec::<[String; 5]>::new());
}

/// For a server that audits every second.
fn auditing(backend: &Backend) -> Options {
    Options::on(backend).var("AUDIT_INTERVAL_SECONDS", 1).var("RUST_LOG", "info")
}

const A_WHILE: Duration = Duration::from_secs(30);

impl Shop {
    async fn has_logged(&self, text: &str, times: usize) {
        let log = || async { (self.server.output().stderr.matches(text).count() >= times).then_some(()) };
        eventually(A_WHILE, text, log).await;
    }

    async fn drift_counted(&self) -> f64 {
        self.server.metric("ledger_drift_total").await
    }

    async fn has_counted_drift(&self) {
        let counted = || async { Some(self.drift_counted().await).filter(|count| *count > 0.0) };
        let count = eventually(A_WHILE, "drift that is counted", counted).await;
        assert_eq!(count % 2.0, 0.0, "a purchase and its credits are two differences");
    }
}

both!(a_server_counts_by_itself_what_differs_at_stripe);
async fn a_server_counts_by_itself_what_differs_at_stripe(backend: Backend) {
    let shop = Shop::open_with(auditing(&backend)).await;
    let buyer = shop.customer().await;
    shop.buys(&buyer, json!({"credits": 100})).await;
    shop.has_logged("1 purchases, 0 invoices, 0 subscriptions, 0 refunds and disputes; 0 to be applied", 1)
        .await;
    shop.stripe.tells_nobody().await;
    let unheard = purchase_of(&shop.buys(&buyer, json!({"credits": 50})).await);
    // Stripe made its event a moment ago.
    shop.has_logged("; 2 to be applied or seen to: no drift", 1).await;
    assert_eq!(shop.drift_counted().await, 0.0);
    shop.stripe.ages().await;
    shop.has_counted_drift().await;
    let log = shop.server.output().stderr;
    assert!(log.contains(&format!("{unheard}: status is open, at Stripe paid")), "{log}");
    assert!(log.contains("the books and Stripe's do not agree: run spell-platform audit"), "{log}");
    assert!(!log.contains("the books do not agree") && !log.contains(SECRET_KEY), "{log}");
}

both!(a_server_that_can_not_read_stripe_counts_nothing_and_tries_again);
async fn a_server_that_can_not_read_stripe_counts_nothing_and_tries_again(backend: Backend) {
    let stripe = StandIn::start();
    let port = stripe.base.rsplit(':').next().unwrap().parse().unwrap();
    let between = Proxy::to(("127.0.0.1".to_owned(), port)).await;
    let base = format!("http://127.0.0.1:{}", between.port());
    let options = stripe.sells_for(auditing(&backend)).var("STRIPE_API_BASE", base);
    let shop = Shop { server: Server::start(options).await, stripe };
    // The last of its lists: all that differs was seen by then.
    let fault = json!({"status": 403, "times": 1_000_000, "path": "/v1/disputes"});
    shop.stripe.control("fail", fault).await;
    let buyer = shop.customer().await;
    shop.buys(&buyer, json!({"credits": 50})).await;
    shop.stripe.ages().await;
    let failed = "the books could not be compared with Stripe's";
    let before = shop.server.output().stderr.matches(failed).count();
    shop.has_logged(failed, before + 2).await;
    assert_eq!(shop.drift_counted().await, 0.0);
    between.cut().await;
    shop.has_logged("Stripe can't be reached", 1).await;
    assert_eq!(shop.drift_counted().await, 0.0);
    shop.stripe.control("recover", json!({})).await;
    between.restore().await;
    shop.has_counted_drift().await;
}

both!(a_server_stops_while_stripe_is_at_its_answer);
async fn a_server_stops_while_stripe_is_at_its_answer(backend: Backend) {
    let mut shop = Shop::open_with(auditing(&backend)).await;
    let buyer = shop.customer().await;
    let hang = json!({"seconds": 3_600, "times": 1_000_000, "path": "/v1/invoices"});
    shop.stripe.control("hang", hang).await;
    let asked = || async {
        let requests = shop.stripe.requests().await;
        let waits = |request: &Value| {
            request["path"].as_str().unwrap().starts_with("/v1/invoices") && request["status"].is_null()
        };
        requests.iter().any(waits).then_some(())
    };
    eventually(A_WHILE, "a comparison that waits", asked).await;
    // Nobody waits for it, and it keeps nothing of the database.
    buyer.echo().await.expect(200);
    let unused = || async { (shop.server.metric("db_pool_in_use").await == 0.0).then_some(()) };
    eventually(A_WHILE, "a database that nobody uses", unused).await;
    assert!(shop.server.terminate(Duration::from_secs(15)).await.success());
    let log = shop.server.output().stderr;
    assert!(log.contains("\"stopped\"") && !log.contains("still waiting"), "{log}");
    // What it had begun is another's once it is due.
    shop.stripe.control("recover", json!({})).await;
    shop.server.restart().await;
    shop.has_logged("the books and Stripe's agree", 1).await;
}
