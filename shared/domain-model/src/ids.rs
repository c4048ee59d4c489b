use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A text that is no id: ids are UUIDs in lower case with hyphens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a {what}: give a UUID in lower case with hyphens, such as 0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11"
)]
pub struct IdError {
    what: &'static str,
    text: String,
}

fn parse(what: &'static str, text: &str) -> Result<Uuid, IdError> {
    let error = || IdError { what, text: text.chars().take(80).collect() };
    let uuid = Uuid::try_parse(text).map_err(|_| error())?;
    // One spelling only, since ids are tokens of subjects and of object keys.
    if uuid.as_hyphenated().to_string() == text { Ok(uuid) } else { Err(error()) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// The id with this UUID.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// Its UUID.
            pub const fn as_uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(formatter)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse($what, text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        crate::travels_as_text!($name, $what, { "type": "string", "format": "uuid" });
    };
}

id!(
    /// A long-running operation; a UUIDv7, so that ids sort by the time of creation.
    OperationId,
    "operation id"
);
id!(
    /// A project: one tenant's files plus its persist store.
    ProjectId,
    "project id"
);
id!(
    /// A project-host.
    HostId,
    "host id"
);
id!(
    /// An account: who asks, and who owns projects.
    AccountId,
    "account id"
);
id!(
    /// A bucket in the registry of buckets.
    BucketId,
    "bucket id"
);
id!(
    /// A copy from one project to one place in another.
    CopyId,
    "copy id"
);
id!(
    /// One lease on an operation: random, known to the worker that holds it and to nobody else.
    LeaseId,
    "lease id"
);
id!(
    /// The identity of a backup repository, written into it when it is made.
    RepositoryId,
    "repository id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_exactly_one_spelling() {
        let text = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        assert_eq!(text.parse::<ProjectId>().unwrap().to_string(), text);
        for bad in [
            "",
            "x",
            &text.to_uppercase(),
            &text.replace('-', ""),
            &format!("{{{text}}}"),
            &format!("{text} "),
        ] {
            assert!(bad.parse::<ProjectId>().is_err(), "{bad:?}");
        }
    }
}
