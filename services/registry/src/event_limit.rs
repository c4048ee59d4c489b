//! How many events an operation may add to the stream a second. Our own workers keep to ten a second and merge what is more;
//! one that does not would use up the stream's room for everybody. Each registry counts for itself, so that no heartbeat
//! waits for another one's count: with several of them, an operation has their sum.

use std::num::NonZeroU32;

use domain_model::OperationId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

/// Twice what our workers send.
const PER_S: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// What a worker has saved up while the stream did not answer, and what it has left at the end besides: two rings.
const BURST: NonZeroU32 = NonZeroU32::new(512).unwrap();

/// A bucket of tokens for each operation that has told of something lately.
pub(crate) struct EventLimit {
    operations: DefaultKeyedRateLimiter<OperationId>,
}

impl EventLimit {
    pub(crate) fn new() -> Self {
        Self { operations: RateLimiter::keyed(Quota::per_second(PER_S).allow_burst(BURST)) }
    }

    /// Takes one token of the operation; false where there is none, and the event is to come again later.
    pub(crate) fn admit(&self, op: OperationId) -> bool {
        self.operations.check_key(&op).is_ok()
    }

    /// Forgets operations that have not told of anything for so long that their buckets are full again.
    pub(crate) fn forget_idle(&self) {
        self.operations.retain_recent();
        self.operations.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn what_was_saved_up_is_let_in_at_once_and_a_flood_is_not() {
        let limit = EventLimit::new();
        let (flooding, calm) = (OperationId::from(Uuid::from_u128(1)), OperationId::from(Uuid::from_u128(2)));
        let burst = BURST.get() as usize;
        assert_eq!((0..burst).filter(|_| limit.admit(flooding)).count(), burst);
        assert!(limit.admit(calm));
        for _ in 0..2 {
            let admitted = (0..10_000).filter(|_| limit.admit(flooding)).count();
            assert!(admitted < burst, "{admitted}");
            // It forgets nobody whose bucket is not full.
            limit.forget_idle();
        }
    }
}
