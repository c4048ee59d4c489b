//! `repo-check`: read what a repository says that it has, and a share of what it has.
//!
//! A sound repository is not changed. Damage is a failure that no other attempt is made after, with what is wrong in its
//! message and its events; a request that failed says nothing about the repository, and is tried again. Packs that are
//! damaged are taken out of the index (`backup-repository/src/mend.rs` says what a crash in that leaves), and the hub
//! counts the project as changed: the next backup stores again what is still among its files. Until a check finds the
//! repository sound again, the hub calls the backups bad that lack data.

use std::time::{Instant, SystemTime};

use async_trait::async_trait;
use backup_repository::{CheckReport, JobResult, JobTask, MendReceipt};
use bus_messages::kinds::{self, KindDefinition, RepoCheckInput, RepoCheckResult, RepositoryDamage};
use bus_messages::{EventLevel, RepositoryGrant};
use host_operations::{Record, project_of, result_value, something_else};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;

use crate::bad_backups::{backups, some_of};
use crate::host::{SharedHost, timestamp};

/// So much of what is wrong is told.
const TOLD: usize = 5;
/// So many bad backups fit into a result, which has 24 KiB.
const MOST_LACKING: usize = 300;

/// Does `repo-check`.
pub(crate) struct RepoCheck {
    pub host: SharedHost,
}

#[async_trait]
impl OperationHandler for RepoCheck {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("repo-check")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.check(operation, &mut record).await;
        record.ended(&outcome, 0, 0);
        outcome.and_then(result_value)
    }
}

impl RepoCheck {
    async fn check(
        &self,
        operation: &OperationContext,
        record: &mut Record,
    ) -> Result<RepoCheckResult, OperationFailure> {
        let began = Instant::now();
        let input: RepoCheckInput = operation.input()?;
        operation.progress("repository", "opening the repository", None);
        let grant = operation.repository().await?;
        record.started(&grant.bucket);
        let shares = input.read_data_shares;
        let share = (shares > 0).then(|| input.share.unwrap_or_else(|| share_of_today(shares)));
        let message = match share {
            None => "reading what the repository says that it has".to_owned(),
            Some(share) => format!("reading share {share} of {shares} of the data"),
        };
        operation.progress("check", message, None);
        let task_share = share.map(|share| (share, shares));
        let task = JobTask::Check { read_data: share.is_some(), share: task_share };
        let report: CheckReport = match self.host.runner.run(operation, &grant, task, "check").await? {
            JobResult::Check(report) => report,
            other => return Err(something_else(&other)),
        };
        for error in report.errors.iter().take(TOLD) {
            operation.event(EventLevel::Error, "check", error.clone(), None);
        }
        if !report.is_sound() {
            tracing::error!(op.id = %operation.op_id(), errors = ?report.errors, "a repository is damaged");
            let told: Vec<&str> = report.errors.iter().take(TOLD).map(String::as_str).collect();
            let mended = self.mend(operation, &grant, task_share).await?;
            let mut message =
                format!("{} errors in the repository: {}", report.errors.len(), told.join("; "));
            if !mended.is_empty() {
                message += &format!("; {}", what_was_set_aside(&mended));
            }
            let lacking = backups(&mended.lacking[..mended.lacking.len().min(MOST_LACKING)])?;
            if !lacking.is_empty() {
                message += &format!(
                    "; {} backups lack data and are bad: {}",
                    mended.lacking.len(),
                    some_of(&lacking)
                );
            }
            let result = result_value(RepositoryDamage { lacking })?;
            return Err(OperationFailure::FailedWith {
                code: "repository_damaged".to_owned(),
                message,
                result,
            });
        }
        Ok(RepoCheckResult {
            read_data_shares: shares,
            share,
            warnings: report.warnings.len() as u64,
            requests: report.requests.total(),
            duration_s: began.elapsed().as_secs_f64(),
        })
    }

    /// Has damaged packs set aside, and tells of it.
    async fn mend(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        share: Option<(u32, u32)>,
    ) -> Result<MendReceipt, OperationFailure> {
        operation.progress("check", "setting damaged packs aside", None);
        let receipt = match self.host.runner.run(operation, grant, JobTask::Mend { share }, "check").await? {
            JobResult::Mend(receipt) => receipt,
            other => return Err(something_else(&other)),
        };
        if !receipt.is_empty() {
            tracing::error!(op.id = %operation.op_id(), ?receipt, "damaged packs are set aside");
            operation.event(EventLevel::Warn, "check", what_was_set_aside(&receipt), None);
        }
        if !receipt.lacking.is_empty() {
            let message = format!("{} backups lack data, and are bad", receipt.lacking.len());
            operation.event(EventLevel::Error, "check", message, None);
        }
        Ok(receipt)
    }
}

fn what_was_set_aside(receipt: &MendReceipt) -> String {
    format!(
        "{} packs were stored again from the cache and {} set aside, with {} blobs lost and {} saved",
        receipt.stored_again.len(),
        receipt.set_aside.len(),
        receipt.blobs_lost,
        receipt.blobs_saved
    )
}

/// One after the other, a day each.
fn share_of_today(shares: u32) -> u32 {
    let day = timestamp(SystemTime::now()).as_date_time().to_julian_day();
    u32::try_from(day).unwrap_or_default() % shares.max(1)
}
