use bus_messages::{FinishError, Operation, Outcome};
use domain_model::{BackOff, BucketId, OperationEvent, OperationStatus, ProjectId};
use serde_json::Value;

use super::create::{self, NewOperation};
use super::transition::{self, Change, Ended};
use super::{LeaseFence, row::OperationRow};
use crate::error::During;
use crate::{Database, DatabaseError, NewBackup, backups, outbox};

/// How an attempt ended, as its worker says.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Whose.
    pub fence: LeaseFence,
    /// How it ended.
    pub outcome: Outcome,
    /// The result of a success.
    pub result: Option<Value>,
    /// Why it failed.
    pub error: Option<FinishError>,
    /// What the next attempt goes on from.
    pub checkpoint: Option<Value>,
    /// What a waiting parent wants done.
    pub children: Vec<NewOperation>,
    /// A backup to record with the success, in one transaction.
    pub backup: Option<NewBackup>,
    /// A random share in 0.0..=1.0 for the back-off.
    pub jitter: f64,
}

/// What became of a finish.
#[derive(Debug, Clone, PartialEq)]
pub enum FinishOutcome {
    /// It is recorded now.
    Recorded(Box<Ended>),
    /// It was recorded before.
    Repeated,
    /// The worker had lost the operation: nothing was recorded.
    Lost,
}

impl Database {
    /// Records how an attempt ended, with everything that follows from it, in one transaction.
    pub async fn finish_operation(&self, finished: &Finished) -> Result<FinishOutcome, DatabaseError> {
        const DURING: &str = "finish an operation";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let Some(row) = transition::lock(&mut transaction, finished.fence.op_id.as_uuid()).await? else {
            return Ok(FinishOutcome::Lost);
        };
        let fence = &finished.fence;
        if row.attempt != i32::try_from(fence.attempt).unwrap_or(-1)
            || row.lease_id != Some(fence.lease_id.as_uuid())
        {
            return Ok(FinishOutcome::Lost);
        }
        if row.status()? != OperationStatus::Running {
            return Ok(FinishOutcome::Repeated);
        }
        let mut others = Vec::new();
        // Asked to cancel before it had children, it is to have none.
        let children = if row.cancel_requested_at.is_some() { &[] } else { finished.children.as_slice() };
        for child in children {
            if let Some(row) = create::insert(&mut transaction, child).await? {
                outbox::add(&mut transaction, row.id, &row.subject()?, None, false).await?;
                others.push(Operation::try_from(row)?);
            }
        }
        if let Some(backup) = &finished.backup {
            backups::record(&mut transaction, backup).await?;
        }
        let mut ended = transition::apply(&mut transaction, &row, change_of(&row, finished)).await?;
        ended.others.extend(others);
        // All children may have ended before their parent began to wait.
        if ended.op.waiting_for_children {
            ended.others.extend(transition::child_ended(&mut transaction, row.id).await?);
        }
        transaction.commit().await.during(DURING)?;
        Ok(FinishOutcome::Recorded(Box::new(ended)))
    }

    /// The bucket that a project is bound to.
    pub async fn backup_bucket_of(&self, project: ProjectId) -> Result<Option<BucketId>, DatabaseError> {
        let bucket =
            sqlx::query_scalar!("SELECT backup_bucket_id FROM projects WHERE id = $1", project.as_uuid())
                .fetch_optional(&self.pool)
                .await
                .during("find the bucket of a project")?;
        Ok(bucket.flatten().map(BucketId::from))
    }
}

fn change_of<'a>(row: &OperationRow, finished: &'a Finished) -> Change<'a> {
    let cancel_requested = row.cancel_requested_at.is_some();
    let attempts_left = row.failures + 1 < row.max_attempts;
    let failures = u32::try_from(row.failures + 1).unwrap_or(1);
    let mut wait_s = 0.0;
    let (event, message) = match (finished.outcome, &finished.error) {
        (Outcome::Succeeded, _) => (OperationEvent::Succeeded, "done".to_owned()),
        (Outcome::Canceled, _) => (OperationEvent::CancelFinished, "canceled".to_owned()),
        (Outcome::HandedBack, _) => (
            OperationEvent::HandedBack { cancel_requested },
            "handed back: its worker is being stopped".to_owned(),
        ),
        (Outcome::WaitsForChildren, _) if cancel_requested => {
            (OperationEvent::CancelFinished, "canceled before its children were started".to_owned())
        }
        (Outcome::WaitsForChildren, _) => {
            (OperationEvent::WaitsForChildren, "waits for its children".to_owned())
        }
        (Outcome::Failed, Some(error)) if error.retryable => {
            let event = OperationEvent::FailedRetryably { attempts_left, cancel_requested };
            let attempts = format!("attempt {} of {}", failures, row.max_attempts);
            if attempts_left && !cancel_requested {
                wait_s = BackOff::OPERATION.wait(failures, finished.jitter).as_secs_f64();
                (event, format!("{attempts} failed, next in {wait_s:.1} s: {}", error.message))
            } else {
                (event, format!("{attempts} failed: {}", error.message))
            }
        }
        (Outcome::Failed, Some(error)) => (OperationEvent::FailedPermanently, error.message.clone()),
        (Outcome::Failed, None) => (OperationEvent::FailedPermanently, "failed without a reason".to_owned()),
    };
    Change {
        event,
        result: finished.result.as_ref(),
        error: finished.error.as_ref(),
        checkpoint: finished.checkpoint.as_ref(),
        wait_s,
        message,
    }
}
