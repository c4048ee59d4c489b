use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::RequestErrorKind;
use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use bus_messages::{Encoding, ErrorBody};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::connection::{self, ConnectionCounts, refusal_is_about};
use crate::headers::header_map;
use crate::service::{CONTENT_TYPE, ERROR_CODE};
use crate::{
    BusError, BusErrorKind, ConnectSettings, Headers, OperationStream, RequestError, ServiceBuilder,
    Subscription,
};

/// How long anything but a request may wait for the connection to take it.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to the bus. Cheap to clone; reconnects by itself, for ever.
#[derive(Debug, Clone)]
pub struct Bus {
    client: async_nats::Client,
    counts: watch::Receiver<ConnectionCounts>,
    refusals: broadcast::Sender<String>,
}

/// A reply as it came.
#[derive(Debug, Clone)]
pub struct RawReply {
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

impl Bus {
    /// Connects. Waits as long as no server answers.
    ///
    /// # Errors
    /// [`BusErrorKind::Unauthorized`] where the server refuses the credentials, [`BusErrorKind::Invalid`]
    /// where the URL does not read.
    pub async fn connect(settings: ConnectSettings) -> Result<Self, BusError> {
        let (counts_sender, counts) = watch::channel(ConnectionCounts::default());
        let (refusals, _) = broadcast::channel(64);
        let client = connection::connect(&settings, counts_sender, refusals.clone()).await?;
        Ok(Self { client, counts, refusals })
    }

    /// Whether there is a connection now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// The largest message that the server lets through, in bytes, headers included.
    pub fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Publishes on core NATS: to whoever listens now, unacknowledged. For wake-ups and the like.
    ///
    /// # Errors
    /// A malformed subject, a payload that is too large, or a connection that has been gone for so long that
    /// its buffer is full. A subject that the credentials do not allow is only logged: the server does not answer.
    pub async fn publish(&self, subject: String, payload: Bytes) -> Result<(), BusError> {
        let sending = self.client.publish(subject.clone(), payload);
        match tokio::time::timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                Err(BusError::new("publish", subject, publish_kind(source.kind())).because(source))
            }
            Err(_) => Err(BusError::new("publish", subject, BusErrorKind::Disconnected)),
        }
    }

    /// Subscribes to a subject, wildcards allowed.
    ///
    /// # Errors
    /// A malformed subject, or no connection. A subject that the credentials do not allow is only logged.
    pub async fn subscribe(&self, subject: String) -> Result<Subscription, BusError> {
        self.subscriber("subscribe", subject, None).await.map(Subscription::new)
    }

    /// Subscribes as one of a group: each message goes to one of its members.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub async fn subscribe_queue(
        &self,
        subject: String,
        queue_group: String,
    ) -> Result<Subscription, BusError> {
        self.subscriber("subscribe", subject, Some(queue_group)).await.map(Subscription::new)
    }

    pub(crate) async fn subscriber(
        &self,
        operation: &'static str,
        subject: String,
        queue_group: Option<String>,
    ) -> Result<async_nats::Subscriber, BusError> {
        let subscribing = async {
            match queue_group {
                Some(group) => self.client.queue_subscribe(subject.clone(), group).await,
                None => self.client.subscribe(subject.clone()).await,
            }
        };
        match tokio::time::timeout(SEND_TIMEOUT, subscribing).await {
            Ok(Ok(subscriber)) => Ok(subscriber),
            Ok(Err(source)) => Err(BusError::new(operation, subject, BusErrorKind::Invalid).because(source)),
            Err(_) => Err(BusError::new(operation, subject, BusErrorKind::Disconnected)),
        }
    }

    /// Asks a service, and reads its answer. Without a connection it waits for one, within `timeout`; a
    /// connection lost in the middle ends it at once, with [`BusErrorKind::Disconnected`].
    ///
    /// # Errors
    /// See [`RequestError`]; after a timeout or a disconnection the request may still be carried out.
    pub async fn request<Q: Serialize + ?Sized, A: DeserializeOwned>(
        &self,
        subject: String,
        body: &Q,
        encoding: Encoding,
        timeout: Duration,
    ) -> Result<A, RequestError> {
        let payload = Bytes::from(encoding.encode(body));
        let reply =
            self.request_raw(subject.clone(), Some(encoding.content_type()), payload, timeout).await?;
        let decode = |source| RequestError::Decode { subject: subject.clone(), source };
        let encoding = Encoding::from_content_type(reply.headers.get(CONTENT_TYPE)).map_err(decode)?;
        if reply.headers.get(ERROR_CODE).is_some() {
            let body: ErrorBody = encoding.decode(&reply.payload).map_err(decode)?;
            return Err(RequestError::Api(body.error));
        }
        encoding.decode(&reply.payload).map_err(decode)
    }

    /// Asks a service, and leaves reading the answer to the caller: an error of the service is a reply like
    /// any other, told by its header `Nats-Service-Error-Code`.
    ///
    /// # Errors
    /// As [`Self::request`], without `Api` and `Decode`.
    pub async fn request_raw(
        &self,
        subject: String,
        content_type: Option<&str>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<RawReply, RequestError> {
        let headers = content_type.map(|content_type| header_map([(CONTENT_TYPE, content_type)]));
        let message = self.request_message(subject, headers, payload, timeout).await?;
        Ok(RawReply { headers: Headers::new(message.headers), payload: message.payload })
    }

    /// One request and its reply, with the status that JetStream puts into it.
    pub(crate) async fn request_message(
        &self,
        subject: String,
        headers: Option<async_nats::HeaderMap>,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<async_nats::Message, RequestError> {
        let started = Instant::now();
        if !self.wait_until_connected(timeout).await {
            return Err(BusError::new("request", subject, BusErrorKind::Disconnected).into());
        }
        let mut refusals = self.refusals.subscribe();
        let mut counts = self.counts.clone();
        let disconnects = counts.borrow_and_update().disconnects;
        let mut request = async_nats::Request::new().payload(payload);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let rest = timeout.saturating_sub(started.elapsed());
        let request = request.timeout(Some(rest));
        let error = tokio::select! {
            reply = tokio::time::timeout(rest, self.client.send_request(subject.clone(), request)) => match reply {
                Ok(Ok(message)) => return Ok(message),
                Ok(Err(error)) => error,
                Err(_) => return Err(timed_out(subject, timeout)),
            },
            () = refused(&mut refusals, &subject) => return Err(RequestError::PermissionDenied { subject }),
            true = lost_connection(&mut counts, disconnects) => {
                return Err(BusError::new("request", subject, BusErrorKind::Disconnected).into());
            }
        };
        Err(match error.kind() {
            RequestErrorKind::NoResponders => RequestError::NoResponders { subject },
            RequestErrorKind::TimedOut => timed_out(subject, timeout),
            RequestErrorKind::InvalidSubject => {
                BusError::new("request", subject, BusErrorKind::Invalid).because(error).into()
            }
            RequestErrorKind::MaxPayloadExceeded => {
                BusError::new("request", subject, BusErrorKind::TooLarge).because(error).into()
            }
            RequestErrorKind::Other => {
                BusError::new("request", subject, BusErrorKind::Disconnected).because(error).into()
            }
        })
    }

    /// Publishes with a reply subject, for replies of many messages.
    pub(crate) async fn publish_with_reply(
        &self,
        subject: &str,
        reply: &str,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let sending = self.client.publish_with_reply(subject.to_owned(), reply.to_owned(), payload);
        match tokio::time::timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(source)) => {
                Err(BusError::new("request", subject, publish_kind(source.kind())).because(source))
            }
            Err(_) => Err(BusError::new("request", subject, BusErrorKind::Disconnected)),
        }
    }

    pub(crate) async fn publish_headers(
        &self,
        subject: String,
        headers: async_nats::HeaderMap,
        payload: Bytes,
    ) -> Result<(), BusError> {
        let sending = self.client.publish_with_headers(subject.clone(), headers, payload);
        sending
            .await
            .map_err(|source| BusError::new("answer", subject, publish_kind(source.kind())).because(source))
    }

    pub(crate) fn new_inbox(&self) -> String {
        self.client.new_inbox()
    }

    pub(crate) fn connection_counts(&self) -> watch::Receiver<ConnectionCounts> {
        self.counts.clone()
    }

    pub(crate) fn refusals(&self) -> broadcast::Receiver<String> {
        self.refusals.subscribe()
    }

    /// Waits for a connection; false if there is none in time.
    async fn wait_until_connected(&self, timeout: Duration) -> bool {
        let waiting = async {
            while !self.is_connected() {
                // The state has no signal of its own that is sure to come; it is a cheap look.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(timeout, waiting).await.is_ok()
    }

    /// A service with endpoints; start it with [`ServiceBuilder::start`]. The name is letters, digits,
    /// `-` and `_`; the version is semantic (`1.2.3`).
    pub fn service(
        &self,
        name: &str,
        version: &str,
        description: &str,
        metadata: BTreeMap<String, String>,
    ) -> ServiceBuilder {
        ServiceBuilder::new(self.clone(), name, version, description, metadata)
    }

    /// The stream of operations.
    pub fn operation_stream(&self) -> OperationStream {
        OperationStream::new(self.clone())
    }

    /// Sends what is still to be sent and closes the connection, within five seconds. Subscriptions end.
    pub async fn drain(&self) {
        let draining = async {
            if self.is_connected() {
                let _ = self.client.flush().await;
            }
            if self.client.drain().await.is_ok() {
                // Once the connection is closed, nobody takes a flush any more.
                while self.client.flush().await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        if tokio::time::timeout(SEND_TIMEOUT, draining).await.is_err() {
            tracing::warn!("the nats connection did not drain in time");
        }
    }
}

fn timed_out(subject: String, timeout: Duration) -> RequestError {
    RequestError::Timeout { subject, seconds: timeout.as_secs_f64() }
}

fn publish_kind(kind: PublishErrorKind) -> BusErrorKind {
    match kind {
        PublishErrorKind::MaxPayloadExceeded => BusErrorKind::TooLarge,
        PublishErrorKind::InvalidSubject => BusErrorKind::Invalid,
        PublishErrorKind::Send => BusErrorKind::Disconnected,
    }
}

/// Ends when the server refuses the subject.
pub(crate) async fn refused(refusals: &mut broadcast::Receiver<String>, subject: &str) {
    loop {
        match refusals.recv().await {
            Ok(message) if refusal_is_about(&message, subject) => return,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

/// True when the connection is lost; false where that can no longer be told.
async fn lost_connection(counts: &mut watch::Receiver<ConnectionCounts>, seen: u64) -> bool {
    counts.wait_for(|counts| counts.disconnects > seen).await.is_ok()
}
