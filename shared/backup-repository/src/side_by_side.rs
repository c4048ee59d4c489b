//! Work on many things of a job by a few threads, until all is done or one fails.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// Threads for work that keeps a processor busy: one for each, but no more than leave others room.
pub(crate) fn busy_threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(4)
}

/// Calls `work` for each item on as many threads, and returns what it returned, in no order, or its first error, after
/// which no other item is begun. Every thread hands `work` a value of its own to use again, such as a buffer.
pub(crate) fn side_by_side<Item: Sync, Own: Default, Output: Send>(
    items: &[Item],
    threads: usize,
    work: impl Fn(&mut Own, &Item) -> Result<Output> + Sync,
) -> Result<Vec<Output>> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let done = Mutex::new(Ok(Vec::with_capacity(items.len())));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                let mut own = Own::default();
                while !stop.load(Ordering::Relaxed)
                    && let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let outcome = work(&mut own, item);
                    stop.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
                    match (done.as_mut(), outcome) {
                        (Ok(outputs), Ok(output)) => outputs.push(output),
                        (Ok(_), Err(error)) => *done = Err(error),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind};

    #[test]
    fn every_item_is_worked_on_once() {
        let items: Vec<u32> = (0..1000).collect();
        let mut outputs = side_by_side(&items, 4, |(): &mut (), item| Ok(item * 2)).unwrap();
        outputs.sort_unstable();
        assert_eq!(outputs, (0..1000).map(|item| item * 2).collect::<Vec<_>>());
        assert_eq!(side_by_side(&[], 4, |(): &mut (), item: &u32| Ok(*item)).unwrap(), [0; 0]);
    }

    #[test]
    fn nothing_is_begun_after_a_failure() {
        let items: Vec<u32> = (0..1000).collect();
        let begun = AtomicUsize::new(0);
        let failed = side_by_side(&items, 1, |(): &mut (), item| {
            begun.fetch_add(1, Ordering::Relaxed);
            match item {
                9 => Err(BackupRepositoryError::new(Kind::Damaged, "read", "9", "spoilt")),
                _ => Ok(()),
            }
        });
        assert_eq!(failed.unwrap_err().kind(), Kind::Damaged);
        assert_eq!(begun.into_inner(), 10);
    }
}
