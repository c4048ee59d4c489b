//! Keeping a process running until it is to stop.
//!
//! A service that was killed is back in half a second; one that cannot start is not started a thousand times a minute.
//! A server that comes back somewhere else (a stranger took its port while it was down) is the end of the system:
//! everybody who was told of it looks in the wrong place.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use server_processes::{ManagedProcess, NatsServer, ObjectStoreServer, PostgresServer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::service::Service;

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Whoever ran so long had started well: its end is a new story.
const A_GOOD_RUN: Duration = Duration::from_secs(30);

/// How the system ends before its time, and how fast.
#[derive(Clone, Default)]
pub(super) struct Ending {
    /// Cancelled when nobody wants to wait.
    pub(super) hurry: CancellationToken,
    /// Cancelled when the system is being stopped: a service that ends is not started again, while the servers that the
    /// others still need for their good order are.
    pub(super) stopping: CancellationToken,
    has_failed: CancellationToken,
    reason: Arc<Mutex<Option<anyhow::Error>>>,
}

impl Ending {
    /// Ends when the system cannot go on.
    pub(super) async fn failed(&self) -> anyhow::Error {
        self.has_failed.cancelled().await;
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).take();
        reason.unwrap_or_else(|| anyhow::anyhow!("the system cannot go on"))
    }

    fn fail(&self, reason: anyhow::Error) {
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.has_failed.cancel();
    }
}

/// A process that is kept running.
pub(super) enum Supervised {
    Postgres(Box<PostgresServer>),
    ObjectStore(Box<ObjectStoreServer>),
    Nats(Box<NatsServer>),
    Service(Box<Service>),
}

impl Supervised {
    fn process(&self) -> &ManagedProcess {
        match self {
            Self::Postgres(server) => server.process(),
            Self::ObjectStore(server) => server.process(),
            Self::Nats(server) => server.process(),
            Self::Service(service) => service.process(),
        }
    }

    /// Where it is, for those that others were told of.
    fn address(&self) -> Option<String> {
        match self {
            Self::Postgres(server) => Some(server.database_url()),
            Self::ObjectStore(server) => Some(server.endpoint()),
            Self::Nats(server) => Some(server.url()),
            Self::Service(_) => None,
        }
    }

    async fn restart(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Postgres(server) => server.restart().await,
            Self::ObjectStore(server) => server.restart().await,
            Self::Nats(server) => server.restart().await,
            Self::Service(service) => service.restart().await,
        }
    }

    async fn stop(&self, hurry: &CancellationToken) -> anyhow::Result<()> {
        match self {
            Self::Postgres(server) => server.stop().await,
            Self::ObjectStore(server) => server.stop().await,
            Self::Nats(server) => server.stop().await,
            Self::Service(service) => service.stop(hurry).await,
        }
    }
}

/// Starts the process again whenever it ends, until `stop` is cancelled; then stops it.
pub(super) async fn supervise(
    mut supervised: Supervised,
    board: Arc<Board>,
    stop: CancellationToken,
    ending: Ending,
) {
    let name = supervised.process().name().to_owned();
    tokio::select! {
        () = stop.cancelled() => {}
        outcome = keep_running(&name, &mut supervised, &board, &ending.stopping) => {
            if let Err(error) = outcome {
                ending.fail(error);
            }
            stop.cancelled().await;
        }
    }
    if let Err(error) = supervised.stop(&ending.hurry).await {
        eprintln!("up: {name} could not be stopped: {error:#}");
    }
}

/// Ends when the process is not to be started again: with an error where the system cannot go on.
async fn keep_running(
    name: &str,
    supervised: &mut Supervised,
    board: &Board,
    stopping: &CancellationToken,
) -> anyhow::Result<()> {
    let mut wait = FIRST_WAIT;
    loop {
        let started = Instant::now();
        let status = supervised.process().wait().await;
        if started.elapsed() >= A_GOOD_RUN {
            wait = FIRST_WAIT;
        }
        let address = supervised.address();
        tokio::time::sleep(wait).await;
        if stopping.is_cancelled() && matches!(supervised, Supervised::Service(_)) {
            return Ok(());
        }
        eprintln!("up: {name} has ended ({status}) and is started again");
        loop {
            wait = (wait * 2).min(LONGEST_WAIT);
            match supervised.restart().await {
                Ok(()) => break,
                Err(error) => {
                    eprintln!("up: {name} does not start, and is tried again: {error:#}");
                    tokio::time::sleep(wait).await;
                }
            }
        }
        if supervised.address() != address {
            bail!("another program took the port of {name} while it was down: stop it, and start again");
        }
        if let Supervised::Service(service) = supervised {
            board.note(&service.summary());
        }
        eprintln!("up: {name} is running again (process {})", supervised.process().pid());
    }
}
