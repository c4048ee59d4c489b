//! A real process: its arguments, its exit status, its log, its signals, and that it does not outlive its launcher.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// The example `idle_service`, which cargo builds for the tests.
fn program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.parent().and_then(|deps| deps.parent()).unwrap().join("examples/idle_service");
    assert!(program.exists(), "{} is not built; run all tests of the package", program.display());
    program
}

fn service(settings: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program());
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (name, value) in settings {
        command.env(format!("LONGHAUL_IDLE_SERVICE__{name}"), value);
    }
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running service and its log, read as it comes.
struct Running {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(settings: &[(&str, &str)]) -> Self {
        let mut child = service(settings).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self { child, log };
        running.log_line("started");
        running
    }

    /// Reads on to the next line that holds `part`.
    fn log_line(&mut self, part: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the log ended before {part:?}");
            if line.contains(part) {
                return line;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn good_settings_are_checked_with_ok_and_status_0() {
    let output = service(&[]).arg("--check-config").output().unwrap();
    assert_eq!((status(&output), text(&output.stdout), text(&output.stderr)), (0, "ok\n", ""));
}

#[test]
fn bad_settings_and_bad_arguments_end_with_status_2_and_a_word_why() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("settings.toml");
    std::fs::write(&file, "[http]\nlisten = \"127.0.0.1:0\"\nport = 80\n").unwrap();
    for check in [&["--check-config"][..], &[]] {
        let output = service(&[]).arg("--config").arg(&file).args(check).output().unwrap();
        assert_eq!(status(&output), 2);
        let expected =
            format!("idle-service: unknown key `http.port` in the settings file {}", file.display());
        assert!(text(&output.stderr).starts_with(&expected), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "");
    }
    let output = service(&[]).arg("--chekc-config").output().unwrap();
    assert_eq!(status(&output), 2);
    assert!(text(&output.stderr).contains("Usage: idle_service"), "{}", text(&output.stderr));
}

#[test]
fn a_failure_ends_with_status_1_and_its_chain_is_logged_once() {
    let output = service(&[("ENDS_WHEN", "failed")]).output().unwrap();
    assert_eq!(status(&output), 1);
    let log = text(&output.stderr);
    assert_eq!(log.matches("could not idle: the disk is full").count(), 1, "{log}");
    assert_eq!(log.matches("the disk is full").count(), 1, "{log}");
    assert!(log.lines().all(|line| line.starts_with("{\"timestamp\":\"") && line.ends_with('}')), "{log}");
}

#[test]
fn a_panic_is_a_log_event() {
    let output = service(&[("ENDS_WHEN", "panicked")]).output().unwrap();
    assert!(!output.status.success());
    let log = text(&output.stderr);
    let line = log.lines().find(|line| line.contains("idled too hard")).unwrap();
    assert!(line.contains("\"panic.location\":\"") && line.contains("\"level\":\"ERROR\""), "{line}");
}

#[test]
fn the_first_signal_drains_and_the_service_ends_well() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut service = Running::start(&[]);
        service.signal(signal);
        service.log_line("draining");
        assert_eq!(service.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_second_signal_stops_what_does_not_end_by_draining() {
    let mut service = Running::start(&[("ENDS_WHEN", "stopped"), ("SHUTDOWN__GRACE_S", "3600")]);
    service.signal(Signal::TERM);
    service.log_line("draining");
    assert!(service.child.try_wait().unwrap().is_none());
    service.signal(Signal::TERM);
    service.log_line("stopping: a second signal");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_end_of_the_grace_stops_too() {
    let mut service = Running::start(&[("ENDS_WHEN", "stopped"), ("SHUTDOWN__GRACE_S", "0")]);
    service.signal(Signal::TERM);
    service.log_line("stopping: the grace is over");
    assert_eq!(service.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_launcher_learns_the_port_from_the_address_file_and_health_answers_there() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("address");
    let _service = Running::start(&[("HTTP__ADDRESS_FILE", file.to_str().unwrap())]);
    let address = wait_for("the address file", || std::fs::read_to_string(&file).ok());
    let answer = wait_for("good health", || {
        let mut stream = TcpStream::connect(address.trim()).ok()?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    });
    assert!(answer.ends_with(r#"{"status":"ok","checks":{"idleness":{"ok":true}}}"#), "{answer}");
}

/// The launcher is a shell that starts the service, says its process id, and waits.
#[test]
fn a_service_does_not_outlive_a_launcher_that_is_killed() {
    for wish in ["1", "$$"] {
        let script = format!("LONGHAUL_EXIT_WITH_PARENT={wish} \"$0\" & echo $!; wait");
        let mut launcher = Command::new("/bin/sh")
            .args(["-c", &script])
            .arg(program())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(launcher.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let service = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
        let mut log = BufReader::new(launcher.stderr.take().unwrap());
        let mut started = String::new();
        while !started.contains("\"started\"") {
            started.clear();
            assert!(log.read_line(&mut started).unwrap() > 0, "the service ended early");
        }
        assert!(test_kill_process(service).is_ok());
        launcher.kill().unwrap();
        launcher.wait().unwrap();
        // Gone, or dead and not yet collected by the process that inherits it.
        wait_for("the end of the service", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.as_raw_nonzero()))
                .unwrap_or_default();
            let state = stat.rsplit_once(") ").and_then(|(_, fields)| fields.chars().next());
            matches!(state, None | Some('Z' | 'X')).then_some(())
        });
    }
}

#[test]
fn a_service_whose_launcher_is_gone_already_does_not_start() {
    let output = service(&[]).env("LONGHAUL_EXIT_WITH_PARENT", "999999999").output().unwrap();
    assert_eq!(status(&output), 1);
    assert!(text(&output.stderr).contains("is gone"), "{}", text(&output.stderr));
}
