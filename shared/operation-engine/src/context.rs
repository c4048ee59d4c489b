use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::{
    CopyStepReply, CopyStepRequest, Encoding, ErrorCode, EventLevel, Grant, Operation, ProgressSummary,
    RepositoryGrant, RepositoryReply, RepositoryRequest, RetentionReply, RetentionRequest,
};
use bus_subjects::WorkSubject;
use domain_model::{BackOff, BackupId, LeaseId, OperationId, Progress, Routing, Timestamp, overall_percent};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::OperationFailure;
use crate::attempt::Attempt;
use crate::event_log::{NewEvent, cut};

/// The largest checkpoint, in bytes as JSON.
const CHECKPOINT_BYTES: usize = 64 * 1024;
/// Making a repository ready may create a bucket first.
const REPOSITORY_TIMEOUT: Duration = Duration::from_secs(60);
const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(200), cap: Duration::from_secs(5) };

/// What a handler has to do with its operation. Cheap to clone, and usable from any thread.
#[derive(Clone)]
pub struct OperationContext {
    attempt: Arc<Attempt>,
    bus: Bus,
    caller: Routing,
}

impl fmt::Debug for OperationContext {
    /// Without the grant.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OperationContext")
            .field("op_id", &self.op_id())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

impl OperationContext {
    pub(crate) fn new(attempt: Arc<Attempt>, bus: Bus, caller: Routing) -> Self {
        Self { attempt, bus, caller }
    }

    /// The operation, as it was when it was claimed.
    pub fn op(&self) -> &Operation {
        &self.attempt.lease.op
    }

    /// Its id.
    pub fn op_id(&self) -> OperationId {
        self.op().op_id
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.lease.attempt
    }

    /// The lease of this attempt: a worker that keeps records of its own can say after a restart what became of it.
    pub fn lease_id(&self) -> LeaseId {
        self.attempt.lease.lease_id
    }

    /// The input.
    ///
    /// # Errors
    /// A permanent failure where it does not read; the registry has checked it, so this is a mismatch of versions.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, OperationFailure> {
        serde_json::from_value(self.op().input.clone())
            .map_err(|error| OperationFailure::permanent("input_unreadable", error))
    }

    /// What an earlier attempt left.
    ///
    /// # Errors
    /// A permanent failure where it does not read.
    pub fn checkpoint<T: DeserializeOwned>(&self) -> Result<Option<T>, OperationFailure> {
        let checkpoint = self.attempt.lease.checkpoint.as_ref().filter(|value| !value.is_null());
        let read = |value: &Value| serde_json::from_value(value.clone());
        checkpoint
            .map(read)
            .transpose()
            .map_err(|error| OperationFailure::permanent("checkpoint_unreadable", error))
    }

    /// Stores what a later attempt goes on from, at most 64 KiB as JSON; returns once it is stored.
    ///
    /// # Errors
    /// [`OperationFailure::Lost`] where somebody else may hold the operation by now; a permanent failure
    /// where the checkpoint is too large.
    pub async fn save_checkpoint<T: Serialize + ?Sized + Sync>(
        &self,
        checkpoint: &T,
    ) -> Result<(), OperationFailure> {
        let value = serde_json::to_value(checkpoint)
            .map_err(|error| OperationFailure::permanent("checkpoint_unwritable", error))?;
        let bytes = value.to_string().len();
        if bytes > CHECKPOINT_BYTES {
            let message = format!("a checkpoint of {bytes} bytes is more than {CHECKPOINT_BYTES}");
            return Err(OperationFailure::permanent("checkpoint_too_large", message));
        }
        // The sender goes away untold only with the operation itself.
        self.attempt.save_checkpoint(value, bytes).await.unwrap_or(Err(OperationFailure::Lost))
    }

    /// Tells how far a phase has come. Never blocks and never fails; where many come in a short time, only the
    /// latest is sent, ten a second at most.
    pub fn progress(&self, phase: &str, message: impl Into<String>, progress: Option<Progress>) {
        let message = message.into();
        let overall = overall_percent(self.attempt.definition.phases, phase, progress.as_ref());
        let mut summary =
            ProgressSummary { phase: phase.to_owned(), message: message.clone(), progress: overall };
        cut(&mut summary.phase, 64);
        cut(&mut summary.message, 500);
        let event = NewEvent {
            ts: now(),
            phase: phase.to_owned(),
            message,
            level: None,
            progress,
            detail: None,
            replaceable: true,
        };
        self.attempt.push(event, Some(summary));
    }

    /// Tells of something that is to be kept: never coalesced. Ten a second are sent, and 256 wait; then the
    /// oldest go. A detail that does not fit into 64 KiB is left out, and the event says so.
    pub fn event(&self, level: EventLevel, phase: &str, message: impl Into<String>, detail: Option<Value>) {
        let event = NewEvent {
            ts: now(),
            phase: phase.to_owned(),
            message: message.into(),
            level: Some(level),
            progress: None,
            detail,
            replaceable: false,
        };
        self.attempt.push(event, None);
    }

    /// Cancelled when the work is to stop: a cancel was requested, the lease is lost, the worker is being stopped, or another
    /// operation waits for this one, whose kind gives way.
    pub fn cancellation(&self) -> CancellationToken {
        self.attempt.cancellation().clone()
    }

    /// Whether somebody asked for the operation to be canceled.
    pub fn is_canceled(&self) -> bool {
        self.attempt.is_canceled()
    }

    /// Whether somebody else may hold the operation by now.
    pub fn is_lost(&self) -> bool {
        self.attempt.lost().is_cancelled()
    }

    /// Whether the worker is being stopped.
    pub fn is_stopping(&self) -> bool {
        self.attempt.is_stopping()
    }

    /// An error where the work is to stop, to be returned from [`OperationHandler::run`](crate::OperationHandler::run).
    ///
    /// # Errors
    /// `Lost`, `Canceled` or `HandedBack`.
    pub fn check(&self) -> Result<(), OperationFailure> {
        if self.attempt.cancellation().is_cancelled() { Err(self.attempt.reason_to_stop()) } else { Ok(()) }
    }

    /// Waits for the future, or until the work is to stop.
    ///
    /// # Errors
    /// `Lost`, `Canceled` or `HandedBack` where it is to stop; the future is dropped then.
    pub async fn unless_stopped<F: Future>(&self, future: F) -> Result<F::Output, OperationFailure> {
        let outcome = self.attempt.cancellation().run_until_cancelled(future).await;
        outcome.ok_or_else(|| self.attempt.reason_to_stop())
    }

    /// What came with the lease, else what the registry grants when asked.
    ///
    /// # Errors
    /// As [`Self::repository`].
    pub async fn grant(&self) -> Result<Grant, OperationFailure> {
        match &self.attempt.lease.grant {
            Some(grant) => Ok(grant.clone()),
            None => self.fresh_grant().await,
        }
    }

    /// The way into the project's repository: from the grant, else made ready by the registry. A registry
    /// that does not answer is waited for as long as the lease holds.
    ///
    /// # Errors
    /// What the registry says, retryable or not; `Lost`, `Canceled` or `HandedBack` where the work is to stop.
    pub async fn repository(&self) -> Result<RepositoryGrant, OperationFailure> {
        self.repository_if_any()
            .await?
            .ok_or_else(|| OperationFailure::retryable("no_repository", "the registry gave no repository"))
    }

    /// The same for a kind that can do without one: `None` where the project has no backup.
    ///
    /// # Errors
    /// As for [`OperationContext::repository`].
    pub async fn repository_if_any(&self) -> Result<Option<RepositoryGrant>, OperationFailure> {
        if let Some(repository) = self.attempt.lease.grant.as_ref().and_then(|grant| grant.repository.clone())
        {
            return Ok(Some(repository));
        }
        Ok(self.fresh_grant().await?.repository)
    }

    /// Asks the registry for a grant now, whatever came with the lease.
    ///
    /// # Errors
    /// As [`Self::repository`].
    pub async fn fresh_grant(&self) -> Result<Grant, OperationFailure> {
        let lease = &self.attempt.lease;
        let request =
            RepositoryRequest { op_id: self.op_id(), attempt: lease.attempt, lease_id: lease.lease_id };
        let reply: RepositoryReply = self.unless_stopped(self.ask("repository", &request)).await??;
        Ok(reply.grant)
    }

    /// What a `project-copy` does next.
    ///
    /// # Errors
    /// As [`Self::repository`].
    pub async fn copy_step(&self) -> Result<CopyStepReply, OperationFailure> {
        let lease = &self.attempt.lease;
        let request =
            CopyStepRequest { op_id: self.op_id(), attempt: lease.attempt, lease_id: lease.lease_id };
        self.unless_stopped(self.ask("copy", &request)).await?
    }

    /// What a prune of the project's repository is to forget, after saying which of that is gone, and which backups have
    /// turned out to be bad.
    ///
    /// # Errors
    /// As [`Self::repository`].
    pub async fn retention(
        &self,
        gone: Vec<BackupId>,
        bad: Vec<BackupId>,
    ) -> Result<RetentionReply, OperationFailure> {
        let lease = &self.attempt.lease;
        let (op_id, attempt, lease_id) = (self.op_id(), lease.attempt, lease.lease_id);
        let request = RetentionRequest { op_id, attempt, lease_id, gone, bad };
        self.unless_stopped(self.ask("retention", &request)).await?
    }

    /// Asks the registry something about this operation, until it answers.
    async fn ask<Q: Serialize + Sync, A: DeserializeOwned>(
        &self,
        verb: &str,
        request: &Q,
    ) -> Result<A, OperationFailure> {
        let subject = WorkSubject::new(self.caller, verb).to_string();
        let mut failures = 0;
        loop {
            let reply = self.bus.request(subject.clone(), request, Encoding::MessagePack, REPOSITORY_TIMEOUT);
            let error = match reply.await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            match error {
                RequestError::Api(error) if error.code != ErrorCode::TooManyRequests => {
                    return Err(error.into());
                }
                error if error.is_retryable() => {
                    tracing::warn!(op.id = %self.op_id(), verb, error = %error, "no answer; asking again");
                }
                error => return Err(OperationFailure::retryable("registry_unreachable", error)),
            }
            failures += 1;
            tokio::time::sleep(BACK_OFF.wait(failures, rand::random())).await;
        }
    }

    /// When the lease ends, unless it is renewed until then.
    pub fn lease_deadline(&self) -> Instant {
        self.attempt.deadline()
    }
}

fn now() -> Timestamp {
    time::OffsetDateTime::now_utc().into()
}
