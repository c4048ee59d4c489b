//! A JSON Schema of an input, read once and applied to every `create`.
//!
//! It knows the words that `schemars` writes for structs, lists, maps, options and enums. A schema with any other word is
//! refused when the kind is declared: a rule that nobody applies would be worse than none.

use std::cell::Cell;
use std::collections::BTreeMap;

use bus_messages::ApiError;
use domain_model::OperationKind;
use serde_json::{Map, Value};

/// How deep schemas and inputs may be.
const DEEPEST: usize = 32;
/// An input has at most 32 KiB; a schema of forms within forms within forms must not take a minute for one of them.
const MOST_STEPS: u32 = 100_000;
/// Words that say something to people, and nothing about what fits.
const ANNOTATIONS: &[&str] = &[
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "title",
    "description",
    "examples",
    "default",
    "format",
    "deprecated",
];

/// What fits.
#[derive(Debug)]
pub(super) struct InputSchema {
    root: Node,
    definitions: BTreeMap<String, Node>,
}

/// One input being looked at.
struct Walk<'a> {
    definitions: &'a BTreeMap<String, Node>,
    steps: Cell<u32>,
}

/// What fits at one place. What is `None` or empty is no rule.
#[derive(Debug, Default)]
struct Node {
    types: Vec<Type>,
    properties: BTreeMap<String, Node>,
    required: Vec<String>,
    /// What is not among the properties.
    others: Others,
    default: Option<Value>,
    items: Option<Box<Node>>,
    values: Option<Vec<Value>>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    all_of: Vec<Node>,
    reference: Option<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    above: Option<f64>,
    below: Option<f64>,
    lengths: (Option<u64>, Option<u64>),
    sizes: (Option<u64>, Option<u64>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Null,
    Boolean,
    Integer,
    Number,
    Text,
    List,
    Object,
}

#[derive(Debug, Default)]
enum Others {
    #[default]
    Any,
    None,
    Each(Box<Node>),
}

impl InputSchema {
    /// Reads a schema, which is to be of an object that refuses unknown fields.
    pub(super) fn read(schema: &Value) -> Result<Self, String> {
        let root = Node::read(schema, 0)?;
        if root.types != [Type::Object] || !matches!(root.others, Others::None) {
            return Err("it is to be of an object with \"additionalProperties\": false \
                        (`#[serde(deny_unknown_fields)]`)"
                .to_owned());
        }
        let mut definitions = BTreeMap::new();
        if let Some(defined) = schema.get("$defs").and_then(Value::as_object) {
            for (name, schema) in defined {
                definitions.insert(name.clone(), Node::read(schema, 0)?);
            }
        }
        let schema = Self { root, definitions };
        schema.all_are_defined(&schema.root)?;
        schema.definitions.values().try_for_each(|node| schema.all_are_defined(node))?;
        Ok(schema)
    }

    /// The input with every default filled in.
    pub(super) fn check(&self, kind: &OperationKind, input: &Value) -> Result<Value, ApiError> {
        // A body without an input is one without fields.
        let mut input = if input.is_null() { Value::Object(Map::new()) } else { input.clone() };
        let walk = Walk { definitions: &self.definitions, steps: Cell::new(0) };
        self.root.check(&walk, &mut input, "", 0).map_err(|why| {
            ApiError::invalid_argument(format!(
                "the input does not fit the kind {kind}: {why}; its service has declared the schema"
            ))
        })?;
        Ok(input)
    }

    fn all_are_defined(&self, node: &Node) -> Result<(), String> {
        if let Some(name) = node.reference.as_ref().filter(|name| !self.definitions.contains_key(*name)) {
            return Err(format!("$defs has no {name}"));
        }
        node.parts().try_for_each(|part| self.all_are_defined(part))
    }
}

impl Node {
    fn read(schema: &Value, depth: usize) -> Result<Self, String> {
        let object = match schema {
            Value::Bool(true) => return Ok(Self::default()),
            Value::Object(object) if depth < DEEPEST => object,
            Value::Object(_) => return Err(format!("it is deeper than {DEEPEST}")),
            _ => return Err("a schema is an object".to_owned()),
        };
        let mut node = Self::default();
        let one = |schema: &Value| Self::read(schema, depth + 1);
        for (word, value) in object {
            let wrong = || format!("{word} is not understood as it is written");
            let number = || value.as_f64().ok_or_else(wrong);
            let count = || value.as_u64().ok_or_else(wrong);
            let list = || value.as_array().ok_or_else(wrong);
            let each = || list()?.iter().map(one).collect::<Result<Vec<Self>, String>>();
            match word.as_str() {
                "type" => {
                    let names =
                        if let Value::Array(names) = value { names.clone() } else { vec![value.clone()] };
                    node.types = names.iter().map(Type::read).collect::<Option<_>>().ok_or_else(wrong)?;
                }
                "properties" => {
                    for (name, schema) in value.as_object().ok_or_else(wrong)? {
                        let mut property = one(schema)?;
                        property.default = schema.get("default").cloned();
                        node.properties.insert(name.clone(), property);
                    }
                }
                "required" => {
                    let names = list()?.iter().map(|name| name.as_str().map(str::to_owned));
                    node.required = names.collect::<Option<_>>().ok_or_else(wrong)?;
                }
                "additionalProperties" => {
                    node.others = match value {
                        Value::Bool(false) => Others::None,
                        Value::Bool(true) => Others::Any,
                        schema => Others::Each(Box::new(one(schema)?)),
                    };
                }
                "items" => node.items = Some(Box::new(one(value)?)),
                "enum" => node.values = Some(list()?.clone()),
                "const" => node.values = Some(vec![value.clone()]),
                "anyOf" => node.any_of = each()?,
                "oneOf" => node.one_of = each()?,
                "allOf" => node.all_of = each()?,
                "$ref" => {
                    let name = value.as_str().and_then(|path| path.strip_prefix("#/$defs/"));
                    node.reference = Some(name.ok_or_else(wrong)?.to_owned());
                }
                "minimum" => node.minimum = Some(number()?),
                "maximum" => node.maximum = Some(number()?),
                "exclusiveMinimum" => node.above = Some(number()?),
                "exclusiveMaximum" => node.below = Some(number()?),
                "minLength" => node.lengths.0 = Some(count()?),
                "maxLength" => node.lengths.1 = Some(count()?),
                "minItems" => node.sizes.0 = Some(count()?),
                "maxItems" => node.sizes.1 = Some(count()?),
                word if ANNOTATIONS.contains(&word) => {}
                _ => return Err(format!("{word:?} is no word that is applied here")),
            }
        }
        Ok(node)
    }

    fn parts(&self) -> impl Iterator<Item = &Self> {
        let others = match &self.others {
            Others::Each(node) => Some(&**node),
            Others::Any | Others::None => None,
        };
        let single = self.items.as_deref().into_iter().chain(others);
        let many = self.any_of.iter().chain(&self.one_of).chain(&self.all_of);
        single.chain(many).chain(self.properties.values())
    }

    /// Fills in defaults, and says what does not fit, and where.
    fn check(&self, walk: &Walk<'_>, value: &mut Value, path: &str, depth: usize) -> Result<(), String> {
        let at = |what: String| if path.is_empty() { what } else { format!("{path}: {what}") };
        walk.steps.set(walk.steps.get() + 1);
        if depth > DEEPEST || walk.steps.get() > MOST_STEPS {
            return Err(at(format!("it is deeper than {DEEPEST}, or takes too long to be looked at")));
        }
        if let Some(node) = self.reference.as_ref().and_then(|name| walk.definitions.get(name)) {
            node.check(walk, value, path, depth + 1)?;
        }
        if !self.types.is_empty() && !self.types.iter().any(|wanted| wanted.fits(value)) {
            let names: Vec<&str> = self.types.iter().map(|wanted| wanted.name()).collect();
            return Err(at(format!("invalid type: {}, expected {}", shown(value), names.join(" or "))));
        }
        if self.values.as_ref().is_some_and(|values| !values.contains(value)) {
            return Err(at(format!("{} is none of the values that there are", shown(value))));
        }
        self.check_size(value).map_err(at)?;
        for part in &self.all_of {
            part.check(walk, value, path, depth + 1)?;
        }
        self.check_choices(walk, value, path, depth)?;
        match value {
            Value::Object(fields) => self.check_fields(walk, fields, path, depth),
            Value::Array(items) => {
                let Some(node) = &self.items else { return Ok(()) };
                let check = |(n, item): (usize, &mut Value)| {
                    node.check(walk, item, &format!("{path}[{n}]"), depth + 1)
                };
                items.iter_mut().enumerate().try_for_each(check)
            }
            _ => Ok(()),
        }
    }

    fn check_fields(
        &self,
        walk: &Walk<'_>,
        fields: &mut Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), String> {
        let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let at = |what: String| if path.is_empty() { what } else { format!("{path}: {what}") };
        for (name, node) in &self.properties {
            if let (false, Some(default)) = (fields.contains_key(name), &node.default) {
                fields.insert(name.clone(), default.clone());
            }
        }
        if let Some(name) = self.required.iter().find(|name| !fields.contains_key(*name)) {
            return Err(at(format!("missing field `{name}`")));
        }
        for (name, value) in fields {
            match (self.properties.get(name), &self.others) {
                (Some(node), _) => node.check(walk, value, &inside(name), depth + 1)?,
                (None, Others::Each(node)) => node.check(walk, value, &inside(name), depth + 1)?,
                (None, Others::Any) => {}
                (None, Others::None) => return Err(at(format!("unknown field `{}`", cut(name)))),
            }
        }
        Ok(())
    }

    fn check_choices(
        &self,
        walk: &Walk<'_>,
        value: &mut Value,
        path: &str,
        depth: usize,
    ) -> Result<(), String> {
        for (choices, most) in [(&self.any_of, usize::MAX), (&self.one_of, 1)] {
            let (mut fitting, mut reason) = (Vec::new(), String::new());
            for choice in choices {
                let mut filled = value.clone();
                match choice.check(walk, &mut filled, path, depth + 1) {
                    Ok(()) => fitting.push(filled),
                    Err(why) => reason = why,
                }
            }
            match fitting.len() {
                0 if choices.is_empty() => {}
                0 => return Err(reason),
                count if count > most => {
                    return Err(format!(
                        "{path}: {} fits more than one of the forms that there are",
                        shown(value)
                    ));
                }
                _ => *value = fitting.swap_remove(0),
            }
        }
        Ok(())
    }

    fn check_size(&self, value: &Value) -> Result<(), String> {
        let outside = |(least, most): (Option<u64>, Option<u64>), size: usize| {
            let size = size as u64;
            least.is_some_and(|least| size < least) || most.is_some_and(|most| size > most)
        };
        match value {
            Value::Number(number) => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                let fits = self.minimum.is_none_or(|least| number >= least)
                    && self.maximum.is_none_or(|most| number <= most)
                    && self.above.is_none_or(|least| number > least)
                    && self.below.is_none_or(|most| number < most);
                if fits { Ok(()) } else { Err(format!("{} is out of range", shown(value))) }
            }
            Value::String(text) if outside(self.lengths, text.chars().count()) => {
                Err("it is too short or too long".to_owned())
            }
            Value::Array(items) if outside(self.sizes, items.len()) => {
                Err(format!("{} items are too few or too many", items.len()))
            }
            _ => Ok(()),
        }
    }
}

impl Type {
    fn read(name: &Value) -> Option<Self> {
        Some(match name.as_str()? {
            "null" => Self::Null,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "string" => Self::Text,
            "array" => Self::List,
            "object" => Self::Object,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean => "a boolean",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Text => "a string",
            Self::List => "a list",
            Self::Object => "an object",
        }
    }

    fn fits(self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Boolean => value.is_boolean(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Text => value.is_string(),
            Self::List => value.is_array(),
            Self::Object => value.is_object(),
        }
    }
}

/// A value in a message: short.
fn shown(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    let mut short: String = text.chars().take(80).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

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

    fn schema() -> InputSchema {
        InputSchema::read(&schema_for!(Input).into()).unwrap()
    }

    fn check(input: Value) -> Result<Value, String> {
        schema().check(&"word-count".parse().unwrap(), &input).map_err(|error| error.message)
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
            (json!({}), "missing field `texts`"),
            (json!({ "texts": [], "colour": 1 }), "unknown field `colour`"),
            (json!({ "texts": "a" }), "texts: invalid type: \"a\", expected a list"),
            (json!({ "texts": ["a", 7] }), "texts[1]: invalid type: 7, expected a string"),
            (json!({ "texts": [], "pause_ms": -1 }), "pause_ms: -1 is out of range"),
            (json!({ "texts": [], "pause_ms": 1.5 }), "pause_ms: invalid type: 1.5, expected an integer"),
            (json!({ "texts": [], "limit": { "words": 256 } }), "limit"),
            (json!({ "texts": [], "limit": { "words": 1, "x": 1 } }), "limit"),
            (json!({ "texts": [], "mode": "lazy" }), "mode"),
            (json!({ "texts": [], "weights": { "a": "heavy" } }), "weights.a: invalid type"),
            (json!({ "texts": [], "place": { "at": { "line": "x" } } }), "place"),
            (json!({ "texts": [], "place": "there" }), "place"),
            (json!([]), "invalid type: [], expected an object"),
        ] {
            assert!(serde_json::from_value::<Input>(input.clone()).is_err() || input == json!([]), "{input}");
            let why = check(input.clone()).expect_err(&input.to_string());
            assert!(why.contains(words), "{input}: {why}");
        }
    }

    #[test]
    fn a_rule_that_is_not_applied_is_refused() {
        let object = |rest: Value| {
            let mut schema = json!({ "type": "object", "additionalProperties": false });
            schema.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            schema
        };
        assert!(InputSchema::read(&object(json!({}))).is_ok());
        for (schema, word) in [
            (json!({ "type": "object" }), "additionalProperties"),
            (json!("object"), "object"),
            (object(json!({ "properties": { "a": { "pattern": "^a$" } } })), "pattern"),
            (object(json!({ "patternProperties": {} })), "patternProperties"),
            (object(json!({ "properties": { "a": { "$ref": "#/$defs/Nothing" } } })), "Nothing"),
            (object(json!({ "properties": { "a": { "$ref": "https://example.org/schema" } } })), "$ref"),
            (object(json!({ "properties": { "a": { "type": "word" } } })), "type"),
            (object(json!({ "required": "a" })), "required"),
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
        assert!(schema.check(&kind, &json!({ "loop": 1 })).unwrap_err().message.contains("deeper"));
        let forms = json!({
            "type": "object", "additionalProperties": false, "properties": { "a": { "$ref": "#/$defs/Form" } },
            "$defs": { "Form": { "anyOf": [{ "$ref": "#/$defs/Form" }, { "$ref": "#/$defs/Form" }] } },
        });
        let forms = InputSchema::read(&forms).unwrap();
        assert!(forms.check(&kind, &json!({ "a": 1 })).is_err());
    }
}
