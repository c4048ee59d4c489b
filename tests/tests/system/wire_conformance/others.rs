//! All other endpoints.

use std::collections::BTreeSet;

use bus_messages::{Encoding, ErrorCode};
use serde_json::{Value, json};

use super::{Body, Case, NO_OPERATION, Row, SYSTEM, endpoint, refused, run, served, with};

/// What each endpoint is asked beside those of `lro`: its noun and verb, whom it is about, and what it takes.
fn others() -> Vec<(&'static str, &'static str, Value)> {
    let backup_id = "ab".repeat(32);
    let (page, nothing) = (json!({ "limit": 1 }), json!({}));
    vec![
        ("project.create", "hub", json!({ "title": "t", "host_id": NO_OPERATION })),
        ("project.list", "hub", page.clone()),
        ("project.get", "project", nothing.clone()),
        ("project.status", "project", nothing.clone()),
        ("project.update", "project", json!({ "title": "t" })),
        ("project.touch", "project", nothing.clone()),
        ("project.add_collaborator", "project", json!({ "account_id": NO_OPERATION })),
        ("project.remove_collaborator", "project", json!({ "account_id": NO_OPERATION })),
        ("backup.list", "project", page.clone()),
        ("backup.get", "project", json!({ "backup_id": backup_id })),
        ("backup.ls", "project", json!({ "backup_id": backup_id, "path": "project" })),
        ("backup.find", "project", json!({ "glob": "**" })),
        ("backup.update", "project", json!({ "backup_id": backup_id, "pinned": true })),
        ("backup.delete", "project", json!({ "backup_id": backup_id })),
        ("copy.list", "project", page.clone()),
        ("copy.cancel", "project", json!({ "all": true })),
        ("host.create", "hub", json!({ "name": "n" })),
        ("host.list", "hub", nothing.clone()),
        ("host.get", "host", nothing.clone()),
        ("host.status", "host", nothing.clone()),
        ("region.list", "", nothing.clone()),
        ("bucket.create", "hub", json!({ "region": "weur" })),
        ("bucket.list", "hub", nothing),
        ("bucket.get", "hub", json!({ "bucket_id": NO_OPERATION })),
        ("bucket.verify", "hub", json!({ "bucket_id": NO_OPERATION })),
        ("bucket.disable", "hub", json!({ "bucket_id": NO_OPERATION })),
        ("account.create", "hub", json!({ "name": "n" })),
        ("account.update", "account", json!({ "name": "n" })),
        ("account.create_token", "account", json!({ "ttl_s": 60 })),
    ]
}

fn rows_of_others(scope: impl Fn(&str) -> String) -> Vec<Row<Case>> {
    use Case::{Malformed, UnknownField, WrongScope};
    use ErrorCode::InvalidArgument;
    let mut rows = Vec::new();
    for (verb, about, good) in others() {
        let mut add = |scope: &str, case: Case, body: Body, word: &'static str| {
            let subject = format!("api.v1.{scope}.{verb}");
            rows.push(Row { case, subject, body, expected: refused(InvalidArgument, word) });
        };
        let own = scope(if about.is_empty() { "hub" } else { about });
        let message = Body::Message;
        add(&own, Malformed, Body::Followed(good.clone()), "");
        for wrong in [json!("text"), json!(7), json!(null), json!([])] {
            add(&own, Malformed, message(wrong), "");
        }
        // Of an object without fields nothing is left in MessagePack: an empty body, which reads as one.
        if good != json!({}) {
            add(&own, Malformed, Body::Cut(good.clone()), "");
        }
        for (field, _) in good.as_object().unwrap() {
            add(&own, Malformed, message(with(good.clone(), field, json!([[]]))), "");
        }
        add(&own, UnknownField, message(with(good.clone(), "colour", json!("blue"))), "colour");
        // Regions are the same for everybody.
        if !about.is_empty() {
            for other in ["hub", "project", "host", "account"].into_iter().filter(|other| *other != about) {
                add(&scope(other), WrongScope, message(good.clone()), "this request is about");
            }
            add("project-1", WrongScope, message(good), "scope");
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_endpoint_refuses_what_does_not_read_and_what_is_of_another_scope() {
    let system = SYSTEM.get().await;
    let client = system.operator().await;
    let project = client.create_project(system.host(0)).await;
    let named = client.call("hub", "account.create", json!({ "name": "conformance" })).await;
    let account = named["account"]["id"].as_str().unwrap().to_owned();
    let scope = |about: &str| match about {
        "project" => format!("project-{project}"),
        "host" => format!("host-{}", system.host(0)),
        "account" => format!("account-{account}"),
        _ => "hub".to_owned(),
    };
    let rows = rows_of_others(scope);
    let is_other = |subject: &&String| !subject.starts_with("api.v1.*.lro.") && !subject.starts_with("work.");
    let served: BTreeSet<String> = served(&client).await.iter().filter(is_other).cloned().collect();
    let asked: BTreeSet<String> = rows.iter().map(|row| endpoint(&row.subject)).collect();
    assert_eq!(asked, served);
    for encoding in [Encoding::Json, Encoding::MessagePack] {
        run(client.bus(), encoding, &rows).await;
    }
}
