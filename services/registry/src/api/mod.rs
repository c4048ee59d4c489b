//! The public API, `api.v1.<scope>.<noun>.<verb>`: one file a noun, and the table of all endpoints.

pub(crate) mod accounts;
mod backups;
mod buckets;
mod copies;
mod hosts;
mod long_poll;
pub(crate) mod operations;
mod projects;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use bus_client::{Bus, BusError, EndpointDefinition, IncomingRequest, Reply, RunningService};
use bus_messages::{ApiError, ErrorCode, ProgressEvent, kinds};
use bus_subjects::ApiSubject;
use domain_model::{AccountId, HostId, ProjectId, Scope};
use tokio_util::sync::CancellationToken;

use crate::registry::Registry;
use crate::{backup_schedule, declared_kinds, work};

/// The name of the service, and of the queue group of its endpoints.
pub(crate) const SERVICE: &str = "registry";
/// Requests of one endpoint handled at the same time; a wait holds its place for up to 30 s.
const CONCURRENCY: usize = 64;
const CONCURRENT_WAITS: usize = 4096;
/// What the server says about a client of another NATS account.
const REQUEST_INFO: &str = "Nats-Request-Info";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Somebody with credentials of the control plane.
    Operator,
    /// A client of an account, which the server let through to this subject.
    Account(AccountId),
}

impl Caller {
    /// From the header that the server sets where a request comes from another NATS account. A request that has
    /// such a header, and one that does not read, is nobody's: never an operator's.
    pub(crate) fn of(request: &IncomingRequest) -> Result<Self, ApiError> {
        let comes_from_elsewhere = request.headers().get(REQUEST_INFO).is_some();
        match request.request_info().map(|info| info.user.parse()) {
            None if !comes_from_elsewhere => Ok(Self::Operator),
            Some(Ok(Scope::Account(id))) => Ok(Self::Account(id)),
            _ => Err(ApiError::new(ErrorCode::Unauthenticated, "log in with a token of an account")),
        }
    }

    /// What operations that it creates say.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Operator => "operator".to_owned(),
            Self::Account(id) => format!("account-{id}"),
        }
    }
}

fn subject(request: &IncomingRequest) -> Result<ApiSubject, ApiError> {
    request.subject().parse().map_err(ApiError::invalid_argument)
}

fn wrong_scope(scope: Scope, expected: &str) -> ApiError {
    ApiError::invalid_argument(format!("this request is about {expected}, and its subject names {scope}"))
}

fn hub(request: &IncomingRequest) -> Result<(), ApiError> {
    match subject(request)?.scope {
        Scope::Hub => Ok(()),
        other => Err(wrong_scope(other, "the hub")),
    }
}

fn project(request: &IncomingRequest) -> Result<ProjectId, ApiError> {
    match subject(request)?.scope {
        Scope::Project(id) => Ok(id),
        other => Err(wrong_scope(other, "a project")),
    }
}

fn account(request: &IncomingRequest) -> Result<AccountId, ApiError> {
    match subject(request)?.scope {
        Scope::Account(id) => Ok(id),
        other => Err(wrong_scope(other, "an account")),
    }
}

fn host(request: &IncomingRequest) -> Result<HostId, ApiError> {
    match subject(request)?.scope {
        Scope::Host(id) => Ok(id),
        other => Err(wrong_scope(other, "a host")),
    }
}

fn named(what: &str, text: &str) -> Result<(), ApiError> {
    let length = text.chars().count();
    if (1..=200).contains(&length) && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(ApiError::invalid_argument(format!(
            "{what} is to have 1 to 200 characters, none of them a control character"
        )))
    }
}

fn known_region(region: &str) -> Result<(), ApiError> {
    if hosts::REGIONS.contains(&region) {
        Ok(())
    } else {
        Err(ApiError::invalid_argument(format!(
            "{region:?} is no region: use one of {}",
            hosts::REGIONS.join(", ")
        )))
    }
}

fn page_size(limit: Option<u32>) -> Result<u32, ApiError> {
    match limit.unwrap_or(50) {
        limit @ 1..=200 => Ok(limit),
        other => Err(ApiError::invalid_argument(format!("limit is to be from 1 to 200, not {other}"))),
    }
}

fn bad_cursor() -> ApiError {
    ApiError::invalid_argument("this cursor is not one that a list gave; leave it out for the first page")
}

/// Starts every endpoint. Long polls end at `draining`.
pub(crate) async fn start(
    registry: &Arc<Registry>,
    front: &Bus,
    draining: CancellationToken,
) -> Result<RunningService, BusError> {
    let description = "Projects, buckets, backups and long-running operations";
    let service = front.service(SERVICE, env!("CARGO_PKG_VERSION"), description, BTreeMap::new());
    let endpoints = Endpoints { registry: Arc::clone(registry), service };
    let endpoints = endpoints
        .api("lro-create", create_metadata(), declared_kinds::create)
        .api("lro-get", example(r#"{"op_id":"<uuid>"}"#), operations::get)
        .api("lro-list", example(r#"{"status":"running","limit":50}"#), operations::list)
        .waiting("lro-wait", example(r#"{"op_id":"<uuid>","timeout_s":30}"#), move |registry, request| {
            long_poll::wait(registry, request, draining.clone())
        })
        .api("lro-cancel", example(r#"{"op_id":"<uuid>"}"#), operations::cancel)
        .api("lro-retry", example(r#"{"op_id":"<uuid>","from_start":false}"#), operations::retry)
        .api("lro-events", example(r#"{"op_id":"<uuid>","after_attempt":1,"after_n":0}"#), operations::events)
        .api("project-create", example(r#"{"title":"Linear algebra","host_id":"<uuid>"}"#), projects::create)
        .api("project-list", example(r#"{"limit":50}"#), projects::list)
        .api("project-get", example("{}"), projects::get)
        .api("project-status", example("{}"), projects::status)
        .api("project-update", example(r#"{"backup_policy":{"every_s":21600}}"#), projects::update)
        .api("project-touch", example("{}"), projects::touch)
        .api("project-add_collaborator", example(r#"{"account_id":"<uuid>"}"#), projects::add_collaborator)
        .api(
            "project-remove_collaborator",
            example(r#"{"account_id":"<uuid>"}"#),
            projects::remove_collaborator,
        )
        .api("backup-list", example(r#"{"limit":20}"#), backups::list)
        .api("backup-get", example(r#"{"backup_id":"<64 hex>"}"#), backups::get)
        .api("backup-update", example(r#"{"backup_id":"<64 hex>","pinned":true}"#), backups::update)
        .api("backup-ls", example(r#"{"backup_id":"<64 hex>","path":"project/src","depth":1}"#), backups::ls)
        .api("backup-find", example(r#"{"glob":"**/*.rs","backup_id":null}"#), backups::find)
        .api("backup-delete", example(r#"{"backup_id":"<64 hex>"}"#), backups::delete)
        .api("copy-list", example(r#"{"status":"pending"}"#), self::copies::list)
        .api("copy-cancel", example(r#"{"copy_id":"<uuid>"}"#), self::copies::cancel)
        .api("host-create", example(r#"{"name":"host-1","region":"weur"}"#), hosts::create)
        .api("host-list", example("{}"), hosts::list)
        .api("host-get", example("{}"), hosts::get)
        .api("host-status", example("{}"), hosts::status)
        .api("region-list", example("{}"), hosts::regions)
        .api("bucket-create", example(r#"{"region":"weur"}"#), buckets::create)
        .api("bucket-list", example("{}"), buckets::list)
        .api("bucket-get", example(r#"{"bucket_id":"<uuid>"}"#), buckets::get)
        .api("bucket-verify", example(r#"{"bucket_id":"<uuid>"}"#), buckets::verify)
        .api("bucket-disable", example(r#"{"bucket_id":"<uuid>"}"#), buckets::disable)
        .api("account-create", example(r#"{"name":"eve"}"#), accounts::create)
        .api("account-update", example(r#"{"backup_policy":{"window":"23:00-05:00"}}"#), accounts::update)
        .api("account-create_token", example(r#"{"ttl_s":86400}"#), accounts::create_token)
        .work("work-claim", work::claim)
        .work("work-progress", work::progress)
        .work("work-finish", work::finish)
        .work("work-repository", work::repository)
        .work("work-retention", work::retention)
        .work("work-freshness", backup_schedule::freshness)
        .work("work-unfinished", crate::unfinished::unfinished)
        .work("work-schedule", backup_schedule::schedule)
        .work("work-copy", crate::copies::step)
        .work("work-declare", declared_kinds::declare);
    endpoints.service.start().await
}

struct Endpoints {
    registry: Arc<Registry>,
    service: bus_client::ServiceBuilder,
}

impl Endpoints {
    fn api<F, Fut>(self, name: &'static str, metadata: BTreeMap<String, String>, handler: F) -> Self
    where
        F: Fn(Arc<Registry>, IncomingRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        self.add(name, format!("api.v1.*.{}", name.replace('-', ".")), metadata, CONCURRENCY, handler)
    }

    fn waiting<F, Fut>(self, name: &'static str, metadata: BTreeMap<String, String>, handler: F) -> Self
    where
        F: Fn(Arc<Registry>, IncomingRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        self.add(name, format!("api.v1.*.{}", name.replace('-', ".")), metadata, CONCURRENT_WAITS, handler)
    }

    fn work<F, Fut>(self, name: &'static str, handler: F) -> Self
    where
        F: Fn(Arc<Registry>, IncomingRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        self.add(name, name.replace("work-", "work.v1.*."), BTreeMap::new(), CONCURRENCY, handler)
    }

    fn add<F, Fut>(
        self,
        name: &'static str,
        subject: String,
        metadata: BTreeMap<String, String>,
        concurrency: usize,
        handler: F,
    ) -> Self
    where
        F: Fn(Arc<Registry>, IncomingRequest) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, ApiError>> + Send + 'static,
    {
        let registry = Arc::clone(&self.registry);
        let definition =
            EndpointDefinition { name, subject, queue_group: SERVICE.to_owned(), metadata, concurrency };
        let service =
            self.service.endpoint(definition, move |request| handler(Arc::clone(&registry), request));
        Self { service, ..self }
    }
}

fn example(request: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("example".to_owned(), request.to_owned())])
}

/// What `nats micro info` shows of each kind: an example, its phases, the schemas of its input and result.
fn create_metadata() -> BTreeMap<String, String> {
    let mut metadata =
        example(r#"{"kind":"project-backup","input":{"tags":["before-exam"]},"dedupe_key":"nightly"}"#);
    for kind in kinds::ALL.iter().copied().chain(kinds::all_declared()) {
        let mut phases: Vec<String> =
            kind.phases.iter().map(|phase| format!("{}:{}", phase.name, phase.weight)).collect();
        phases.push(ProgressEvent::DONE.to_owned());
        let mut add = |what: &str, text: String| metadata.insert(format!("{}.{what}", kind.name), text);
        add("description", kind.description.to_owned());
        add("example", kind.example_input.to_owned());
        add("phases", phases.join(" "));
        add("input_schema", serde_json::Value::from((kind.input_schema)()).to_string());
        add("result_schema", serde_json::Value::from((kind.result_schema)()).to_string());
    }
    metadata
}
