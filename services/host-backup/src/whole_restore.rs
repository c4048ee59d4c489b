//! Restoring the whole of a backup in place of a project's files: for `project-restore`, and for `project-start` where
//! there are none.
//!
//! What an attempt has staged when it ends early, by a crash or by a failure that may pass, stays for the next one. What
//! will have no next attempt is deleted when it ends, or when the registry says so (`staged_leftovers`). What is replaced
//! stays beside until the end of the operation is recorded. Just before the exchange the operation's checkpoint says what was
//! restored: an attempt that comes after it has nothing more to do, and does not overwrite what people have edited since.

use backup_repository::{RestoreReceipt, RestoreTarget};
use bus_messages::{EventLevel, RepositoryGrant};
use domain_model::{BackupId, ProjectId};
use operation_engine::{OperationContext, OperationFailure};
use serde::{Deserialize, Serialize};
use volumes::{Presence, Staged};

use crate::host::Host;

/// The code of a failure: what was restored is not what was backed up.
const NOT_WHAT_IT_WAS: &str = "verification_failed";

/// The checkpoint of a whole restore that is to be put in place.
#[derive(Debug, Serialize, Deserialize)]
struct Restored {
    backup: BackupId,
    receipt: RestoreReceipt,
}

impl Host {
    /// What an earlier attempt of the operation has put in place, if it has.
    pub(crate) async fn restored_before(
        &self,
        operation: &OperationContext,
        project: ProjectId,
    ) -> Result<Option<(BackupId, RestoreReceipt)>, OperationFailure> {
        let Some(Restored { backup, receipt }) = operation.checkpoint()? else { return Ok(None) };
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        if !self.volumes(move |root| root.was_exchanged(project, op_id)).await? {
            return Ok(None);
        }
        let message =
            format!("an earlier attempt has put the backup {backup} in place: nothing is left to do");
        operation.event(EventLevel::Info, "exchange", message, None);
        self.restore_has_ended.notify_one();
        Ok(Some((backup, receipt)))
    }

    /// Restores, verifies, and puts in place. `presence` tells what there is that is not to be
    /// replaced.
    pub(crate) async fn restore_whole(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: &BackupId,
        presence: Presence,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let mut staged = self.volumes(move |root| root.stage_again(project, op_id)).await?;
        let mut restored = self.download_into(operation, grant, backup, &staged).await;
        if staged.resumed && restored.as_ref().err().is_some_and(is_about_what_is_staged) {
            operation.event(EventLevel::Warn, "download", "what was staged cannot be used: anew", None);
            staged = self
                .volumes(move |root| root.discard(staged).and_then(|()| root.stage_again(project, op_id)))
                .await?;
            restored = self.download_into(operation, grant, backup, &staged).await;
        }
        let restored = restored.and_then(|receipt| {
            operation.progress("exchange", "putting the files in place", None);
            operation.check().map(|()| receipt)
        });
        let receipt = match restored {
            Ok(receipt) => receipt,
            Err(failure) if another_attempt_goes_on_with_it(&failure) => return Err(failure),
            Err(failure) => {
                operation.progress("clean-up", "deleting what was staged", None);
                self.tidy(operation, move |root| root.discard(staged)).await?;
                return Err(failure);
            }
        };
        operation.save_checkpoint(&Restored { backup: backup.clone(), receipt: receipt.clone() }).await?;
        let keeps_persist_store = presence == Presence::PersistStoreOnly;
        if keeps_persist_store {
            let message = "the persist store is here, and is kept as it is; only the files were missing";
            operation.event(EventLevel::Warn, "exchange", message, None);
        }
        self.volumes(move |root| match keeps_persist_store {
            true => root.exchange_files(&staged),
            false => root.exchange(&staged),
        })
        .await?;
        operation.progress("clean-up", "what was replaced goes once this is recorded", None);
        self.restore_has_ended.notify_one();
        Ok(receipt)
    }

    async fn download_into(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        staged: &Staged,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let target =
            RestoreTarget::Whole { project: staged.project_dir.clone(), persist: staged.persist_dir.clone() };
        let receipt = self.download(operation, grant, backup, target, staged.resumed).await?;
        // The job has compared what it wrote with what the repository says. This compares it with what the
        // hub has recorded when the backup was made.
        match &grant.tree {
            Some(tree) if *tree != receipt.tree => {
                let message = format!(
                    "the restored tree is {}, and the backup's was {tree}; nothing was put in place",
                    receipt.tree
                );
                Err(OperationFailure::permanent(NOT_WHAT_IT_WAS, message))
            }
            _ => Ok(receipt),
        }
    }

    /// Has a job write what it reads, and compare both. With `resume` it goes on with what is there.
    pub(crate) async fn download(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        target: RestoreTarget,
        resume: bool,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let message = if resume { "going on with what is staged" } else { "reading the backup" };
        operation.progress("download", message, None);
        let receipt = self.runner.restore(operation, grant, backup, target, None, resume).await?;
        if resume {
            let (had, all) = (receipt.resumed_bytes as f64 / 1e6, receipt.bytes as f64 / 1e6);
            let message = format!("{had:.1} MB of {all:.1} MB were there from an earlier attempt");
            operation.event(EventLevel::Info, "download", message, None);
        }
        operation.progress("verify", format!("{} files are as they were", receipt.files), None);
        Ok(receipt)
    }
}

/// Whether beginning anew may end better at once.
fn is_about_what_is_staged(failure: &OperationFailure) -> bool {
    let codes = [NOT_WHAT_IT_WAS, "destination_unusable"];
    matches!(failure, OperationFailure::Failed { code, .. } if codes.contains(&code.as_str()))
}

/// Whether what is staged stays. Not where it fills a disk that others need, and not where it is wrong.
fn another_attempt_goes_on_with_it(failure: &OperationFailure) -> bool {
    match failure {
        OperationFailure::Failed { code, retryable, .. } => {
            *retryable && code != "no_space" && !is_about_what_is_staged(failure)
        }
        OperationFailure::Lost | OperationFailure::HandedBack => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_staged_stays_for_an_attempt_that_it_helps() {
        let retryable = |code| OperationFailure::retryable(code, "for a test");
        for (failure, stays) in [
            (retryable("bucket_unreachable"), true),
            (retryable("job"), true),
            (retryable("no_space"), false),
            (retryable("verification_failed"), false),
            (OperationFailure::Lost, true),
            (OperationFailure::HandedBack, true),
            (OperationFailure::Canceled, false),
            (OperationFailure::permanent("repository_damaged", "for a test"), false),
        ] {
            assert_eq!(another_attempt_goes_on_with_it(&failure), stays, "{failure}");
        }
    }
}
