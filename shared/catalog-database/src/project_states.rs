//! `projects.state`: what the operations that start and stop a project say of it.

use domain_model::OperationStatus;
use sqlx::PgConnection;
use uuid::Uuid;

use crate::DatabaseError;
use crate::error::During;
use crate::operations::OperationRow;

/// What a project is in while, or after, an operation of this kind is in this state; `None` for kinds that change nothing.
fn state(kind: &str, status: OperationStatus) -> Option<&'static str> {
    use OperationStatus::{Canceled, Expired, Failed, Running, Succeeded};
    match (kind, status) {
        ("project-start", Running) => Some("starting"),
        ("project-start", Succeeded) | ("project-stop", Failed | Canceled | Expired) => Some("running"),
        ("project-stop", Running) => Some("stopping"),
        ("project-stop", Succeeded) | ("project-start", Failed | Canceled | Expired) => Some("stopped"),
        // Between two attempts, too, it is what it was in the first.
        _ => None,
    }
}

/// Whether operations of this kind change the state of their project.
pub(crate) fn depend_on(kind: &str) -> bool {
    state(kind, OperationStatus::Running).is_some()
}

/// Notes what changed operations say of their projects, in the transaction of the change.
pub(crate) async fn note(
    connection: &mut PgConnection,
    changed: &[OperationRow],
) -> Result<(), DatabaseError> {
    let (mut ids, mut states): (Vec<Uuid>, Vec<String>) = (Vec::new(), Vec::new());
    for row in changed {
        // One that never ran has changed nothing.
        let began = row.started_at.is_some();
        if let (Some(state), Some(project), true) = (state(&row.kind, row.status()?), row.scope_id, began) {
            ids.push(project);
            states.push(state.to_owned());
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "UPDATE projects SET state = said.state, updated_at = now()
         FROM unnest($1::uuid[], $2::text[]) AS said (id, state)
         WHERE projects.id = said.id AND projects.state <> said.state",
        &ids,
        &states,
    )
    .execute(connection)
    .await
    .during("note the state of projects")
    .map(drop)
}
