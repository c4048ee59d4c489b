//! Kinds that services bring along: `work.v1.hub.declare`. They are kept in the database, so that every registry knows
//! them, also after a restart, and inputs are held to the schema that came with them.

mod input_schema;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bus_client::{IncomingRequest, Reply};
use bus_messages::kinds::{self, DeclareKinds, KindDeclaration};
use bus_messages::{ApiError, CreateOperation, ErrorCode, Nothing, ProgressEvent};
use catalog_database::{Database, DatabaseError};
use domain_model::Routing;
use tokio_util::sync::CancellationToken;

use crate::api::operations;
use crate::errors::{chain, from_database};
use crate::registry::Registry;
use crate::work::caller;
use input_schema::InputSchema;

/// How often a registry looks for what was declared to another.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const MOST_KINDS: usize = 100;
const MOST_PHASES: usize = 32;
const MOST_SCHEMA_BYTES: usize = 16 * 1024;
const MOST_ATTEMPTS: u32 = 100;
const MOST_TIME_TO_LIVE_S: u32 = 90 * 24 * 3600;
/// What an attempt that is to be followed by another ends with.
const QUEUED: &str = "queued";

/// Answers `declare`. All are looked at before the first is kept.
pub(crate) async fn declare(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    if caller(&request)? != Routing::Hub {
        return Err(ApiError::new(ErrorCode::PermissionDenied, "only a service in the hub declares kinds"));
    }
    let DeclareKinds { kinds } = request.decode()?;
    if kinds.len() > MOST_KINDS {
        return Err(ApiError::invalid_argument(format!("at most {MOST_KINDS} kinds in one declaration")));
    }
    for kind in &kinds {
        check(kind)?;
    }
    for kind in &kinds {
        registry.database.declare_kind(kind).await.map_err(from_database)?;
        tracing::info!(op.kind = %kind.name, "a kind was declared");
    }
    look(&registry.database).await.map_err(from_database)?;
    Ok(request.reply(&Nothing {}))
}

/// Creates an operation, also one of a kind that was declared to another registry a moment ago.
pub(crate) async fn create(registry: Arc<Registry>, request: IncomingRequest) -> Result<Reply, ApiError> {
    let again = request.clone();
    let outcome = operations::create(Arc::clone(&registry), request).await;
    let refused = outcome.as_ref().is_err_and(|error| error.code == ErrorCode::InvalidArgument);
    if !refused || !again.decode().is_ok_and(|create: CreateOperation| kinds::find(&create.kind).is_none()) {
        return outcome;
    }
    match look(&registry.database).await {
        Ok(true) => operations::create(registry, again).await,
        Ok(false) | Err(_) => outcome,
    }
}

/// Looks now and then for what was declared to another registry.
pub(crate) async fn keep_up(registry: Arc<Registry>, stopping: CancellationToken) {
    while stopping.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
        if let Err(error) = look(&registry.database).await {
            tracing::warn!(error = chain(&error), "could not look for declared kinds");
        }
    }
}

/// Makes what is declared known to this process. Whether there is anything.
pub(crate) async fn look(database: &Database) -> Result<bool, DatabaseError> {
    let declared = database.declared_kinds().await?;
    let any = !declared.is_empty();
    for kind in declared {
        match kind.as_ref().map(|kind| (kind, InputSchema::read(&kind.input_schema))) {
            Ok((kind, Ok(schema))) => {
                let name = kind.name.clone();
                kinds::make_known(kind, Box::new(move |input| schema.check(&name, input)));
            }
            Ok((kind, Err(_))) => {
                tracing::error!(op.kind = %kind.name, "the schema of a declared kind does not read")
            }
            Err(name) => tracing::error!(op.kind = %name, "the declaration of a kind does not read"),
        }
    }
    Ok(any)
}

/// Whether a kind can be declared as it is.
fn check(kind: &KindDeclaration) -> Result<(), ApiError> {
    let refused = |why: &str| Err(ApiError::invalid_argument(format!("the kind {}: {why}", kind.name)));
    if kinds::ALL.iter().any(|built_in| built_in.name == kind.name.as_str()) {
        let message = format!("the registry is built with a kind {}; choose another name", kind.name);
        return Err(ApiError::new(ErrorCode::AlreadyExists, message));
    }
    let names: BTreeSet<&str> = kind.phases.iter().map(|phase| phase.name.as_str()).collect();
    let is_name = |name: &&str| (1..=64).contains(&name.len()) && !name.contains(char::is_whitespace);
    if !(1..=MOST_PHASES).contains(&kind.phases.len()) || names.len() < kind.phases.len() {
        return refused("it is to have 1 to 32 phases, each with a name of its own");
    }
    if !names.iter().all(is_name) || names.contains(ProgressEvent::DONE) || names.contains(QUEUED) {
        return refused("the name of a phase is one word of at most 64 bytes, and neither done nor queued");
    }
    if kind.phases.iter().any(|phase| !(1..=10_000).contains(&phase.weight)) {
        return refused("the weight of a phase is from 1 to 10000");
    }
    if !(1..=MOST_ATTEMPTS).contains(&kind.max_attempts) {
        return refused("max_attempts is from 1 to 100");
    }
    if !(1..=MOST_TIME_TO_LIVE_S).contains(&kind.time_to_live_s) {
        return refused("time_to_live_s is from 1 to 7776000");
    }
    if kind.description.len() > 1000 || kind.description.contains('\0') {
        return refused("its description has at most 1000 bytes, none of them NUL");
    }
    for schema in [&kind.input_schema, &kind.result_schema, &kind.example_input] {
        let text = schema.to_string();
        if text.len() > MOST_SCHEMA_BYTES || text.contains("\\u0000") {
            return refused("a schema or an example has at most 16 KiB, and no NUL");
        }
    }
    let schema = InputSchema::read(&kind.input_schema).map_err(|why| {
        ApiError::invalid_argument(format!("the kind {}: its input_schema: {why}", kind.name))
    })?;
    schema.check(&kind.name, &kind.example_input).map(drop)
}
