//! Where the processor time of a system goes: by the processes that its launcher has started, each with its children.

use std::collections::BTreeMap;
use std::fs;

/// What the kernel counts in, on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of processor time so far, by the name of the launcher's child.
pub(crate) struct ProcessorTime(BTreeMap<String, f64>);

struct Process {
    name: String,
    parent: u32,
    /// Its own, and that of its children that have ended.
    ticks: u64,
}

impl ProcessorTime {
    /// Of the children of `launcher` now.
    pub(crate) fn of_children(launcher: u32) -> Self {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let processes: BTreeMap<u32, Process> = ids.filter_map(|id| Some((id, read(id)?))).collect();
        let mut seconds = BTreeMap::new();
        for process in processes.values() {
            // Up to the ancestor that the launcher started.
            let mut ancestor = process;
            while ancestor.parent != launcher {
                let Some(parent) = processes.get(&ancestor.parent) else { break };
                ancestor = parent;
            }
            if ancestor.parent == launcher {
                *seconds.entry(ancestor.name.clone()).or_insert(0.0) +=
                    process.ticks as f64 / TICKS_PER_SECOND;
            }
        }
        Self(seconds)
    }

    /// And of the benchmark itself: where it is client or worker, its share of the processors is nobody else's.
    pub(crate) fn and_of_the_benchmark(mut self) -> Self {
        let ticks = read(std::process::id()).map_or(0, |process| process.ticks);
        self.0.insert("the benchmark".to_owned(), ticks as f64 / TICKS_PER_SECOND);
        self
    }

    /// Seconds used since `earlier`, by the name of the launcher's child.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> BTreeMap<String, f64> {
        let before = |name: &String| earlier.0.get(name).copied().unwrap_or(0.0);
        self.0.iter().map(|(name, seconds)| (name.clone(), seconds - before(name))).collect()
    }

    /// What was used since `earlier`, as a line for people: milliseconds for each of `shares`.
    pub(crate) fn since(&self, earlier: &Self, shares: usize) -> String {
        let used = self.0.iter().map(|(name, seconds)| {
            let before = earlier.0.get(name).copied().unwrap_or(0.0);
            format!("{name} {:.2} ms", (seconds - before) * 1000.0 / shares as f64)
        });
        used.collect::<Vec<_>>().join(", ")
    }
}

fn read(id: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // `pid (name) state parent …`: a name may hold anything, a parenthesis included.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = after.split_whitespace().collect();
    let parent = fields.get(1)?.parse().ok()?;
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Process { name, parent, ticks })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_a_name_a_parent_and_has_used_some_time_at_most() {
        let process = read(std::process::id());
        assert!(process.is_some_and(|process| process.parent > 0 && !process.name.is_empty()));
    }
}
