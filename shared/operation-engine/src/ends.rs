//! What has ended, told to the registry: what ends together in one message, for recording sixteen ends costs little more
//! than one.
//!
//! Its slots are free as soon as it is on its way, so that the next operations are leased while the ends are recorded. But
//! it goes between two claims: what the first of them began may have ended by then, and goes with it. An end that did not
//! come through is told again by itself (`finish.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus_messages::{ClaimReply, ClaimRequest, Encoding, FinishReply, FinishRequest};
use bus_subjects::WorkSubject;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use crate::worker::{Shared, Slot, Worker};

/// How often others that run are let go on before the first end is told: what ends at the same moment goes together. Not
/// a time, of which the clock of the runtime has none under a millisecond.
const YIELDS: usize = 64;
/// Messages whose operations need no slots any more although they are not recorded yet.
const UNDER_WAY: usize = 4;
/// How long ends wait for a claim that is under way, and for those before them. Then they go as well, and keep their slots
/// until they are recorded.
const PATIENCE: Duration = Duration::from_millis(50);
/// Ends in one message; what is larger than [`MOST_BYTES`] never comes here.
const MOST_ENDS: usize = 64;
/// Of one end, in bytes as JSON: sixty-four of them fit into a message of 1 MiB.
pub(crate) const MOST_BYTES: usize = 12 * 1024;

/// The end of an attempt, on its way to the registry.
pub(crate) struct Ended {
    request: FinishRequest,
    /// Dropped without a word where the message did not come through.
    answer: oneshot::Sender<FinishReply>,
    slot: Slot,
}

/// Takes the ends of a worker's attempts.
pub(crate) type Ends = mpsc::UnboundedSender<Ended>;

/// Tells the registry with what else has ended, and frees the slot. `None` where that did not come through.
pub(crate) async fn tell(ends: &Ends, request: FinishRequest, slot: Slot) -> Option<FinishReply> {
    let (answer, answered) = oneshot::channel();
    ends.send(Ended { request, answer, slot }).ok()?;
    answered.await.ok()
}

impl Worker {
    /// Tells what has ended, until it is dropped.
    pub(crate) async fn tell_ends(
        &self,
        shared: &Arc<Shared>,
        running: &TaskTracker,
        mut ends: mpsc::UnboundedReceiver<Ended>,
    ) {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY));
        while let Some(first) = ends.recv().await {
            let waiting = tokio::time::timeout(PATIENCE, async {
                let place = Arc::clone(&under_way).acquire_owned().await.ok();
                (place, shared.claiming.lock().await)
            });
            let (place, between_claims) = waiting.await.ok().unzip();
            let place = place.flatten();
            let mut ended = vec![first];
            gather(&mut ends, &mut ended);
            let mut yields = 0;
            while running.len() > ended.len() && yields < YIELDS {
                tokio::task::yield_now().await;
                gather(&mut ends, &mut ended);
                yields += 1;
            }
            let (mut finished, mut answers, mut slots) = (Vec::new(), Vec::new(), Vec::new());
            for Ended { request, answer, slot } in ended {
                finished.push(request);
                answers.push(answer);
                slots.push(slot);
            }
            drop(between_claims);
            let (at_once, when_recorded) = if place.is_some() { (slots, vec![]) } else { (vec![], slots) };
            let telling = self.tell_together(shared, finished, answers);
            let worker = Arc::clone(shared);
            running.spawn(async move {
                telling.await;
                drop(place);
                // Whether or not there are any: the ends have made place for others, under a cap or an exclusive key.
                free(&worker, when_recorded);
            });
            free(shared, at_once);
        }
    }

    /// One message, and its answer to those who wait for it: a claim of nothing.
    fn tell_together(
        &self,
        shared: &Arc<Shared>,
        finished: Vec<FinishRequest>,
        answers: Vec<oneshot::Sender<FinishReply>>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(shared);
        let subject = WorkSubject::new(shared.caller, "claim").to_string();
        let request =
            ClaimRequest { worker_id: self.worker_id.clone(), kinds: BTreeMap::new(), max: 0, finished };
        async move {
            let timeout = shared.timing.request_timeout;
            let reply: Result<ClaimReply, _> =
                shared.bus.request(subject, &request, Encoding::MessagePack, timeout).await;
            match reply {
                Ok(reply) => {
                    for (answer, reply) in answers.into_iter().zip(reply.finished) {
                        // Whoever does not wait any more does not need to know.
                        let _ = answer.send(reply);
                    }
                }
                Err(error) => tracing::debug!(error = %error, "no answer to ends"),
            }
        }
    }
}

/// Adds what has ended by now.
fn gather(ends: &mut mpsc::UnboundedReceiver<Ended>, ended: &mut Vec<Ended>) {
    while ended.len() < MOST_ENDS
        && let Ok(another) = ends.try_recv()
    {
        ended.push(another);
    }
}

/// Frees all of them, and then looks once for what could be begun.
fn free(shared: &Shared, slots: Vec<Slot>) {
    slots.into_iter().for_each(Slot::free_silently);
    shared.look.notify_one();
}
