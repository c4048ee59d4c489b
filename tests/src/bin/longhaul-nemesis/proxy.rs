//! A TCP proxy that can cut, delay and hold back what goes through it.
//!
//! A connection that is cut tells both ends at once. One that is held tells neither: what was sent before arrives when
//! nobody waits for it any more, and that is what a fence is for.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const BUFFER_BYTES: usize = 64 * 1024;

/// What the proxy does to all of its connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weather {
    /// Connections made under another number are closed.
    generation: u64,
    /// How long each piece of data waits before it goes on.
    delay: Duration,
    /// Nothing goes on.
    held: bool,
}

/// A running proxy. It ends with its process.
pub(crate) struct Proxy {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1, for a server there.
    pub(crate) async fn start(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("listening for a proxy")?;
        let address = listener.local_addr()?;
        let (weather, seen) = watch::channel(Weather::default());
        tokio::spawn(accept(listener, target, seen));
        Ok(Self { address, weather })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes every connection; new ones are let through.
    pub(crate) fn cut(&self) {
        self.weather.send_modify(|weather| weather.generation += 1);
    }

    /// Has everything wait so long, from now on.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Holds everything back, or lets it go on.
    pub(crate) fn hold(&self, held: bool) {
        self.weather.send_modify(|weather| weather.held = held);
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, weather: watch::Receiver<Weather>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                tokio::spawn(connect(client, target, weather.clone()));
            }
            // Out of file descriptors, say: others may be closed soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn connect(client: TcpStream, target: SocketAddr, weather: watch::Receiver<Weather>) {
    let generation = weather.borrow().generation;
    // A server that is not there refuses: so does the proxy, by closing.
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut cut = weather.clone();
    tokio::select! {
        () = carry(from_client, to_server, weather.clone()) => {}
        () = carry(from_server, to_client, weather) => {}
        _ = cut.wait_for(|weather| weather.generation != generation) => {}
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut weather: watch::Receiver<Weather>) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let delay = match weather.wait_for(|weather| !weather.held).await {
            Ok(weather) => weather.delay,
            Err(_) => return,
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A server that says everything again.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (mut from, mut to) = stream.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from, &mut to).await });
            }
        });
        address
    }

    async fn say(stream: &mut TcpStream, word: &[u8]) -> std::io::Result<Vec<u8>> {
        stream.write_all(word).await?;
        let mut answer = vec![0; word.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn it_lets_through_delays_holds_and_cuts() {
        let proxy = Proxy::start(echo().await).await.unwrap();
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, b"one").await.unwrap(), b"one");

        proxy.delay(Duration::from_millis(50));
        let began = Instant::now();
        assert_eq!(say(&mut stream, b"two").await.unwrap(), b"two");
        assert!(began.elapsed() >= Duration::from_millis(100), "there and back");
        proxy.delay(Duration::ZERO);

        proxy.hold(true);
        let held = tokio::time::timeout(Duration::from_millis(200), say(&mut stream, b"three")).await;
        assert!(held.is_err(), "{held:?}");
        proxy.hold(false);
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"three");

        proxy.cut();
        assert_eq!(stream.read(&mut answer).await.unwrap(), 0);
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(say(&mut stream, b"four").await.unwrap(), b"four");
    }
}
