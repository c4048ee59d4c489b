use std::fmt;
use std::str::FromStr;

/// What has become of a copy to one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CopyStatus {
    /// Not applied yet: its host may be away for days.
    Pending,
    /// Applied.
    Done,
    /// Given up; the error says why.
    Failed,
    /// Somebody did not want it any more.
    Canceled,
    /// Its host was away for too long.
    Expired,
    /// A later copy of the same to the same place took its turn.
    Superseded,
}

const TEXTS: [(CopyStatus, &str); 6] = [
    (CopyStatus::Pending, "pending"),
    (CopyStatus::Done, "done"),
    (CopyStatus::Failed, "failed"),
    (CopyStatus::Canceled, "canceled"),
    (CopyStatus::Expired, "expired"),
    (CopyStatus::Superseded, "superseded"),
];

impl CopyStatus {
    /// As it is written.
    pub fn as_str(self) -> &'static str {
        TEXTS.iter().find(|(status, _)| *status == self).map_or("", |(_, text)| text)
    }
}

impl fmt::Display for CopyStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A text that is no [`CopyStatus`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not pending, done, failed, canceled, expired or superseded")]
pub struct CopyStatusError(String);

impl FromStr for CopyStatus {
    type Err = CopyStatusError;

    fn from_str(text: &str) -> Result<Self, CopyStatusError> {
        let found = TEXTS.iter().find(|(_, known)| *known == text);
        found.map(|(status, _)| *status).ok_or_else(|| CopyStatusError(text.chars().take(40).collect()))
    }
}

crate::travels_as_text!(CopyStatus, "copy status", {
    "type": "string",
    "enum": ["pending", "done", "failed", "canceled", "expired", "superseded"]
});
