//! What happens by the clock: backups that are due, copies that wait, old backups, and the cry when there is none in time.

use std::time::Duration;

use service_runtime::{Gauge, HealthCheck, Metrics, Runtime};

use crate::names::BackupKind;
use crate::operations::{OperationKind, OperationState};
use crate::service::DatabaseBackup;

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// How often copies that wait are tried again and old backups are looked for.
const MAINTENANCE: Duration = Duration::from_secs(3600);

/// How often the log says that the database is at risk.
const REMINDER: Duration = Duration::from_secs(3600);

struct Measures {
    at_risk: Gauge,
    last_success: Gauge,
    last_failed: Gauge,
    pending: Gauge,
    operations: service_runtime::Family<service_runtime::Labels, Gauge>,
}

impl Measures {
    fn new(metrics: &Metrics) -> Self {
        Self {
            at_risk: metrics.gauge(
                "longhaul_database_backup_at_risk",
                "1 while the newest backup is older than may be lost",
            ),
            last_success: metrics.gauge(
                "longhaul_database_backup_last_success_timestamp_seconds",
                "When the newest backup was taken, in seconds since 1970; 0 where none is known",
            ),
            last_failed: metrics
                .gauge("longhaul_database_backup_last_failed", "1 while the last backup is one that failed"),
            pending: metrics.gauge(
                "longhaul_database_backup_pending_uploads",
                "Checked copies that wait for their upload",
            ),
            operations: metrics.gauge_family(
                "longhaul_database_backup_recent_operations",
                "The last 20 operations of this process, by kind and state",
            ),
        }
    }

    fn show(&self, service: &DatabaseBackup, at_risk: bool) {
        self.at_risk.set(i64::from(at_risk));
        self.last_success.set(service.last_success().map_or(0, |at| at.unix_timestamp()));
        self.last_failed.set(i64::from(service.last_failed()));
        self.pending.set(i64::try_from(service.pending_uploads()).unwrap_or(i64::MAX));
        let operations = service.operations().all();
        for (kind, kind_name) in [
            (OperationKind::Backup, "backup"),
            (OperationKind::Restore, "restore"),
            (OperationKind::Maintenance, "maintenance"),
        ] {
            for (state, state_name) in [
                (OperationState::Running, "running"),
                (OperationState::Succeeded, "succeeded"),
                (OperationState::Failed, "failed"),
            ] {
                let count = operations.iter().filter(|one| one.kind == kind && one.state == state).count();
                let labels = vec![("kind", kind_name.to_owned()), ("state", state_name.to_owned())];
                self.operations.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}

/// Looks at the clock until it is dropped.
pub(crate) async fn watch(service: DatabaseBackup, runtime: Runtime) {
    let measures = Measures::new(&runtime.metrics);
    let health = runtime.health.register("backups");
    if service.require_enabled().is_err() {
        tracing::warn!("backups are disabled (BACKUP_ENABLED=false): nothing is backed up");
        health.set_ok();
        return std::future::pending().await;
    }
    let started = service.now();
    let mut watch = Watch { service, started, maintained: None, reminded: None, scheduled: None };
    loop {
        watch.look(&measures, &health);
        tokio::time::sleep(LOOK).await;
    }
}

struct Watch {
    service: DatabaseBackup,
    started: time::OffsetDateTime,
    maintained: Option<time::OffsetDateTime>,
    reminded: Option<time::OffsetDateTime>,
    scheduled: Option<time::OffsetDateTime>,
}

impl Watch {
    fn look(&mut self, measures: &Measures, health: &HealthCheck) {
        let (service, now) = (&self.service, self.service.now());
        let since = |at: Option<time::OffsetDateTime>| at.map(|at| now - at);
        if since(self.maintained).is_none_or(|age| age >= MAINTENANCE)
            // Something else runs: at the next look.
            && service.begin_maintenance().is_ok()
        {
            self.maintained = Some(now);
        }
        let interval = Duration::from_secs(service.settings().backup.interval_s);
        if !interval.is_zero() {
            let due = since(service.last_success()).is_none_or(|age| age >= interval);
            // One that failed is tried again, but not every ten seconds.
            let patience = interval.min(Duration::from_secs(300));
            let tried = since(self.scheduled).is_some_and(|age| age < patience);
            let looked =
                since(Some(self.started)).is_some_and(|age| age >= LOOK) || service.last_success().is_some();
            if due && !tried && looked && service.begin_backup(BackupKind::Scheduled).is_ok() {
                self.scheduled = Some(now);
            }
        }
        let at_risk = service.at_risk(self.started);
        measures.show(service, at_risk.is_some());
        match at_risk {
            Some(age) => {
                health.set_failed("too long without a backup");
                if since(self.reminded).is_none_or(|age| age >= REMINDER) {
                    tracing::error!(
                        at_risk = true,
                        age_s = age.as_secs(),
                        "AT RISK: the newest backup is {} h old, and more than {} h may not be lost",
                        age.as_secs() / 3600,
                        service.settings().backup.at_risk_after_s / 3600
                    );
                    self.reminded = Some(now);
                }
            }
            None if service.last_failed() => health.set_failed("the last backup failed"),
            None => {
                health.set_ok();
                self.reminded = None;
            }
        }
    }
}
