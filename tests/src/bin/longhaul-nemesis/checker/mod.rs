//! What must be true of a history, whatever was killed meanwhile. Pure: it reads a [`History`] and says what is wrong.

mod backups;
mod requests;
mod rows;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use domain_model::OperationId;

use crate::history::{Change, History};

pub(crate) use backups::newest_good;
pub(crate) use requests::unclear_carried_out;
pub(crate) use rows::{brief, most_at_once};
pub(crate) use streams::describe;

/// What must be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Rule {
    /// What a client was told exists, exists.
    Lost,
    /// One request makes one operation at most.
    Double,
    /// A cancel that was acknowledged is remembered.
    CancelForgotten,
    /// Every operation ends.
    NotEnded,
    /// States follow each other as the protocol says.
    IllegalTransition,
    /// What has ended never changes.
    EndChanged,
    /// An attempt begins with a claim, and claims count.
    AttemptCount,
    /// Failures and lost leases are counted apart, one at a time, and neither beyond its limit.
    FailureCount,
    /// Each claim has a lease of its own, which nobody has had before.
    LeaseReused,
    /// No lease is taken away before its end.
    LeaseTakenEarly,
    /// Only what runs has a lease, and it has one.
    ZombieLease,
    /// What was to be canceled is not started any more.
    ClaimedAfterCancel,
    /// Who cancels a parent cancels its children, also those that come later.
    CancelNotPassedOn,
    /// A checkpoint only goes forward.
    CheckpointWentBack,
    /// The result is that of the last attempt.
    StaleResult,
    /// What has not ended, or not long enough ago, is not deleted.
    DeletedEarly,
    /// A parent goes on, and ends, after its children.
    ParentBeforeChild,
    /// At most one running operation an exclusive key.
    ExclusiveKey,
    /// No more operations of a kind run at once than its cap allows.
    Cap,
    /// At most one active operation a dedupe key.
    DedupeKey,
    /// What ended tells so: the last event is in the stream, as the row has it.
    EndNotTold,
    /// The summary of each operation is in the stream, as the row has it.
    SummaryLost,
    /// Nothing follows the last event.
    EventAfterEnd,
    /// No hole in `n` within an attempt.
    Hole,
    /// No event of an attempt after one of a later attempt.
    AttemptWentBack,
    /// No event of an attempt that never was.
    UnknownAttempt,
    /// A step that is behind a checkpoint is not done again.
    StepRedone,
    /// What was deleted is deleted from the stream, too.
    NotPurged,
    /// Everything is relayed in the end.
    LeftInOutbox,
    /// What a live watcher was told is what the stream keeps.
    SeenNotKept,
    /// A live watcher misses nothing, gets nothing twice, and hears of the end.
    Watcher,
    /// One operation makes one backup at most, and that is the one that it says when it has succeeded.
    BackupDouble,
    /// What may be restored has its snapshot in the repository.
    SnapshotLost,
    /// Nobody has damaged a repository, and so nobody finds damage.
    FoundDamaged,
    /// After all faults, everything that the repository needs is there and is what it was.
    RepositoryUnsound,
    /// The newest good backup restores to what was recorded, and to the files as they were then.
    RestoreDiffers,
    /// Operations leave nothing on a host.
    LeftOnHost,
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) rule: Rule,
    pub(crate) op_id: Option<OperationId>,
    pub(crate) what: String,
}

/// Where violations are gathered.
#[derive(Default)]
pub(crate) struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, rule: Rule, op_id: impl Into<Option<OperationId>>, what: impl Into<String>) {
        self.0.push(Violation { rule, op_id: op_id.into(), what: what.into() });
    }
}

/// The changes of each operation.
pub(crate) type Lives<'a> = BTreeMap<OperationId, Vec<&'a Change>>;

/// The changes of a history, by operation.
pub(crate) fn lives(history: &History) -> Lives<'_> {
    let mut lives = Lives::new();
    for change in &history.changes {
        lives.entry(change.op_id).or_default().push(change);
    }
    lives
}

/// All that is wrong with a history, nothing where all is well.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let lives = lives(history);
    let mut found = Found::default();
    rows::check(history, &lives, &mut found);
    requests::check(history, &lives, &mut found);
    streams::check(history, &lives, &mut found);
    backups::check(history, &lives, &mut found);
    found.0
}
