//! What somebody who watched an operation has got.

use bus_client::{Bus, WatchItem, watch};
use bus_messages::{Operation, ProgressEvent};
use bus_subjects::OperationSubject;
use domain_model::OperationStatus;
use futures::StreamExt as _;

/// All that a watcher got.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The events, in the order in which they came.
    pub events: Vec<ProgressEvent>,
    /// The summaries, likewise.
    pub states: Vec<Operation>,
}

/// Watches an operation until it is over. `subject` is `persist.<scope>.lro.<op_id>`.
///
/// # Panics
/// Where it may not be watched.
pub async fn watch_to_the_end(bus: &Bus, subject: &str) -> Seen {
    let (subject, _) = OperationSubject::parse(&format!("{subject}.evt")).expect("a subject of an operation");
    let mut items = watch(bus, subject);
    let mut seen = Seen { events: Vec::new(), states: Vec::new() };
    while let Some(item) = items.next().await {
        match item {
            Ok(WatchItem::Event(event)) => seen.events.push(event),
            Ok(WatchItem::State(state)) => seen.states.push(*state),
            Err(error) => panic!("{error}: {}", error.cause()),
        }
    }
    seen
}

impl Seen {
    /// That nothing is missing: every attempt from its first event on, without a hole, and the end of the operation.
    ///
    /// # Panics
    /// Where something is.
    #[track_caller]
    pub fn assert_complete(&self, status: OperationStatus) {
        let mut before = (0, 0);
        for event in &self.events {
            let expected =
                if event.attempt == before.0 { (before.0, before.1 + 1) } else { (event.attempt, 1) };
            assert_eq!((event.attempt, event.n), expected, "after {before:?}: {:#?}", self.events);
            assert!(event.attempt >= before.0, "an earlier attempt after a later one: {:#?}", self.events);
            before = (event.attempt, event.n);
        }
        let last = self.events.last().expect("there are events");
        assert_eq!((last.phase.as_str(), last.status), ("done", Some(status)), "{last:?}");
        let state = self.states.last().expect("there is a summary");
        assert_eq!(state.status, status);
        assert!(self.states.windows(2).all(|two| two[0].rev < two[1].rev), "summaries only get newer");
    }
}
