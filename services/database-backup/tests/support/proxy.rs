//! Between the service and the S3 server: passes everything on, or answers writes with an error, or is gone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Passes on.
    Open,
    /// Answers the first so many writes with this status.
    Refuses { status: u16, writes: u32 },
    /// Holds every write back for so long.
    Slow(Duration),
    /// Accepts and closes.
    Gone,
}

/// The proxy.
pub(crate) struct Proxy {
    pub(crate) endpoint: String,
    mood: Arc<Mutex<Mood>>,
    refused: Arc<AtomicU32>,
    writes: Arc<AtomicU32>,
}

impl Proxy {
    pub(crate) fn start(upstream: &str, mood: Mood) -> Self {
        let upstream = upstream.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let proxy = Self {
            endpoint,
            mood: Arc::new(Mutex::new(mood)),
            refused: Arc::default(),
            writes: Arc::default(),
        };
        let (mood, refused, writes) = (proxy.mood.clone(), proxy.refused.clone(), proxy.writes.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let (upstream, mood) = (upstream.clone(), mood.clone());
                let (refused, writes) = (refused.clone(), writes.clone());
                std::thread::spawn(move || {
                    // A connection that ends is no error of the test.
                    let _ = serve(socket?, &upstream, &mood, &refused, &writes);
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        proxy
    }

    pub(crate) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
        self.refused.store(0, Ordering::SeqCst);
    }

    /// How many writes were answered with an error.
    pub(crate) fn refused(&self) -> u32 {
        self.refused.load(Ordering::SeqCst)
    }

    /// How many writes came.
    pub(crate) fn writes(&self) -> u32 {
        self.writes.load(Ordering::SeqCst)
    }
}

/// One request a connection: so each of them meets the mood of its moment.
fn serve(
    mut client: TcpStream,
    upstream: &str,
    mood: &Mutex<Mood>,
    refused: &AtomicU32,
    writes: &AtomicU32,
) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let is_write = text.starts_with("PUT ") || text.starts_with("POST ");
    if is_write {
        writes.fetch_add(1, Ordering::SeqCst);
    }
    let mood = *mood.lock().unwrap();
    match mood {
        Mood::Gone => return client.shutdown(Shutdown::Both),
        Mood::Refuses { status, writes } if is_write && refused.load(Ordering::SeqCst) < writes => {
            refused.fetch_add(1, Ordering::SeqCst);
            let length = text.to_ascii_lowercase().lines().find_map(|line| {
                line.strip_prefix("content-length:").and_then(|length| length.trim().parse::<u64>().ok())
            });
            std::io::copy(&mut (&client).take(length.unwrap_or(0)), &mut std::io::sink())?;
            write!(client, "HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(());
        }
        Mood::Slow(wait) if is_write => std::thread::sleep(wait),
        _ => {}
    }
    let mut server = TcpStream::connect(upstream)?;
    server.set_nodelay(true)?;
    // The signature does not cover this header.
    let head = text.replacen("\r\n", "\r\nConnection: close\r\n", 1);
    let head: String = head
        .split_inclusive("\r\n")
        .enumerate()
        .filter(|(number, line)| *number == 1 || !line.to_ascii_lowercase().starts_with("connection:"))
        .map(|(_, line)| line)
        .collect();
    server.write_all(head.as_bytes())?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let upward = std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    let _ = std::io::copy(&mut server, &mut client);
    client.shutdown(Shutdown::Both)?;
    let _ = upward.join();
    Ok(())
}
