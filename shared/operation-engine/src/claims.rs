//! What could be begun, asked of the registry whenever there may be something: one claim at a time, so that what is
//! free when it comes back goes together into the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus_messages::{ClaimReply, ClaimRequest, Encoding};
use bus_subjects::WorkSubject;
use domain_model::{BackOff, OperationKind};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::worker::{Shared, Worker, supervise};

const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(250), cap: Duration::from_secs(5) };

impl Worker {
    /// Claims and begins, until it is dropped.
    pub(crate) async fn claim_what_there_is(&self, shared: &Arc<Shared>, running: &TaskTracker) {
        let mut look_at = Instant::now();
        let mut failures = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(look_at) => {}
                () = shared.look.notified() => {}
            }
            let claiming = Arc::clone(&shared.claiming).lock_owned().await;
            let kinds = if shared.is_ending() { BTreeMap::new() } else { self.free_slots() };
            if kinds.is_empty() {
                look_at = Instant::now() + self.timing.poll;
                continue;
            }
            // Its own task: a claim that is under way when the worker is drained still has to be heard out, or
            // what it brings would be nobody's until its lease is over.
            let claim = running.spawn(self.claim(shared, running, kinds, claiming));
            let all_came = claim.await.ok().flatten();
            failures = if all_came.is_some() { 0 } else { failures + 1 };
            look_at = Instant::now()
                + match all_came {
                    // There may be more.
                    Some(true) => Duration::ZERO,
                    Some(false) => self.timing.poll.mul_f64(rand::random_range(0.8..=1.0)),
                    None => BACK_OFF.wait(failures, rand::random_range(0.5..=1.0)).min(self.timing.poll),
                };
        }
    }

    /// One claim. Whether as much came as there were free slots; `None` where there was no answer.
    fn claim(
        &self,
        shared: &Arc<Shared>,
        running: &TaskTracker,
        kinds: BTreeMap<OperationKind, u32>,
        claiming: OwnedMutexGuard<()>,
    ) -> impl Future<Output = Option<bool>> + Send + 'static {
        let (shared, tracker, handlers) = (Arc::clone(shared), running.clone(), Arc::clone(&self.handlers));
        let subject = WorkSubject::new(shared.caller, "claim").to_string();
        let request = ClaimRequest {
            worker_id: self.worker_id.clone(),
            max: kinds.values().sum(),
            kinds,
            finished: Vec::new(),
        };
        async move {
            let _until_all_is_begun = claiming;
            let asked = Instant::now();
            let timeout = shared.timing.request_timeout;
            let reply = shared.bus.request(subject, &request, Encoding::MessagePack, timeout).await;
            let reply: ClaimReply =
                reply.inspect_err(|error| tracing::debug!(error = %error, "no answer to a claim")).ok()?;
            let all_came = u32::try_from(reply.leases.len()).is_ok_and(|count| count >= request.max);
            for lease in reply.leases {
                let Some((slots, slot)) =
                    handlers.get(&lease.op.kind).map(|slots| (slots, slots.take(&shared)))
                else {
                    tracing::error!(op.id = %lease.op.op_id, op.kind = %lease.op.kind, "claimed an operation of a kind that was not asked for");
                    continue;
                };
                tracker.spawn(supervise(Arc::clone(&shared), Arc::clone(&slots.handler), lease, asked, slot));
            }
            Some(all_came)
        }
    }

    /// How many operations of each kind could be begun; of none, where no slot is free.
    fn free_slots(&self) -> BTreeMap<OperationKind, u32> {
        let free = self.handlers.iter().map(|(kind, slots)| (kind.clone(), slots.free()));
        free.filter(|(_, free)| *free > 0).collect()
    }
}
