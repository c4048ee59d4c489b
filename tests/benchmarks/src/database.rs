//! `database`: a database file of a gigabyte, backed up and restored by database-backup, beside a plain `PutObject` and
//! `GetObject` of the same bytes on the same server in the same minutes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use object_storage::{ConnectOptions, ObjectKey, ProviderSettings, PutMode, S3Settings, TimeLimits};
use serde_json::{Value, json};
use server_processes::ObjectStoreServer;

use crate::Common;
use crate::figures::Figures;
use crate::peak_memory::PeakMemory;

const BUCKET: &str = "database-bench";
const ACCESS_KEY_ID: &str = "longhaul-bench";
const SECRET_ACCESS_KEY: &str = "longhaul-bench-secret";
const TOKEN: &str = "a-token-of-the-benchmark";
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Megabytes (10⁶ bytes) of the database file, at least
    #[arg(long, env = "BENCH_MB", default_value_t = 1074, value_parser = clap::value_parser!(u64).range(1..))]
    megabytes: u64,
}

pub(crate) async fn measure(options: Options) -> anyhow::Result<Figures> {
    let duckdb = PathBuf::from(
        std::env::var_os("LONGHAUL_DUCKDB").context("LONGHAUL_DUCKDB is not set: run through ./dev")?,
    );
    let scratch = tempfile::tempdir()?;
    let program = server_processes::object_store_program()?;
    let server =
        ObjectStoreServer::start(&program, &scratch.path().join("server"), ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            .await?;
    let settings = ProviderSettings::S3(S3Settings {
        endpoint: Some(server.endpoint()),
        region: "us-east-1".to_owned(),
        access_key_id: ACCESS_KEY_ID.to_owned(),
        secret_access_key: SECRET_ACCESS_KEY.into(),
        session_token: None,
        path_style: true,
    });
    let limits = TimeLimits { attempt: PATIENCE, ..TimeLimits::default() };
    let buckets =
        settings.connect_with(ConnectOptions { time_limits: limits, ..ConnectOptions::default() })?;
    buckets.create_bucket(BUCKET, None).await?;
    let objects = buckets.open_bucket(BUCKET);

    let database = scratch.path().join("bench.duckdb");
    make(&duckdb, &database, options.megabytes)?;
    let service = Service::start(scratch.path(), &duckdb, &database, &server.endpoint())?;
    let mut figures = Figures::default();
    let plain: ObjectKey = "plain".parse()?;
    for run in 0..options.common.runs {
        let body = bytes::Bytes::from(fs::read(&database)?);
        figures.add("database_megabytes", body.len() as f64 / 1e6, "MB");
        let measure_plain = async |figures: &mut Figures| -> anyhow::Result<()> {
            let began = Instant::now();
            objects.put(&plain, body.clone(), PutMode::Overwrite).await?;
            figures.add("database_plain_put", began.elapsed().as_secs_f64(), "s");
            let began = Instant::now();
            let got = objects.get(&plain).await?;
            figures.add("database_plain_get", began.elapsed().as_secs_f64(), "s");
            // A restored file is one that a power cut does not take.
            let mut file = fs::File::create(scratch.path().join("plain"))?;
            file.write_all(&got)?;
            file.sync_all()?;
            figures.add("database_plain_get_to_disk", began.elapsed().as_secs_f64(), "s");
            ensure!(got == body, "the plain object is another one");
            objects.delete(std::slice::from_ref(&plain)).await?;
            Ok(())
        };
        // Nobody is always the first.
        if run % 2 == 0 {
            measure_plain(&mut figures).await?;
        }
        let memory = PeakMemory::of_process(service.process.id());
        let began = Instant::now();
        let taken = service.operate("/api/admin/backup", &json!({}))?;
        figures.add("database_backup_end_to_end", began.elapsed().as_secs_f64(), "s");
        for (name, phases) in [
            ("database_backup_copy", &["copying"][..]),
            ("database_backup_check", &["checking", "hashing"]),
            ("database_backup_upload", &["uploading"]),
        ] {
            figures.add(name, seconds(&taken, phases), "s");
        }
        let id = taken["outcome"]["backup"]["backupId"].as_str().context("the backup has an id")?.to_owned();
        let began = Instant::now();
        let restored = service.operate("/api/admin/restore", &json!({ "backupId": id }))?;
        figures.add("database_restore_end_to_end", began.elapsed().as_secs_f64(), "s");
        figures.add("database_restore_download", seconds(&restored, &["downloading"]), "s");
        figures.add("database_restore_check", seconds(&restored, &["checking"]), "s");
        figures.add("database_peak_memory", memory.megabytes(), "MB");
        ensure!(fs::read(&database)? == body, "what was restored is another database");
        if run % 2 == 1 {
            measure_plain(&mut figures).await?;
        }
        figures.add_ratio("database_upload_to_plain_put", "database_backup_upload", "database_plain_put");
        figures.add_ratio(
            "database_download_to_plain_get",
            "database_restore_download",
            "database_plain_get",
        );
        figures.add_ratio(
            "database_download_to_plain_get_to_disk",
            "database_restore_download",
            "database_plain_get_to_disk",
        );
        objects.delete(&[format!("backups/{id}").parse()?]).await?;
    }
    drop(service);
    server.stop().await?;
    Ok(figures)
}

/// A file whose content does not compress.
fn make(duckdb: &Path, database: &Path, megabytes: u64) -> anyhow::Result<()> {
    // 48 random bytes a row come to 50 in the file.
    let rows = megabytes * 1_000_000 / 48;
    let sql = format!(
        "SET memory_limit='1GB'; CREATE TABLE t AS SELECT unhex(md5(i::VARCHAR) || md5((i + 0.5)::VARCHAR) || md5((-i)::VARCHAR)) AS digest FROM range({rows}) r(i); CHECKPOINT"
    );
    let made = Command::new(duckdb)
        .args(["-no-init", "-batch", "-bail"])
        .arg(database)
        .arg(sql)
        .stdin(Stdio::null())
        .output()?;
    ensure!(made.status.success(), "making the database: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
}

/// How long some phases of an operation took.
fn seconds(operation: &Value, names: &[&str]) -> f64 {
    let phases = operation["phases"].as_array().into_iter().flatten();
    let wanted = phases.filter(|phase| phase["phase"].as_str().is_some_and(|name| names.contains(&name)));
    wanted.filter_map(|phase| phase["seconds"].as_f64()).sum()
}

/// A database-backup beside a database that nobody has open.
struct Service {
    process: Child,
    address: String,
}

impl Service {
    fn start(scratch: &Path, duckdb: &Path, database: &Path, endpoint: &str) -> anyhow::Result<Self> {
        let (config, address_file) = (scratch.join("settings.toml"), scratch.join("address"));
        let settings = format!(
            "[database]\npath = {database:?}\nduckdb_program = {duckdb:?}\n\
             [storage]\nendpoint = {endpoint:?}\nregion = \"us-east-1\"\nbucket = {BUCKET:?}\n\
             access_key_id = {ACCESS_KEY_ID:?}\nsecret_access_key = {SECRET_ACCESS_KEY:?}\n\
             [admin]\nlisten = \"127.0.0.1:0\"\naddress_file = {address_file:?}\ntoken = {TOKEN:?}\nwait_s = 0\n"
        );
        fs::write(&config, settings)?;
        let program = std::env::current_exe()?.with_file_name("database-backup");
        let log = fs::File::create(scratch.join("log"))?;
        let process = Command::new(program).arg("--config").arg(&config).arg("serve").stderr(log).spawn()?;
        let mut service = Self { process, address: String::new() };
        let deadline = Instant::now() + PATIENCE;
        while service.address.is_empty() {
            ensure!(Instant::now() < deadline, "database-backup does not answer");
            if let Ok(address) = fs::read_to_string(&address_file) {
                service.address = address.trim().to_owned();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(service)
    }

    /// Begins an operation and waits for its end.
    fn operate(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let deadline = Instant::now() + PATIENCE;
        let accepted = loop {
            let answer = self.ask("POST", path, &body.to_string())?;
            // What it does by itself after its start.
            if answer["error"]["code"] != "busy" {
                break answer;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(accepted["op"].is_string(), "{accepted}");
        loop {
            let health = self.ask("GET", "/api/health", "")?;
            let operations = health["operations"].as_array().context("no operations")?;
            let operation = operations.iter().find(|operation| operation["op"] == accepted["op"]);
            match operation {
                Some(operation) if operation["state"] == "succeeded" => return Ok(operation.clone()),
                Some(operation) if operation["state"] == "running" => {}
                _ => bail!("{operation:?}"),
            }
            ensure!(Instant::now() < deadline, "it takes too long");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> anyhow::Result<Value> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nAuthorization: Bearer {TOKEN}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer has a body")?;
        Ok(serde_json::from_str(body)?)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
