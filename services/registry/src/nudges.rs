//! Nudges for workers, gathered: who creates a thousand operations a second wakes nobody a thousand times.

use std::collections::HashMap;
use std::time::Duration;

use bus_client::Bus;
use bus_messages::{Encoding, Nudge, Operation};
use domain_model::{OperationKind, OperationStatus, Routing};
use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How long the next nudges are gathered after some were sent; the first waits for nothing.
const REST: Duration = Duration::from_millis(1);

/// What the workers of a routing are to look for.
#[derive(Debug)]
pub(crate) enum Wanted {
    /// An operation of this kind, to claim it.
    Kind(OperationKind),
    /// Whatever there may be, and what became of what they run.
    Anything,
}

impl Wanted {
    /// What the workers of an operation that has changed are to look for.
    pub(crate) fn of(op: &Operation) -> Self {
        match op.status {
            OperationStatus::Queued => Self::Kind(op.kind.clone()),
            _ => Self::Anything,
        }
    }
}

/// Where nudges are left. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Nudges {
    sender: mpsc::UnboundedSender<(Routing, Wanted)>,
}

impl Nudges {
    /// Where to leave them, and the task that sends them until `stopping`, and then what is left.
    pub(crate) fn new(front: Bus) -> (Self, impl FnOnce(CancellationToken) -> BoxFuture<'static, ()>) {
        let (sender, mut left) = mpsc::unbounded_channel();
        let send = move |stopping: CancellationToken| {
            Box::pin(async move {
                while let Some(Some(first)) = stopping.run_until_cancelled(left.recv()).await {
                    send_with_others(&front, first, &mut left).await;
                    stopping.run_until_cancelled(tokio::time::sleep(REST)).await;
                }
                if let Ok(first) = left.try_recv() {
                    send_with_others(&front, first, &mut left).await;
                }
            }) as BoxFuture<'static, ()>
        };
        (Self { sender }, send)
    }

    /// Nudges the workers of a routing soon.
    pub(crate) fn send(&self, routing: Routing, wanted: Wanted) {
        // Fails only when the registry has stopped; the workers poll.
        let _stopped = self.sender.send((routing, wanted));
    }
}

/// Sends a nudge, and those that have been left by now.
async fn send_with_others(
    front: &Bus,
    first: (Routing, Wanted),
    left: &mut mpsc::UnboundedReceiver<(Routing, Wanted)>,
) {
    let mut gathered = Gathered::default();
    gathered.add(first);
    while let Ok(another) = left.try_recv() {
        gathered.add(another);
    }
    for (routing, nudge) in gathered.0 {
        let nudge = Encoding::Json.encode(&nudge.unwrap_or_default());
        if let Err(error) = front.publish(bus_subjects::wake(routing), nudge.into()).await {
            tracing::debug!(%routing, %error, "a nudge was not sent; the worker polls");
        }
    }
}

/// What is to be sent to each routing; `None` for anything.
#[derive(Default)]
struct Gathered(HashMap<Routing, Option<Nudge>>);

impl Gathered {
    fn add(&mut self, (routing, wanted): (Routing, Wanted)) {
        let nudge = self.0.entry(routing).or_insert_with(|| Some(Nudge::default()));
        match wanted {
            Wanted::Anything => *nudge = None,
            Wanted::Kind(kind) => {
                if let Some(nudge) = nudge {
                    nudge.kinds.insert(kind);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(name: &str) -> Wanted {
        Wanted::Kind(name.parse().unwrap())
    }

    #[test]
    fn of_each_routing_one_nudge_is_sent_with_all_kinds_or_for_anything() {
        let host = Routing::Host("0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11".parse().unwrap());
        let mut gathered = Gathered::default();
        for (routing, wanted) in [
            (Routing::Hub, kind("test-sleep")),
            (host, kind("copy-apply")),
            (host, Wanted::Anything),
            (Routing::Hub, kind("project-copy")),
            (Routing::Hub, kind("test-sleep")),
            (host, kind("project-backup")),
        ] {
            gathered.add((routing, wanted));
        }
        let kinds = ["project-copy", "test-sleep"].map(|name| name.parse().unwrap());
        let hub = Nudge { kinds: kinds.into() };
        assert_eq!(gathered.0, HashMap::from([(Routing::Hub, Some(hub)), (host, None)]));
    }
}
