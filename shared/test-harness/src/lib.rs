//! A whole system of real processes for a test: Postgres, nats-server, an S3 server and the services, as
//! `longhaul up` runs them, each of which a test may kill.
//!
//! A test that leaves a server behind makes the next one fail for another reason. So whatever was started is stopped
//! when the test ends, however it ends: dropped, panicked, or killed with all of its process (see `janitor`). And a test
//! that sleeps a fixed time is either slow or flaky: here it waits for something ([`wait_for`]), and says what it saw
//! last when that does not come.

mod client;
mod command;
mod janitor;
mod logs;
mod metrics;
mod mounts;
mod python;
mod ready_file;
mod shared_system;
mod system;
mod tools;
mod trees;
mod waiting;
mod watching;

pub use client::Client;
pub use command::{Finished, run, run_with_patience};
pub use metrics::Metrics;
pub use python::python_with_nats;
pub use ready_file::{ReadyFile, ReadyHost, ReadyIdentity, ReadyObjectStore};
pub use server_processes::Signal;
pub use shared_system::{InUse, SharedSystem};
pub use system::{HostIdentity, ObjectStoreKind, Server, SystemOptions, TestSystem};
pub use tools::{age_is_available, btrfs_is_available, may_mount, nats_command_line, restic, skip};
pub use trees::{add_bytes, change_a_little, make_tree};
pub use waiting::wait_for;
pub use watching::{Seen, watch_to_the_end};
