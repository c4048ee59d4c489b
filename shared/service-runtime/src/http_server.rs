//! `/metrics` and `/healthz`, and telling a launcher where they are.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::settings_sections::HttpSettings;

/// A server that cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum HttpServerError {
    /// The address cannot be listened on.
    #[error("could not listen on {address}")]
    Listen {
        /// The address of the settings.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The address cannot be written to its file.
    #[error("could not write the address to {}", file.display())]
    AddressFile {
        /// The file of the settings.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// Answers `GET /metrics` (OpenMetrics text) and `GET /healthz` (200 or 503, with the checks as JSON) until dropped.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HttpServer {
    /// Listens, then writes the address to the file of the settings, if there is one.
    ///
    /// # Errors
    ///
    /// If the address is taken, or its file cannot be written.
    pub async fn start(
        settings: &HttpSettings,
        metrics: Metrics,
        health: Health,
    ) -> Result<Self, HttpServerError> {
        let failed = |source| HttpServerError::Listen { address: settings.listen, source };
        let listener = TcpListener::bind(settings.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if let Some(file) = &settings.address_file {
            write_address(file, address)
                .map_err(|source| HttpServerError::AddressFile { file: file.clone(), source })?;
        }
        let router = Router::new()
            .route("/metrics", get(answer_metrics).with_state(metrics))
            .route("/healthz", get(answer_health).with_state(health));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the server of /metrics and /healthz has ended");
            }
        });
        tracing::info!(http.address = %address, "answering /metrics and /healthz");
        Ok(Self { address, task })
    }

    /// The address listened on, with its real port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A launcher that sees the file sees a whole address.
fn write_address(file: &Path, address: SocketAddr) -> io::Result<()> {
    let mut name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let being_written = file.with_file_name(name);
    std::fs::write(&being_written, format!("{address}\n"))?;
    std::fs::rename(&being_written, file)
}

async fn answer_metrics(State(metrics): State<Metrics>) -> Response {
    match metrics.to_text() {
        Ok(text) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn answer_health(State(health): State<Health>) -> Response {
    let report = health.report();
    let status = if report.status == "ok" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    match serde_json::to_string(&report) {
        Ok(json) => (status, [(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::metrics::Buckets;

    /// The status and the body of a GET.
    async fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test]
    async fn metrics_are_answered_as_text_with_those_of_the_process() {
        let metrics = Metrics::new();
        metrics.counter("claims", "Operations claimed").inc_by(3);
        metrics.gauge("slots", "Free slots").set(-1);
        metrics.histogram("wait_seconds", "Time waited", Buckets(&[0.5, 1.0])).observe(0.7);
        let finished = metrics.counter_family("finished", "Operations finished");
        finished.get_or_create(&vec![("outcome", "succeeded".to_owned())]).inc();
        let server = HttpServer::start(&HttpSettings::default(), metrics, Health::default()).await.unwrap();
        let (status, text) = get(server.address(), "/metrics").await;
        assert_eq!(status, 200);
        for line in [
            "# TYPE claims counter",
            "claims_total 3",
            "slots -1",
            "wait_seconds_bucket{le=\"1.0\"} 1",
            "finished_total{outcome=\"succeeded\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("{name} in\n{text}")).split(' ').nth(1).unwrap().parse().unwrap()
        };
        assert!(value("process_resident_memory_bytes") > 500_000.0);
        assert!(value("process_open_fds") > 3.0);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_start_time_seconds") > 1_700_000_000.0);
        assert_eq!(get(server.address(), "/elsewhere").await.0, 404);
    }

    #[tokio::test]
    async fn health_is_good_only_while_every_check_is() {
        let health = Health::default();
        let server =
            HttpServer::start(&HttpSettings::default(), Metrics::new(), health.clone()).await.unwrap();
        assert_eq!(
            get(server.address(), "/healthz").await,
            (503, r#"{"status":"failed","checks":{}}"#.into())
        );
        let (nats, database) = (health.register("nats"), health.register("database"));
        nats.set_ok();
        let starting = r#"{"status":"failed","checks":{"database":{"ok":false,"reason":"starting"},"nats":{"ok":true}}}"#;
        assert_eq!(get(server.address(), "/healthz").await, (503, starting.into()));
        database.set_ok();
        assert_eq!(get(server.address(), "/healthz").await.0, 200);
        nats.set_failed("disconnected");
        let (status, body) = get(server.address(), "/healthz").await;
        assert_eq!(status, 503);
        assert!(body.contains(r#""nats":{"ok":false,"reason":"disconnected"}"#), "{body}");
        nats.set_ok();
        assert_eq!(get(server.address(), "/healthz").await.0, 200);
    }

    #[tokio::test]
    async fn the_real_address_is_written_to_its_file_and_a_taken_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("address");
        let settings = HttpSettings { address_file: Some(file.clone()), ..HttpSettings::default() };
        let server = HttpServer::start(&settings, Metrics::new(), Health::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{}\n", server.address()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let taken = HttpSettings { listen: server.address(), address_file: None };
        let refused = HttpServer::start(&taken, Metrics::new(), Health::default()).await;
        assert!(matches!(refused, Err(HttpServerError::Listen { .. })));
    }
}
