//! Ending in two stages, so that a restart neither cuts running work short nor waits for it for ever.
//!
//! A service that ends at the first signal loses what runs; one that waits for all of it hangs on the slowest. So
//! the first signal means *draining* (take nothing new; finish or hand back what runs), and a second one, or the end of
//! the grace, means *stopping* (leave everything; leases and journals make that safe).

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two stages. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Cancelled when no new work is to be taken.
    pub draining: CancellationToken,
    /// Cancelled when running work is to be left, too. Never before `draining`.
    pub stopping: CancellationToken,
}

impl Shutdown {
    /// A shutdown that only [`Shutdown::drain`] and [`Shutdown::stop`] start: for tests and for parts run by hand.
    pub fn manual() -> Self {
        Self::default()
    }

    /// A shutdown that SIGTERM or SIGINT starts: the first one drains; `grace` later, or at a second signal, it stops.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// If the signals cannot be listened for.
    pub fn from_signals(grace: Duration) -> io::Result<Self> {
        let mut signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        let shutdown = Self::manual();
        let stages = shutdown.clone();
        tokio::spawn(async move {
            let name = signals.next().await;
            tracing::info!(signal = name, grace_s = grace.as_secs_f64(), "draining: no new work is taken");
            stages.drain();
            tokio::select! {
                () = tokio::time::sleep(grace) => tracing::warn!("stopping: the grace is over"),
                name = signals.next() => tracing::warn!(signal = name, "stopping: a second signal"),
            }
            stages.stop();
        });
        Ok(shutdown)
    }

    /// Starts the first stage.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Starts the second stage, and the first if need be.
    pub fn stop(&self) {
        self.draining.cancel();
        self.stopping.cancel();
    }

    /// Whether no new work is to be taken.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Whether running work is to be left.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_comes_alone_and_stopping_brings_draining() {
        let shutdown = Shutdown::manual();
        assert!(!shutdown.is_draining());
        shutdown.drain();
        assert!(shutdown.is_draining() && !shutdown.is_stopping());
        let shutdown = Shutdown::manual();
        shutdown.clone().stop();
        assert!(shutdown.is_draining() && shutdown.is_stopping());
    }
}
