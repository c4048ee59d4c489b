//! Until when a job may write and delete.
//!
//! A job works under a lease. Its parent stops it when the lease is lost; but a host that was asleep, or a process that was
//! stopped, wakes up in the middle of what it did, long after somebody else has the lease, and before anybody could tell it
//! so. So the job knows itself when its time is over, by a clock that goes on in sleep and is the same for all processes of
//! a machine, and asks it before everything that it writes or deletes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment of the machine's own clock: milliseconds since it was started, sleep included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WriteUntil(u64);

impl WriteUntil {
    /// So long from now.
    pub fn after(duration: Duration) -> Self {
        Self(now().saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Now: a moment to count from, where the rest of the time has to be asked for first.
    pub fn now() -> Self {
        Self(now())
    }

    /// This much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    pub(crate) fn milliseconds(self) -> u64 {
        self.0
    }

    pub(crate) fn from_milliseconds(milliseconds: u64) -> Self {
        Self(milliseconds)
    }
}

/// Such a moment that can be moved while work goes on. Clones share it.
#[derive(Debug, Clone)]
pub struct WriteDeadline(Arc<AtomicU64>);

impl Default for WriteDeadline {
    /// Never.
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl WriteDeadline {
    /// Moves it.
    pub fn set(&self, until: WriteUntil) {
        self.0.store(until.0, Ordering::SeqCst);
    }

    /// Whether it has passed.
    pub fn has_passed(&self) -> bool {
        now() >= self.0.load(Ordering::SeqCst)
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds.saturating_mul(1000).saturating_add(u64::try_from(now.tv_nsec).unwrap_or_default() / 1_000_000)
}
