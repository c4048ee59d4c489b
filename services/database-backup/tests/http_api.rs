//! The admin API over HTTP: shapes, and every kind of bad input.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::time::Duration;

use database_backup::{AdminServer, DatabaseBackup};
use serde_json::{Value, json};
use support::{Fixture, Mood, Proxy, TOKEN, ask, http, wait_for};

async fn serve(service: &DatabaseBackup) -> (AdminServer, String) {
    let server = AdminServer::start(service).await.unwrap().unwrap();
    let address = server.address().to_string();
    (server, address)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_have_the_shapes_of_the_document() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let (_server, address) = serve(&service).await;
    assert_eq!(ask(&address, "GET", "/api/admin/backups", ""), (200, json!({ "backups": [] })));

    let (status, taken) = ask(&address, "POST", "/api/admin/backup", "");
    assert_eq!(status, 200, "{taken}");
    assert_eq!(
        keys(&taken),
        ["backupId", "bytes", "sha256", "size", "success", "tables", "tags", "timestamp"]
    );
    assert_eq!((&taken["success"], &taken["tags"]), (&json!(true), &json!({ "type": "manual" })));
    let id = taken["backupId"].as_str().unwrap();

    let (status, set) =
        ask(&address, "PUT", &format!("/api/admin/backup/{id}/status"), r#"{"status":"latest_restored"}"#);
    assert_eq!((status, set), (200, json!({ "success": true, "backupId": id, "status": "latest_restored" })));
    let (status, listed) = ask(&address, "GET", "/api/admin/backups", "");
    let expected = json!({
        "id": id, "type": "manual", "status": "latest_restored", "timestamp": taken["timestamp"],
        "size": taken["size"], "bytes": taken["bytes"], "sha256": taken["sha256"],
    });
    assert_eq!((status, &listed), (200, &json!({ "backups": [expected] })));

    fixture.duckdb(&fixture.database(), "DELETE FROM events");
    let (status, restored) =
        ask(&address, "POST", "/api/admin/restore", &json!({ "backupId": id }).to_string());
    assert_eq!(
        (status, &restored["success"], &restored["sha256"]),
        (200, &json!(true), &taken["sha256"]),
        "{restored}"
    );
    assert_eq!(fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events"), "1000");
    let (status, back) = ask(&address, "POST", "/api/admin/restore", r#"{"rollback":true}"#);
    assert_eq!((status, &back["rolledBack"]), (200, &json!(true)), "{back}");
    assert_eq!(fixture.duckdb(&fixture.database(), "SELECT count(*) FROM events"), "0");

    let (status, health) = ask(&address, "GET", "/api/health", "");
    assert_eq!((status, &health["status"], &health["lastBackup"]), (200, &json!("ok"), &taken["timestamp"]));
    assert_eq!(health["operations"].as_array().unwrap().len(), 3);
    assert_eq!(std::fs::read_to_string(fixture.path("address")).unwrap().trim(), address);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_the_status_that_fits() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let (_server, address) = serve(&service).await;
    let absent = "hesocial-backup-20200101-000000.duckdb";
    let status_of = |id: &str| format!("/api/admin/backup/{id}/status");
    let set = r#"{"status":"latest_restored"}"#;
    let long = "x".repeat(3_000_000);
    for (method, path, body, status, code) in [
        ("PUT", status_of(absent), set, 404, "not_found"),
        ("PUT", status_of("..%2F..%2Fetc%2Fpasswd"), set, 400, "invalid_argument"),
        ("PUT", status_of("backups%2Fhesocial-backup-20200101-000000.duckdb"), set, 400, "invalid_argument"),
        ("PUT", status_of("other-backup-20200101-000000.duckdb"), set, 400, "invalid_argument"),
        ("PUT", status_of("hesocial-manifest.json"), set, 400, "invalid_argument"),
        ("PUT", status_of("%00"), set, 400, "invalid_argument"),
        ("PUT", status_of(absent), r#"{"status":"deleted"}"#, 400, "invalid_argument"),
        ("PUT", status_of(absent), r#"{"status":"latest_restored","force":1}"#, 400, "invalid_argument"),
        ("PUT", status_of(absent), "", 400, "invalid_argument"),
        ("PUT", status_of(absent), "[", 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), "", 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), r#"{"backupId":"../x"}"#, 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), r#"{"backupId":7}"#, 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), r#"{"rollback":false}"#, 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), r#"{"backup_id":"x"}"#, 400, "invalid_argument"),
        ("POST", "/api/admin/restore".to_owned(), r#"{"rollback":true}"#, 404, "not_found"),
        ("POST", "/api/admin/backup".to_owned(), r#"{"tags":["x"]}"#, 400, "invalid_argument"),
        ("GET", "/api/admin/backup".to_owned(), "", 405, "invalid_argument"),
        ("DELETE", "/api/admin/backups".to_owned(), "", 405, "invalid_argument"),
        ("GET", "/metrics".to_owned(), "", 404, "not_found"),
        ("GET", "/".to_owned(), "", 404, "not_found"),
    ] {
        let (answered, refused) = ask(&address, method, &path, body);
        assert_eq!(
            (answered, &refused["error"]["code"]),
            (status, &json!(code)),
            "{method} {path} {body}: {refused}"
        );
        assert_eq!(refused["success"], json!(false));
    }
    let absent_backup = json!({ "backupId": absent }).to_string();
    assert_eq!(ask(&address, "POST", "/api/admin/restore", &absent_backup).0, 404);
    let head = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(http(&address, "POST", "/api/admin/backup", &head, &long).0, 413);
    assert!(fixture.keys().await.is_empty(), "nothing of that had an effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nothing_is_served() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let service = fixture.service();
    let (_server, address) = serve(&service).await;
    let longer = format!("Authorization: Bearer {TOKEN}x\r\n");
    let shorter = format!("Authorization: Bearer {}\r\n", &TOKEN[1..]);
    let basic = format!("Authorization: Basic {TOKEN}\r\n");
    for head in ["", "Authorization: Bearer\r\n", "Authorization: Bearer \r\n", &longer, &shorter, &basic] {
        for (method, path) in [
            ("POST", "/api/admin/backup"),
            ("GET", "/api/admin/backups"),
            ("PUT", "/api/admin/backup/hesocial-backup-20200101-000000.duckdb/status"),
            ("POST", "/api/admin/restore"),
            ("GET", "/api/health"),
            ("GET", "/nothing/here"),
        ] {
            let (status, answer) = http(&address, method, path, head, "");
            assert_eq!(status, 401, "{head:?} {method} {path}");
            assert!(!answer.contains("hesocial"), "{answer}");
        }
    }
    assert!(fixture.keys().await.is_empty());
    assert_eq!(ask(&address, "GET", "/api/health", "").0, 200);
    let tokenless = fixture.service_of("hesocial.duckdb", &[("admin", "token = \"\"")]);
    assert!(AdminServer::start(&tokenless).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_long_answers_202_with_the_operation_and_health_tells_its_end() {
    let Some(fixture) = Fixture::new().await else { return };
    fixture.make_database();
    let proxy = Proxy::start(&fixture.endpoint, Mood::Slow(Duration::from_secs(2)));
    let settings = fixture.settings("hesocial.duckdb", &proxy.endpoint, &[("admin", "wait_s = 0")]);
    let service = DatabaseBackup::new(settings, std::sync::Arc::new(time::OffsetDateTime::now_utc)).unwrap();
    let (_server, address) = serve(&service).await;
    let (status, accepted) = ask(&address, "POST", "/api/admin/backup", "");
    assert_eq!((status, &accepted["status"]), (202, &json!("running")), "{accepted}");
    let (status, again) = ask(&address, "POST", "/api/admin/backup", "{}");
    assert_eq!((status, &again["op"]), (202, &accepted["op"]), "two at once are one");
    let (status, busy) = ask(&address, "POST", "/api/admin/restore", r#"{"rollback":true}"#);
    assert_eq!((status, &busy["error"]["code"]), (409, &json!("busy")));
    let ended = wait_for("the end of the operation", || {
        let (_, health) = ask(&address, "GET", "/api/health", "");
        let operations = health["operations"].as_array().unwrap();
        operations.iter().find(|one| one["op"] == accepted["op"] && one["state"] != "running").cloned()
    });
    assert_eq!((&ended["state"], &ended["kind"]), (&json!("succeeded"), &json!("backup")), "{ended}");
    let id = ended["outcome"]["backup"]["backupId"].as_str().unwrap();
    assert_eq!(fixture.keys().await, [format!("backups/{id}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_say_what_to_do_and_a_disabled_service_says_that_it_is() {
    let Some(fixture) = Fixture::new().await else { return };
    let service = fixture.service();
    let (_server, address) = serve(&service).await;
    let (status, failed) = ask(&address, "POST", "/api/admin/backup", "");
    assert_eq!((status, &failed["error"]["code"]), (500, &json!("database_missing")), "{failed}");
    assert_eq!(ask(&address, "GET", "/api/health", "").1["status"], json!("failed"));

    fixture.make_database();
    let service = fixture.service_of("hesocial.duckdb", &[("storage", "secret_access_key = \"wrong\"")]);
    let (_server, address) = serve(&service).await;
    let (status, failed) = ask(&address, "POST", "/api/admin/backup", "");
    assert_eq!((status, &failed["error"]["code"]), (502, &json!("credentials_refused")), "{failed}");
    assert!(failed["error"]["kept"].as_str().unwrap().contains("pending"), "{failed}");
    assert!(!failed.to_string().contains("wrong\""), "{failed}");

    let service = fixture.service_of("hesocial.duckdb", &[("backup", "enabled = false")]);
    let (_server, address) = serve(&service).await;
    for (method, path) in [("POST", "/api/admin/backup"), ("GET", "/api/admin/backups")] {
        let (status, refused) = ask(&address, method, path, "");
        assert_eq!((status, &refused["error"]["code"]), (409, &json!("disabled")));
        assert!(refused["error"]["message"].as_str().unwrap().contains("BACKUP_ENABLED=false"));
    }
    assert_eq!(ask(&address, "GET", "/api/health", "").1["status"], json!("disabled"));
}
