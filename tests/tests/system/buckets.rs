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
    let project = client.call(scope(&project), "project.get", json!({})).await;
    assert_eq!(project["project"]["backup_bucket_id"], Value::Null);
}
