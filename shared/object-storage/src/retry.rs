//! How often and how long a request is tried.
//!
//! Without a limit a stalled connection holds a backup for days; without jitter all hosts come back to a
//! recovering server in the same millisecond.

use std::time::Duration;

/// Attempts at one request, with exponential back-off and full jitter between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is sent at most; 0 counts as 1.
    pub attempts: u32,
    /// Longest wait after the first attempt; it doubles with each further one.
    pub base_delay: Duration,
    /// No wait is longer.
    pub maximum_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 5, base_delay: Duration::from_millis(100), maximum_delay: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// One attempt, no retry.
    pub const fn once() -> Self {
        Self { attempts: 1, base_delay: Duration::ZERO, maximum_delay: Duration::ZERO }
    }

    /// A random wait after failed attempt `attempt` (from 1): anything between nothing and the ceiling.
    pub(crate) fn delay_after(&self, attempt: u32) -> Duration {
        let doubled = 2u32.saturating_pow(attempt.saturating_sub(1));
        let ceiling = self.base_delay.saturating_mul(doubled).min(self.maximum_delay);
        ceiling.mul_f64(rand::random::<f64>())
    }
}

/// How long a request may take. The time for its body comes on top, by its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimits {
    /// One attempt, without the time for its body.
    pub attempt: Duration,
    /// All attempts at one request, without the time for their bodies: after it no further one begins.
    pub operation: Duration,
    /// The slowest line that is still waited for, in bytes a second.
    pub slowest_bytes_per_second: u64,
}

impl Default for TimeLimits {
    fn default() -> Self {
        Self {
            attempt: Duration::from_secs(30),
            operation: Duration::from_secs(120),
            slowest_bytes_per_second: 256 * 1024,
        }
    }
}

impl TimeLimits {
    /// Limit of one attempt that carries `body_bytes`.
    pub(crate) fn attempt(&self, body_bytes: u64) -> Duration {
        self.attempt.saturating_add(self.body(body_bytes))
    }

    /// Limit of all attempts at a request that carries `body_bytes`.
    pub(crate) fn operation(&self, body_bytes: u64) -> Duration {
        self.operation.saturating_add(self.body(body_bytes).saturating_mul(2))
    }

    fn body(&self, body_bytes: u64) -> Duration {
        Duration::from_secs(body_bytes / self.slowest_bytes_per_second.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_stay_under_a_ceiling_that_doubles_up_to_the_maximum() {
        let policy = RetryPolicy::default();
        for (attempt, ceiling_ms) in [(1, 100), (2, 200), (3, 400), (7, 5000), (60, 5000)] {
            for _ in 0..100 {
                assert!(policy.delay_after(attempt) <= Duration::from_millis(ceiling_ms));
            }
        }
    }

    #[test]
    fn a_longer_body_gets_more_time() {
        let limits = TimeLimits::default();
        assert_eq!(limits.attempt(0), Duration::from_secs(30));
        assert_eq!(limits.attempt(64 * 1024 * 1024), Duration::from_secs(30 + 256));
        assert!(limits.operation(64 * 1024 * 1024) > limits.attempt(64 * 1024 * 1024));
    }
}
