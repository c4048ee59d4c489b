//! How Postgres carries out the statements.

use std::path::Path;

use serde_json::Value;
use sqlx::AssertSqlSafe;

use crate::support::catalog;

/// What is read whole because all of it is asked for: a word of the statement, and the table.
const READ_WHOLE: [(&str, &str); 7] = [
    ("min(created_at)", "outbox"),
    ("INSERT INTO outbox", "long_running_operations"),
    ("project_collaborators", "projects"),
    ("oldest_s!", "projects"),
    ("FROM hosts ORDER BY", "hosts"),
    ("FROM buckets ORDER BY", "buckets"),
    ("'mismatch'", "buckets"),
];

/// A table that grows is not read whole, for whatever its plan was made while it was small.
#[tokio::test]
async fn every_statement_finds_its_rows_by_an_index() {
    let Some(catalog) = catalog().await else { return };
    let mut connection = catalog.connection().await;
    let settings = "SET jit = off; SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off";
    sqlx::raw_sql(settings).execute(&mut connection).await.unwrap();
    let mut expected = READ_WHOLE.to_vec();
    let statements = statements();
    for (statement, parameters) in &statements {
        let prepared = format!("DEALLOCATE ALL; PREPARE explained AS {statement}");
        sqlx::raw_sql(AssertSqlSafe(prepared)).execute(&mut connection).await.unwrap();
        let values = match parameters {
            0 => String::new(),
            _ => format!("({})", vec!["NULL"; *parameters].join(", ")),
        };
        let plan = format!("EXPLAIN EXECUTE explained{values}");
        let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(plan))
            .persistent(false)
            .fetch_all(&mut connection)
            .await
            .unwrap();
        for table in plan.iter().filter_map(|line| line.split_once("Seq Scan on ")?.1.split(' ').next()) {
            let of_this = |(word, whole): &(&str, &str)| *whole == table && statement.contains(word);
            let known = expected.iter().position(of_this);
            let known =
                known.unwrap_or_else(|| panic!("reads all of {table}: {statement}\n{}", plan.join("\n")));
            expected.remove(known);
        }
    }
    assert!(statements.len() > 100, "only {} statements were found", statements.len());
    assert!(expected.is_empty(), "are not read whole any more: {expected:?}");
}

/// All statements but those that have no plan, and how many parameters each has.
fn statements() -> Vec<(String, usize)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let described = std::fs::read_dir(directory).unwrap().map(|entry| {
        let described: Value =
            serde_json::from_slice(&std::fs::read(entry.unwrap().path()).unwrap()).unwrap();
        let parameters = described["describe"]["parameters"]["Left"].as_array().map_or(0, Vec::len);
        (described["query"].as_str().unwrap().to_owned(), parameters)
    });
    described.filter(|(statement, _)| !statement.starts_with("SET ")).collect()
}
