//! The bus: the one door to NATS.
//!
//! What goes wrong with a bus client goes wrong quietly: a request that the server refuses looks like one that
//! nobody answers, a subscription that is read too slowly loses messages without a word, a service that answers
//! to any reply subject writes where its caller may not, a watcher that joins late misses what was before it.
//! Here each of these is an error with a name, a number in the statistics, or prevented.
//!
//! - [`Bus`]: one connection; requests with typed replies and errors.
//! - [`ServiceBuilder`]: endpoints as the NATS service framework (ADR-32) has them, so that
//!   `nats micro ls|info|stats` show them.
//! - [`OperationStream`]: the JetStream stream that holds the events and summaries of operations.
//! - [`watch`]: one operation from its first event to its end, without a gap.

mod bus;
mod connection;
mod error;
mod headers;
mod operation_stream;
mod service;
mod subscription;
mod watch;

pub use bus::{Bus, RawReply};
pub use connection::{ConnectSettings, Credentials};
pub use error::{BusError, BusErrorKind, RequestError, RequestErrorKind};
pub use headers::Headers;
pub use operation_stream::{
    FencedPublish, OperationStream, PublishError, PublishErrorKind, ReconcileOutcome, StoredMessage,
};
pub use service::{EndpointDefinition, IncomingRequest, Reply, RequestInfo, RunningService, ServiceBuilder};
pub use subscription::{BusMessage, Subscription};
pub use watch::{Watch, WatchError, WatchItem, watch};
