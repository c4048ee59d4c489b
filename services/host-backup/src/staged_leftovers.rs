//! Deletes what restores keep, once these have no other attempt: what they have replaced, where they have ended as they
//! should; what they have staged, where they were canceled, have expired or have failed for good while this host was away,
//! or are of a registry that does not know them any more.
//!
//! A host cannot know by itself: an operation that is not its own now may be so again in a minute. So it asks, and deletes
//! nothing where it gets no answer.

use std::sync::Arc;
use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::{Encoding, UnfinishedReply, UnfinishedRequest};
use bus_subjects::WorkSubject;
use domain_model::{OperationId, Routing};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use volumes::{HostRoot, VolumeErrorKind};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Operations in one message.
const MOST_OPERATIONS: usize = 1000;

/// After an attempt has ended, its end is recorded within a moment.
const A_MOMENT: Duration = Duration::from_secs(1);

/// Looks every `every`, and a moment after each time that something `has_ended`, until `stopping`. Where nothing is staged,
/// that is one look into a directory.
pub(crate) async fn run(
    bus: Bus,
    caller: Routing,
    root: HostRoot,
    every: Duration,
    has_ended: Arc<Notify>,
    stopping: CancellationToken,
) {
    loop {
        let looking = root.clone();
        match tokio::task::spawn_blocking(move || looking.kept_for_another_attempt()).await {
            Ok(Ok(staged)) if staged.is_empty() => {}
            Ok(Ok(staged)) => match nobodys(&bus, caller, &staged).await {
                Ok(nobodys) => delete(&root, nobodys).await,
                Err(error) => tracing::warn!(%error, "what is staged of restores is looked through later"),
            },
            Ok(Err(error)) => tracing::warn!(%error, "could not look what is staged of restores"),
            Err(error) => tracing::error!(%error, "looking what is staged of restores has panicked"),
        }
        let next = async {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = has_ended.notified() => tokio::time::sleep(A_MOMENT).await,
            }
        };
        if stopping.run_until_cancelled(next).await.is_none() {
            return;
        }
    }
}

async fn nobodys(bus: &Bus, caller: Routing, staged: &[Uuid]) -> Result<Vec<Uuid>, RequestError> {
    let subject = WorkSubject::new(caller, "unfinished").to_string();
    let mut nobodys = Vec::new();
    for lot in staged.chunks(MOST_OPERATIONS) {
        let request = UnfinishedRequest { op_ids: lot.iter().copied().map(OperationId::from).collect() };
        let reply: UnfinishedReply =
            bus.request(subject.clone(), &request, Encoding::MessagePack, TIMEOUT).await?;
        let wanted = |op_id: &Uuid| reply.unfinished.contains(&OperationId::from(*op_id));
        nobodys.extend(lot.iter().copied().filter(|op_id| !wanted(op_id)));
    }
    Ok(nobodys)
}

async fn delete(root: &HostRoot, nobodys: Vec<Uuid>) {
    for op_id in nobodys {
        let root = root.clone();
        match tokio::task::spawn_blocking(move || root.abandon(op_id)).await {
            Ok(Ok(true)) => {
                tracing::info!(op.id = %op_id, "deleted what was kept of an operation that is over")
            }
            Ok(Ok(false)) => {}
            // An attempt that has not noticed yet; it cleans up itself, or the next look does.
            Ok(Err(error)) if error.kind() == VolumeErrorKind::InUse => {}
            Ok(Err(error)) => tracing::warn!(op.id = %op_id, %error, "what is staged could not be deleted"),
            Err(error) => tracing::error!(op.id = %op_id, %error, "deleting what is staged has panicked"),
        }
    }
}
