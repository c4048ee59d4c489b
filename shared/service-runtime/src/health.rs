//! Whether a service can do its work, as a set of named checks that its parts keep up to date.
//!
//! A process that runs is not a service that works: one that has lost its database would look alive for ever. Each part
//! registers a check, and the answer to `/healthz` is only good if all of them are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// All checks of a service. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Health {
    checks: Arc<Mutex<BTreeMap<String, Option<Failure>>>>,
}

#[derive(Debug, Clone)]
struct Failure {
    reason: String,
}

/// The check of one part of a service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    name: String,
    health: Health,
}

/// The answer to `/healthz`.
#[derive(Debug, Serialize)]
pub(crate) struct HealthReport {
    pub(crate) status: &'static str,
    checks: BTreeMap<String, CheckReport>,
}

#[derive(Debug, Serialize)]
struct CheckReport {
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Health {
    /// Adds a check, which fails with the reason "starting" until it is set. Registering a name again starts it anew.
    pub fn register(&self, name: impl Into<String>) -> HealthCheck {
        let check = HealthCheck { name: name.into(), health: self.clone() };
        check.set_failed("starting");
        check
    }

    /// Whether every check is good. Without any the service has only begun to start.
    pub fn is_ok(&self) -> bool {
        let checks = self.lock();
        !checks.is_empty() && checks.values().all(Option::is_none)
    }

    pub(crate) fn report(&self) -> HealthReport {
        let checks: BTreeMap<String, CheckReport> = self
            .lock()
            .iter()
            .map(|(name, failure)| {
                let reason = failure.as_ref().map(|failure| failure.reason.clone());
                (name.clone(), CheckReport { ok: reason.is_none(), reason })
            })
            .collect();
        let ok = !checks.is_empty() && checks.values().all(|check| check.ok);
        HealthReport { status: if ok { "ok" } else { "failed" }, checks }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Failure>>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HealthCheck {
    /// This part works.
    pub fn set_ok(&self) {
        self.set(None);
    }

    /// This part does not work. The reason is shown to anyone who asks: no secrets.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.set(Some(Failure { reason: reason.into() }));
    }

    fn set(&self, failure: Option<Failure>) {
        self.health.lock().insert(self.name.clone(), failure);
    }
}
