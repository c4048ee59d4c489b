//! Long-running operations: each file is one thing that is done with them.
//!
//! Every change of state goes through [`domain_model::next_state`] while the row is locked, raises `rev`,
//! and writes to the outbox in the same transaction. Every write of a worker is fenced by
//! (`id`, `attempt`, `lease_id`).

mod cancel;
mod claim;
mod create;
mod finish;
mod heartbeat;
mod list;
mod row;
mod sweep;
mod transition;
mod unfinished;

pub(crate) use create::insert;
pub(crate) use row::{OperationRow, scope_of};
pub(crate) use transition::{cancel, lock, lock_all};

pub use cancel::CancelOutcome;
pub use claim::{Caps, ClaimWanted, KindWanted, LeasedOperation};
pub use create::{CreateOutcome, NewOperation};
pub use finish::{FinishOutcome, Finished};
pub use heartbeat::{Heartbeat, HeartbeatOutcome};
pub use list::ListFilter;
pub use sweep::{Due, Swept};
pub use transition::Ended;

use domain_model::{LeaseId, OperationId};

/// What fences every write of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseFence {
    /// Which operation.
    pub op_id: OperationId,
    /// The attempt of the lease.
    pub attempt: u32,
    /// The lease.
    pub lease_id: LeaseId,
}
