//! What a run is made of.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::faults::Kind;
use crate::history::Cap;

/// What a run is made of.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// How long faults happen.
    pub(crate) duration: Duration,
    /// Workers and registries beside those that `longhaul up` starts.
    pub(crate) workers: usize,
    pub(crate) registries: usize,
    /// New requests a second, as long as not too much is open.
    pub(crate) rate: f64,
    /// So many operations may be open at once.
    pub(crate) open: u64,
    /// And so many of projects.
    pub(crate) open_of_projects: u64,
    /// These kinds of faults alone, where there are any.
    pub(crate) only: Vec<Kind>,
}

impl Settings {
    /// Seconds that a lease lasts: shorter than in earnest, so that losing one takes less long; longer than a worker's
    /// heartbeat (10 s) and its margin (5 s), so that a healthy one is not lost.
    pub(crate) const LEASE: Duration = Duration::from_secs(17);
    const SLOTS: u32 = 96;
    /// So many of the last backups of a project stay: few, so that a prune has something to delete.
    const BACKUPS_KEPT: u32 = 4;

    /// How many operations of a kind may run at once. Of `test-sleep` three quarters of what the workers have slots for, so
    /// that they always want more; of backups one, where the host has slots for two and there are two projects.
    pub(crate) fn caps(&self) -> BTreeMap<String, Cap> {
        let slots = Self::SLOTS * (u32::try_from(self.workers).unwrap_or(0) + 1);
        BTreeMap::from([
            ("test-sleep".to_owned(), Cap { in_all: Some(slots * 3 / 4), per_host: None }),
            ("project-backup".to_owned(), Cap { in_all: None, per_host: Some(1) }),
        ])
    }

    /// The same for what the launcher starts and for what is started beside it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let caps = self.caps().into_iter().flat_map(|(kind, cap)| {
            let variable = |name: &str, most: u32| {
                let name = format!("LONGHAUL_REGISTRY__OPERATIONS__CAPS__{}__{name}", kind.to_uppercase());
                (name, most.to_string())
            };
            let of_kind = [
                cap.in_all.map(|most| variable("IN_ALL", most)),
                cap.per_host.map(|most| variable("PER_HOST", most)),
            ];
            of_kind.into_iter().flatten()
        });
        let variables = [
            ("LONGHAUL_TEST_KINDS", "1".to_owned()),
            ("LONGHAUL_REGISTRY__OPERATIONS__LEASE_S", Self::LEASE.as_secs_f64().to_string()),
            ("LONGHAUL_REGISTRY__OPERATIONS__SWEEP_S", "1".to_owned()),
            ("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS", Self::SLOTS.to_string()),
            ("LONGHAUL_REGISTRY__BACKUPS__KEEP__LAST", Self::BACKUPS_KEPT.to_string()),
            ("LONGHAUL_HOST_BACKUP__HOST__LOOK_FOR_LEFTOVERS_EVERY_S", "2".to_owned()),
        ];
        variables.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(caps).collect()
    }
}
