//! What restores have in common: staged, verified, put in place once.
//!
//! What an attempt has staged when it ends early, by a crash or by a failure that may pass, stays for the next one. What
//! will have no next attempt is deleted when it ends, or when the registry says so (`staged_leftovers`). What is replaced
//! stays beside until the end of the operation is recorded. Just before the exchange the operation's checkpoint says what was
//! restored: an attempt that comes after it has nothing more to do, and does not overwrite what people have edited since.

use backup_repository::{RestoreReceipt, RestoreTarget};
use bus_messages::{EventLevel, RepositoryGrant};
use domain_model::{BackupId, ProjectId};
use host_operations::volume_failure;
use operation_engine::{OperationContext, OperationFailure};
use serde::{Deserialize, Serialize};
use volumes::{HostRoot, Presence, VolumeError};

use crate::host::Host;

/// The code of a failure: what was restored is not what was backed up.
const NOT_WHAT_IT_WAS: &str = "verification_failed";

/// The checkpoint of a restore that is to be put in place.
#[derive(Debug, Serialize, Deserialize)]
struct Restored {
    backup: BackupId,
    receipt: RestoreReceipt,
}

/// What a job is to do with what is staged.
pub(crate) struct Download {
    pub target: RestoreTarget,
    /// Whether it goes on with what is there.
    pub resume: bool,
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

    /// Restores all of a backup, verifies it, and puts it in the place of a project's files. `presence` tells what there is
    /// that is not to be replaced.
    pub(crate) async fn restore_whole(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: &BackupId,
        presence: Presence,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let stage = move |root: &HostRoot| {
            root.stage_again(project, op_id).map(|staged| {
                let (project, persist) = (staged.project_dir.clone(), staged.persist_dir.clone());
                let target = RestoreTarget::Whole { project, persist };
                (Download { target, resume: staged.resumed }, staged)
            })
        };
        let (staged, receipt) = self
            .download_staged(operation, grant, backup, stage, |root, staged| root.discard(staged))
            .await?;
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
        self.is_in_place(operation);
        Ok(receipt)
    }

    /// The failure of a restore that could not be put in place. What is staged stays where there is another attempt, which goes
    /// on with it or begins anew, and is deleted where there is none.
    pub(crate) async fn not_placed(
        &self,
        operation: &OperationContext,
        error: VolumeError,
    ) -> OperationFailure {
        let failure = volume_failure(&error);
        if another_attempt_goes_on_with_it(&failure) {
            return failure;
        }
        let op_id = operation.op_id().as_uuid();
        operation.progress("clean-up", "deleting what was staged", None);
        let tidied = self.tidy(operation, move |root| root.abandon(op_id).map(drop)).await;
        tidied.err().unwrap_or(failure)
    }

    /// Says that what is replaced can go.
    pub(crate) fn is_in_place(&self, operation: &OperationContext) {
        operation.progress("clean-up", "what was replaced goes once this is recorded", None);
        self.restore_has_ended.notify_one();
    }

    /// Stages, has a job download and verify, and remembers that the exchange is next. What is staged of an earlier attempt
    /// and cannot be used is staged anew at once.
    pub(crate) async fn download_staged<S: Send + 'static>(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        stage: impl Fn(&HostRoot) -> Result<(Download, S), VolumeError> + Clone + Send + 'static,
        discard: fn(&HostRoot, S) -> Result<(), VolumeError>,
    ) -> Result<(S, RestoreReceipt), OperationFailure> {
        let (download, mut staged) = self.volumes(stage.clone()).await?;
        let resumed = download.resume;
        let mut restored = self.download(operation, grant, backup, download).await;
        if resumed && restored.as_ref().err().is_some_and(is_about_what_is_staged) {
            operation.event(EventLevel::Warn, "download", "what was staged cannot be used: anew", None);
            let (download, anew) =
                self.volumes(move |root| discard(root, staged).and_then(|()| stage(root))).await?;
            staged = anew;
            restored = self.download(operation, grant, backup, download).await;
        }
        let restored = restored.and_then(|receipt| {
            operation.progress("exchange", "putting what was restored in place", None);
            operation.check().map(|()| receipt)
        });
        let receipt = match restored {
            Ok(receipt) => receipt,
            Err(failure) if another_attempt_goes_on_with_it(&failure) => return Err(failure),
            Err(failure) => {
                operation.progress("clean-up", "deleting what was staged", None);
                self.tidy(operation, move |root| discard(root, staged)).await?;
                return Err(failure);
            }
        };
        operation.save_checkpoint(&Restored { backup: backup.clone(), receipt: receipt.clone() }).await?;
        Ok((staged, receipt))
    }

    /// Has a job write what it reads, and compare both.
    async fn download(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        Download { target, resume }: Download,
    ) -> Result<RestoreReceipt, OperationFailure> {
        let message = if resume { "going on with what is staged" } else { "reading the backup" };
        operation.progress("download", message, None);
        let is_whole = matches!(target, RestoreTarget::Whole { .. });
        let receipt = self.runner.restore(operation, grant, backup, target, None, resume).await?;
        if resume {
            let (had, all) = (receipt.resumed_bytes as f64 / 1e6, receipt.bytes as f64 / 1e6);
            let message = format!("{had:.1} MB of {all:.1} MB were there from an earlier attempt");
            operation.event(EventLevel::Info, "download", message, None);
        }
        operation.progress("verify", format!("{} files are as they were", receipt.files), None);
        // The job has compared what it wrote with what the repository says. This compares it with what the
        // hub has recorded when the backup was made.
        match &grant.tree {
            Some(tree) if is_whole && *tree != receipt.tree => {
                let message = format!(
                    "the restored tree is {}, and the backup's was {tree}; nothing was put in place",
                    receipt.tree
                );
                Err(OperationFailure::permanent(NOT_WHAT_IT_WAS, message))
            }
            _ => Ok(receipt),
        }
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
