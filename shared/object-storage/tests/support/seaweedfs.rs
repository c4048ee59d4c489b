use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use super::{ACCESS_KEY_ID, SECRET_ACCESS_KEY, START_TIME_LIMIT};

/// The server of this test process.
struct Server {
    endpoint: String,
    /// A shell that ends the server when its standard input ends, so however this process ends.
    _shell: Child,
}

/// URL of the server, which is started at the first call.
pub(crate) fn endpoint() -> Option<&'static str> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(start).as_ref().map(|server| server.endpoint.as_str())
}

fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("LONGHAUL_WEED") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("weed")).find(|program| program.is_file())
}

fn start() -> Option<Server> {
    let Some(program) = program() else {
        let missing = "SeaweedFS's `weed` is neither named by LONGHAUL_WEED nor on PATH";
        if std::env::var_os("LONGHAUL_REQUIRE_TOOLS").is_some_and(|required| required == "1") {
            panic!("{missing}, and LONGHAUL_REQUIRE_TOOLS=1 requires it");
        }
        // Written past the test runner, which keeps the output of a test that passes to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED: {missing}: the tests on a real S3 server do not run");
        return None;
    };
    // A port may be taken between its choice and its use: then the server ends, and another try is due.
    let deadline = Instant::now() + START_TIME_LIMIT;
    loop {
        let directory = tempfile::tempdir().unwrap().keep();
        if let Some(server) = try_start(&program, &directory, deadline) {
            return Some(server);
        }
        assert!(Instant::now() < deadline, "SeaweedFS did not start in {START_TIME_LIMIT:?}");
    }
}

#[expect(clippy::zombie_processes, reason = "it is waited for by whoever inherits it after this process")]
fn try_start(program: &Path, directory: &Path, deadline: Instant) -> Option<Server> {
    let ports = free_ports();
    let [s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc, admin, admin_grpc] = ports;
    // Ends the server when the standard input ends, and then removes what the server leaves behind: its
    // directory, and the sockets that it puts into /tmp whatever it is told.
    let shell = "exec 3<&0; directory=$1; shift; \"$@\" >\"$directory/log\" 2>&1 </dev/null 3<&- & server=$!; \
                 (read -r line <&3; kill -9 $server) & watcher=$!; \
                 wait $server; kill $watcher; rm -rf \"$directory\" $SOCKETS";
    let sockets = [
        format!("/tmp/seaweedfs-admin-grpc-{admin_grpc}.sock"),
        format!("/tmp/seaweedfs-filer-grpc-{filer_grpc}.sock"),
        format!("/tmp/seaweedfs-master-grpc-{master_grpc}.sock"),
        format!("/tmp/seaweedfs-s3-grpc-{s3_grpc}.sock"),
        format!("/tmp/seaweedfs-volume-grpc-{volume_grpc}.sock"),
    ];
    let mut child = Command::new("sh")
        .args(["-c", shell, "sh"])
        .arg(directory)
        .arg(program)
        .arg("mini")
        .arg(format!("-dir={}", directory.display()))
        .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"])
        .args(["-master.telemetry=false", "-master.volumeSizeLimitMB=64"])
        .args(["-s3.port.iceberg=0", "-s3.port.lance=0"])
        .arg(format!("-s3.localSocket={}", directory.join("s3.sock").display()))
        .arg(format!("-s3.port={s3}"))
        .arg(format!("-s3.port.grpc={s3_grpc}"))
        .arg(format!("-master.port={master}"))
        .arg(format!("-master.port.grpc={master_grpc}"))
        .arg(format!("-volume.port={volume}"))
        .arg(format!("-volume.port.grpc={volume_grpc}"))
        .arg(format!("-filer.port={filer}"))
        .arg(format!("-filer.port.grpc={filer_grpc}"))
        .arg(format!("-admin.port={admin}"))
        .arg(format!("-admin.port.grpc={admin_grpc}"))
        .arg(format!("-filer.localSocket={}", directory.join("filer.sock").display()))
        .env("SOCKETS", sockets.join(" "))
        .env("AWS_ACCESS_KEY_ID", ACCESS_KEY_ID)
        .env("AWS_SECRET_ACCESS_KEY", SECRET_ACCESS_KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while Instant::now() < deadline {
        // The S3 port opens last, once the parts behind it answer.
        if TcpStream::connect(("127.0.0.1", s3)).is_ok() {
            return Some(Server { endpoint: format!("http://127.0.0.1:{s3}"), _shell: child });
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let log = std::fs::read_to_string(directory.join("log")).unwrap_or_default();
    panic!("SeaweedFS did not open its S3 port in {START_TIME_LIMIT:?}; its log:\n{log}");
}

fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    // Held until all are chosen, so that no two are the same.
    let listeners: [TcpListener; COUNT] =
        std::array::from_fn(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}
