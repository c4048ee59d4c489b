use domain_model::{OperationId, Routing};
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

impl Database {
    /// Those of some operations that have not ended and that `caller` may be given, now or later.
    pub async fn unfinished_operations(
        &self,
        caller: Routing,
        ids: &[OperationId],
    ) -> Result<Vec<OperationId>, DatabaseError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let unfinished = sqlx::query_scalar!(
            "SELECT id FROM long_running_operations
             WHERE id = ANY ($1) AND status IN ('queued', 'running') AND routing = ANY ($2)",
            &ids,
            &[caller.to_string(), Routing::Any.to_string()]
        )
        .fetch_all(&self.pool)
        .await
        .during("look which operations have not ended")?;
        Ok(unfinished.into_iter().map(OperationId::from).collect())
    }
}
