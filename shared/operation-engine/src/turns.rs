//! What has ended and what could be begun, told to the registry in one message: recording sixteen ends and leasing the
//! next sixteen operations costs little more than one of each.
//!
//! One turn at a time, so that what ends meanwhile goes together into the next; but a turn that takes long holds up no
//! end, and an end that did not come through is told again by itself (`finish.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bus_messages::{ClaimReply, ClaimRequest, Encoding, FinishReply, FinishRequest};
use bus_subjects::WorkSubject;
use domain_model::{BackOff, OperationKind};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::worker::{Shared, Slot, Worker, supervise};

const CLAIM_BACK_OFF: BackOff = BackOff { base: Duration::from_millis(250), cap: Duration::from_secs(5) };
/// How often others that run are let go on before the first end is told: what ends at the same moment goes together. Not
/// a time, of which the clock of the runtime has none under a millisecond.
const YIELDS: usize = 64;
/// How long ends wait for the turn before theirs.
const PATIENCE: Duration = Duration::from_millis(50);
/// Ends in one message; what is larger than [`MOST_BYTES`] never comes here.
const MOST_ENDS: usize = 64;
/// Of one end, in bytes as JSON: sixty-four of them fit into a message of 1 MiB.
pub(crate) const MOST_BYTES: usize = 12 * 1024;

/// The end of an attempt, on its way to the registry.
pub(crate) struct Ended {
    request: FinishRequest,
    /// Dropped without a word where the turn did not come through.
    answer: oneshot::Sender<FinishReply>,
    slot: Slot,
}

/// Takes the ends of a worker's attempts to its turns.
pub(crate) type Ends = mpsc::UnboundedSender<Ended>;

/// Tells the registry with the next turn, and frees the slot for it. `None` where that did not come through.
pub(crate) async fn tell(ends: &Ends, request: FinishRequest, slot: Slot) -> Option<FinishReply> {
    let (answer, answered) = oneshot::channel();
    ends.send(Ended { request, answer, slot }).ok()?;
    answered.await.ok()
}

impl Worker {
    /// Claims whenever there may be something, and tells what has ended, until it is dropped.
    pub(crate) async fn take_turns(
        &self,
        shared: &Arc<Shared>,
        running: &TaskTracker,
        mut ends: mpsc::UnboundedReceiver<Ended>,
    ) {
        let mut look_at = Instant::now();
        let mut failures = 0;
        let mut claiming: Option<(JoinHandle<Option<bool>>, Instant)> = None;
        loop {
            let mut ended = Vec::new();
            let late_at = claiming.as_ref().map(|(_, since)| *since + PATIENCE);
            let is_late = late_at.is_some_and(|late_at| late_at <= Instant::now());
            let is_claiming = claiming.is_some();
            tokio::select! {
                Some(first) = ends.recv(), if !is_claiming || is_late => ended.push(first),
                answered = answer(&mut claiming) => {
                    claiming = None;
                    failures = if answered.is_some() { 0 } else { failures + 1 };
                    look_at = Instant::now() + match answered {
                        // There may be more.
                        Some(true) => Duration::ZERO,
                        Some(false) => self.timing.poll.mul_f64(rand::random_range(0.8..=1.0)),
                        None => CLAIM_BACK_OFF.wait(failures, rand::random_range(0.5..=1.0)).min(self.timing.poll),
                    };
                    continue;
                }
                () = tokio::time::sleep_until(late_at.unwrap_or(look_at)), if is_claiming && !is_late => continue,
                () = tokio::time::sleep_until(look_at), if !is_claiming => {}
                () = shared.look.notified(), if !is_claiming => {}
            }
            gather(&mut ends, &mut ended);
            let mut yields = 0;
            while !ended.is_empty() && running.len() > ended.len() && yields < YIELDS {
                tokio::task::yield_now().await;
                gather(&mut ends, &mut ended);
                yields += 1;
            }
            let (finished, answers) = taken(ended);
            let kinds =
                if claiming.is_none() && !shared.is_ending() { self.free_slots() } else { BTreeMap::new() };
            let claims = !kinds.is_empty();
            if !claims && claiming.is_none() {
                look_at = Instant::now() + self.timing.poll;
            }
            if claims || !finished.is_empty() {
                let request = ClaimRequest {
                    worker_id: self.worker_id.clone(),
                    max: kinds.values().sum(),
                    kinds,
                    finished,
                };
                // Its own task: a claim that is under way when the worker is drained still has to be heard out, or
                // what it brings would be nobody's until its lease is over.
                let turn = running.spawn(self.turn(shared, running, request, answers));
                if claims {
                    claiming = Some((turn, Instant::now()));
                }
            }
        }
    }

    /// One message. Whether as much came as there were free slots; `None` where there was no answer.
    fn turn(
        &self,
        shared: &Arc<Shared>,
        running: &TaskTracker,
        request: ClaimRequest,
        answers: Vec<oneshot::Sender<FinishReply>>,
    ) -> impl Future<Output = Option<bool>> + Send + 'static {
        let (shared, tracker, handlers) = (Arc::clone(shared), running.clone(), Arc::clone(&self.handlers));
        let subject = WorkSubject::new(shared.caller, "claim").to_string();
        async move {
            let asked = Instant::now();
            let timeout = shared.timing.request_timeout;
            let reply: Result<ClaimReply, _> =
                shared.bus.request(subject, &request, Encoding::MessagePack, timeout).await;
            if request.max == 0 {
                // Its ends have freed slots, and maybe what others wait for; a turn that claims has looked itself.
                shared.look.notify_one();
            }
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    tracing::debug!(error = %error, "no answer to a claim");
                    return None;
                }
            };
            for (answer, reply) in answers.into_iter().zip(reply.finished) {
                // Whoever does not wait any more does not need to know.
                let _ = answer.send(reply);
            }
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

/// Adds what has ended by now.
fn gather(ends: &mut mpsc::UnboundedReceiver<Ended>, ended: &mut Vec<Ended>) {
    while ended.len() < MOST_ENDS
        && let Ok(another) = ends.try_recv()
    {
        ended.push(another);
    }
}

/// What is to be told, and who waits for the answers. Their slots are free: the operations are done, whatever comes of
/// the telling.
fn taken(ended: Vec<Ended>) -> (Vec<FinishRequest>, Vec<oneshot::Sender<FinishReply>>) {
    let told = ended.into_iter().map(|ended| {
        ended.slot.free_for_this_turn();
        (ended.request, ended.answer)
    });
    told.unzip()
}

/// The answer to the claim that is under way; never where there is none.
async fn answer(claiming: &mut Option<(JoinHandle<Option<bool>>, Instant)>) -> Option<bool> {
    match claiming {
        Some((turn, _)) => turn.await.unwrap_or(None),
        None => std::future::pending().await,
    }
}
