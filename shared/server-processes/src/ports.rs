//! Loopback ports for servers.
//!
//! Asking the kernel for port 0 gives one of the range from which it also takes the local end of outgoing connections:
//! after a restart of the server, such a connection may have taken the port that clients know. Ours are below it.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::bail;
use rand::Rng as _;

const RANGE: std::ops::Range<u16> = 20_000..32_000;
const ATTEMPTS: usize = 200;

/// A port of 127.0.0.1 on which nothing listens at this moment.
pub fn free_port() -> anyhow::Result<u16> {
    free_port_where(|_| true)
}

/// A free port that also meets a condition.
pub(crate) fn free_port_where(condition: impl Fn(u16) -> bool) -> anyhow::Result<u16> {
    for _ in 0..ATTEMPTS {
        let port = rand::rng().random_range(RANGE);
        if port_is_free(port) && condition(port) {
            return Ok(port);
        }
    }
    bail!("no free loopback port found between {} and {}", RANGE.start, RANGE.end)
}

/// Whether a server could listen on this port of 127.0.0.1 at this moment.
pub fn port_is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}
