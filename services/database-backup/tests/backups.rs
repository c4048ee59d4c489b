//! Backups and restores of real databases in a bucket of a real S3 server.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use database_backup::{BackupKind, FailureKind, OperationState};
use object_storage::{Attributes, ObjectStorageErrorKind, PutCondition, PutMode};
use secrecy::ExposeSecret as _;
use support::{Fixture, Mood, Proxy, backup, failed, restored, succeeded, wait_for};
use time::macros::datetime;

/// A DuckDB that inserts one row after another into `written`, each in its own transaction, until it is stopped.
struct Writer {
    process: Child,
    stop: Arc<AtomicBool>,
    feeder: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(fixture: &Fixture, settings: &str) -> Self {
        let mut process = Command::new(&fixture.duckdb)
            .args(["-no-init", "-batch", "-bail"])
            .arg(fixture.database())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = process.stdin.take().unwrap();
        writeln!(input, "{settings}; CREATE TABLE IF NOT EXISTS written(number INTEGER, text VARCHAR);")
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let feeder = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::SeqCst) {
                let row = format!("INSERT INTO written VALUES ({number}, repeat('x', 500));\n");
                if input.write_all(row.as_bytes()).is_err() {
                    return;
                }
                number += 1;
            }
        });
        let log = support_wal(fixture);
        let writer = Self { process, stop, feeder: Some(feeder) };
        wait_for("the writer's first rows", || std::fs::metadata(&log).ok().filter(|log| log.len() > 2000));
        writer
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.feeder.take().unwrap().join().unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn support_wal(fixture: &Fixture) -> std::path::PathBuf {
    fixture.path("hesocial.duckdb.wal")
}

/// What a restored copy must be: the first rows of the writer, none missing, and everything else.
fn whole_prefix(fixture: &Fixture, file: &std::path::Path) -> i64 {
    let found = fixture.duckdb(file, "SELECT count(*), coalesce(max(number), -1) FROM written");
    let (count, last) = found.split_once(',').unwrap();
    assert_eq!(count.parse::<i64>().unwrap(), last.parse::<i64>().unwrap() + 1, "a hole in the rows");
    count.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duckdb_of_200_mb_is_copied_whole_while_a_writer_is_at_work() {
    let Some(fixture) = Fixture::new().await else { return };
    // Random digits do not compress: this is 200 MB on disk.
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE large AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) || md5((i + 2)::VARCHAR) AS digest FROM range(4500000) r(i)",
    );
    let size = std::fs::metadata(fixture.database()).unwrap().len();
    assert!(size > 200_000_000, "{size}");
    // First a log that only grows, then one that is folded into the file again and again.
    for (round, settings) in
        ["SET wal_autocheckpoint='1TB'", "SET wal_autocheckpoint='2MB'"].iter().enumerate()
    {
        let writer = Writer::start(&fixture, settings);
        let service = fixture.service();
        let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
        writer.stop();
        assert!(taken.bytes >= 200_000_000);
        let elsewhere = format!("elsewhere-{round}.duckdb");
        let other = fixture.service_of(&elsewhere, &[]);
        let back = restored(succeeded(other.begin_restore(taken.backup_id).unwrap()).await);
        assert_eq!(
            (back.bytes, back.sha256.as_ref(), &back.tables),
            (taken.bytes, Some(&taken.sha256), &taken.tables)
        );
        let copy = fixture.path(&elsewhere);
        assert_eq!(
            fixture.duckdb(&copy, "SELECT count(DISTINCT digest), max(i) FROM large"),
            "4500000,4499999"
        );
        assert!(
            whole_prefix(&fixture, &copy) > 0,
            "the writer's rows are in its log, and the log is in the copy"
        );
        fixture.duckdb(&fixture.database(), "DROP TABLE written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sqlite_database_is_copied_whole_while_a_writer_is_at_work() {
    let Some(fixture) = Fixture::new().await else { return };
    for mode in ["WAL", "DELETE"] {
        let name = format!("{mode}.sqlite");
        let path = fixture.path(&name);
        let database = rusqlite::Connection::open(&path).unwrap();
        database.pragma_update(None, "journal_mode", mode).unwrap();
        database.busy_timeout(Duration::from_secs(30)).unwrap();
        database.execute_batch("CREATE TABLE written(number INTEGER, text TEXT)").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let writer = std::thread::spawn(move || {
            let mut number = 0;
            while !stopped.load(Ordering::SeqCst) {
                let text = "x".repeat(500);
                database.execute("INSERT INTO written VALUES (?1, ?2)", (number, text)).unwrap();
                number += 1;
            }
            number
        });
        let service = fixture.service_of(&name, &[]);
        std::thread::sleep(Duration::from_millis(200));
        let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
        assert!(taken.backup_id.ends_with(".sqlite"), "{taken:?}");
        // Restored under it, it would be ruined.
        let refused = failed(service.begin_restore(taken.backup_id.clone()).unwrap()).await;
        stop.store(true, Ordering::SeqCst);
        let rows = writer.join().unwrap();
        assert_eq!(refused.code, FailureKind::DatabaseOpen, "{}", refused.message);

        let other = fixture.service_of(&format!("other-{mode}.sqlite"), &[]);
        succeeded(other.begin_restore(taken.backup_id).unwrap()).await;
        let copy = rusqlite::Connection::open(fixture.path(&format!("other-{mode}.sqlite"))).unwrap();
        let (count, last): (i64, i64) = copy
            .query_row("SELECT count(*), max(number) FROM written", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert!(count == last + 1 && count <= rows, "{count} {last} {rows}");
        assert_eq!(taken.tables[0].rows, count as u64);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_says_what_the_document_says_and_is_listed_so() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    fixture.now.store(datetime!(2024-12-30 15:30:00 UTC).unix_timestamp(), Ordering::SeqCst);
    let service = fixture.service();
    let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    assert_eq!(taken.backup_id, "hesocial-manual-20241230-153000.duckdb");
    assert_eq!((taken.timestamp.as_str(), taken.tags.kind.as_str()), ("2024-12-30T15:30:00Z", "manual"));
    let rows: Vec<(&str, u64)> =
        taken.tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
    assert_eq!(rows, [("club.G\u{e4}ste \"1\"", 1), ("events", 1000)]);
    assert_eq!(fixture.keys().await, ["backups/hesocial-manual-20241230-153000.duckdb"]);
    // The object is the database itself: any DuckDB opens it.
    let body = fixture
        .objects()
        .get(&"backups/hesocial-manual-20241230-153000.duckdb".parse().unwrap())
        .await
        .unwrap();
    std::fs::write(fixture.path("plain.duckdb"), &body).unwrap();
    assert_eq!(fixture.duckdb(&fixture.path("plain.duckdb"), "SELECT count(*) FROM events"), "1000");
    // A second of the same second never replaces the first.
    let second = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    assert_eq!(second.backup_id, "hesocial-manual-20241230-153000-2.duckdb");
    let third = backup(succeeded(service.begin_backup(BackupKind::Shutdown).unwrap()).await);
    assert_eq!(third.backup_id, "hesocial-backup-20241230-153000.duckdb");
    let listed: Vec<(String, String)> = service
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|backup| (backup.id.to_string(), backup.kind))
        .collect();
    let expected = [
        ("hesocial-manual-20241230-153000-2.duckdb", "manual"),
        ("hesocial-manual-20241230-153000.duckdb", "manual"),
        ("hesocial-backup-20241230-153000.duckdb", "shutdown"),
    ];
    assert_eq!(listed, expected.map(|(id, kind)| (id.to_owned(), kind.to_owned())));
    assert!(!fixture.path("work-hesocial.duckdb").join("pending").read_dir().unwrap().any(|_| true));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_backups_at_once_are_one_operation() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let (first, second) = (
        service.begin_backup(BackupKind::Manual).unwrap(),
        service.begin_backup(BackupKind::Manual).unwrap(),
    );
    assert_eq!(first.now().op, second.now().op);
    assert_eq!(service.begin_rollback().unwrap_err().kind(), FailureKind::Busy);
    let (first, second) = (backup(succeeded(first).await), backup(succeeded(second).await));
    assert_eq!(first, second);
    assert_eq!(service.list().await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_validate_is_never_uploaded() {
    let Some(fixture) = Fixture::new().await else { return };
    let service = fixture.service();
    let missing = failed(service.begin_backup(BackupKind::Manual).unwrap()).await;
    assert_eq!(missing.code, FailureKind::DatabaseMissing);

    std::fs::write(fixture.database(), "no database at all").unwrap();
    let foreign = failed(service.begin_backup(BackupKind::Manual).unwrap()).await;
    assert_eq!(foreign.code, FailureKind::NotValid);

    std::fs::remove_file(fixture.database()).unwrap();
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) AS digest FROM range(200000) r(i)",
    );
    let good = std::fs::read(fixture.database()).unwrap();
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 8].copy_from_slice(b"DAMAGED!");
    std::fs::write(fixture.database(), &damaged).unwrap();
    let refused = failed(service.begin_backup(BackupKind::Manual).unwrap()).await;
    assert_eq!(refused.code, FailureKind::NotValid, "{}", refused.message);
    assert!(refused.message.contains("Corrupt"), "{}", refused.message);

    // A log that is damaged in its middle is no torn end.
    std::fs::write(fixture.database(), &good).unwrap();
    let writer = Writer::start(&fixture, "SET wal_autocheckpoint='1TB'");
    wait_for("a log of some length", || {
        std::fs::metadata(support_wal(&fixture)).ok().filter(|log| log.len() > 50_000)
    });
    let log = std::fs::read(support_wal(&fixture)).unwrap();
    drop(writer);
    let mut damaged = log;
    damaged[20_000..20_008].copy_from_slice(b"DAMAGED!");
    std::fs::write(support_wal(&fixture), damaged).unwrap();
    let refused = failed(service.begin_backup(BackupKind::Manual).unwrap()).await;
    assert_eq!(refused.code, FailureKind::NotValid, "{}", refused.message);

    assert!(fixture.keys().await.is_empty());
    assert_eq!(service.pending_uploads(), 0, "what is not valid is not kept for an upload either");
    let work = fixture.path("work-hesocial.duckdb").read_dir().unwrap().count();
    assert_eq!(work, 2, "the lock and the directory of pending copies, no temporary ones");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_keeps_what_was_there_and_a_rollback_brings_it_back() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let count = || fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events");
    let first = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    fixture.duckdb(&fixture.database(), "DELETE FROM events WHERE id >= 10");
    let second = backup(succeeded(service.begin_backup(BackupKind::Shutdown).unwrap()).await);
    // What is there now was never backed up, and a part of it is in the log only.
    let writer = Writer::start(&fixture, "SET wal_autocheckpoint='1TB'");
    let refused = failed(service.begin_restore(first.backup_id.clone()).unwrap()).await;
    assert_eq!(refused.code, FailureKind::DatabaseOpen);
    assert!(refused.message.contains("duckdb"), "{}", refused.message);
    drop(writer);
    assert!(support_wal(&fixture).exists());

    let back = restored(succeeded(service.begin_restore(first.backup_id.clone()).unwrap()).await);
    assert_eq!(count(), "1000");
    assert!(!support_wal(&fixture).exists());
    let statuses = || async {
        let listed = service.list().await.unwrap();
        listed
            .into_iter()
            .filter(|backup| backup.latest_restored)
            .map(|backup| backup.id.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(statuses().await, std::slice::from_ref(&first.backup_id));
    let rollback = back.rollback_copy.unwrap();
    assert!(
        whole_prefix(&fixture, std::path::Path::new(&rollback)) > 0,
        "the rollback copy opens by itself, log and all"
    );

    let back = restored(succeeded(service.begin_rollback().unwrap()).await);
    assert!(back.rolled_back);
    assert_eq!(count(), "10");
    assert!(whole_prefix(&fixture, &fixture.database()) > 0);
    assert!(statuses().await.is_empty(), "what is there now is no backup");

    succeeded(service.begin_restore(second.backup_id.clone()).unwrap()).await;
    assert_eq!(statuses().await, std::slice::from_ref(&second.backup_id));
    service.set_latest_restored(&first.backup_id).await.unwrap();
    assert_eq!(statuses().await, [first.backup_id]);
    // One rollback copy, no rubbish.
    let names: Vec<String> = fixture
        .directory
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("rollback-") || name.contains("incoming-"))
        .collect();
    assert!(names.iter().filter(|name| !name.ends_with(".wal")).count() == 1, "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_backup_is_not_put_in_place() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    let before = std::fs::read(fixture.database()).unwrap();
    let key: object_storage::ObjectKey = format!("backups/{}", taken.backup_id).parse().unwrap();
    let objects = fixture.objects();
    let attributes = objects.describe(&key).await.unwrap().attributes;
    let mut body = objects.get(&key).await.unwrap().to_vec();
    let place = body.len() - 100;
    body[place] ^= 1;
    objects.delete(std::slice::from_ref(&key)).await.unwrap();
    objects.put_if(&key, body.into(), PutCondition::Absent, &attributes).await.unwrap();
    let refused = failed(service.begin_restore(taken.backup_id.clone()).unwrap()).await;
    assert_eq!(refused.code, FailureKind::ChecksumMismatch, "{}", refused.message);

    // Without a checksum of its own it must at least open.
    let foreign: object_storage::ObjectKey =
        "backups/hesocial-backup-20200101-000000.duckdb".parse().unwrap();
    objects.put(&foreign, "        DUCK and nothing more".into(), PutMode::Overwrite).await.unwrap();
    let refused =
        failed(service.begin_restore("hesocial-backup-20200101-000000.duckdb".to_owned()).unwrap()).await;
    assert_eq!(refused.code, FailureKind::NotValid, "{}", refused.message);
    assert!(std::fs::read(fixture.database()).unwrap() == before);
    let left = fixture
        .directory
        .path()
        .read_dir()
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains("incoming"));
    assert_eq!(left.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_backup_is_restored_as_it_was() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE t AS SELECT i, repeat('abc', 20) || i AS text FROM range(300000) r(i)",
    );
    let service = fixture.service_of("hesocial.duckdb", &[("backup", "compress = true")]);
    let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    let stored = &service.list().await.unwrap()[0];
    assert!(
        stored.stored_bytes < taken.bytes && stored.facts.as_ref().unwrap().encoding == "zstd",
        "{stored:?}"
    );
    // Whether a backup is compressed is its own business, not that of who restores it.
    let other = fixture.service_of("other.duckdb", &[]);
    let back = restored(succeeded(other.begin_restore(taken.backup_id).unwrap()).await);
    assert_eq!((back.bytes, back.sha256), (taken.bytes, Some(taken.sha256)));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encrypted_backup_is_restored_by_who_has_the_key_and_by_nobody_else() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let (key, other) = (age::x25519::Identity::generate(), age::x25519::Identity::generate());
    let key_file = |name: &str, key: &age::x25519::Identity| {
        std::fs::write(fixture.path(name), key.to_string().expose_secret()).unwrap();
        format!("identity_file = {:?}", fixture.path(name).display().to_string())
    };
    let (right, wrong) = (key_file("right.txt", &key), key_file("wrong.txt", &other));
    let recipients = format!("recipients = \"{}\"", key.to_public());
    for (compress, encoding) in [("compress = false", "none"), ("compress = true", "zstd")] {
        let tables = [("backup", compress), ("encryption", recipients.as_str())];
        let service = fixture.service_of("hesocial.duckdb", &tables);
        let taken = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
        let facts = service.list().await.unwrap().remove(0).facts.unwrap();
        assert_eq!((facts.encoding.as_str(), facts.encryption.as_str()), (encoding, "age"));
        let object = format!("backups/{}", taken.backup_id).parse().unwrap();
        let body = fixture.objects().get(&object).await.unwrap();
        assert!(body.starts_with(b"age-encryption.org/v1\n"));
        let attributes = fixture.objects().describe(&object).await.unwrap().attributes;
        assert!(!format!("{attributes:?}").contains("events"), "{attributes:?}");

        // Without any of this software: the `age` command line and, where it is compressed, zstd.
        if test_harness::age_is_available() {
            let (sealed, opened) = (fixture.path("sealed.age"), fixture.path("opened"));
            std::fs::write(&sealed, &body).unwrap();
            let mut command = Command::new("age");
            command.args(["--decrypt", "--identity"]).arg(fixture.path("right.txt"));
            let output = command.arg("--output").arg(&opened).arg(&sealed).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let opened = std::fs::read(opened).unwrap();
            let opened =
                if encoding == "zstd" { zstd::decode_all(opened.as_slice()).unwrap() } else { opened };
            assert!(opened == std::fs::read(fixture.path("hesocial.duckdb")).unwrap(), "other bytes");
        }

        for (setting, hint) in [(None, "set encryption.identity_file"), (Some(&wrong), "somebody else")] {
            let tables: Vec<(&str, &str)> =
                setting.iter().map(|setting| ("encryption", setting.as_str())).collect();
            let stranger = fixture.service_of("stranger.duckdb", &tables);
            let refused = failed(stranger.begin_restore(taken.backup_id.clone()).unwrap()).await;
            assert_eq!(refused.code, FailureKind::KeyMissing, "{}", refused.message);
            assert!(refused.message.contains(hint), "{}", refused.message);
            assert!(!fixture.path("stranger.duckdb").exists());
        }
        let name = format!("back-{encoding}.duckdb");
        let owner = fixture.service_of(&name, &[("encryption", right.as_str())]);
        let back = restored(succeeded(owner.begin_restore(taken.backup_id.clone()).unwrap()).await);
        assert_eq!((back.sha256, &back.tables), (Some(taken.sha256), &taken.tables));

        // A bit of it turned over: not one wrong row is restored.
        let mut damaged = body.to_vec();
        let place = damaged.len() - 100;
        damaged[place] ^= 1;
        fixture.objects().delete(std::slice::from_ref(&object)).await.unwrap();
        let objects = fixture.objects();
        objects.put_if(&object, damaged.into(), PutCondition::Absent, &attributes).await.unwrap();
        let refused = failed(owner.begin_restore(taken.backup_id).unwrap()).await;
        assert_eq!(refused.code, FailureKind::ChecksumMismatch, "{}", refused.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_simulated_days_of_retention() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let day = |number: i64| datetime!(2026-01-01 12:00:00 UTC) + time::Duration::days(number);
    let set_day = |number: i64| fixture.now.store(day(number).unix_timestamp(), Ordering::SeqCst);
    set_day(0);
    let first = backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await);
    service.set_latest_restored(&first.backup_id).await.unwrap();
    for number in 1..40 {
        set_day(number);
        succeeded(service.begin_backup(BackupKind::Scheduled).unwrap()).await;
        let backups = service.list().await.unwrap();
        let oldest_kept = day(number) - time::Duration::days(30);
        for kept in &backups {
            assert!(
                kept.timestamp >= oldest_kept || kept.id.as_str() == first.backup_id,
                "day {number}: {}",
                kept.id
            );
        }
        assert_eq!(backups.len() as i64, (number + 1).min(32), "30 days, today, and the one restored last");
    }
    // Nothing new for a year: the newest one stays, and so does the one that is in use.
    set_day(400);
    succeeded(service.begin_maintenance().unwrap()).await;
    let left: Vec<String> =
        service.list().await.unwrap().into_iter().map(|backup| backup.id.to_string()).collect();
    assert_eq!(left, ["hesocial-backup-20260209-120000.duckdb".to_owned(), first.backup_id]);
    assert!(service.at_risk(day(400)).is_some());
    // What is called otherwise is nobody's business here.
    fixture
        .objects()
        .put(&"backups/other.txt".parse().unwrap(), "x".into(), PutMode::Overwrite)
        .await
        .unwrap();
    succeeded(service.begin_maintenance().unwrap()).await;
    assert!(fixture.keys().await.contains(&"backups/other.txt".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_upload_is_not_listed_and_is_gone_on_with() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.duckdb(
        &fixture.database(),
        "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS digest FROM range(700000) r(i)",
    );
    let proxy = Proxy::start(&fixture.endpoint, Mood::Slow(Duration::from_millis(150)));
    let settings = fixture.settings("hesocial.duckdb", &proxy.endpoint, &[]);
    let service =
        database_backup::DatabaseBackup::new(settings, Arc::new(time::OffsetDateTime::now_utc)).unwrap();
    let operation = service.begin_backup(BackupKind::Shutdown).unwrap();
    let watched = operation.clone();
    let part_of_it = || {
        let now = watched.now();
        assert_eq!(now.state, OperationState::Running, "{now:?}");
        (now.phase == "uploading" && now.done_bytes > 0).then_some(())
    };
    wait_for("a part of the upload", part_of_it);
    service.operations().abandon();
    assert_eq!(failed(operation).await.code, FailureKind::Abandoned);
    assert!(fixture.service().list().await.unwrap().is_empty());
    assert!(fixture.keys().await.is_empty());
    assert_eq!(service.pending_uploads(), 1);

    // Another process goes on: fewer parts than there are.
    let later = fixture.service();
    succeeded(later.begin_maintenance().unwrap()).await;
    let listed = later.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].kind.as_str(), later.pending_uploads()), (1, "shutdown", 0));
    let parts = listed[0].stored_bytes.div_ceil(database_backup::PART_BYTES);
    let sent = later.requests().upload_part;
    assert!(sent >= 1 && sent < parts, "{sent} of {parts}");
    let other = fixture.service_of("other.duckdb", &[]);
    succeeded(other.begin_restore(listed[0].id.to_string()).unwrap()).await;
    assert_eq!(fixture.duckdb(&fixture.path("other.duckdb"), "SELECT count(*) FROM t"), "700000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_missing_wrong_credentials_and_a_server_that_is_gone_are_told_apart() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let clock = || Arc::new(time::OffsetDateTime::now_utc);
    let kind_of = |tables: Vec<(&'static str, &'static str)>, endpoint: String| {
        let settings = fixture.settings("hesocial.duckdb", &endpoint, &tables);
        let service = database_backup::DatabaseBackup::new(settings, clock()).unwrap();
        async move { service.list().await.unwrap_err().kind() }
    };
    let real = || fixture.endpoint.clone();
    assert_eq!(
        kind_of(vec![("storage", "bucket = \"not-there\"")], real()).await,
        FailureKind::BucketMissing
    );
    let wrong = vec![("storage", "secret_access_key = \"wrong\"")];
    assert_eq!(kind_of(wrong, real()).await, FailureKind::CredentialsRefused);
    let nobody = vec![("backup", "deadline_s = 1")];
    assert_eq!(kind_of(nobody, "http://127.0.0.1:9".to_owned()).await, FailureKind::StorageUnreachable);

    // No real server has a wrong clock on demand.
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut buffer = [0; 8192];
            let _ = std::io::Read::read(&mut socket, &mut buffer);
            let body = "<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>";
            let _ = write!(
                socket,
                "HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    assert_eq!(kind_of(Vec::new(), endpoint).await, FailureKind::ClockSkewed);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_set_the_status_at_once_leave_exactly_one() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await).backup_id);
    }
    let setters = ids.iter().cloned().map(|id| {
        let service = fixture.service();
        tokio::spawn(async move { service.set_latest_restored(&id).await.map(drop) })
    });
    for setter in setters.collect::<Vec<_>>() {
        setter.await.unwrap().unwrap();
    }
    let marked = service.list().await.unwrap().iter().filter(|backup| backup.latest_restored).count();
    assert_eq!(marked, 1);
    let manifest =
        fixture.objects().describe(&"backups/hesocial-manifest.json".parse().unwrap()).await.unwrap();
    assert_eq!(manifest.attributes, Attributes::new());
    let missing = service.set_latest_restored("hesocial-manual-20200101-000000.duckdb").await.unwrap_err();
    assert_eq!(missing.kind(), FailureKind::NotFound);
    let gone = fixture.objects().get(&"backups/nothing".parse().unwrap()).await.unwrap_err();
    assert_eq!(gone.kind(), ObjectStorageErrorKind::NotFound);
}
