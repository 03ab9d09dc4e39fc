//! `scripts/prove` in small, so that it does not rot; the whole of it takes minutes.

use crate::proof::{Row, play};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_found_where_limits_change_under_a_little_load() {
    let row = Row::all()
        .into_iter()
        .find(|row| row.to_string() == "PostgreSQL, 3 processes | limits changed under load");
    let played = play(row.unwrap(), 1, 250, None).await;
    assert_eq!(played.findings.counts(), [0; 5], "{:?}", played.findings.notes);
    // It would find nothing, too, where nothing was asked for.
    assert!(
        played.casts == 250 && played.answered > 50 && played.refused > 20 && !played.happened.is_empty()
    );
}
