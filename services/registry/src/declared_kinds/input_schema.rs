//! The JSON Schema of a declared kind's input, read once and applied to every `create`.

use bus_messages::ApiError;
use domain_model::OperationKind;
use jsonschema::Validator;
use serde_json::{Map, Value};

/// What fits.
#[derive(Debug)]
pub(super) struct InputSchema {
    validator: Validator,
    /// Of the fields that may be left out.
    defaults: Vec<(String, Value)>,
}

impl InputSchema {
    /// Reads a schema, which is to be of an object that refuses unknown fields.
    pub(super) fn read(schema: &Value) -> Result<Self, String> {
        if schema["type"] != "object" || schema["additionalProperties"] != false {
            return Err("it is to be of an object with \"additionalProperties\": false \
                        (`#[serde(deny_unknown_fields)]`)"
                .to_owned());
        }
        // Built without a way to fetch anything: a schema that refers to another place does not read.
        let validator = jsonschema::draft202012::new(schema).map_err(|error| error.to_string())?;
        let fields = schema["properties"].as_object().into_iter().flatten();
        let defaults = fields.filter_map(|(name, field)| Some((name.clone(), field.get("default")?.clone())));
        Ok(Self { validator, defaults: defaults.collect() })
    }

    /// The input with the default of every field that is left out.
    pub(super) fn check(&self, kind: &OperationKind, input: &Value) -> Result<Value, ApiError> {
        // A body without an input is one without fields.
        let mut input = if input.is_null() { Value::Object(Map::new()) } else { input.clone() };
        if let Value::Object(fields) = &mut input {
            for (name, default) in &self.defaults {
                fields.entry(name).or_insert_with(|| default.clone());
            }
        }
        self.validator.validate(&input).map_err(|error| {
            let path = error.instance_path().to_string();
            let at = if path.is_empty() { path } else { format!("{path}: ") };
            let mut why = error.to_string();
            why.truncate(why.floor_char_boundary(MOST_WORDS));
            ApiError::invalid_argument(format!(
                "the input does not fit the kind {kind}: {at}{why}; its service has declared the schema"
            ))
        })?;
        Ok(input)
    }
}

/// What is wrong is told with the value, which may be of 32 KiB.
const MOST_WORDS: usize = 300;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::collections::BTreeMap;

    use schemars::{JsonSchema, schema_for};
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::*;

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Input {
        texts: Vec<String>,
        #[serde(default)]
        pause_ms: u32,
        #[serde(default)]
        limit: Option<Limit>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        weights: BTreeMap<String, f64>,
        #[serde(default)]
        place: Option<Place>,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields)]
    struct Limit {
        words: u8,
    }

    #[derive(Default, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Fast,
        /// Looks twice.
        Careful,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Place {
        Here,
        At { line: i32 },
    }

    fn check(input: Value) -> Result<Value, String> {
        let schema = InputSchema::read(&schema_for!(Input).into()).unwrap();
        schema.check(&"word-count".parse().unwrap(), &input).map_err(|error| error.message)
    }

    /// What serde would take, the schema takes, and the other way round.
    #[test]
    fn it_takes_what_the_struct_takes_and_refuses_what_that_refuses() {
        let good = [
            json!({ "texts": [] }),
            json!({ "texts": ["a"], "pause_ms": 3, "limit": null, "mode": "careful", "weights": { "a": 1 } }),
            json!({ "texts": ["a"], "limit": { "words": 255 }, "place": "here" }),
            json!({ "texts": [], "place": { "at": { "line": -1 } }, "weights": { "a": 0.5, "b": 2.0 } }),
        ];
        for input in good {
            let checked = check(input.clone()).unwrap();
            let full = serde_json::to_value(serde_json::from_value::<Input>(input.clone()).unwrap()).unwrap();
            assert_eq!(checked["pause_ms"], full["pause_ms"], "defaults are filled in: {checked}");
            assert_eq!(check(checked.clone()).unwrap(), checked, "once is enough");
        }
        for (input, words) in [
            (json!({}), "\"texts\" is a required property"),
            (json!({ "texts": [], "colour": 1 }), "'colour' was unexpected"),
            (json!({ "texts": "a" }), "/texts: \"a\" is not of type"),
            (json!({ "texts": ["a", 7] }), "/texts/1: 7 is not of type"),
            (json!({ "texts": [], "pause_ms": -1 }), "/pause_ms: -1 is less than"),
            (json!({ "texts": [], "pause_ms": 1.5 }), "/pause_ms: 1.5 is not of type"),
            (json!({ "texts": [], "limit": { "words": 256 } }), "/limit"),
            (json!({ "texts": [], "limit": { "words": 1, "x": 1 } }), "/limit"),
            (json!({ "texts": [], "mode": "lazy" }), "/mode"),
            (json!({ "texts": [], "weights": { "a": "heavy" } }), "/weights/a: \"heavy\" is not of type"),
            (json!({ "texts": [], "place": { "at": { "line": "x" } } }), "/place"),
            (json!({ "texts": [], "place": "there" }), "/place"),
            (json!([]), "[] is not of type"),
        ] {
            assert!(serde_json::from_value::<Input>(input.clone()).is_err() || input == json!([]), "{input}");
            let why = check(input.clone()).expect_err(&input.to_string());
            assert!(why.contains(words), "{input}: {why}");
        }
        let long = check(json!({ "texts": "x".repeat(30_000) })).unwrap_err();
        assert!(long.len() < 500, "{long}");
    }

    #[test]
    fn a_schema_that_takes_anything_or_does_not_read_is_refused() {
        let object = |rest: Value| {
            let mut schema = json!({ "type": "object", "additionalProperties": false });
            schema.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            schema
        };
        assert!(InputSchema::read(&object(json!({}))).is_ok());
        for (schema, word) in [
            (json!({ "type": "object" }), "additionalProperties"),
            (json!("object"), "object"),
            (object(json!({ "properties": { "a": { "$ref": "#/$defs/Nothing" } } })), "Nothing"),
            (
                object(json!({ "properties": { "a": { "$ref": "https://example.org/schema" } } })),
                "example.org",
            ),
            (object(json!({ "properties": { "a": { "type": "word" } } })), "word"),
            (object(json!({ "required": "a" })), "array"),
        ] {
            let why = InputSchema::read(&schema).expect_err(&schema.to_string());
            assert!(why.contains(word), "{schema}: {why}");
        }
    }

    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let schema = json!({
            "type": "object", "additionalProperties": false,
            "properties": { "tree": { "$ref": "#/$defs/Tree" }, "loop": { "$ref": "#/$defs/Loop" } },
            "$defs": {
                "Tree": { "type": "array", "items": { "$ref": "#/$defs/Tree" } },
                "Loop": { "$ref": "#/$defs/Loop" },
            },
        });
        let schema = InputSchema::read(&schema).unwrap();
        let kind = "word-count".parse().unwrap();
        assert!(schema.check(&kind, &json!({ "tree": [[], [[]]] })).is_ok());
        assert!(schema.check(&kind, &json!({ "tree": [[7]] })).is_err());
        // Says nothing, and so takes anything.
        assert!(schema.check(&kind, &json!({ "loop": 1 })).is_ok());
    }
}
