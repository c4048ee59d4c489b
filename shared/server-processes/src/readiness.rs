//! Waiting for a server that has just been started: until it answers, has ended, or has taken too long.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::ManagedProcess;

const INTERVAL: Duration = Duration::from_millis(20);
const PATIENCE_FOR_AN_ANSWER: Duration = Duration::from_secs(2);

/// Asks `/healthz`: an error with what it says, unless that is 200.
pub async fn healthy(address: SocketAddr) -> anyhow::Result<()> {
    let attempt = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        if !answer.starts_with("HTTP/1.1 200 ") {
            bail!("its health: {}", answer.lines().last().unwrap_or_default());
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE_FOR_AN_ANSWER, attempt).await.context("no answer")?
}

/// Asks `probe` until it succeeds. Fails at once when the process has ended, and when the patience is used up; the
/// error tells the last answer of the probe and the end of the process's log.
pub async fn wait_until<F, A>(
    process: &ManagedProcess,
    patience: Duration,
    mut probe: F,
) -> anyhow::Result<()>
where
    F: FnMut() -> A,
    A: Future<Output = anyhow::Result<()>>,
{
    let give_up = Instant::now() + patience;
    loop {
        let ended = process.exit_status();
        let Err(error) = probe().await else { return Ok(()) };
        if ended.is_none() && Instant::now() < give_up {
            tokio::time::sleep(INTERVAL).await;
            continue;
        }
        let (name, log) = (process.name(), process.log_tail());
        if let Some(status) = ended {
            bail!("{name} ended ({status}) before it was ready; its log ends:\n{log}");
        }
        bail!("{name} was not ready after {} s ({error:#}); its log ends:\n{log}", patience.as_secs_f32());
    }
}
