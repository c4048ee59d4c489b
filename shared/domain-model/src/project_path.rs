use std::fmt;
use std::str::FromStr;

/// A path inside a project, relative to its top: no leading `/`, no empty, `.` or `..` part, no NUL, at
/// most 4,096 bytes. It is checked here, where it enters; that no symbolic link on the way leads out of
/// the project is checked where the path is used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectPath(String);

/// A text that is no [`ProjectPath`] or [`LayoutPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a path inside a project: {reason}")]
pub struct ProjectPathError {
    path: String,
    reason: &'static str,
}

fn check(path: &str) -> Result<(), ProjectPathError> {
    let reason = if path.is_empty() {
        "it is empty"
    } else if path.len() > 4096 {
        "it is longer than 4,096 bytes"
    } else if path.contains('\0') {
        "it has a NUL character"
    } else if path.starts_with('/') {
        "it is absolute; give it relative to the project"
    } else if path.split('/').any(|part| part == "..") {
        "'..' would leave the project"
    } else if path.split('/').any(|part| part.is_empty() || part == ".") {
        "it has an empty or '.' part"
    } else {
        return Ok(());
    };
    Err(ProjectPathError { path: path.chars().take(200).collect(), reason })
}

impl ProjectPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<std::path::Path> for ProjectPath {
    fn as_ref(&self) -> &std::path::Path {
        std::path::Path::new(&self.0)
    }
}

impl fmt::Display for ProjectPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for ProjectPath {
    type Err = ProjectPathError;

    fn from_str(path: &str) -> Result<Self, ProjectPathError> {
        check(path)?;
        Ok(Self(path.to_owned()))
    }
}

crate::travels_as_text!(ProjectPath, "project path", {
    "type": "string",
    "description": "relative to the project, without '..' parts"
});

/// One of the two roots of a backup of layout v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayoutRoot {
    /// The project's files.
    Project,
    /// Its persist store.
    Persist,
}

/// A path inside a backup of layout v2: `project` or `persist`, and what is beneath, such as `project/src`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutPath {
    root: LayoutRoot,
    rest: Option<ProjectPath>,
}

impl LayoutPath {
    /// Which of the two roots.
    pub fn root(&self) -> LayoutRoot {
        self.root
    }

    /// The path beneath the root; `None` for the root itself.
    pub fn rest(&self) -> Option<&ProjectPath> {
        self.rest.as_ref()
    }
}

impl fmt::Display for LayoutPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.root {
            LayoutRoot::Project => "project",
            LayoutRoot::Persist => "persist",
        })?;
        self.rest.as_ref().map_or(Ok(()), |rest| write!(formatter, "/{rest}"))
    }
}

impl FromStr for LayoutPath {
    type Err = ProjectPathError;

    fn from_str(path: &str) -> Result<Self, ProjectPathError> {
        check(path)?;
        let (root, rest) = path.split_once('/').map_or((path, None), |(root, rest)| (root, Some(rest)));
        let root = match root {
            "project" => LayoutRoot::Project,
            "persist" => LayoutRoot::Persist,
            _ => {
                let reason = "a path in a backup starts with project/ or persist/";
                return Err(ProjectPathError { path: path.chars().take(200).collect(), reason });
            }
        };
        Ok(Self { root, rest: rest.map(str::parse).transpose()? })
    }
}

crate::travels_as_text!(LayoutPath, "path in a backup", {
    "type": "string",
    "description": "project or persist, or a path beneath one of them"
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_the_project_is_refused() {
        for bad in ["", "/", "/etc", "..", "a/../b", "a/..", "../a", "a//b", "a/", "./a", "a/.", "a\0b"] {
            assert!(bad.parse::<ProjectPath>().is_err(), "{bad:?}");
        }
        for good in ["a", "a/b", "..a", "a..", "...", " ", "a b/\u{e9}\n", "-rf"] {
            assert_eq!(good.parse::<ProjectPath>().unwrap().to_string(), good);
        }
    }

    #[test]
    fn a_path_in_a_backup_has_one_of_two_roots() {
        for good in ["project", "persist", "project/src", "persist/a/b"] {
            assert_eq!(good.parse::<LayoutPath>().unwrap().to_string(), good);
        }
        for bad in ["src", "projects", "project/", "project/../persist", "/project"] {
            assert!(bad.parse::<LayoutPath>().is_err(), "{bad:?}");
        }
    }
}
