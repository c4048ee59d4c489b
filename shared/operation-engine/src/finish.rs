use std::time::Duration;

use bus_client::RequestError;
use bus_messages::{Encoding, FinishError, FinishReply, FinishRequest, Lease, Outcome};
use bus_subjects::WorkSubject;
use domain_model::BackOff;
use serde_json::Value;
use tokio::time::Instant;

use crate::OperationFailure;
use crate::ends;
use crate::worker::{Shared, Slot};

const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(100), cap: Duration::from_secs(2) };

/// How an attempt ended, as the registry is told; `None` where it must not be told anything.
pub(crate) fn finish_request(
    lease: &Lease,
    outcome: Result<Value, OperationFailure>,
    is_canceled: bool,
    is_stopping: bool,
    gives_way: bool,
) -> Option<FinishRequest> {
    let mut request = FinishRequest::new(lease.op.op_id, lease.attempt, lease.lease_id, Outcome::Succeeded);
    let only_stopped = (is_stopping || gives_way) && !is_canceled;
    match outcome {
        Ok(result) => request.result = Some(result),
        Err(OperationFailure::Lost) => return None,
        Err(OperationFailure::Canceled) if !only_stopped => request.outcome = Outcome::Canceled,
        // What fails while it is being stopped most likely fails because of it.
        Err(OperationFailure::Canceled | OperationFailure::Failed { retryable: true, .. })
            if only_stopped =>
        {
            request.outcome = Outcome::HandedBack;
        }
        Err(OperationFailure::HandedBack | OperationFailure::Canceled) => {
            request.outcome = Outcome::HandedBack
        }
        Err(OperationFailure::Failed { code, message, retryable }) => {
            request.outcome = Outcome::Failed;
            request.error = Some(FinishError { code, message, retryable });
        }
        Err(OperationFailure::FailedWith { code, message, result }) => {
            request.outcome = Outcome::Failed;
            request.error = Some(FinishError { code, message, retryable: false });
            request.result = Some(result);
        }
        Err(OperationFailure::WaitsForChildren { children, checkpoint }) => {
            request.outcome = Outcome::WaitsForChildren;
            request.children = children;
            request.checkpoint = checkpoint;
        }
    }
    request.gives_way = gives_way && request.outcome == Outcome::HandedBack;
    Some(request)
}

/// Tells the registry until it has recorded it, the operation is lost, or the lease is over: first with what else has
/// ended, then by itself. The same request again does no harm. A result that the registry refuses becomes a
/// failure that says so. Returns what it has recorded.
pub(crate) async fn finish(
    shared: &Shared,
    mut request: FinishRequest,
    slot: Slot,
    deadline: Instant,
) -> Option<Outcome> {
    let subject = WorkSubject::new(shared.caller, "finish").to_string();
    let mut together = (json_length(&request) <= ends::MOST_BYTES).then_some(slot);
    let mut failures = 0;
    loop {
        let reply: Result<FinishReply, RequestError> = match together.take() {
            Some(slot) => match ends::tell(&shared.ends, request.clone(), slot).await {
                Some(FinishReply { error: Some(error), .. }) => Err(RequestError::Api(error)),
                Some(reply) => Ok(reply),
                None => continue,
            },
            None => {
                let timeout = shared.timing.request_timeout;
                shared.bus.request(subject.clone(), &request, Encoding::MessagePack, timeout).await
            }
        };
        match reply {
            Ok(FinishReply { ok: true, .. }) => return Some(request.outcome),
            Ok(_) => {
                tracing::warn!(op.id = %request.op_id, outcome = ?request.outcome, "the operation was lost before its end was recorded");
                return None;
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(op.id = %request.op_id, error = %error, "the end of the operation is not recorded; trying again");
            }
            Err(error) => {
                tracing::error!(op.id = %request.op_id, outcome = ?request.outcome, error = %error, "the registry refuses the end of the operation");
                if request.outcome == Outcome::Failed && request.result.is_none() {
                    return None;
                }
                request.outcome = Outcome::Failed;
                request.gives_way = false;
                request.result = None;
                request.children.clear();
                request.checkpoint = None;
                request.error = Some(FinishError {
                    code: "outcome_refused".to_owned(),
                    message: format!("the outcome could not be recorded: {error}"),
                    retryable: false,
                });
                continue;
            }
        }
        failures += 1;
        let again = Instant::now() + BACK_OFF.wait(failures, rand::random());
        if again >= deadline {
            tracing::error!(op.id = %request.op_id, "the lease is over before the end of the operation was recorded");
            return None;
        }
        tokio::time::sleep_until(again).await;
    }
}

fn json_length(request: &FinishRequest) -> usize {
    serde_json::to_vec(request).map_or(usize::MAX, |text| text.len())
}
