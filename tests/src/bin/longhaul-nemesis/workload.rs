//! What clients do meanwhile: operations of many shapes, asked for, asked for twice, canceled, tried again, watched. Most of
//! them only sleep, so that there are many; some do what projects are there for: backups, restores, drills, checks, prunes,
//! starts, stops and copies.
//!
//! Shapes and their order come from the seed. Each request that makes something carries a mark in its input or in its key:
//! so a request whose answer was lost is found again in the database, carried out or not.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus_client::{Bus, RequestError, WatchItem, watch};
use bus_messages::Encoding;
use bus_subjects::OperationSubject;
use domain_model::{OperationId, OperationStatus, ProjectId, Scope};
use futures::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch as channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::edits;
use crate::faults::now;
use crate::history::{Answer, Asked, Request, Watched, mark_of};
use crate::settings::Settings;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at the same moment.
const CLIENTS: usize = 64;
/// One operation of so many is watched, and so many at the same time.
const WATCHED: u64 = 6;
const MOST_WATCHERS: usize = 200;
/// Operations that wait for a day far away: their summaries are there all the time.
const WAITING: usize = 40;
const FAR_AWAY: &str = "2100-01-01T00:00:00.000Z";
/// Keys that many operations want to have.
const KEYS: usize = 12;

/// One thing that a client does.
#[derive(Debug, Clone)]
struct Task {
    scope: Scope,
    request: Value,
    /// So many clients ask for the same at the same moment.
    clients: u32,
    is_watched: bool,
    then: Then,
}

impl Task {
    fn mark(&self) -> u64 {
        let kind = self.request["kind"].as_str().unwrap_or_default();
        mark_of(kind, &self.request["input"], self.request["dedupe_key"].as_str()).unwrap_or_default()
    }
}

/// What a client does afterwards.
#[derive(Debug, Clone, Copy)]
enum Then {
    Nothing,
    Cancel { after: Duration, twice: bool },
    Retry { from_start: bool },
}

/// Makes tasks, the same ones for a seed.
struct Shapes {
    random: StdRng,
    projects: Vec<ProjectId>,
    marks: u64,
    /// What is asked for with each key.
    keys: Vec<Option<Value>>,
}

impl Shapes {
    fn sleep(&mut self, milliseconds: u64, steps: u32) -> Value {
        // Milliseconds, and in the nanoseconds behind them a number of its own.
        self.marks += 1;
        let seconds =
            (milliseconds * 1_000_000 + self.marks % 1_000_000) as f64 / crate::history::NANOSECONDS;
        json!({ "kind": "test-sleep", "input": { "seconds": seconds, "steps": steps } })
    }

    /// What a project is there for.
    fn of_project(&mut self, project: usize) -> Value {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        let note = edits::note(self.random.random_range(0..edits::NOTES));
        let brought = format!("{}{}", edits::BROUGHT, self.marks);
        let (kind, input) = match self.random.random_range(0..100) {
            0..30 => {
                return json!({ "kind": "project-backup", "input": { "tags": [mark] } });
            }
            30..38 => ("project-restore", json!({ "backup_id": "latest", "target": brought })),
            38..44 => {
                let path = format!("project/{}", edits::PLANS);
                ("project-restore", json!({ "backup_id": "latest", "path": path, "target": brought }))
            }
            44..50 => {
                let conflict = if self.random.random_bool(0.5) { "replace" } else { "keep" };
                let path = format!("project/{note}");
                ("project-restore", json!({ "backup_id": "latest", "path": path, "conflict": conflict }))
            }
            50..56 => ("project-restore", json!({ "backup_id": "latest", "dry_run": true })),
            56..62 => ("restore-drill", json!({ "backup_id": "latest" })),
            62..66 => ("restore-drill", json!({ "backup_id": "latest", "share": 0.3, "seed": self.marks })),
            66..73 => ("repo-check", json!({ "read_data_shares": self.random.random_range(0..4) })),
            73..82 => ("repo-prune", json!({})),
            82..87 => ("project-start", json!({ "backup_id": "latest" })),
            87..91 => ("project-stop", json!({})),
            _ => {
                let other = self.projects[(project + 1) % self.projects.len()];
                let path = if self.random.random_bool(0.5) { note } else { edits::PLANS.to_owned() };
                let dest = json!({ "project_id": other, "path": brought });
                ("project-copy", json!({ "src": { "path": path }, "dests": [dest] }))
            }
        };
        json!({ "kind": kind, "input": input, "dedupe_key": mark })
    }

    fn next(&mut self) -> Task {
        let mut then = Then::Nothing;
        let mut clients = 1;
        let mut scope = Scope::Hub;
        let cancel = |random: &mut StdRng| Then::Cancel {
            after: Duration::from_millis(random.random_range(0..4000)),
            twice: random.random_bool(0.3),
        };
        let milliseconds = self.random.random_range(0..400);
        let mut request = match self.random.random_range(0..1000) {
            0..400 => {
                let steps = self.random.random_range(1..=4);
                self.sleep(milliseconds, steps)
            }
            400..560 => {
                let steps = self.random.random_range(2..=20);
                self.sleep(milliseconds * 10, steps)
            }
            // Longer than a lease.
            560..575 => {
                let (seconds, steps) = (self.random.random_range(18..40), self.random.random_range(5..=80));
                self.sleep(seconds * 1000, steps)
            }
            575..665 => {
                let steps = self.random.random_range(1..=8);
                let mut request = self.sleep(milliseconds * 3, steps);
                request["input"]["fail_at_step"] = self.random.random_range(1..=steps).into();
                if self.random.random_bool(0.5) {
                    then = Then::Retry { from_start: self.random.random_bool(0.5) };
                }
                request
            }
            665..745 => {
                let steps = self.random.random_range(1..=3);
                let mut request = self.sleep(milliseconds * 3, steps);
                request["input"]["children"] = self.random.random_range(1..=6).into();
                if self.random.random_bool(0.3) {
                    then = cancel(&mut self.random);
                }
                request
            }
            745..835 => {
                then = cancel(&mut self.random);
                let steps = self.random.random_range(1..=10);
                self.sleep(milliseconds * 40, steps)
            }
            835..915 => {
                clients = self.random.random_range(1..=4);
                let key = self.random.random_range(0..KEYS);
                if self.keys[key].is_none() || self.random.random_bool(0.3) {
                    let mut request = self.sleep(milliseconds * 10, 3);
                    request["dedupe_key"] = format!("key-{key}").into();
                    self.keys[key] = Some(request);
                }
                let mut request = self.keys[key].clone().unwrap_or_default();
                if self.random.random_bool(0.2) {
                    request["force"] = true.into();
                }
                request
            }
            915..945 => {
                let mut request = self.sleep(milliseconds * 20, 4);
                request["ttl_s"] = self.random.random_range(2..40).into();
                request
            }
            945..965 => {
                let mut request = self.sleep(milliseconds, 2);
                let later = now().as_date_time() + Duration::from_secs(self.random.random_range(1..15));
                request["not_before"] = json!(domain_model::Timestamp::from(later));
                request
            }
            _ => {
                let project = self.random.random_range(0..self.projects.len());
                scope = Scope::Project(self.projects[project]);
                if self.random.random_bool(0.1) {
                    then = cancel(&mut self.random);
                }
                self.of_project(project)
            }
        };
        if self.random.random_bool(0.3) {
            request["priority"] = self.random.random_range(-100..=100).into();
        }
        let is_watched = self.random.random_range(0..WATCHED) == 0;
        Task { scope, request, clients, is_watched, then }
    }
}

/// The clients of a run.
pub(crate) struct Workload {
    buses: Vec<Bus>,
    requests: Mutex<Vec<Request>>,
    watched: Mutex<Vec<Arc<Mutex<Watched>>>>,
    watchers: AtomicUsize,
    next: AtomicUsize,
    /// How many operations are open, as somebody else counts them.
    pub(crate) open: AtomicU64,
    /// And how many of projects.
    pub(crate) open_of_projects: AtomicU64,
    running: Mutex<JoinSet<()>>,
    ending: channel::Sender<bool>,
}

impl Workload {
    pub(crate) fn new(buses: Vec<Bus>) -> Arc<Self> {
        Arc::new(Self {
            buses,
            requests: Mutex::default(),
            watched: Mutex::default(),
            watchers: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            open: AtomicU64::new(0),
            open_of_projects: AtomicU64::new(0),
            running: Mutex::default(),
            ending: channel::Sender::new(false),
        })
    }

    /// Asks on and on for so long; then lets what is under way come to its end.
    pub(crate) async fn run(self: Arc<Self>, settings: Settings, projects: Vec<ProjectId>) {
        let random = StdRng::seed_from_u64(settings.seed);
        let mut shapes = Shapes { random, projects, marks: 0, keys: vec![None; KEYS] };
        let end = Instant::now() + settings.duration;
        let clients = Arc::new(Semaphore::new(CLIENTS));
        let mut ticks = tokio::time::interval(Duration::from_secs_f64(1.0 / settings.rate));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tasks = JoinSet::new();
        for _ in 0..WAITING {
            let mut request = shapes.sleep(0, 1);
            request["not_before"] = FAR_AWAY.into();
            let (scope, then) = (Scope::Hub, Then::Nothing);
            self.create(&Task { scope, request, clients: 1, is_watched: false, then }).await;
        }
        while Instant::now() < end {
            ticks.tick().await;
            if self.open.load(Ordering::Relaxed) > settings.open {
                continue;
            }
            let Ok(Ok(room)) = tokio::time::timeout_at(end, Arc::clone(&clients).acquire_owned()).await
            else {
                break;
            };
            let (workload, task) = (Arc::clone(&self), shapes.next());
            let is_of_a_project = task.scope != Scope::Hub;
            if is_of_a_project && self.open_of_projects.load(Ordering::Relaxed) > settings.open_of_projects {
                continue;
            }
            tasks.spawn(async move {
                workload.carry_out(task).await;
                drop(room);
            });
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
        self.ending.send_replace(true);
        let mut running = std::mem::take(&mut *lock(&self.running));
        while running.join_next().await.is_some() {}
    }

    fn bus(&self) -> &Bus {
        &self.buses[self.next.fetch_add(1, Ordering::Relaxed) % self.buses.len()]
    }

    async fn carry_out(self: &Arc<Self>, task: Task) {
        let asking = (0..task.clients).map(|_| self.create(&task));
        let answers = futures::future::join_all(asking).await;
        for answer in answers {
            let Answer::Done { op_id, created: true, .. } = answer else { continue };
            if task.is_watched && self.watchers.load(Ordering::Relaxed) < MOST_WATCHERS {
                self.watch(OperationSubject { scope: task.scope, op_id });
            }
            self.then(task.scope, op_id, &task);
        }
    }

    async fn create(&self, task: &Task) -> Answer {
        let mark = task.mark();
        self.ask(task.scope, "lro.create", &task.request, Asked::Create { mark }).await
    }

    /// Asks, and remembers what became of it.
    async fn ask(&self, scope: Scope, endpoint: &str, request: &Value, asked: Asked) -> Answer {
        let subject = format!("api.v1.{scope}.{endpoint}");
        let reply: Result<Value, RequestError> =
            self.bus().request(subject, request, Encoding::Json, TIMEOUT).await;
        let answer = answer_of(reply);
        lock(&self.requests).push(Request { asked, answer: answer.clone() });
        answer
    }

    /// What comes later, and goes on while other things are asked for.
    fn then(self: &Arc<Self>, scope: Scope, op_id: OperationId, task: &Task) {
        let (workload, then) = (Arc::clone(self), task.then);
        let mark = task.mark();
        let mut running = lock(&self.running);
        match then {
            Then::Nothing => {}
            Then::Cancel { after, twice } => {
                running.spawn(async move {
                    tokio::time::sleep(after).await;
                    for _ in 0..=u32::from(twice) {
                        let request = json!({ "op_id": op_id });
                        workload.ask(scope, "lro.cancel", &request, Asked::Cancel { op_id }).await;
                    }
                });
            }
            Then::Retry { from_start } => {
                running.spawn(async move {
                    if workload.wait_for_the_end(scope, op_id).await {
                        let request = json!({ "op_id": op_id, "from_start": from_start });
                        let asked = Asked::Retry { mark, of: op_id };
                        workload.ask(scope, "lro.retry", &request, asked).await;
                    }
                });
            }
        }
    }

    /// Whether the operation has come to its end before the clients go home.
    async fn wait_for_the_end(&self, scope: Scope, op_id: OperationId) -> bool {
        let mut ending = self.ending.subscribe();
        let request = json!({ "op_id": op_id, "timeout_s": 4 });
        loop {
            let asking = self.bus().request::<_, Value>(
                format!("api.v1.{scope}.lro.wait"),
                &request,
                Encoding::Json,
                2 * TIMEOUT,
            );
            let going_home = async {
                let _ = ending.wait_for(|ending| *ending).await;
            };
            tokio::select! {
                reply = asking => match reply {
                    Ok(reply) if reply["done"] == true => return true,
                    Err(RequestError::Api(error)) if error.status == 404 => return false,
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                },
                () = going_home => return false,
            }
        }
    }

    fn watch(self: &Arc<Self>, subject: OperationSubject) {
        let since = now();
        let op_id = subject.op_id;
        let record = Watched { op_id, since, events: Vec::new(), states: Vec::new(), ended: false };
        let record = Arc::new(Mutex::new(record));
        lock(&self.watched).push(Arc::clone(&record));
        let (workload, mut items) = (Arc::clone(self), watch(self.bus(), subject));
        self.watchers.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut is_refused = false;
            while let Some(item) = items.next().await {
                let mut record = lock(&record);
                match item {
                    Ok(WatchItem::Event(event)) => record.events.push(event),
                    Ok(WatchItem::State(state)) => record.states.push((state.rev, state.status)),
                    Err(error) => {
                        eprintln!("nemesis: {error}: {}", error.cause());
                        is_refused = true;
                    }
                }
            }
            lock(&record).ended = !is_refused;
            workload.watchers.fetch_sub(1, Ordering::Relaxed);
        });
    }

    /// How many watchers still watch.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// What clients asked for so far.
    pub(crate) fn asked(&self) -> usize {
        lock(&self.requests).len()
    }

    /// What the clients have to tell.
    pub(crate) fn tell(&self) -> (Vec<Request>, Vec<Watched>) {
        let watched = lock(&self.watched).iter().map(|record| lock(record).clone()).collect();
        (lock(&self.requests).clone(), watched)
    }
}

fn answer_of(reply: Result<Value, RequestError>) -> Answer {
    match reply {
        Ok(reply) => {
            let op = &reply["op"];
            let op_id = op["op_id"].as_str().and_then(|id| id.parse().ok());
            let status = serde_json::from_value::<OperationStatus>(op["status"].clone()).ok();
            match (op_id, status) {
                (Some(op_id), Some(status)) => {
                    Answer::Done { op_id, created: reply["created"] == true, status }
                }
                _ => Answer::Unclear(format!("an answer without an operation: {reply}")),
            }
        }
        // What the service does not know itself may have happened.
        Err(RequestError::Api(error)) if error.status < 500 => {
            Answer::Refused(format!("{} {}", error.status, error.message))
        }
        Err(error @ RequestError::NoResponders { .. }) => Answer::Refused(error.to_string()),
        Err(error) => Answer::Unclear(error.to_string()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
