//! Who looks into a backup for a client: the project's host, which has the metadata of its repository at hand, and
//! where that does not answer in time, a worker in the hub.
//!
//! The registry itself never opens a repository for that: it would hold everybody's keys and trees in one process. It
//! authorizes, grants the way in for one question, and passes the question on to a subject that only that host's
//! credentials may listen to.

use std::time::Duration;

use bus_client::RequestError;
use bus_messages::{ApiError, BrowseQuery, BrowseReply, BrowseRequest, Encoding, ErrorCode};
use bus_subjects::BrowseSubject;
use domain_model::{BackupId, ProjectId, Routing};

use crate::errors::{chain, from_database};
use crate::registry::Registry;

/// How long a host may take: a first look reads the index, and a search takes its time.
const PATIENCE_WITH_A_HOST: Duration = Duration::from_secs(5);

/// How long a worker in the hub may take.
const PATIENCE_WITH_THE_HUB: Duration = Duration::from_secs(10);

/// A host that did not answer is not asked again for so long: people would wait for it each time.
pub(crate) const SILENCE: Duration = Duration::from_secs(10);

/// What to say where an answer does not fit its question.
pub(crate) fn strange_answer() -> ApiError {
    ApiError::new(ErrorCode::Internal, "who looked into the backup answered something else")
}

/// Has somebody look into a backup, which tells the bucket.
pub(crate) async fn ask(
    registry: &Registry,
    project: ProjectId,
    backup: &BackupId,
    query: BrowseQuery,
) -> Result<BrowseReply, ApiError> {
    let place = registry.database.project_place(project).await.map_err(from_database)?;
    let place = place.ok_or_else(|| ApiError::not_found(format!("there is no project {project}")))?;
    let grant = registry.repositories.grant_to_look(project, backup).await?;
    let request = BrowseRequest { grant, query };
    let mut last = None;
    for server in [Routing::Host(place.host_id), Routing::Hub] {
        let patience = match server {
            Routing::Host(host) if registry.silent_hosts.contains(host) => continue,
            Routing::Host(_) => PATIENCE_WITH_A_HOST,
            Routing::Hub | Routing::Any => PATIENCE_WITH_THE_HUB,
        };
        let subject = BrowseSubject { server }.to_string();
        let asking = registry.front.request(subject, &request, Encoding::MessagePack, patience);
        match asking.await {
            Ok(reply) => return Ok(reply),
            Err(RequestError::Api(error)) if !error.retryable => return Err(error),
            Err(RequestError::Api(error)) => {
                tracing::warn!(%server, error = %error.message, "cannot look into a backup now");
                last = Some(error);
            }
            Err(error) => {
                tracing::warn!(%server, error = chain(&error), "nobody looked into a backup");
                if let Routing::Host(host) = server {
                    registry.silent_hosts.note(host);
                }
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        let message = "neither the project's host nor a worker in the hub answers now; try again";
        ApiError::new(ErrorCode::Unavailable, message)
    }))
}
