//! One sync of the filesystem for all copies that need one.
//!
//! A sync makes everything durable, whoever has written it, and costs as much for one copy as for four. So a copy that needs
//! one while others are at work waits a moment for those that are about to need one, too.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// How long a copy waits for others at most, unless a sync is under way.
const PATIENCE: Duration = Duration::from_millis(20);

/// What the copies under one host root, in one process, sync with. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupedSync(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Copies at work, those that wait included.
    at_work: usize,
    /// Copies that wait for the next sync to begin.
    waiting: usize,
    /// Syncs that have begun, and that have ended.
    begun: u64,
    ended: u64,
    /// How those ended that failed.
    failed: BTreeMap<u64, Errno>,
}

/// A copy at work: others may wait for it.
#[derive(Debug)]
pub(crate) struct AtWork<'a>(&'a GroupedSync);

impl GroupedSync {
    /// Says that a copy is at work, which will need syncs.
    pub(crate) fn at_work(&self) -> AtWork<'_> {
        self.lock().at_work += 1;
        AtWork(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AtWork<'_> {
    /// Returns when a sync has ended that began after this call: `commit`, or that of another copy.
    pub(crate) fn sync(&self, commit: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let shared = &self.0.0;
        let patience = Instant::now() + PATIENCE;
        let mut state = self.0.lock();
        let next = state.begun + 1;
        state.waiting += 1;
        shared.changed.notify_all();
        while state.begun < next {
            let is_idle = state.begun == state.ended;
            let left = patience.saturating_duration_since(Instant::now());
            if is_idle && (state.waiting >= state.at_work || left.is_zero()) {
                state.begun = next;
                state.waiting = 0;
                drop(state);
                let outcome = commit();
                state = self.0.lock();
                state.ended = next;
                if let Err(errno) = outcome {
                    state.failed.insert(next, errno);
                }
                shared.changed.notify_all();
                break;
            }
            let wait = if is_idle { left } else { PATIENCE };
            state = shared.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        while state.ended < next {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.failed.get(&next).map_or(Ok(()), |errno| Err(*errno))
    }
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.0.lock().at_work -= 1;
        // Those that wait need not wait for this one.
        self.0.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn whoever_returns_from_a_sync_has_what_it_wrote_before_and_syncs_are_shared() {
        const COPIES: usize = 8;
        const ROUNDS: u64 = 100;
        let group = GroupedSync::default();
        let written: [AtomicU64; COPIES] = Default::default();
        let durable: [AtomicU64; COPIES] = Default::default();
        let syncs = AtomicU64::new(0);
        // All are at work before the first sync, so that they have something to share however busy the machine is.
        let all_there = Barrier::new(COPIES);
        std::thread::scope(|scope| {
            for copy in 0..COPIES {
                let (group, written, durable) = (&group, &written, &durable);
                let (syncs, all_there) = (&syncs, &all_there);
                scope.spawn(move || {
                    let at_work = group.at_work();
                    all_there.wait();
                    for round in 1..=ROUNDS {
                        written[copy].store(round, Ordering::SeqCst);
                        let commit = || {
                            syncs.fetch_add(1, Ordering::SeqCst);
                            let seen = written.each_ref().map(|value| value.load(Ordering::SeqCst));
                            std::thread::sleep(Duration::from_micros(200));
                            for (durable, seen) in durable.iter().zip(seen) {
                                durable.fetch_max(seen, Ordering::SeqCst);
                            }
                            Ok(())
                        };
                        at_work.sync(commit).unwrap();
                        assert!(durable[copy].load(Ordering::SeqCst) >= round);
                    }
                });
            }
        });
        let syncs = syncs.into_inner();
        assert!((ROUNDS..COPIES as u64 * ROUNDS).contains(&syncs), "{syncs} syncs");
    }

    #[test]
    fn a_failure_is_told_to_all_that_it_was_for_and_to_nobody_later() {
        let group = GroupedSync::default();
        let (first, second) = (group.at_work(), group.at_work());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| second.sync(|| Err(Errno::IO)));
            assert_eq!(first.sync(|| Err(Errno::IO)), Err(Errno::IO));
            assert_eq!(waits.join().unwrap(), Err(Errno::IO));
        });
        drop(second);
        assert_eq!(first.sync(|| Ok(())), Ok(()));
    }
}
