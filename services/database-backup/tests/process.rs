//! The program: an application under it, its signals, its end, and what becomes of the backup when the network is bad.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use support::{Fixture, Mood, Proxy, succeeded, wait_for};

/// The program under test, with its log in a file.
struct Program {
    child: Child,
    log: std::path::PathBuf,
}

impl Program {
    fn start(fixture: &Fixture, config: &Path, arguments: &[&str]) -> Self {
        let log = fixture.path("log");
        let child = Command::new(env!("CARGO_BIN_EXE_database-backup"))
            .arg("--config")
            .arg(config)
            .args(arguments)
            .env("DUCKDB", &fixture.duckdb)
            .env("DATABASE", fixture.database())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn wait_for_log(&self, part: &str) {
        wait_for(&format!("{part:?} in the log"), || self.log().contains(part).then_some(()));
    }

    /// Its exit status.
    fn ended(mut self) -> (i32, String) {
        let status = wait_for("the end of the program", || self.child.try_wait().unwrap());
        (status.code().unwrap(), self.log())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One command of the program, to its end.
fn run(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_database-backup"));
    command.arg("--config").arg(config).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// An application that has the database open, writes a row when it is ready and another one when it is told to end.
const APPLICATION: &str = r#"
fifo=$DATABASE.fifo; mkfifo "$fifo"
"$DUCKDB" -no-init -batch "$DATABASE" <"$fifo" >/dev/null & database=$!
exec 3>"$fifo"; rm "$fifo"
end() { echo "INSERT INTO events VALUES (-2, '$1');" >&3; exec 3>&-; wait $database; exit ${2}; }
trap 'end SIGTERM 5' TERM; trap 'end SIGINT 6' INT
echo "INSERT INTO events VALUES (-1, 'begun'); COPY (SELECT 1) TO '$DATABASE.ready' (FORMAT csv);" >&3
while :; do sleep 0.05; done
"#;

async fn last_backup(fixture: &Fixture) -> database_backup::Backup {
    let mut backups = fixture.service().list().await.unwrap();
    assert_eq!(backups.len(), 1, "{backups:?}");
    backups.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_shutdown_backup_has_what_the_application_wrote_last() {
    for (signal, name, status) in [(Signal::TERM, "SIGTERM", 5), (Signal::INT, "SIGINT", 6)] {
        let Some(fixture) = Fixture::new().await else { return };
        fixture.make_database();
        let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
        let program = Program::start(&fixture, &config, &["run", "--", "sh", "-c", APPLICATION]);
        wait_for("the application", || fixture.path("hesocial.duckdb.ready").exists().then_some(()));
        program.signal(signal);
        let (code, log) = program.ended();
        assert_eq!(code, status, "{log}");
        let taken = last_backup(&fixture).await;
        assert_eq!(taken.kind, "shutdown");
        assert!(taken.id.as_str().starts_with("hesocial-backup-"));
        let other = fixture.service_of("other.duckdb", &[]);
        succeeded(other.begin_restore(taken.id.to_string()).unwrap()).await;
        let rows =
            fixture.duckdb(&fixture.path("other.duckdb"), "SELECT name FROM events WHERE id < 0 ORDER BY id");
        assert_eq!(rows, format!("{name}\nbegun"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_ends_by_itself_or_crashes_is_backed_up_and_its_status_is_passed_on() {
    for (script, status) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let Some(fixture) = Fixture::new().await else { return };
        fixture.make_database();
        let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
        let (code, log) = Program::start(&fixture, &config, &["run", "--", "sh", "-c", script]).ended();
        assert_eq!(code, status, "{script}: {log}");
        assert_eq!(last_backup(&fixture).await.kind, "shutdown");
    }
    // A writer that is killed in the middle leaves its log, and the backup has what was committed.
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
    let script = r#"(echo "SET wal_autocheckpoint='1TB';"; i=0; while [ $i -lt 300 ]; do echo "INSERT INTO events VALUES (-$i, 'x');"; i=$((i+1)); done
        echo "COPY (SELECT 1) TO '$DATABASE.ready' (FORMAT csv);"; sleep 60) | "$DUCKDB" -no-init -batch "$DATABASE" & 
        while [ ! -e "$DATABASE.ready" ]; do sleep 0.02; done; kill -9 $!; exit 9"#;
    let (code, log) = Program::start(&fixture, &config, &["run", "--", "sh", "-c", script]).ended();
    assert_eq!(code, 9, "{log}");
    let rows = last_backup(&fixture).await.facts.unwrap().rows;
    assert_eq!(rows, 1000 + 1 + 300, "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_does_not_stop_the_backup_and_a_third_leaves_it_for_later() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS digest FROM range(700000) r(i)",
    );
    let proxy = Proxy::start(&fixture.endpoint, Mood::Slow(Duration::from_millis(400)));
    let config = fixture.config("hesocial.duckdb", &proxy.endpoint, &[]);
    let begin = || {
        let writes = proxy.writes();
        let program = Program::start(&fixture, &config, &["run", "--", "sleep", "600"]);
        program.wait_for_log("answering the admin API");
        program.signal(Signal::TERM);
        wait_for("the upload", || (proxy.writes() > writes + 1).then_some(()));
        program
    };
    let program = begin();
    program.signal(Signal::TERM);
    let (code, log) = program.ended();
    assert_eq!(code, 143, "the application's: {log}");
    assert!(log.contains("the next signal abandons it"), "{log}");
    assert_eq!(last_backup(&fixture).await.kind, "shutdown");

    let program = begin();
    program.signal(Signal::TERM);
    program.wait_for_log("the next signal abandons it");
    program.signal(Signal::INT);
    let (code, log) = program.ended();
    assert_eq!(code, 143, "the application's own status was no success: {log}");
    assert!(log.contains("THE SHUTDOWN BACKUP FAILED") && log.contains("upload-pending"), "{log}");
    last_backup(&fixture).await;

    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
    let uploaded = run(&config, &["upload-pending"]);
    assert!(uploaded.status.success(), "{uploaded:?}");
    assert_eq!(fixture.service().list().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn statuses_429_and_500_during_the_shutdown_upload_are_gone_through() {
    for status in [429, 500, 503] {
        let Some(fixture) = Fixture::new().await else { return };
        fixture.duckdb(
            &fixture.database(),
            "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS digest FROM range(400000) r(i)",
        );
        let proxy = Proxy::start(&fixture.endpoint, Mood::Refuses { status, writes: 4 });
        let config = fixture.config("hesocial.duckdb", &proxy.endpoint, &[("backup", "lifecycle_days = 0")]);
        let (code, log) = Program::start(&fixture, &config, &["run", "--", "true"]).ended();
        assert_eq!((code, proxy.refused()), (0, 4), "{log}");
        assert_eq!(last_backup(&fixture).await.kind, "shutdown");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_network_the_exit_status_says_so_and_the_copy_is_kept_and_uploaded_by_the_next_start() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let proxy = Proxy::start(&fixture.endpoint, Mood::Gone);
    let config = fixture.config("hesocial.duckdb", &proxy.endpoint, &[("backup", "deadline_s = 4")]);
    let (code, log) = Program::start(&fixture, &config, &["run", "--", "true"]).ended();
    assert_eq!(code, 1, "the application's own status was 0: {log}");
    let pending: Vec<_> = fixture
        .path("work-hesocial.duckdb/pending")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().unwrap() == "duckdb")
        .collect();
    assert_eq!(pending.len(), 1);
    let kept = format!("the checked copy is kept at {}", pending[0].display());
    assert!(log.contains("THE SHUTDOWN BACKUP FAILED") && log.contains(&kept), "{log}");
    assert_eq!(fixture.duckdb(&pending[0], "SELECT count(*) FROM events"), "1000");
    assert!(fixture.keys().await.is_empty());

    // The network is back before the next start, whose own backup is another one.
    proxy.set(Mood::Open);
    let program = Program::start(
        &fixture,
        &config,
        &["run", "--", "sh", "-c", "while [ -e $DATABASE ]; do sleep 0.05; done"],
    );
    wait_for("the upload of the copy", || (!pending[0].exists()).then_some(()));
    drop(program);
    assert_eq!(last_backup(&fixture).await.kind, "shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_killed_in_mid_upload_goes_on_when_it_starts_again() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS digest FROM range(700000) r(i)",
    );
    let proxy = Proxy::start(&fixture.endpoint, Mood::Slow(Duration::from_millis(400)));
    let config = fixture.config("hesocial.duckdb", &proxy.endpoint, &[]);
    let mut program = Program::start(&fixture, &config, &["run", "--", "true"]);
    wait_for("a part of the upload", || (proxy.writes() > 3).then_some(()));
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    assert!(fixture.keys().await.is_empty());
    proxy.set(Mood::Open);
    let uploaded = run(&config, &["upload-pending"]);
    assert!(uploaded.status.success(), "{uploaded:?}");
    let taken = last_backup(&fixture).await;
    let other = fixture.service_of("other.duckdb", &[]);
    succeeded(other.begin_restore(taken.id.to_string()).unwrap()).await;
    assert_eq!(fixture.duckdb(&fixture.path("other.duckdb"), "SELECT count(*) FROM t"), "700000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_beside_its_application_backs_up_when_it_is_told_to_end() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
    let program = Program::start(&fixture, &config, &["serve"]);
    program.wait_for_log("answering the admin API");
    program.signal(Signal::TERM);
    let (code, log) = program.ended();
    assert_eq!(code, 0, "{log}");
    assert_eq!(last_backup(&fixture).await.kind, "shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_that_is_away_holds_nothing_up() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let tables =
        [("nats", "url = \"nats://127.0.0.1:9\""), ("host", "id = \"5b0a2f0e-3b9d-4f0e-8a51-0c3f5f1f9e77\"")];
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &tables);
    let (code, log) = Program::start(&fixture, &config, &["run", "--", "true"]).ended();
    assert_eq!(code, 0, "{log}");
    assert_eq!(last_backup(&fixture).await.kind, "shutdown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_is_due_by_the_clock_and_a_metric_tells_of_none() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let metrics = fixture.path("metrics-address");
    let metrics_file = format!("address_file = {:?}", metrics.display().to_string());
    let tables = [("backup", "at_risk_after_s = 1"), ("http", metrics_file.as_str())];
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &tables);
    let program = Program::start(&fixture, &config, &["serve"]);
    program.wait_for_log("AT RISK");
    let address = std::fs::read_to_string(&metrics).unwrap();
    let (_, text) = support::http(address.trim(), "GET", "/metrics", "", "");
    assert!(text.contains("longhaul_database_backup_at_risk 1"), "{text}");
    assert_eq!(support::http(address.trim(), "GET", "/healthz", "", "").0, 503);
    drop(program);

    let tables = [("backup", "interval_s = 3600"), ("http", metrics_file.as_str())];
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &tables);
    let program = Program::start(&fixture, &config, &["serve"]);
    program.wait_for_log("a backup is stored");
    assert_eq!(last_backup(&fixture).await.kind, "scheduled");
    let address = std::fs::read_to_string(&metrics).unwrap();
    wait_for("good measures", || {
        let (_, text) = support::http(address.trim(), "GET", "/metrics", "", "");
        let seen = text.lines().any(|line| {
            line.strip_prefix("longhaul_database_backup_last_success_timestamp_seconds ")
                .is_some_and(|value| value.parse::<i64>().unwrap() > 1_700_000_000)
        });
        (seen && text.contains("longhaul_database_backup_at_risk 0")).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_by_hand_and_the_mistakes_that_they_name() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert_eq!(text(&run(&config, &["--check-config", "serve"]).stdout), "ok\n");
    let taken = run(&config, &["backup"]);
    assert!(taken.status.success(), "{taken:?}");
    let taken: serde_json::Value = serde_json::from_slice(&taken.stdout).unwrap();
    let id = taken["backupId"].as_str().unwrap();
    fixture.duckdb(&fixture.database(), "DELETE FROM events");
    let restored = run(&config, &["restore", "--latest"]);
    assert!(restored.status.success(), "{restored:?}");
    assert_eq!(fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events"), "1000");
    let listed = run(&config, &["list"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed["id"].as_str(), listed["status"].as_str()), (Some(id), Some("latest_restored")));
    assert!(run(&config, &["restore", "--rollback"]).status.success());
    assert_eq!(fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events"), "0");
    // The rolled back state is again what a rollback leads away from.
    assert!(run(&config, &["restore", "--rollback"]).status.success());
    assert_eq!(fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events"), "1000");

    let unknown = run(&config, &["restore", "hesocial-backup-20200101-000000.duckdb"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("there is no backup"), "{unknown:?}");
    let lost = run(&config, &["run", "--", "/no/such/program"]);
    assert_eq!(lost.status.code(), Some(127));
    for (table, line, word) in [
        ("backup", "retention_days = 365", "lifecycle_days"),
        ("storage", "bucket = \"\"", "R2_BUCKET_NAME"),
        ("storage", "path = \"../x\"", "R2_BACKUP_PATH"),
        ("admin", "token = \"short\"", "BACKUP_ADMIN_TOKEN"),
        ("encryption", "recipients = \"AGE-SECRET-KEY-1ABC\"", "number 1 of encryption.recipients"),
        ("nats", "url = \"nats://127.0.0.1:1\"", "host.id"),
        ("backup", "retention = 3", "unknown key"),
    ] {
        let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[(table, line)]);
        let refused = run(&config, &["--check-config", "serve"]);
        assert_eq!(refused.status.code(), Some(2), "{line}");
        assert!(text(&refused.stderr).contains(word), "{refused:?}");
        let secrets = ["longhaul-test-secret", "AGE-SECRET-KEY"];
        assert!(!secrets.iter().any(|secret| text(&refused.stderr).contains(secret)), "{refused:?}");
    }
    let config = fixture.config("hesocial.duckdb", &fixture.endpoint, &[("backup", "enabled = false")]);
    let disabled = run(&config, &["backup"]);
    assert!(
        !disabled.status.success() && text(&disabled.stderr).contains("BACKUP_ENABLED=false"),
        "{disabled:?}"
    );
    let (code, log) = Program::start(&fixture, &config, &["run", "--", "sh", "-c", "exit 4"]).ended();
    assert!(code == 4 && log.contains("no shutdown backup: backups are disabled"), "{log}");
    assert_eq!(fixture.service().list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_variables_of_the_document_are_all_that_is_needed() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let mut command = Command::new(env!("CARGO_BIN_EXE_database-backup"));
    command
        .args(["run", "--", "true"])
        .env_clear()
        .env("R2_ACCOUNT_ID", "your-account-id")
        .env("R2_ACCESS_KEY_ID", "longhaul-test")
        .env("R2_SECRET_ACCESS_KEY", "longhaul-test-secret")
        .env("R2_BUCKET_NAME", &fixture.bucket)
        .env("R2_ENDPOINT", &fixture.endpoint)
        .env("R2_REGION", "auto")
        .env("BACKUP_ENABLED", "true")
        .env("R2_BACKUP_PATH", "/somewhere/else/")
        .env("BACKUP_RETENTION_DAYS", "30")
        .env("LONGHAUL_DATABASE_BACKUP__DATABASE__PATH", fixture.database())
        .env("LONGHAUL_DATABASE_BACKUP__DATABASE__DUCKDB_PROGRAM", &fixture.duckdb)
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let keys = fixture.keys().await;
    assert!(keys.len() == 1 && keys[0].starts_with("somewhere/else/hesocial-backup-"), "{keys:?}");
    assert!(fixture.path(".hesocial.duckdb.backup-work").exists());

    let disabled = command.env("BACKUP_ENABLED", "false").output().unwrap();
    assert!(disabled.status.success());
    assert_eq!(fixture.keys().await.len(), 1);
}
