//! A real S3 server, a real DuckDB, and a database to back up.
#![allow(dead_code, reason = "each test binary uses a part of it")]

mod proxy;
#[path = "../../../../shared/object-storage/tests/support/seaweedfs.rs"]
mod seaweedfs;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use database_backup::{Clock, DatabaseBackup, OperationHandle, Outcome, Settings};
use object_storage::{BucketControl, ProviderSettings, S3Settings};
use service_runtime::{ServiceArguments, load_settings_with_variables};
use time::OffsetDateTime;

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use proxy::{Mood, Proxy};

const ACCESS_KEY_ID: &str = "longhaul-test";
const SECRET_ACCESS_KEY: &str = "longhaul-test-secret";
const START_TIME_LIMIT: Duration = Duration::from_secs(60);

pub(crate) const TOKEN: &str = "a-token-of-the-tests";

/// The pinned command line of DuckDB; none, said aloud, where it is missing and not required.
pub(crate) fn duckdb_program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("LONGHAUL_DUCKDB") {
        return Some(program.into());
    }
    let missing = "LONGHAUL_DUCKDB is not set";
    assert!(
        std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_none_or(|required| required != "1"),
        "{missing}, and LONGHAUL_REQUIRE_TOOLS=1 requires it"
    );
    let _ = writeln!(std::io::stderr(), "SKIPPED: {missing}: the tests with a real DuckDB do not run");
    None
}

/// A directory with a database, a bucket on a real S3 server, and settings.
pub(crate) struct Fixture {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) duckdb: PathBuf,
    pub(crate) endpoint: String,
    pub(crate) bucket: String,
    pub(crate) extra: String,
    pub(crate) now: Arc<AtomicI64>,
}

impl Fixture {
    /// None, said aloud, where the servers are missing.
    pub(crate) async fn new() -> Option<Self> {
        let (duckdb, endpoint) = (duckdb_program()?, seaweedfs::endpoint()?);
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let bucket = format!("db-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let fixture = Self {
            directory: tempfile::tempdir().unwrap(),
            duckdb,
            endpoint: endpoint.to_owned(),
            bucket,
            extra: String::new(),
            now: Arc::new(AtomicI64::new(0)),
        };
        fixture.buckets().create_bucket(&fixture.bucket, None).await.unwrap();
        Some(fixture)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path("hesocial.duckdb")
    }

    /// The server itself, past the service.
    pub(crate) fn buckets(&self) -> Arc<dyn BucketControl> {
        let settings = ProviderSettings::S3(S3Settings {
            endpoint: Some(self.endpoint.clone()),
            region: "us-east-1".to_owned(),
            access_key_id: ACCESS_KEY_ID.to_owned(),
            secret_access_key: SECRET_ACCESS_KEY.into(),
            session_token: None,
            path_style: true,
        });
        settings.connect().unwrap()
    }

    pub(crate) fn objects(&self) -> Arc<dyn object_storage::ObjectStore> {
        self.buckets().open_bucket(&self.bucket)
    }

    /// A settings file; `database` is its name in the directory, `tables` more of TOML.
    pub(crate) fn config(&self, database: &str, endpoint: &str, tables: &[(&str, &str)]) -> PathBuf {
        let mut sections: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
        let quoted = |path: &Path| format!("{:?}", path.display().to_string());
        let mut set = |section, line: String| sections.entry(section).or_default().push(line);
        set("database", format!("path = {}", quoted(&self.path(database))));
        set("database", format!("duckdb_program = {}", quoted(&self.duckdb)));
        set(
            "storage",
            format!("endpoint = {endpoint:?}\nregion = \"us-east-1\"\nbucket = {:?}", self.bucket),
        );
        set(
            "storage",
            format!("access_key_id = {ACCESS_KEY_ID:?}\nsecret_access_key = {SECRET_ACCESS_KEY:?}"),
        );
        set("backup", "prefix = \"hesocial\"".to_owned());
        set("work", format!("directory = {}", quoted(&self.path(&format!("work-{database}")))));
        set("admin", format!("listen = \"127.0.0.1:0\"\ntoken = {TOKEN:?}"));
        set("admin", format!("address_file = {}", quoted(&self.path("address"))));
        for (section, line) in tables {
            // What is said again replaces what was said.
            let key = line.split('=').next().unwrap().trim();
            let lines = sections.entry(*section).or_default();
            let all = lines.join("\n");
            *lines = all
                .lines()
                .filter(|there| there.split('=').next().unwrap().trim() != key)
                .map(str::to_owned)
                .collect();
            lines.push((*line).to_owned());
        }
        let text: String =
            sections.iter().map(|(name, lines)| format!("[{name}]\n{}\n", lines.join("\n"))).collect();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let file = self.path(&format!("settings-{}.toml", NUMBER.fetch_add(1, Ordering::Relaxed)));
        std::fs::write(&file, text).unwrap();
        file
    }

    pub(crate) fn settings(&self, database: &str, endpoint: &str, tables: &[(&str, &str)]) -> Settings {
        let arguments =
            ServiceArguments { config: Some(self.config(database, endpoint, tables)), check_config: false };
        load_settings_with_variables("database-backup", database_backup::DEFAULT_SETTINGS, &arguments, &[])
            .unwrap()
    }

    /// The service, in this process, by the clock of the test if that is set.
    pub(crate) fn service_of(&self, database: &str, tables: &[(&str, &str)]) -> DatabaseBackup {
        let now = Arc::clone(&self.now);
        let clock: Clock = Arc::new(move || match now.load(Ordering::SeqCst) {
            0 => OffsetDateTime::now_utc(),
            seconds => OffsetDateTime::from_unix_timestamp(seconds).unwrap(),
        });
        DatabaseBackup::new(self.settings(database, &self.endpoint, tables), clock).unwrap()
    }

    pub(crate) fn service(&self) -> DatabaseBackup {
        self.service_of("hesocial.duckdb", &[])
    }

    /// Runs SQL with DuckDB's command line, and gives its answer as CSV without a heading.
    pub(crate) fn duckdb(&self, file: &Path, sql: &str) -> String {
        let output = Command::new(&self.duckdb)
            .args(["-no-init", "-batch", "-bail", "-csv", "-noheader"])
            .arg(file)
            .arg(sql)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A small database.
    pub(crate) fn make_database(&self) {
        self.duckdb(
            &self.database(),
            "CREATE TABLE events(id INTEGER, name VARCHAR); INSERT INTO events SELECT i, 'event ' || i FROM range(1000) r(i);
             CREATE SCHEMA club; CREATE TABLE club.\"G\u{e4}ste \"\"1\"\"\"(tags VARCHAR[], detail STRUCT(x INTEGER)); INSERT INTO club.\"G\u{e4}ste \"\"1\"\"\" VALUES (['a'], {'x': 1});",
        );
    }

    /// The names of all objects.
    pub(crate) async fn keys(&self) -> Vec<String> {
        let listed = self.objects().list("").await.unwrap();
        listed.into_iter().map(|object| object.key.as_str().to_owned()).collect()
    }
}

/// Waits for an operation that must succeed.
pub(crate) async fn succeeded(mut operation: OperationHandle) -> Outcome {
    let ended = operation.ended().await;
    assert!(ended.error.is_none(), "{ended:?}");
    ended.outcome.unwrap()
}

/// Waits for an operation that must fail.
pub(crate) async fn failed(mut operation: OperationHandle) -> database_backup::FailureAnswer {
    let ended = operation.ended().await;
    ended.error.unwrap_or_else(|| panic!("{:?} succeeded", ended.outcome))
}

pub(crate) fn backup(outcome: Outcome) -> database_backup::BackupTaken {
    match outcome {
        Outcome::Backup(taken) => taken,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn restored(outcome: Outcome) -> database_backup::Restored {
    match outcome {
        Outcome::Restore(restored) => restored,
        other => panic!("{other:?}"),
    }
}

/// Looks until there is something, or gives up after a long time.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The status and the body of a request, with these extra lines in its head.
pub(crate) fn http(address: &str, method: &str, path: &str, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A request with the token; the body as JSON.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let (status, answer) = http(address, method, path, &format!("Authorization: Bearer {TOKEN}\r\n"), body);
    (status, serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}")))
}
