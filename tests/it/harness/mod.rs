//! What the tests stand on: the real binary on a free port, both databases, a proxy that breaks
//! the network, an upstream to cast at, and a client that says what it asked when it fails.

mod backend;
mod client;
mod port;
mod proxy;
mod server;
mod upstream;
mod wait;

pub use backend::Backend;
pub use client::{Answer, Call, Client, Customer, all_casts, all_of, names, shape, usage_cents};
pub use proxy::Proxy;
pub use server::{ADMIN_KEY, Options, Output, Server, redis_url, spawn_bare};
pub use upstream::Upstream;
pub use wait::{Stopwatch, eventually, storm, unix_now};

/// Makes a module per test with one case per database: `name::sqlite` and `name::postgres`. The
/// function takes the [`Backend`] that its servers run on.
macro_rules! both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                super::$name($crate::harness::Backend::sqlite().await).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name($crate::harness::Backend::postgres().await).await;
            }
        }
    )+};
}

/// Like [`both`], for what several processes on several machines do: PostgreSQL alone.
macro_rules! postgres {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                super::$name($crate::harness::Backend::postgres().await).await;
            }
        }
    )+};
}

pub(crate) use {both, postgres};
