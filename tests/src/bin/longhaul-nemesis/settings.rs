//! What a run is made of.

use std::time::Duration;

use crate::faults::Kind;

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
    /// These kinds of faults alone, where there are any.
    pub(crate) only: Vec<Kind>,
}

impl Settings {
    /// Seconds that a lease lasts: shorter than in earnest, so that losing one takes less long; longer than a worker's
    /// heartbeat (10 s) and its margin (5 s), so that a healthy one is not lost.
    pub(crate) const LEASE: Duration = Duration::from_secs(17);
    const SLOTS: u32 = 24;

    /// The same for what the launcher starts and for what is started beside it.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let variables = [
            ("LONGHAUL_TEST_KINDS", "1".to_owned()),
            ("LONGHAUL_REGISTRY__OPERATIONS__LEASE_S", Self::LEASE.as_secs_f64().to_string()),
            ("LONGHAUL_REGISTRY__OPERATIONS__SWEEP_S", "1".to_owned()),
            ("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS", Self::SLOTS.to_string()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }
}
