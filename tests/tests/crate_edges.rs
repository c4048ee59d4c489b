//! Who may import whom. The rules are those of ARCHITECTURE.md; `cargo metadata` says what is.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Each crate of ours, and those of ours that it may use.
const ALLOWED: &[(&str, &[&str])] = &[
    ("domain-model", &[]),
    ("bus-subjects", &["domain-model"]),
    ("bus-messages", &["domain-model"]),
    ("bus-client", &["bus-messages", "bus-subjects", "domain-model"]),
    ("catalog-database", &["bus-messages", "bus-subjects", "domain-model"]),
    ("operation-engine", &["bus-client", "bus-messages", "bus-subjects", "domain-model"]),
    ("object-storage", &[]),
    ("backup-repository", &["object-storage"]),
    (
        "backup-browsing",
        &[
            "backup-repository",
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "domain-model",
            "object-storage",
        ],
    ),
    ("volumes", &["domain-model"]),
    (
        "host-operations",
        &[
            "backup-browsing",
            "backup-repository",
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "domain-model",
            "operation-engine",
            "service-runtime",
            "volumes",
        ],
    ),
    ("service-runtime", &[]),
    ("server-processes", &[]),
    (
        "registry",
        &[
            "backup-repository",
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "catalog-database",
            "domain-model",
            "object-storage",
            "service-runtime",
        ],
    ),
    (
        "copy-applier",
        &[
            "backup-repository",
            "bus-client",
            "bus-messages",
            "domain-model",
            "host-operations",
            "operation-engine",
            "service-runtime",
            "volumes",
        ],
    ),
    (
        "host-backup",
        &[
            "backup-browsing",
            "backup-repository",
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "domain-model",
            "host-operations",
            "operation-engine",
            "service-runtime",
            "volumes",
        ],
    ),
    (
        "database-backup",
        &[
            "bus-client",
            "bus-messages",
            "domain-model",
            "object-storage",
            "operation-engine",
            "service-runtime",
        ],
    ),
    (
        "scheduler",
        &[
            "backup-browsing",
            "backup-repository",
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "domain-model",
            "operation-engine",
            "service-runtime",
        ],
    ),
    (
        "longhaul",
        &[
            "bus-client",
            "bus-messages",
            "bus-subjects",
            "domain-model",
            "object-storage",
            "server-processes",
            "volumes",
        ],
    ),
];

/// What talks to the outside has one door.
const SINGLE_DOORS: &[(&str, &[&str])] = &[
    ("async-nats", &["bus-client"]),
    ("sqlx", &["catalog-database"]),
    ("aws-sdk-s3", &["object-storage"]),
    ("rustic_core", &["backup-repository"]),
    ("rusqlite", &["database-backup"]),
    ("prometheus-client", &["service-runtime"]),
    // Measures and health of every service, and the one API that is HTTP.
    ("axum", &["service-runtime", "database-backup"]),
];

/// For tests alone, so never a dependency of anything that is shipped.
const FOR_TESTS: &[&str] = &["test-harness", "system-tests", "benchmarks"];

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(manifest)
        .other_options(["--offline".to_owned(), format!("--filter-platform={}", host_platform())])
        .exec()
        .unwrap()
}

/// Crates for other platforms are not at hand where nobody has downloaded them.
fn host_platform() -> String {
    let version = std::process::Command::new("rustc").arg("-vV").output().unwrap();
    let text = String::from_utf8(version.stdout).unwrap();
    text.lines().find_map(|line| line.strip_prefix("host: ")).unwrap().to_owned()
}

fn shipped_dependencies(package: &Package) -> BTreeSet<&str> {
    let shipped =
        package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
    shipped.map(|dependency| dependency.name.as_str()).collect()
}

#[test]
fn crates_import_only_what_they_may() {
    let metadata = metadata();
    let ours: BTreeMap<&str, &Package> =
        metadata.workspace_packages().into_iter().map(|package| (package.name.as_str(), package)).collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, package) in &ours {
        if FOR_TESTS.contains(name) {
            continue;
        }
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} is not in the table of this test"));
            continue;
        };
        for dependency in shipped_dependencies(package) {
            if ours.contains_key(dependency) && !allowed.contains(&dependency) {
                wrong.push(format!("{name} uses {dependency}"));
            }
        }
    }
    for (name, _) in ALLOWED {
        if !ours.contains_key(name) {
            wrong.push(format!("{name} is in the table and not in the workspace"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_talks_to_the_outside_has_one_door() {
    let metadata = metadata();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        if FOR_TESTS.contains(&package.name.as_str()) {
            continue;
        }
        for dependency in shipped_dependencies(package) {
            let door = SINGLE_DOORS.iter().find(|(crate_name, _)| *crate_name == dependency);
            if let Some((crate_name, doors)) = door
                && !doors.contains(&package.name.as_str())
            {
                wrong.push(format!("{} uses {crate_name}; only {} may", package.name, doors.join(", ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_tls_provider_and_no_opendal_or_duckdb() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().unwrap();
    let names: BTreeSet<String> =
        resolve.nodes.iter().map(|node| metadata[&node.id].name.to_string()).collect();
    for banned in ["opendal", "duckdb", "libduckdb-sys", "openssl-sys", "native-tls"] {
        assert!(!names.contains(banned), "{banned} is compiled in");
    }
}

#[test]
fn a_folder_is_named_as_its_crate() {
    for package in metadata().workspace_packages() {
        let folder = package.manifest_path.parent().and_then(|folder| folder.file_name()).unwrap();
        assert!(
            folder == package.name.as_str() || package.name == "system-tests",
            "{} is in {folder}",
            package.name
        );
    }
}
