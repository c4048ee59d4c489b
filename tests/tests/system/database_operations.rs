//! A database-backup that has joined the bus: its operations, and what becomes of them when it is cut off or killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use test_harness::{Client, TestSystem, nats_command_line, run, wait_for};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::system;

const PATIENCE: Duration = Duration::from_secs(60);

/// A line to the nats-server that can be cut.
struct Cable {
    port: u16,
    whole: watch::Sender<bool>,
}

impl Cable {
    async fn lay(nats_url: &str) -> Self {
        let server = nats_url.strip_prefix("nats://").unwrap().to_owned();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (whole, seen) = watch::channel(true);
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let (server, mut seen) = (server.clone(), seen.clone());
                tokio::spawn(async move {
                    if *seen.borrow_and_update() {
                        let mut far = TcpStream::connect(server).await.unwrap();
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                            _ = seen.wait_for(|whole| !whole) => {}
                        }
                    }
                });
            }
        });
        Self { port, whole }
    }
}

/// A database-backup that is a host of the system. Its DuckDB waits while there is a file `hold`.
struct Service {
    directory: PathBuf,
    config: PathBuf,
    duckdb: PathBuf,
    process: Child,
}

impl Service {
    fn start(system: &TestSystem, host: usize, port: u16) -> Option<Self> {
        let Some(duckdb) = std::env::var_os("LONGHAUL_DUCKDB").map(PathBuf::from) else {
            test_harness::skip("there is no DuckDB command line (LONGHAUL_DUCKDB)");
            return None;
        };
        let directory = system.scratch(&format!("database-{host}"));
        fs::create_dir_all(directory.join("objects/bucket")).unwrap();
        let (database, config) = (directory.join("app.duckdb"), directory.join("app.toml"));
        let waiting = directory.join("duckdb-when-it-may");
        let hold = directory.join("hold");
        let script =
            format!("#!/bin/sh\nwhile [ -e {hold:?} ]; do sleep 0.05; done\nexec {duckdb:?} \"$@\"\n");
        fs::write(&waiting, script).unwrap();
        fs::set_permissions(&waiting, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let identity = system.host_identity(host).unwrap();
        let settings = format!(
            "[database]\npath = {database:?}\nduckdb_program = {waiting:?}\n\
             [storage]\ndirectory = {:?}\nbucket = \"bucket\"\n\
             [nats]\nurl = \"nats://127.0.0.1:{port}\"\npassword = {:?}\n[host]\nid = \"{}\"\n",
            directory.join("objects"),
            identity.password,
            system.host(host),
        );
        fs::write(&config, settings).unwrap();
        let process = serve(system, &config, &directory);
        let service = Self { directory, config, duckdb, process };
        service.sql("CREATE TABLE events AS SELECT i AS id FROM range(100) r(i)");
        Some(service)
    }

    fn sql(&self, sql: &str) -> String {
        query(&self.duckdb, &self.directory.join("app.duckdb"), sql)
    }

    fn hold(&self) {
        fs::write(self.directory.join("hold"), "").unwrap();
    }

    fn let_go(&self) {
        fs::remove_file(self.directory.join("hold")).unwrap();
    }

    fn backups(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join("objects/bucket/backups")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".duckdb")).collect();
        names.sort();
        names
    }

    fn kill_and_start_again(&mut self, system: &TestSystem) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.process = serve(system, &self.config, &self.directory);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(system: &TestSystem, config: &Path, directory: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(directory.join("log")).unwrap();
    let mut command = Command::new(system.program("database-backup").unwrap());
    command.arg("--config").arg(config).arg("serve").stdin(Stdio::null()).stderr(log).spawn().unwrap()
}

fn query(duckdb: &Path, file: &Path, sql: &str) -> String {
    let mut command = Command::new(duckdb);
    let output =
        command.args(["-csv", "-noheader"]).arg(file).arg(sql).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

async fn failed(client: &Client, scope: &str, op_id: &str) -> String {
    let op = client.ended(scope, op_id).await;
    assert_eq!(op["status"], "failed", "{op:#}");
    op["error"]["code"].as_str().unwrap().to_owned()
}

fn phases(events: &[Value]) -> Vec<&str> {
    let mut phases: Vec<&str> = events.iter().map(|event| event["phase"].as_str().unwrap()).collect();
    phases.dedup();
    phases
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_backed_up_and_restored_by_operations_on_the_bus() {
    let system = system().await;
    let client = system.operator().await;
    let port = system.ready().nats_url.rsplit_once(':').unwrap().1.parse().unwrap();
    let Some(mut service) = Service::start(&system, 0, port) else { return };
    let scope = format!("host-{}", system.host(0));

    let op_id = client.create(&scope, "database-backup", json!({})).await;
    let taken = client.result(&scope, &op_id).await;
    assert_eq!((&taken["tables"], &taken["rows"]), (&json!(1), &json!(100)), "{taken:#}");
    let backup = taken["backup_id"].as_str().unwrap().to_owned();
    assert_eq!(service.backups(), std::slice::from_ref(&backup));
    let told = client.events(&scope, &op_id).await;
    let phases = phases(&told);
    assert!(phases.contains(&"checking") && phases.last() == Some(&"done"), "{told:#?}");

    // Held open, it is not restored, and that is the end of it.
    service.sql("DELETE FROM events WHERE id >= 10");
    let mut application = Command::new(&service.duckdb);
    application.arg(service.directory.join("app.duckdb")).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut application = application.spawn().unwrap();
    let opened = || async {
        let links =
            fs::read_dir(format!("/proc/{}/fd", application.id())).map_err(|error| error.to_string())?;
        let mut files = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
        let open = files.any(|file| file == service.directory.join("app.duckdb"));
        if open { Ok(()) } else { Err("not open yet".to_owned()) }
    };
    wait_for("the application", PATIENCE, opened).await;
    let op_id = client.create(&scope, "database-restore", json!({ "backup_id": backup })).await;
    assert_eq!(failed(&client, &scope, &op_id).await, "database_open");
    application.kill().unwrap();
    application.wait().unwrap();

    let op_id = client.create(&scope, "database-restore", json!({ "backup_id": "latest" })).await;
    let restored = client.result(&scope, &op_id).await;
    assert_eq!((&restored["backup_id"], &restored["sha256"]), (&taken["backup_id"], &taken["sha256"]));
    assert_eq!(service.sql("SELECT count(*) FROM events"), "100");
    let op_id = client.create(&scope, "database-restore", json!({ "rollback": true })).await;
    assert_eq!(client.result(&scope, &op_id).await["rolled_back"], true);
    assert_eq!(service.sql("SELECT count(*) FROM events"), "10");
    let missing = json!({ "backup_id": "app-backup-20200101-000000.duckdb" });
    let op_id = client.create(&scope, "database-restore", missing).await;
    assert_eq!(failed(&client, &scope, &op_id).await, "not_found");

    // Bad requests are refused when they are made; a hub has no database.
    for (scope, kind, input) in [
        (scope.as_str(), "database-backup", json!({ "tags": [] })),
        (&scope, "database-restore", json!({})),
        (&scope, "database-restore", json!({ "backup_id": "../x" })),
        ("hub", "database-backup", json!({})),
    ] {
        let refused = client.refused(scope, "lro.create", json!({ "kind": kind, "input": input })).await;
        assert_eq!(refused.status, 400, "{scope} {kind} {input}");
    }

    // Canceled in the middle: nothing is uploaded, nothing is left.
    service.hold();
    let op_id = client.create(&scope, "database-backup", json!({})).await;
    client.until(&scope, &op_id, "phase", &["checking"]).await;
    client.call(&scope, "lro.cancel", json!({ "op_id": op_id })).await;
    assert_eq!(client.ended(&scope, &op_id).await["status"], "canceled");
    service.let_go();
    assert_eq!(service.backups().len(), 1);
    let left = fs::read_dir(service.directory.join(".app.duckdb.backup-work")).unwrap();
    let names: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("temporary")), "{names:?}");

    // Killed in the middle: the next process does it.
    service.hold();
    let op_id = client.create(&scope, "database-backup", json!({})).await;
    client.until(&scope, &op_id, "phase", &["checking"]).await;
    service.kill_and_start_again(&system);
    service.let_go();
    let op = client.ended(&scope, &op_id).await;
    assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");
    assert_eq!(service.backups().len(), 2);

    // Stopped in order, it takes its last backup as ever.
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&service.process),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert!(service.process.wait().unwrap().success());
    assert_eq!(service.backups().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_while_the_line_was_cut_is_not_done_again() {
    let system = system().await;
    let client = system.operator().await;
    let cable = Cable::lay(&system.ready().nats_url).await;
    let Some(service) = Service::start(&system, 1, cable.port) else { return };
    let scope = format!("host-{}", system.host(1));
    // Cut in the middle of the work, which goes on; whole again when that is done and another attempt is due.
    let cut = async |kind: &str, input: Value, done: &dyn Fn() -> bool| {
        service.hold();
        let op_id = client.create(&scope, kind, input).await;
        client.until(&scope, &op_id, "phase", &["checking"]).await;
        cable.whole.send_replace(false);
        service.let_go();
        wait_for("the work", PATIENCE, || async { if done() { Ok(()) } else { Err("not done yet") } }).await;
        client.until(&scope, &op_id, "status", &["queued"]).await;
        cable.whole.send_replace(true);
        let op = client.ended(&scope, &op_id).await;
        assert_eq!((&op["status"], &op["attempt"]), (&json!("succeeded"), &json!(2)), "{op:#}");
        op["result"].clone()
    };
    let stored = || service.directory.join("objects/bucket/backups").exists() && service.backups().len() == 1;
    let taken = cut("database-backup", json!({}), &stored).await;
    assert_eq!(service.backups(), [taken["backup_id"].as_str().unwrap()]);

    service.sql("DELETE FROM events WHERE id >= 10");
    let exchanged = || service.directory.join(".app.duckdb.rollback.json").exists();
    let restored = cut("database-restore", json!({ "backup_id": "latest" }), &exchanged).await;
    assert_eq!(restored["backup_id"], taken["backup_id"]);
    assert_eq!(service.sql("SELECT count(*) FROM events"), "100");
    // Done twice, the rollback copy would be one of what was restored.
    let rollback = restored["rollback_copy"].as_str().unwrap();
    assert_eq!(query(&service.duckdb, Path::new(rollback), "SELECT count(*) FROM events"), "10");

    if let Some(nats) = nats_command_line() {
        let mut shown = tokio::process::Command::new(nats);
        let context = system.ready().nats_context_dir.join("ops.json");
        let context: Value = serde_json::from_slice(&fs::read(context).unwrap()).unwrap();
        shown.args(["micro", "info", "database-backup", "--json", "--server"]);
        shown.arg(context["url"].as_str().unwrap());
        shown.args(["--user", context["user"].as_str().unwrap()]);
        shown.args(["--password", context["password"].as_str().unwrap()]);
        let shown = run(shown).await;
        assert!(shown.output.contains(&system.host(1).to_string()), "{} {}", shown.output, shown.errors);
    }
}
