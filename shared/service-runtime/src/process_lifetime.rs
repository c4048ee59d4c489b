//! Services that a launcher has started must not outlive it.
//!
//! A launcher that is killed cannot stop what it started, and the next start would find the ports, the leases and the
//! databases of yesterday's processes in use. The kernel can end them with it.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// The environment variable that switches [`exit_with_parent`] on: `1`, or better the process id of the launcher, with
/// which a launcher that died before the call is noticed, too.
pub const EXIT_WITH_PARENT: &str = "LONGHAUL_EXIT_WITH_PARENT";

/// If [`EXIT_WITH_PARENT`] is set in the environment, lets the kernel kill this process (SIGKILL: nothing is drained)
/// when its parent ends. To be called on the main thread, first thing.
///
/// "The parent" is the *thread* that started this process: a launcher must start it from a thread that lives as long
/// as the launcher (the main thread, or a worker of its runtime, but no thread for blocking work).
///
/// # Errors
///
/// If the kernel refuses, or the parent is gone already; the caller should end then.
pub fn exit_with_parent() -> io::Result<()> {
    let Some(wish) = std::env::var_os(EXIT_WITH_PARENT) else {
        return Ok(());
    };
    let launcher: i32 = match wish.to_str().and_then(|wish| wish.parse().ok()) {
        Some(0) => return Ok(()),
        Some(launcher) => launcher,
        None => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{EXIT_WITH_PARENT} is neither 0, 1 nor a process id"),
            ));
        }
    };
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let parent = getppid().map_or(0, |parent| parent.as_raw_nonzero().get());
    if launcher != 1 && parent != launcher {
        return Err(io::Error::other("the process that started this one is gone"));
    }
    Ok(())
}
