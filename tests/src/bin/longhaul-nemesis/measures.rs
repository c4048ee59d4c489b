//! What the registries count, over all of their lives: a counter begins anew with each process.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use test_harness::TestSystem;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fleet::{Member, Role};

const EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
const COUNTERS: [&str; 4] = [
    "longhaul_refused_writes_total",
    "longhaul_lease_losses_total",
    "longhaul_events_total",
    "longhaul_relay_failures_total",
];

/// The highest number seen of each counter of each process.
#[derive(Default)]
pub(crate) struct Measures(Mutex<HashMap<(u32, &'static str), f64>>);

impl Measures {
    /// Looks on and on.
    pub(crate) async fn gather(self: Arc<Self>, system: Arc<TestSystem>, members: Arc<Vec<Member>>) {
        loop {
            tokio::time::sleep(EVERY).await;
            let mut places: Vec<(u32, String)> = members
                .iter()
                .filter(|member| member.role == Role::Registry)
                .filter_map(Member::metrics)
                .collect();
            let ready = system.ready();
            let pid = ready.services.get("registry").and_then(|pids| pids.first()).copied();
            places.extend(pid.zip(ready.metrics.get("registry").cloned()));
            for (pid, url) in places {
                // One that is down or paused is asked again in a moment.
                let Ok(Ok(text)) = tokio::time::timeout(PATIENCE, read(&url)).await else { continue };
                let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                for counter in COUNTERS {
                    let value = text.lines().filter(|line| line.starts_with(counter));
                    let value = value.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
                    let known = seen.entry((pid, counter)).or_default();
                    *known = known.max(value);
                }
            }
        }
    }

    /// Each counter, over all processes: at least so much, since a process may have died between two looks.
    pub(crate) fn totals(&self) -> BTreeMap<&'static str, f64> {
        let mut totals = BTreeMap::new();
        for ((_, counter), value) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *totals.entry(*counter).or_default() += value;
        }
        totals
    }
}

async fn read(url: &str) -> anyhow::Result<String> {
    let address = url.strip_prefix("http://").and_then(|rest| rest.split('/').next()).context("a URL")?;
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
