//! The stream of events and summaries, as its writer and its readers need it.
//!
//! JetStream's API is plain requests with JSON bodies; they are made by hand here, since the ones that matter
//! (the batched direct get, which reads a ring of 256 messages in a millisecond and needs no consumer) have no
//! helper in the client library, and since a declaration is sent as the file has it.

use std::fmt;
use std::time::Duration;

use async_nats::StatusCode;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value, json};

use crate::bus::refused;
use crate::headers::{Headers, header_map, header_value};
use crate::{Bus, BusError, BusErrorKind, RequestError};

const TIMEOUT: Duration = Duration::from_secs(5);
const EXPECTED_LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
const ROLLUP: &str = "Nats-Rollup";

/// JetStream's own numbers of errors, where they matter.
mod error_number {
    pub(super) const STREAM_NOT_FOUND: u64 = 10059;
    pub(super) const WRONG_LAST_SEQUENCE: u64 = 10071;
    pub(super) const WRONG_LAST_SEQUENCE_CONSTANT: u64 = 10164;
    pub(super) const CLUSTER_NOT_AVAILABLE: u64 = 10008;
    pub(super) const INSUFFICIENT_RESOURCES: u64 = 10023;
    pub(super) const NO_RESOURCES: [u64; 2] = [CLUSTER_NOT_AVAILABLE, INSUFFICIENT_RESOURCES];
}

/// What [`OperationStream::reconcile`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReconcileOutcome {
    /// There was no such stream.
    Created,
    /// It is as declared.
    Unchanged,
    /// It was not as declared in these fields, and is now.
    Updated {
        /// Names of the declaration's fields.
        fields: Vec<String>,
    },
}

/// A message that is in the stream.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its subject.
    pub subject: String,
    /// Its number in the stream: what the next writer of the subject must have seen.
    pub sequence: u64,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
}

/// A message for the stream.
#[derive(Debug, Clone)]
pub struct FencedPublish {
    /// Its subject.
    pub subject: String,
    /// Its headers; control characters in values become spaces.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub payload: Bytes,
    /// The number of the last message on the subject, 0 where there is none: with another one there, the
    /// publish is refused. `None` for an unfenced one.
    pub expected_last_subject_sequence: Option<u64>,
    /// Whether it takes the place of all earlier messages on the subject.
    pub rollup: bool,
}

/// What a caller does about a [`PublishError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PublishErrorKind {
    /// Somebody else has written to the subject: read its last message to tell whether that was oneself.
    SequenceMismatch,
    /// No stream listens to the subject.
    NoStream,
    /// No acknowledgement: the message may or may not be stored.
    Unavailable,
    /// Refused for another reason; see the message.
    Other,
}

/// A message that is not acknowledged by the stream.
#[derive(Debug)]
pub struct PublishError {
    subject: String,
    kind: PublishErrorKind,
    source: Box<dyn std::error::Error + Send + Sync>,
}

impl PublishError {
    /// What to do about it.
    pub fn kind(&self) -> PublishErrorKind {
        self.kind
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            PublishErrorKind::SequenceMismatch => "somebody else has written in between",
            PublishErrorKind::NoStream => "no stream listens",
            PublishErrorKind::Unavailable => "no acknowledgement",
            PublishErrorKind::Other => "refused",
        };
        write!(formatter, "store {}: {what}", self.subject)
    }
}

impl std::error::Error for PublishError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// An error as JetStream's API answers it.
#[derive(Debug, Clone, serde::Deserialize, thiserror::Error)]
#[error("JetStream: {description} ({err_code})")]
struct JetStreamError {
    #[serde(default)]
    code: u16,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// The stream of all operations, [`bus_subjects::STREAM`].
#[derive(Debug, Clone)]
pub struct OperationStream {
    bus: Bus,
}

impl OperationStream {
    pub(crate) fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// Makes the stream be as declared: creates it if it is absent, updates the fields that differ, never
    /// deletes. The declaration is the configuration of a stream as `nats stream add --config` reads it.
    ///
    /// # Errors
    /// [`BusErrorKind::Invalid`] where the declaration is not of this stream; [`BusErrorKind::Other`] where
    /// JetStream refuses it, for example a change of what can never change.
    pub async fn reconcile(&self, declaration_json: &str) -> Result<ReconcileOutcome, BusError> {
        let invalid = |source: Box<dyn std::error::Error + Send + Sync>| {
            BusError::new("declare", bus_subjects::STREAM, BusErrorKind::Invalid).because(source)
        };
        let declared: Map<String, Value> =
            serde_json::from_str(declaration_json).map_err(|source| invalid(source.into()))?;
        if declared.get("name").and_then(Value::as_str) != Some(bus_subjects::STREAM) {
            return Err(invalid(format!("the declaration is not named {}", bus_subjects::STREAM).into()));
        }
        let Some(info) = self.info().await? else {
            self.api("STREAM.CREATE", &Value::Object(declared)).await?;
            return Ok(ReconcileOutcome::Created);
        };
        let mut config = info.get("config").cloned().unwrap_or_default();
        let fields: Vec<String> = declared
            .iter()
            .filter(|(name, value)| !holds(config.get(name.as_str()), value))
            .map(|(name, _)| name.clone())
            .collect();
        if fields.is_empty() {
            return Ok(ReconcileOutcome::Unchanged);
        }
        for name in &fields {
            config[name.as_str()] = declared[name].clone();
        }
        self.api("STREAM.UPDATE", &config).await?;
        Ok(ReconcileOutcome::Updated { fields })
    }

    /// The number of the last message that the stream has had, 0 before the first; `None` where there is no stream.
    ///
    /// # Errors
    /// Where JetStream does not answer.
    pub async fn last_sequence(&self) -> Result<Option<u64>, BusError> {
        let info = self.info().await?;
        Ok(info.map(|info| info["state"]["last_seq"].as_u64().unwrap_or(0)))
    }

    /// The last message on a subject. In a cluster it may come from a replica that is a moment behind.
    ///
    /// # Errors
    /// [`BusErrorKind::NoStream`] where there is no stream.
    pub async fn last(&self, subject: &str) -> Result<Option<StoredMessage>, BusError> {
        let body = Bytes::from(json!({ "last_by_subj": subject }).to_string());
        let message = self
            .bus
            .request_message(direct_get(), None, body, TIMEOUT)
            .await
            .map_err(|error| no_stream("read", subject, error))?;
        match message.status {
            None => Ok(Some(stored(message)?)),
            Some(StatusCode::NOT_FOUND) => Ok(None),
            Some(status) => Err(BusError::new("read", subject, BusErrorKind::Other)
                .because(format!("JetStream answered {status} {}", message.description.unwrap_or_default()))),
        }
    }

    /// All messages on a subject, oldest first.
    ///
    /// # Errors
    /// [`BusErrorKind::NoStream`] where there is no stream.
    pub async fn ring(&self, subject: &str) -> Result<Vec<StoredMessage>, BusError> {
        let mut ring: Vec<StoredMessage> = Vec::new();
        let mut next = 1;
        loop {
            // One answer holds no more than the server's bound in bytes; ask on until nothing is left.
            let (messages, more) = self.batch(subject, next).await?;
            let last = messages.last().map(|message| message.sequence);
            ring.extend(messages);
            match last {
                Some(sequence) if more => next = sequence + 1,
                _ => return Ok(ring),
            }
        }
    }

    /// One batched direct get: messages on the subject from a sequence on, and whether there are more.
    async fn batch(&self, subject: &str, from: u64) -> Result<(Vec<StoredMessage>, bool), BusError> {
        let error = |kind| BusError::new("read", subject, kind);
        let inbox = self.bus.new_inbox();
        let mut replies = self.bus.subscriber("read", inbox.clone(), None).await?;
        let mut refusals = self.bus.refusals();
        let body = json!({ "batch": 256, "next_by_subj": subject, "seq": from }).to_string();
        let api = direct_get();
        self.bus.publish_with_reply(&api, &inbox, Bytes::from(body)).await?;
        let mut messages = Vec::new();
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(TIMEOUT, replies.next()) => {
                    message.map_err(|_| error(BusErrorKind::TimedOut))?.ok_or_else(|| error(BusErrorKind::Disconnected))?
                }
                () = refused(&mut refusals, &api) => return Err(error(BusErrorKind::PermissionDenied)),
            };
            match message.status.map(|status| status.as_u16()) {
                None => messages.push(stored(message)?),
                // The end of the batch.
                Some(204) => {
                    let headers = Headers::new(message.headers);
                    let pending = headers.get("Nats-Num-Pending").and_then(|value| value.parse::<u64>().ok());
                    return Ok((messages, pending.unwrap_or(0) > 0));
                }
                Some(404) => return Ok((messages, false)),
                Some(503) => return Err(error(BusErrorKind::NoStream)),
                Some(status) => {
                    let description = message.description.unwrap_or_default();
                    return Err(error(BusErrorKind::Other)
                        .because(format!("JetStream answered {status} {description}")));
                }
            }
        }
    }

    /// Stores a message and waits for the acknowledgement; its number in the stream.
    ///
    /// # Errors
    /// See [`PublishErrorKind`].
    pub async fn publish(&self, message: FencedPublish) -> Result<u64, PublishError> {
        let FencedPublish { subject, headers, payload, expected_last_subject_sequence, rollup } = message;
        let mut map = header_map(headers.iter().map(|(name, value)| (*name, value.as_str())));
        if let Some(sequence) = expected_last_subject_sequence {
            map.insert(EXPECTED_LAST_SUBJECT_SEQUENCE, header_value(&sequence.to_string()));
        }
        if rollup {
            map.insert(ROLLUP, "sub");
        }
        let reply = match self.bus.request_message(subject.clone(), Some(map), payload, TIMEOUT).await {
            Ok(reply) => reply,
            Err(error) => {
                let kind = match &error {
                    RequestError::NoResponders { .. } => PublishErrorKind::NoStream,
                    RequestError::Timeout { .. } => PublishErrorKind::Unavailable,
                    RequestError::Bus(error) if error.is_retryable() => PublishErrorKind::Unavailable,
                    _ => PublishErrorKind::Other,
                };
                return Err(PublishError { subject, kind, source: error.into() });
            }
        };
        #[derive(serde::Deserialize)]
        struct Acknowledgement {
            seq: Option<u64>,
            error: Option<JetStreamError>,
        }
        match serde_json::from_slice::<Acknowledgement>(&reply.payload) {
            Ok(Acknowledgement { error: None, seq: Some(sequence) }) => Ok(sequence),
            Ok(Acknowledgement { error: Some(error), .. }) => {
                use error_number as number;
                let kind = match error.err_code {
                    number::WRONG_LAST_SEQUENCE | number::WRONG_LAST_SEQUENCE_CONSTANT => {
                        PublishErrorKind::SequenceMismatch
                    }
                    number::STREAM_NOT_FOUND => PublishErrorKind::NoStream,
                    code if number::NO_RESOURCES.contains(&code) || error.code == 503 => {
                        PublishErrorKind::Unavailable
                    }
                    _ => PublishErrorKind::Other,
                };
                Err(PublishError { subject, kind, source: error.into() })
            }
            Ok(_) => {
                let source = "the acknowledgement has no sequence".into();
                Err(PublishError { subject, kind: PublishErrorKind::Unavailable, source })
            }
            Err(source) => {
                Err(PublishError { subject, kind: PublishErrorKind::Unavailable, source: source.into() })
            }
        }
    }

    /// Deletes every message whose subject matches; how many there were.
    ///
    /// # Errors
    /// [`BusErrorKind::NoStream`] where there is no stream.
    pub async fn purge(&self, subject_filter: &str) -> Result<u64, BusError> {
        let answer = self.api("STREAM.PURGE", &json!({ "filter": subject_filter })).await?;
        Ok(answer.get("purged").and_then(Value::as_u64).unwrap_or(0))
    }

    async fn info(&self) -> Result<Option<Value>, BusError> {
        match self.api("STREAM.INFO", &Value::Null).await {
            Ok(info) => Ok(Some(info)),
            Err(error) if error.kind() == BusErrorKind::NoStream && !is_silent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One request of JetStream's API about the stream.
    async fn api(&self, verb: &'static str, body: &Value) -> Result<Value, BusError> {
        let subject = format!("$JS.API.{verb}.{}", bus_subjects::STREAM);
        let payload = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let reply = self
            .bus
            .request_message(subject.clone(), None, payload, TIMEOUT)
            .await
            .map_err(|error| no_stream("ask", &subject, error))?;
        let answer: Value = serde_json::from_slice(&reply.payload)
            .map_err(|source| BusError::new("ask", &subject, BusErrorKind::Other).because(source))?;
        let Some(error) = answer.get("error") else { return Ok(answer) };
        let error: JetStreamError = serde_json::from_value(error.clone())
            .map_err(|source| BusError::new("ask", &subject, BusErrorKind::Other).because(source))?;
        let kind = match error.err_code {
            error_number::STREAM_NOT_FOUND => BusErrorKind::NoStream,
            _ => BusErrorKind::Other,
        };
        Err(BusError::new("ask", subject, kind).because(error))
    }
}

/// Whether nobody answered at all, as against JetStream saying that there is no such stream.
fn is_silent(error: &BusError) -> bool {
    std::error::Error::source(error).is_none_or(|source| !source.is::<JetStreamError>())
}

fn direct_get() -> String {
    format!("$JS.API.DIRECT.GET.{}", bus_subjects::STREAM)
}

fn no_stream(operation: &'static str, subject: &str, error: RequestError) -> BusError {
    let kind = match &error {
        RequestError::NoResponders { .. } => BusErrorKind::NoStream,
        RequestError::Timeout { .. } => BusErrorKind::TimedOut,
        RequestError::PermissionDenied { .. } => BusErrorKind::PermissionDenied,
        RequestError::Bus(error) => error.kind(),
        RequestError::Api(_) | RequestError::Decode { .. } => BusErrorKind::Other,
    };
    BusError::new(operation, subject, kind).because(error)
}

/// A message as a direct get answers it.
fn stored(message: async_nats::Message) -> Result<StoredMessage, BusError> {
    let headers = Headers::new(message.headers);
    let subject = headers.get("Nats-Subject").map(str::to_owned);
    let sequence = headers.get("Nats-Sequence").and_then(|value| value.parse().ok());
    match (subject, sequence) {
        (Some(subject), Some(sequence)) => {
            Ok(StoredMessage { subject, sequence, headers, payload: message.payload })
        }
        _ => Err(BusError::new("read", message.subject.into_string(), BusErrorKind::Other)
            .because("the answer names no subject or no sequence")),
    }
}

/// Whether what the server has is what is declared; it may have more, such as its own metadata.
fn holds(actual: Option<&Value>, declared: &Value) -> bool {
    match (actual, declared) {
        (Some(Value::Object(actual)), Value::Object(declared)) => {
            declared.iter().all(|(name, value)| holds(actual.get(name), value))
        }
        (Some(actual), declared) => actual == declared,
        // The server leaves out what is empty.
        (None, declared) => {
            matches!(declared, Value::Null | Value::Bool(false)) || declared == 0 || declared == ""
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_holds_where_the_server_has_the_same_or_more() {
        let actual = json!({ "max_age": 5, "metadata": { "_nats.ver": "2", "a": "b" } });
        let declared =
            [json!({ "max_age": 5 }), json!({ "metadata": { "a": "b" } }), json!({ "no_ack": false })];
        for declared in declared {
            assert!(holds(Some(&actual), &declared), "{declared}");
        }
        assert!(!holds(Some(&actual), &json!({ "max_age": 6 })));
        assert!(!holds(Some(&actual), &json!({ "allow_direct": true })));
    }
}
