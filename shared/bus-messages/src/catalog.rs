//! Projects, hosts, buckets, backups and accounts, as the API shows them.

use domain_model::{
    AccountId, BackupId, BucketId, HostId, OperationId, OperationKind, ProjectId, Scope, Tag, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::BackupPolicy;

/// A request without fields.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// A project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its title.
    pub title: String,
    /// Whose it is.
    pub account_id: Option<AccountId>,
    /// The host that has its files.
    pub host_id: HostId,
    /// Where its backups are to be: wnam, enam, weur, eeur, apac or oc.
    pub region: String,
    /// `stopped`, `starting`, `running`, `stopping`.
    pub state: String,
    /// The bucket of its backups; set once, on the first backup.
    pub backup_bucket_id: Option<BucketId>,
    /// Who else may use it.
    pub collaborators: Vec<AccountId>,
    /// When its files may last have changed.
    pub last_edited: Option<Timestamp>,
    /// When its newest backup was taken.
    pub last_backup_at: Option<Timestamp>,
    /// Its newest backup.
    pub last_backup_id: Option<BackupId>,
    /// When one of its backups was last proven to restore.
    pub last_verified_at: Option<Timestamp>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// `api.v1.hub.project.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateProject {
    /// 1–200 characters.
    pub title: String,
    /// The host that has its files.
    pub host_id: HostId,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account_id: Option<AccountId>,
    /// Where its backups are to be; the host's region by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Reply that is one project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectReply {
    /// The project.
    pub project: Project,
}

/// A page to ask for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListRequest {
    /// At most so many, 1–200; 50 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Reply to `project.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectList {
    /// The projects, newest first.
    pub projects: Vec<Project>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// Reply to `project.status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProjectStatus {
    /// The project.
    pub project: Project,
    /// When its newest backup was taken.
    pub last_backup_at: Option<Timestamp>,
    /// When one of its backups was last proven to restore.
    pub last_verified_at: Option<Timestamp>,
    /// The newest of its backups that was proven to restore and is not known to be bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_verified_backup_id: Option<BackupId>,
    /// Where its backups are.
    pub region: String,
    /// What is going on with it.
    pub running_ops: Vec<OperationId>,
    /// Whether it may have something that is not in its newest backup.
    pub changed_since_backup: bool,
    /// Whether something would be lost if its host were lost now.
    pub at_risk: bool,
    /// Why.
    pub at_risk_reason: Option<String>,
    /// How much work would be lost: the seconds since what is not saved began to change. 0 if nothing is at risk.
    pub at_risk_s: f64,
    /// How it is backed up: its own policy over that of its account over that of the fleet.
    pub backup_policy: BackupPolicy,
    /// When the scheduler looks at it next, to back it up if it has changed; null where it never will or has not yet.
    pub next_backup_at: Option<Timestamp>,
}

/// `project.update`: what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateProject {
    /// 1–200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Takes the place of the project's own policy; `{}` leaves all to its account and the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_policy: Option<BackupPolicy>,
}

/// A project-host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Its id.
    pub id: HostId,
    /// Its name, for people.
    pub name: String,
    /// Its region.
    pub region: String,
    /// `active`, `draining` or `off`.
    pub status: String,
    /// Whether it may have direct credentials of buckets.
    pub trusted: bool,
    /// When one of its services was last heard of.
    pub last_seen: Option<Timestamp>,
    /// When it was made known.
    pub created_at: Timestamp,
}

/// Reply to `api.v1.host-<id>.host.status`: a host, and what it is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// The host.
    pub host: Host,
    /// Share of ten seconds, in percent, in which something waited for memory there; none where it has not said so.
    pub memory_pressure: Option<f32>,
    /// The same for input and output.
    pub io_pressure: Option<f32>,
    /// When the host said that.
    pub load_seen: Option<Timestamp>,
    /// Bytes of metadata of repositories that it has in its cache, as it said last.
    pub cache_bytes: Option<u64>,
    /// What that cache may hold, in bytes.
    pub cache_limit_bytes: Option<u64>,
    /// Projects whose files are there.
    pub projects: u64,
    /// Those of them with something that is in no backup.
    pub unsaved_projects: u64,
    /// Operations that wait for it.
    pub queued_ops: u64,
    /// Operations that it is at, oldest first; the first hundred.
    pub running_ops: Vec<RunningOperation>,
}

/// An operation that a host is at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunningOperation {
    /// Which.
    pub op_id: OperationId,
    /// Its kind.
    pub kind: OperationKind,
    /// What it is about.
    pub scope: Scope,
    /// Since when it has run.
    pub started_at: Option<Timestamp>,
    /// How far it is, in percent.
    pub progress: f64,
    /// What it is doing.
    pub phase: Option<String>,
}

/// `api.v1.hub.host.create`. Its credentials come from the installation, not from here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateHost {
    /// Chosen by the caller, so that asking twice makes one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<HostId>,
    /// 1–200 characters.
    pub name: String,
    /// wnam, enam, weur, eeur, apac or oc.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

/// Reply that is one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostReply {
    /// The host.
    pub host: Host,
}

/// Reply to `host.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostList {
    /// The hosts, oldest first.
    pub hosts: Vec<Host>,
}

/// A bucket in the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Its id.
    pub id: BucketId,
    /// `backups`, `artifacts`, `rootfs`, `logs`.
    pub purpose: String,
    /// `r2`, `s3` or `local`.
    pub provider: String,
    /// The account at the provider.
    pub account_id: Option<String>,
    /// The region that it serves.
    pub region: String,
    /// Where the provider says that it is; null if it does not tell.
    pub location: Option<String>,
    /// Its name at the provider.
    pub name: String,
    /// The URL of the provider.
    pub endpoint: Option<String>,
    /// `active`, `mismatch`, `unknown` or `disabled`.
    pub status: String,
    /// When it was recorded.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// Reply to `bucket.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BucketList {
    /// The buckets, oldest first.
    pub buckets: Vec<Bucket>,
}

/// `bucket.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateBucket {
    /// The region whose projects have their backups in it.
    pub region: String,
}

/// `bucket.get`, `bucket.verify`, `bucket.disable`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBucket {
    /// Which bucket.
    pub bucket_id: BucketId,
}

/// Reply that is one bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BucketReply {
    /// The bucket.
    pub bucket: Bucket,
}

/// A backup of a project.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Backup {
    /// Its id: that of its snapshot in the repository.
    pub backup_id: BackupId,
    /// Whose backup.
    pub project_id: ProjectId,
    /// When the snapshot of the files was taken.
    pub created_at: Timestamp,
    /// How many files are in it.
    pub files: u64,
    /// How many bytes these have.
    pub bytes: u64,
    /// How many bytes it added to the repository.
    pub bytes_added: u64,
    /// The words that people put on it.
    pub tags: Vec<Tag>,
    /// `backup` or `copy`.
    pub purpose: String,
    /// Whether retention leaves it alone.
    pub pinned: bool,
    /// `btrfs-snapshot` or `live`.
    pub source: String,
    /// The digest of its tree, which a restore must arrive at.
    pub tree: String,
    /// The backup that it was compared with.
    pub parent: Option<BackupId>,
    /// The operation that made it.
    pub op_id: OperationId,
    /// When it was last proven to restore.
    pub verified_at: Option<Timestamp>,
    /// Since when it is known not to restore to what it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_since: Option<Timestamp>,
}

/// `backup.get`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GetBackup {
    /// Which backup.
    pub backup_id: BackupId,
}

/// `backup.update`: what is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateBackup {
    /// Which backup.
    pub backup_id: BackupId,
    /// Whether retention is to leave it alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<bool>,
}

/// Reply to `backup.get` and `backup.update`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupReply {
    /// The backup.
    pub backup: Backup,
}

/// Reply to `backup.list`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupList {
    /// The backups, newest first.
    pub backups: Vec<Backup>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// An account.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its id.
    pub id: AccountId,
    /// Its name, for people.
    pub name: String,
    /// What the inboxes of its clients start with.
    pub inbox_prefix: String,
    /// How its projects are backed up, where it differs from the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_policy: Option<BackupPolicy>,
    /// When it was created.
    pub created_at: Timestamp,
}

/// `api.v1.hub.account.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateAccount {
    /// 1–200 characters.
    pub name: String,
}

/// Reply to `account.create`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AccountReply {
    /// The account.
    pub account: Account,
}

/// `api.v1.account-<id>.account.update`: what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdateAccount {
    /// 1–200 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Takes the place of the account's policy; `{}` leaves all to the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_policy: Option<BackupPolicy>,
}

/// `api.v1.account-<id>.account.create_token`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// Seconds that it is valid; a day by default, at most 90 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u32>,
}

/// Reply to `create_token`: shown once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenReply {
    /// The NATS `token` of that account's clients.
    pub token: crate::SecretText,
}

/// `project.add_collaborator`, `project.remove_collaborator`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeCollaborator {
    /// Whose right to the project changes.
    pub account_id: AccountId,
}
