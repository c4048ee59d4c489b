//! Every command in the README and in the runbook works: people paste them when they are in trouble.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use test_harness::{SystemOptions, TestSystem, nats_command_line, run};
use tokio::process::Command;

use crate::scope;

const DOCUMENTS: [&str; 2] = ["README.md", "docs/runbook.md"];

/// The commands in the `sh` blocks of a document, with the lines that they are on.
fn commands(document: &str) -> Vec<(usize, String)> {
    let mut commands: Vec<(usize, String)> = Vec::new();
    let (mut inside, mut continued) = (false, false);
    for (index, line) in document.lines().enumerate() {
        if let Some(language) = line.trim().strip_prefix("```") {
            inside = !inside && language == "sh";
        } else if inside && !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            let (text, more) = line.strip_suffix('\\').map_or((line, false), |text| (text, true));
            match commands.last_mut() {
                Some((_, command)) if continued => command.push_str(text),
                _ => commands.push((index + 1, text.to_owned())),
            }
            continued = more;
        }
    }
    commands
}

#[test]
fn commands_are_found_in_sh_blocks_only() {
    let document =
        "```sh\none \\\n two\n\n# not\nthree\n```\n```text\nfour\n```\n```\nfive\n```\n```sh\nsix\n```\n";
    let found: Vec<String> = commands(document).into_iter().map(|(_, command)| command).collect();
    assert_eq!(found, ["one  two", "three", "six"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_readme_and_the_runbook_works() {
    let nats = nats_command_line();
    let system = TestSystem::start(SystemOptions { hosts: 2, ..SystemOptions::default() }).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 91).await;
    let op_id = client.create(scope(&project), "project-backup", json!({ "tags": ["first"] })).await;
    let backup = client.result(scope(&project), &op_id).await["backup_id"].as_str().unwrap().to_owned();
    let bound =
        client.call(scope(&project), "project.get", json!({})).await["project"]["backup_bucket_id"].clone();
    let account =
        client.call("hub", "account.create", json!({ "name": "eve" })).await["account"]["id"].clone();
    let host = system.host(1).to_string();
    let other = client.create_project(&host).await;
    let values = [
        ("<project>", project.as_str()),
        ("<host>", &host),
        ("<other>", &other),
        ("<path>", "README.md"),
        ("<op>", &op_id),
        ("<backup>", &backup),
        ("<bucket>", bound.as_str().unwrap()),
        ("<account>", account.as_str().unwrap()),
    ];

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let environment = Environment::new(&system, nats.as_deref());
    let Some(database) = DatabaseService::start(&system, &environment.home) else { return };
    let mut failures = Vec::new();
    let mut tried = 0;
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).unwrap();
        for (line, command) in commands(&text) {
            let filled = values.iter().fold(command.clone(), |text, (name, value)| text.replace(name, value));
            if filled.contains("nats ") && nats.is_none() {
                continue;
            }
            tried += 1;
            let mut shell = environment.shell(&filled);
            shell.env("LONGHAUL_DATABASE_BACKUP_URL", &database.url).env("BACKUP_ADMIN_TOKEN", TOKEN);
            let finished = run(shell).await;
            let refused = finished.output.contains("Nats-Service-Error")
                || finished.errors.contains("Nats-Service-Error");
            if !finished.status.success() || refused {
                failures
                    .push(format!("{document}:{line}: {command}\n{}\n{}", finished.output, finished.errors));
            }
        }
    }
    assert!(failures.is_empty(), "{} of {tried} commands fail:\n\n{}", failures.len(), failures.join("\n\n"));
    assert!(tried > 10, "only {tried} commands were found");
}

/// What a person's shell has: our programs and `nats` on PATH, a context called `longhaul-ops`, the data directory.
struct Environment {
    path: std::ffi::OsString,
    home: PathBuf,
    data: PathBuf,
}

impl Environment {
    fn new(system: &TestSystem, nats: Option<&Path>) -> Self {
        let home = system.scratch("home");
        let contexts = home.join(".config/nats/context");
        fs::create_dir_all(&contexts).unwrap();
        fs::copy(system.ready().nats_context_dir.join("ops.json"), contexts.join("longhaul-ops.json"))
            .unwrap();
        let ours = system.program("longhaul").unwrap().parent().unwrap().to_owned();
        let mut directories = vec![ours];
        directories.extend(nats.and_then(Path::parent).map(Path::to_owned));
        directories.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
        Self { path: std::env::join_paths(directories).unwrap(), home, data: system.data_directory() }
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("bash");
        shell.args(["-euo", "pipefail", "-c", command]).current_dir(&self.home);
        // nats asks the system for the home directory, so HOME alone does not do.
        shell
            .env("PATH", &self.path)
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join(".config"));
        shell.env("LONGHAUL_DATA", &self.data).env("DATA", &self.data);
        shell
    }
}

const TOKEN: &str = "a-token-of-the-documents";

/// A database-backup beside a database whose application does not run.
struct DatabaseService {
    process: std::process::Child,
    url: String,
}

impl DatabaseService {
    fn start(system: &TestSystem, home: &Path) -> Option<Self> {
        let Some(duckdb) = std::env::var_os("LONGHAUL_DUCKDB") else {
            test_harness::skip("there is no DuckDB command line (LONGHAUL_DUCKDB)");
            return None;
        };
        let (database, objects) = (home.join("hesocial.duckdb"), home.join("objects"));
        fs::create_dir_all(objects.join("hesocial-duckdb-dev")).unwrap();
        let made = std::process::Command::new(&duckdb)
            .arg(&database)
            .arg("CREATE TABLE events AS SELECT * FROM range(100)")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let (config, address) = (home.join("hesocial.toml"), home.join("database-backup-address"));
        let settings = format!(
            "[database]\npath = {database:?}\nduckdb_program = {duckdb:?}\n\
             [storage]\ndirectory = {objects:?}\nbucket = \"hesocial-duckdb-dev\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\naddress_file = {address:?}\ntoken = {TOKEN:?}\n"
        );
        fs::write(&config, settings).unwrap();
        let process = std::process::Command::new(system.program("database-backup").unwrap())
            .arg("--config")
            .arg(&config)
            .arg("serve")
            .stderr(fs::File::create(home.join("database-backup.log")).unwrap())
            .spawn()
            .unwrap();
        let mut service = Self { process, url: String::new() };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while service.url.is_empty() {
            assert!(std::time::Instant::now() < deadline, "database-backup does not answer");
            if let Ok(address) = fs::read_to_string(&address) {
                service.url = format!("http://{}", address.trim());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Some(service)
    }
}

impl Drop for DatabaseService {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
