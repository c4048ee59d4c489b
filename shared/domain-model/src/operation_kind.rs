use std::fmt;
use std::str::FromStr;

/// The name of a kind of operation: 1–63 characters, lower-case letters, digits and single hyphens,
/// starting with a letter, for example `project-backup`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OperationKind(String);

/// A text that is no [`OperationKind`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not the name of a kind: use lower-case letters, digits and hyphens, such as project-backup"
)]
pub struct OperationKindError(String);

impl OperationKind {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for OperationKind {
    type Err = OperationKindError;

    fn from_str(text: &str) -> Result<Self, OperationKindError> {
        let allowed = text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase());
        if (1..=63).contains(&text.len())
            && allowed
            && starts_well
            && !text.ends_with('-')
            && !text.contains("--")
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(OperationKindError(text.chars().take(80).collect()))
        }
    }
}

crate::travels_as_text!(OperationKind, "kind", { "type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}$" });
