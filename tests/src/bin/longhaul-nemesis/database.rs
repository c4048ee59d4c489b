//! The database as a witness: a trigger writes down every change of an operation, in the transaction that makes it. So
//! nothing happens between two looks, and what was rolled back was never there.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;

use crate::history::{Backup, Change};

const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_TO_READ: Duration = Duration::from_secs(600);

/// Heartbeats change only what is not compared, so that the trigger does not run for them. What is written of a terminal
/// row is what must not change; its key may be taken from it.
const WITNESS: &str = r"
CREATE TABLE nemesis_changes (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    what text NOT NULL,
    old_lease_until timestamptz,
    row jsonb NOT NULL
);
CREATE FUNCTION nemesis_witness() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO nemesis_changes (what, old_lease_until, row) VALUES (TG_OP, OLD.lease_until, to_jsonb(OLD));
        RETURN OLD;
    END IF;
    IF TG_OP = 'INSERT' THEN
        INSERT INTO nemesis_changes (what, row) VALUES (TG_OP, to_jsonb(NEW));
    ELSE
        INSERT INTO nemesis_changes (what, old_lease_until, row) VALUES (TG_OP, OLD.lease_until, to_jsonb(NEW));
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER nemesis_begins_and_ends AFTER INSERT OR DELETE ON long_running_operations
    FOR EACH ROW EXECUTE FUNCTION nemesis_witness();
CREATE TRIGGER nemesis_changes AFTER UPDATE ON long_running_operations
    FOR EACH ROW WHEN (
        (OLD.status, OLD.attempt, OLD.lease_id, OLD.failures, OLD.lease_losses, OLD.checkpoint, OLD.result, OLD.error,
            OLD.waiting_for_children, OLD.cancel_requested_at, OLD.finished_at, OLD.dedupe_key, OLD.exclusive_key,
            OLD.expires_at)
        IS DISTINCT FROM
        (NEW.status, NEW.attempt, NEW.lease_id, NEW.failures, NEW.lease_losses, NEW.checkpoint, NEW.result, NEW.error,
            NEW.waiting_for_children, NEW.cancel_requested_at, NEW.finished_at, NEW.dedupe_key, NEW.exclusive_key,
            NEW.expires_at))
    EXECUTE FUNCTION nemesis_witness();
";

const CHANGES: &str = r"
SELECT json_build_object(
    'at', at, 'what', what, 'old_lease_until', old_lease_until,
    'op_id', row->'id', 'kind', row->'kind', 'scope', concat(row->>'scope_type', '-' || (row->>'scope_id')),
    'input', row->'input', 'status', row->'status', 'attempt', row->'attempt', 'max_attempts', row->'max_attempts',
    'failures', row->'failures', 'lease_losses', row->'lease_losses', 'lease_id', row->'lease_id',
    'lease_until', row->'lease_until', 'owner', row->'owner', 'claimed_by', row->'claimed_by', 'checkpoint', row->'checkpoint',
    'waiting_for_children', row->'waiting_for_children',
    'cancel_requested', jsonb_typeof(row->'cancel_requested_at') = 'string',
    'dedupe_key', row->'dedupe_key', 'exclusive_key', row->'exclusive_key', 'parent_id', row->'parent_id',
    'retry_of', row->'retry_of', 'result', row->'result', 'error', row->'error', 'finished_at', row->'finished_at',
    'not_before', row->'not_before', 'expires_at', row->'expires_at', 'rev', row->'rev')
FROM nemesis_changes ORDER BY seq
";

const BACKUPS: &str = r"
SELECT json_build_object(
    'project', project_id, 'backup_id', backup_id, 'bucket', buckets.name, 'op_id', op_id,
    'created_at', backups.created_at, 'tree', tree, 'is_being_deleted', deleting_at IS NOT NULL, 'bad', bad_reason)
FROM backups JOIN buckets ON buckets.id = bucket_id ORDER BY backups.created_at, backup_id
";

/// Asks Postgres through its own command line, over the address that services use.
#[derive(Clone)]
pub(crate) struct Database {
    psql: PathBuf,
    /// Variables that psql reads.
    address: Vec<(&'static str, String)>,
}

/// What is still to come to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Open {
    /// Operations that are not terminal, without those whose time is far away.
    pub(crate) active: u64,
    /// Of them, those of projects.
    pub(crate) of_projects: u64,
    /// Of them, those that somebody holds.
    pub(crate) running: u64,
    /// What has ended and is to be deleted within minutes.
    pub(crate) leaving: u64,
    /// Outbox entries.
    pub(crate) outbox: u64,
    /// Changes so far: a sign of life.
    pub(crate) changes: u64,
}

impl Database {
    /// Has every change written down from now on.
    pub(crate) async fn observe(url: &str) -> anyhow::Result<Self> {
        let psql = server_processes::postgres_bin_directory()?.join("psql");
        let address = address_of(url).with_context(|| format!("{url} is no address of a database"))?;
        let database = Self { psql, address };
        database.ask(WITNESS).await.context("installing the witness in the database")?;
        Ok(database)
    }

    /// How much is not over yet.
    pub(crate) async fn open(&self) -> anyhow::Result<Open> {
        // A parent leaves after its children.
        let statement = "SELECT count(*), count(*) FILTER (WHERE scope_type = 'project'),
            count(*) FILTER (WHERE status = 'running'),
            (SELECT count(*) FROM long_running_operations AS ended
                WHERE status NOT IN ('queued', 'running') AND expires_at < now() + interval '5 minutes'
                AND NOT EXISTS (SELECT 1 FROM long_running_operations AS child WHERE child.parent_id = ended.id)),
            (SELECT count(*) FROM outbox), (SELECT coalesce(max(seq), 0) FROM nemesis_changes)
            FROM long_running_operations
            WHERE status IN ('queued', 'running') AND not_before < now() + interval '1 day'";
        let text = self.ask(statement).await?;
        let numbers: Vec<u64> = text.trim().split('|').filter_map(|number| number.parse().ok()).collect();
        let &[active, of_projects, running, leaving, outbox, changes] = numbers.as_slice() else {
            bail!("psql says {text:?}")
        };
        Ok(Open { active, of_projects, running, leaving, outbox, changes })
    }

    /// Every change, in order.
    pub(crate) async fn changes(&self) -> anyhow::Result<Vec<Change>> {
        tokio::time::timeout(PATIENCE_TO_READ, self.lines(CHANGES)).await.context("reading the changes")?
    }

    /// Every backup that the catalog has.
    pub(crate) async fn backups(&self) -> anyhow::Result<Vec<Backup>> {
        self.lines(BACKUPS).await
    }

    /// The operations that the outbox still has entries of.
    pub(crate) async fn left_in_outbox(&self) -> anyhow::Result<Vec<domain_model::OperationId>> {
        self.lines("SELECT to_json(op_id) FROM outbox GROUP BY op_id").await
    }

    async fn ask(&self, statement: &str) -> anyhow::Result<String> {
        let mut command = self.command(statement);
        let output =
            tokio::time::timeout(PATIENCE, command.output()).await.context("psql does not end")??;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// One JSON value a line.
    async fn lines<T: DeserializeOwned>(&self, statement: &str) -> anyhow::Result<Vec<T>> {
        let mut child = self.command(statement).spawn().context("starting psql")?;
        let mut lines = BufReader::new(child.stdout.take().context("psql has an output")?).lines();
        let mut values = Vec::new();
        while let Some(line) = lines.next_line().await? {
            values.push(serde_json::from_str(&line).with_context(|| format!("reading {line}"))?);
        }
        let status = child.wait().await?;
        if !status.success() {
            let mut errors = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut errors).await?;
            }
            bail!("psql: {}", errors.trim());
        }
        Ok(values)
    }

    fn command(&self, statement: &str) -> Command {
        let mut command = Command::new(&self.psql);
        command
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .arg("--single-transaction")
            .arg(format!("--command={statement}"))
            // Arguments are visible to everybody on the machine, the environment is not.
            .envs(self.address.clone())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// `postgres://user:password@host:port/database`, as `longhaul up` writes it.
fn address_of(url: &str) -> Option<Vec<(&'static str, String)>> {
    let (login, place) = url.strip_prefix("postgres://")?.split_once('@')?;
    let ((user, password), (server, database)) = (login.split_once(':')?, place.split_once('/')?);
    let (host, port) = server.split_once(':')?;
    let variables = [
        ("PGUSER", user),
        ("PGPASSWORD", password),
        ("PGHOST", host),
        ("PGPORT", port),
        ("PGDATABASE", database),
        ("PGCONNECT_TIMEOUT", "5"),
    ];
    Some(variables.map(|(name, value)| (name, value.to_owned())).to_vec())
}
