//! Our side: a system of real processes, asked over the bus as anybody asks it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bus_client::Subscription;
use futures::StreamExt as _;
use serde_json::{Value, json};
use test_harness::{
    Client, ObjectStoreKind, ReadyObjectStore, SystemOptions, TestSystem, btrfs_is_available,
};

use crate::StoreKind;
use crate::peers::elapsed;

/// How long to go on without hearing of an end before looking into the operations themselves.
const LOOK_AFTER: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(1800);

/// A running system, and a client that hears the ends of operations.
pub(crate) struct MeasuredSystem {
    pub(crate) system: TestSystem,
    pub(crate) client: Client,
    states: Subscription,
}

/// An operation that has succeeded.
pub(crate) struct Done {
    /// From before the request to the word of its end.
    pub(crate) seconds: f64,
    pub(crate) result: Value,
    pub(crate) op: Value,
}

impl MeasuredSystem {
    /// Starts a system with so many hosts.
    pub(crate) async fn start(store: StoreKind, hosts: u16) -> anyhow::Result<Self> {
        Self::start_with(store, SystemOptions { hosts, ..SystemOptions::default() }).await
    }

    /// Starts one whose hosts are on btrfs, where that can be had.
    pub(crate) async fn start_on_btrfs(store: StoreKind, hosts: u16) -> anyhow::Result<Self> {
        let btrfs = btrfs_is_available();
        Self::start_with(store, SystemOptions { hosts, btrfs, ..SystemOptions::default() }).await
    }

    async fn start_with(store: StoreKind, options: SystemOptions) -> anyhow::Result<Self> {
        let object_store = match store {
            StoreKind::S3 => ObjectStoreKind::S3,
            StoreKind::Local => ObjectStoreKind::Local,
        };
        let system = TestSystem::start(SystemOptions { object_store, ..options }).await?;
        let client = system.operator().await;
        let states = client.bus().subscribe("persist.*.lro.*.state".to_owned()).await?;
        Ok(Self { system, client, states })
    }

    /// Makes a project of the first host known.
    pub(crate) async fn create_project(&self) -> anyhow::Result<String> {
        self.create_project_on(0).await
    }

    /// Makes a project of this host known.
    pub(crate) async fn create_project_on(&self, host: usize) -> anyhow::Result<String> {
        let request =
            json!({ "title": "a project of a benchmark", "host_id": self.system.host(host).to_string() });
        let reply = self.client.ask("hub", "project.create", &request).await?;
        Ok(reply["project"]["id"].as_str().context("a project has an id")?.to_owned())
    }

    /// Creates an operation of a project, and waits for its end.
    pub(crate) async fn run(&mut self, project: &str, kind: &str, input: Value) -> anyhow::Result<Done> {
        let began = Instant::now();
        let op_id = self.create(project, kind, input).await?;
        self.wait_for_all(HashMap::from([(op_id.clone(), project.to_owned())])).await?;
        let seconds = elapsed(began);
        let mut op = self.operation(project, &op_id).await?;
        ensure!(op["status"] == "succeeded", "{kind} of {project}: {op:#}");
        Ok(Done { seconds, result: op["result"].take(), op })
    }

    /// Creates operations of a project, all at once, and waits for the last. Returns the seconds from the first request to
    /// the word of the last end.
    pub(crate) async fn run_all(
        &mut self,
        project: &str,
        kind: &str,
        inputs: Vec<Value>,
    ) -> anyhow::Result<f64> {
        let began = Instant::now();
        let creating = inputs.into_iter().map(|input| self.create(project, kind, input));
        let op_ids: Vec<String> = futures::future::try_join_all(creating).await?;
        let ops = op_ids.iter().map(|op_id| (op_id.clone(), project.to_owned())).collect();
        self.wait_for_all(ops).await?;
        let seconds = elapsed(began);
        for op_id in &op_ids {
            let op = self.operation(project, op_id).await?;
            ensure!(op["status"] == "succeeded", "{op:#}");
        }
        Ok(seconds)
    }

    /// Backs up all of these projects at once, and waits for the last. Returns the seconds from the first request to the
    /// word of the last end, and the operations.
    pub(crate) async fn back_up_all(&mut self, projects: &[String]) -> anyhow::Result<(f64, Vec<Value>)> {
        let began = Instant::now();
        let creating = projects.iter().map(|project| self.create(project, "project-backup", json!({})));
        let op_ids: Vec<String> = futures::future::try_join_all(creating).await?;
        let ops: HashMap<String, String> = op_ids.into_iter().zip(projects.iter().cloned()).collect();
        self.wait_for_all(ops.clone()).await?;
        let seconds = elapsed(began);
        let mut ended = Vec::new();
        for (op_id, project) in &ops {
            let op = self.operation(project, op_id).await?;
            ensure!(op["status"] == "succeeded", "{op:#}");
            ended.push(op);
        }
        Ok((seconds, ended))
    }

    async fn create(&self, project: &str, kind: &str, input: Value) -> anyhow::Result<String> {
        let request = json!({ "kind": kind, "input": input });
        let reply = self.client.ask(format!("project-{project}"), "lro.create", &request).await?;
        Ok(reply["op"]["op_id"].as_str().context("an operation has an id")?.to_owned())
    }

    async fn operation(&self, project: &str, op_id: &str) -> anyhow::Result<Value> {
        let request = json!({ "op_id": op_id });
        let mut reply = self.client.ask(format!("project-{project}"), "lro.get", &request).await?;
        Ok(reply["op"].take())
    }

    /// Waits for the ends of operations (id and project) by their summaries on the stream, as a watcher does.
    async fn wait_for_all(&mut self, mut open: HashMap<String, String>) -> anyhow::Result<()> {
        let give_up = Instant::now() + PATIENCE;
        while !open.is_empty() {
            match tokio::time::timeout(LOOK_AFTER, self.states.next()).await {
                Ok(Some(message)) => {
                    let is_over = message.headers.get("Lro-Status").is_some_and(is_terminal);
                    if is_over && let Some(op_id) = message.subject.split('.').nth(3) {
                        open.remove(op_id);
                    }
                }
                Ok(None) => bail!("the connection to the bus has ended"),
                Err(_) => {
                    for (op_id, project) in open.clone() {
                        let op = self.operation(&project, &op_id).await?;
                        if op["status"].as_str().is_some_and(is_terminal) {
                            eprintln!("heard nothing of the end of {op_id}");
                            open.remove(&op_id);
                        }
                    }
                }
            }
            ensure!(Instant::now() < give_up, "{} operations do not end", open.len());
        }
        Ok(())
    }

    /// The object store, and the bucket that backups go to.
    pub(crate) async fn object_store(&self) -> anyhow::Result<(ReadyObjectStore, String)> {
        let reply = self.client.ask("hub", "bucket.list", &json!({})).await?;
        let bucket = reply["buckets"][0]["name"].as_str().context("there is a bucket after a backup")?;
        Ok((self.system.ready().object_store, bucket.to_owned()))
    }

    /// Requests to the object store by jobs of the first host so far; `None` where it does not count them.
    pub(crate) async fn object_store_requests(&self) -> anyhow::Result<Option<f64>> {
        let metrics = self.system.metrics("host-backup-0").await?;
        // A count that nothing was added to is not told.
        Ok(Some(metrics.value("longhaul_object_store_requests_total", &[])))
    }

    /// How many claims have given a lease so far, and the seconds that it took to answer them.
    pub(crate) async fn claims(&self) -> anyhow::Result<(f64, f64)> {
        let metrics = self.system.metrics("registry").await?;
        let count = metrics.find("longhaul_claim_seconds_count", &[]);
        let seconds = metrics.find("longhaul_claim_seconds_sum", &[]);
        count.zip(seconds).context("the registry measures claims")
    }
}

fn is_terminal(status: &str) -> bool {
    matches!(status, "succeeded" | "failed" | "canceled" | "expired")
}
