//! Who may do what: decided by the server by subject, from the credentials alone.

use std::time::Duration;

use bus_client::{BusErrorKind, Credentials, RequestErrorKind};
use bus_messages::Encoding;
use domain_model::OperationStatus;
use secrecy::SecretString;
use serde_json::{Value, json};
use test_harness::{TestSystem, make_tree, watch_to_the_end};

use crate::{scope, system};

struct Person {
    id: String,
    client: test_harness::Client,
}

async fn person(system: &TestSystem, name: &str) -> Person {
    let operator = system.operator().await;
    let account = operator.call("hub", "account.create", json!({ "name": name })).await["account"].take();
    let id = account["id"].as_str().unwrap().to_owned();
    assert_eq!(account["inbox_prefix"], format!("_INBOX_{id}"));
    Person { client: login(system, &id).await, id }
}

/// Logs in with a new token: what somebody may do is decided when they log in.
async fn login(system: &TestSystem, account: &str) -> test_harness::Client {
    let operator = system.operator().await;
    let token = operator.call(format!("account-{account}"), "account.create_token", json!({})).await;
    system.token_holder(account, token["token"].as_str().unwrap()).await.unwrap()
}

async fn project_of(system: &TestSystem, account: Option<&str>) -> String {
    let operator = system.operator().await;
    let request = json!({ "title": "somebody's", "host_id": system.host(0), "account_id": account });
    let project = operator.call("hub", "project.create", request).await["project"]["id"].clone();
    let project = project.as_str().unwrap().to_owned();
    make_tree(&system.project_files(0, &project), 3);
    project
}

/// The ids of what the account lists, newest first, two to a page.
async fn operations_of(person: &Person) -> Vec<Value> {
    let (mut ids, mut cursor) = (Vec::new(), Value::Null);
    loop {
        let page = json!({ "limit": 2, "cursor": cursor });
        let mut page = person.client.call(format!("account-{}", person.id), "lro.list", page).await;
        ids.extend(page["ops"].as_array().unwrap().iter().map(|op| op["op_id"].clone()));
        cursor = page["next_cursor"].take();
        if cursor.is_null() {
            return ids;
        }
    }
}

async fn assert_forbidden(client: &test_harness::Client, scope: &str, endpoint: &str) {
    let answer = client.ask(scope, endpoint, &json!({})).await;
    let kind = answer.as_ref().map_err(bus_client::RequestError::kind).map(drop);
    assert_eq!(kind, Err(RequestErrorKind::PermissionDenied), "{endpoint} of {scope}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_uses_their_own_project_and_no_other() {
    let system = system().await;
    let eve = person(&system, "eve").await;
    let mine = project_of(&system, Some(&eve.id)).await;
    let others = project_of(&system, None).await;
    // The rights are those at the log-in.
    let eve = Person { client: login(&system, &eve.id).await, id: eve.id };

    let created = eve.client.call(scope(&mine), "lro.create", json!({ "kind": "project-backup" })).await;
    assert_eq!(created["op"]["created_by"], format!("account-{}", eve.id));
    let seen = watch_to_the_end(eve.client.bus(), created["subject"].as_str().unwrap()).await;
    seen.assert_complete(OperationStatus::Succeeded);
    let backups = eve.client.call(scope(&mine), "backup.list", json!({})).await;
    assert_eq!(backups["backups"].as_array().unwrap().len(), 1);
    // Their account lists what there is in all their projects.
    project_of(&system, Some(&eve.id)).await;
    assert_eq!(operations_of(&eve).await, [created["op"]["op_id"].clone()]);
    let of_another = format!("account-{}", person(&system, "mallory").await.id);
    assert_forbidden(&eve.client, &of_another, "lro.list").await;

    for (scope, endpoint) in [
        (scope(&others), "project.get"),
        (scope(&others), "lro.create"),
        ("hub".to_owned(), "project.list"),
        ("hub".to_owned(), "account.create"),
        ("hub".to_owned(), "lro.create"),
        (format!("host-{}", system.host(0)), "host.get"),
    ] {
        assert_forbidden(&eve.client, &scope, endpoint).await;
    }
    // Naming a host is for operators: it would be a way to another host's files.
    let restore =
        json!({ "kind": "project-restore", "input": { "backup_id": "latest", "host_id": system.host(1) } });
    let refusal = eve.client.refused(scope(&mine), "lro.create", restore).await;
    assert_eq!(refusal.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collaborator_may_from_the_next_log_in_on_and_no_longer_after_removal() {
    let system = system().await;
    let operator = system.operator().await;
    let bob = person(&system, "bob").await;
    let project = project_of(&system, None).await;
    assert_forbidden(&bob.client, &scope(&project), "project.get").await;

    let added =
        operator.call(scope(&project), "project.add_collaborator", json!({ "account_id": bob.id })).await;
    assert_eq!(added["project"]["collaborators"], json!([bob.id]));
    let in_time = login(&system, &bob.id).await;
    assert_eq!(
        in_time.call(scope(&project), "project.get", json!({})).await["project"]["id"],
        json!(project)
    );

    // What runs in projects of their own and in those of others, newest first, each once.
    let own = project_of(&system, Some(&bob.id)).await;
    let mut created = Vec::new();
    for project in [&project, &own, &project, &own, &project] {
        let backup = json!({ "kind": "project-backup" });
        created.push(operator.call(scope(project), "lro.create", backup).await["op"]["op_id"].take());
    }
    created.reverse();
    assert_eq!(operations_of(&bob).await, created);

    operator.call(scope(&project), "project.remove_collaborator", json!({ "account_id": bob.id })).await;
    assert_eq!(operations_of(&bob).await, [created[1].clone(), created[3].clone()]);
    let too_late = login(&system, &bob.id).await;
    assert_forbidden(&too_late, &scope(&project), "project.get").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_at_the_door() {
    let system = system().await;
    let wrong = [
        Credentials::Token(SecretString::from("lht_made-up")),
        Credentials::Token(SecretString::from("")),
        Credentials::UserPassword { user: "ops".to_owned(), password: "guess".into() },
        Credentials::UserPassword { user: "nobody".to_owned(), password: "guess".into() },
    ];
    for credentials in wrong {
        let told = format!("{credentials:?}");
        let refused = system.try_connect(credentials, "_INBOX").await;
        assert_eq!(
            refused.map(drop).map_err(|error| error.kind()),
            Err(BusErrorKind::Unauthorized),
            "{told}"
        );
    }
    // A token that was good once.
    let operator = system.operator().await;
    let eve = operator.call("hub", "account.create", json!({ "name": "eve" })).await["account"].take();
    let id = eve["id"].as_str().unwrap();
    let token = operator.call(format!("account-{id}"), "account.create_token", json!({ "ttl_s": 1 })).await;
    let token = token["token"].as_str().unwrap().to_owned();
    test_harness::wait_for("a token to run out", Duration::from_secs(30), || async {
        match system.token_holder(id, &token).await {
            Err(error) if error.kind() == BusErrorKind::Unauthorized => Ok(()),
            other => Err(format!("{:?}", other.map(drop))),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn to_retry_what_an_operator_asked_for_raises_no_priority_and_chooses_no_host() {
    let system = system().await;
    let operator = system.operator().await;
    let owner = operator.call("hub", "account.create", json!({ "name": "frank" })).await["account"].take();
    let owner = owner["id"].as_str().unwrap();
    let project = project_of(&system, Some(owner)).await;
    let client = login(&system, owner).await;
    let scope = format!("project-{project}");
    let backup = operator.create(&scope, "project-backup", json!({})).await;
    let backup_id = operator.result(&scope, &backup).await["backup_id"].take();
    let canceled = async |request: Value| {
        let op = operator.call(&scope, "lro.create", request).await["op"].take();
        operator.call(&scope, "lro.cancel", json!({ "op_id": op["op_id"] })).await;
        op
    };
    let later = "2100-01-01T00:00:00Z";
    let urgent = json!({ "kind": "project-backup", "priority": 100, "not_before": later });
    let urgent = canceled(urgent).await;
    assert_eq!(urgent["priority"], 100);
    let retried = client.call(&scope, "lro.retry", json!({ "op_id": urgent["op_id"] })).await;
    assert_eq!((&retried["created"], &retried["op"]["priority"]), (&json!(true), &json!(0)));
    let input = json!({ "backup_id": backup_id, "host_id": system.host(1) });
    let elsewhere = json!({ "kind": "project-restore", "input": input, "not_before": later });
    let elsewhere = canceled(elsewhere).await;
    let refusal = client.refused(&scope, "lro.retry", json!({ "op_id": elsewhere["op_id"] })).await;
    assert_eq!(refusal.status, 403, "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_asks_for_its_own_work_and_nothing_else() {
    let system = system().await;
    let identity = system.host_identity(0).unwrap();
    let host = system.connect_as(identity).await;
    let claim = json!({ "worker_id": "a test", "kinds": {}, "max": 0 });
    let ask = |subject: String, encoding: Encoding| {
        let (bus, claim) = (host.bus().clone(), claim.clone());
        async move { bus.request::<_, Value>(subject, &claim, encoding, Duration::from_secs(10)).await }
    };
    let own = ask(format!("work.v1.host-{}.claim", system.host(0)), Encoding::MessagePack).await;
    assert_eq!(own.unwrap()["leases"], json!([]));
    for subject in [
        format!("work.v1.host-{}.claim", system.host(1)),
        "work.v1.hub.claim".to_owned(),
        format!("browse.v1.host-{}", system.host(0)),
        format!("browse.v1.host-{}", system.host(1)),
        "browse.v1.hub".to_owned(),
        "api.v1.hub.project.list".to_owned(),
        format!("api.v1.host-{}.host.get", system.host(0)),
        "persist.hub.lro.01890a5d-ac96-774b-bcce-b302099a8057.state".to_owned(),
        "$JS.API.STREAM.INFO.LRO".to_owned(),
    ] {
        let answer = ask(subject.clone(), Encoding::Json).await;
        let kind = answer.as_ref().map_err(bus_client::RequestError::kind).map(drop);
        assert_eq!(kind, Err(RequestErrorKind::PermissionDenied), "{subject}: {answer:?}");
    }
}
