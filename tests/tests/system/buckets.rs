//! The bucket of a project: made once, bound for good.

use serde_json::{Value, json};

use crate::{scope, system};

#[tokio::test(flavor = "multi_thread")]
async fn first_backups_at_the_same_moment_make_one_bucket() {
    let system = system().await;
    let client = system.operator().await;
    let mut projects = Vec::new();
    for seed in 0..3 {
        // A region of their own, in which no other test has a bucket.
        let request = json!({ "title": "first", "host_id": system.host(0), "region": "apac" });
        let project = client.call("hub", "project.create", request).await["project"]["id"].clone();
        let project = project.as_str().unwrap().to_owned();
        test_harness::make_tree(&system.project_files(0, &project), seed);
        projects.push(project);
    }
    let mut ops = Vec::new();
    for project in &projects {
        ops.push((project, client.create(scope(project), "project-backup", json!({})).await));
    }
    let mut bound = Vec::new();
    for (project, op_id) in ops {
        client.result(scope(project), &op_id).await;
        let project = client.call(scope(project), "project.get", json!({})).await["project"].take();
        bound.push(project["backup_bucket_id"].clone());
    }
    assert!(bound[0].is_string() && bound.iter().all(|id| *id == bound[0]), "{bound:?}");
    let listed = client.call("hub", "bucket.list", json!({})).await;
    let of_region: Vec<&Value> =
        listed["buckets"].as_array().unwrap().iter().filter(|bucket| bucket["region"] == "apac").collect();
    assert_eq!(of_region.len(), 1, "{listed:#}");
    let bucket = of_region[0];
    assert_eq!(bucket["id"], bound[0]);
    assert_eq!((&bucket["status"], &bucket["purpose"]), (&json!("active"), &json!("backups")));
    assert_eq!((&bucket["provider"], &bucket["location"]), (&json!("local"), &json!("apac")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_turns_out_to_be_elsewhere_is_never_used() {
    let options = test_harness::SystemOptions { faults: true, ..Default::default() };
    let system = test_harness::TestSystem::start(options).await.unwrap();
    let client = system.operator().await;
    let project = client.create_project_with_files(&system, 5).await;
    system.set_faults(&json!({ "report_location": [{ "bucket": "*", "answer": { "fixed": "enam" } }] }));
    let op_id = client.create(scope(&project), "project-backup", json!({})).await;
    let op = client.ended(scope(&project), &op_id).await;
    assert_eq!(
        (&op["status"], &op["error"]["code"]),
        (&json!("failed"), &json!("failed_precondition")),
        "{op:#}"
    );
    let listed = client.call("hub", "bucket.list", json!({})).await;
    let buckets = listed["buckets"].as_array().unwrap();
    let elsewhere =
        buckets.iter().filter(|bucket| bucket["status"] == "mismatch" && bucket["location"] == "enam");
    assert_eq!(elsewhere.count(), 3, "it gives up after three: {buckets:#?}");
    assert!(buckets.iter().all(|bucket| bucket["status"] != "active"), "{buckets:#?}");
    let found = client.call(scope(&project), "project.get", json!({})).await;
    assert_eq!(found["project"]["backup_bucket_id"], Value::Null);

    // Somebody has looked: the provider says better now, or one is set aside.
    system.clear_faults();
    let (first, second) = (&buckets[0]["id"], &buckets[1]["id"]);
    let disabled = client.call("hub", "bucket.disable", json!({ "bucket_id": second })).await;
    assert_eq!(disabled["bucket"]["status"], "disabled");
    let verified = client.call("hub", "bucket.verify", json!({ "bucket_id": first })).await;
    assert_eq!(verified["bucket"]["status"], "active", "{verified:#}");
    client.done(&project, "project-backup", json!({})).await;
    let found = client.call(scope(&project), "project.get", json!({})).await;
    assert_eq!(found["project"]["backup_bucket_id"], *first);
    for other in [second, &buckets[2]["id"]] {
        let verified = client.call("hub", "bucket.verify", json!({ "bucket_id": other })).await;
        assert_ne!(verified["bucket"]["status"], "active", "its place is taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_make_verify_and_disable_buckets() {
    let system = system().await;
    let client = system.operator().await;
    let create = || client.call("hub", "bucket.create", json!({ "region": "oc" }));
    let first = create().await["bucket"].take();
    assert_eq!((&first["status"], &first["location"]), (&json!("active"), &json!("oc")));
    assert_eq!(create().await["bucket"]["id"], first["id"], "one is enough");
    let get = json!({ "bucket_id": first["id"] });
    assert_eq!(client.call("hub", "bucket.verify", get.clone()).await["bucket"]["status"], "active");

    let request = json!({ "title": "far away", "host_id": system.host(0), "region": "oc" });
    let project = client.call("hub", "project.create", request).await["project"]["id"].take();
    let project = project.as_str().unwrap();
    test_harness::make_tree(&system.project_files(0, project), 3);
    client.done(project, "project-backup", json!({})).await;
    assert_eq!(client.call("hub", "bucket.disable", get.clone()).await["bucket"]["status"], "disabled");
    for endpoint in ["bucket.disable", "bucket.verify", "bucket.get"] {
        let found = client.call("hub", endpoint, get.clone()).await;
        assert_eq!(found["bucket"]["status"], "disabled", "{endpoint}");
    }
    // Who has it keeps it; others get another.
    client.done(project, "project-backup", json!({})).await;
    let found = client.call(scope(project), "project.get", json!({})).await;
    assert_eq!(found["project"]["backup_bucket_id"], first["id"]);
    assert_ne!(create().await["bucket"]["id"], first["id"]);

    // Nobody else's business, and no other place.
    let refused = client.refused(scope(project), "bucket.list", json!({})).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let refused = client.refused("hub", "bucket.create", json!({ "region": "mars" })).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    let nobody = json!({ "bucket_id": uuid::Uuid::new_v4() });
    for endpoint in ["bucket.get", "bucket.verify", "bucket.disable"] {
        assert_eq!(client.refused("hub", endpoint, nobody.clone()).await.status, 404, "{endpoint}");
    }
}
