//! What identifies a snapshot and says what it is: its id, and the tags of layout 2.
//!
//! Everything that a later restore has to know stands in the snapshot itself, because a catalog can be lost:
//! the project, the layout, the purpose, the operation that made it and the digest of its tree.

use std::fmt;
use std::str::FromStr;

use rustic_core::StringList;
use rustic_core::repofile::SnapshotFile;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind, Result};

/// The layout that this crate writes and the only one it restores.
pub const LAYOUT_VERSION: u32 = 2;

/// The most tags that people can give one snapshot.
pub const MAX_USER_TAGS: usize = 16;

/// The longest tag, in characters.
pub const MAX_TAG_CHARS: usize = 64;

const OWN_TAGS: [&str; 6] = ["longhaul", "layout=", "project=", "purpose=", "op=", "tree="];

/// The id of a snapshot: 64 lower-case hexadecimal digits. What the catalog calls a backup id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId([u8; 32]);

impl FromStr for SnapshotId {
    type Err = BackupRepositoryError;

    fn from_str(text: &str) -> Result<Self> {
        data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|id| id.try_into().ok())
            .map(Self)
            .ok_or_else(|| {
                BackupRepositoryError::new(
                    BackupRepositoryErrorKind::InvalidArgument,
                    "read snapshot id",
                    format_args!("{text:?}"),
                    "it is not 64 lower-case hexadecimal digits",
                )
            })
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = BackupRepositoryError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl SnapshotId {
    pub(crate) fn to_rustic(self) -> rustic_core::repofile::SnapshotId {
        rustic_core::Id::new(self.0).into()
    }

    pub(crate) fn from_rustic(id: rustic_core::Id) -> Result<Self> {
        id.to_hex().as_str().parse()
    }
}

/// Why a snapshot was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// A backup that people see and restore.
    Backup,
    /// The source of a copy to other projects; deleted when the copy is done.
    Copy,
}

impl fmt::Display for Purpose {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Backup => "backup",
            Self::Copy => "copy",
        })
    }
}

/// What the tags of a snapshot of layout 2 say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotTags {
    pub(crate) project_id: Uuid,
    pub(crate) purpose: Purpose,
    pub(crate) op_id: Uuid,
    /// 64 hexadecimal digits, see `tree_digest`.
    pub(crate) tree: Option<String>,
    pub(crate) user: Vec<String>,
}

impl SnapshotTags {
    pub(crate) fn to_list(&self) -> StringList {
        let mut list = StringList::default();
        list.add("longhaul".to_owned());
        list.add(format!("layout={LAYOUT_VERSION}"));
        list.add(format!("project={}", self.project_id));
        list.add(format!("purpose={}", self.purpose));
        list.add(format!("op={}", self.op_id));
        if let Some(tree) = &self.tree {
            list.add(format!("tree={tree}"));
        }
        for tag in &self.user {
            list.add(tag.clone());
        }
        list
    }

    /// Reads the tags back; an error of kind `UnsupportedLayout` for a snapshot that is not ours.
    pub(crate) fn of(snapshot: &SnapshotFile) -> Result<Self> {
        let refuse = |message: String| {
            let id = snapshot.id.into_inner().to_hex();
            BackupRepositoryError::new(
                BackupRepositoryErrorKind::UnsupportedLayout,
                "read snapshot",
                id.as_str(),
                message,
            )
        };
        let value = |name: &str| {
            (&snapshot.tags).into_iter().find_map(|tag| tag.strip_prefix(name)).map(ToOwned::to_owned)
        };
        if !snapshot.tags.contains("longhaul") {
            return Err(refuse("it was not made by longhaul (no such tag)".to_owned()));
        }
        let layout = value("layout=").unwrap_or_else(|| "unknown".to_owned());
        if layout != LAYOUT_VERSION.to_string() {
            return Err(refuse(format!("its layout is {layout}, and only {LAYOUT_VERSION} can be used")));
        }
        let uuid = |name: &str| value(name).and_then(|id| id.parse::<Uuid>().ok());
        let project_id = uuid("project=").ok_or_else(|| refuse("it names no project".to_owned()))?;
        let op_id = uuid("op=").ok_or_else(|| refuse("it names no operation".to_owned()))?;
        let purpose = match value("purpose=").as_deref() {
            Some("backup") => Purpose::Backup,
            Some("copy") => Purpose::Copy,
            _ => return Err(refuse("it names no purpose".to_owned())),
        };
        let user = (&snapshot.tags)
            .into_iter()
            .filter(|tag| !OWN_TAGS.iter().any(|own| tag.starts_with(own)))
            .cloned()
            .collect();
        Ok(Self { project_id, purpose, op_id, tree: value("tree="), user })
    }
}

/// Checks tags that people chose: at most 16, each of 1–64 characters without commas and control
/// characters, and none that looks like one of ours.
pub fn validate_tags(tags: &[String]) -> Result<()> {
    let refuse = |tag: &str, message: &str| {
        Err(BackupRepositoryError::new(
            BackupRepositoryErrorKind::InvalidArgument,
            "check tag",
            format_args!("{tag:?}"),
            message,
        ))
    };
    if tags.len() > MAX_USER_TAGS {
        return refuse(&tags[MAX_USER_TAGS], "a snapshot has at most 16 tags");
    }
    for tag in tags {
        if tag.is_empty() || tag.chars().count() > MAX_TAG_CHARS {
            return refuse(tag, "a tag has 1 to 64 characters");
        }
        if tag.contains(',') || tag.chars().any(char::is_control) || tag.trim() != tag {
            return refuse(tag, "a tag has no comma, no control character and no space at its ends");
        }
        if OWN_TAGS.iter().any(|own| tag.starts_with(own)) {
            return refuse(tag, "this tag is set by longhaul itself");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn tags_survive_the_way_through_a_snapshot() {
        let tags = SnapshotTags {
            project_id: Uuid::from_u128(1),
            purpose: Purpose::Copy,
            op_id: Uuid::from_u128(2),
            tree: Some("ab".repeat(32)),
            user: vec!["before-exam".to_owned()],
        };
        let snapshot = SnapshotFile { tags: tags.to_list(), ..SnapshotFile::default() };
        assert_eq!(SnapshotTags::of(&snapshot).unwrap(), tags);
    }

    #[test]
    fn a_snapshot_of_another_layout_or_program_is_refused() {
        let mut snapshot = SnapshotFile::default();
        let kind = |snapshot: &SnapshotFile| SnapshotTags::of(snapshot).unwrap_err().kind();
        assert_eq!(kind(&snapshot), BackupRepositoryErrorKind::UnsupportedLayout);
        snapshot.tags.add("longhaul".to_owned());
        snapshot.tags.add("layout=1".to_owned());
        assert_eq!(kind(&snapshot), BackupRepositoryErrorKind::UnsupportedLayout);
    }

    #[test]
    fn bad_tags_are_refused() {
        for bad in ["", "a,b", "longhaul", "tree=x", "a\nb", " a", &"x".repeat(65)] {
            validate_tags(&[bad.to_owned()]).unwrap_err();
        }
        validate_tags(&vec!["x".to_owned(); 17]).unwrap_err();
        validate_tags(&["nightly".to_owned(), "vor der Prüfung".to_owned()]).unwrap();
    }

    #[test]
    fn a_snapshot_id_is_64_lower_case_hexadecimal_digits() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(id.parse::<SnapshotId>().unwrap().to_string(), id);
        id.to_uppercase().parse::<SnapshotId>().unwrap_err();
        "0123".parse::<SnapshotId>().unwrap_err();
    }
}
