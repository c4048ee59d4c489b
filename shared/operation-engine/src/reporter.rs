//! The heartbeats of all running operations of a worker, in one message.
//!
//! One request at a time: two in flight could arrive in the other order, and a flood of events would become a
//! flood of requests. What was not answered is sent again with the next.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_client::Bus;
use bus_messages::{Encoding, ProgressReply, ProgressRequest};
use bus_subjects::WorkSubject;
use domain_model::{BackOff, Routing};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::attempt::{Attempt, Sent};

/// Events and checkpoints in one request, in bytes as JSON; the server lets 1 MiB through.
const REQUEST_BYTES: usize = 700 * 1024;
/// Operations in one request: their bare heartbeats and summaries have to fit beside that.
const REQUEST_OPERATIONS: usize = 50;
const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(200), cap: Duration::from_secs(2) };
/// Between two requests, however much there is to tell.
const REST: Duration = Duration::from_millis(10);
/// From one request until one for nothing but events: those of one operation wait for more of it anyway, and so go
/// together with those of others.
const REST_FROM_TELLING: Duration = Duration::from_millis(100);
/// Between two looks at everything: a nudge is most often about new work, and many come at once.
const REST_FROM_ASKING: Duration = Duration::from_millis(500);

pub(crate) struct Reporter {
    bus: Bus,
    subject: String,
    worker_id: String,
    interval: Duration,
    timeout: Duration,
    attempts: Mutex<Vec<Arc<Attempt>>>,
    pub(crate) news: Arc<Notify>,
    everything: AtomicBool,
}

impl Reporter {
    pub(crate) fn new(
        bus: Bus,
        caller: Routing,
        worker_id: String,
        interval: Duration,
        timeout: Duration,
    ) -> Self {
        Self {
            bus,
            subject: WorkSubject::new(caller, "progress").to_string(),
            worker_id,
            interval,
            timeout,
            attempts: Mutex::default(),
            news: Arc::new(Notify::new()),
            everything: AtomicBool::new(false),
        }
    }

    pub(crate) fn add(&self, attempt: Arc<Attempt>) {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).push(attempt);
        self.news.notify_one();
    }

    pub(crate) fn remove(&self, attempt: &Arc<Attempt>) {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.retain(|candidate| !Arc::ptr_eq(candidate, attempt));
    }

    /// Sends the heartbeats of all at once: this is how a running operation learns of a cancel early.
    pub(crate) fn ask_about_all(&self) {
        self.everything.store(true, Ordering::Release);
        self.news.notify_one();
    }

    /// Reports until it is dropped.
    pub(crate) async fn run(&self) {
        let mut failures = 0;
        let mut asks_at = Instant::now();
        let mut tells_at = asks_at;
        loop {
            self.wait_until_due(asks_at, tells_at).await;
            tells_at = Instant::now() + REST_FROM_TELLING;
            let everything = asks_at <= Instant::now() && self.everything.swap(false, Ordering::AcqRel);
            if everything {
                asks_at = Instant::now() + REST_FROM_ASKING;
            }
            if self.report(everything).await {
                failures = 0;
                tokio::time::sleep(REST).await;
            } else {
                failures += 1;
                tokio::time::sleep(BACK_OFF.wait(failures, rand::random())).await;
            }
        }
    }

    /// The operations that are still this worker's.
    fn held(&self) -> Vec<Arc<Attempt>> {
        let attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.iter().filter(|attempt| !attempt.lost().is_cancelled()).cloned().collect()
    }

    /// Everything is asked about from `asks_at` on, and events are told from `tells_at` on.
    async fn wait_until_due(&self, asks_at: Instant, tells_at: Instant) {
        loop {
            let now = Instant::now();
            let due_of = |attempt: &Arc<Attempt>| attempt.due(now, self.interval, Some(tells_at));
            let due = self.held().iter().map(due_of).min();
            let due =
                due.map(|due| if self.everything.load(Ordering::Acquire) { due.min(asks_at) } else { due });
            match due {
                Some(due) if due <= now => return,
                Some(due) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.news.notified() => {}
                    }
                }
                None => self.news.notified().await,
            }
        }
    }

    /// Sends what is due, and what may go along; whether all of it was answered.
    async fn report(&self, everything: bool) -> bool {
        let now = Instant::now();
        let mut attempts = self.held();
        let due = |attempt: &Arc<Attempt>| attempt.due(now, self.interval, None);
        attempts
            .retain(|attempt| everything || due(attempt) <= now || attempt.may_go_along(now, self.interval));
        // Those that have waited longest first, so that none starves where not everything fits.
        attempts.sort_by_cached_key(due);
        for attempts in attempts.chunks(REQUEST_OPERATIONS) {
            if !self.request(attempts).await {
                self.everything.fetch_or(everything, Ordering::AcqRel);
                return false;
            }
        }
        true
    }

    /// One request; whether it was answered.
    async fn request(&self, attempts: &[Arc<Attempt>]) -> bool {
        let asked = Instant::now();
        let mut left = REQUEST_BYTES;
        let mut sent: Vec<Sent> = Vec::with_capacity(attempts.len());
        for attempt in attempts {
            let (heartbeat, bytes) = attempt.heartbeat(asked, left);
            left = left.saturating_sub(bytes);
            sent.push(heartbeat);
        }
        let ops = sent.iter().map(|sent| sent.progress.clone()).collect();
        let request = ProgressRequest { worker_id: self.worker_id.clone(), ops };
        let reply = self
            .bus
            .request::<_, ProgressReply>(self.subject.clone(), &request, Encoding::MessagePack, self.timeout)
            .await;
        let answers = match &reply {
            Ok(reply) => reply.ops.as_slice(),
            Err(error) => {
                tracing::warn!(error = %error, operations = sent.len(), "the heartbeats got no answer; trying again");
                &[]
            }
        };
        for (attempt, sent) in attempts.iter().zip(sent) {
            let op_id = attempt.lease.op.op_id;
            match answers.iter().find(|answer| answer.op_id == op_id) {
                Some(answer) => attempt.answer(sent, answer, asked),
                None => attempt.unanswered(sent),
            }
        }
        reply.is_ok()
    }
}
