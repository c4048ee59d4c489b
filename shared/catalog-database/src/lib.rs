//! Every SQL statement of Longhaul; one file a table. Postgres is the truth about projects and operations.
//!
//! Rows are private to this crate; what comes out is the domain's. Constraints that guard something are
//! named for it, and reach the caller as [`DatabaseErrorKind::Constraint`].

mod accounts;
mod backup_schedule;
mod backups;
mod buckets;
mod copies;
mod copy_repositories;
mod database;
mod declared_kinds;
mod error;
mod hosts;
mod operations;
mod outbox;
mod project_secrets;
mod project_states;
mod projects;
mod retention;

pub use accounts::AccountRights;
pub use backup_schedule::{BackupStanding, DueProject, SCHEDULED, Scheduled, URGENT, Upkeep};
pub use backups::BackupPlace;
pub use buckets::{BucketPlacement, NewBucket};
pub use copies::{ApplyStanding, CopiesToCancel, CopyStanding, PendingCopy, SnapshotEnd};
pub use copy_repositories::CopyRepository;
pub use database::Database;
pub use error::{DatabaseError, DatabaseErrorKind};
pub use operations::{
    CancelOutcome, Caps, ClaimWanted, CreateOutcome, Due, Ended, FinishOutcome, Finished, Heartbeat,
    HeartbeatOutcome, KindWanted, LeaseFence, LeasedOperation, ListFilter, NewOperation, Swept,
};
pub use outbox::{OutboxEntry, OutboxEvent, ToTell};
pub use project_secrets::ProjectSecret;
pub use projects::{NewProject, ProjectLock, ProjectPlace};
pub use retention::{DeletionMark, RetentionRound};
