//! The process of host-backup, and of its jobs.

fn main() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == host_backup::JOB_ARGUMENT) {
        return backup_repository::run_job_child();
    }
    service_runtime::service_main("host-backup", host_backup::DEFAULT_SETTINGS, host_backup::run)
}
