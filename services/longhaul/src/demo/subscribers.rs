//! Subscribers of an operation, and what each of them must have got.

use anyhow::{Context, bail};
use bus_client::{Bus, WatchItem};
use bus_messages::{Operation, ProgressEvent, kinds};
use bus_subjects::OperationSubject;
use domain_model::{OperationKind, OperationStatus, overall_percent};
use futures::StreamExt as _;
use tokio::sync::oneshot;

use crate::drawing::Drawing;

/// What the ring keeps.
const RING: usize = 256;

/// Somebody who watches an operation from now on.
pub(super) struct Follower {
    kind: OperationKind,
    drawing: Option<Drawing>,
    mark: Option<(f64, oneshot::Sender<f64>)>,
}

/// What a subscriber got.
pub(super) struct Seen {
    /// Attempt and number of each event.
    pub(super) events: Vec<(u32, u64)>,
    done: bool,
    state: Option<Operation>,
}

impl Follower {
    pub(super) fn new(kind: &OperationKind) -> Self {
        Self { kind: kind.clone(), drawing: None, mark: None }
    }

    /// Draws what it gets.
    pub(super) fn draw(&mut self, drawing: Drawing) {
        self.drawing = Some(drawing);
    }

    /// Tells once the operation has come so far, in percent.
    pub(super) fn tell_at(&mut self, percent: f64, teller: oneshot::Sender<f64>) {
        self.mark = Some((percent, teller));
    }

    /// Watches to the end.
    pub(super) async fn follow(mut self, bus: &Bus, subject: OperationSubject) -> anyhow::Result<Seen> {
        let mut seen = Seen { events: Vec::new(), done: false, state: None };
        let mut items = bus_client::watch(bus, subject);
        while let Some(item) = items.next().await {
            match item? {
                WatchItem::Event(event) => {
                    self.drawing.iter_mut().for_each(|drawing| drawing.event(&event));
                    self.tell(&event);
                    seen.done |= event.phase == ProgressEvent::DONE;
                    seen.events.push((event.attempt, event.n));
                }
                WatchItem::State(state) => {
                    self.drawing.iter_mut().for_each(|drawing| drawing.state(&state));
                    seen.state = Some(*state);
                }
            }
        }
        self.drawing.into_iter().for_each(Drawing::finish);
        Ok(seen)
    }

    fn tell(&mut self, event: &ProgressEvent) {
        let phases = kinds::find(&self.kind).map_or(&[][..], |definition| definition.phases);
        let percent = overall_percent(phases, &event.phase, event.progress.as_ref());
        if let Some((_, teller)) = self.mark.take_if(|(at, _)| percent >= *at) {
            // Fails where nobody waits for it any more.
            let _ = teller.send(percent);
        }
    }
}

impl Seen {
    /// The operation as it succeeded.
    pub(super) fn ended(&self) -> anyhow::Result<&Operation> {
        let state = self.state.as_ref().context("no summary came")?;
        match (state.status, &state.error) {
            (OperationStatus::Succeeded, _) => Ok(state),
            (status, Some(error)) => {
                bail!("{} has ended as {status}: {}: {}", state.kind, error.code, error.message)
            }
            (status, None) => bail!("{} has ended as {status}", state.kind),
        }
    }

    /// Every event from the first to the last, without a gap, and the summary of its success.
    pub(super) fn check_whole(&self) -> anyhow::Result<()> {
        self.ended()?;
        if !self.done {
            bail!("the last event did not come");
        }
        let mut expected = (0, 0);
        for &event in &self.events {
            let next = if event.0 == expected.0 { (event.0, expected.1 + 1) } else { (event.0, 1) };
            if event != next {
                bail!(
                    "event {} of attempt {} came after event {} of attempt {}",
                    event.1,
                    event.0,
                    expected.1,
                    expected.0
                );
            }
            expected = event;
        }
        Ok(())
    }

    /// The summary of its success, and of the events that `whole` got the last ones: all that the ring still had.
    pub(super) fn check_against(&self, whole: &Self) -> anyhow::Result<()> {
        self.ended()?;
        if !whole.events.ends_with(&self.events) || self.events.len() < whole.events.len().min(RING) {
            bail!("it got {} of {} events, not the ring", self.events.len(), whole.events.len());
        }
        if !self.done {
            bail!("the last event did not come");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation() -> Operation {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        let at = "2026-11-21T07:38:27.123Z";
        serde_json::from_value(serde_json::json!({
            "op_id": id, "kind": "project-backup", "scope": format!("project-{id}"), "scope_type": "project", "scope_id": id,
            "status": "succeeded", "created_by": "operator", "owner": null, "routing": "hub", "input": {}, "result": {},
            "error": null, "progress_summary": null, "progress": 100.0, "phase": null, "message": null, "attempt": 1,
            "max_attempts": 5, "lease_losses": 0, "priority": 0, "not_before": at, "lease_until": null, "heartbeat_at": null,
            "cancel_requested_at": null, "created_at": at, "started_at": at, "finished_at": at, "updated_at": at,
            "expires_at": at, "dedupe_key": null, "exclusive_key": null, "parent_id": null, "waiting_for_children": false,
            "retry_of": null, "rev": 3,
        }))
        .expect("it reads")
    }

    fn seen(events: &[(u32, u64)]) -> Seen {
        Seen { events: events.to_vec(), done: true, state: Some(operation()) }
    }

    #[test]
    fn a_gap_is_noticed_and_a_new_attempt_is_none() {
        assert!(seen(&[(1, 1), (1, 2), (2, 1), (2, 2)]).check_whole().is_ok());
        for bad in [&[(1, 2)][..], &[(1, 1), (1, 3)], &[(1, 1), (1, 1)]] {
            assert!(seen(bad).check_whole().is_err(), "{bad:?}");
        }
        assert!(Seen { done: false, ..seen(&[(1, 1)]) }.check_whole().is_err());
        assert!(Seen { state: None, ..seen(&[(1, 1)]) }.check_whole().is_err());
    }

    #[test]
    fn who_comes_late_must_get_the_ring() {
        let whole = seen(&(1..=300).map(|n| (1, n)).collect::<Vec<_>>());
        let last = |count: u64| seen(&(301 - count..=300).map(|n| (1, n)).collect::<Vec<_>>());
        assert!(last(256).check_against(&whole).is_ok());
        assert!(last(300).check_against(&whole).is_ok(), "it joined before the ring had wrapped");
        assert!(last(255).check_against(&whole).is_err());
        assert!(seen(&[]).check_against(&seen(&[(1, 1)])).is_err());
    }
}
