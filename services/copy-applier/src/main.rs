//! The process of copy-applier, and of its jobs.

fn main() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == copy_applier::JOB_ARGUMENT) {
        return backup_repository::run_job_child();
    }
    service_runtime::service_main("copy-applier", copy_applier::DEFAULT_SETTINGS, copy_applier::run)
}
