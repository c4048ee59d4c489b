use bus_messages::kinds::{
    ProjectBackupInput, ProjectBackupResult, RepositoryDamage, RestoreDrillResult, SourceKind,
};
use bus_messages::{FinishError, Operation, Outcome, ProgressSummary};
use domain_model::{BackOff, OperationEvent, OperationStatus, ProjectId, Scope};
use serde_json::Value;
use uuid::Uuid;

use super::create::{self, NewOperation};
use super::transition::{self, Change, Ended};
use super::{LeaseFence, row::OperationRow};
use crate::backup_schedule::{SCHEDULED, URGENT};
use crate::backups::{self, DoneUpkeep, NewBackup};
use crate::error::{During, despite_deadlocks};
use crate::{Database, DatabaseError, copies};

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
    /// The latest progress, where there is news.
    pub summary: Option<ProgressSummary>,
    /// What a waiting parent wants done.
    pub children: Vec<NewOperation>,
    /// A random share in 0.0..=1.0 for the back-off.
    pub jitter: f64,
    /// Seconds until what was handed back may be claimed again.
    pub wait_s: f64,
    /// Why it was handed back, for people.
    pub reason: Option<String>,
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
    /// What it says does not fit the kind of the operation: nothing was recorded.
    Refused {
        /// For the worker.
        reason: String,
    },
}

impl Database {
    /// Records how an attempt ended, with everything that follows from it.
    pub async fn finish_operation(&self, finished: &Finished) -> Result<FinishOutcome, DatabaseError> {
        let mut outcomes = self.finish_operations(std::slice::from_ref(finished)).await?;
        Ok(outcomes.pop().unwrap_or(FinishOutcome::Lost))
    }

    /// Records how attempts ended, with everything that follows from it, in one transaction; in the order of
    /// `finished`.
    pub async fn finish_operations(
        &self,
        finished: &[Finished],
    ) -> Result<Vec<FinishOutcome>, DatabaseError> {
        despite_deadlocks(|| self.try_to_finish(finished)).await
    }

    async fn try_to_finish(&self, finished: &[Finished]) -> Result<Vec<FinishOutcome>, DatabaseError> {
        const DURING: &str = "finish operations";
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let ids: Vec<Uuid> = finished.iter().map(|finished| finished.fence.op_id.as_uuid()).collect();
        let rows = transition::lock_all(&mut transaction, &ids).await?;
        // `None` for what is recorded below.
        let mut outcomes: Vec<Option<FinishOutcome>> = Vec::with_capacity(finished.len());
        let mut ending: Vec<(&OperationRow, &Finished)> = Vec::new();
        let mut made_backups = Vec::new();
        let mut proofs = Vec::new();
        let (mut checked, mut to_be_checked, mut upkeep) = (Vec::new(), Vec::new(), Vec::new());
        for finished in finished {
            let fence = &finished.fence;
            let outcome = match rows.get(&fence.op_id.as_uuid()).filter(|row| is_held(row, fence)) {
                None => Some(FinishOutcome::Lost),
                Some(row) if row.status()? != OperationStatus::Running => Some(FinishOutcome::Repeated),
                // Asked again while the first answer was still waited for.
                Some(row) if ending.iter().any(|(other, _)| other.id == row.id) => {
                    Some(FinishOutcome::Repeated)
                }
                Some(row) => match (backup_of(row, finished)?, proof_of(row, finished)?) {
                    (Ok(backup), Ok(proof)) => {
                        made_backups.extend(backup);
                        proofs.extend(proof);
                        upkeep.extend(upkeep_of(row, finished)?);
                        checked.extend(check_of(row, finished)?);
                        to_be_checked.extend(damage_of(row, finished)?.map(|project| (project, &*row.kind)));
                        ending.push((row, finished));
                        None
                    }
                    (Err(reason), _) | (_, Err(reason)) => Some(FinishOutcome::Refused { reason }),
                },
            };
            outcomes.push(outcome);
        }
        // Asked to cancel before it had children, it is to have none.
        let may_have_children = ending.iter().filter(|(row, _)| row.cancel_requested_at.is_none());
        let children: Vec<&NewOperation> =
            may_have_children.flat_map(|(_, finished)| &finished.children).collect();
        let mut made = Vec::new();
        if !children.is_empty() {
            for row in create::insert(&mut transaction, &children).await?.into_values() {
                made.push(Operation::try_from(row)?);
            }
            for canceled in copies::link(&mut transaction, &children).await? {
                made.retain(|child| child.op_id != canceled.op.op_id);
                made.push(canceled.op);
            }
        }
        for backup in &made_backups {
            backups::record(&mut transaction, backup).await?;
        }
        for (project, proof) in &proofs {
            backups::note_proof(&mut transaction, *project, proof).await?;
        }
        for (project, damage) in checked {
            match damage {
                None => backups::note_sound_repository(&mut transaction, project).await?,
                Some(damage) => {
                    let news =
                        backups::note_lacking_backups(&mut transaction, project, &damage.lacking).await?;
                    // A backup does not bring back what it did not bring back when the same damage was found before.
                    if news || damage.lacking.is_empty() {
                        backups::note_damage(&mut transaction, project).await?;
                    }
                }
            }
        }
        for done in &upkeep {
            backups::note_upkeep(&mut transaction, done).await?;
        }
        for (project, kind) in to_be_checked {
            // One that needs what bad backups lack fails each time: that is known.
            if kind != "repo-prune" || !backups::has_bad_backups(&mut transaction, project).await? {
                backups::ask_for_check(&mut transaction, project).await?;
            }
        }
        let changes: Vec<_> =
            ending.into_iter().map(|(row, finished)| (row, change_of(row, finished))).collect();
        let mut all_ended = transition::apply_all(&mut transaction, &changes).await?;
        for ended in &mut all_ended {
            let id = ended.op.op_id;
            ended.others.extend(made.extract_if(.., |child| child.parent_id == Some(id)));
            // All children may have ended before their parent began to wait.
            if ended.op.waiting_for_children {
                ended.others.extend(transition::child_ended(&mut transaction, id.as_uuid()).await?);
            }
        }
        transaction.commit().await.during(DURING)?;
        let mut recorded = all_ended.into_iter().map(|ended| FinishOutcome::Recorded(Box::new(ended)));
        Ok(outcomes.into_iter().filter_map(|outcome| outcome.or_else(|| recorded.next())).collect())
    }
}

/// Whether the lease is the one that the operation is held by, or was held by until its holder ended the attempt.
fn is_held(row: &OperationRow, fence: &LeaseFence) -> bool {
    row.attempt == i32::try_from(fence.attempt).unwrap_or(-1)
        && row.lease_id == Some(fence.lease_id.as_uuid())
}

/// The backup that a successful `project-backup` made, or why what it says cannot be recorded.
fn backup_of(
    row: &OperationRow,
    finished: &Finished,
) -> Result<Result<Option<NewBackup>, String>, DatabaseError> {
    if row.kind != "project-backup" || finished.outcome != Outcome::Succeeded {
        return Ok(Ok(None));
    }
    let Scope::Project(project_id) = row.scope()? else {
        return Ok(Err("a project-backup is of a project".to_owned()));
    };
    let input: ProjectBackupInput = serde_json::from_value(row.input.clone())
        .map_err(|error| DatabaseError::row("long_running_operations.input", error))?;
    let result = serde_json::from_value(finished.result.clone().unwrap_or_default());
    let result: ProjectBackupResult = match result {
        Ok(result) => result,
        Err(error) => return Ok(Err(format!("the result of a project-backup does not read: {error}"))),
    };
    Ok(Ok(Some(NewBackup {
        backup_id: result.backup_id,
        project_id,
        op_id: row.id.into(),
        created_at: result.snapshot_at,
        files: result.files,
        bytes: result.bytes,
        bytes_added: result.bytes_added,
        tags: input.tags,
        pinned: input.pinned,
        source: match result.source {
            SourceKind::BtrfsSnapshot => "btrfs-snapshot",
            SourceKind::Live => "live",
        },
        tree: result.tree,
        parent: result.parent,
        generation: result.generation,
    })))
}

/// What a `restore-drill` that has done its work says, or why that cannot be noted.
fn proof_of(
    row: &OperationRow,
    finished: &Finished,
) -> Result<Result<Option<(ProjectId, RestoreDrillResult)>, String>, DatabaseError> {
    if row.kind != "restore-drill" || finished.outcome != Outcome::Succeeded {
        return Ok(Ok(None));
    }
    let Scope::Project(project) = row.scope()? else {
        return Ok(Err("a restore-drill is of a project".to_owned()));
    };
    Ok(match serde_json::from_value(finished.result.clone().unwrap_or_default()) {
        Ok(result) => Ok(Some((project, result))),
        Err(error) => Err(format!("the result of a restore-drill does not read: {error}")),
    })
}

fn found_damage(finished: &Finished) -> bool {
    finished.error.as_ref().is_some_and(|error| error.code == "repository_damaged")
}

/// What a check that has come to its end says of the damage that it has found.
fn damage_in(finished: &Finished) -> Option<RepositoryDamage> {
    let result = finished.result.clone().filter(|_| found_damage(finished));
    result.and_then(|result| serde_json::from_value(result).ok())
}

/// The upkeep that an operation has done. A check has done its work, too, where it has found damage and says which.
fn upkeep_of(row: &OperationRow, finished: &Finished) -> Result<Option<DoneUpkeep>, DatabaseError> {
    let is_done = match &*row.kind {
        "repo-check" => finished.outcome == Outcome::Succeeded || damage_in(finished).is_some(),
        "repo-prune" | "restore-drill" => finished.outcome == Outcome::Succeeded,
        _ => false,
    };
    match row.scope()? {
        Scope::Project(project_id) if is_done => Ok(Some(DoneUpkeep {
            project_id,
            kind: row.kind.clone(),
            was_due: [Some(SCHEDULED), Some(URGENT)].contains(&row.dedupe_key.as_deref()),
            has_read_all: row.kind == "repo-check" && row.input["read_data_shares"] == 1,
        })),
        _ => Ok(None),
    }
}

/// The project whose repository a `repo-check` has looked at, and what damage it has found, if any.
fn check_of(
    row: &OperationRow,
    finished: &Finished,
) -> Result<Option<(ProjectId, Option<RepositoryDamage>)>, DatabaseError> {
    let damage = match finished.outcome {
        Outcome::Succeeded => None,
        // One that could not go on names no backups.
        _ if found_damage(finished) => Some(damage_in(finished).unwrap_or_default()),
        _ => return Ok(None),
    };
    match row.scope()? {
        Scope::Project(project) if row.kind == "repo-check" => Ok(Some((project, damage))),
        _ => Ok(None),
    }
}

/// The project whose repository is to be checked, because something needs what is lost.
fn damage_of(row: &OperationRow, finished: &Finished) -> Result<Option<ProjectId>, DatabaseError> {
    let is_news = match &*row.kind {
        "project-backup" | "project-start" | "repo-prune" => true,
        // What is known to be bad is restored as far as it goes.
        "project-restore" => row.input["allow_bad"] != true,
        // A copy comes from a repository of its own.
        _ => false,
    };
    match row.scope()? {
        Scope::Project(project) if is_news && found_damage(finished) => Ok(Some(project)),
        _ => Ok(None),
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
        (Outcome::HandedBack, _) => {
            wait_s = finished.wait_s;
            let reason = finished.reason.as_deref().unwrap_or("handed back: its worker is being stopped");
            (OperationEvent::HandedBack { cancel_requested }, reason.to_owned())
        }
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
        summary: finished.summary.as_ref(),
        wait_s,
        message,
    }
}
