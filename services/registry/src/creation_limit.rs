//! How many operations an account may create a second. Each registry counts for itself, so that no request waits for
//! another one's count: with several of them, an account has their sum.

use std::num::NonZeroU32;

use bus_messages::{ApiError, ErrorCode};
use domain_model::AccountId;
use governor::clock::Clock;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::settings::CreationSettings;

/// A bucket of tokens for each account that has created something lately.
pub(crate) struct CreationLimit {
    accounts: DefaultKeyedRateLimiter<AccountId>,
    per_s: NonZeroU32,
}

impl CreationLimit {
    pub(crate) fn new(settings: &CreationSettings) -> Self {
        let quota = Quota::per_second(settings.per_s).allow_burst(settings.burst);
        Self { accounts: RateLimiter::keyed(quota), per_s: settings.per_s }
    }

    /// Takes one token of the account; 429 where there is none, with the time until the next one.
    pub(crate) fn admit(&self, account: AccountId) -> Result<(), ApiError> {
        self.accounts.check_key(&account).map_err(|not_until| {
            let wait_s = not_until.wait_time_from(self.accounts.clock().now()).as_secs_f64();
            let message = format!(
                "this account creates more than {} operations a second; try again in {wait_s:.2} s",
                self.per_s
            );
            ApiError::new(ErrorCode::TooManyRequests, message).with_detail("retry_after_s", wait_s)
        })
    }

    /// Forgets accounts that have not created anything for so long that their buckets are full again.
    pub(crate) fn forget_idle(&self) {
        self.accounts.retain_recent();
        self.accounts.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use uuid::Uuid;

    use super::*;

    #[test]
    fn one_account_at_its_limit_takes_nothing_from_another() {
        let settings = CreationSettings { per_s: 1.try_into().unwrap(), burst: 3.try_into().unwrap() };
        let limit = CreationLimit::new(&settings);
        let (eager, calm) = (AccountId::from(Uuid::from_u128(1)), AccountId::from(Uuid::from_u128(2)));
        let admitted = (0..10).filter(|_| limit.admit(eager).is_ok()).count();
        assert!((3..=4).contains(&admitted), "{admitted}");
        let refused = limit.admit(eager).unwrap_err();
        assert_eq!((refused.status, refused.retryable), (429, true));
        limit.admit(calm).unwrap();
        limit.forget_idle();
        limit.admit(eager).unwrap_err();
    }
}
