use bus_messages::Host;
use domain_model::{HostId, Timestamp};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
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
