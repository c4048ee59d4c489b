use std::fmt;
use std::str::FromStr;

/// A word that a person puts on a backup: 1–64 characters, none of them a comma, `=` or a control
/// character (a comma separates tags on restic's command line, `=` marks the tags that Longhaul sets).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// A text that is no [`Tag`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a tag: use 1 to 64 characters without commas, '=' and control characters")]
pub struct TagError(String);

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for Tag {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        let fits = (1..=64).contains(&text.chars().count()) && text.trim() == text;
        if fits && !text.chars().any(|c| c == ',' || c == '=' || c.is_control()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TagError(text.chars().take(80).collect()))
        }
    }
}

crate::travels_as_text!(Tag, "tag", { "type": "string", "pattern": "^[^,=]{1,64}$" });
