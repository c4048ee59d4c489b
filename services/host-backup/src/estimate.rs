//! How long a restore will take, from how long others took here.

use backup_repository::Amount;
use bus_messages::kinds::{EstimateBasis, RestoreEstimate};
use host_operations::{JobRecord, JobRecords, JobState};

/// The latest restores that count.
const LATEST: usize = 20;

/// Creating a file takes as long as so many bytes of another.
const BYTES_A_FILE: f64 = 32.0 * 1024.0;

/// Bytes a second, each file counted as above, where there is nothing to go by.
const ASSUMED_SPEED: f64 = 30e6;

/// What restores, among what this host does.
const RESTORES: [&str; 3] = ["project-restore", "project-start", "restore-drill"];

/// The time for so much, by the latest restores in the records.
pub(crate) fn estimate(records: &JobRecords, amount: Amount) -> RestoreEstimate {
    let records = records.list().unwrap_or_else(|error| {
        tracing::warn!(%error, "the records of jobs could not be read");
        Vec::new()
    });
    let (speed, basis) = match speed(&records) {
        Some(speed) => (speed, EstimateBasis::RestoresOfHost),
        None => (ASSUMED_SPEED, EstimateBasis::Assumption),
    };
    RestoreEstimate { seconds: weight(amount.files, amount.bytes) / speed, basis }
}

fn weight(files: u64, bytes: u64) -> f64 {
    bytes as f64 + files as f64 * BYTES_A_FILE
}

/// Of the latest restores that came to something, all together.
fn speed(records: &[JobRecord]) -> Option<f64> {
    let restored = records.iter().rev().filter(|record| {
        record.state == JobState::Succeeded && RESTORES.contains(&record.kind.as_str()) && record.files > 0
    });
    let (mut done, mut seconds) = (0.0, 0.0);
    for record in restored.take(LATEST) {
        if let (Some(began), Some(ended)) = (record.started_at, record.finished_at) {
            done += weight(record.files, record.bytes);
            seconds += ended.seconds_since(began).max(0.001);
        }
    }
    (seconds > 0.0).then(|| done / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: &str, state: JobState, bytes: u64, seconds: u32) -> JobRecord {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        JobRecord {
            op_id: id.parse().unwrap(),
            attempt: 1,
            lease_id: id.parse().unwrap(),
            kind: kind.parse().unwrap(),
            project_id: id.parse().unwrap(),
            state,
            created_at: "2026-11-21T07:00:00Z".parse().unwrap(),
            started_at: Some("2026-11-21T07:00:00Z".parse().unwrap()),
            finished_at: Some(format!("2026-11-21T07:00:{seconds:02}Z").parse().unwrap()),
            bucket: None,
            files: 1000,
            bytes,
            error: None,
        }
    }

    #[test]
    fn it_is_taken_from_restores_that_succeeded_and_from_nothing_else() {
        assert_eq!(speed(&[]), None);
        let useless = [
            record("project-backup", JobState::Succeeded, 1_000_000_000, 1),
            record("project-restore", JobState::Failed, 1_000_000_000, 1),
        ];
        assert_eq!(speed(&useless), None);
        let restores = [
            record("project-restore", JobState::Succeeded, 100_000_000, 10),
            record("restore-drill", JobState::Succeeded, 200_000_000, 20),
        ];
        let expected = (300e6 + 2000.0 * BYTES_A_FILE) / 30.0;
        assert!((speed(&restores).unwrap() - expected).abs() < 1.0);
    }
}
