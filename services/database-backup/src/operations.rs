//! One operation at a time, and what is known about the last ones.
//!
//! Two backups at once would be one too many of the same file: who asks while one runs is given that one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::answers::{BackupTaken, Restored};
use crate::failure::{Failure, FailureKind, Result};

/// Operations that are remembered.
const REMEMBERED: usize = 20;

/// What an operation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Takes a backup.
    Backup,
    /// Restores one.
    Restore,
    /// Uploads copies that could not be uploaded before, and deletes old backups.
    Maintenance,
}

/// Where an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// At work.
    Running,
    /// Done.
    Succeeded,
    /// Ended without having done it.
    Failed,
}

/// What went wrong, as an answer has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailureAnswer {
    /// What to do about it.
    pub code: FailureKind,
    /// In words.
    pub message: String,
    /// Where the copy is that could not be uploaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
}

impl From<&Failure> for FailureAnswer {
    fn from(failure: &Failure) -> Self {
        let kept = failure.kept().map(|kept| kept.display().to_string());
        Self { code: failure.kind(), message: failure.describe(), kept }
    }
}

/// What an operation has brought.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A backup.
    Backup(BackupTaken),
    /// A restored database.
    Restore(Restored),
    /// Nothing to tell.
    Done,
}

/// A phase that is over.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct PhaseTime {
    /// Its name.
    pub phase: String,
    /// How long it took.
    pub seconds: f64,
}

/// An operation.
#[derive(Debug, Clone, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// Its id.
    pub op: String,
    /// What it does.
    pub kind: OperationKind,
    /// Where it is.
    pub state: OperationState,
    /// What it is at.
    pub phase: String,
    /// Bytes of that phase that are done.
    pub done_bytes: u64,
    /// Bytes of that phase, where they are known.
    pub total_bytes: u64,
    /// The phases that are over, and how long each took.
    pub phases: Vec<PhaseTime>,
    /// When it began.
    pub started_at: String,
    /// What it brought.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<FailureAnswer>,
}

/// All operations of this process. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Operations {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    counter: u64,
    running: Option<OperationHandle>,
    ended: VecDeque<Operation>,
}

/// An operation that somebody waits for. Cheap to clone.
#[derive(Debug, Clone)]
pub struct OperationHandle {
    seen: watch::Receiver<Operation>,
    abort: AbortHandle,
    joined: bool,
}

/// What an operation says about itself. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Progress {
    told: Arc<watch::Sender<Operation>>,
    began: Arc<Mutex<Instant>>,
}

impl Progress {
    /// Begins a phase.
    pub fn phase(&self, phase: &str, total_bytes: u64) {
        self.told.send_modify(|operation| {
            self.end_phase(operation);
            operation.phase = phase.to_owned();
            operation.done_bytes = 0;
            operation.total_bytes = total_bytes;
        });
    }

    fn end_phase(&self, operation: &mut Operation) {
        let mut began = self.began.lock().unwrap_or_else(PoisonError::into_inner);
        operation
            .phases
            .push(PhaseTime { phase: operation.phase.clone(), seconds: began.elapsed().as_secs_f64() });
        *began = Instant::now();
    }

    /// Tells how much of the phase is done.
    pub fn done(&self, bytes: u64) {
        self.told.send_modify(|operation| operation.done_bytes = operation.done_bytes.max(bytes));
    }
}

impl OperationHandle {
    /// What it is now.
    pub fn now(&self) -> Operation {
        self.seen.borrow().clone()
    }

    /// Waits until it has something to tell, or has ended.
    pub async fn changed(&mut self) -> Operation {
        // Nobody tells any more: it has ended.
        let _ = self.seen.changed().await;
        self.seen.borrow_and_update().clone()
    }

    /// Whether it ran already when somebody wanted to begin it.
    pub fn was_joined(&self) -> bool {
        self.joined
    }

    /// Has it stop where it is; it tells its end then.
    pub fn abandon(&self) {
        self.abort.abort();
    }

    /// Waits for its end.
    pub async fn ended(&mut self) -> Operation {
        // Whoever tells it says how it ended, even where it panics.
        let _ = self.seen.wait_for(|operation| operation.state != OperationState::Running).await;
        self.now()
    }
}

impl Operations {
    /// Begins an operation, unless one runs: then a backup that is wanted is the one that runs, and anything else is refused.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Busy`].
    pub fn begin<Work, Done>(
        &self,
        kind: OperationKind,
        started_at: String,
        work: Work,
    ) -> Result<OperationHandle>
    where
        Work: FnOnce(Progress) -> Done,
        Done: Future<Output = Result<Outcome>> + Send + 'static,
    {
        let mut state = self.lock();
        if let Some(running) = &state.running {
            let now = running.now();
            if now.kind == kind && kind == OperationKind::Backup {
                return Ok(OperationHandle { joined: true, ..running.clone() });
            }
            let message = format!("operation {} is at work ({})", now.op, now.phase);
            return Err(Failure::new(FailureKind::Busy, message));
        }
        state.counter += 1;
        let operation = Operation {
            op: format!("{:08x}-{}", rand::random::<u32>(), state.counter),
            kind,
            state: OperationState::Running,
            phase: "starting".to_owned(),
            done_bytes: 0,
            total_bytes: 0,
            phases: Vec::new(),
            started_at,
            outcome: None,
            error: None,
        };
        let (sender, seen) = watch::channel(operation);
        let progress = Progress { told: Arc::new(sender), began: Arc::new(Mutex::new(Instant::now())) };
        let future = work(progress.clone());
        // Also when it panics, or is abandoned before it has begun, its end is told and the next one may begin.
        let end = End { operations: self.clone(), progress, outcome: None };
        let task = tokio::spawn(async move {
            // All of it, not one field alone.
            let mut end = end;
            end.outcome = Some(future.await);
        });
        let handle = OperationHandle { seen, abort: task.abort_handle(), joined: false };
        // Still under the lock, which its end waits for.
        state.running = Some(handle.clone());
        Ok(handle)
    }

    /// Abandons what runs; its handle tells the end.
    pub fn abandon(&self) {
        if let Some(running) = self.running() {
            running.abandon();
        }
    }

    /// What runs.
    pub fn running(&self) -> Option<OperationHandle> {
        self.lock().running.clone()
    }

    /// What runs and what ended last, newest first.
    pub fn all(&self) -> Vec<Operation> {
        let state = self.lock();
        let running = state.running.iter().map(OperationHandle::now);
        running.chain(state.ended.iter().cloned()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells how an operation ended, whatever ended it.
struct End {
    operations: Operations,
    progress: Progress,
    outcome: Option<Result<Outcome>>,
}

impl Drop for End {
    fn drop(&mut self) {
        let outcome = self.outcome.take().unwrap_or_else(|| {
            if std::thread::panicking() {
                return Err(Failure::new(FailureKind::Internal, "the operation panicked; the log has where"));
            }
            Err(Failure::new(FailureKind::Abandoned, "the operation was told to stop before its end"))
        });
        let mut state = self.operations.lock();
        let Progress { told, .. } = &self.progress;
        told.send_modify(|operation| {
            self.progress.end_phase(operation);
            match &outcome {
                Ok(outcome) => {
                    operation.state = OperationState::Succeeded;
                    operation.outcome = Some(outcome.clone());
                }
                Err(failure) => {
                    operation.state = OperationState::Failed;
                    operation.error = Some(failure.into());
                }
            }
        });
        let ended = told.borrow().clone();
        match &ended.error {
            Some(error) if error.code == FailureKind::Abandoned => {
                tracing::warn!(op.id = ended.op, op.kind = ?ended.kind, "{:?} is left while {}", ended.kind, ended.phase);
            }
            Some(error) => tracing::error!(
                op.id = ended.op, op.kind = ?ended.kind, error.code = ?error.code,
                "{:?} failed while {}: {}", ended.kind, ended.phase, error.message
            ),
            None => tracing::info!(op.id = ended.op, op.kind = ?ended.kind, "{:?} succeeded", ended.kind),
        }
        state.running = None;
        state.ended.push_front(ended);
        state.ended.truncate(REMEMBERED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_operation_that_is_abandoned_before_or_after_it_begins_ends_and_the_next_may_begin() {
        let operations = Operations::default();
        for begun in [false, true] {
            let forever = |_: Progress| std::future::pending();
            let mut handle = operations.begin(OperationKind::Backup, String::new(), forever).unwrap();
            if begun {
                tokio::task::yield_now().await;
            }
            operations.abandon();
            let ended = handle.ended().await;
            assert_eq!(ended.error.unwrap().code, FailureKind::Abandoned);
            assert!(operations.running().is_none());
        }
        let panics = |_: Progress| async { panic!("as a test wants it") };
        let mut handle = operations.begin(OperationKind::Restore, String::new(), panics).unwrap();
        assert_eq!(handle.ended().await.state, OperationState::Failed);
        let succeeds = |progress: Progress| async move {
            progress.phase("only", 0);
            Ok(Outcome::Done)
        };
        let mut handle = operations.begin(OperationKind::Maintenance, String::new(), succeeds).unwrap();
        let ended = handle.ended().await;
        let phases: Vec<&str> = ended.phases.iter().map(|phase| phase.phase.as_str()).collect();
        assert_eq!((ended.state, phases), (OperationState::Succeeded, vec!["starting", "only"]));
        assert_eq!(operations.all().len(), 4);
    }
}
