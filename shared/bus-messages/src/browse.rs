//! Looking into backups: what clients ask and get, and how the registry passes it on to those who can look.

use domain_model::{BackupId, LayoutPath, Timestamp};
use serde::{Deserialize, Serialize};

use crate::RepositoryGrant;

/// `backup.ls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListDirectory {
    /// Which backup.
    pub backup_id: BackupId,
    /// A directory in it, such as `project/src`; its two roots where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<LayoutPath>,
    /// How many levels down, 1–16; 1 by default: its entries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// At most so many, 1–1000; 200 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// What kind of thing an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BackupEntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Other,
}

/// One entry of a directory of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackupEntry {
    /// Its path, relative to the directory that was asked for. What is no UTF-8 is shown as `\u{fffd}`.
    pub name: String,
    /// What it is.
    pub kind: BackupEntryKind,
    /// How many bytes it has; 0 for what is no file.
    pub size_bytes: u64,
    /// When it was last modified.
    pub mtime: Timestamp,
    /// Its twelve permission bits.
    pub mode: u32,
}

/// Reply to `backup.ls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectoryListing {
    /// Its entries, in the order of their names' bytes, a directory before what is in it.
    pub entries: Vec<BackupEntry>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// `backup.find`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FindPaths {
    /// What the path in a backup (`project/src/main.rs`) has to look like: `*` and `?` within a name, `**` over
    /// any number of directories, `[a-z]`, `{one,other}`.
    pub glob: String,
    /// In this backup; in all of them, newest first, where it is null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup_id: Option<BackupId>,
    /// At most so many, 1–1000; 200 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// A path that was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathMatch {
    /// In which backup.
    pub backup_id: BackupId,
    /// Where in it.
    pub path: String,
    /// How many bytes it has; 0 for what is no file.
    pub size_bytes: u64,
    /// When it was last modified.
    pub mtime: Timestamp,
}

/// Reply to `backup.find`. A page ends when it is full or has taken long enough, so that one with few matches, or
/// with none, is not the last unless it says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FoundPaths {
    /// What was found.
    pub matches: Vec<PathMatch>,
    /// Where the next page starts; null on the last.
    pub next_cursor: Option<String>,
}

/// What the registry asks a host or a worker in the hub, `browse.v1.<host-uuid|hub>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BrowseRequest {
    /// The way into the repository, for this question alone.
    pub grant: RepositoryGrant,
    /// The question.
    pub query: BrowseQuery,
}

/// See [`BrowseRequest`]. What it asks for was checked by the registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrowseQuery {
    /// List a directory.
    List {
        /// Of this backup.
        backup_id: BackupId,
        /// The directory; the two roots where it is null.
        path: Option<LayoutPath>,
        /// How many levels down.
        depth: u32,
        /// At most so many entries.
        limit: u32,
        /// Go on after this.
        after: Option<String>,
    },
    /// Find paths.
    Find {
        /// What they have to look like.
        glob: String,
        /// In these, one after the other.
        backups: Vec<BackupId>,
        /// At most so many.
        limit: u32,
        /// In the first of them, go on after this.
        after: Option<String>,
    },
}

/// Answer to a [`BrowseRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrowseReply {
    /// To `List`.
    Listed(DirectoryListing),
    /// To `Find`.
    Found {
        /// What was found.
        matches: Vec<PathMatch>,
        /// Where it stopped before the end of the last backup: in this one, after this.
        stopped: Option<(BackupId, String)>,
    },
}
