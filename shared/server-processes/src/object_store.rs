//! A real S3 server (SeaweedFS) on the data directory, for tests and for `longhaul up --object-store s3`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::managed_process::{ManagedProcess, ProcessSpec};
use crate::ports::{free_port_where, port_is_free};
use crate::readiness::wait_until;
use crate::secrets;

const PATIENCE_TO_START: Duration = Duration::from_secs(60);
const PATIENCE_TO_STOP: Duration = Duration::from_secs(20);
const PATIENCE_FOR_AN_ANSWER: Duration = Duration::from_secs(2);
/// The parts of the server: each listens on a port, and on another for gRPC.
const PARTS: [&str; 4] = ["s3", "master", "volume", "filer"];
/// Where the admin part takes gRPC: this much above its port.
const ADMIN_GRPC_OFFSET: u16 = 10_000;

#[derive(Serialize, Deserialize)]
struct Ports {
    /// For each of `PARTS` its port, then its port for gRPC.
    parts: Vec<(u16, u16)>,
    admin: u16,
}

/// A running S3 server, listening on 127.0.0.1 only.
pub struct ObjectStoreServer {
    process: ManagedProcess,
    ports: Ports,
    access_key_id: String,
    secret_access_key: String,
    program: PathBuf,
    data_directory: PathBuf,
}

impl ObjectStoreServer {
    /// Starts the server on `<data_directory>/object-store` with one pair of keys that may do everything, and waits until
    /// S3 answers. Objects are kept from start to start, and so are the ports, unless they have been taken since.
    pub async fn start(
        program: &Path,
        data_directory: &Path,
        access_key_id: &str,
        secret_access_key: &str,
    ) -> anyhow::Result<Self> {
        let data_directory = std::path::absolute(data_directory)?;
        let directory = data_directory.join("object-store");
        fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let ports = free_ports(&data_directory)?;
        let mut spec = ProcessSpec::new("object-store", program, data_directory.join("logs"))
            .argument("mini")
            .argument(format!("-dir={}", directory.display()))
            .arguments(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false", "-webdav=false"])
            .arguments(["-s3.port.iceberg=0", "-s3.port.lance=0"])
            .argument(format!("-admin.port={}", ports.admin))
            .current_directory(&directory)
            .environment("AWS_ACCESS_KEY_ID", access_key_id)
            .environment("AWS_SECRET_ACCESS_KEY", secret_access_key);
        for (part, (port, grpc)) in PARTS.iter().zip(&ports.parts) {
            spec =
                spec.argument(format!("-{part}.port={port}")).argument(format!("-{part}.port.grpc={grpc}"));
        }
        let process = ManagedProcess::spawn(spec).await?;
        let s3_port = ports.s3();
        wait_until(&process, PATIENCE_TO_START, || answers(s3_port)).await?;
        Ok(Self {
            process,
            ports,
            access_key_id: access_key_id.to_owned(),
            secret_access_key: secret_access_key.to_owned(),
            program: program.to_owned(),
            data_directory,
        })
    }

    /// `http://127.0.0.1:PORT`, the endpoint for S3 clients (path-style addressing).
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.s3())
    }

    /// The key that it was started with.
    pub fn access_key_id(&self) -> &str {
        &self.access_key_id
    }

    /// The secret of that key.
    pub fn secret_access_key(&self) -> &str {
        &self.secret_access_key
    }

    /// Its process, to look at, signal or kill.
    pub fn process(&self) -> &ManagedProcess {
        &self.process
    }

    /// Stops the server in good order.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.process.stop(PATIENCE_TO_STOP).await.map(drop)
    }

    /// Stops it if it runs, and starts it again on the same ports and objects.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        *self =
            Self::start(&self.program, &self.data_directory, &self.access_key_id, &self.secret_access_key)
                .await?;
        Ok(())
    }
}

impl Ports {
    fn choose() -> anyhow::Result<Self> {
        let admin = free_port_where(|port| port_is_free(port + ADMIN_GRPC_OFFSET))?;
        let mut taken = vec![admin];
        let mut parts = Vec::new();
        for _ in PARTS {
            let port = free_port_where(|port| !taken.contains(&port))?;
            taken.push(port);
            let grpc = free_port_where(|port| !taken.contains(&port))?;
            taken.push(grpc);
            parts.push((port, grpc));
        }
        Ok(Self { parts, admin })
    }

    fn are_free(&self) -> bool {
        let parts = self.parts.iter().flat_map(|(port, grpc)| [*port, *grpc]);
        parts.chain([self.admin, self.admin + ADMIN_GRPC_OFFSET]).all(port_is_free)
    }

    fn s3(&self) -> u16 {
        self.parts[0].0
    }
}

fn free_ports(data_directory: &Path) -> anyhow::Result<Ports> {
    let kept: Ports = secrets::load_or_create(data_directory, "object-store-ports", Ports::choose)?;
    if kept.parts.len() == PARTS.len() && kept.are_free() {
        return Ok(kept);
    }
    let new = Ports::choose()?;
    secrets::store(data_directory, "object-store-ports", &new)?;
    Ok(new)
}

/// Asks S3 for the list of buckets, without a signature: a server that is ready refuses that.
async fn answers(port: u16) -> anyhow::Result<()> {
    let attempt = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").await?;
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        if &status != b"HTTP/1.1 403" {
            bail!("it answers {}", String::from_utf8_lossy(&status));
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE_FOR_AN_ANSWER, attempt).await.context("no answer")?
}
