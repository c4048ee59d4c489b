//! The HTTP admin API. Who does not send the token is told nothing, not even what there is.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use bytes::Bytes;
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::answers::{
    Accepted, BackupList, BackupListed, HealthAnswer, Refused, RestoreRequest, SetStatus, StatusSet,
};
use crate::failure::{Failure, FailureKind};
use crate::names::BackupKind;
use crate::operations::{FailureAnswer, OperationHandle, OperationState, Outcome};
use crate::service::DatabaseBackup;
use crate::store::{LATEST_RESTORED, rfc3339};

/// The paths that are served, with the methods of each.
pub(crate) const ROUTES: &[(&str, &str)] = &[
    ("POST", "/api/admin/backup"),
    ("GET", "/api/admin/backups"),
    ("PUT", "/api/admin/backup/{id}/status"),
    ("POST", "/api/admin/restore"),
    ("GET", "/api/health"),
];

/// The server of the admin API; ends when dropped.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Api {
    service: DatabaseBackup,
    started: time::OffsetDateTime,
    wait: Duration,
    token: SecretString,
}

impl AdminServer {
    /// Listens, and writes the address to the file of the settings. None where there is no token: nothing is served
    /// without one.
    ///
    /// # Errors
    ///
    /// If the address is taken, or its file cannot be written.
    pub async fn start(service: &DatabaseBackup) -> io::Result<Option<Self>> {
        let settings = service.settings();
        if settings.admin.token.expose_secret().is_empty() {
            tracing::warn!("admin.token (BACKUP_ADMIN_TOKEN) is empty: the admin API is not served");
            return Ok(None);
        }
        let listener = TcpListener::bind(settings.admin.listen).await?;
        let address = listener.local_addr()?;
        let router = router(service.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the server of the admin API has ended");
            }
        });
        if let Some(file) = settings.address_file() {
            let being_written = crate::copy::with_suffix(file, ".new");
            std::fs::write(&being_written, format!("{address}\n"))?;
            std::fs::rename(&being_written, file)?;
        }
        tracing::info!(admin.address = %address, "answering the admin API");
        Ok(Some(Self { address, task }))
    }

    /// The address listened on, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(service: DatabaseBackup) -> Router {
    let settings = service.settings();
    let api = Api {
        started: service.now(),
        wait: Duration::from_secs(settings.admin.wait_s),
        token: settings.admin.token.clone(),
        service,
    };
    let only = |methods: &'static str| move || async move { method_not_allowed(methods) };
    Router::new()
        .route("/api/admin/backup", post(take_backup).fallback(only("POST")))
        .route("/api/admin/backups", get(list_backups).fallback(only("GET")))
        .route("/api/admin/backup/{id}/status", put(set_status).fallback(only("PUT")))
        .route("/api/admin/restore", post(restore).fallback(only("POST")))
        .route("/api/health", get(health).fallback(only("GET")))
        .fallback(|| async { refuse(&Failure::new(FailureKind::NotFound, "there is no such path")) })
        .layer(middleware::from_fn_with_state(api.clone(), require_token))
        .with_state(api)
}

/// Digests are compared, and those in constant time: neither the token's content nor its length shows in the time.
fn is_token(expected: &SecretString, headers: &HeaderMap) -> bool {
    let sent = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let sent = sent.map_or("", |(_, token)| token);
    let (expected, sent) = (Sha256::digest(expected.expose_secret()), Sha256::digest(sent));
    verify_slices_are_equal(&expected, &sent).is_ok()
}

async fn require_token(State(api): State<Api>, request: Request, next: Next) -> Response {
    if is_token(&api.token, request.headers()) {
        return next.run(request).await;
    }
    let answer = Refused {
        success: false,
        error: FailureAnswer {
            code: FailureKind::CredentialsRefused,
            message: "send the admin token: Authorization: Bearer …".to_owned(),
            kept: None,
        },
    };
    let mut response = json(StatusCode::UNAUTHORIZED, &answer);
    response.headers_mut().insert(WWW_AUTHENTICATE, axum::http::HeaderValue::from_static("Bearer"));
    response
}

async fn take_backup(State(api): State<Api>, body: Bytes) -> Response {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    if let Err(refusal) = read::<Nothing>(&body) {
        return refuse(&refusal);
    }
    match api.service.begin_backup(BackupKind::Manual) {
        Ok(operation) => wait(&api, operation).await,
        Err(failure) => refuse(&failure),
    }
}

async fn list_backups(State(api): State<Api>) -> Response {
    match in_time(&api, api.service.list()).await {
        Ok(backups) => {
            let backups = backups.iter().map(BackupListed::from).collect();
            json(StatusCode::OK, &BackupList { backups })
        }
        Err(failure) => refuse(&failure),
    }
}

async fn set_status(State(api): State<Api>, Path(id): Path<String>, body: Bytes) -> Response {
    let set = async {
        let wanted: SetStatus = read(&body)?;
        if wanted.status != LATEST_RESTORED {
            let message = format!("the only status is {LATEST_RESTORED:?}");
            return Err(Failure::new(FailureKind::InvalidArgument, message));
        }
        let id = in_time(&api, api.service.set_latest_restored(&id)).await?;
        Ok(StatusSet { success: true, backup_id: id.to_string(), status: wanted.status })
    };
    match set.await {
        Ok(answer) => json(StatusCode::OK, &answer),
        Err(failure) => refuse(&failure),
    }
}

async fn restore(State(api): State<Api>, body: Bytes) -> Response {
    let begun =
        read::<RestoreRequest>(&body).and_then(|request| match (request.backup_id, request.rollback) {
            (Some(id), false) => {
                // Before the operation begins, so that what is no id is a 400 at once.
                let names = api.service.settings().names();
                let names = names.map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
                names
                    .parse(&id)
                    .map_err(|error| Failure::new(FailureKind::InvalidArgument, error.to_string()))?;
                api.service.begin_restore(id)
            }
            (None, true) => api.service.begin_rollback(),
            _ => Err(Failure::new(FailureKind::InvalidArgument, "give backupId, or rollback: true")),
        });
    match begun {
        Ok(operation) => wait(&api, operation).await,
        Err(failure) => refuse(&failure),
    }
}

/// An answer that does not wait for the bucket as long as a backup does.
async fn in_time<T>(api: &Api, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    match tokio::time::timeout(api.wait + Duration::from_secs(5), work).await {
        Ok(done) => done,
        Err(_) => {
            let message = "the object store does not answer in time";
            Err(Failure::new(FailureKind::StorageUnreachable, message))
        }
    }
}

async fn health(State(api): State<Api>) -> Response {
    let service = &api.service;
    let status = if service.require_enabled().is_err() {
        "disabled"
    } else if service.at_risk(api.started).is_some() {
        "at_risk"
    } else if service.last_failed() {
        "failed"
    } else {
        "ok"
    };
    let last = service.last_success();
    let answer = HealthAnswer {
        status: status.to_owned(),
        last_backup: last.map(rfc3339),
        age_seconds: last.map(|last| u64::try_from((service.now() - last).whole_seconds()).unwrap_or(0)),
        pending_uploads: service.pending_uploads(),
        operations: service.operations().all(),
    };
    json(StatusCode::OK, &answer)
}

/// Waits a while for the end of an operation; one that takes longer is told by its id.
async fn wait(api: &Api, mut operation: OperationHandle) -> Response {
    let ended = match tokio::time::timeout(api.wait, operation.ended()).await {
        Ok(ended) => ended,
        Err(_) => operation.now(),
    };
    match (ended.state, ended.outcome, ended.error) {
        (OperationState::Succeeded, Some(Outcome::Backup(taken)), _) => json(StatusCode::OK, &taken),
        (OperationState::Succeeded, Some(Outcome::Restore(restored)), _) => json(StatusCode::OK, &restored),
        (OperationState::Failed, _, Some(error)) => {
            let status =
                StatusCode::from_u16(error.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            json(status, &Refused { success: false, error })
        }
        _ => {
            let answer = Accepted { success: true, op: ended.op, status: "running".to_owned() };
            let mut response = json(StatusCode::ACCEPTED, &answer);
            response.headers_mut().insert(LOCATION, axum::http::HeaderValue::from_static("/api/health"));
            response
        }
    }
}

/// A body as JSON; an empty one is an empty object.
fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        Failure::new(FailureKind::InvalidArgument, format!("the body cannot be read: {error}"))
    })
}

fn refuse(failure: &Failure) -> Response {
    let status = StatusCode::from_u16(failure.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &Refused { success: false, error: failure.into() })
}

fn method_not_allowed(methods: &'static str) -> Response {
    let failure = Failure::new(FailureKind::InvalidArgument, format!("the method is {methods}"));
    let mut response =
        json(StatusCode::METHOD_NOT_ALLOWED, &Refused { success: false, error: (&failure).into() });
    response.headers_mut().insert(ALLOW, axum::http::HeaderValue::from_static(methods));
    response
}

fn json(status: StatusCode, answer: &impl Serialize) -> Response {
    match serde_json::to_vec(answer) {
        Ok(body) => (status, [(CONTENT_TYPE, "application/json")], body).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
