use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use domain_model::HostId;

/// Hosts of which something was noted lately.
#[derive(Debug)]
pub(crate) struct RecentHosts {
    remembered: Duration,
    noted_at: Mutex<HashMap<HostId, Instant>>,
}

impl RecentHosts {
    /// Remembers what was noted for so long.
    pub(crate) fn new(remembered: Duration) -> Self {
        Self { remembered, noted_at: Mutex::default() }
    }

    /// Whether it was noted of this host lately.
    pub(crate) fn contains(&self, host: HostId) -> bool {
        let mut noted_at = self.noted_at.lock().unwrap_or_else(PoisonError::into_inner);
        noted_at.retain(|_, noted_at| noted_at.elapsed() < self.remembered);
        noted_at.contains_key(&host)
    }

    /// Notes it of this host, now.
    pub(crate) fn note(&self, host: HostId) {
        self.noted_at.lock().unwrap_or_else(PoisonError::into_inner).insert(host, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_was_noted_is_forgotten_after_its_time() {
        let (one, other) = (HostId::from(Uuid::new_v4()), HostId::from(Uuid::new_v4()));
        let hosts = RecentHosts::new(Duration::from_secs(3600));
        hosts.note(one);
        assert!(hosts.contains(one) && !hosts.contains(other));
        let hosts = RecentHosts::new(Duration::ZERO);
        hosts.note(one);
        assert!(!hosts.contains(one));
    }
}
