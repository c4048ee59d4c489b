use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::{Encoding, ScheduleReply, ScheduleRequest};
use bus_subjects::WorkSubject;
use domain_model::Routing;
use tokio_util::sync::CancellationToken;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Projects looked at in one request: all that become operations are created in one transaction, for which others wait.
const LIMIT: u32 = 100;

/// Has the registry ask for the backups that are due, every `every` until `stopping`. What is due is decided there, in
/// one transaction with the asking: any number of schedulers may do this at once.
pub(crate) async fn run(bus: &Bus, every: Duration, stopping: CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stopping.run_until_cancelled(ticks.tick()).await.is_some() {
        loop {
            match schedule(bus).await {
                Ok(reply) => {
                    if reply.scheduled > 0 {
                        tracing::info!(backups = reply.scheduled, missed = reply.missed, "asked for backups");
                    }
                    if reply.looked_at < LIMIT {
                        break;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no backups are scheduled; trying again");
                    break;
                }
            }
        }
    }
}

async fn schedule(bus: &Bus) -> Result<ScheduleReply, RequestError> {
    let subject = WorkSubject::new(Routing::Hub, "schedule").to_string();
    bus.request(subject, &ScheduleRequest { limit: LIMIT }, Encoding::MessagePack, TIMEOUT).await
}
