//! Waiting for something, instead of sleeping and hoping.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use tokio::time::Instant;

const INTERVAL: Duration = Duration::from_millis(50);

/// Asks `probe` until it succeeds, and returns what it found.
///
/// # Panics
/// When the patience is used up, with the last answer of the probe.
pub async fn wait_for<T, E, F, A>(what: &str, patience: Duration, mut probe: F) -> T
where
    F: FnMut() -> A,
    A: Future<Output = Result<T, E>>,
    E: Display,
{
    let give_up = Instant::now() + patience;
    loop {
        match probe().await {
            Ok(found) => return found,
            Err(status) if Instant::now() >= give_up => {
                panic!("waited {} s for {what}; last: {status}", patience.as_secs_f32())
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
