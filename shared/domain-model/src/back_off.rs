use std::time::Duration;

/// Full-jitter exponential back-off: before try `n` (from 1) wait a random share of
/// `min(cap, base · 2^(n-1))`, so that many that failed together do not come back together.
/// (Rule: AWS Architecture Blog, "Exponential Backoff And Jitter", the "full jitter" variant.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// Upper bound of the first wait.
    pub base: Duration,
    /// Upper bound of every wait.
    pub cap: Duration,
}

impl BackOff {
    /// For failed attempts of an operation.
    pub const OPERATION: Self = Self { base: Duration::from_secs(1), cap: Duration::from_secs(300) };

    /// The wait after `failures` failures (at least 1), for a random `share` in `0.0..=1.0`.
    pub fn wait(&self, failures: u32, share: f64) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let bound = self.base.saturating_mul(1 << doublings).min(self.cap);
        bound.mul_f64(share.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_shrink_with_the_share() {
        let back_off = BackOff { base: Duration::from_secs(1), cap: Duration::from_secs(10) };
        let bounds: Vec<u64> = (1..=6).map(|n| back_off.wait(n, 1.0).as_secs()).collect();
        assert_eq!(bounds, [1, 2, 4, 8, 10, 10]);
        assert_eq!(back_off.wait(3, 0.25), Duration::from_secs(1));
        assert_eq!(back_off.wait(u32::MAX, 0.0), Duration::ZERO);
    }
}
