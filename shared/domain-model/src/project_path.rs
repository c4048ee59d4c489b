use std::fmt;
use std::str::FromStr;

/// Names in the top of a project that begin with this belong to a restore of a path that is under way. None
/// may be the target of a restore.
pub const RESERVED_PREFIX: &str = ".longhaul-staging-";

const MAX_PART_BYTES: usize = 255;
/// So that the absolute path stays below the system's 4,096.
const MAX_PATH_BYTES: usize = 3_500;

/// A path inside a project, relative to its top: no leading `/`, no `..` part, no NUL, each part at most 255
/// bytes and all of it at most 3,500, its first part not reserved ([`RESERVED_PREFIX`]). Repeated and trailing
/// slashes and `.` parts are dropped: `./a//b/` is `a/b`. It is checked here, where it enters; that no symbolic
/// link on the way leads out of the project is checked where the path is used.
///
/// ```
/// use domain_model::ProjectPath;
///
/// assert_eq!("./notes//week-1/".parse::<ProjectPath>()?.as_str(), "notes/week-1");
/// assert!("../elsewhere".parse::<ProjectPath>().is_err());
/// # Ok::<(), domain_model::ProjectPathError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectPath(String);

/// A text that is no [`ProjectPath`] or [`LayoutPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} is not a path inside a project: {reason}")]
pub struct ProjectPathError {
    path: String,
    reason: &'static str,
}

/// The path without what is superfluous in it.
fn normalise(path: &str) -> Result<String, ProjectPathError> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let normalised = parts.join("/");
    let reason = if path.contains('\0') {
        "it has a NUL character"
    } else if path.starts_with('/') {
        "it is absolute; give it relative to the project"
    } else if normalised.is_empty() {
        "it is empty; name a file or directory"
    } else if parts.contains(&"..") {
        "'..' would leave the project"
    } else if normalised.len() > MAX_PATH_BYTES || parts.iter().any(|part| part.len() > MAX_PART_BYTES) {
        "it is too long (255 bytes a part, 3,500 in all)"
    } else {
        return Ok(normalised);
    };
    Err(ProjectPathError { path: path.chars().take(200).collect(), reason })
}

impl ProjectPath {
    /// The path as text, without leading or trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same as a [`Path`](std::path::Path).
    pub fn as_path(&self) -> &std::path::Path {
        std::path::Path::new(&self.0)
    }

    /// Its last part.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Whether it is `other`, or lies beneath it.
    pub fn is_within(&self, other: &Self) -> bool {
        self.as_path().starts_with(other.as_path())
    }

    /// The parts, first to last; never empty.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
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
        let normalised = normalise(path)?;
        if normalised.starts_with(RESERVED_PREFIX) {
            let reason = "its first part begins with '.longhaul-staging-', which is reserved";
            return Err(ProjectPathError { path: path.chars().take(200).collect(), reason });
        }
        Ok(Self(normalised))
    }
}

crate::travels_as_text!(ProjectPath, "project path", {
    "type": "string",
    "description": "relative to the project, without '..' parts"
});

/// A directory inside a project: its top, written `.`, or a path.
///
/// ```
/// use domain_model::ProjectDirectory;
///
/// let top: ProjectDirectory = "./".parse()?;
/// assert_eq!((top.to_string(), top.join("notes").to_string()), (".".to_owned(), "notes".to_owned()));
/// let week: ProjectDirectory = "week-1/".parse()?;
/// assert_eq!(week.join("notes").to_string(), "week-1/notes");
/// # Ok::<(), domain_model::ProjectPathError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProjectDirectory(Option<ProjectPath>);

impl ProjectDirectory {
    /// Its path; `None` for the top of the project.
    pub fn path(&self) -> Option<&ProjectPath> {
        self.0.as_ref()
    }

    /// What is called `name`, a path without `/`, in it.
    pub fn join(&self, name: &str) -> ProjectPath {
        ProjectPath(match &self.0 {
            Some(path) => format!("{path}/{name}"),
            None => name.to_owned(),
        })
    }
}

impl fmt::Display for ProjectDirectory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.as_ref().map_or(".", ProjectPath::as_str))
    }
}

impl FromStr for ProjectDirectory {
    type Err = ProjectPathError;

    fn from_str(path: &str) -> Result<Self, ProjectPathError> {
        let is_top = !path.is_empty() && path.split('/').all(|part| part == "." || part.is_empty());
        if is_top && !path.starts_with('/') { Ok(Self(None)) } else { path.parse().map(Some).map(Self) }
    }
}

crate::travels_as_text!(ProjectDirectory, "project directory", {
    "type": "string",
    "description": "relative to the project, without '..' parts; '.' for its top"
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
        let normalised = normalise(path)?;
        let (root, rest) = match normalised.split_once('/') {
            Some((root, rest)) => (root, Some(rest)),
            None => (normalised.as_str(), None),
        };
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
        let long = "x".repeat(256);
        let deep = "x/".repeat(2_000);
        for bad in [
            "",
            "/",
            "./.",
            "/etc",
            "..",
            "a/../b",
            "a/..",
            "../a",
            "a\0b",
            "./.longhaul-staging-x/a",
            &long,
            &deep,
        ] {
            assert!(bad.parse::<ProjectPath>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_relative_path_is_taken_and_normalised() {
        let table = [
            ("a", "a"),
            ("./a//b/.", "a/b"),
            ("..a/b..", "..a/b.."),
            ("...", "..."),
            (" ", " "),
            ("-rf", "-rf"),
        ];
        for (text, normal) in table {
            assert_eq!(text.parse::<ProjectPath>().unwrap().as_str(), normal);
        }
        let odd = "a b/\u{e9}\n";
        assert_eq!(odd.parse::<ProjectPath>().unwrap().to_string(), odd);
    }

    #[test]
    fn a_path_in_a_backup_has_one_of_two_roots() {
        for (text, normal) in
            [("project", "project"), ("persist/", "persist"), ("project//src", "project/src")]
        {
            assert_eq!(text.parse::<LayoutPath>().unwrap().to_string(), normal);
        }
        for bad in ["src", "projects", "project/../persist", "/project", ""] {
            assert!(bad.parse::<LayoutPath>().is_err(), "{bad:?}");
        }
    }
}
