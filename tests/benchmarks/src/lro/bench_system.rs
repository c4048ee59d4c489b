//! The system that is measured, and everybody who talks to it: an operator, workers, the writer of the stream, and a
//! person with `psql`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bus_client::{Bus, ConnectSettings, Credentials, RequestError};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use test_harness::{HostIdentity, Server, Signal, SystemOptions, TestSystem};
use tokio::process::Command;

use crate::processor_time::ProcessorTime;

pub(super) const CREATE: &str = "api.v1.hub.lro.create";
const TIMEOUT: Duration = Duration::from_secs(30);

/// A running system.
pub(super) struct BenchSystem {
    pub(super) system: TestSystem,
    /// An operator's connection.
    pub(super) operator: Bus,
    identities: Identities,
    superuser_password: String,
}

/// Some of the identities of an installation.
#[derive(Deserialize)]
struct Identities {
    hub: HostIdentity,
    hub_writer: HostIdentity,
    scheduler: HostIdentity,
}

/// Who connects.
#[derive(Debug, Clone, Copy)]
pub(super) enum Who {
    /// Answers requests.
    Hub,
    /// Writes the stream.
    Writer,
    /// Works on operations of the hub.
    Worker,
}

impl BenchSystem {
    /// Starts a system with one host whose scheduler runs so many `test-sleep` operations at a time; with none, a worker
    /// of the benchmark is the only one.
    pub(super) async fn start(test_sleeps: u32) -> anyhow::Result<Self> {
        let slots = ("LONGHAUL_SCHEDULER__WORK__TEST_SLEEPS".to_owned(), test_sleeps.to_string());
        let options =
            SystemOptions { test_kinds: true, environment: vec![slots], ..SystemOptions::default() };
        let system = TestSystem::start(options).await?;
        let secret = |name: &str| -> anyhow::Result<Vec<u8>> {
            let path = system.data_directory().join("secrets").join(name);
            fs::read(&path).with_context(|| format!("reading {}", path.display()))
        };
        let identities = serde_json::from_slice(&secret("nats.json")?)?;
        let postgres: BTreeMap<String, Value> = serde_json::from_slice(&secret("postgres.json")?)?;
        let superuser_password = postgres["superuser_password"].as_str().unwrap_or_default().to_owned();
        let operator = system.operator().await.bus().clone();
        Ok(Self { system, operator, identities, superuser_password })
    }

    /// A connection of its own.
    pub(super) async fn connect(&self, who: Who) -> anyhow::Result<Bus> {
        let identity = match who {
            Who::Hub => &self.identities.hub,
            Who::Writer => &self.identities.hub_writer,
            Who::Worker => &self.identities.scheduler,
        };
        let settings = ConnectSettings {
            url: self.system.ready().nats_url,
            credentials: Credentials::UserPassword {
                user: identity.user.clone(),
                password: identity.password.clone().into(),
            },
            inbox_prefix: Some(identity.inbox_prefix.clone()),
            name: "longhaul-bench".to_owned(),
        };
        Ok(Bus::connect(settings).await?)
    }

    /// Another connection of an operator.
    pub(super) async fn another_operator(&self) -> Bus {
        self.system.operator().await.bus().clone()
    }

    /// The URL of the database of the system.
    pub(super) fn database_url(&self) -> String {
        self.system.ready().database_url
    }

    /// Runs SQL on a database; what it selects, a line a row.
    pub(super) async fn sql_at(&self, url: &str, statements: &str) -> anyhow::Result<String> {
        let mut command = Command::new(postgres_program("psql")?);
        command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", statements, url]);
        run(command, "psql").await
    }

    /// Runs SQL on the database of the system.
    pub(super) async fn sql(&self, statements: &str) -> anyhow::Result<String> {
        self.sql_at(&self.database_url(), statements).await
    }

    /// One number out of the database of the system.
    pub(super) async fn number(&self, query: &str) -> anyhow::Result<f64> {
        self.sql(query).await?.parse().with_context(|| format!("{query} gives a number"))
    }

    /// One number, asked for by the superuser.
    pub(super) async fn superuser_number(&self, query: &str) -> anyhow::Result<f64> {
        self.as_superuser(query).await?.parse().with_context(|| format!("{query} gives a number"))
    }

    /// The sum of a metric of a service over its labels.
    pub(super) async fn metric(&self, service: &str, name: &str) -> anyhow::Result<f64> {
        let measured = self.system.metrics(service).await?.find(name, &[]);
        measured.with_context(|| format!("{service} has no metric {name}"))
    }

    /// Runs one statement as the superuser, who may change what the server does.
    pub(super) async fn as_superuser(&self, statement: &str) -> anyhow::Result<String> {
        let url = self.database_url();
        let address = url.rsplit_once('@').context("a URL of a database has an address")?.1;
        let address = address.split_once('/').context("and a database")?.0;
        let url = format!("postgres://postgres:{}@{address}/longhaul", self.superuser_password);
        self.sql_at(&url, statement).await
    }

    /// Adds so many queued operations of `test-sleep` that are due in so many seconds, as if they had been created.
    pub(super) async fn add_operations(
        &self,
        count: u32,
        due_in_s: i32,
        priority: i32,
    ) -> anyhow::Result<()> {
        self.sql(&format!(
            "INSERT INTO long_running_operations (id, kind, scope_type, created_by, routing, input, input_hash, max_attempts,
                priority, not_before, ready, expires_at)
             SELECT gen_random_uuid(), 'test-sleep', 'hub', 'benchmark', 'hub', '{EMPTY_INPUT}', '', 3, {priority},
                now() + make_interval(secs => {due_in_s}) + make_interval(secs => number * 0.001), {due_in_s} < 0,
                now() + interval '7 days'
             FROM generate_series(1, {count}) AS number"
        ))
        .await?;
        self.settle_database().await
    }

    /// Deletes every operation, and adds some that have ended long ago: a planner that has only ever seen an empty table
    /// does not choose as it does in a system that has been in use.
    pub(super) async fn start_afresh(&self) -> anyhow::Result<()> {
        self.sql("TRUNCATE outbox, long_running_operations").await?;
        self.sql(&format!(
            "INSERT INTO long_running_operations (id, kind, scope_type, created_by, routing, input, input_hash, max_attempts,
                status, attempt, created_at, started_at, finished_at, expires_at)
             SELECT gen_random_uuid(), 'test-sleep', 'hub', 'benchmark', 'hub', '{EMPTY_INPUT}', '', 3,
                'succeeded', 1, now(), now(), now(), now() + interval '7 days'
             FROM generate_series(1, {ENDED_BEFORE})"
        ))
        .await?;
        self.settle_database().await
    }

    async fn settle_database(&self) -> anyhow::Result<()> {
        self.sql("VACUUM ANALYZE long_running_operations").await?;
        self.as_superuser("CHECKPOINT").await.map(drop)
    }

    /// Has the server count statements from now on, where it can (the extension `pg_stat_statements`), for which it is
    /// started again.
    pub(super) async fn count_statements(&self) -> anyhow::Result<()> {
        let known = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'";
        if self.superuser_number(known).await? == 0.0 {
            return Ok(());
        }
        self.as_superuser("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'").await?;
        let old = self.system.signal(Server::Postgres, Signal::INT);
        self.system.gone(Server::Postgres, old).await;
        self.system.restarted(Server::Postgres, old).await;
        for _ in 0..600 {
            if self.as_superuser("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("Postgres does not count statements")
    }

    /// Whether the server counts statements.
    pub(super) async fn counts_statements(&self) -> anyhow::Result<bool> {
        let installed = "SELECT count(*) FROM pg_extension WHERE extname = 'pg_stat_statements'";
        Ok(self.superuser_number(installed).await? > 0.0)
    }

    /// Forgets the statements counted so far.
    pub(super) async fn count_statements_anew(&self) -> anyhow::Result<()> {
        if self.counts_statements().await? {
            self.as_superuser("SELECT pg_stat_statements_reset()").await?;
        }
        Ok(())
    }

    /// Tells whoever looks at the benchmark which statements of services took most time.
    pub(super) async fn show_statements(&self) -> anyhow::Result<()> {
        if self.counts_statements().await? {
            let list = "SELECT calls || ' calls, ' || round(mean_exec_time::numeric, 3) || ' ms and '
                    || round(rows::numeric / calls, 1) || ' rows each: ' || left(regexp_replace(query, '\\s+', ' ', 'g'), 100)
                FROM pg_stat_statements WHERE userid = (SELECT oid FROM pg_roles WHERE rolname = 'longhaul')
                ORDER BY total_exec_time DESC LIMIT 20";
            eprintln!("{}", self.as_superuser(list).await?);
        }
        Ok(())
    }

    /// The processor time that its processes have used so far.
    pub(super) fn processor_time(&self) -> ProcessorTime {
        ProcessorTime::of_children(self.system.ready().pid)
    }

    /// Waits until the stream was told of everything.
    pub(super) async fn outbox_is_empty(&self) -> anyhow::Result<()> {
        for _ in 0..1200 {
            if self.number("SELECT count(*) FROM outbox").await? == 0.0 {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("the outbox does not empty")
    }
}

const ENDED_BEFORE: u32 = 5000;
const EMPTY_INPUT: &str = r#"{"seconds":0.0,"steps":1,"fail_at_step":null,"children":0}"#;

/// The request that creates an operation of `test-sleep` that sleeps so long.
pub(super) fn create_request(seconds: f64) -> Bytes {
    let input = json!({ "seconds": seconds, "steps": 1 });
    Bytes::from(json!({ "kind": "test-sleep", "input": input }).to_string())
}

/// Creates an operation; its id.
pub(super) async fn create(bus: &Bus, request: &Bytes) -> anyhow::Result<String> {
    let reply = ask(bus, CREATE, request).await?;
    let reply: Value = serde_json::from_slice(&reply)?;
    Ok(reply["op"]["op_id"].as_str().with_context(|| format!("created: {reply}"))?.to_owned())
}

/// Asks, and leaves reading the answer to later: what is measured is the answering.
pub(super) async fn ask(bus: &Bus, subject: &str, request: &Bytes) -> anyhow::Result<Bytes> {
    let reply = bus.request_raw(subject.to_owned(), None, request.clone(), TIMEOUT).await?;
    let refused = reply.headers.get("Nats-Service-Error");
    ensure!(refused.is_none(), "{subject}: {}", refused.unwrap_or_default());
    Ok(reply.payload)
}

/// Waits for an answer that may take several tries.
pub(super) async fn typed<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
    bus: &Bus,
    subject: &str,
    request: &Q,
) -> Result<A, RequestError> {
    bus.request(subject.to_owned(), request, bus_messages::Encoding::MessagePack, TIMEOUT).await
}

/// A program that comes with Postgres.
pub(super) fn postgres_program(name: &str) -> anyhow::Result<PathBuf> {
    let directory = std::env::var_os("LONGHAUL_POSTGRES_BIN").context("LONGHAUL_POSTGRES_BIN is not set")?;
    let program = PathBuf::from(directory).join(name);
    ensure!(
        program.is_file(),
        "there is no {}: this benchmark needs the client programs of Postgres",
        program.display()
    );
    Ok(program)
}

/// Runs a program to its end; what it wrote.
pub(super) async fn run(mut command: Command, name: &str) -> anyhow::Result<String> {
    let output = command.kill_on_drop(true).output().await.with_context(|| format!("running {name}"))?;
    ensure!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
