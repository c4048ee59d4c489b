use std::time::Duration;

use bus_client::Bus;
use bus_messages::{BackupPolicy, Operation};
use catalog_database::{Caps, Database, Ended, FinishOutcome, Finished, NewOperation};
use domain_model::OperationKind;

use crate::creation_limit::CreationLimit;
use crate::errors::chain;
use crate::event_limit::EventLimit;
use crate::gathering::Gathering;
use crate::metrics::RegistryMetrics;
use crate::nudges::{Nudges, Wanted};
use crate::recent_hosts::RecentHosts;
use crate::repositories::Repositories;
use crate::settings::OperationSettings;
use crate::streams::Streams;

/// What the endpoints share.
pub(crate) struct Registry {
    pub database: Database,
    /// Answers.
    pub front: Bus,
    pub nudges: Nudges,
    pub streams: Streams,
    pub repositories: Repositories,
    /// What is created; nothing where its dedupe key is in use.
    pub creations: Gathering<NewOperation, Option<Operation>>,
    pub finishes: Gathering<Finished, FinishOutcome>,
    pub settings: OperationSettings,
    /// How projects are backed up where neither they nor their accounts say otherwise.
    pub backups: BackupPolicy,
    /// Those that did not answer lately.
    pub silent_hosts: RecentHosts,
    /// Those that the catalog has just been told were heard of.
    pub heard_hosts: RecentHosts,
    pub creation_limit: CreationLimit,
    pub event_limit: EventLimit,
    /// Of the stream.
    pub replicas: u8,
    pub metrics: RegistryMetrics,
}

impl Registry {
    /// After operations were created: the stream is told, and their workers are woken when they are due.
    pub(crate) fn created(&self, ops: &[Operation]) {
        for op in ops {
            self.streams.tell_new(op);
        }
        self.count_created(ops);
        self.wake_when_due(ops);
    }

    /// Counts new operations of which the rest is done elsewhere.
    pub(crate) fn count_created<'a>(&self, ops: impl IntoIterator<Item = &'a Operation>) {
        for op in ops {
            self.metrics.created.get_or_create(&vec![("kind", op.kind.to_string())]).inc();
        }
    }

    /// After operations changed: the streams are told, and the workers with something to do are woken.
    pub(crate) fn changed(&self, ended: &Ended) {
        for op_id in ended.all().map(|op| op.op_id).chain(ended.shown.iter().copied()) {
            self.streams.tell(op_id);
        }
        let kind = ended.op.kind.to_string();
        if ended.attempt_ended {
            let status = if ended.op.waiting_for_children { "waiting" } else { ended.op.status.as_str() };
            let label = vec![("kind", kind.clone()), ("status", status.to_owned())];
            self.metrics.ended.get_or_create(&label).inc();
        }
        if ended.to_be_retried {
            self.metrics.retries.get_or_create(&vec![("kind", kind)]).inc();
        }
        self.wake_when_due(ended.all().filter(|op| !op.status.is_terminal()));
        // What waits for its key, or its cap, may be of another kind and another worker's.
        if ended.attempt_ended && (ended.op.exclusive_key.is_some() || !ended.op.status.is_terminal()) {
            self.nudges.send(ended.op.routing, Wanted::Anything);
        }
    }

    /// Nudges the workers of operations, at once or when the time of each has come. A nudge that is lost costs a
    /// worker's polling interval and nothing else; a registry that ends before that time, a sweep.
    fn wake_when_due<'a>(&self, ops: impl IntoIterator<Item = &'a Operation>) {
        for op in ops {
            let wait_s = op.not_before.seconds_since(op.updated_at);
            if wait_s <= 0.0 {
                self.nudges.send(op.routing, Wanted::of(op));
            } else if wait_s < FAR_AHEAD_S {
                let (nudges, database) = (self.nudges.clone(), self.database.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_secs_f64(wait_s) + CLOCK_MARGIN).await;
                    make_ready(&database, &nudges).await;
                });
            }
        }
    }

    /// How many operations of a kind may run.
    pub(crate) fn caps(&self, kind: &OperationKind) -> Caps {
        let caps = self.settings.caps.get(kind.as_str()).copied().unwrap_or_default();
        Caps { in_all: caps.in_all, per_caller: caps.per_host }
    }

    /// Makes ready what has come due, and nudges the workers that it is for.
    pub(crate) async fn make_ready(&self) {
        make_ready(&self.database, &self.nudges).await;
    }
}

/// What is due later than this is left to the sweep, seconds.
const FAR_AHEAD_S: f64 = 60.0;

/// The database's clock decides, and is not to be asked too early.
const CLOCK_MARGIN: Duration = Duration::from_millis(5);

/// At most so many at once.
const MOST_MADE_READY: i64 = 1000;

async fn make_ready(database: &Database, nudges: &Nudges) {
    match database.make_operations_ready(MOST_MADE_READY).await {
        Ok(routings) => {
            for routing in routings {
                nudges.send(routing, Wanted::Anything);
            }
        }
        Err(error) => {
            tracing::warn!(error = chain(&error), "could not look for operations that have come due")
        }
    }
}
