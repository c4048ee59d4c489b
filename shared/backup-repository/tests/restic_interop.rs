//! The repository is restic's: its command line checks it, restores from it and reads it with the password.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use backup_repository::BackupRepositoryErrorKind;
use support::*;

/// The `restic` to use: `LONGHAUL_RESTIC`, else the one on PATH; its absence is a failure only where
/// `LONGHAUL_REQUIRE_TOOLS=1`.
fn restic() -> Option<PathBuf> {
    let named = std::env::var_os("LONGHAUL_RESTIC").map(PathBuf::from);
    let program = named.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("restic")).find(|path| path.is_file())
    });
    if program.is_none() {
        let required = std::env::var("LONGHAUL_REQUIRE_TOOLS").is_ok_and(|value| value == "1");
        assert!(!required, "LONGHAUL_REQUIRE_TOOLS=1, and there is no restic");
        eprintln!("SKIPPED: there is no restic (set LONGHAUL_RESTIC, or put one on PATH)");
    }
    program
}

fn run(program: &Path, test: &TestRepository, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(["--no-cache", "--no-lock", "--repo"])
        .arg(test.repository_path())
        .args(args)
        .env("RESTIC_PASSWORD", test.password.expose())
        .output()
        .unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "restic {args:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn restic_checks_and_restores_what_we_backed_up() {
    let Some(restic) = restic() else { return };
    let test = TestRepository::new().await;
    fill_with_everything(&test.project());
    fs::write(test.path("persist/store.db"), b"persisted").unwrap();
    let first = test.back_up(test.request(None)).await.unwrap();
    fs::write(test.project().join("src/main.rs"), b"fn main() { changed() }\n").unwrap();
    let second = test.back_up(test.request(Some(first.snapshot))).await.unwrap();

    let checked = run(&restic, &test, &["check", "--read-data"]);
    assert!(checked.contains("no errors were found"), "{checked}");
    let target = test.path("by-restic");
    run(&restic, &test, &["restore", &second.snapshot.to_string(), "--target", target.to_str().unwrap()]);
    assert_same_for_restic(&test.project(), &target.join("project"));
    assert_same(&test.path("persist"), &target.join("persist"));
    let listed = run(&restic, &test, &["snapshots", "--json"]);
    for tag in ["longhaul", "layout=2", "purpose=backup", "before-exam", &format!("tree={}", second.tree)] {
        assert!(listed.contains(&format!("\"{tag}\"")), "{tag}: {listed}");
    }
}

/// restic restores no sockets, and knows targets of links that are not UTF-8 only from 0.16.3 on.
fn assert_same_for_restic(one: &Path, other: &Path) {
    fs::remove_file(one.join("socket")).unwrap();
    for root in [one, other] {
        fs::remove_file(root.join("links/odd")).unwrap();
        // The removals changed these times.
        set_mtime(&root.join("links"), 1_600_000_000, 0);
    }
    set_mtime(one, 1_600_000_000, 999_999_999);
    assert_same(one, other);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_not_ours_is_neither_restored_nor_listed() {
    let Some(restic) = restic() else { return };
    let test = TestRepository::new().await;
    fs::write(test.project().join("a"), b"a").unwrap();
    let (project, op) = (test.identity.project_id, uuid::Uuid::now_v7());
    let ours = format!("longhaul,layout=2,purpose=backup,op={op},project={project}");
    let foreign = [
        ("no tags", String::new(), "not made by longhaul"),
        ("another layout", ours.replace("layout=2", "layout=1"), "its layout is 1"),
        ("another project", ours.replace(&project.to_string(), &op.to_string()), "it belongs to project"),
        ("other roots", ours, "its roots are not exactly"),
    ];
    for (name, tags, reason) in foreign {
        let source = test.project().display().to_string();
        let mut args = vec!["backup", "--json", &source];
        if !tags.is_empty() {
            args.extend(["--tag", &tags]);
        }
        let output = run(&restic, &test, &args);
        let id = output.split("\"snapshot_id\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
        // This version of restic prints the first digits only.
        let snapshots = fs::read_dir(test.repository_path().join("snapshots")).unwrap();
        let id = snapshots
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .find(|full| full.starts_with(id))
            .unwrap();
        let error = test.restore(id.parse().unwrap(), test.whole(name)).await.unwrap_err();
        assert_eq!(error.kind(), BackupRepositoryErrorKind::UnsupportedLayout, "{name}");
        assert!(error.to_string().contains(reason), "{name}: {error}");
    }
}
