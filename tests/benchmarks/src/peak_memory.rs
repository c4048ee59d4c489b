//! The peak of a process' resident memory.
//!
//! The kernel keeps it (`VmHWM`) but forgets it with the process, and a job is a short-lived child that nobody here
//! starts or waits for. So it is read again and again; what is missed is the growth in the last few milliseconds.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const INTERVAL: Duration = Duration::from_millis(20);

/// Watches until it is asked.
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    watching: JoinHandle<u64>,
}

impl PeakMemory {
    /// Of one process.
    pub(crate) fn of_process(pid: u32) -> Self {
        Self::watch(move || peak_of(pid))
    }

    /// Of the largest job of a host-backup: of those children of it that are told to be one.
    pub(crate) fn of_jobs(host_backup: u32) -> Self {
        Self::watch(move || children_of(host_backup).filter(|pid| is_job(*pid)).filter_map(peak_of).max())
    }

    fn watch(look: impl Fn() -> Option<u64> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let watching = std::thread::spawn(move || {
            let mut peak = 0;
            while !asked.load(Ordering::Relaxed) {
                peak = peak.max(look().unwrap_or(0));
                std::thread::sleep(INTERVAL);
            }
            peak
        });
        Self { stop, watching }
    }

    /// The peak so far, in MB (10⁶ bytes).
    pub(crate) fn megabytes(self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        self.watching.join().unwrap_or(0) as f64 / 1e6
    }
}

/// In bytes.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

/// Each child belongs to the thread that started it.
fn children_of(pid: u32) -> impl Iterator<Item = u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: HashSet<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect();
    children.into_iter()
}

/// Before its `exec`, a child is still the parent in all but name.
fn is_job(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"job"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_this_very_process_is_more_than_a_megabyte() {
        assert!(peak_of(std::process::id()).is_some_and(|peak| peak > 1_000_000));
        assert_eq!(peak_of(u32::MAX), None);
    }
}
