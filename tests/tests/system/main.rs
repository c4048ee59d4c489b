//! The whole system, over real processes: what a person, a program or an operator does with it, and what must not happen
//! when a part of it fails.
#![allow(clippy::unwrap_used, reason = "a failing test panics")]

mod adding_a_kind;
mod authorization;
mod backup_schedule;
mod bad_input;
mod browsing;
mod buckets;
mod clients;
mod clock;
mod cluster;
mod command_line;
mod copies;
mod copies_at_scale;
mod copies_under_way;
mod database_operations;
mod documents;
mod every_step;
mod faults;
mod floods;
mod job_limits;
mod main_job;
mod measures;
mod nested_subvolumes;
mod nudges;
mod operations;
mod path_restore;
mod project_start;
mod proof;
mod restarts;
mod restore_resume;
mod retention;
mod stopping;
mod stored;
mod turns;
mod watching;
mod wire_conformance;

use test_harness::{InUse, ObjectStoreKind, SharedSystem, SystemOptions};

/// For tests that hurt nobody: each works on projects and operations of its own.
static SYSTEM: SharedSystem =
    SharedSystem::new(|| SystemOptions { hosts: 2, test_kinds: true, ..SystemOptions::default() });

async fn system() -> InUse {
    SYSTEM.get().await
}

/// Two hosts on directories with a directory as their object store; or on btrfs with an S3 server.
fn two_hosts(btrfs: bool) -> SystemOptions {
    let object_store = if btrfs { ObjectStoreKind::S3 } else { ObjectStoreKind::Local };
    SystemOptions { hosts: 2, btrfs, object_store, ..SystemOptions::default() }
}

/// `project-<id>`.
fn scope(project: &str) -> String {
    format!("project-{project}")
}

/// The settings of a registry with leases of so many seconds, which it soon misses.
fn leases_of(seconds: &str) -> Vec<(String, String)> {
    let settings = [("LEASE_S", seconds), ("SWEEP_S", "0.5")];
    settings
        .map(|(name, value)| (format!("LONGHAUL_REGISTRY__OPERATIONS__{name}"), value.to_owned()))
        .to_vec()
}

/// That two trees are the same in everything, with the differences where they are not.
#[track_caller]
fn assert_same_tree(one: &std::path::Path, other: &std::path::Path) {
    let differences = volumes::compare_trees(one, other).unwrap();
    let told: Vec<String> = differences.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{} and {} differ:\n{}", one.display(), other.display(), told.join("\n"));
}
