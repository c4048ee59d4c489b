//! Starting, stopping, killing and restarting the real servers.
#![expect(clippy::unwrap_used, reason = "a failing test panics")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use server_processes::{
    ManagedProcess, ObjectStoreServer, PostgresServer, ProcessSpec, object_store_program, port_is_free,
    postgres_bin_directory,
};

/// `None`, said aloud, where a server is not there and not required.
fn or_skip(found: anyhow::Result<PathBuf>) -> Option<PathBuf> {
    match found {
        Ok(path) => Some(path),
        Err(error) if std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_none() => {
            eprintln!("SKIPPED: {error:#}");
            None
        }
        Err(error) => panic!("{error:#}"),
    }
}

fn shell(script: &str, logs: &tempfile::TempDir) -> ProcessSpec {
    ProcessSpec::new("shell", "/bin/sh", logs.path()).arguments(["-c", script])
}

fn psql(bin: &std::path::Path, url: &str, statement: &str) -> Result<String, String> {
    let output = Command::new(bin.join("psql")).args(["-XqAt", "-c", statement, url]).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_port_password_and_data_over_restart_and_crash() {
    let Some(bin) = or_skip(postgres_bin_directory()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut server = PostgresServer::start(&bin, directory.path()).await.unwrap();
    let url = server.database_url();
    psql(&bin, &url, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)").unwrap();

    server.restart().await.unwrap();
    assert_eq!(server.database_url(), url);
    psql(&bin, &url, "INSERT INTO kept VALUES (2)").unwrap();

    server.process().kill().await.unwrap();
    server.restart().await.unwrap();
    assert_eq!(server.database_url(), url);
    assert_eq!(psql(&bin, &url, "SELECT sum(n) FROM kept").unwrap(), "3");

    let pid = server.process().pid();
    server.stop().await.unwrap();
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
    assert!(port_is_free(server.port()));
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_never_root_and_lets_nobody_in_without_a_password() {
    let Some(bin) = or_skip(postgres_bin_directory()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let server = PostgresServer::start(&bin, directory.path()).await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process().pid())).unwrap();
    let uids = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(!uids.split_whitespace().any(|uid| uid == "0"), "{uids}");

    for user in ["longhaul", "postgres"] {
        let wrong = format!("postgres://{user}:wrong@127.0.0.1:{}/longhaul", server.port());
        assert!(psql(&bin, &wrong, "SELECT 1").unwrap_err().contains("password authentication failed"));
    }
    let rules =
        psql(&bin, &server.superuser_url("postgres"), "SELECT DISTINCT auth_method FROM pg_hba_file_rules")
            .unwrap();
    assert_eq!(rules, "scram-sha-256");
    // The services' role owns its database and is nothing more.
    let role = psql(
        &bin,
        &server.database_url(),
        "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user",
    );
    assert_eq!(role.unwrap(), "f");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_postgres_on_the_same_directory_is_refused() {
    let Some(bin) = or_skip(postgres_bin_directory()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let server = PostgresServer::start(&bin, directory.path()).await.unwrap();
    let error = PostgresServer::start(&bin, directory.path()).await.err().unwrap();
    assert!(format!("{error:#}").contains("another Postgres"), "{error:#}");
    assert_eq!(psql(&bin, &server.database_url(), "SELECT 1").unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_object_store_answers_and_keeps_its_endpoint() {
    let Some(program) = or_skip(object_store_program()) else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut server = ObjectStoreServer::start(&program, directory.path(), "key", "secret").await.unwrap();
    let endpoint = server.endpoint();
    server.restart().await.unwrap();
    assert_eq!(server.endpoint(), endpoint);
    server.stop().await.unwrap();
    assert!(!server.process().is_running());
}

#[tokio::test]
async fn a_process_writes_its_log_and_tells_how_it_ended() {
    let logs = tempfile::tempdir().unwrap();
    let process = ManagedProcess::spawn(shell("echo said; echo warned >&2; exit 3", &logs)).await.unwrap();
    assert_eq!(process.wait().await.code(), Some(3));
    assert_eq!(process.log_tail(), "said\nwarned\n");
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let logs = tempfile::tempdir().unwrap();
    let error =
        ManagedProcess::spawn(ProcessSpec::new("none", "/no/such/program", logs.path())).await.err().unwrap();
    assert!(format!("{error:#}").contains("/no/such/program"), "{error:#}");
}

#[tokio::test]
async fn a_process_that_does_not_stop_in_time_is_killed() {
    let logs = tempfile::tempdir().unwrap();
    let process =
        ManagedProcess::spawn(shell("trap '' TERM; echo deaf; while :; do sleep 0.05; done", &logs))
            .await
            .unwrap();
    server_processes::wait_until(&process, Duration::from_secs(10), || async {
        anyhow::ensure!(process.log_tail().contains("deaf"), "it does not say deaf");
        Ok(())
    })
    .await
    .unwrap();
    let status = process.stop(Duration::from_millis(200)).await.unwrap();
    assert_eq!(status.signal(), Some(9));
}

#[tokio::test]
async fn a_process_that_ends_before_it_is_ready_is_reported_with_its_log() {
    let logs = tempfile::tempdir().unwrap();
    let process = ManagedProcess::spawn(shell("echo the reason; exit 1", &logs)).await.unwrap();
    let never = || async { anyhow::bail!("not ready") };
    let error = server_processes::wait_until(&process, Duration::from_secs(10), never).await.unwrap_err();
    assert!(format!("{error:#}").contains("the reason"), "{error:#}");
}

/// Not a test by itself: the launcher that the next test kills. It starts a child, writes its pid, and waits.
#[tokio::test]
#[ignore = "run by the test below"]
async fn launcher() {
    let Some(directory) = std::env::var_os("LAUNCHER_DIRECTORY").map(PathBuf::from) else { return };
    let process = ManagedProcess::spawn(ProcessSpec::new("child", "/bin/sleep", &directory).argument("600"))
        .await
        .unwrap();
    std::fs::write(directory.join("pid.partial"), process.pid().to_string()).unwrap();
    std::fs::rename(directory.join("pid.partial"), directory.join("pid")).unwrap();
    process.wait().await;
}

#[test]
fn a_child_does_not_outlive_a_launcher_that_was_killed() {
    let directory = tempfile::tempdir().unwrap();
    let mut launcher = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "launcher"])
        .env("LAUNCHER_DIRECTORY", directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let wait_for = |what: &str, condition: &dyn Fn() -> bool| {
        let give_up = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < give_up, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("the child was not started", &|| directory.path().join("pid").exists());
    let pid = std::fs::read_to_string(directory.path().join("pid")).unwrap();
    let name = || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // The child is `setpriv` until it becomes the program.
    wait_for("the child is not the program", &|| name() == "sleep\n");
    launcher.kill().unwrap();
    launcher.wait().unwrap();
    wait_for("the child is still there", &|| name() != "sleep\n");
}
