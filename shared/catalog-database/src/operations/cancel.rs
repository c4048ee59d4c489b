use bus_messages::Operation;
use domain_model::{OperationId, Scope};

use super::transition::{self, Ended};
use crate::error::{During, despite_deadlocks};
use crate::{Database, DatabaseError};

/// What became of a wish to cancel.
#[derive(Debug, Clone, PartialEq)]
pub enum CancelOutcome {
    /// It ended at once, or its worker is told.
    Asked(Box<Ended>),
    /// It had ended before, or had been asked before.
    Unchanged(Box<Operation>),
    /// There is no such operation of this scope.
    NotFound,
}

impl Database {
    /// Cancels an operation and its children. Asking again changes nothing.
    pub async fn cancel_operation(
        &self,
        scope: Scope,
        id: OperationId,
    ) -> Result<CancelOutcome, DatabaseError> {
        despite_deadlocks(|| self.try_to_cancel(scope, id)).await
    }

    async fn try_to_cancel(&self, scope: Scope, id: OperationId) -> Result<CancelOutcome, DatabaseError> {
        const DURING: &str = "cancel an operation";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let row = match transition::lock(&mut transaction, id.as_uuid()).await? {
            Some(row) if row.scope()? == scope => row,
            _ => return Ok(CancelOutcome::NotFound),
        };
        if row.status()?.is_terminal() || row.cancel_requested_at.is_some() {
            return Ok(CancelOutcome::Unchanged(Box::new(row.try_into()?)));
        }
        let ended = transition::cancel(&mut transaction, row).await?;
        transaction.commit().await.during(DURING)?;
        Ok(CancelOutcome::Asked(Box::new(ended)))
    }
}
