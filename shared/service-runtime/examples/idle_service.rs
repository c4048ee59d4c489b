//! A service that does nothing until it is told to end: what a `main.rs` looks like, and what the tests run.

use std::process::ExitCode;

use service_runtime::{
    HttpSettings, Runtime, ServiceSettings, Shutdown, ShutdownSettings, TelemetrySettings, service_main,
};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// "drained" (end when draining), "stopped" (end when stopping), "failed" or "panicked" (at once).
    ends_when: String,
    telemetry: TelemetrySettings,
    http: HttpSettings,
    shutdown: ShutdownSettings,
}

impl ServiceSettings for Settings {
    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }
    fn http(&self) -> &HttpSettings {
        &self.http
    }
    fn shutdown(&self) -> ShutdownSettings {
        self.shutdown
    }
}

async fn run(settings: Settings, shutdown: Shutdown, runtime: Runtime) -> anyhow::Result<()> {
    runtime.health.register("idleness").set_ok();
    match settings.ends_when.as_str() {
        "drained" => shutdown.draining.cancelled().await,
        "stopped" => shutdown.stopping.cancelled().await,
        "failed" => return Err(anyhow::anyhow!("the disk is full").context("could not idle")),
        _ => panic!("idled too hard"),
    }
    Ok(())
}

fn main() -> ExitCode {
    service_main("idle-service", include_str!("idle_service.default.toml"), run)
}
