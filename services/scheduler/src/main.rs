//! The process of the scheduler, and of its jobs.

fn main() -> std::process::ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == scheduler::JOB_ARGUMENT) {
        return backup_repository::run_job_child();
    }
    service_runtime::service_main("scheduler", scheduler::DEFAULT_SETTINGS, scheduler::run)
}
