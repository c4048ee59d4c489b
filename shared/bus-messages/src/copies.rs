use domain_model::{
    BackupId, CopyId, CopyStatus, LeaseId, OperationId, ProjectDirectory, ProjectId, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::kinds::{CopyOptions, CopyPaths, ProjectCopyResult};
use crate::{ChildOperation, FinishError};

/// A copy from one project to one place in another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectCopy {
    /// Its id.
    pub copy_id: CopyId,
    /// The `project-copy` that it is a part of.
    pub op_id: OperationId,
    /// Whose files.
    pub src_project_id: ProjectId,
    /// Which of them.
    pub src_path: CopyPaths,
    /// Where they go.
    pub dest_project_id: ProjectId,
    /// Where in there.
    pub dest_path: ProjectDirectory,
    /// How.
    pub options: CopyOptions,
    /// What has become of it.
    pub status: CopyStatus,
    /// The snapshot that it is applied from; null where none is needed, or it is not made yet.
    pub snapshot_id: Option<BackupId>,
    /// The operation that applies it, once there is one.
    pub apply_op_id: Option<OperationId>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When the last attempt ended.
    pub last_attempt_at: Option<Timestamp>,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it is given up.
    pub expires_at: Timestamp,
    /// When it came to an end.
    pub finished_at: Option<Timestamp>,
}

/// `copy.list`: the copies from and to a project, newest first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListCopies {
    /// Only these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<CopyStatus>,
    /// Only those of this `project-copy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<OperationId>,
    /// 1–200; 50 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where an earlier page ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply to `copy.list`, and to `copy.cancel`: those that it canceled, or asked to be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyList {
    /// The copies.
    pub copies: Vec<ProjectCopy>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// `copy.cancel`: one, those of one operation, or all that are pending from and to the project. Exactly one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelCopies {
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_id: Option<CopyId>,
    /// Those of this `project-copy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<OperationId>,
    /// All of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// `work.v1.hub.copy`: asked by the holder of a `project-copy` what is to be done next. All that is decided about copies
/// is in the database: the worker keeps nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyStepRequest {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
}

/// Reply to `copy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CopyStepReply {
    /// The phase that begins.
    pub phase: String,
    /// For people.
    pub message: String,
    /// What has to end first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<ChildOperation>,
    /// Where nothing is left to be done: how it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ProjectCopyResult>,
    /// Why no destination has got anything, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<FinishError>,
}
