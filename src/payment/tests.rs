//! Deliveries against the books, on both databases: believed or not, valid or not, once or again.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use rsa::{
    RsaPrivateKey,
    pkcs1v15::SigningKey,
    pkcs8::{EncodePublicKey, LineEnding},
    rand_core::OsRng,
    sha2::Sha256,
    signature::{SignatureEncoding, Signer},
};
use serde_json::{Value, json};

use super::{
    signature::{Invalid, Keys},
    webhook::{Credited, Rejected, Webhook},
};
use crate::{
    clock::{Clock, Time},
    identity::Identity,
    inbox::{self, Delivery, Inbox, Source, StoredEvent, Verdict},
    plan,
    store::{Db, Rows, binds, statements, testing::each_backend},
    telemetry::Metrics,
};

statements! {
    FILL_UP = "
        INSERT INTO webhook_events (source, id, type, created_at, received_at, body, status, attempts)
        SELECT 'payment', given.value ->> 0, 'unverified', 1, 1, '', 'failed', 0 FROM {rows}";
}

struct World {
    db: Db,
    inbox: Inbox,
    key: SigningKey<Sha256>,
    webhook: Webhook,
    metrics: Arc<Metrics>,
}

impl World {
    async fn new(db: Db) -> World {
        plan::seed(&db, "free", "usd", Time(1)).await.unwrap();
        let clock = Clock::manual(Time(1_900_000_000_000));
        let identity = Identity::new(db.clone(), clock.clone());
        let inbox = Inbox::new(db.clone(), clock, identity);
        let key = RsaPrivateKey::new(&mut OsRng, 2_048).unwrap();
        let pem = key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap();
        let metrics = Arc::new(Metrics::new());
        let webhook = Webhook::new(inbox.clone(), metrics.clone(), Keys::parse(&pem).unwrap());
        World { db, inbox, key: SigningKey::new(key), webhook, metrics }
    }

    fn sign(&self, body: &[u8]) -> String {
        STANDARD.encode(self.key.sign(body).to_bytes())
    }

    async fn signed(&self, body: &[u8]) -> Result<Credited, Rejected> {
        self.webhook.receive(Some(&self.sign(body)), body).await
    }

    async fn open(&self) -> Vec<StoredEvent> {
        inbox::list(&self.db, Some(Source::Payment), &inbox::OPEN, None, 2_000).await.unwrap()
    }

    fn counted(&self, result: &str) -> u64 {
        self.metrics.payment_webhooks.with_label_values(&[result]).get()
    }
}

fn order(changes: Value) -> Vec<u8> {
    let mut body = json!({
        "order_id": "ord_1", "user_id": "user_1", "plan_code": "pro_month", "units_chat": 50, "units_tpl": 3,
        "amount": 9.90, "currency": "USD", "payment_status": "succeeded",
    });
    for (field, value) in changes.as_object().unwrap() {
        body[field] = value.clone();
    }
    body.to_string().into_bytes()
}

#[track_caller]
fn refused(answer: Result<Credited, Rejected>) -> String {
    match answer {
        Err(Rejected::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_credited_once_however_it_comes() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let first = world.signed(&order(json!({}))).await.unwrap();
        assert!(first.now);
        assert_eq!((first.left.chat, first.left.template), (10_050, 203));
        assert_eq!((first.user_id.as_str(), first.left.plan.as_deref()), ("user_1", Some("pro_month")));
        let repeated = Credited { now: false, ..first };
        assert_eq!(world.signed(&order(json!({}))).await.unwrap(), repeated);
        for same in [json!({"more": [1]}), json!({"amount": "9.9"}), json!({"currency": "usd"})] {
            assert_eq!(world.signed(&order(same.clone())).await.unwrap(), repeated, "{same}");
        }
        assert_eq!(world.webhook.receive(None, &order(json!({}))).await.unwrap(), repeated);
        assert_eq!(world.open().await.len(), 0);
        for other in [
            json!({"units_chat": 51}),
            json!({"plan_code": "free"}),
            json!({"user_id": "user_2"}),
            json!({"amount": 9.91}),
            json!({"currency": "EUR"}),
        ] {
            let why = refused(world.signed(&order(other.clone())).await);
            assert!(why.contains("ord_1") && why.contains("other content"), "{other}: {why}");
        }
        assert_eq!(world.open().await.len(), 5);
        let counts = ["applied", "duplicate", "refused", "bad_signature", "failed"].map(|r| world.counted(r));
        assert_eq!(counts, [1, 5, 5, 0, 0]);
        assert_eq!(world.metrics.quota_credits.get(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_believed_is_kept_and_believed_once_its_key_is_known() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let body = order(json!({}));
        let signature = world.sign(&body);
        let stranger = Webhook::new(world.inbox.clone(), world.metrics.clone(), Keys::default());
        for _ in 0..2 {
            let answer = stranger.receive(Some(&signature), &body).await;
            assert!(matches!(answer, Err(Rejected::Signature(Invalid::Wrong))), "{answer:?}");
        }
        let [letter] = world.open().await.try_into().unwrap();
        assert_eq!((letter.kind.as_str(), letter.status.as_str()), ("unverified", "failed"));
        assert!(letter.detail.unwrap().contains("PAYMENT_WEBHOOK_PUBLIC_KEY"));
        let still = stranger.replay(&letter.id).await.unwrap();
        assert!(matches!(still, Some(Delivery::First(Verdict::Refused(_)))), "{still:?}");
        assert_eq!(world.open().await[0].attempts, 1);

        let known = world.webhook.replay(&letter.id).await.unwrap();
        assert!(matches!(known, Some(Delivery::First(Verdict::Applied(_)))), "{known:?}");
        assert_eq!(world.webhook.replay(&letter.id).await.unwrap(), Some(Delivery::Again));
        let event = inbox::get(&world.db, &letter.id).await.unwrap().unwrap();
        assert_eq!((event.kind.as_str(), event.status.as_str()), ("payment", "applied"));
        assert!(!world.signed(&body).await.unwrap().now);
        assert_eq!(world.webhook.replay("pay_none").await.unwrap(), None);
        // A key that is no longer believed does not undo what it signed.
        stranger.receive(Some(&signature), &body).await.unwrap_err();
        assert_eq!(inbox::get(&world.db, &letter.id).await.unwrap().unwrap().status, "applied");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_credited_waits_for_its_replay() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let body = order(json!({"plan_code": "team"}));
        assert!(refused(world.signed(&body).await).contains("`team`"));
        let [letter] = world.open().await.try_into().unwrap();
        assert_eq!((letter.kind.as_str(), letter.status.as_str()), ("payment", "failed"));
        assert_eq!((letter.attempts, letter.done_at), (1, None));
        let definition = json!({"name": "Team", "price_cents": 0, "limits": {"chat_tokens": 7}});
        let definition: plan::Definition = serde_json::from_value(definition).unwrap();
        plan::put(&world.db, "team", definition.terms("usd").unwrap(), "free", Time(2)).await.unwrap();
        let replayed = world.webhook.replay(&letter.id).await.unwrap();
        assert!(matches!(replayed, Some(Delivery::First(Verdict::Applied(_)))), "{replayed:?}");
        let answer = world.signed(&body).await.unwrap();
        assert_eq!((answer.left.chat, answer.left.template, answer.now), (57, 3, false));

        // What was dismissed is not credited by another delivery, but by a replay.
        let body = order(json!({"order_id": "ord_2", "plan_code": "none"}));
        refused(world.signed(&body).await);
        let [letter] = world.open().await.try_into().unwrap();
        inbox::dismiss(&world.db, &letter.id, Time(3)).await.unwrap();
        assert!(refused(world.signed(&body).await).contains("dismissed"));
        assert_eq!(world.open().await.len(), 0);
        let replayed = world.webhook.replay(&letter.id).await.unwrap();
        assert!(matches!(replayed, Some(Delivery::First(Verdict::Refused(_)))), "{replayed:?}");
        assert_eq!(world.open().await.len(), 0, "what was seen to stays so while it can't be credited");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_well_signed_is_kept_as_it_came() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let bodies: [&[u8]; 7] = [
            b"",
            b"not JSON",
            b"\xff\xfe",
            b"nul \x00",
            b"base64:AAAA",
            b"{\"order_id\":\"\\u0000\"}",
            &[b' '; 100_000],
        ];
        for body in bodies {
            refused(world.signed(body).await);
        }
        let letters = world.open().await;
        assert_eq!(letters.len(), bodies.len());
        for letter in letters {
            let before = letter.detail.unwrap();
            world.webhook.replay(&letter.id).await.unwrap();
            let after = inbox::get(&world.db, &letter.id).await.unwrap().unwrap();
            assert_eq!((after.detail.as_deref(), after.attempts), (Some(before.as_str()), 2));
            assert!(before.starts_with("The body"), "its signature is still good: {before}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_anybody_can_send_so_much_is_kept_and_no_more() {
    each_backend(|db| async move {
        let world = World::new(db).await;
        let forged = Rows::of((0..997).map(|number| format!("pay_forged_{number}")));
        world.db.execute(&FILL_UP, binds![forged]).await.unwrap();
        let send = async |body: String| world.webhook.receive(Some("forged"), body.as_bytes()).await;
        // Too large to be kept.
        send("x".repeat(64 * 1_024)).await.unwrap_err();
        assert_eq!(world.open().await.len(), 997);
        let all = (0..8).map(|number| send(format!("{{\"n\":{number}}}")));
        for answer in futures_util::future::join_all(all).await {
            assert!(matches!(answer, Err(Rejected::Signature(_))), "{answer:?}");
        }
        assert_eq!(world.open().await.len(), 1_000);
        assert_eq!((world.counted("bad_signature"), world.counted("dropped")), (3, 6));
        // One that is kept is there, however often it comes.
        let [newest, ..] = &world.open().await[..] else { panic!("none is kept") };
        let (body, _) =
            world.inbox.content(Source::Payment, &newest.id).await.unwrap().unwrap().expect("its body");
        send(body).await.unwrap_err();
        assert_eq!((world.counted("bad_signature"), world.counted("dropped")), (4, 6));
        // What is well signed is kept all the same.
        refused(world.signed(&order(json!({"plan_code": "none"}))).await);
        world.signed(&order(json!({}))).await.unwrap();
        assert_eq!(world.open().await.len(), 1_001);
        // And there is room again once an operator has seen to some of it.
        inbox::dismiss(&world.db, "pay_forged_7", Time(3)).await.unwrap();
        send("{}".to_owned()).await.unwrap_err();
        send("[]".to_owned()).await.unwrap_err();
        assert_eq!((world.counted("bad_signature"), world.counted("dropped")), (5, 7));
    })
    .await;
}
