use std::fmt;
use std::str::FromStr;

use time::{Duration, OffsetDateTime, UtcOffset};

use crate::{ProjectId, Timestamp};

/// Seconds after which the scheduler looks again at a project that it has asked to be backed up.
const LOOK_AGAIN_S: i64 = 3600;
/// The same at most, whatever the policy: a repository's upkeep is looked at with its project, and a fleet's policy may
/// have changed.
const LOOK_AT_LEAST_EVERY_S: i64 = 24 * 3600;
/// The same where its host is busy.
const HOST_IS_BUSY_S: i64 = 300;
/// The priority of a backup that the scheduler asks for: what a person asks for goes first.
const SCHEDULED: i32 = -10;
/// The priority of one that is overdue: nobody's wishes hold it up for ever.
const OVERDUE: i32 = 0;

/// When a project is to be backed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackupSchedule {
    /// Whether the scheduler backs it up at all.
    pub enabled: bool,
    /// Seconds from one backup to the next.
    pub every_s: u32,
    /// The part of the day that backups may begin in; the whole day where `None`.
    pub window: Option<DayWindow>,
}

/// A part of each day, in UTC; it may go over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DayWindow {
    /// Seconds from midnight to its beginning.
    pub from_s: u32,
    /// How long it is, in seconds, at least one.
    pub length_s: u32,
}

impl fmt::Display for DayWindow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = |seconds: u32| (seconds / 3600 % 24, seconds / 60 % 60);
        let ((from_hour, from_minute), (to_hour, to_minute)) =
            (clock(self.from_s), clock(self.from_s + self.length_s));
        write!(formatter, "{from_hour:02}:{from_minute:02}-{to_hour:02}:{to_minute:02}")
    }
}

/// Why a text is no window.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no part of a day: give two times in UTC as in 23:00-05:00")]
pub struct DayWindowError(String);

impl FromStr for DayWindow {
    type Err = DayWindowError;

    fn from_str(text: &str) -> Result<Self, DayWindowError> {
        let time = |text: &str| {
            let (hour, minute) = text.split_once(':').filter(|_| text.len() == 5)?;
            let number = |text: &str, below: u32| -> Option<u32> {
                text.parse::<u32>()
                    .ok()
                    .filter(|number| *number < below && text.bytes().all(|byte| byte.is_ascii_digit()))
            };
            Some((number(hour, 24)? * 60 + number(minute, 60)?) * 60)
        };
        let read = || {
            let (from, to) = text.split_once('-')?;
            let (from_s, to_s) = (time(from)?, time(to)?);
            // From one time to the same is the whole day.
            let length_s = if to_s > from_s { to_s - from_s } else { to_s + 24 * 3600 - from_s };
            Some(Self { from_s, length_s })
        };
        read().ok_or_else(|| DayWindowError(text.chars().take(40).collect()))
    }
}

crate::travels_as_text!(DayWindow, "day-window", { "type": "string", "pattern": "^\\d\\d:\\d\\d-\\d\\d:\\d\\d$" });

/// Whether a backup of a project is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupUnderWay {
    /// Nobody has asked for one.
    No,
    /// One is queued.
    Waits,
    /// One is running.
    Runs,
}

/// What the scheduler knows of a project.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackupState {
    /// Whose.
    pub project: ProjectId,
    /// When the scheduler was to look at it; `None` before its first look.
    pub due_at: Option<Timestamp>,
    /// Whether it has something that is in no backup.
    pub changed: bool,
    /// Since when; `None` where that is not known.
    pub changed_since: Option<Timestamp>,
    /// When its newest backup was taken.
    pub last_backup_at: Option<Timestamp>,
    /// Whether the scheduler has asked for a backup since then.
    pub is_asked_for: bool,
    /// Whether a backup is under way.
    pub under_way: BackupUnderWay,
    /// Whether its host has more to do than it can.
    pub host_is_busy: bool,
}

/// What is to be done about a project.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BackupDecision {
    /// The priority of the backup to ask for, if any.
    pub back_up: Option<i32>,
    /// The least priority that a backup which waits already is to have, if any.
    pub raise_to: Option<i32>,
    /// Whether the backup that was asked for last has not come about: it has ended without one, or waits for longer than
    /// a turn lasts. Said once for each that is asked for, and once more for each turn that passes. One that is running
    /// is about to come.
    pub missed: bool,
    /// When to look again: later than now.
    pub look_again_at: Timestamp,
}

impl BackupSchedule {
    /// Decides about a project. Whoever carries it out stores `look_again_at` and the operation together.
    pub fn decide(&self, state: &BackupState, now: Timestamp) -> BackupDecision {
        let rest =
            |look_again_at| BackupDecision { back_up: None, raise_to: None, missed: false, look_again_at };
        let next = self.slot_after(state.project, now);
        let in_a_day = earlier(next, later_by(now, LOOK_AT_LEAST_EVERY_S));
        let Some(due_at) = state.due_at.filter(|_| self.enabled) else {
            return rest(in_a_day);
        };
        let turn = self.slot_before(state.project, now);
        let saved_in_this_turn = state.last_backup_at.is_some_and(|at| at >= turn);
        // What has changed after the turn came waits for the next.
        let changed_before_turn = state.changed && state.changed_since.is_none_or(|since| since <= turn);
        if !changed_before_turn || saved_in_this_turn {
            return rest(in_a_day);
        }
        let look_again = |seconds| earlier(next, later_by(now, seconds));
        let overdue = now.seconds_since(turn) > f64::from(self.every_s) / 4.0
            || state.last_backup_at.is_some_and(|at| now.seconds_since(at) > 2.0 * f64::from(self.every_s));
        if state.under_way != BackupUnderWay::No {
            let is_first_look_of_turn = due_at <= turn;
            let missed =
                state.is_asked_for && is_first_look_of_turn && state.under_way == BackupUnderWay::Waits;
            return BackupDecision {
                raise_to: (overdue || missed).then_some(OVERDUE),
                missed,
                ..rest(look_again(LOOK_AGAIN_S))
            };
        }
        if state.host_is_busy && !overdue {
            return rest(look_again(HOST_IS_BUSY_S));
        }
        BackupDecision {
            back_up: Some(if overdue { OVERDUE } else { SCHEDULED }),
            missed: state.is_asked_for,
            ..rest(look_again(LOOK_AGAIN_S))
        }
    }

    /// The last moment, not after `now`, at which the project's turn came.
    fn slot_before(&self, project: ProjectId, now: Timestamp) -> Timestamp {
        later_by(self.slot_after(project, now), -i64::from(self.every_s.max(1)))
    }

    /// The first moment after `now` at which the project's turn comes. Turns are spread by the project's id: over the
    /// window of each day where the period is whole days and there is one, else over the period.
    pub fn slot_after(&self, project: ProjectId, now: Timestamp) -> Timestamp {
        const DAY_S: i64 = 24 * 3600;
        let every = i64::from(self.every_s.max(1));
        // The last eight bytes of an id are random in every version that is in use here.
        let bytes = project.as_uuid().into_bytes();
        let spread = bytes[8..].iter().fold(0_u64, |sum, byte| sum.rotate_left(8) ^ u64::from(*byte));
        let share = |of: i64| i64::try_from(spread % of.max(1).unsigned_abs()).unwrap_or(0);
        let offset = match self.window {
            Some(window) if every % DAY_S == 0 => {
                let day = share(every / DAY_S) * DAY_S;
                day + i64::from(window.from_s) + share(i64::from(window.length_s))
            }
            _ => share(every),
        };
        let seconds = now.as_date_time().unix_timestamp();
        let slot = seconds - (seconds - offset).rem_euclid(every) + every;
        OffsetDateTime::from_unix_timestamp(slot).map_or(now, |at| at.to_offset(UtcOffset::UTC).into())
    }
}

fn later_by(moment: Timestamp, seconds: i64) -> Timestamp {
    (moment.as_date_time() + Duration::seconds(seconds)).into()
}

fn earlier(first: Timestamp, second: Timestamp) -> Timestamp {
    first.min(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAILY: BackupSchedule = BackupSchedule { enabled: true, every_s: 24 * 3600, window: None };

    fn at(seconds: i64) -> Timestamp {
        OffsetDateTime::from_unix_timestamp(1_795_000_000 + seconds).unwrap().into()
    }

    fn projects() -> impl Iterator<Item = ProjectId> {
        (1..=1000_u64).map(|n| {
            let random = n.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31);
            ProjectId::from(uuid::Uuid::from_u64_pair(0x4000, random))
        })
    }

    fn state(project: ProjectId) -> BackupState {
        BackupState {
            project,
            due_at: Some(at(0)),
            changed: true,
            changed_since: None,
            last_backup_at: None,
            is_asked_for: false,
            under_way: BackupUnderWay::No,
            host_is_busy: false,
        }
    }

    #[test]
    fn turns_come_once_a_period_and_are_spread_over_it() {
        let mut of_each_hour = [0; 24];
        for project in projects() {
            let slot = DAILY.slot_after(project, at(0));
            let wait = slot.seconds_since(at(0));
            assert!((0.0..=86_400.0).contains(&wait) && wait > 0.0, "{wait}");
            assert_eq!(DAILY.slot_after(project, slot).seconds_since(slot), 86_400.0);
            assert_eq!(DAILY.slot_before(project, slot), slot);
            of_each_hour[(wait / 3600.0) as usize % 24] += 1;
        }
        assert!(of_each_hour.iter().all(|count| (15..80).contains(count)), "{of_each_hour:?}");
    }

    #[test]
    fn a_window_holds_every_turn() {
        let window = Some(DayWindow { from_s: 23 * 3600, length_s: 2 * 3600 });
        for every_s in [24 * 3600, 7 * 24 * 3600] {
            let schedule = BackupSchedule { every_s, window, ..DAILY };
            for project in projects() {
                let slot = schedule.slot_after(project, at(0));
                let of_day = slot.as_date_time().unix_timestamp().rem_euclid(86_400);
                assert!(!(3600..23 * 3600).contains(&of_day), "{slot}");
                assert!(slot.seconds_since(at(0)) <= f64::from(every_s));
            }
        }
    }

    #[test]
    fn a_window_is_written_as_it_is_read() {
        for text in ["23:00-05:00", "00:00-00:00", "01:30-01:31"] {
            let window: DayWindow = text.parse().unwrap();
            assert_eq!(window.to_string(), text);
            assert!(window.length_s > 0);
        }
        for bad in
            ["", "23:00", "24:00-01:00", "1:00-2:00", "23:60-24:00", "23:00-05:00-06:00", "+1:00-02:00"]
        {
            assert!(bad.parse::<DayWindow>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_day_of_looks_backs_each_changed_project_up_once() {
        for project in projects().take(50) {
            let mut state = BackupState { due_at: None, ..state(project) };
            let mut now = at(0);
            let mut backups = 0;
            while now < at(3 * 86_400) {
                let decision = DAILY.decide(&state, now);
                assert!(decision.look_again_at > now);
                assert!(!decision.missed);
                if decision.back_up.is_some() {
                    backups += 1;
                    state.last_backup_at = Some(later_by(now, 60));
                }
                state.due_at = Some(decision.look_again_at);
                now = decision.look_again_at;
            }
            assert!((2..=3).contains(&backups), "{backups}");
        }
    }

    #[test]
    fn what_has_not_changed_or_is_not_wanted_is_left_alone() {
        let project = projects().next().unwrap();
        let slot = DAILY.slot_after(project, at(0));
        for left in [
            DAILY.decide(&BackupState { changed: false, ..state(project) }, slot),
            DAILY.decide(&BackupState { under_way: BackupUnderWay::Waits, ..state(project) }, slot),
            DAILY.decide(&BackupState { last_backup_at: Some(slot), ..state(project) }, slot),
            BackupSchedule { enabled: false, ..DAILY }.decide(&state(project), slot),
        ] {
            assert_eq!(left.back_up, None);
        }
    }

    #[test]
    fn a_backup_that_did_not_come_about_is_missed_and_asked_for_again() {
        let project = projects().next().unwrap();
        let slot = DAILY.slot_after(project, at(0));
        let first = DAILY.decide(&state(project), slot);
        assert_eq!((first.back_up, first.missed), (Some(SCHEDULED), false));
        assert_eq!(first.look_again_at.seconds_since(slot), LOOK_AGAIN_S as f64);
        let failed = BackupState { is_asked_for: true, ..state(project) };
        let again = DAILY.decide(&failed, first.look_again_at);
        assert_eq!((again.back_up, again.missed), (Some(SCHEDULED), true));
    }

    #[test]
    fn a_backup_that_waits_for_a_turn_is_missed_once_a_turn_and_goes_ahead_when_it_is_overdue() {
        let project = projects().next().unwrap();
        for every_s in [3600, 24 * 3600, 7 * 24 * 3600] {
            let schedule = BackupSchedule { every_s, ..DAILY };
            let mut now = schedule.slot_after(project, at(0));
            let asked = schedule.decide(&BackupState { due_at: Some(now), ..state(project) }, now);
            assert_eq!((asked.back_up, asked.missed), (Some(SCHEDULED), false));
            let (mut misses, mut raised_after) = (0, None);
            let turns = 3;
            let end = later_by(now, turns * i64::from(every_s));
            let began = now;
            let mut due_at = asked.look_again_at;
            while due_at <= end {
                now = due_at;
                let waiting = BackupState {
                    due_at: Some(due_at),
                    under_way: BackupUnderWay::Waits,
                    is_asked_for: true,
                    ..state(project)
                };
                let look = schedule.decide(&waiting, now);
                assert_eq!(look.back_up, None);
                misses += i64::from(look.missed);
                if look.raise_to == Some(OVERDUE) {
                    raised_after.get_or_insert(now.seconds_since(began));
                }
                due_at = look.look_again_at;
            }
            assert_eq!(misses, turns, "every {every_s} s");
            let most_s = f64::from(every_s) / 4.0 + LOOK_AGAIN_S as f64;
            assert!(raised_after.is_some_and(|after| after <= most_s), "{raised_after:?}");
        }
    }

    #[test]
    fn a_backup_that_runs_when_the_next_turn_comes_is_not_missed() {
        let project = projects().next().unwrap();
        let turn = DAILY.slot_after(project, at(0));
        let waits = BackupState {
            due_at: Some(turn),
            under_way: BackupUnderWay::Waits,
            is_asked_for: true,
            ..state(project)
        };
        assert!(DAILY.decide(&waits, turn).missed);
        let runs = BackupState { under_way: BackupUnderWay::Runs, ..waits };
        let look = DAILY.decide(&runs, turn);
        assert_eq!((look.missed, look.back_up), (false, None));
    }

    #[test]
    fn what_changes_after_a_turn_waits_for_the_next_though_it_is_looked_at_daily() {
        let weekly = BackupSchedule { every_s: 7 * 24 * 3600, ..DAILY };
        let project = projects().next().unwrap();
        let turn = weekly.slot_after(project, at(0));
        let two_days_later = later_by(turn, 2 * 86_400);
        let changed = BackupState { changed_since: Some(later_by(turn, 60)), ..state(project) };
        let look = weekly.decide(&changed, two_days_later);
        assert_eq!((look.back_up, look.look_again_at), (None, later_by(two_days_later, 86_400)));
        let next = weekly.slot_after(project, turn);
        assert_eq!(weekly.decide(&changed, next).back_up, Some(SCHEDULED));
        let was_there = BackupState { changed_since: Some(turn), ..state(project) };
        assert_eq!(weekly.decide(&was_there, two_days_later).back_up, Some(OVERDUE));
    }

    #[test]
    fn a_busy_host_waits_but_not_for_ever() {
        let project = projects().next().unwrap();
        let slot = DAILY.slot_after(project, at(0));
        let busy = BackupState { host_is_busy: true, ..state(project) };
        let now = later_by(slot, 60);
        let waits = DAILY.decide(&busy, now);
        assert_eq!(waits.back_up, None);
        assert_eq!(waits.look_again_at.seconds_since(now), HOST_IS_BUSY_S as f64);
        assert_eq!(DAILY.decide(&busy, later_by(slot, 7 * 3600)).back_up, Some(OVERDUE));
    }
}
