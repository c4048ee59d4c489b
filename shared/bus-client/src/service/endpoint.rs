use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_messages::{ApiError, Encoding, ErrorBody, ErrorCode};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{CONTENT_TYPE, ERROR, ERROR_CODE, EndpointDefinition, IncomingRequest, Reply};
use crate::headers::header_map;
use crate::{Bus, BusErrorKind, Headers};

pub(super) type Handler =
    Arc<dyn Fn(IncomingRequest) -> BoxFuture<'static, Result<Reply, ApiError>> + Send + Sync>;

/// How long a stopping endpoint waits for requests that the server sent it before it knew.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// What `$SRV.STATS` tells.
#[derive(Debug, Default)]
struct Statistics {
    requests: AtomicU64,
    errors: AtomicU64,
    too_many_requests: AtomicU64,
    processing_nanoseconds: AtomicU64,
    last_error: Mutex<String>,
}

/// Requests that are handled or wait for it, in all and of each sender: somebody who floods an endpoint takes its places,
/// and must not take those of others, too. Who asks from the service's own account is one sender.
#[derive(Debug, Default)]
struct Places {
    all: usize,
    of: HashMap<Option<String>, usize>,
}

impl Places {
    /// Takes a place, where there is one: as many wait as are handled. Who has few of them gets one all the same.
    fn take(&mut self, sender: &Option<String>, concurrency: usize) -> bool {
        let own = self.of.get(sender).copied().unwrap_or(0);
        let is_modest = own < concurrency / 4 && self.all < concurrency.saturating_mul(8);
        let room = self.all < concurrency.saturating_mul(2) || is_modest;
        if room {
            self.all += 1;
            *self.of.entry(sender.clone()).or_default() += 1;
        }
        room
    }

    fn leave(&mut self, sender: &Option<String>) {
        self.all = self.all.saturating_sub(1);
        if let Some(own) = self.of.get_mut(sender) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                self.of.remove(sender);
            }
        }
    }
}

pub(super) struct Endpoint {
    bus: Bus,
    definition: EndpointDefinition,
    handler: Handler,
    statistics: Statistics,
    places: Mutex<Places>,
    permits: Semaphore,
}

impl Endpoint {
    pub(super) fn new(bus: Bus, definition: EndpointDefinition, handler: Handler) -> Self {
        let permits = Semaphore::new(definition.concurrency);
        Self {
            bus,
            definition,
            handler,
            statistics: Statistics::default(),
            places: Mutex::default(),
            permits,
        }
    }

    /// Takes requests until it is stopped; never waits for a handler, so that nothing piles up unseen.
    pub(super) async fn run(
        self: Arc<Self>,
        mut requests: async_nats::Subscriber,
        stopping: CancellationToken,
        tasks: TaskTracker,
    ) {
        loop {
            let message = tokio::select! {
                message = requests.next() => message,
                () = stopping.cancelled() => break,
            };
            let Some(message) = message else { return };
            self.take(message, &tasks);
        }
        if requests.drain().await.is_err() {
            return;
        }
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while let Ok(Some(message)) = tokio::time::timeout_at(deadline, requests.next()).await {
            self.take(message, &tasks);
        }
    }

    fn take(self: &Arc<Self>, message: async_nats::Message, tasks: &TaskTracker) {
        // Nobody waits for the answer: a publish that went astray.
        let Some(reply_to) = message.reply.map(async_nats::Subject::into_string) else { return };
        if !bus_subjects::is_reply_subject_allowed(&reply_to) {
            tracing::warn!(
                endpoint = self.definition.name,
                bus.subject = message.subject.as_str(),
                bus.reply = reply_to,
                "refused a request that wants its answer on a subject that is no inbox"
            );
            return;
        }
        let request = IncomingRequest::new(
            message.subject.into_string(),
            Headers::new(message.headers),
            message.payload,
        );
        let endpoint = Arc::clone(self);
        let sender = request.as_ref().ok().and_then(|request| request.request_info());
        let sender = sender.map(|info| info.user.clone());
        let room = self.places().take(&sender, self.definition.concurrency);
        tasks.spawn(async move {
            endpoint.answer(request, &reply_to, room).await;
            if room {
                endpoint.places().leave(&sender);
            }
        });
    }

    fn places(&self) -> std::sync::MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(&self, request: Result<IncomingRequest, ApiError>, reply_to: &str, room: bool) {
        let started = Instant::now();
        let encoding = request.as_ref().map_or(Encoding::Json, IncomingRequest::encoding);
        let answer = match request {
            Err(error) => Err(error),
            Ok(_) if !room => {
                self.statistics.too_many_requests.fetch_add(1, Ordering::Relaxed);
                let message = "more requests than this service takes on at once: ask again in a moment";
                Err(ApiError::new(ErrorCode::TooManyRequests, message))
            }
            Ok(request) => self.handle(request).await,
        };
        let answer = match answer {
            Ok(reply) => self.send(reply_to, &reply, None).await,
            Err(error) => Err(error),
        };
        if let Err(error) = answer {
            self.note_error(&error);
            let payload = Bytes::from(encoding.encode(&ErrorBody { error: error.clone() }));
            // Where not even the error can be sent, it is logged there.
            let _ = self.send(reply_to, &Reply { encoding, payload }, Some(&error)).await;
        }
        let nanoseconds = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.statistics.processing_nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.statistics.requests.fetch_add(1, Ordering::Relaxed);
    }

    async fn handle(&self, request: IncomingRequest) -> Result<Reply, ApiError> {
        // The semaphore is never closed, so that a missing permit cannot be.
        let _permit = self.permits.acquire().await;
        let subject = request.subject().to_owned();
        let handler = AssertUnwindSafe(async { (self.handler)(request).await });
        handler.catch_unwind().await.unwrap_or_else(|panic| {
            let what = panic.downcast_ref::<&str>().copied();
            let what = what.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
            tracing::error!(
                endpoint = self.definition.name,
                bus.subject = subject,
                panic = what.unwrap_or("of unknown content"),
                "the handler of a request panicked"
            );
            Err(ApiError::new(ErrorCode::Internal, "a defect in the service, which has logged it"))
        })
    }

    /// Publishes the answer. An answer that is too large is an error for the client; anything else is logged.
    async fn send(&self, reply_to: &str, reply: &Reply, error: Option<&ApiError>) -> Result<(), ApiError> {
        let status = error.map(|error| error.status.to_string());
        let mut headers = vec![(CONTENT_TYPE, reply.encoding.content_type())];
        if let (Some(error), Some(status)) = (error, &status) {
            headers.extend([(ERROR_CODE, status.as_str()), (ERROR, error.message.as_str())]);
        }
        let sent = self.bus.publish_headers(reply_to.to_owned(), header_map(headers), reply.payload.clone());
        match sent.await {
            Ok(()) => Ok(()),
            Err(failure) if failure.kind() == BusErrorKind::TooLarge => {
                let message = format!(
                    "the answer is larger than the {} bytes that the server lets through: ask for less",
                    self.bus.max_payload()
                );
                Err(ApiError::new(ErrorCode::Internal, message))
            }
            Err(failure) => {
                tracing::warn!(endpoint = self.definition.name, error = %failure, "could not answer a request");
                Ok(())
            }
        }
    }

    fn note_error(&self, error: &ApiError) {
        self.statistics.errors.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut last) = self.statistics.last_error.lock() {
            *last = format!("{}:{}", error.status, error.message);
        }
    }

    /// Its entry in the answer to `$SRV.INFO`.
    pub(super) fn info(&self) -> Value {
        json!({
            "name": self.definition.name,
            "subject": self.definition.subject,
            "queue_group": self.definition.queue_group,
            "metadata": self.definition.metadata,
        })
    }

    /// Its entry in the answer to `$SRV.STATS`.
    pub(super) fn stats(&self) -> Value {
        let requests = self.statistics.requests.load(Ordering::Relaxed);
        let errors = self.statistics.errors.load(Ordering::Relaxed);
        let nanoseconds = self.statistics.processing_nanoseconds.load(Ordering::Relaxed);
        let last_error = self.statistics.last_error.lock().map(|last| last.clone()).unwrap_or_default();
        json!({
            "name": self.definition.name,
            "subject": self.definition.subject,
            "queue_group": self.definition.queue_group,
            "num_requests": requests,
            "num_errors": errors,
            "last_error": last_error,
            "processing_time": nanoseconds,
            "average_processing_time": nanoseconds.checked_div(requests).unwrap_or(0),
            "data": {
                "errors": errors,
                "too_many_requests": self.statistics.too_many_requests.load(Ordering::Relaxed),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_floods_an_endpoint_leaves_places_for_others() {
        let mut places = Places::default();
        let sender = |name: &str| Some(name.to_owned());
        let took =
            |places: &mut Places, name: &str| (0..1000).filter(|_| places.take(&sender(name), 16)).count();
        assert_eq!(took(&mut places, "eager"), 32);
        assert_eq!(took(&mut places, "calm"), 4, "few at a time, however many the other has");
        assert!(places.take(&None, 16));
        for _ in 0..32 {
            places.leave(&sender("eager"));
        }
        assert_eq!(took(&mut places, "calm"), 32 - 5);
        // However many senders there are, there is an end to it.
        let all: usize = (0..1000).map(|number| took(&mut places, &format!("sender-{number}"))).sum();
        assert_eq!(all, 8 * 16 - 32);
    }
}
