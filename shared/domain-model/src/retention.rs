use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackupId, Timestamp};

/// Which backups of a project stay. A backup stays if any of the rules wants it; pinned ones, those in use and the
/// newest one stay in any case.
///
/// Each rule but `last` divides time (UTC) into periods and keeps the newest backup of each of the newest periods that
/// have one: a project that was asleep for a year still has as many as the rule says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionPolicy {
    /// So many of the newest.
    pub last: u32,
    /// The newest of so many hours.
    pub hourly: u32,
    /// The newest of so many days.
    pub daily: u32,
    /// The newest of so many weeks, which begin on Monday.
    pub weekly: u32,
    /// The newest of so many months.
    pub monthly: u32,
}

impl RetentionPolicy {
    /// What holds where nobody has said otherwise: the last ten, a day by the hour, two weeks by the day, two months
    /// by the week, a year by the month.
    pub const DEFAULT: Self = Self { last: 10, hourly: 24, daily: 14, weekly: 8, monthly: 12 };
}

impl Default for RetentionPolicy {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What retention has to know of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetainedBackup {
    /// Which.
    pub backup_id: BackupId,
    /// The moment that its content is of.
    pub created_at: Timestamp,
    /// Whether somebody wants it to stay.
    pub pinned: bool,
    /// Whether something is being restored or copied from it.
    pub in_use: bool,
}

/// The backups that a policy drops, oldest first. Of backups of the same moment the one with the greatest id counts as
/// the newest.
pub fn dropped_backups(policy: &RetentionPolicy, backups: &[RetainedBackup]) -> Vec<BackupId> {
    let mut newest_first: Vec<&RetainedBackup> = backups.iter().collect();
    newest_first
        .sort_by(|one, other| (other.created_at, &other.backup_id).cmp(&(one.created_at, &one.backup_id)));
    newest_first.dedup_by(|one, other| one.backup_id == other.backup_id);
    let mut kept: HashSet<&BackupId> = HashSet::new();
    kept.extend(newest_first.iter().take(policy.last.max(1) as usize).map(|backup| &backup.backup_id));
    let periods: [(u32, Period); 4] =
        [(policy.hourly, hour), (policy.daily, day), (policy.weekly, week), (policy.monthly, month)];
    for (wanted, period) in periods {
        let mut seen = None;
        let newest_of_each = newest_first.iter().filter(|backup| {
            let period = period(backup.created_at);
            seen.replace(period) != Some(period)
        });
        kept.extend(newest_of_each.take(wanted as usize).map(|backup| &backup.backup_id));
    }
    newest_first
        .into_iter()
        .rev()
        .filter(|backup| !backup.pinned && !backup.in_use && !kept.contains(&backup.backup_id))
        .map(|backup| backup.backup_id.clone())
        .collect()
}

/// Numbers the periods of a length.
type Period = fn(Timestamp) -> i64;

fn hour(moment: Timestamp) -> i64 {
    moment.as_date_time().unix_timestamp().div_euclid(3600)
}

fn day(moment: Timestamp) -> i64 {
    i64::from(moment.as_date_time().to_julian_day())
}

/// Julian day 0 was a Monday.
fn week(moment: Timestamp) -> i64 {
    day(moment).div_euclid(7)
}

fn month(moment: Timestamp) -> i64 {
    let date = moment.as_date_time();
    i64::from(date.year()) * 12 + i64::from(u8::from(date.month()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;
    use time::{Duration, OffsetDateTime};

    use super::*;

    fn id(number: u64) -> BackupId {
        format!("{number:064x}").parse().unwrap()
    }

    fn moment(seconds: i64) -> Timestamp {
        (OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)).into()
    }

    fn every(seconds: i64, count: i64) -> Vec<RetainedBackup> {
        let of = |number: i64| RetainedBackup {
            backup_id: id(u64::try_from(number).unwrap()),
            created_at: moment(1_790_000_000 + number * seconds),
            pinned: false,
            in_use: false,
        };
        (0..count).map(of).collect()
    }

    fn kept(policy: RetentionPolicy, backups: &[RetainedBackup]) -> Vec<u64> {
        let dropped: HashSet<BackupId> = dropped_backups(&policy, backups).into_iter().collect();
        let kept = backups.iter().filter(|backup| !dropped.contains(&backup.backup_id));
        kept.map(|backup| u64::from_str_radix(backup.backup_id.as_str(), 16).unwrap()).collect()
    }

    const NONE: RetentionPolicy = RetentionPolicy { last: 0, hourly: 0, daily: 0, weekly: 0, monthly: 0 };

    #[test]
    fn the_newest_stays_whatever_the_policy_says() {
        assert_eq!(kept(NONE, &every(60, 5)), [4]);
        assert!(dropped_backups(&NONE, &[]).is_empty());
    }

    #[test]
    fn each_rule_keeps_the_newest_of_its_periods() {
        // 1,790,000,000 is 2026-09-21 14:13:20 UTC, a Monday.
        let half_hourly = every(1800, 6);
        assert_eq!(kept(RetentionPolicy { hourly: 2, ..NONE }, &half_hourly), [3, 5]);
        let twelve_hourly = every(43_200, 8);
        assert_eq!(kept(RetentionPolicy { daily: 3, ..NONE }, &twelve_hourly), [4, 6, 7]);
        let daily = every(86_400, 21);
        assert_eq!(kept(RetentionPolicy { weekly: 2, ..NONE }, &daily), [13, 20]);
        assert_eq!(kept(RetentionPolicy { monthly: 9, ..NONE }, &daily), [9, 20]);
        assert_eq!(kept(RetentionPolicy { last: 2, weekly: 2, ..NONE }, &daily), [13, 19, 20]);
    }

    #[test]
    fn what_is_pinned_or_in_use_stays_and_takes_nobodys_place_from_the_rules() {
        let mut backups = every(86_400, 10);
        backups[0].pinned = true;
        backups[1].in_use = true;
        assert_eq!(kept(RetentionPolicy { last: 2, ..NONE }, &backups), [0, 1, 8, 9]);
    }

    #[test]
    fn a_policy_reads_with_the_defaults_for_what_it_leaves_out_and_refuses_what_it_does_not_know() {
        let policy: RetentionPolicy = serde_json::from_str(r#"{"last":3}"#).unwrap();
        assert_eq!(policy, RetentionPolicy { last: 3, ..RetentionPolicy::DEFAULT });
        assert!(serde_json::from_str::<RetentionPolicy>(r#"{"yearly":3}"#).is_err());
    }

    fn any_backups() -> impl Strategy<Value = Vec<RetainedBackup>> {
        let one = (0_i64..400 * 86_400, any::<bool>(), 0_u8..8);
        prop::collection::vec(one, 0..120).prop_map(|all| {
            let of = |(number, (seconds, tied, flags)): (usize, (i64, bool, u8))| RetainedBackup {
                backup_id: id(number as u64),
                created_at: moment(1_790_000_000 + if tied { seconds / 86_400 * 86_400 } else { seconds }),
                pinned: flags == 0,
                in_use: flags == 1,
            };
            all.into_iter().enumerate().map(of).collect()
        })
    }

    fn any_policy() -> impl Strategy<Value = RetentionPolicy> {
        (0_u32..6, 0_u32..6, 0_u32..6, 0_u32..6, 0_u32..6).prop_map(
            |(last, hourly, daily, weekly, monthly)| RetentionPolicy { last, hourly, daily, weekly, monthly },
        )
    }

    proptest! {
        #[test]
        fn nothing_that_must_stay_goes_and_no_more_stays_than_the_rules_want(
            backups in any_backups(), policy in any_policy()
        ) {
            let dropped: HashSet<BackupId> = dropped_backups(&policy, &backups).into_iter().collect();
            let newest = backups.iter().max_by_key(|backup| (backup.created_at, backup.backup_id.clone()));
            for backup in &backups {
                if backup.pinned || backup.in_use || Some(backup) == newest {
                    prop_assert!(!dropped.contains(&backup.backup_id));
                }
            }
            let free = backups.iter().filter(|backup| !backup.pinned && !backup.in_use);
            let stay = free.filter(|backup| !dropped.contains(&backup.backup_id)).count();
            let wanted = policy.last.max(1) + policy.hourly + policy.daily + policy.weekly + policy.monthly;
            prop_assert!(stay <= wanted as usize);
        }

        #[test]
        fn applied_again_to_what_is_left_it_drops_nothing(backups in any_backups(), policy in any_policy()) {
            let dropped: HashSet<BackupId> = dropped_backups(&policy, &backups).into_iter().collect();
            let left: Vec<RetainedBackup> =
                backups.into_iter().filter(|backup| !dropped.contains(&backup.backup_id)).collect();
            prop_assert_eq!(dropped_backups(&policy, &left), Vec::<BackupId>::new());
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(
            backups in any_backups().prop_shuffle(), policy in any_policy()
        ) {
            let mut sorted = backups.clone();
            sorted.sort_by_key(|backup| backup.backup_id.clone());
            prop_assert_eq!(dropped_backups(&policy, &backups), dropped_backups(&policy, &sorted));
        }

        #[test]
        fn a_policy_that_keeps_more_drops_nothing_else(backups in any_backups(), policy in any_policy()) {
            let more = RetentionPolicy { daily: policy.daily + 1, last: policy.last + 1, ..policy };
            let dropped: HashSet<BackupId> = dropped_backups(&policy, &backups).into_iter().collect();
            prop_assert!(dropped_backups(&more, &backups).iter().all(|id| dropped.contains(id)));
        }
    }
}
