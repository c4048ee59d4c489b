use std::fmt;
use std::str::FromStr;

use crate::{AccountId, HostId, ProjectId};

/// What an operation is about. It is one token of the subject, so that the server authorizes by subject:
/// `project-<uuid>`, `account-<uuid>`, `host-<uuid>` or `hub`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// A project.
    Project(ProjectId),
    /// An account.
    Account(AccountId),
    /// A project-host.
    Host(HostId),
    /// The control plane itself.
    Hub,
}

/// The type of a [`Scope`], without its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScopeType {
    /// See [`Scope::Project`].
    Project,
    /// See [`Scope::Account`].
    Account,
    /// See [`Scope::Host`].
    Host,
    /// See [`Scope::Hub`].
    Hub,
}

/// A text that is no [`Scope`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a scope: use project-<uuid>, account-<uuid>, host-<uuid> or hub")]
pub struct ScopeError(String);

impl Scope {
    /// Its type.
    pub fn scope_type(&self) -> ScopeType {
        match self {
            Self::Project(_) => ScopeType::Project,
            Self::Account(_) => ScopeType::Account,
            Self::Host(_) => ScopeType::Host,
            Self::Hub => ScopeType::Hub,
        }
    }

    /// The UUID in it; `None` for the hub.
    pub fn uuid(&self) -> Option<uuid::Uuid> {
        match self {
            Self::Project(id) => Some(id.as_uuid()),
            Self::Account(id) => Some(id.as_uuid()),
            Self::Host(id) => Some(id.as_uuid()),
            Self::Hub => None,
        }
    }
}

impl ScopeType {
    /// Its word, as in the database and in subjects.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Account => "account",
            Self::Host => "host",
            Self::Hub => "hub",
        }
    }
}

impl fmt::Display for ScopeType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project(id) => write!(formatter, "project-{id}"),
            Self::Account(id) => write!(formatter, "account-{id}"),
            Self::Host(id) => write!(formatter, "host-{id}"),
            Self::Hub => formatter.write_str("hub"),
        }
    }
}

impl FromStr for Scope {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let error = || ScopeError(text.chars().take(80).collect());
        match text.split_once('-') {
            None if text == "hub" => Ok(Self::Hub),
            Some(("project", id)) => id.parse().map(Self::Project).map_err(|_| error()),
            Some(("account", id)) => id.parse().map(Self::Account).map_err(|_| error()),
            Some(("host", id)) => id.parse().map(Self::Host).map_err(|_| error()),
            _ => Err(error()),
        }
    }
}

crate::travels_as_text!(Scope, "scope", {
    "type": "string",
    "description": "project-<uuid>, account-<uuid>, host-<uuid> or hub"
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_read_back_as_written() {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        for text in [format!("project-{id}"), format!("account-{id}"), format!("host-{id}"), "hub".to_owned()]
        {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for bad in ["", "hub-", "hub.x", "project", "project-", "project-1", "*", ">", &format!("user-{id}")]
        {
            assert!(bad.parse::<Scope>().is_err(), "{bad:?}");
        }
    }
}
