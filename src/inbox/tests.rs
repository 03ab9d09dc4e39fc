//! Bodies that leave while an operator replays their event.

use super::*;
use crate::store::{Backend, Statement, testing::each_backend};

static BODY: Statement = Statement::new("SELECT status, body FROM webhook_events WHERE id = 'evt_1'");
static WAITING: Statement = Statement::new(
    "SELECT CAST(COUNT(*) AS BIGINT) FROM pg_stat_activity
     WHERE datname = current_database() AND wait_event_type = 'Lock'",
);

const NOW: Time = Time(1_000);
const LINE: Time = Time(2_000);

/// Stores an event, and ignores it.
async fn ignore(db: &Db) {
    let event = Incoming {
        id: "evt_1".to_owned(),
        kind: "x".to_owned(),
        created_at: NOW,
        body: "the body".to_owned(),
        signature: None,
    };
    store(db, Source::Stripe, &event, NOW).await.unwrap();
    let effect = async |_: &mut Tx| Ok(Verdict::Ignored("nothing of ours".to_owned()));
    apply(db, Source::Stripe, "evt_1", false, NOW, effect).await.unwrap();
}

/// What a replay comes to that has read the body.
async fn replay(db: &Db) -> Option<Delivery> {
    let effect = async |_: &mut Tx| Ok(Verdict::Kept("paid".to_owned()));
    apply(db, Source::Stripe, "evt_1", true, NOW, effect).await.unwrap()
}

async fn stored(db: &Db) -> (String, String) {
    db.one(&BODY, vec![]).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_left_since_it_was_read_is_not_applied() {
    each_backend(|db| async move {
        ignore(&db).await;
        assert_eq!(forget_bodies(&db, LINE).await.unwrap(), 1);
        assert_eq!(replay(&db).await, Some(Delivery::First(without_body())));
        assert_eq!(stored(&db).await, ("ignored".to_owned(), String::new()));
    })
    .await;
}

/// On SQLite nobody waits for a row.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_whose_event_is_opened_meanwhile_stays() {
    each_backend(|db| async move {
        ignore(&db).await;
        if db.backend() == Backend::Postgres {
            let mut tx = db.begin().await.unwrap();
            let kept = binds![Source::Stripe.as_str(), "evt_1", "kept", "paid", Some(NOW)];
            tx.execute(&DONE, kept).await.unwrap();
            let forgetting = tokio::spawn({
                let db = db.clone();
                async move { forget_bodies(&db, LINE).await }
            });
            while db.one::<(i64,)>(&WAITING, vec![]).await.unwrap() == (0,) {
                assert!(!forgetting.is_finished(), "it waits for the row");
            }
            tx.commit().await.unwrap();
            assert_eq!(forgetting.await.unwrap().unwrap(), 0);
        } else {
            replay(&db).await;
            assert_eq!(forget_bodies(&db, LINE).await.unwrap(), 0);
        }
        assert_eq!(stored(&db).await, ("kept".to_owned(), "the body".to_owned()));
    })
    .await;
}
