use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::{Stream, StreamExt};

use crate::Headers;

/// A message as a subscriber gets it.
#[derive(Debug, Clone)]
pub struct BusMessage {
    /// Where it was published.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body.
    pub payload: Bytes,
    /// Where an answer is awaited, as the sender says; a service checks that before it answers.
    pub reply: Option<String>,
}

impl From<async_nats::Message> for BusMessage {
    fn from(message: async_nats::Message) -> Self {
        Self {
            subject: message.subject.into_string(),
            headers: Headers::new(message.headers),
            payload: message.payload,
            reply: message.reply.map(async_nats::Subject::into_string),
        }
    }
}

/// The messages on a subject, from now on; goes on after a reconnect (what was published in between is
/// lost to it) and ends when the [`Bus`](crate::Bus) is drained. Dropping it unsubscribes.
#[derive(Debug)]
pub struct Subscription(async_nats::Subscriber);

impl Subscription {
    pub(crate) fn new(subscriber: async_nats::Subscriber) -> Self {
        Self(subscriber)
    }
}

impl Stream for Subscription {
    type Item = BusMessage;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<BusMessage>> {
        self.0.poll_next_unpin(context).map(|message| message.map(BusMessage::from))
    }
}
