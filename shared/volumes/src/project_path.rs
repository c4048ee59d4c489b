//! Paths inside a project, parsed at the edge.
//!
//! A restore target comes from a person or a client. `../../other-project/x` must not get as far as a system call,
//! so nothing in this crate takes a target as a plain string.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names in the root of a project that begin with this belong to a path restore in progress. A backup leaves
/// them out (see [`is_reserved_name`]); no restore may target them.
pub const STAGING_PREFIX: &str = ".longhaul-staging-";

/// Whether `name`, in the root directory of a project, belongs to a path restore in progress and is thus no part
/// of the project.
pub fn is_reserved_name(name: &OsStr) -> bool {
    name.as_bytes().starts_with(STAGING_PREFIX.as_bytes())
}

/// A path of a file or directory inside a project, relative to the project's root.
///
/// The rule: UTF-8, not empty, relative, no `..`, no NUL, each component at most 255 bytes and all of it at most
/// 3,500 bytes (so that the absolute path stays below the system's 4,096). Repeated and trailing slashes and `.`
/// components are dropped: `./a//b/` is `a/b`. The root itself is no such path, and the first component may not begin
/// with [`STAGING_PREFIX`].
///
/// ```
/// use volumes::ProjectPath;
///
/// assert_eq!("./notes//week-1/".parse::<ProjectPath>()?.as_str(), "notes/week-1");
/// assert!("../elsewhere".parse::<ProjectPath>().is_err());
/// # Ok::<(), volumes::ProjectPathError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProjectPath(String);

/// Why a string is no [`ProjectPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProjectPathError {
    /// Empty, or only `.` and slashes.
    #[error("the path is empty; name a file or directory inside the project")]
    Empty,
    /// Begins with a slash.
    #[error("the path is absolute; give it relative to the project, without the leading slash")]
    Absolute,
    /// Holds a `..` component.
    #[error("the path holds '..', which could leave the project")]
    ParentComponent,
    /// Holds a NUL character.
    #[error("the path holds a NUL character")]
    Nul,
    /// Too long for the filesystem.
    #[error("the path is too long (255 bytes a component, 3500 in all)")]
    TooLong,
    /// The first component is reserved.
    #[error("the path begins with '{STAGING_PREFIX}', which is reserved")]
    Reserved,
}

const MAX_COMPONENT_BYTES: usize = 255;
const MAX_PATH_BYTES: usize = 3_500;

impl ProjectPath {
    /// The normalised path, without leading or trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as a [`Path`].
    pub fn as_path(&self) -> &Path {
        Path::new(&self.0)
    }

    /// The components, first to last; never empty.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for ProjectPath {
    type Err = ProjectPathError;

    fn from_str(text: &str) -> Result<Self, ProjectPathError> {
        if text.contains('\0') {
            return Err(ProjectPathError::Nul);
        }
        if text.starts_with('/') {
            return Err(ProjectPathError::Absolute);
        }
        let components: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let Some(first) = components.first() else {
            return Err(ProjectPathError::Empty);
        };
        if first.starts_with(STAGING_PREFIX) {
            return Err(ProjectPathError::Reserved);
        }
        if components.contains(&"..") {
            return Err(ProjectPathError::ParentComponent);
        }
        let normalised = components.join("/");
        if normalised.len() > MAX_PATH_BYTES || components.iter().any(|part| part.len() > MAX_COMPONENT_BYTES)
        {
            return Err(ProjectPathError::TooLong);
        }
        Ok(Self(normalised))
    }
}

impl TryFrom<String> for ProjectPath {
    type Error = ProjectPathError;

    fn try_from(text: String) -> Result<Self, ProjectPathError> {
        text.parse()
    }
}

impl From<ProjectPath> for String {
    fn from(path: ProjectPath) -> Self {
        path.0
    }
}

impl fmt::Display for ProjectPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_taken_and_normalised() {
        for (text, normal) in [
            ("a", "a"),
            ("a/b.txt", "a/b.txt"),
            ("./a//b/.", "a/b"),
            ("..a/b..", "..a/b.."),
            ("ü/\n", "ü/\n"),
        ] {
            assert_eq!(text.parse::<ProjectPath>().map(String::from), Ok(normal.to_owned()), "{text:?}");
        }
    }

    #[test]
    fn a_path_that_could_leave_the_project_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", ProjectPathError::Empty),
            ("./.", ProjectPathError::Empty),
            ("/etc/passwd", ProjectPathError::Absolute),
            ("..", ProjectPathError::ParentComponent),
            ("a/../../b", ProjectPathError::ParentComponent),
            ("a\0b", ProjectPathError::Nul),
            ("./.longhaul-staging-x/a", ProjectPathError::Reserved),
        ] {
            assert_eq!(text.parse::<ProjectPath>(), Err(reason), "{text:?}");
        }
        assert_eq!("x".repeat(256).parse::<ProjectPath>(), Err(ProjectPathError::TooLong));
        assert_eq!("x/".repeat(2_000).parse::<ProjectPath>(), Err(ProjectPathError::TooLong));
    }
}
