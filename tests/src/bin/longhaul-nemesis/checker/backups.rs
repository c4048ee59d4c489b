//! What backups, repositories and hosts are in the end.

use std::collections::{HashMap, HashSet};

use domain_model::{OperationId, OperationStatus as Status};

use super::rows::brief;
use super::{Found, Lives, Rule};
use crate::history::{Backup, Change, Ended, History, LeftOnHost, Proof, What};

/// How operations end that have found what they read to be other than it was written.
const DAMAGE: [&str; 2] = ["repository_damaged", "verification_failed"];
/// What a copy is remembered by for two weeks, so that it is not done again.
const RECORD_OF_A_COPY: &str = "journal.json";

pub(super) fn check(history: &History, lives: &Lives<'_>, found: &mut Found) {
    let mut made: HashSet<OperationId> = HashSet::new();
    for backup in &history.backups {
        if !made.insert(backup.op_id) {
            found.add(Rule::BackupDouble, backup.op_id, "it has made two backups");
        }
        row(backup, lives, found);
    }
    for (op_id, life) in lives {
        damage(*op_id, life, found);
    }
    let proofs: HashMap<_, _> = history.proofs.iter().map(|proof| (proof.project, proof)).collect();
    for (project, newest) in newest_good(&history.backups) {
        match proofs.get(&project) {
            Some(proof) => prove(proof, newest, found),
            None => found.add(Rule::RestoreDiffers, newest.op_id, "nobody has restored its backup"),
        }
    }
    for proof in &history.proofs {
        if let Some(ended) = proof.check.as_ref().filter(|ended| ended.status != Status::Succeeded) {
            found.add(Rule::RepositoryUnsound, ended.op_id, describe(ended));
        }
    }
    for left in history.left_on_hosts.iter().filter(|left| !may_stay(left, lives)) {
        let what = format!("{} is left, with {:?}", left.path, left.entries);
        found.add(Rule::LeftOnHost, left.op_id, what);
    }
}

fn row(backup: &Backup, lives: &Lives<'_>, found: &mut Found) {
    let op_id = backup.op_id;
    let Backup { backup_id, project, .. } = backup;
    let last = lives.get(&op_id).and_then(|life| life.iter().rfind(|change| change.what != What::Delete));
    let told = last.filter(|last| last.status == Status::Succeeded).and_then(|last| last.result.as_ref());
    let told = told.and_then(|result| result.get("backup_id")?.as_str());
    if told != Some(backup_id.as_str()) {
        let what = format!("the catalog has the backup {backup_id} of it, and it says {told:?}");
        found.add(Rule::BackupDouble, op_id, what);
    }
    if backup.is_good() && !backup.has_snapshot {
        let what = format!("the repository of {project} lacks the snapshot of the backup {backup_id}");
        found.add(Rule::SnapshotLost, op_id, what);
    }
    if let Some(reason) = &backup.bad {
        found.add(Rule::FoundDamaged, op_id, format!("the backup {backup_id} is bad: {reason}"));
    }
}

/// Whether an operation has met damage, by its end.
fn damage(op_id: OperationId, life: &[&Change], found: &mut Found) {
    let last = life[life.len() - 1];
    let error = last.error.as_ref().filter(|error| DAMAGE.contains(&error.code.as_str()));
    if let Some(error) = error.filter(|_| last.status == Status::Failed) {
        let what = format!("{} {}: {} ({})", last.kind, brief(last), error.message, error.code);
        found.add(Rule::FoundDamaged, op_id, what);
    }
    let proof = last.result.as_ref().and_then(|result| result.get("proof")?.as_str());
    if last.kind == "restore-drill" && proof == Some("mismatch") {
        found.add(Rule::FoundDamaged, op_id, format!("a drill says {:?}", last.result));
    }
}

/// The newest of each project that is good.
pub(crate) fn newest_good(backups: &[Backup]) -> HashMap<domain_model::ProjectId, &Backup> {
    let mut newest: HashMap<domain_model::ProjectId, &Backup> = HashMap::new();
    for backup in backups.iter().filter(|backup| backup.is_good()) {
        let known = newest.entry(backup.project).or_insert(backup);
        if known.created_at <= backup.created_at {
            *known = backup;
        }
    }
    newest
}

fn prove(proof: &Proof, newest: &Backup, found: &mut Found) {
    if proof.check.is_none() {
        found.add(Rule::RepositoryUnsound, newest.op_id, "nobody has checked the repository of its backup");
    }
    let Some(restored) = proof.restore.as_ref() else {
        found.add(Rule::RestoreDiffers, newest.op_id, "nobody has restored its backup");
        return;
    };
    let op_id = restored.ended.op_id;
    let (tree, receipt) = (restored.tree.as_deref(), restored.receipt.as_deref());
    let is_whole = (tree, receipt) == (Some(newest.tree.as_str()), Some("match"));
    if restored.backup_id != newest.backup_id || restored.ended.status != Status::Succeeded || !is_whole {
        let what = format!(
            "the backup {} of the tree {} restores to {tree:?}, receipt {receipt:?}: {}",
            newest.backup_id,
            newest.tree,
            describe(&restored.ended)
        );
        found.add(Rule::RestoreDiffers, op_id, what);
    }
    if !restored.differ.is_empty() {
        let what = format!("nobody has touched these since, and they are others: {:?}", restored.differ);
        found.add(Rule::RestoreDiffers, op_id, what);
    }
}

fn may_stay(left: &LeftOnHost, lives: &Lives<'_>) -> bool {
    let life = left.op_id.and_then(|op_id| lives.get(&op_id));
    life.is_some_and(|life| life[0].kind == "copy-apply") && left.entries == [RECORD_OF_A_COPY]
}

fn describe(ended: &Ended) -> String {
    let Ended { status, error, .. } = ended;
    error.as_ref().map_or_else(|| status.to_string(), |error| format!("{status}: {error}"))
}
