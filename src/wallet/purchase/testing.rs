//! What the tests of several providers need: a server to ask, and billing as it is by default.

use std::sync::{Arc, Mutex};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    config::Billing,
    money::{NANOS_PER_CENT, Nanos},
};

/// A credit costs 3 cents of a dollar.
pub fn billing(stripe_at: Option<&str>) -> Billing {
    Billing {
        secret_key: stripe_at.map(|_| "sk_test_hunter2".to_owned().into()),
        webhook_secrets: Vec::new(),
        api_base: stripe_at.map(|base| base.parse().unwrap()),
        default_plan: "free".to_owned(),
        currency: "usd".to_owned(),
        credit_price: Nanos(3 * NANOS_PER_CENT),
        public_url: "http://127.0.0.1/".parse().unwrap(),
    }
}

/// A web server that remembers what it was asked. It stands for as long as its runtime.
pub struct Server {
    /// Its address, without a slash at the end.
    pub base: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each request, given whole, with the status and body that `answer` makes of it; with
    /// status 0 never.
    pub async fn start(answer: impl Fn(&str) -> (u16, String) + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (asked.clone(), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (seen, answer) = (seen.clone(), answer.clone());
                tokio::spawn(async move {
                    let request = read(&mut socket).await;
                    seen.lock().unwrap().push(request.clone());
                    let (status, body) = answer(&request);
                    if status == 0 {
                        return std::future::pending().await;
                    }
                    let head =
                        format!("HTTP/1.1 {status} -\r\nconnection: close\r\nlocation: /elsewhere\r\n");
                    let length = format!("content-length: {}\r\n\r\n", body.len());
                    let _ = socket.write_all((head + &length + &body).as_bytes()).await;
                });
            }
        });
        Server { base, asked }
    }

    /// The requests that came, whole, that begin like this.
    pub fn asked(&self, begin: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|request| request.starts_with(begin)).cloned().collect()
    }
}

/// Reads one request: its head, and as much of a body as it announces.
async fn read(socket: &mut tokio::net::TcpStream) -> String {
    let mut got = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&got).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text;
            }
        }
        assert_ne!(socket.read_buf(&mut got).await.unwrap(), 0, "the request broke off: {text}");
    }
}
