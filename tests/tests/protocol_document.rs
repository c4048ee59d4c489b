//! `docs/protocol.md` is the authority on the wire; this holds it to the code, in both directions.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeSet;

use bus_messages::{ApiError, ErrorCode, Operation, kinds};
use domain_model::OperationStatus;
use serde_json::{Value, json};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");
const ENDPOINTS: &str = include_str!("../../services/registry/src/api/mod.rs");

/// The rows of the tables in the section that begins with this heading, cell by cell, without backticks.
fn table_rows(heading: &str) -> Vec<Vec<String>> {
    let section = DOCUMENT.split("\n## ").find(|section| section.starts_with(heading)).unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| ---"));
    rows.skip(1)
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

#[test]
fn every_endpoint_is_documented_and_every_documented_one_exists() {
    let documented: BTreeSet<String> =
        table_rows("4. Endpoints").into_iter().map(|row| row[0].clone()).collect();
    let names = |call: &str| -> Vec<String> {
        let calls = ENDPOINTS.split(call).skip(1);
        calls
            .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next().map(str::to_owned))
            .collect()
    };
    let mut served = BTreeSet::new();
    for name in names(".api(").into_iter().chain(names(".waiting(")) {
        served.insert(format!("api.v1.*.{}", name.replace('-', ".")));
    }
    for name in names(".work(") {
        served.insert(name.replace("work-", "work.v1.*."));
    }
    assert!(served.len() > 20, "the table of endpoints is not where this test looks: {served:?}");
    assert_eq!(documented, served);
}

#[test]
fn every_kind_is_documented_with_its_scope_and_phases() {
    let documented: BTreeSet<(String, String, String)> = table_rows("5. Kinds")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[3].clone()))
        .collect();
    let known: BTreeSet<(String, String, String)> = kinds::ALL
        .iter()
        .map(|kind| {
            let phases: Vec<String> =
                kind.phases.iter().map(|phase| format!("{} {}", phase.name, phase.weight)).collect();
            (kind.name.to_owned(), kind.scope.to_string(), phases.join(", "))
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn every_error_code_is_documented_with_its_number() {
    let documented: BTreeSet<(String, String, String)> = table_rows("2. Encoding")
        .into_iter()
        .map(|row| (row[0].clone(), row[1].clone(), row[2].clone()))
        .collect();
    let codes = [
        ErrorCode::InvalidArgument,
        ErrorCode::Unauthenticated,
        ErrorCode::PermissionDenied,
        ErrorCode::NotFound,
        ErrorCode::Conflict,
        ErrorCode::AlreadyExists,
        ErrorCode::DedupeMismatch,
        ErrorCode::Expired,
        ErrorCode::FailedPrecondition,
        ErrorCode::TooManyRequests,
        ErrorCode::Internal,
        ErrorCode::Unavailable,
    ];
    let known: BTreeSet<(String, String, String)> = codes
        .iter()
        .map(|code| {
            let error = serde_json::to_value(ApiError::new(*code, "x")).unwrap();
            let retryable = if error["retryable"] == json!(true) { "yes" } else { "no" };
            (error["code"].as_str().unwrap().to_owned(), error["status"].to_string(), retryable.to_owned())
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_fields_of_an_operation_are_the_documented_ones() {
    let golden = include_str!("../golden/operation.json");
    let operation: Operation = serde_json::from_str(golden).unwrap();
    let Value::Object(fields) = serde_json::to_value(&operation).unwrap() else { panic!("no object") };
    let section = DOCUMENT.split("An op in a reply has these fields:").nth(1).unwrap();
    let list = section.split("Never a lease id").next().unwrap();
    let documented: BTreeSet<&str> = list.split('`').skip(1).step_by(2).collect();
    let known: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
    assert_eq!(documented, known);
}

#[test]
fn every_status_is_documented() {
    let states = DOCUMENT
        .split("authority. States:")
        .nth(1)
        .unwrap()
        .split("All of it is one pure function")
        .next()
        .unwrap();
    for status in OperationStatus::ALL {
        assert!(states.contains(status.as_str()), "{status}");
    }
}
