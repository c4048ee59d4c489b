use bus_messages::{Host, HostStatus, ProgressSummary, RunningOperation};
use domain_model::{HostId, Routing, Timestamp};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::operations::scope_of;
use crate::{Database, DatabaseError};

struct Row {
    id: Uuid,
    name: String,
    region: String,
    status: String,
    trusted: bool,
    last_seen: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
}

impl From<Row> for Host {
    fn from(row: Row) -> Self {
        Self {
            id: row.id.into(),
            name: row.name,
            region: row.region,
            status: row.status,
            trusted: row.trusted,
            last_seen: row.last_seen.map(Timestamp::from),
            created_at: row.created_at.into(),
        }
    }
}

impl Database {
    /// Makes a host known. One that is known already stays as it is.
    pub async fn create_host(
        &self,
        id: HostId,
        name: &str,
        region: &str,
    ) -> Result<Option<Host>, DatabaseError> {
        sqlx::query!(
            "INSERT INTO hosts (id, name, region) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
            id.as_uuid(),
            name,
            region
        )
        .execute(&self.pool)
        .await
        .during("create a host")?;
        self.host(id).await
    }

    /// A host.
    pub async fn host(&self, id: HostId) -> Result<Option<Host>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "SELECT id, name, region, status, trusted, last_seen, created_at FROM hosts WHERE id = $1",
            id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read a host")?;
        Ok(row.map(Host::from))
    }

    /// All hosts, oldest first.
    pub async fn list_hosts(&self) -> Result<Vec<Host>, DatabaseError> {
        let rows = sqlx::query_as!(
            Row,
            "SELECT id, name, region, status, trusted, last_seen, created_at FROM hosts ORDER BY created_at, id"
        )
        .fetch_all(&self.pool)
        .await
        .during("list hosts")?;
        Ok(rows.into_iter().map(Host::from).collect())
    }

    /// A host and what it is doing.
    pub async fn host_status(&self, id: HostId) -> Result<Option<HostStatus>, DatabaseError> {
        const DURING: &str = "read the status of a host";
        let Some(host) = self.host(id).await? else { return Ok(None) };
        let routing = Routing::Host(id).to_string();
        let row = sqlx::query!(
            r#"SELECT memory_pressure, io_pressure, load_seen, cache_bytes, cache_limit_bytes,
                (SELECT count(*) FROM projects AS project WHERE project.host_id = host.id) AS "projects!",
                (SELECT count(*) FROM projects AS project WHERE project.host_id = host.id AND is_unsaved(project))
                    AS "unsaved!",
                (SELECT count(*) FROM long_running_operations WHERE routing = $2 AND ready)
                    + (SELECT count(*) FROM long_running_operations WHERE routing = $2 AND status = 'queued'
                        AND NOT ready AND NOT waiting_for_children) AS "queued!"
             FROM hosts AS host WHERE id = $1"#,
            id.as_uuid(),
            routing,
        )
        .fetch_one(&self.pool)
        .await
        .during(DURING)?;
        let running = sqlx::query!(
            "SELECT id, kind, scope_type, scope_id, started_at, progress_summary FROM long_running_operations
             WHERE routing = $1 AND status = 'running' ORDER BY started_at, id LIMIT 100",
            routing,
        )
        .fetch_all(&self.pool)
        .await
        .during(DURING)?;
        let running_ops = running.into_iter().map(|row| {
            let summary: Option<ProgressSummary> = row
                .progress_summary
                .map(serde_json::from_value)
                .transpose()
                .map_err(|error| DatabaseError::row("long_running_operations.progress_summary", error))?;
            Ok(RunningOperation {
                op_id: row.id.into(),
                kind: row
                    .kind
                    .parse()
                    .map_err(|error| DatabaseError::row("long_running_operations.kind", error))?,
                scope: scope_of(&row.scope_type, row.scope_id)?,
                started_at: row.started_at.map(Timestamp::from),
                progress: summary.as_ref().map_or(0.0, |summary| summary.progress),
                phase: summary.map(|summary| summary.phase),
            })
        });
        let bytes = |bytes: Option<i64>| bytes.and_then(|bytes| u64::try_from(bytes).ok());
        let count = |count: i64| u64::try_from(count).unwrap_or_default();
        Ok(Some(HostStatus {
            host,
            memory_pressure: row.memory_pressure,
            io_pressure: row.io_pressure,
            load_seen: row.load_seen.map(Timestamp::from),
            cache_bytes: bytes(row.cache_bytes),
            cache_limit_bytes: bytes(row.cache_limit_bytes),
            projects: count(row.projects),
            unsaved_projects: count(row.unsaved),
            queued_ops: count(row.queued),
            running_ops: running_ops.collect::<Result<_, DatabaseError>>()?,
        }))
    }

    /// How many hosts with projects have said nothing for too long; not those that are off.
    pub async fn silent_hosts(&self) -> Result<i64, DatabaseError> {
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM hosts AS host
             WHERE is_silent(host) AND host.status <> 'off'
                AND EXISTS (SELECT 1 FROM projects WHERE projects.host_id = host.id)"#
        )
        .fetch_one(&self.pool)
        .await
        .during("count the hosts that are silent")
    }

    /// Notes that a host was heard of; written at most every 30 s.
    pub async fn host_seen(&self, id: HostId) -> Result<(), DatabaseError> {
        sqlx::query!(
            "UPDATE hosts SET last_seen = now()
             WHERE id = $1 AND (last_seen IS NULL OR last_seen < now() - interval '30 seconds')",
            id.as_uuid()
        )
        .execute(&self.pool)
        .await
        .during("note that a host was heard of")
        .map(drop)
    }
}
