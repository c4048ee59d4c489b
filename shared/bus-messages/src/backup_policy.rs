use domain_model::{BackupSchedule, DayWindow, RetentionPolicy};
use serde::{Deserialize, Serialize};

use crate::ApiError;

/// How a project is backed up: what a project says goes before what its account says, and that before the fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupPolicy {
    /// Whether it is backed up by itself. What people ask for is done in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Seconds from one backup to the next, from an hour to 90 days. Only what has changed is backed up again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u32>,
    /// The part of the day that backups begin in, in UTC, as in `23:00-05:00`, where `every_s` is whole days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<DayWindow>,
    /// Which of its backups stay; what is left out of it is as by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<RetentionPolicy>,
}

impl BackupPolicy {
    const LEAST_EVERY_S: u32 = 3600;
    const MOST_EVERY_S: u32 = 90 * 24 * 3600;

    /// Refuses what makes no sense.
    pub fn check(&self) -> Result<(), ApiError> {
        match self.every_s {
            Some(every_s) if !(Self::LEAST_EVERY_S..=Self::MOST_EVERY_S).contains(&every_s) => {
                Err(ApiError::invalid_argument(format!(
                    "every_s is to be from {} to {}, not {every_s}",
                    Self::LEAST_EVERY_S,
                    Self::MOST_EVERY_S
                )))
            }
            _ => Ok(()),
        }
    }

    /// This policy, with what it leaves open taken from `other`.
    #[must_use]
    pub fn over(&self, other: &Self) -> Self {
        Self {
            enabled: self.enabled.or(other.enabled),
            every_s: self.every_s.or(other.every_s),
            window: self.window.or(other.window),
            keep: self.keep.or(other.keep),
        }
    }

    /// What follows from it; daily where nothing is said.
    pub fn schedule(&self) -> BackupSchedule {
        BackupSchedule {
            enabled: self.enabled.unwrap_or(true),
            every_s: self.every_s.unwrap_or(24 * 3600),
            window: self.window,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_policy_that_says_something_counts() {
        let fleet = BackupPolicy { every_s: Some(86_400), enabled: Some(true), ..BackupPolicy::default() };
        let account =
            BackupPolicy { window: Some("23:00-05:00".parse().unwrap()), ..BackupPolicy::default() };
        let project = BackupPolicy { every_s: Some(3600), ..BackupPolicy::default() };
        let policy = project.over(&account).over(&fleet);
        assert_eq!(policy.schedule().every_s, 3600);
        assert!(policy.schedule().enabled);
        assert_eq!(policy.window, account.window);
        assert_eq!(BackupPolicy::default().schedule().every_s, 86_400);
    }

    #[test]
    fn a_period_is_an_hour_at_least() {
        let every = |every_s| BackupPolicy { every_s: Some(every_s), ..BackupPolicy::default() };
        assert!(every(3600).check().is_ok());
        assert_eq!(every(3599).check().unwrap_err().status, 400);
        assert_eq!(every(91 * 86_400).check().unwrap_err().status, 400);
    }
}
