//! Golden fixtures: the bytes on the wire are a contract. A file in `tests/golden` is never edited once it was
//! released; each has a reader here, and each message has a file.
//!
//! A fixture is read as its type, and what is written from that is the same JSON, and the same again through
//! MessagePack. With `LONGHAUL_WRITE_GOLDEN=1` files that are missing are written, from the samples below.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::PathBuf;

use bus_messages::kinds::*;
use bus_messages::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

const ID: &str = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
const OTHER_ID: &str = "5b0a2f0e-3b9d-4f0e-8a51-0c3f5f1f9e77";
const MOMENT: &str = "2026-11-21T07:38:27.123Z";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

struct Fixtures {
    seen: BTreeSet<String>,
}

impl Fixtures {
    fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, sample: &str) {
        let sample = sample.replace("<id>", ID).replace("<other>", OTHER_ID).replace("<moment>", MOMENT);
        let sample = sample.replace("<hex>", &"0123456789abcdef".repeat(4));
        let path = folder().join(format!("{name}.json"));
        if !path.exists() && std::env::var_os("LONGHAUL_WRITE_GOLDEN").is_some() {
            let value: Value =
                serde_json::from_str(&sample).unwrap_or_else(|error| panic!("{name}: {error}"));
            fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&value).unwrap())).unwrap();
        }
        let text = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; LONGHAUL_WRITE_GOLDEN=1 writes what is missing", path.display())
        });
        let golden: Value = serde_json::from_str(&text).unwrap();
        let read: T =
            serde_json::from_value(golden.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(serde_json::to_value(&read).unwrap(), golden, "{name} is written as it was read");
        let packed = Encoding::MessagePack.encode(&read);
        let unpacked: T =
            Encoding::MessagePack.decode(&packed).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(unpacked, read, "{name} survives MessagePack");
        // Named fields: any MessagePack reader gets the same tree.
        let tree: Value = Encoding::MessagePack.decode(&packed).unwrap();
        assert_eq!(tree, golden, "{name} has the same names in MessagePack");
        self.seen.insert(format!("{name}.json"));
    }
}

#[test]
fn every_message_reads_and_writes_as_its_fixture() {
    let mut fixtures = Fixtures { seen: BTreeSet::new() };
    let f = &mut fixtures;
    let operation = r#"{"op_id":"<id>","kind":"project-backup","scope":"project-<other>","scope_type":"project",
        "scope_id":"<other>","status":"running","created_by":"operator","owner":"host-backup/1","routing":"host-<id>",
        "input":{"tags":["a"],"pinned":false},"result":null,
        "error":{"code":"bucket_unreachable","message":"m","retryable":true,
            "history":[{"attempt":1,"code":"bucket_unreachable","message":"m","at":"<moment>"}]},
        "progress_summary":{"phase":"upload","message":"1 of 2 files","progress":42.5},
        "progress":42.5,"phase":"upload","message":"1 of 2 files","attempt":2,"max_attempts":5,"lease_losses":0,
        "priority":0,"not_before":"<moment>","lease_until":"<moment>","heartbeat_at":"<moment>",
        "cancel_requested_at":null,"created_at":"<moment>","started_at":"<moment>","finished_at":null,
        "updated_at":"<moment>","expires_at":"<moment>","dedupe_key":"nightly","exclusive_key":"project:<other>",
        "parent_id":null,"waiting_for_children":false,"retry_of":null,"rev":7}"#;
    let event = r#"{"op_id":"<id>","attempt":1,"n":3,"ts":"<moment>","phase":"upload","message":"1 of 2 files",
        "level":"info","progress":{"current":1,"total":2,"unit":"files","weight":94},"detail":{"code":"x"}}"#;
    let last = r#"{"op_id":"<id>","attempt":1,"n":4,"ts":"<moment>","phase":"done","message":"done","level":"info","status":"succeeded"}"#;
    let project = r#"{"id":"<id>","title":"Linear algebra","account_id":null,"host_id":"<other>","region":"weur",
        "state":"stopped","backup_bucket_id":null,"collaborators":["<id>"],"last_edited":null,
        "last_backup_at":"<moment>","last_backup_id":"<hex>","last_verified_at":null,"created_at":"<moment>"}"#;
    let host = r#"{"id":"<id>","name":"host-0","region":"weur","status":"active","trusted":true,"last_seen":"<moment>","created_at":"<moment>"}"#;
    let bucket = r#"{"id":"<id>","purpose":"backups","provider":"r2","account_id":"a","region":"weur","location":"WEUR",
        "name":"longhaul-backups-weur-0123456789","endpoint":"https://x","status":"active","created_at":"<moment>","updated_at":"<moment>"}"#;
    let backup = r#"{"backup_id":"<hex>","project_id":"<id>","created_at":"<moment>","files":2,"bytes":3,"bytes_added":1,
        "tags":["before-exam"],"purpose":"backup","pinned":false,"source":"live","tree":"<hex>","parent":null,"op_id":"<id>","verified_at":null}"#;
    let grant = r#"{"repository":{"project_id":"<id>","repository_id":"<other>",
        "object_store":{"kind":"s3","endpoint":"http://127.0.0.1:1","region":"auto","access_key_id":"a","secret_access_key":"s","path_style":true},
        "bucket":"b","root":"rustic/project-<id>","master_key":"{}","backup":"<hex>","tree":"<hex>","expires_at":"<moment>"}}"#;

    f.check::<Operation>("operation", operation);
    f.check::<ProgressEvent>("event", event);
    f.check::<ProgressEvent>("event-last", last);
    f.check::<CreateOperation>("lro-create-request", r#"{"kind":"project-backup","input":{"tags":["before-exam"],"pinned":false},"dedupe_key":"nightly","force":false,"priority":5,"ttl_s":60,"not_before":"<moment>","routing":"host-<id>"}"#);
    f.check::<CreatedOperation>(
        "lro-create-reply",
        &format!(r#"{{"op":{operation},"subject":"persist.project-<other>.lro.<id>","created":true}}"#),
    );
    f.check::<GetOperation>("lro-get-request", r#"{"op_id":"<id>"}"#);
    f.check::<OperationReply>("lro-get-reply", &format!(r#"{{"op":{operation}}}"#));
    f.check::<ListOperations>(
        "lro-list-request",
        r#"{"kind":"project-backup","status":"running","parent_id":"<id>","limit":10,"cursor":"<id>"}"#,
    );
    f.check::<OperationList>("lro-list-reply", &format!(r#"{{"ops":[{operation}],"next_cursor":"<id>"}}"#));
    f.check::<WaitOperation>("lro-wait-request", r#"{"op_id":"<id>","timeout_s":30.0}"#);
    f.check::<WaitReply>("lro-wait-reply", &format!(r#"{{"op":{operation},"done":false}}"#));
    f.check::<RetryOperation>("lro-retry-request", r#"{"op_id":"<id>","from_start":true}"#);
    f.check::<ListEvents>("lro-events-request", r#"{"op_id":"<id>","after_n":3}"#);
    f.check::<EventList>(
        "lro-events-reply",
        &format!(r#"{{"events":[{event},{last}],"state":{operation}}}"#),
    );
    f.check::<ListEvents>("lro-events-after-request", r#"{"op_id":"<id>","after_n":3,"after_attempt":1}"#);
    f.check::<EventList>(
        "lro-events-page-reply",
        &format!(r#"{{"events":[{event}],"state":{operation},"more":true}}"#),
    );
    f.check::<ErrorBody>("error", r#"{"error":{"code":"dedupe_mismatch","status":409,"message":"m","retryable":false,"details":{"op_id":"<id>"}}}"#);
    f.check::<ListDirectory>(
        "backup-ls-request",
        r#"{"backup_id":"<hex>","path":"project/src","depth":2,"limit":100,"cursor":"c3Jj"}"#,
    );
    f.check::<DirectoryListing>("backup-ls-reply", r#"{"entries":[{"name":"main.rs","kind":"file","size_bytes":13,"mtime":"<moment>","mode":420}],"next_cursor":"bWFpbi5ycw"}"#);
    f.check::<FindPaths>(
        "backup-find-request",
        r#"{"glob":"**/*.rs","backup_id":"<hex>","limit":100,"cursor":"<moment>/<hex>/bWFpbi5ycw"}"#,
    );
    f.check::<FoundPaths>("backup-find-reply", r#"{"matches":[{"backup_id":"<hex>","path":"project/src/main.rs","size_bytes":13,"mtime":"<moment>"}],"next_cursor":null}"#);
    let access = grant.trim_start_matches(r#"{"repository":"#).strip_suffix('}').unwrap();
    f.check::<BrowseRequest>(
        "browse-list-request",
        &format!(r#"{{"grant":{access},"query":{{"list":{{"backup_id":"<hex>","path":"project/src","depth":1,"limit":200,"after":null}}}}}}"#),
    );
    f.check::<BrowseRequest>(
        "browse-find-request",
        &format!(r#"{{"grant":{access},"query":{{"find":{{"glob":"**/*.rs","backups":["<hex>"],"limit":200,"after":"c3Jj"}}}}}}"#),
    );
    f.check::<BrowseReply>("browse-list-reply", r#"{"listed":{"entries":[{"name":"src","kind":"dir","size_bytes":0,"mtime":"<moment>","mode":493}],"next_cursor":null}}"#);
    f.check::<BrowseReply>("browse-find-reply", r#"{"found":{"matches":[{"backup_id":"<hex>","path":"project/src","size_bytes":0,"mtime":"<moment>"}],"stopped":["<hex>","c3Jj"]}}"#);
    f.check::<ListCopies>(
        "copy-list-request",
        r#"{"status":"pending","op_id":"<id>","limit":20,"cursor":"<id>"}"#,
    );
    f.check::<CopyList>("copy-list-reply", r#"{"copies":[{"copy_id":"<id>","op_id":"<other>","src_project_id":"<id>","src_path":"handout","dest_project_id":"<other>","dest_path":"course","options":{"dereference":false,"errorOnExist":true,"force":false,"preserveTimestamps":true,"recursive":true,"verbatimSymlinks":true},"status":"failed","snapshot_id":"<hex>","apply_op_id":"<id>","last_error":"e","last_attempt_at":"<moment>","created_at":"<moment>","expires_at":"<moment>","finished_at":"<moment>"}],"next_cursor":"<id>"}"#);
    f.check::<CancelCopies>("copy-cancel-request", r#"{"copy_id":"<id>"}"#);
    f.check::<CopyStepRequest>("work-copy-request", r#"{"op_id":"<id>","attempt":1,"lease_id":"<other>"}"#);
    f.check::<CopyStepReply>("work-copy-reply", r#"{"phase":"clean-up","message":"m","children":[{"key":"snapshot","scope":"project-<id>","kind":"copy-snapshot","input":{}}],"result":{"dests":[{"project_id":"<id>","path":".","status":"failed","error":"e"}],"snapshot_deleted":false},"error":{"code":"c","message":"m","retryable":false}}"#);
    f.check::<ProjectCopyInput>("project-copy-input", r#"{"src":{"path":["a","b"]},"dests":[{"project_id":"<id>","path":"."}],"dest":{"project_id":"<other>","path":"c"},"options":{"dereference":true,"errorOnExist":false,"force":true,"preserveTimestamps":false,"recursive":true,"verbatimSymlinks":true}}"#);
    f.check::<ProjectCopyResult>("project-copy-result", r#"{"dests":[{"project_id":"<id>","path":"handout","status":"done","error":null}],"snapshot_deleted":true}"#);
    f.check::<CopySnapshotInput>(
        "copy-snapshot-input",
        r#"{"paths":["handout"],"dereference":true,"force":false}"#,
    );
    f.check::<CopySnapshotResult>(
        "copy-snapshot-result",
        r#"{"snapshot_id":"<hex>","files":2,"bytes":3,"source":"live","duration_s":1.5}"#,
    );
    f.check::<CopyApplyInput>("copy-apply-input", r#"{"copy_id":"<id>","copy_op_id":"<other>","source_project_id":"<id>","from":"bucket","entries":[{"from":"a","to":"b/a"}],"options":{"dereference":true,"errorOnExist":false,"force":true,"preserveTimestamps":false,"recursive":true,"verbatimSymlinks":true}}"#);
    f.check::<CopyApplyResult>("copy-apply-result", r#"{"files":2,"directories":1,"bytes":3,"replaced":1,"kept":0,"skipped_special":0,"cloned":true,"duration_s":1.5}"#);
    f.check::<RetentionRequest>(
        "work-retention-request",
        r#"{"op_id":"<id>","attempt":1,"lease_id":"<other>","gone":["<hex>"]}"#,
    );
    f.check::<RetentionRequest>(
        "work-retention-request-with-bad-backups",
        r#"{"op_id":"<id>","attempt":1,"lease_id":"<other>","bad":["<hex>"]}"#,
    );
    f.check::<UnfinishedRequest>("work-unfinished-request", r#"{"op_ids":["<id>","<other>"]}"#);
    f.check::<UnfinishedReply>("work-unfinished-reply", r#"{"unfinished":["<other>"]}"#);
    f.check::<RetentionReply>(
        "work-retention-reply",
        r#"{"keep":["<hex>"],"forget":["<hex>"],"spare":["<hex>"],"unfinished":["<id>"],"grace_s":4000.5}"#,
    );
    f.check::<RepoCheckInput>("repo-check-input", r#"{"read_data_shares":30,"share":7}"#);
    f.check::<RepoCheckResult>(
        "repo-check-result",
        r#"{"read_data_shares":30,"share":7,"warnings":0,"requests":12,"duration_s":1.5}"#,
    );
    f.check::<RestoreDrillInput>("restore-drill-input", r#"{"backup_id":"latest"}"#);
    f.check::<RestoreDrillResult>(
        "restore-drill-result",
        r#"{"backup_id":"<hex>","proof":"mismatch","reason":"m","files":1,"bytes":2,"duration_s":1.5}"#,
    );
    f.check::<RestoreDrillInput>(
        "restore-drill-input-sampled",
        r#"{"backup_id":"latest","share":0.1,"seed":7}"#,
    );
    f.check::<RestoreDrillResult>(
        "restore-drill-result-sampled",
        r#"{"backup_id":"<hex>","proof":"match","reason":null,"files":1,"bytes":2,"duration_s":1.5,"sample":{"share":0.1,"seed":7,"of_files":10}}"#,
    );
    f.check::<DatabaseBackupInput>("database-backup-input", "{}");
    f.check::<DatabaseBackupResult>(
        "database-backup-result",
        r#"{"backup_id":"a-manual-20241230-153000.duckdb","timestamp":"<moment>","bytes":1,"sha256":"<hex>","tables":2,"rows":3,"duration_s":1.5}"#,
    );
    f.check::<DatabaseRestoreInput>("database-restore-input", r#"{"backup_id":"latest","rollback":false}"#);
    f.check::<DatabaseRestoreResult>(
        "database-restore-result",
        r#"{"backup_id":"a-manual-20241230-153000.duckdb","rolled_back":false,"bytes":1,"sha256":"<hex>","rollback_copy":"/data/a.duckdb.rollback-20241231-080000","duration_s":1.5}"#,
    );
    f.check::<RepoPruneInput>("repo-prune-input", "{}");
    f.check::<RepoPruneResult>("repo-prune-result", r#"{"forgotten":2,"orphans":1,"bytes_before":300,"bytes_after":100,"bytes_freed":200,"bytes_waiting":0,"requests":12,"duration_s":1.5}"#);
    f.check::<CreateProject>(
        "project-create-request",
        r#"{"title":"Linear algebra","host_id":"<id>","account_id":"<other>","region":"weur"}"#,
    );
    f.check::<ProjectReply>("project-get-reply", &format!(r#"{{"project":{project}}}"#));
    f.check::<ListRequest>("list-request", r#"{"limit":20,"cursor":"c"}"#);
    f.check::<ProjectList>(
        "project-list-reply",
        &format!(r#"{{"projects":[{project}],"next_cursor":null}}"#),
    );
    f.check::<ProjectStatus>("project-status-reply", &format!(r#"{{"project":{project},"last_backup_at":"<moment>","last_verified_at":null,"region":"weur","running_ops":["<id>"],
        "changed_since_backup":true,"at_risk":true,"at_risk_reason":"it has changed","at_risk_s":5400.0,
        "backup_policy":{{"enabled":true,"every_s":86400,"window":"23:00-05:00"}},"next_backup_at":"<moment>"}}"#));
    f.check::<UpdateProject>(
        "project-update-request",
        r#"{"title":"Linear algebra II","backup_policy":{"enabled":true,"every_s":21600,"window":"23:00-05:00"}}"#,
    );
    f.check::<UpdateAccount>(
        "account-update-request",
        r#"{"name":"eve","backup_policy":{"every_s":604800}}"#,
    );
    f.check::<FreshnessRequest>(
        "work-freshness-request",
        r#"{"projects":[{"project_id":"<id>","generation":42}],"memory_pressure":0.5,"io_pressure":12.25}"#,
    );
    f.check::<FreshnessRequest>(
        "work-freshness-request-with-cache",
        r#"{"projects":[],"memory_pressure":null,"io_pressure":null,"cache":{"bytes":10,"limit_bytes":1000}}"#,
    );
    f.check::<HostStatus>(
        "host-status-reply",
        r#"{"host":{"id":"<id>","name":"host-0","region":"weur","status":"active","trusted":false,"last_seen":null,"created_at":"<moment>"},"memory_pressure":0.5,"io_pressure":null,"load_seen":"<moment>","cache_bytes":10,"cache_limit_bytes":1000,"projects":3,"unsaved_projects":1,"queued_ops":0,"running_ops":[{"op_id":"<id>","kind":"project-backup","scope":"project-<id>","started_at":"<moment>","progress":12.5,"phase":"upload"}]}"#,
    );
    f.check::<DeclareKinds>("work-declare-request", r#"{"kinds":[{"name":"word-count","description":"d","scope":"hub","phases":[{"name":"count","weight":9}],"max_attempts":3,"time_to_live_s":60,"exclusive":false,"example_input":{"texts":[]},"input_schema":{"type":"object"},"result_schema":{}}]}"#);
    f.check::<ScheduleRequest>("work-schedule-request", r#"{"limit":200}"#);
    f.check::<ScheduleReply>("work-schedule-reply", r#"{"looked_at":3,"scheduled":2,"missed":1}"#);
    f.check::<ChangeCollaborator>("project-add-collaborator-request", r#"{"account_id":"<id>"}"#);
    f.check::<Nothing>("nothing", "{}");
    f.check::<CreateHost>("host-create-request", r#"{"id":"<id>","name":"host-0","region":"weur"}"#);
    f.check::<HostReply>("host-get-reply", &format!(r#"{{"host":{host}}}"#));
    f.check::<HostList>("host-list-reply", &format!(r#"{{"hosts":[{host}]}}"#));
    f.check::<CreateBucket>("bucket-create-request", r#"{"region":"weur"}"#);
    f.check::<GetBucket>("bucket-get-request", r#"{"bucket_id":"<id>"}"#);
    f.check::<BucketReply>("bucket-get-reply", &format!(r#"{{"bucket":{bucket}}}"#));
    f.check::<BucketList>("bucket-list-reply", &format!(r#"{{"buckets":[{bucket}]}}"#));
    f.check::<GetBackup>("backup-get-request", r#"{"backup_id":"<hex>"}"#);
    f.check::<BackupReply>("backup-get-reply", &format!(r#"{{"backup":{backup}}}"#));
    f.check::<BackupList>("backup-list-reply", &format!(r#"{{"backups":[{backup}],"next_cursor":"c"}}"#));
    f.check::<CreateAccount>("account-create-request", r#"{"name":"eve"}"#);
    f.check::<AccountReply>(
        "account-create-reply",
        r#"{"account":{"id":"<id>","name":"eve","inbox_prefix":"_INBOX_<id>","created_at":"<moment>"}}"#,
    );
    f.check::<CreateToken>("account-create-token-request", r#"{"ttl_s":86400}"#);
    f.check::<TokenReply>("account-create-token-reply", r#"{"token":"t"}"#);
    f.check::<Nudge>("wake", r#"{"kinds":["copy-apply","project-backup"]}"#);
    f.check::<ClaimRequest>(
        "work-claim-request",
        r#"{"worker_id":"w","kinds":{"project-backup":2},"max":2}"#,
    );
    f.check::<ClaimReply>("work-claim-reply", &format!(r#"{{"leases":[{{"op":{operation},"attempt":2,"lease_id":"<id>","lease_until":"<moment>","lease_s":30.0,"checkpoint":{{"done":1}},"grant":{grant}}}]}}"#));
    f.check::<ProgressRequest>("work-progress-request", &format!(r#"{{"worker_id":"w","ops":[{{"op_id":"<id>","attempt":1,"lease_id":"<other>","events":[{event}],"summary":{{"phase":"upload","message":"m","progress":1.0}},"checkpoint":{{"done":1}}}}]}}"#));
    f.check::<ProgressReply>("work-progress-reply", r#"{"ops":[{"op_id":"<id>","ok":true,"lost":false,"lease_until":"<moment>","lease_s":30.0,"cancel_requested":false,"stored_n":3,"refused":"r"}]}"#);
    f.check::<FinishRequest>("work-finish-request", r#"{"op_id":"<id>","attempt":1,"lease_id":"<other>","outcome":"waits_for_children","result":{"a":1},"error":{"code":"c","message":"m","retryable":true},"children":[{"key":"child-1","scope":"hub","kind":"test-sleep","input":{"seconds":1.0}}],"checkpoint":{"done":1}}"#);
    f.check::<FinishReply>("work-finish-reply", r#"{"ok":true,"lost":false}"#);
    f.check::<ClaimRequest>("work-claim-with-ends-request", &format!(r#"{{"worker_id":"w","kinds":{{"project-backup":2}},"max":2,"finished":[{{"op_id":"<id>","attempt":1,"lease_id":"<other>","outcome":"succeeded","progress":{{"events":[{event}],"summary":{{"phase":"upload","message":"m","progress":1.0}}}}}}]}}"#));
    f.check::<ClaimReply>("work-claim-with-ends-reply", r#"{"leases":[],"finished":[{"ok":true,"lost":false},{"ok":false,"lost":false,"error":{"code":"invalid_argument","status":400,"message":"m","retryable":false,"details":{}}}]}"#);
    f.check::<RepositoryRequest>(
        "work-repository-request",
        r#"{"op_id":"<id>","attempt":1,"lease_id":"<other>"}"#,
    );
    f.check::<RepositoryReply>("work-repository-reply", &format!(r#"{{"grant":{grant}}}"#));
    f.check::<ObjectStoreGrant>("grant-local", r#"{"kind":"local","root":"/srv/objects"}"#);
    f.check::<ProjectBackupInput>("project-backup-input", r#"{"tags":["before-exam"],"pinned":true}"#);
    f.check::<ProjectBackupResult>("project-backup-result", r#"{"backup_id":"<hex>","files":2,"bytes":3,"bytes_added":1,"parent":null,"source":"btrfs-snapshot","tree":"<hex>","snapshot_at":"<moment>","generation":42,"vanished":0,"duration_s":1.5}"#);
    f.check::<ProjectStartInput>("project-start-input", r#"{"backup_id":"<hex>"}"#);
    f.check::<ProjectStartResult>(
        "project-start-result",
        r#"{"restored":"<hex>","files":2,"bytes":3,"command_run":true,"duration_s":1.5}"#,
    );
    f.check::<ProjectStopInput>("project-stop-input", "{}");
    f.check::<ProjectStopResult>("project-stop-result", r#"{"command_run":false,"duration_s":0.5}"#);
    f.check::<ProjectRestoreInput>("project-restore-input", r#"{"backup_id":"latest","path":"project/src","host_id":"<id>","target":"restored/src","conflict":"keep","dry_run":false}"#);
    f.check::<ProjectRestoreResult>("project-restore-result", r#"{"backup_id":"<hex>","files":2,"bytes":3,"tree":"<hex>","receipt":"match","target":"project","duration_s":1.5}"#);
    f.check::<ProjectRestoreResult>("project-restore-result-dry-run", r#"{"backup_id":"<hex>","files":2,"bytes":3,"tree":"<hex>","receipt":"none","target":"nothing: dry run","duration_s":1.5,"changes":{"created":{"files":1,"bytes":2},"replaced":{"files":0,"bytes":0},"deleted":{"files":1,"bytes":9},"unchanged":{"files":1,"bytes":1}},"estimate":{"seconds":2.5,"basis":"restores_of_host"}}"#);
    f.check::<TestSleepInput>(
        "test-sleep-input",
        r#"{"seconds":2.0,"steps":10,"fail_at_step":3,"children":0}"#,
    );
    f.check::<TestSleepResult>("test-sleep-result", r#"{"steps":10,"attempt":1}"#);

    let files: BTreeSet<String> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, fixtures.seen, "each fixture has a reader, and each reader its fixture");
}
