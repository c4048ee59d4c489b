//! A client as anybody writes one: subjects and JSON, nothing of our own types.

use std::fmt::Display;
use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::{ApiError, Encoding};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{make_tree, wait_for};

const TIMEOUT: Duration = Duration::from_secs(15);
/// How long an operation of a test may take, on a slow machine.
const PATIENCE_FOR_AN_OPERATION: Duration = Duration::from_secs(180);

/// A connection that asks the API.
#[derive(Debug, Clone)]
pub struct Client {
    bus: Bus,
}

impl Client {
    /// On this connection.
    pub fn new(bus: Bus) -> Self {
        Self { bus }
    }

    /// The connection.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Asks `api.v1.<scope>.<endpoint>`, in JSON.
    ///
    /// # Errors
    /// The refusal of the service or of the server, or that nobody answered.
    pub async fn ask(
        &self,
        scope: impl Display,
        endpoint: &str,
        request: &Value,
    ) -> Result<Value, RequestError> {
        self.ask_as(Encoding::Json, scope, endpoint, request).await
    }

    /// Asks in this encoding.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn ask_as(
        &self,
        encoding: Encoding,
        scope: impl Display,
        endpoint: &str,
        request: &Value,
    ) -> Result<Value, RequestError> {
        self.bus.request(format!("api.v1.{scope}.{endpoint}"), request, encoding, TIMEOUT).await
    }

    /// What the service answers.
    ///
    /// # Panics
    /// Where it refuses or does not answer.
    pub async fn call(&self, scope: impl Display, endpoint: &str, request: Value) -> Value {
        match self.ask(&scope, endpoint, &request).await {
            Ok(reply) => reply,
            Err(error) => panic!("{endpoint} of {scope} with {request}: {error} {error:?}"),
        }
    }

    /// The error with which the service refuses.
    ///
    /// # Panics
    /// Where it does not refuse.
    pub async fn refused(&self, scope: impl Display, endpoint: &str, request: Value) -> ApiError {
        match self.ask(&scope, endpoint, &request).await {
            Err(RequestError::Api(error)) => error,
            other => panic!("{endpoint} of {scope} with {request} was to be refused: {other:?}"),
        }
    }

    /// Makes a project of this host known, and returns its id.
    pub async fn create_project(&self, host: impl Display) -> String {
        let request = json!({ "title": "a project of a test", "host_id": host.to_string() });
        text(&self.call("hub", "project.create", request).await["project"]["id"])
    }

    /// Makes a project on the first host, with a tree of files and a persist store
    /// (subvolumes on btrfs), and returns its id.
    pub async fn create_project_with_files(&self, system: &crate::TestSystem, seed: u64) -> String {
        let project = self.create_project(system.host(0)).await;
        system.make_volume(0, &project);
        make_tree(&system.project_files(0, &project), seed);
        make_tree(&system.persist_store(0, &project), seed + 1);
        project
    }

    /// Creates an operation and returns its id.
    pub async fn create(&self, scope: impl Display, kind: &str, input: Value) -> String {
        let created = self.call(&scope, "lro.create", json!({ "kind": kind, "input": input })).await;
        text(&created["op"]["op_id"])
    }

    /// An operation as it is now.
    pub async fn operation(&self, scope: impl Display, op_id: &str) -> Value {
        self.call(scope, "lro.get", json!({ "op_id": op_id })).await["op"].take()
    }

    /// An operation when it has ended. A registry that does not answer now is waited for.
    ///
    /// # Panics
    /// Where it does not end within three minutes.
    pub async fn ended(&self, scope: impl Display, op_id: &str) -> Value {
        let give_up = Instant::now() + PATIENCE_FOR_AN_OPERATION;
        loop {
            let reply = self.ask(&scope, "lro.wait", &json!({ "op_id": op_id, "timeout_s": 5 })).await;
            match reply {
                Ok(mut reply) if reply["done"] == true => return reply["op"].take(),
                last if Instant::now() >= give_up => panic!("{op_id} of {scope} does not end: {last:?}"),
                Ok(_) => {}
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// The result of an operation when it has succeeded.
    ///
    /// # Panics
    /// Where it ends otherwise.
    pub async fn result(&self, scope: impl Display, op_id: &str) -> Value {
        let mut op = self.ended(scope, op_id).await;
        assert_eq!(op["status"], "succeeded", "{op:#}");
        op["result"].take()
    }

    /// Creates an operation of a project and returns its result.
    pub async fn done(&self, project: &str, kind: &str, input: Value) -> Value {
        let scope = format!("project-{project}");
        let op_id = self.create(&scope, kind, input).await;
        self.result(&scope, &op_id).await
    }

    /// Waits until an operation has one of these values in a field.
    pub async fn until(&self, scope: impl Display, op_id: &str, field: &str, values: &[&str]) -> Value {
        wait_for(
            &format!("{field} of {op_id} to be one of {values:?}"),
            PATIENCE_FOR_AN_OPERATION,
            || async {
                match self.ask(&scope, "lro.get", &json!({ "op_id": op_id })).await {
                    Ok(mut reply) if values.iter().any(|value| reply["op"][field] == **value) => {
                        Ok(reply["op"].take())
                    }
                    Ok(reply) => Err(format!("{:#}", reply["op"])),
                    Err(error) => Err(error.to_string()),
                }
            },
        )
        .await
    }

    /// The events of an operation that the ring still has.
    pub async fn events(&self, scope: impl Display, op_id: &str) -> Vec<Value> {
        let scope = scope.to_string();
        let mut events: Vec<Value> = Vec::new();
        let mut request = json!({ "op_id": op_id });
        loop {
            let mut reply = self.call(&scope, "lro.events", request.clone()).await;
            let page: Vec<Value> = serde_json::from_value(reply["events"].take()).expect("events are a list");
            events.extend(page);
            if reply["more"] != json!(true) {
                return events;
            }
            let last = events.last().expect("where there are more, a page has some");
            request["after_attempt"] = last["attempt"].clone();
            request["after_n"] = last["n"].clone();
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
