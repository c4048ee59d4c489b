use std::time::Duration;

use bus_client::{Bus, RequestError};
use bus_messages::kinds::{DeclareKinds, KindDefinition};
use bus_messages::{Encoding, Nothing};
use bus_subjects::WorkSubject;
use domain_model::{BackOff, Routing};

const TIMEOUT: Duration = Duration::from_secs(5);
const BACK_OFF: BackOff = BackOff { base: Duration::from_millis(250), cap: Duration::from_secs(5) };

/// Tells the registry of kinds that it is not built with. To be called by a service in the hub when it starts, before
/// its worker runs; from then on they can be created. A registry that does not answer is waited for.
///
/// # Errors
/// What is wrong with them, as the registry says it.
pub async fn declare_kinds(bus: &Bus, kinds: &[&'static KindDefinition]) -> Result<(), RequestError> {
    let subject = WorkSubject::new(Routing::Hub, "declare").to_string();
    let request = DeclareKinds { kinds: kinds.iter().map(|kind| kind.declaration()).collect() };
    let mut failures = 0;
    loop {
        let answer: Result<Nothing, _> =
            bus.request(subject.clone(), &request, Encoding::MessagePack, TIMEOUT).await;
        match answer {
            Ok(Nothing {}) => return Ok(()),
            Err(error) if error.is_retryable() => {
                tracing::warn!(%error, "the registry does not take the declaration of kinds now; trying again");
                failures += 1;
                tokio::time::sleep(BACK_OFF.wait(failures, rand::random_range(0.5..=1.0))).await;
            }
            Err(error) => return Err(error),
        }
    }
}
