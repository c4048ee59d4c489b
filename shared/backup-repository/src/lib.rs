//! The repositories of projects: initialising, backing up, restoring, looking into them. The only user of
//! `rustic_core`, whose format is restic's: every repository can be read with the `restic` and `rustic`
//! command lines and its password, without any of this.
//!
//! rustic_core is young. It swallows unreadable files, panics on failing reads, has no way to cancel, and
//! breaks its interface in most minor releases. Each module says which of these traps it is there for; what
//! is left (panics, memory) is contained by running jobs in child processes
//! ([`JobProcesses`] in the parent, [`run_job_child`] in the child).

mod backend;
mod backup;
mod browse;
mod browse_page;
mod browse_process;
mod error;
mod initialise;
mod job;
mod job_child;
mod job_process;
mod lacking;
mod mend;
mod metadata_cache;
mod node_metadata;
mod planned_entry;
mod preview;
mod prune;
mod repository;
mod repository_key;
mod restore;
mod restore_content;
mod resume;
mod side_by_side;
mod snapshot;
mod snapshot_tree;
mod source;
mod staging;
mod tree_digest;
mod verification;
mod walk;
mod write_deadline;

pub use backend::RequestCounts;
pub use backup::{BackupReceipt, BackupRequest, ParentUse};
pub use browse::{Browser, CheckReport, DirectoryEntry, EntryKind, SnapshotSummary};
pub use browse_page::{FindPage, FindQuery, ListPage, ListQuery, PageEntry, check_glob};
pub use browse_process::BrowseProcesses;
pub use error::{BackupRepositoryError, BackupRepositoryErrorKind, Result};
pub use initialise::{MARKER_NAME, RepositoryIdentity, initialise, repository_root};
pub use job::{JobEvent, JobFailure, JobFailureKind, JobProgress, JobRequest, JobResult, JobTask, run_job};
pub use job_child::run_job_child;
pub use job_process::{JobProcess, JobProcesses};
pub use mend::MendReceipt;
pub use metadata_cache::CacheSettings;
pub use preview::{Amount, Preview, PreviewRequest, PreviewTarget};
pub use prune::{PruneReceipt, PruneRequest};
pub use repository::{NoProgress, Progress, Repository, RepositoryLocation};
pub use repository_key::{RepositoryKey, RepositoryPassword};
pub use restore::{RestoreReceipt, RestoreRequest, RestoreTarget, Sample};
pub use snapshot::{LAYOUT_VERSION, MAX_TAG_CHARS, MAX_USER_TAGS, Purpose, SnapshotId, validate_tags};
pub use snapshot_tree::SnapshotPath;
pub use source::{CountedPaths, PERSIST_ROOT, PROJECT_ROOT, SourceState};
pub use walk::STAGING_PREFIX;
pub use write_deadline::{WriteDeadline, WriteUntil};
