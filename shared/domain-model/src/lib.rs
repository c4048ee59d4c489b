//! The words of the field: ids, scopes, states, paths and policies.
//!
//! Pure: no clock, no socket, no disk, no randomness; whoever needs those passes them in. So everything
//! that decides (may this operation go from here to there? how long to wait?) can be tested on its own.

mod back_off;
mod backup_id;
mod backup_schedule;
mod copy_status;
mod ids;
mod operation_kind;
mod operation_status;
mod phases;
mod project_path;
mod retention;
mod routing;
mod scope;
mod tag;
mod timestamp;

pub use back_off::BackOff;
pub use backup_id::{BackupId, BackupIdError};
pub use backup_schedule::{
    BackupDecision, BackupSchedule, BackupState, BackupUnderWay, DayWindow, DayWindowError,
};
pub use copy_status::{CopyStatus, CopyStatusError};
pub use ids::{AccountId, BucketId, CopyId, HostId, IdError, LeaseId, OperationId, ProjectId, RepositoryId};
pub use operation_kind::{OperationKind, OperationKindError};
pub use operation_status::{IllegalTransition, OperationEvent, OperationStatus, UnknownStatus, next_state};
pub use phases::{Phase, Progress, overall_percent};
pub use project_path::{
    LayoutPath, LayoutRoot, ProjectDirectory, ProjectPath, ProjectPathError, RESERVED_PREFIX,
};
pub use retention::{RetainedBackup, RetentionPolicy, dropped_backups};
pub use routing::{Routing, RoutingError};
pub use scope::{Scope, ScopeError, ScopeType};
pub use tag::{Tag, TagError};
pub use timestamp::{Timestamp, TimestampError};

/// Implements serde and JSON Schema for a type that travels as its text in every encoding, MessagePack included.
macro_rules! travels_as_text {
    ($type:ty, $schema_name:literal, $schema:tt) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl schemars::JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> std::borrow::Cow<'static, str> {
                $schema_name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
use travels_as_text;
