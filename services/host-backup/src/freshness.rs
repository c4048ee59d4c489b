//! Tells the registry which projects have changed, and how much the host has to do.

use std::collections::HashMap;
use std::time::Duration;

use backup_repository::CacheSettings;
use bus_client::{Bus, RequestError};
use bus_messages::{CacheUse, Encoding, FreshnessRequest, Nothing, ProjectGeneration};
use bus_subjects::WorkSubject;
use domain_model::Routing;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use volumes::{Generations, HostRoot};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Projects in one message.
const MOST_PROJECTS: usize = 1000;
/// How often the registry hears of the host's load, though no project has changed.
const SAY_SOMETHING: Duration = Duration::from_secs(60);
/// Looking takes at most this share of the time, however large the projects.
const REST_FOR_EACH_LOOK: u32 = 20;

/// Looks every `every` until `stopping`, less often where looking takes long.
pub(crate) async fn run(
    bus: Bus,
    caller: Routing,
    root: HostRoot,
    every: Duration,
    cache: CacheSettings,
    stopping: CancellationToken,
) {
    let mut generations = Generations::new(root);
    let mut told: HashMap<Uuid, i64> = HashMap::new();
    let mut said_at: Option<Instant> = None;
    loop {
        let began = Instant::now();
        let is_time = said_at.is_none_or(|at| at.elapsed() >= SAY_SOMETHING);
        // Every file of it is looked at, so not each time.
        let cache = is_time.then(|| cache.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = generations.read();
            (generations, read, cache.map(|cache| use_of(&cache)))
        });
        let Ok((same, read, cache)) = read.await else {
            tracing::error!("looking for changed projects has panicked; backups by schedule may be missing");
            return;
        };
        generations = same;
        match read {
            Ok(now) => match tell(&bus, caller, &mut told, now, cache).await {
                Ok(true) => said_at = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "changed projects are told later"),
            },
            Err(error) => tracing::warn!(%error, "could not look which projects have changed"),
        }
        let rest = every.max(began.elapsed() * REST_FOR_EACH_LOOK);
        if stopping.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
            return;
        }
    }
}

/// Tells what is new; whether there was anything to say.
async fn tell(
    bus: &Bus,
    caller: Routing,
    told: &mut HashMap<Uuid, i64>,
    now: HashMap<Uuid, i64>,
    cache: Option<CacheUse>,
) -> Result<bool, RequestError> {
    told.retain(|project, _| now.contains_key(project));
    let news: Vec<ProjectGeneration> = now
        .into_iter()
        .filter(|(project, generation)| told.get(project) != Some(generation))
        .map(|(project, generation)| ProjectGeneration { project_id: project.into(), generation })
        .collect();
    if news.is_empty() && cache.is_none() {
        return Ok(false);
    }
    let mut lots: Vec<&[ProjectGeneration]> = news.chunks(MOST_PROJECTS).collect();
    if lots.is_empty() {
        lots.push(&[]);
    }
    let subject = WorkSubject::new(caller, "freshness").to_string();
    for lot in lots {
        let request = FreshnessRequest {
            projects: lot.to_vec(),
            memory_pressure: pressure("memory"),
            io_pressure: pressure("io"),
            cache,
        };
        bus.request::<_, Nothing>(subject.clone(), &request, Encoding::MessagePack, TIMEOUT).await?;
        told.extend(lot.iter().map(|project| (project.project_id.as_uuid(), project.generation)));
    }
    Ok(true)
}

/// What the cache holds.
fn use_of(cache: &CacheSettings) -> CacheUse {
    CacheUse { bytes: cache.bytes_held(), limit_bytes: cache.limit_bytes }
}

/// The share of the last ten seconds, in percent, in which something waited for a resource; `None` where the kernel
/// does not tell (`CONFIG_PSI`).
fn pressure(resource: &str) -> Option<f32> {
    let text = std::fs::read_to_string(format!("/proc/pressure/{resource}")).ok()?;
    read_pressure(&text)
}

fn read_pressure(text: &str) -> Option<f32> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|field| field.strip_prefix("avg10="))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_as_the_kernel_writes_it() {
        let text = "some avg10=12.34 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(read_pressure(text), Some(12.34));
        assert_eq!(read_pressure(""), None);
    }
}
