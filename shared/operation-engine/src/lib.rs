//! The worker runtime of long-running operations, for services.
//!
//! A worker that was paused, cut off or too slow must not finish an operation that somebody else now holds; a
//! worker whose progress cannot be published must not fail because of it; a worker that is stopped must give
//! back what it has at once. A kind of operation should have to think of none of that: it implements
//! [`OperationHandler`], and [`Worker`] claims, renews, reports, cancels, stops and finishes around it.
//!
//! Every write carries the operation, the attempt and the lease; the registry refuses what does not match. A
//! worker stops by itself five seconds before a lease ends that it cannot renew, by its own clock, counted from
//! the moment it asked.

mod attempt;
mod claims;
mod context;
mod declare;
mod ends;
mod event_log;
mod finish;
mod handler;
mod reporter;
mod worker;

pub use context::OperationContext;
pub use declare::declare_kinds;
pub use handler::{OperationFailure, OperationHandler};
pub use worker::{Worker, WorkerTiming};
