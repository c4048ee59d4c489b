//! A short run of `longhaul-nemesis`, as `./dev nemesis --seed 7 --minutes 1.3` does it: every kind of fault once at least,
//! under load, and afterwards nothing lost, nothing doubled, no hole.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::Duration;

use tokio::process::Command;

/// Faults, the end of every lease and every back-off, and a slow machine.
const PATIENCE: Duration = Duration::from_secs(1800);

#[tokio::test]
async fn nothing_is_lost_or_done_twice_while_every_part_fails_under_load() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul-nemesis"));
    command.args(["--seed", "7", "--minutes", "1.3"]);
    let finished = test_harness::run_with_patience(command, PATIENCE).await;
    let told = finished.expect_success();
    assert!(told.contains("lost 0  double 0  holes 0  other violations 0"), "{told}");
    // A run in which nothing happens proves nothing.
    let number = |name: &str| -> usize {
        let line =
            told.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {told}"));
        line[name.len()..].split_whitespace().next().unwrap().parse().unwrap()
    };
    assert!(number("operations") >= 1000, "{told}");
    assert!(number("watched") >= 50, "{told}");
    let faults = told.lines().find(|line| line.starts_with("faults")).unwrap();
    for kind in
        ["KillWorker", "PauseWorker", "KillRegistry", "PauseRegistry", "WipeNats", "CrashPostgres", "Hold"]
    {
        assert!(faults.contains(kind), "no {kind}: {faults}");
    }
}
