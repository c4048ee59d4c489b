//! The part of `fleet` that is about numbers of projects: what it takes to find those that are due among many, and what the
//! hub's services hold in memory for each.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bus_messages::{Encoding, ScheduleReply, ScheduleRequest};
use futures::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use test_harness::{Client, Server, Signal};
use tokio::time::Instant;

use crate::figures::{Figures, percentile};
use crate::lro::resident_megabytes;
use crate::system::MeasuredSystem;

/// Requests under way at once.
const AT_ONCE: usize = 32;
/// What the scheduler looks at in a pass.
const PASS: u32 = 100;

pub(crate) async fn measure(
    measured: &MeasuredSystem,
    known: u32,
    due: u32,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let before = memory(measured)?;
    let projects: Vec<String> = futures::stream::iter(0..known)
        .map(|_| measured.create_project())
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let hub = hub(measured).await?;
    // The first look at each gives it its turn.
    while pass(&hub).await?.1.looked_at == PASS {}
    let after = memory(measured)?;
    for ((service, before), (_, after)) in before.into_iter().zip(after) {
        figures.add(format!("fleet.memory.{service}"), after, "MB");
        figures.add(
            format!("fleet.memory_for_1000_projects.{service}"),
            (after - before) * 1000.0 / f64::from(known),
            "MB",
        );
    }

    // From here on nobody else looks.
    measured.system.signal(Server::Scheduler, Signal::STOP);
    let (window, wait) = next_minute();
    let policy = json!({ "backup_policy": { "every_s": 86_400, "window": window } });
    futures::stream::iter(projects.iter().take(due as usize))
        .map(|project| {
            let (policy, scope) = (policy.clone(), format!("project-{project}"));
            async move {
                measured.client.ask(&scope, "project.update", &policy).await?;
                measured.client.ask(&scope, "project.touch", &json!({})).await
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    // Another policy is another turn, which the next look gives.
    while pass(&hub).await?.1.looked_at > 0 {}
    tokio::time::sleep_until(wait).await;
    // What is asked for is not begun beside.
    measured.system.signal(Server::HostBackup(0), Signal::STOP);
    let (mut idle, mut busy, mut asked_for) = (Vec::new(), Vec::new(), 0);
    loop {
        let (milliseconds, reply) = pass(&hub).await?;
        asked_for += reply.scheduled;
        if reply.looked_at == 0 {
            break;
        }
        busy.push(milliseconds);
    }
    for _ in 0..50 {
        idle.push(pass(&hub).await?.0);
    }
    for server in [Server::HostBackup(0), Server::Scheduler] {
        measured.system.signal(server, Signal::CONT);
    }
    figures.add("fleet.due.asked_for", f64::from(asked_for), "backups");
    figures.add("fleet.due.pass.p50", percentile(&busy, 50.0), "ms");
    figures.add("fleet.due.pass.of_nothing.p50", percentile(&idle, 50.0), "ms");
    Ok(())
}

/// A minute that has not begun, as a window of a policy, and when it is over. There is time enough to say so to everybody.
fn next_minute() -> (String, Instant) {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let minute = (seconds + 30) / 60 + 1;
    let clock = |minute: u64| format!("{:02}:{:02}", minute / 60 % 24, minute % 60);
    let over = Duration::from_secs((minute + 1) * 60 + 1 - seconds);
    (format!("{}-{}", clock(minute), clock(minute + 1)), Instant::now() + over)
}

/// Resident memory, in MB, of the services that know of all projects.
fn memory(measured: &MeasuredSystem) -> anyhow::Result<Vec<(&'static str, f64)>> {
    let services = measured.system.ready().services;
    ["registry", "scheduler"]
        .into_iter()
        .map(|service| {
            let pid =
                services.get(service).and_then(|pids| pids.first()).context("a service has a process")?;
            Ok((service, resident_megabytes(*pid)?))
        })
        .collect()
}

/// A connection of the scheduler's.
async fn hub(measured: &MeasuredSystem) -> anyhow::Result<Client> {
    let identity = measured.system.hub_identity("scheduler")?;
    Ok(measured.system.connect_as(identity).await)
}

/// What the scheduler asks every few seconds: milliseconds, and the answer.
async fn pass(hub: &Client) -> anyhow::Result<(f64, ScheduleReply)> {
    let began = Instant::now();
    let subject = "work.v1.hub.schedule".to_owned();
    let request = ScheduleRequest { limit: PASS };
    let reply = hub.bus().request(subject, &request, Encoding::MessagePack, Duration::from_secs(60)).await?;
    Ok((began.elapsed().as_secs_f64() * 1000.0, reply))
}
