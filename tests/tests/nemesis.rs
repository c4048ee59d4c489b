//! A run of `longhaul-nemesis`, as `./dev nemesis --seed 7 --minutes 3` does it: every kind of fault once at least,
//! under load, and afterwards nothing lost, nothing doubled, no hole, never more at once than a cap allows, and every
//! repository sound, with backups that restore to what they were.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use tokio::process::Command;

/// Faults, the end of every lease and every back-off, and a slow machine.
const PATIENCE: Duration = Duration::from_secs(1800);

#[tokio::test]
async fn nothing_is_lost_or_done_twice_while_every_part_fails_under_load() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul-nemesis"));
    command.args(["--seed", "7", "--minutes", "3"]);
    let finished = test_harness::run_with_patience(command, PATIENCE).await;
    let told = finished.expect_success();
    assert!(told.contains("lost 0  double 0  holes 0  other violations 0"), "{told}");
    // A run in which nothing happens proves nothing.
    let number = |name: &str| -> usize {
        let line =
            told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {told}"));
        line[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(number("operations") >= 4000, "{told}");
    assert!(number("watched") >= 200, "{told}");
    // A cap that is never near proves nothing: more ran than one worker has slots for, so that several claim under it.
    for (kind, least) in [("test-sleep", 97), ("project-backup", 1)] {
        let most = number(&format!("at once           {kind}: in all"));
        assert!(most >= least, "{kind} ran {most} times at once: {told}");
    }
    // So does one in which nobody uses a project. Starts and stops are too few to be sure of.
    let kinds = told.lines().find(|line| line.starts_with("kinds")).unwrap();
    for kind in [
        "project-backup",
        "project-restore",
        "restore-drill",
        "repo-check",
        "repo-prune",
        "project-copy",
        "copy-apply",
    ] {
        assert!(kinds.contains(&format!(" {kind} ")), "no {kind}: {kinds}");
    }
    let proofs: Vec<&str> = told.lines().filter(|line| line.starts_with("proof")).collect();
    assert_eq!(proofs.len(), 2, "{told}");
    for proof in proofs {
        assert!(proof.contains("check succeeded; restore succeeded"), "{proof}");
    }
    // Its plan has all of them in the first 75 s, whoever is away is waited for, and so each of them happens.
    let faults = told.lines().find(|line| line.starts_with("faults")).unwrap();
    for kind in [
        "KillWorker",
        "StopWorker",
        "PauseWorker",
        "KillRegistry",
        "StopRegistry",
        "PauseRegistry",
        "KillHostBackup",
        "StopHostBackup",
        "PauseHostBackup",
        "KillCopyApplier",
        "KillNats",
        "WipeNats",
        "RestartPostgres",
        "CrashPostgres",
        "WipeNatsAndCrashPostgres",
        "CutConnections",
        "DelayConnections",
        "HoldConnections",
    ] {
        assert!(faults.contains(&format!(" {kind} ")), "no {kind}: {faults}");
    }
}
