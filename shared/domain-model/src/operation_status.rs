//! The states of an operation, and the one function that says which may follow which.
//!
//! Lists of terminal states kept in several places drift apart, and a late cancel then overwrites a
//! success. So every change of state in the system is an [`OperationEvent`] put to [`next_state`]; the
//! SQL statements that carry it out are guarded by the state they start from.

use std::fmt;
use std::str::FromStr;

/// The state of a long-running operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OperationStatus {
    /// Waits for a worker, for its time, or for its children.
    Queued,
    /// A worker holds a lease on it.
    Running,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// Ended because somebody asked.
    Canceled,
    /// Ended because its time was over.
    Expired,
}

/// What can happen to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationEvent {
    /// A worker took it.
    Claimed,
    /// Its worker has started children and gives the lease back until the last of them ends.
    WaitsForChildren,
    /// Its worker handed it back unfinished, because the worker is being stopped.
    HandedBack {
        /// Somebody asked for it to be canceled.
        cancel_requested: bool,
    },
    /// Its worker did not renew the lease.
    LeaseLost {
        /// It may be tried again.
        attempts_left: bool,
        /// Somebody asked for it to be canceled.
        cancel_requested: bool,
    },
    /// The attempt failed in a way that may pass.
    FailedRetryably {
        /// It may be tried again.
        attempts_left: bool,
        /// Somebody asked for it to be canceled.
        cancel_requested: bool,
    },
    /// The attempt failed in a way that stays.
    FailedPermanently,
    /// The work is done. Stands even when a cancel came too late to stop it.
    Succeeded,
    /// Its worker stopped because of a cancel and has cleaned up.
    CancelFinished,
    /// Somebody asks for it to be canceled. A running one is only told.
    CancelRequested,
    /// Its `expires_at` has passed.
    TimeOver,
}

/// An event that cannot happen in this state, such as anything at all to an operation that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an operation that is {status} cannot take the event {event:?}")]
pub struct IllegalTransition {
    /// The state it is in.
    pub status: OperationStatus,
    /// What was to happen.
    pub event: OperationEvent,
}

/// The state after `event`. Contract, section 3: `queued → running → succeeded | failed | canceled |
/// expired`; `queued → canceled | expired`; `running → queued`; a terminal state never changes.
pub fn next_state(
    status: OperationStatus,
    event: OperationEvent,
) -> Result<OperationStatus, IllegalTransition> {
    use OperationEvent as Event;
    use OperationStatus as Status;
    Ok(match (status, event) {
        (Status::Queued, Event::Claimed) => Status::Running,
        (Status::Queued, Event::CancelRequested) => Status::Canceled,
        (Status::Queued | Status::Running, Event::TimeOver) => Status::Expired,
        (Status::Running, Event::CancelRequested) => Status::Running,
        (Status::Running, Event::WaitsForChildren) => Status::Queued,
        (Status::Running, Event::HandedBack { cancel_requested }) => {
            if cancel_requested {
                Status::Canceled
            } else {
                Status::Queued
            }
        }
        (
            Status::Running,
            Event::LeaseLost { attempts_left, cancel_requested }
            | Event::FailedRetryably { attempts_left, cancel_requested },
        ) => match (cancel_requested, attempts_left) {
            (true, _) => Status::Canceled,
            (false, true) => Status::Queued,
            (false, false) => Status::Failed,
        },
        (Status::Running, Event::FailedPermanently) => Status::Failed,
        (Status::Running, Event::Succeeded) => Status::Succeeded,
        (Status::Running, Event::CancelFinished) => Status::Canceled,
        (status, event) => return Err(IllegalTransition { status, event }),
    })
}

impl OperationStatus {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Failed, Self::Canceled, Self::Expired];

    /// Whether it never changes again.
    pub fn is_terminal(&self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// Its word on the wire and in the database.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Expired => "expired",
        }
    }
}

/// A word that is no state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a status: use queued, running, succeeded, failed, canceled or expired")]
pub struct UnknownStatus(String);

impl fmt::Display for OperationStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for OperationStatus {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        let known = Self::ALL.into_iter().find(|status| status.as_str() == text);
        known.ok_or_else(|| UnknownStatus(text.chars().take(80).collect()))
    }
}

crate::travels_as_text!(OperationStatus, "status", {
    "enum": ["queued", "running", "succeeded", "failed", "canceled", "expired"]
});

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_event() -> impl Strategy<Value = OperationEvent> {
        use OperationEvent as Event;
        prop_oneof![
            Just(Event::Claimed),
            Just(Event::WaitsForChildren),
            Just(Event::FailedPermanently),
            Just(Event::Succeeded),
            Just(Event::CancelFinished),
            Just(Event::CancelRequested),
            Just(Event::TimeOver),
            any::<bool>().prop_map(|cancel_requested| Event::HandedBack { cancel_requested }),
            any::<(bool, bool)>().prop_map(|(attempts_left, cancel_requested)| Event::LeaseLost {
                attempts_left,
                cancel_requested
            }),
            any::<(bool, bool)>().prop_map(|(attempts_left, cancel_requested)| Event::FailedRetryably {
                attempts_left,
                cancel_requested
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_terminal_state_never_changes(events in proptest::collection::vec(any_event(), 0..40)) {
            let mut status = OperationStatus::Queued;
            let mut ended = None;
            for event in events {
                match next_state(status, event) {
                    Ok(next) => {
                        prop_assert!(ended.is_none(), "{status} changed by {event:?}");
                        status = next;
                    }
                    Err(refused) => prop_assert_eq!(refused, IllegalTransition { status, event }),
                }
                if status.is_terminal() {
                    ended = Some(status);
                }
            }
        }

        #[test]
        fn only_a_claim_starts_work(event in any_event()) {
            let started = next_state(OperationStatus::Queued, event) == Ok(OperationStatus::Running);
            prop_assert_eq!(started, event == OperationEvent::Claimed);
        }
    }

    #[test]
    fn every_status_reads_back() {
        for status in OperationStatus::ALL {
            assert_eq!(status.as_str().parse(), Ok(status));
        }
        assert!("done".parse::<OperationStatus>().is_err());
    }
}
