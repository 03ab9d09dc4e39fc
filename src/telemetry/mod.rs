//! What the process tells about itself: metrics for Prometheus, structured lines on stderr.

mod metrics;

pub use metrics::{CAST_STATUSES, Metrics};
use tracing_subscriber::EnvFilter;

/// Sends structured log lines (JSON, one per event) to stderr, filtered by `filter` in the syntax
/// of `RUST_LOG`. Only the first call of a process has an effect.
pub fn init_logging(filter: EnvFilter) {
    let _ = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}
