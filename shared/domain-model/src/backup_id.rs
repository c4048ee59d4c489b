use std::fmt;
use std::str::FromStr;

/// A backup: the id of its snapshot in the repository, 64 lower-case hexadecimal characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackupId(String);

/// A text that is no [`BackupId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a backup id: give 64 lower-case hexadecimal characters, as backup.list shows them")]
pub struct BackupIdError(String);

impl BackupId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for BackupId {
    type Err = BackupIdError;

    fn from_str(text: &str) -> Result<Self, BackupIdError> {
        if text.len() == 64 && text.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BackupIdError(text.chars().take(80).collect()))
        }
    }
}

crate::travels_as_text!(BackupId, "backup id", { "type": "string", "pattern": "^[0-9a-f]{64}$" });
