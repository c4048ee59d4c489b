//! What is done to the system: a plan made from the seed, and its execution.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::ValueEnum;
use domain_model::Timestamp;
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use server_processes::Signal;
use test_harness::TestSystem;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fleet::{Member, Role, child_of, signal_launched};
use crate::proxy::Proxy;
use crate::settings::Settings;

const HOST_BACKUP: &str = "host-backup";

/// A program that is started is another one for a moment.
const UNTIL_STARTED: Duration = Duration::from_millis(300);

const BETWEEN_TWO_TRIES: Duration = Duration::from_millis(50);
/// The launcher waits at most so long before it starts a process again.
const LONGEST_RESTART: Duration = Duration::from_secs(12);
/// A registry looks for its stream every ten seconds.
const BETWEEN_TWO_LOOKS: Duration = Duration::from_secs(11);

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    KillWorker,
    /// SIGTERM: it hands its leases back.
    StopWorker,
    /// SIGSTOP for longer than its leases last, then SIGCONT.
    PauseWorker,
    KillRegistry,
    StopRegistry,
    PauseRegistry,
    KillHostBackup,
    /// SIGTERM: it hands its leases back, and leaves what it has staged to its next start.
    StopHostBackup,
    /// SIGSTOP for longer than its leases last, then SIGCONT; what its jobs do meanwhile, they do.
    PauseHostBackup,
    KillCopyApplier,
    KillNats,
    /// Killed, its store removed, started again.
    WipeNats,
    RestartPostgres,
    CrashPostgres,
    /// The store is lost, and the database away when that is noticed.
    WipeNatsAndCrashPostgres,
    CutConnections,
    DelayConnections,
    HoldConnections,
}

/// One fault of the plan.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Fault {
    /// After the beginning.
    pub(crate) at: Duration,
    pub(crate) kind: Kind,
    /// Which of those that it may hit.
    pub(crate) target: usize,
    /// Until it is over, for those that last.
    pub(crate) lasts: Duration,
    /// How long data waits.
    pub(crate) delay: Duration,
}

/// The faults of a run: of each kind (or of these alone) one, in an order of its own, and again, until the time is over.
pub(crate) fn plan(seed: u64, duration: Duration, only: &[Kind]) -> Vec<Fault> {
    let mut random = StdRng::seed_from_u64(seed ^ 0xfa17);
    let mut faults = Vec::new();
    let mut at = Duration::from_secs(2);
    loop {
        let mut kinds = if only.is_empty() { Kind::value_variants() } else { only }.to_vec();
        kinds.shuffle(&mut random);
        for kind in kinds {
            let seconds = match kind {
                Kind::PauseWorker | Kind::PauseHostBackup => {
                    Settings::LEASE.as_secs_f64() + random.random_range(2.0..8.0)
                }
                Kind::PauseRegistry => random.random_range(1.0..12.0),
                Kind::HoldConnections => random.random_range(1.0..Settings::LEASE.as_secs_f64() + 5.0),
                _ => random.random_range(2.0..10.0),
            };
            let fault = Fault {
                at,
                kind,
                target: random.random_range(0..1000),
                lasts: Duration::from_secs_f64(seconds),
                delay: Duration::from_millis(random.random_range(5..400)),
            };
            if at >= duration {
                return faults;
            }
            faults.push(fault);
            if kind == Kind::WipeNatsAndCrashPostgres {
                at += LONGEST_RESTART + BETWEEN_TWO_LOOKS;
            }
            at += Duration::from_secs_f64(random.random_range(0.5..4.5));
        }
    }
}

/// Carries a plan out.
pub(crate) struct Nemesis {
    pub(crate) system: Arc<TestSystem>,
    pub(crate) members: Arc<Vec<Member>>,
    /// Proxies of clients.
    pub(crate) clients: Arc<Proxy>,
    done: Mutex<BTreeMap<Kind, usize>>,
    in_vain: Mutex<usize>,
    wipes: Mutex<Vec<Timestamp>>,
}

impl Nemesis {
    pub(crate) fn new(system: Arc<TestSystem>, members: Arc<Vec<Member>>, clients: Arc<Proxy>) -> Self {
        Self {
            system,
            members,
            clients,
            done: Mutex::default(),
            in_vain: Mutex::default(),
            wipes: Mutex::default(),
        }
    }

    /// How many faults of each kind there were, and how many met nobody.
    pub(crate) fn counts(&self) -> (BTreeMap<Kind, usize>, usize) {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (done, *self.in_vain.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the store of nats-server was lost.
    pub(crate) fn wipes(&self) -> Vec<Timestamp> {
        self.wipes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what the plan says, and ends all that lasts at the end of `duration`.
    pub(crate) async fn run(self: Arc<Self>, plan: Vec<Fault>, duration: Duration) {
        let end = Instant::now() + duration;
        let began = Instant::now();
        let mut lasting = JoinSet::new();
        for fault in plan {
            tokio::time::sleep_until(began + fault.at).await;
            if Instant::now() >= end {
                break;
            }
            let seconds = began.elapsed().as_secs_f64();
            eprintln!("nemesis: {seconds:>6.1} s  {:?} {}", fault.kind, self.name(&fault));
            let kind = fault.kind;
            if self.begin(&fault).await {
                let until = end.min(Instant::now() + fault.lasts);
                *self.done.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
                let nemesis = Arc::clone(&self);
                lasting.spawn(async move {
                    tokio::time::sleep_until(until).await;
                    nemesis.end(&fault);
                });
            } else {
                *self.in_vain.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
        }
        tokio::time::sleep_until(end).await;
        while lasting.join_next().await.is_some() {}
        self.calm();
    }

    /// Ends everything that may still last.
    fn calm(&self) {
        for proxy in self.proxies() {
            proxy.delay(Duration::ZERO);
            proxy.hold(false);
        }
        for member in self.members.iter() {
            member.signal(Signal::CONT);
        }
        for program in ["scheduler", "registry", HOST_BACKUP] {
            signal_launched(self.system.ready().pid, program, Signal::CONT);
        }
    }

    fn proxies(&self) -> Vec<&Proxy> {
        let of_members =
            self.members.iter().flat_map(|member| [Some(&member.nats), member.postgres.as_ref()]);
        of_members.flatten().chain([&*self.clients]).collect()
    }

    fn of_role(&self, role: Role) -> Vec<&Member> {
        self.members.iter().filter(|member| member.role == role).collect()
    }

    /// Signals one of a role: the launcher's own, or one of ours.
    fn signal(&self, role: Role, target: usize, signal: Signal) -> bool {
        let members = self.of_role(role);
        match target % (members.len() + 1) {
            0 => {
                let program = if role == Role::Worker { "scheduler" } else { "registry" };
                signal_launched(self.system.ready().pid, program, signal)
            }
            number => members[number - 1].signal(signal),
        }
    }

    fn name(&self, fault: &Fault) -> String {
        let of = |role, first: &str| {
            let members = self.of_role(role);
            match fault.target % (members.len() + 1) {
                0 => first.to_owned(),
                number => members[number - 1].name.clone(),
            }
        };
        match fault.kind {
            Kind::KillWorker | Kind::StopWorker => of(Role::Worker, "scheduler"),
            Kind::KillRegistry | Kind::StopRegistry => of(Role::Registry, "registry"),
            Kind::PauseHostBackup => format!("{:?}", fault.lasts),
            Kind::PauseWorker => format!("{}, {:?}", of(Role::Worker, "scheduler"), fault.lasts),
            Kind::PauseRegistry => format!("{}, {:?}", of(Role::Registry, "registry"), fault.lasts),
            Kind::CutConnections => format!("{}", fault.target % self.proxies().len()),
            Kind::DelayConnections => {
                format!("{}, {:?} for {:?}", fault.target % self.proxies().len(), fault.delay, fault.lasts)
            }
            Kind::HoldConnections => format!("{}, {:?}", fault.target % self.proxies().len(), fault.lasts),
            _ => String::new(),
        }
    }

    /// Whether it met somebody. Who is just being started again is waited for: a fault that meets nobody is none.
    async fn begin(&self, fault: &Fault) -> bool {
        let give_up = Instant::now() + LONGEST_RESTART;
        while let Some(is_met) = self.send(fault) {
            if is_met || Instant::now() >= give_up {
                return is_met;
            }
            tokio::time::sleep(BETWEEN_TWO_TRIES).await;
        }
        let proxies = self.proxies();
        let proxy = proxies[fault.target % proxies.len()];
        match fault.kind {
            Kind::WipeNats => self.wipe().await,
            Kind::WipeNatsAndCrashPostgres => {
                let is_wiped = self.wipe().await;
                self.keep_postgres_away().await;
                is_wiped
            }
            Kind::CutConnections => {
                proxy.cut();
                true
            }
            Kind::DelayConnections => {
                proxy.delay(fault.delay);
                true
            }
            Kind::HoldConnections => {
                proxy.hold(true);
                true
            }
            _ => false,
        }
    }

    /// Whether a fault that is one signal has met somebody; `None` where it is something else.
    fn send(&self, fault: &Fault) -> Option<bool> {
        let launched =
            |program: &str, signal: Signal| signal_launched(self.system.ready().pid, program, signal);
        let is_met = match fault.kind {
            Kind::KillWorker => self.signal(Role::Worker, fault.target, Signal::KILL),
            Kind::StopWorker => self.signal(Role::Worker, fault.target, Signal::TERM),
            Kind::PauseWorker => self.signal(Role::Worker, fault.target, Signal::STOP),
            Kind::KillRegistry => self.signal(Role::Registry, fault.target, Signal::KILL),
            Kind::StopRegistry => self.signal(Role::Registry, fault.target, Signal::TERM),
            Kind::PauseRegistry => self.signal(Role::Registry, fault.target, Signal::STOP),
            Kind::KillHostBackup => launched(HOST_BACKUP, Signal::KILL),
            Kind::StopHostBackup => launched(HOST_BACKUP, Signal::TERM),
            Kind::PauseHostBackup => launched(HOST_BACKUP, Signal::STOP),
            Kind::KillCopyApplier => launched("copy-applier", Signal::KILL),
            Kind::KillNats => launched("nats-server", Signal::KILL),
            Kind::RestartPostgres => launched("postgres", Signal::INT),
            // A postmaster that is killed outright leaves its children; this is the crash that ends them, too.
            Kind::CrashPostgres => launched("postgres", Signal::QUIT),
            Kind::WipeNats
            | Kind::WipeNatsAndCrashPostgres
            | Kind::CutConnections
            | Kind::DelayConnections
            | Kind::HoldConnections => return None,
        };
        Some(is_met)
    }

    fn end(&self, fault: &Fault) {
        let proxies = self.proxies();
        let proxy = proxies[fault.target % proxies.len()];
        match fault.kind {
            Kind::PauseWorker => {
                self.signal(Role::Worker, fault.target, Signal::CONT);
            }
            Kind::PauseRegistry => {
                self.signal(Role::Registry, fault.target, Signal::CONT);
            }
            Kind::PauseHostBackup => {
                signal_launched(self.system.ready().pid, HOST_BACKUP, Signal::CONT);
            }
            Kind::DelayConnections => proxy.delay(Duration::ZERO),
            Kind::HoldConnections => proxy.hold(false),
            _ => {}
        }
    }

    /// Has nats-server come back, and Postgres be away for so long that every registry looks for the stream meanwhile.
    async fn keep_postgres_away(&self) {
        let launcher = self.system.ready().pid;
        let give_up = Instant::now() + LONGEST_RESTART;
        while child_of(launcher, "nats-server").is_none() && Instant::now() < give_up {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.system.hold_restarts();
        // Where it is away already, it stays away.
        signal_launched(launcher, "postgres", Signal::QUIT);
        tokio::time::sleep(BETWEEN_TWO_LOOKS).await;
        self.system.allow_restarts();
    }

    /// Kills nats-server and removes all that it has stored.
    async fn wipe(&self) -> bool {
        let launcher = self.system.ready().pid;
        self.system.hold_restarts();
        tokio::time::sleep(UNTIL_STARTED).await;
        while signal_launched(launcher, "nats-server", Signal::KILL)
            || child_of(launcher, "nats-server").is_some()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.wipes.lock().unwrap_or_else(PoisonError::into_inner).push(now());
        let store = self.system.data_directory().join("nats/jetstream");
        let wiped = match fs::remove_dir_all(&store) {
            // It was wiped just before, and has not stored anything since.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            wiped => wiped,
        };
        self.system.allow_restarts();
        if let Err(error) = &wiped {
            eprintln!("nemesis: removing {}: {error}", store.display());
        }
        wiped.is_ok()
    }
}

/// This moment; the database is on the same machine and has the same clock.
pub(crate) fn now() -> Timestamp {
    time::OffsetDateTime::now_utc().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_the_same_for_a_seed_and_has_every_kind_of_fault() {
        let ten_minutes = Duration::from_secs(600);
        assert_eq!(plan(7, ten_minutes, &[]), plan(7, ten_minutes, &[]));
        assert_ne!(plan(7, ten_minutes, &[]), plan(8, ten_minutes, &[]));
        let faults = plan(7, ten_minutes, &[]);
        for kind in Kind::value_variants() {
            assert!(faults.iter().any(|fault| fault.kind == *kind), "{kind:?}");
        }
        // What `tests/nemesis.rs` runs has each of them, and the last with time left to happen.
        let short = plan(7, Duration::from_secs(84), &[]);
        for kind in Kind::value_variants() {
            let first = short.iter().find(|fault| fault.kind == *kind);
            let in_time = first.is_some_and(|fault| fault.at < Duration::from_secs(75));
            assert!(in_time, "{kind:?}: {first:?}");
        }
        let few = plan(7, ten_minutes, &[Kind::WipeNats]);
        assert!(few.len() > 100 && few.iter().all(|fault| fault.kind == Kind::WipeNats));
        assert!(faults.windows(2).all(|two| two[0].at < two[1].at && two[1].at < ten_minutes));
    }
}
