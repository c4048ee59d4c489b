//! Restoring the whole of a backup in place of a project's files: for `project-restore`, and for `project-start` where
//! there are none.

use backup_repository::{RestoreReceipt, RestoreTarget};
use bus_messages::RepositoryGrant;
use domain_model::{BackupId, ProjectId};
use operation_engine::{OperationContext, OperationFailure};

use crate::host::Host;

impl Host {
    /// Restores, verifies, and puts in place. Says where the files went.
    pub(crate) async fn restore_whole(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        grant: &RepositoryGrant,
        backup: &BackupId,
    ) -> Result<(RestoreReceipt, String), OperationFailure> {
        let (project, op_id) = (project.as_uuid(), operation.op_id().as_uuid());
        let staged = self.volumes(move |root| root.stage(project, op_id)).await?;
        let target =
            RestoreTarget::Whole { project: staged.project_dir.clone(), persist: staged.persist_dir.clone() };
        let restored = self.download(operation, grant, backup, target).await.and_then(|receipt| {
            // The job has compared what it wrote with what the repository says. This compares it with what the
            // hub has recorded when the backup was made.
            match &grant.tree {
                Some(tree) if *tree != receipt.tree => Err(OperationFailure::permanent(
                    "verification_failed",
                    format!(
                        "the restored tree is {}, and the backup's was {tree}; nothing was put in place",
                        receipt.tree
                    ),
                )),
                _ => Ok(receipt),
            }
        });
        let restored = restored.and_then(|receipt| {
            operation.progress("exchange", "putting the files in place", None);
            operation.check().map(|()| receipt)
        });
        let receipt = match restored {
            Ok(receipt) => receipt,
            Err(failure) => {
                operation.progress("clean-up", "deleting what was staged", None);
                self.tidy(operation, move |root| root.discard(staged)).await?;
                return Err(failure);
            }
        };
        let staged = self.volumes(move |root| root.exchange(&staged).map(|()| staged)).await?;
        operation.progress("clean-up", "deleting the files that were replaced", None);
        if let Err(error) = self.tidy(operation, move |root| root.discard(staged)).await {
            tracing::warn!(op.id = %operation.op_id(), ?error, "replaced files could not be deleted");
        }
        Ok((receipt, "project".to_owned()))
    }

    /// Has a job write what it reads, and compare both.
    pub(crate) async fn download(
        &self,
        operation: &OperationContext,
        grant: &RepositoryGrant,
        backup: &BackupId,
        target: RestoreTarget,
    ) -> Result<RestoreReceipt, OperationFailure> {
        operation.progress("download", "reading the backup", None);
        let receipt = self.runner.restore(operation, grant, backup, target, None).await?;
        operation.progress("verify", format!("{} files are as they were", receipt.files), None);
        Ok(receipt)
    }
}
