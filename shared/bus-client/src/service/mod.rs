//! Endpoints of a service, as the NATS service framework (ADR-32) has them.
//!
//! Written on plain subscriptions and not on `async_nats::service`, for three reasons: that one answers
//! `$SRV.PING` to any reply subject, so that a caller could make the service write where the caller may not;
//! its error replies have no body; and it counts no error that has one.
//!
//! An endpoint handles requests concurrently, up to a bound; a few more wait, and the rest are answered
//! 429 at once, instead of piling up until the client library drops them silently.

mod discovery;
mod endpoint;
mod request;

use std::collections::BTreeMap;
use std::sync::Arc;

use bus_messages::ApiError;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::{Bus, BusError, BusErrorKind};

use discovery::Identity;
use endpoint::{Endpoint, Handler};
pub use request::{IncomingRequest, Reply, RequestInfo};

pub(crate) const CONTENT_TYPE: &str = "Content-Type";
pub(crate) const ERROR_CODE: &str = "Nats-Service-Error-Code";
pub(crate) const ERROR: &str = "Nats-Service-Error";
pub(crate) const REQUEST_INFO: &str = "Nats-Request-Info";

/// An endpoint to be served.
#[derive(Debug, Clone)]
pub struct EndpointDefinition {
    /// Its name in `nats micro info`.
    pub name: &'static str,
    /// The subject, wildcards allowed.
    pub subject: String,
    /// Of all services in this group one gets each request.
    pub queue_group: String,
    /// Shown by `nats micro info`: schemas, examples.
    pub metadata: BTreeMap<String, String>,
    /// How many requests are handled at the same time. As many more wait; the rest are answered 429.
    pub concurrency: usize,
}

/// A service being put together.
pub struct ServiceBuilder {
    bus: Bus,
    identity: Identity,
    endpoints: Vec<(EndpointDefinition, Handler)>,
}

/// A service that answers. Dropping it stops it without waiting; see [`Self::stop`].
#[derive(Debug)]
pub struct RunningService {
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl ServiceBuilder {
    pub(crate) fn new(
        bus: Bus,
        name: &str,
        version: &str,
        description: &str,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self { bus, identity: Identity::new(name, version, description, metadata), endpoints: Vec::new() }
    }

    /// Adds an endpoint. A handler's [`ApiError`] is answered as such; its panic is answered 500 and logged.
    #[must_use]
    pub fn endpoint<F, Fut>(mut self, definition: EndpointDefinition, handler: F) -> Self
    where
        F: Fn(IncomingRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        self.endpoints.push((definition, Arc::new(move |request| handler(request).boxed())));
        self
    }

    /// Subscribes every endpoint and starts to answer.
    ///
    /// # Errors
    /// [`BusErrorKind::Invalid`] for a name, version or subject that NATS does not allow or a concurrency of
    /// zero; [`BusErrorKind::Disconnected`] where there is no connection.
    pub async fn start(self) -> Result<RunningService, BusError> {
        let invalid =
            |what: &str| BusError::new("serve", &self.identity.name, BusErrorKind::Invalid).because(what);
        self.identity.check().map_err(invalid)?;
        if self.endpoints.iter().any(|(definition, _)| definition.concurrency == 0) {
            return Err(invalid("an endpoint needs a concurrency of at least 1"));
        }
        // Dropped on an early return: what was started so far ends again.
        let service = RunningService { stopping: CancellationToken::new(), tasks: TaskTracker::new() };
        let mut statistics = Vec::new();
        for (definition, handler) in self.endpoints {
            let queue_group = Some(definition.queue_group.clone());
            let requests = self.bus.subscriber("serve", definition.subject.clone(), queue_group).await?;
            let endpoint = Arc::new(Endpoint::new(self.bus.clone(), definition, handler));
            statistics.push(Arc::clone(&endpoint));
            let running = endpoint.run(requests, service.stopping.clone(), service.tasks.clone());
            service.tasks.spawn(running);
        }
        let questions = discovery::subscribe(&self.bus, &self.identity).await?;
        let answering = discovery::run(self.bus, self.identity, statistics, questions);
        service.tasks.spawn(service.stopping.clone().run_until_cancelled_owned(answering));
        Ok(service)
    }
}

impl RunningService {
    /// Takes no more requests and waits until those under way are answered.
    pub async fn stop(self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for RunningService {
    fn drop(&mut self) {
        self.stopping.cancel();
    }
}
