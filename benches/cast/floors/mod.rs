//! What the platform is held against: the least that anybody has to do. Each is an actix-web server that echoes
//! the JSON it is sent, as the platform's `echo` does, after that least.
//!
//! They run inside the generator's process, which spares them nothing but a second one. Each keeps a sum, and
//! is held to it: an answer without its effect would be no floor.

pub mod bare;
pub mod redis;
pub mod update;

use actix_web::{App, HttpRequest, HttpServer, dev::ServerHandle, http::header, web};

/// What a request costs, on every floor that keeps a sum.
const PRICE: i64 = 1;
/// More than any run spends.
const LIMIT: i64 = 1_000_000_000_000;

/// A floor's server.
struct Serving {
    address: String,
    handle: ServerHandle,
}

/// Serves on a free port until it is stopped.
fn serve(routes: impl Fn(&mut web::ServiceConfig) + Clone + Send + 'static) -> Serving {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = HttpServer::new(move || App::new().configure(routes.clone()))
        .listen(listener)
        .unwrap()
        .disable_signals()
        .run();
    let handle = server.handle();
    tokio::spawn(server);
    Serving { address, handle }
}

/// A floor has no keys: whoever comes says which account it is.
fn account(request: &HttpRequest) -> Option<i64> {
    let header = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    header.strip_prefix("Bearer ")?.parse().ok()
}

/// The accounts from 1 on, as [`account`] reads them.
fn accounts(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}
