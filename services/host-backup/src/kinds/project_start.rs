//! `project-start` and `project-stop`: what a project's runtime needs of its host.
//!
//! A project that has backups and no files on its host is restored first: the host is new to it, was emptied, or the
//! project was archived. An empty directory counts as no files; a persist store that is there without the files stays as
//! it is; and nothing is started over a restore that failed. What
//! a crash leaves is what it leaves of a restore, and a command that was run: commands are run again by the next
//! attempt, and are to allow that.

use std::time::Instant;

use async_trait::async_trait;
use bus_messages::kinds::{
    self, KindDefinition, ProjectStartInput, ProjectStartResult, ProjectStopInput, ProjectStopResult,
};
use domain_model::ProjectId;
use host_operations::{Record, project_of, result_value};
use operation_engine::{OperationContext, OperationFailure, OperationHandler};
use serde_json::Value;
use volumes::Presence;

use crate::host::SharedHost;
use crate::runtime_command::RuntimeCommand;

/// Does `project-start`.
pub(crate) struct ProjectStart {
    pub host: SharedHost,
    pub command: Option<RuntimeCommand>,
}

/// Does `project-stop`.
pub(crate) struct ProjectStop {
    pub host: SharedHost,
    pub command: Option<RuntimeCommand>,
}

#[async_trait]
impl OperationHandler for ProjectStart {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("project-start")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let project = project_of(operation)?;
        let mut record = self.host.record(operation, project);
        let outcome = self.start(operation, project, &mut record).await;
        let (files, bytes) = outcome.as_ref().map_or((0, 0), |result| (result.files, result.bytes));
        record.ended(&outcome, files, bytes);
        outcome.and_then(result_value)
    }
}

impl ProjectStart {
    async fn start(
        &self,
        operation: &OperationContext,
        project: ProjectId,
        record: &mut Record,
    ) -> Result<ProjectStartResult, OperationFailure> {
        let began = Instant::now();
        let _input: ProjectStartInput = operation.input()?;
        let mut result =
            ProjectStartResult { restored: None, files: 0, bytes: 0, command_run: false, duration_s: 0.0 };
        operation.progress("volume", "looking for the files of the project", None);
        let project_uuid = project.as_uuid();
        if let Some((backup, receipt)) = self.host.restored_before(operation, project).await? {
            (result.files, result.bytes) = (receipt.files, receipt.bytes);
            result.restored = Some(backup);
        }
        let presence = self.host.volumes(move |root| root.presence(project_uuid)).await?;
        if presence != Presence::Whole {
            operation.progress("repository", "there are none here: looking for a backup", None);
            // Which one it is says the hub: the newest, or the one that was asked for.
            if let Some(grant) = operation.repository_if_any().await?
                && let Some(backup) = grant.backup.clone()
            {
                record.started(&grant.bucket);
                let receipt = self.host.restore_whole(operation, project, &grant, &backup, presence).await?;
                (result.files, result.bytes) = (receipt.files, receipt.bytes);
                result.restored = Some(backup);
            }
        }
        operation.check()?;
        self.host.volumes(move |root| root.ensure_volume(project_uuid)).await?;
        if let Some(command) = &self.command {
            operation.progress("command", "starting the project", None);
            command.run("start", operation, project, &self.host.root).await?;
            result.command_run = true;
        }
        result.duration_s = began.elapsed().as_secs_f64();
        Ok(result)
    }
}

#[async_trait]
impl OperationHandler for ProjectStop {
    fn definition(&self) -> &'static KindDefinition {
        kinds::named("project-stop")
    }

    async fn run(&self, operation: &OperationContext) -> Result<Value, OperationFailure> {
        let began = Instant::now();
        let project = project_of(operation)?;
        let _input: ProjectStopInput = operation.input()?;
        if let Some(command) = &self.command {
            operation.progress("command", "stopping the project", None);
            command.run("stop", operation, project, &self.host.root).await?;
        }
        result_value(ProjectStopResult {
            command_run: self.command.is_some(),
            duration_s: began.elapsed().as_secs_f64(),
        })
    }
}
