//! What every service needs around its own work, so that a `main.rs` is a few lines and no two services differ in how
//! they are configured, watched and stopped.
//!
//! [`service_main`] reads the settings ([`load_settings`]), starts logging ([`start_telemetry`]), answers `/metrics` and `/healthz`
//! ([`HttpServer`]), listens for signals ([`Shutdown`]), runs the service and turns its end into an exit status:
//! 0 for success, 1 for a failure, 2 for bad arguments or settings.
//!
//! ```no_run
//! use service_runtime::{HttpSettings, Runtime, ServiceSettings, Shutdown, TelemetrySettings};
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     telemetry: TelemetrySettings,
//!     http: HttpSettings,
//! }
//!
//! impl ServiceSettings for Settings {
//!     fn telemetry(&self) -> &TelemetrySettings {
//!         &self.telemetry
//!     }
//!     fn http(&self) -> &HttpSettings {
//!         &self.http
//!     }
//! }
//!
//! async fn run(settings: Settings, shutdown: Shutdown, runtime: Runtime) -> Result<(), std::io::Error> {
//!     shutdown.draining.cancelled().await;
//!     Ok(())
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     service_runtime::service_main("clock", "[telemetry]\n[http]\n", run)
//! }
//! ```

mod health;
mod http_server;
mod metrics;
mod process_lifetime;
mod process_metrics;
mod service;
mod settings;
mod settings_sections;
mod shutdown;
mod telemetry;

pub use health::{Health, HealthCheck};
pub use http_server::{HttpServer, HttpServerError};
pub use metrics::{Buckets, HistogramFamily, Labels, Metrics};
pub use process_lifetime::{EXIT_WITH_PARENT, exit_with_parent};
pub use service::{Runtime, ServiceSettings, service_main, service_main_with};
pub use settings::{ServiceArguments, SettingsError, load_settings, load_settings_with_variables};
pub use settings_sections::{
    HttpSettings, LogFilter, LogFilterError, LogFormat, NatsSettings, ShutdownSettings, TelemetrySettings,
};
pub use shutdown::Shutdown;
pub use telemetry::{TelemetryError, start_telemetry};

/// The metric types that [`Metrics`] hands out.
pub use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram};
