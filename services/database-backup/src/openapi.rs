//! The description of the admin API, made from the very types that it reads and answers.

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Value, json};

use crate::answers::{
    Accepted, BackupList, BackupTaken, HealthAnswer, Refused, RestoreRequest, Restored, SetStatus, StatusSet,
};
use crate::http_api::ROUTES;

/// The description, as OpenAPI 3.1.
pub fn openapi() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths = serde_json::Map::new();
    for (method, path) in ROUTES {
        let entry = paths.entry(*path).or_insert_with(|| json!({}));
        entry[method.to_lowercase()] = operation(method, path, &mut generator);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "database-backup admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Backups of one database file. Every request needs the admin token.",
        },
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": generator.take_definitions(true),
        },
    })
}

fn operation(method: &str, path: &str, generator: &mut SchemaGenerator) -> Value {
    let refused = answer::<Refused>(generator, "Not done; the code says why");
    let mut responses = serde_json::Map::new();
    responses.insert("401".to_owned(), answer::<Refused>(generator, "The token is missing or wrong"));
    let (summary, done, request) = match (method, path) {
        ("POST", "/api/admin/backup") => (
            "Take a backup now; who asks while one is taken is given that one",
            answer::<BackupTaken>(generator, "The backup is stored and verified"),
            None,
        ),
        ("GET", "/api/admin/backups") => {
            ("List the backups, newest first", answer::<BackupList>(generator, "All backups"), None)
        }
        ("PUT", "/api/admin/backup/{id}/status") => (
            "Write down that a backup is the one restored last",
            answer::<StatusSet>(generator, "It is written down"),
            Some(body::<SetStatus>(generator)),
        ),
        ("POST", "/api/admin/restore") => (
            "Restore a backup, or put back what was there before; refused while the database is open",
            answer::<Restored>(generator, "The database is restored"),
            Some(body::<RestoreRequest>(generator)),
        ),
        _ => (
            "How the service is, and what became of operations",
            answer::<HealthAnswer>(generator, "Its state"),
            None,
        ),
    };
    responses.insert("200".to_owned(), done);
    if method == "POST" {
        let accepted =
            answer::<Accepted>(generator, "It takes longer: look for the operation in GET /api/health");
        responses.insert("202".to_owned(), accepted);
    }
    for status in ["400", "404", "409", "500", "502", "504", "507"] {
        responses.insert(status.to_owned(), refused.clone());
    }
    let mut operation = json!({ "summary": summary, "responses": responses });
    if let Some(request) = request {
        operation["requestBody"] = request;
    }
    if path.contains("{id}") {
        operation["parameters"] =
            json!([{ "name": "id", "in": "path", "required": true, "schema": { "type": "string" } }]);
    }
    operation
}

fn answer<T: JsonSchema>(generator: &mut SchemaGenerator, description: &str) -> Value {
    let schema = generator.subschema_for::<T>();
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn body<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    let schema = generator.subschema_for::<T>();
    json!({ "required": true, "content": { "application/json": { "schema": schema } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_description_is_the_present_one() {
        let committed: Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        assert!(
            committed == openapi(),
            "services/database-backup/openapi.json is out of date: write it with `database-backup openapi`"
        );
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        found.push(reference.clone());
                    }
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(values) => values.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        let description = openapi();
        let mut found = Vec::new();
        references(&description, &mut found);
        assert!(found.len() > 10, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(description.pointer(pointer).is_some(), "{reference}");
        }
    }
}
