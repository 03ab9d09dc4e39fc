//! A TCP proxy that breaks the network on demand.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::watch,
};

use super::port::Port;

/// What the network does.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Weather {
    /// Bytes pass.
    Fair,
    /// Connections are closed and refused, as when the other side is stopped.
    Cut,
    /// Connections are taken, but nothing passes, as when packets are dropped. What was written
    /// meanwhile arrives when it is over.
    Hung,
}

/// Stands between the server and its database or Redis.
pub struct Proxy {
    port: Port,
    weather: Arc<watch::Sender<Weather>>,
}

impl Proxy {
    /// In front of that host and port, fair at first.
    pub async fn to(target: (String, u16)) -> Proxy {
        let port = Port::pick();
        let address = SocketAddr::from(([127, 0, 0, 1], port.number));
        let listener = listen(address).unwrap();
        let weather = Arc::new(watch::Sender::new(Weather::Fair));
        tokio::spawn(accept(address, Some(listener), target, weather.subscribe()));
        Proxy { port, weather }
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    pub async fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
        // Until the listener is gone, a connection may still be taken, to be closed at once.
        while TcpStream::connect(("127.0.0.1", self.port.number)).await.is_ok() {}
    }

    pub async fn hang(&self) {
        self.weather.send_replace(Weather::Hung);
        while TcpStream::connect(("127.0.0.1", self.port.number)).await.is_err() {}
    }

    pub async fn restore(&self) {
        self.weather.send_replace(Weather::Fair);
        while TcpStream::connect(("127.0.0.1", self.port.number)).await.is_err() {}
    }
}

/// Takes connections in any weather but a cut one, during which nothing listens.
async fn accept(
    address: SocketAddr,
    mut listener: Option<TcpListener>,
    target: (String, u16),
    mut weather: watch::Receiver<Weather>,
) {
    loop {
        let now = *weather.borrow_and_update();
        if now == Weather::Cut {
            listener = None;
        } else if listener.is_none() {
            listener = Some(listen(address).unwrap());
        }
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = weather.changed() => if changed.is_err() { return },
            accepted = accepted => if let Ok((client, _)) = accepted {
                tokio::spawn(relay(client, target.clone(), weather.clone()));
            },
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

async fn relay(client: TcpStream, target: (String, u16), mut weather: watch::Receiver<Weather>) {
    if weather.wait_for(|now| *now != Weather::Hung).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let mut until_cut = weather.clone();
    tokio::select! {
        _ = pump(client_read, server_write, weather.clone()) => {}
        _ = pump(server_read, client_write, weather) => {}
        _ = until_cut.wait_for(|now| *now == Weather::Cut) => {}
    }
}

/// Passes bytes on while the weather is fair, and keeps them while it is not.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if weather.wait_for(|now| *now != Weather::Hung).await.is_err() || read == 0 {
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}
