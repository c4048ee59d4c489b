//! `database-backup`: see the library.

fn main() -> std::process::ExitCode {
    database_backup::main()
}
