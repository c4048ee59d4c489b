//! A nats-server of its own for each test, on a free port of the loopback.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed set-up is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bus_client::{Bus, ConnectSettings, Credentials};

/// The stream of the contract, section 1.
pub(crate) const DECLARATION: &str = r#"{
    "name": "LRO", "subjects": ["persist.*.lro.>"], "storage": "file", "retention": "limits", "discard": "old",
    "max_consumers": -1, "max_msgs": -1, "max_msgs_per_subject": 256, "max_msg_size": 65536,
    "max_age": 604800000000000, "max_bytes": 67108864, "duplicate_window": 120000000000, "num_replicas": 1,
    "allow_direct": true, "allow_rollup_hdrs": true, "allow_msg_ttl": true,
    "subject_delete_marker_ttl": 60000000000, "compression": "s2"
}"#;

const ACCOUNTS: &str = r#"
accounts {
  BUS {
    jetstream: enabled
    users: [
      { user: hub, password: hub }
      { user: limited, password: limited, permissions: { publish: ["api.v1.hub.>"], subscribe: ["_INBOX.>"] } }
    ]
    exports: [ { service: "api.v1.>" }, { stream: "persist.>" } ]
  }
  APP {
    users: [ { user: alice, password: alice } ]
    imports: [
      { service: { account: BUS, subject: "api.v1.>" }, share: true }
      { stream: { account: BUS, subject: "persist.>" } }
    ]
  }
}
"#;

pub(crate) struct NatsServer {
    program: PathBuf,
    directory: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl NatsServer {
    /// Starts a server; `None`, said aloud, where there is no program to start.
    pub(crate) fn start() -> Option<Self> {
        let Some(program) = program() else {
            assert!(
                std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_none(),
                "no nats-server: set LONGHAUL_NATS_SERVER or put it on PATH"
            );
            eprintln!("SKIPPED: no nats-server: set LONGHAUL_NATS_SERVER or put it on PATH");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let (child, port) = launch(&program, directory.path(), None);
        Some(Self { program, directory, child, port })
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Kills the server.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again on the same port with the same store.
    pub(crate) fn start_again(&mut self) {
        let (child, port) = launch(&self.program, self.directory.path(), Some(self.port));
        self.child = child;
        assert_eq!(self.port, port);
    }

    pub(crate) async fn connect(&self, user: &str) -> Bus {
        Bus::connect(self.settings(user, user)).await.unwrap()
    }

    pub(crate) fn settings(&self, user: &str, password: &str) -> ConnectSettings {
        ConnectSettings {
            url: self.url(),
            credentials: Credentials::UserPassword { user: user.to_owned(), password: password.into() },
            inbox_prefix: None,
            name: format!("test-{user}"),
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("LONGHAUL_NATS_SERVER") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join("nats-server")).find(|program| program.is_file())
}

fn launch(program: &Path, directory: &Path, port: Option<u16>) -> (Child, u16) {
    let path = directory.display();
    let port = port.map_or("-1".to_owned(), |port| port.to_string());
    let config = format!(
        "host: \"127.0.0.1\"\nport: {port}\nports_file_dir: \"{path}\"\njetstream {{ store_dir: \"{path}/store\" }}\n{ACCOUNTS}"
    );
    let config_file = directory.join("nats.conf");
    std::fs::write(&config_file, config).unwrap();
    let log = std::fs::File::create(directory.join("nats.log")).unwrap();
    let mut child = Command::new(program)
        .arg("-c")
        .arg(&config_file)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let name = program.file_name().unwrap().to_string_lossy().into_owned();
    let ports_file = directory.join(format!("{name}_{}.ports", child.id()));
    let deadline = Instant::now() + Duration::from_secs(20);
    let port = loop {
        let text = std::fs::read_to_string(&ports_file).unwrap_or_default();
        if let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text) {
            let url = ports["nats"][0].as_str().unwrap_or_default();
            break url.rsplit(':').next().and_then(|port| port.parse().ok());
        }
        if Instant::now() >= deadline {
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if let Some(port) = port {
        return (child, port);
    }
    let _ = child.kill();
    let _ = child.wait();
    let log = std::fs::read_to_string(directory.join("nats.log")).unwrap_or_default();
    panic!("the nats-server did not start: {log}");
}

/// Polls until the check answers, and says what it saw last if it never does.
pub(crate) async fn wait_for<T, F: AsyncFnMut() -> Result<T, String>>(what: &str, mut check: F) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "{what}: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
