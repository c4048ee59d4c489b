//! Clocks that jump. A library that is loaded before all others moves the wall clock of real processes, as somebody who sets
//! the clock of a machine does; clocks that only ever go on, which the kernel has beside it, stay as they are then, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use domain_model::Timestamp;
use serde_json::{Value, json};
use test_harness::{Client, Server, SystemOptions, TestSystem, watch_to_the_end};

/// Adds the number of seconds that a file holds, one for Postgres and one for all others, to what the wall clock says.
const LIBRARY: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include <errno.h>
static volatile long long *offset;
__attribute__((constructor)) static void start(void) {
    const char *directory = getenv("JUMPING_CLOCK");
    char path[4096];
    if (!directory || strlen(directory) > 4000) return;
    strcpy(path, directory);
    strcat(path, strcmp(program_invocation_short_name, "postgres") ? "/services" : "/postgres");
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    void *mapped = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED) offset = mapped;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(clock, now);
    if (!outcome && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *offset;
    return outcome;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    (void)zone;
    int outcome = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return outcome;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The clocks of a system.
struct Clocks {
    directory: PathBuf,
}

impl Clocks {
    /// Compiled by the C compiler that Rust links with.
    fn new() -> (tempfile::TempDir, Self) {
        let temporary = tempfile::tempdir().unwrap();
        let directory = temporary.path().to_owned();
        // Postgres runs as another user.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&directory, open).unwrap();
        fs::write(directory.join("clock.c"), LIBRARY).unwrap();
        let mut compile = Command::new("cc");
        compile
            .args(["-shared", "-fPIC", "-O1", "-o", "clock.so", "clock.c", "-ldl"])
            .current_dir(&directory);
        assert!(compile.status().unwrap().success());
        let clocks = Self { directory };
        clocks.set("services", 0);
        clocks.set("postgres", 0);
        (temporary, clocks)
    }

    fn environment(&self) -> Vec<(String, String)> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let library = ("LD_PRELOAD".to_owned(), path(&self.directory.join("clock.so")));
        vec![library, ("JUMPING_CLOCK".to_owned(), path(&self.directory))]
    }

    /// Sets the clock of these processes so many seconds ahead of the true one.
    fn set(&self, of: &str, seconds: i64) {
        use std::io::Write as _;
        // In place: it is mapped.
        let file =
            fs::OpenOptions::new().create(true).truncate(false).write(true).open(self.directory.join(of));
        file.unwrap().write_all(&seconds.to_ne_bytes()).unwrap();
    }
}

async fn running(client: &Client, seconds: u32) -> String {
    let steps = seconds * 5;
    let op_id = client.create("hub", "test-sleep", json!({ "seconds": seconds, "steps": steps })).await;
    client.until("hub", &op_id, "status", &["running"]).await;
    op_id
}

fn now() -> Timestamp {
    // The time of a file that is made now: the clock of this process, which does not jump.
    let file = tempfile::NamedTempFile::new().unwrap();
    Timestamp::from_date_time(file.as_file().metadata().unwrap().modified().unwrap().into())
}

fn created_at(op: &Value) -> Timestamp {
    op["created_at"].as_str().unwrap().parse().unwrap()
}

/// Years from now to the time of an event: whether a clock has really jumped.
fn years_ahead(event: &Value) -> f64 {
    let at: Timestamp = event["ts"].as_str().unwrap().parse().unwrap();
    at.seconds_since(now()) / (366.0 * 86_400.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_of_services_that_jump_cost_no_lease_and_change_no_order() {
    let (_directory, clocks) = Clocks::new();
    let options =
        SystemOptions { test_kinds: true, environment: clocks.environment(), ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let op_id = running(&client, 45).await;
    let watching = {
        let (bus, subject) = (client.bus().clone(), format!("persist.hub.lro.{op_id}"));
        tokio::spawn(async move { watch_to_the_end(&bus, &subject).await })
    };
    const THREE_YEARS: i64 = 3 * 366 * 86_400;
    for jump in [THREE_YEARS, -THREE_YEARS] {
        clocks.set("services", jump);
        // Past a heartbeat, and with that past every decision about a lease.
        tokio::time::sleep(Duration::from_secs(11)).await;
        let events = client.events("hub", &op_id).await;
        let ahead = years_ahead(events.last().unwrap());
        assert!((2.5..3.5).contains(&(ahead * jump.signum() as f64)), "the clock did not jump: {ahead}");
        let began = Instant::now();
        let other = client.create("hub", "test-sleep", json!({ "seconds": 0.2 })).await;
        client.result("hub", &other).await;
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
    clocks.set("services", 0);
    let op = client.ended("hub", &op_id).await;
    assert_eq!(
        (&op["status"], &op["attempt"], &op["lease_losses"]),
        (&json!("succeeded"), &json!(1), &json!(0))
    );
    watching.await.unwrap().assert_complete(domain_model::OperationStatus::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_of_the_database_that_jumps_ahead_and_back_loses_nothing() {
    let (_directory, clocks) = Clocks::new();
    let options =
        SystemOptions { test_kinds: true, environment: clocks.environment(), ..SystemOptions::default() };
    let system = TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let op_id = running(&client, 8).await;
    let far_away = json!({ "kind": "test-sleep", "input": { "seconds": 0.2 }, "not_before": "2999-01-01T00:00:00.000Z" });
    let far_away =
        client.call("hub", "lro.create", far_away).await["op"]["op_id"].as_str().unwrap().to_owned();

    // An hour ahead: every lease is over by the only clock that counts. Whichever comes first, the next heartbeat or the
    // sweep: it goes on, with the same attempt or with another.
    clocks.set("postgres", 3600);
    let other = client.create("hub", "test-sleep", json!({ "seconds": 0.2 })).await;
    client.result("hub", &other).await;
    let ahead = created_at(&client.operation("hub", &other).await).seconds_since(now());
    assert!((3000.0..4200.0).contains(&ahead), "the clock did not jump: {ahead}");
    let op = client.ended("hub", &op_id).await;
    assert_eq!(op["status"], "succeeded", "{op:#}");
    assert!(op["lease_losses"].as_u64() <= Some(1), "{op:#}");

    // And back: what runs keeps its lease; what is created is not later than what was.
    let op_id = running(&client, 15).await;
    clocks.set("postgres", 0);
    let other = client.create("hub", "test-sleep", json!({ "seconds": 0.2 })).await;
    client.result("hub", &other).await;
    let op = client.ended("hub", &op_id).await;
    assert_eq!(
        (&op["status"], &op["attempt"], &op["lease_losses"]),
        (&json!("succeeded"), &json!(1), &json!(0))
    );
    assert_eq!(
        client.operation("hub", &far_away).await["status"],
        "queued",
        "not_before is as far away as it was"
    );

    // What a worker leaves whose lease is of the time ahead does not wait until that time has come.
    clocks.set("postgres", 3600);
    let op_id = running(&client, 3).await;
    system.kill_nine(Server::Scheduler);
    clocks.set("postgres", 0);
    let op = client.ended("hub", &op_id).await;
    assert_eq!(
        (&op["status"], &op["attempt"], &op["lease_losses"]),
        (&json!("succeeded"), &json!(2), &json!(1))
    );
}
