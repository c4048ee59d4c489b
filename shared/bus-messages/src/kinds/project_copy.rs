use std::collections::HashSet;
use std::fmt;

use domain_model::{CopyStatus, Phase, ProjectDirectory, ProjectId, ProjectPath, ScopeType};
use schemars::JsonSchema;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{KindDefinition, RoutingRule, no_host, normalise, schema};
use crate::ApiError;

/// The seconds that a `project-copy` lives longer than its copies: it is to see them expire.
pub const COPY_GRACE_S: u32 = 60;
/// So many destinations at most; their names have to fit into one input.
const MOST_DESTINATIONS: usize = 500;
/// All entries of all destinations, in bytes as JSON: a message has at most 1 MiB.
const MOST_ENTRY_BYTES: usize = 400 * 1024;
/// So many paths at most in one list.
const MOST_PATHS: usize = 100;

/// Input of `project-copy`. Names and meaning of the options are those of Node's `fs.cp`, but that `recursive` is on:
/// it is `cp -r`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProjectCopyInput {
    /// What is copied.
    pub src: CopySource,
    /// Where it goes.
    #[serde(default)]
    pub dests: Vec<CopyDestination>,
    /// Where it goes, if to one place; stored as the last of `dests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dest: Option<CopyDestination>,
    /// How.
    #[serde(default)]
    pub options: CopyOptions,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopySource {
    /// A path in the project, or a list of such.
    pub path: CopyPaths,
}

/// One path, or several.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum CopyPaths {
    /// Becomes the path of the destination.
    One(ProjectPath),
    /// Each goes into the directory that is the path of the destination, under its own name.
    Many(Vec<ProjectPath>),
}

impl<'de> Deserialize<'de> for CopyPaths {
    /// By hand, so that a bad path is told with its reason.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Paths;

        impl<'de> Visitor<'de> for Paths {
            type Value = CopyPaths;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a path in the project, or a list of paths")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<CopyPaths, E> {
                path.parse().map(CopyPaths::One).map_err(E::custom)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<CopyPaths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(CopyPaths::Many(paths))
            }
        }

        deserializer.deserialize_any(Paths)
    }
}

/// One place that a copy goes to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyDestination {
    /// Which project.
    pub project_id: ProjectId,
    /// What the source is to be called there; for a list of sources, the directory that they go into, `.` for the top.
    pub path: ProjectDirectory,
}

/// How a copy is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct CopyOptions {
    /// Copy what symbolic links lead to, not the links; those that lead out of the project are refused.
    pub dereference: bool,
    /// Without `force`, fail where a file exists already; nothing is changed then.
    pub error_on_exist: bool,
    /// Put copies in the place of files that exist. Also: copy from a running project whose files cannot be frozen,
    /// rather than stop it first.
    pub force: bool,
    /// Keep the times of the source.
    pub preserve_timestamps: bool,
    /// Copy directories; without it they are refused.
    pub recursive: bool,
    /// Copy symbolic links as they are; always on.
    pub verbatim_symlinks: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            dereference: false,
            error_on_exist: false,
            force: true,
            preserve_timestamps: false,
            recursive: true,
            verbatim_symlinks: true,
        }
    }
}

/// One thing that is copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyEntry {
    /// Its path in the source project.
    pub from: ProjectPath,
    /// Its path in the destination.
    pub to: ProjectPath,
}

impl ProjectCopyInput {
    /// The paths that are copied.
    pub fn paths(&self) -> &[ProjectPath] {
        match &self.src.path {
            CopyPaths::One(path) => std::slice::from_ref(path),
            CopyPaths::Many(paths) => paths,
        }
    }

    /// What goes where at one destination.
    ///
    /// # Errors
    /// Where the destination of a single path is no path, or one becomes too long.
    pub fn entries(&self, dest: &CopyDestination) -> Result<Vec<CopyEntry>, ApiError> {
        let wrong = |error: &dyn fmt::Display| ApiError::invalid_argument(format!("dests: {error}"));
        match &self.src.path {
            CopyPaths::One(from) => match dest.path.path() {
                Some(to) => Ok(vec![CopyEntry { from: from.clone(), to: to.clone() }]),
                None => Err(ApiError::invalid_argument(format!(
                    "the destination's path is what the copy is called: give {:?}, or copy a list of paths into '.'",
                    from.name()
                ))),
            },
            CopyPaths::Many(paths) => paths
                .iter()
                .map(|from| {
                    let to = dest.path.join(from.name());
                    // Once more as a whole: it may be too long, or reserved.
                    let to = to.as_str().parse().map_err(|error| wrong(&error))?;
                    Ok(CopyEntry { from: from.clone(), to })
                })
                .collect(),
        }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What became of one destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CopyOutcome {
    /// Which project.
    pub project_id: ProjectId,
    /// Where in it.
    pub path: ProjectDirectory,
    /// How it ended.
    pub status: CopyStatus,
    /// Why it failed.
    pub error: Option<String>,
}

/// Result of `project-copy`: every destination has come to an end, each to its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProjectCopyResult {
    /// In the order of the input.
    pub dests: Vec<CopyOutcome>,
    /// Further destinations, for which there is no room here: first such that are done. `copy.list` has all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
    /// Whether the copy's snapshot is gone, or none was needed. Where a destination has failed it is kept until the
    /// copy expires.
    pub snapshot_deleted: bool,
}

pub(super) static DEFINITION: KindDefinition = KindDefinition {
    name: "project-copy",
    description: "Copies files of a project to places in other projects, on whatever hosts, now or when they come back",
    scope: ScopeType::Project,
    routing: RoutingRule::Hub,
    phases: &[
        Phase { name: "snapshot", weight: 40 },
        Phase { name: "apply", weight: 58 },
        Phase { name: "clean-up", weight: 2 },
    ],
    max_attempts: 10,
    time_to_live_s: 7 * 24 * 3600 + COPY_GRACE_S,
    exclusive: false,
    gives_way: false,
    uses_repository: false,
    part_of: None,
    for_tests: false,
    example_input: r#"{"src":{"path":"handout"},"dests":[{"project_id":"0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11","path":"handout"}],"options":{"force":true}}"#,
    normalise_input: &|input| {
        let normalised = normalise::<ProjectCopyInput>("project-copy", input)?;
        let mut input: ProjectCopyInput = serde_json::from_value(normalised)
            .map_err(|error| ApiError::invalid_argument(format!("the input does not read: {error}")))?;
        input.dests.extend(input.dest.take());
        check(&input)?;
        Ok(serde_json::to_value(input).unwrap_or_default())
    },
    host_in_input: no_host,
    input_schema: &schema::<ProjectCopyInput>,
    result_schema: &schema::<ProjectCopyResult>,
};

fn check(input: &ProjectCopyInput) -> Result<(), ApiError> {
    let wrong = |message: String| Err(ApiError::invalid_argument(message));
    if !input.options.verbatim_symlinks {
        return wrong(
            "symbolic links are copied as they are: leave verbatimSymlinks on, or use dereference".to_owned(),
        );
    }
    if !(1..=MOST_DESTINATIONS).contains(&input.dests.len()) {
        return wrong(format!("dests: 1 to {MOST_DESTINATIONS} are to be given, not {}", input.dests.len()));
    }
    let paths = input.paths();
    if !(1..=MOST_PATHS).contains(&paths.len()) {
        return wrong(format!("src.path: a list has 1 to {MOST_PATHS} paths, not {}", paths.len()));
    }
    let mut names = HashSet::new();
    if let Some(twice) = paths.iter().find(|path| !names.insert(path.name())) {
        return wrong(format!("src.path: two of the paths have the name {:?}", twice.name()));
    }
    // Each destination's operation has all entries in its input, and all of them go into one message.
    let entry_bytes = |path: &ProjectPath| 2 * path.as_str().len() + 40;
    let bytes = input.dests.len() * paths.iter().map(entry_bytes).sum::<usize>();
    if bytes > MOST_ENTRY_BYTES {
        return wrong(format!(
            "{} paths to {} destinations are too much for one copy: copy the directory that they are in, or several times",
            paths.len(),
            input.dests.len()
        ));
    }
    let mut places = HashSet::new();
    for dest in &input.dests {
        if !places.insert(dest) {
            return wrong(format!("dests: {} in the project {} is named twice", dest.path, dest.project_id));
        }
        input.entries(dest)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn normalised(input: Value) -> Result<ProjectCopyInput, String> {
        let normalised = (DEFINITION.normalise_input)(&input).map_err(|error| error.message)?;
        Ok(serde_json::from_value(normalised).unwrap())
    }

    #[test]
    fn one_destination_may_be_given_as_dest_and_options_are_those_of_cp_r() {
        let project = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        let input = json!({"src": {"path": "a"}, "dest": {"project_id": project, "path": "./b//c"}});
        let input = normalised(input).unwrap();
        assert_eq!((input.dest.as_ref(), input.dests.len()), (None, 1));
        assert_eq!(serde_json::to_value(input.options).unwrap()["recursive"], true);
        let entries = input.entries(&input.dests[0]).unwrap();
        assert_eq!((entries[0].from.as_str(), entries[0].to.as_str()), ("a", "b/c"));
    }

    #[test]
    fn a_list_goes_into_the_destination_each_under_its_name() {
        let project = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        let dests = json!([{"project_id": project, "path": "."}, {"project_id": project, "path": "in"}]);
        let input = normalised(json!({"src": {"path": ["x/a", "b"]}, "dests": dests})).unwrap();
        let to = |number: usize| -> Vec<String> {
            let entries = input.entries(&input.dests[number]).unwrap();
            entries.into_iter().map(|entry| entry.to.to_string()).collect()
        };
        assert_eq!((to(0), to(1)), (vec!["a".into(), "b".into()], vec!["in/a".into(), "in/b".into()]));
    }

    #[test]
    fn bad_input_is_refused_with_its_reason() {
        let dest = json!({"project_id": "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11", "path": "b"});
        let top = json!({"project_id": "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11", "path": "."});
        for (input, expected) in [
            (json!({"src": {"path": "../a"}, "dest": dest}), "'..'"),
            (json!({"src": {"path": ["/a"]}, "dest": dest}), "absolute"),
            (json!({"src": {"path": "a\u{0}"}, "dest": dest}), "NUL"),
            (json!({"src": {"path": "a"}, "dest": top}), "into '.'"),
            (json!({"src": {"path": "a"}}), "dests"),
            (json!({"src": {"path": []}, "dest": dest}), "src.path"),
            (json!({"src": {"path": ["x/a", "a"]}, "dest": dest}), "the name \"a\""),
            (json!({"src": {"path": "a"}, "dests": [dest, dest]}), "twice"),
            (
                json!({"src": {"path": "a"}, "dest": dest, "options": {"verbatimSymlinks": false}}),
                "dereference",
            ),
            (json!({"src": {"path": "a"}, "dest": dest, "options": {"filter": 1}}), "filter"),
            (json!({"src": {"path": 5}, "dest": dest}), "a path in the project"),
        ] {
            let message = normalised(input.clone()).unwrap_err();
            assert!(message.contains(expected), "{input}: {message}");
        }
    }
}
