//! The registry's process.

fn main() -> std::process::ExitCode {
    service_runtime::service_main("registry", registry::DEFAULT_SETTINGS, registry::run)
}
