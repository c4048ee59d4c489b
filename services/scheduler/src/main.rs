//! The scheduler's process.

fn main() -> std::process::ExitCode {
    service_runtime::service_main("scheduler", scheduler::DEFAULT_SETTINGS, scheduler::run)
}
