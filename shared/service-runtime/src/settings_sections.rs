//! Sections of settings that several services have, so that they look the same in every file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// How to reach NATS.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsSettings {
    /// One or more server URLs, separated by commas.
    pub url: String,
    /// The user name.
    pub user: String,
    /// The password.
    pub password: SecretString,
    /// What reply subjects begin with, where the permissions of the user ask for one of its own.
    #[serde(default)]
    pub inbox_prefix: Option<String>,
}

/// How to log.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// The form of a log line.
    pub log_format: LogFormat,
    /// What is logged.
    pub log_filter: LogFilter,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Human,
}

/// Which log events are written: directives as in `info,async_nats=warn`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct LogFilter(String);

/// A string that is no [`LogFilter`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no log filter; write for example \"info,async_nats=warn\"")]
pub struct LogFilterError(String);

impl LogFilter {
    /// The directives.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = LogFilterError;

    fn from_str(text: &str) -> Result<Self, LogFilterError> {
        match EnvFilter::try_new(text) {
            Ok(_) => Ok(Self(text.to_owned())),
            Err(_) => Err(LogFilterError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for LogFilter {
    type Error = LogFilterError;

    fn try_from(text: String) -> Result<Self, LogFilterError> {
        text.parse()
    }
}

/// Where `/metrics` and `/healthz` are answered.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpSettings {
    /// The address to listen on; with port 0 the system chooses one.
    pub listen: SocketAddr,
    /// A file that the address is written to (atomically, `127.0.0.1:34567` and a line end) once it is listened on, so
    /// that a launcher learns the port.
    pub address_file: Option<PathBuf>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 0)), address_file: None }
    }
}

/// How a service ends.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShutdownSettings {
    /// How long running work may go on after the first signal, in seconds.
    pub grace_s: u64,
}

impl ShutdownSettings {
    /// How long running work may go on after the first signal.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_s)
    }
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        Self { grace_s: 20 }
    }
}
