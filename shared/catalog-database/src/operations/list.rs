use bus_messages::Operation;
use domain_model::{OperationId, OperationKind, OperationStatus, Scope};
use serde_json::Value;
use uuid::Uuid;

use super::LeaseFence;
use super::row::OperationRow;
use crate::error::During;
use crate::{Database, DatabaseError};

/// Which operations to list.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only this kind.
    pub kind: Option<OperationKind>,
    /// Only this status.
    pub status: Option<OperationStatus>,
    /// Only the children of this one.
    pub parent_id: Option<OperationId>,
    /// Only those created before this one.
    pub before: Option<OperationId>,
    /// At most so many.
    pub limit: u32,
}

impl Database {
    /// An operation of this scope.
    pub async fn operation(&self, scope: Scope, id: OperationId) -> Result<Option<Operation>, DatabaseError> {
        let row = sqlx::query_as!(
            OperationRow,
            "SELECT * FROM long_running_operations WHERE id = $1",
            id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read an operation")?;
        match row {
            Some(row) if row.scope()? == scope => Ok(Some(row.try_into()?)),
            _ => Ok(None),
        }
    }

    /// Those of some operations that there are, whatever their scope, in no order.
    pub async fn operations_by_id(&self, ids: &[OperationId]) -> Result<Vec<Operation>, DatabaseError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let rows =
            sqlx::query_as!(OperationRow, "SELECT * FROM long_running_operations WHERE id = ANY ($1)", &ids)
                .fetch_all(&self.pool)
                .await
                .during("read operations")?;
        rows.into_iter().map(Operation::try_from).collect()
    }

    /// The operation that a worker holds, and `None` if it has lost it.
    pub async fn leased_operation(&self, fence: &LeaseFence) -> Result<Option<Operation>, DatabaseError> {
        Ok(self.leased_operations(std::slice::from_ref(fence), None).await?.pop())
    }

    /// Those of some operations that are still held; only where their leases last so many seconds from now, if that is given.
    pub async fn leased_operations(
        &self,
        fences: &[LeaseFence],
        at_least_s: Option<f64>,
    ) -> Result<Vec<Operation>, DatabaseError> {
        let ids: Vec<Uuid> = fences.iter().map(|fence| fence.op_id.as_uuid()).collect();
        let attempts: Vec<i32> =
            fences.iter().map(|fence| i32::try_from(fence.attempt).unwrap_or(-1)).collect();
        let leases: Vec<Uuid> = fences.iter().map(|fence| fence.lease_id.as_uuid()).collect();
        let rows = sqlx::query_as!(
            OperationRow,
            "SELECT operation.* FROM long_running_operations AS operation
                JOIN unnest($1::uuid[], $2::integer[], $3::uuid[]) AS held (id, attempt, lease_id)
                    USING (id, attempt, lease_id)
             WHERE operation.status = 'running'
                AND ($4::float8 IS NULL OR operation.lease_until >= now() + make_interval(secs => $4))",
            &ids,
            &attempts,
            &leases,
            at_least_s,
        )
        .fetch_all(&self.pool)
        .await
        .during("read leased operations")?;
        rows.into_iter().map(Operation::try_from).collect()
    }

    /// What an operation left for a later attempt.
    pub async fn checkpoint(&self, id: OperationId) -> Result<Option<Value>, DatabaseError> {
        let checkpoint =
            sqlx::query_scalar!("SELECT checkpoint FROM long_running_operations WHERE id = $1", id.as_uuid())
                .fetch_optional(&self.pool)
                .await
                .during("read a checkpoint")?;
        Ok(checkpoint.flatten())
    }

    /// Operations of a scope, newest first; of an account those of the projects that it may use, too.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn list_operations(
        &self,
        scope: Scope,
        filter: &ListFilter,
    ) -> Result<Vec<Operation>, DatabaseError> {
        let rows = sqlx::query_as!(
            OperationRow,
            "SELECT operation.*
             FROM (SELECT $1::text AS scope_type, $2::uuid AS scope_id
                UNION ALL SELECT 'project', id FROM projects WHERE $1 = 'account' AND account_id = $2
                -- Whose project it is may be a collaborator, too.
                UNION SELECT 'project', project_id FROM project_collaborators WHERE $1 = 'account' AND account_id = $2)
                AS place
             CROSS JOIN LATERAL (
                SELECT * FROM long_running_operations
                WHERE scope_type = place.scope_type
                    AND coalesce(scope_id, '00000000-0000-0000-0000-000000000000')
                        = coalesce(place.scope_id, '00000000-0000-0000-0000-000000000000'::uuid)
                    AND ($3::text IS NULL OR kind = $3)
                    AND ($4::text IS NULL OR status = $4)
                    AND ($5::uuid IS NULL OR parent_id = $5)
                    AND ($6::uuid IS NULL OR id < $6)
                ORDER BY id DESC LIMIT $7) AS operation
             ORDER BY operation.id DESC LIMIT $7",
            scope.scope_type().as_str(),
            scope.uuid(),
            filter.kind.as_ref().map(OperationKind::as_str),
            filter.status.map(|status| status.as_str()),
            filter.parent_id.map(|id| id.as_uuid()),
            filter.before.map(|id| id.as_uuid()),
            i64::from(filter.limit),
        )
        .fetch_all(&self.pool)
        .await
        .during("list operations")?;
        rows.into_iter().map(Operation::try_from).collect()
    }

    /// How many operations are queued, are running and are waiting for their children, by kind and routing, and how long
    /// the oldest that could be claimed has been due, in seconds.
    pub async fn operation_counts(&self) -> Result<Vec<(String, String, String, i64, f64)>, DatabaseError> {
        let rows = sqlx::query!(
            // Each by an index of its own: those that have ended, which are most, are not looked at.
            r#"SELECT kind AS "kind!", routing AS "routing!", state AS "state!", count(*) AS "count!",
                coalesce(max(age_s), 0)::float8 AS "age_s!"
             FROM (
                SELECT kind, routing, 'queued' AS state, extract(epoch FROM now() - not_before) AS age_s
                    FROM long_running_operations WHERE ready
                UNION ALL SELECT kind, routing, 'queued', 0
                    FROM long_running_operations WHERE status = 'queued' AND NOT ready AND NOT waiting_for_children
                UNION ALL SELECT kind, routing, 'waiting', 0 FROM long_running_operations WHERE waiting_for_children
                UNION ALL SELECT kind, routing, 'running', 0 FROM long_running_operations WHERE status = 'running'
             ) AS operation
             GROUP BY kind, routing, state"#
        )
        .fetch_all(&self.pool)
        .await
        .during("count operations")?;
        Ok(rows.into_iter().map(|row| (row.kind, row.routing, row.state, row.count, row.age_s)).collect())
    }
}
