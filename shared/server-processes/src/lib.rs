//! Real servers as child processes: Postgres, nats-server, an S3 server, and our own services.
//!
//! `longhaul up` and the tests need the servers that production runs, not imitations, and they need them to be gone
//! when the launcher is gone, however it ended: a Postgres that outlives a killed test would hold the port and the
//! data directory of the next one. Every child therefore asks the kernel for a signal at its launcher's death
//! ([`ManagedProcess`]), and each server is given its own directory, ports and random passwords, which it finds again
//! when it is started on the same directory.

mod managed_process;
mod nats;
mod nats_config;
mod object_store;
mod ports;
mod postgres;
mod programs;
mod readiness;
mod secrets;
mod unprivileged;

pub use managed_process::{ManagedProcess, ProcessSpec};
pub use nats::NatsServer;
pub use nats_config::{Identities, Identity, LRO_STREAM_DECLARATION};
pub use object_store::ObjectStoreServer;
pub use ports::{free_port, port_is_free};
pub use postgres::PostgresServer;
pub use programs::{
    nats_command_line, nats_server_program, object_store_program, postgres_bin_directory, restic_program,
};
pub use readiness::{healthy, wait_until};
pub use rustix::process::Signal;
