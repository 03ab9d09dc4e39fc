//! Ports that two tests never share, not even in two processes.

use std::{fs::File, net::TcpListener};

/// A port that no other test takes as long as this lives.
pub struct Port {
    pub number: u16,
    /// Locked; the lock goes with it.
    _lock: File,
}

impl Port {
    pub fn pick() -> Port {
        loop {
            // Below the range that outgoing connections take their ports from.
            let number = 20_000 + u16::try_from(uuid::Uuid::now_v7().as_u128() % 12_000).unwrap();
            let lock = std::env::temp_dir().join(format!("spell-platform-it-port-{number}.lock"));
            let lock = File::create(lock).unwrap();
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
    }
}
