//! Kinds that a service brings along: declared by it when it starts, and not built into the registry. The definition stands
//! beside its handler, in one file.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use domain_model::{OperationKind, Phase, ScopeType};
use schemars::Schema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{KindDefinition, RoutingRule, no_host};
use crate::ApiError;

/// A kind, as its service tells the registry of it: what is needed to check and to route operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KindDeclaration {
    /// Its name.
    pub name: OperationKind,
    /// What it does, for people.
    pub description: String,
    /// What it may be about.
    pub scope: ScopeType,
    /// Its phases, in order, with their weights.
    pub phases: Vec<DeclaredPhase>,
    /// How many attempts may fail.
    pub max_attempts: u32,
    /// Seconds until an operation expires, and after which it is deleted.
    pub time_to_live_s: u32,
    /// Whether only one such operation may run on its scope at a time.
    pub exclusive: bool,
    /// An example of its input.
    pub example_input: Value,
    /// JSON Schema of the input. What does not fit is refused when an operation is created.
    pub input_schema: Value,
    /// JSON Schema of the result.
    pub result_schema: Value,
}

/// A phase of a declared kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredPhase {
    /// Its name.
    pub name: String,
    /// Its share of the operation's time, relative to the other phases' weights.
    pub weight: u32,
}

/// `work.v1.hub.declare`: these kinds can be created from now on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclareKinds {
    /// All that the service works on and the registry is not built with.
    pub kinds: Vec<KindDeclaration>,
}

/// Checks an input and writes it out in full.
pub type CheckInput = Box<dyn Fn(&Value) -> Result<Value, ApiError> + Send + Sync>;

type Known = BTreeMap<String, (KindDeclaration, &'static KindDefinition)>;

/// What this process was told of. A definition stays for as long as the process: whoever found it may hold it.
static KNOWN: RwLock<Known> = RwLock::new(BTreeMap::new());

impl KindDefinition {
    /// What its service tells the registry. Only what the hub routes to the hub, and what works on no repository, can be
    /// declared; anything else is refused there.
    ///
    /// # Panics
    /// Where the example is no JSON: a mistake of whoever wrote it.
    pub fn declaration(&self) -> KindDeclaration {
        let phases = self.phases.iter();
        KindDeclaration {
            name: self.kind(),
            description: self.description.to_owned(),
            scope: self.scope,
            phases: phases
                .map(|phase| DeclaredPhase { name: phase.name.to_owned(), weight: phase.weight })
                .collect(),
            max_attempts: self.max_attempts,
            time_to_live_s: self.time_to_live_s,
            exclusive: self.exclusive,
            example_input: serde_json::from_str(self.example_input).expect("an example is JSON"),
            input_schema: (self.input_schema)().into(),
            result_schema: (self.result_schema)().into(),
        }
    }
}

/// Makes a declared kind known to this process, in place of what it was before. `check_input` is to hold it to its schema.
pub fn make_known(declaration: &KindDeclaration, check_input: CheckInput) {
    let mut known = KNOWN.write().unwrap_or_else(PoisonError::into_inner);
    let name = declaration.name.as_str();
    if known.get(name).is_some_and(|(before, _)| before == declaration) {
        return;
    }
    let text = |text: &str| -> &'static str { Box::leak(text.to_owned().into_boxed_str()) };
    let schema = |schema: &Value| -> &'static (dyn Fn() -> Schema + Send + Sync) {
        let schema = Schema::try_from(schema.clone()).unwrap_or_default();
        Box::leak(Box::new(move || schema.clone()))
    };
    let phases: Vec<Phase> = declaration
        .phases
        .iter()
        .map(|phase| Phase { name: text(&phase.name), weight: phase.weight })
        .collect();
    let definition = KindDefinition {
        name: text(name),
        description: text(&declaration.description),
        scope: declaration.scope,
        routing: RoutingRule::Hub,
        phases: Box::leak(phases.into_boxed_slice()),
        max_attempts: declaration.max_attempts,
        time_to_live_s: declaration.time_to_live_s,
        exclusive: declaration.exclusive,
        gives_way: false,
        uses_repository: false,
        part_of: None,
        for_tests: false,
        example_input: text(&declaration.example_input.to_string()),
        normalise_input: Box::leak(check_input),
        host_in_input: no_host,
        input_schema: schema(&declaration.input_schema),
        result_schema: schema(&declaration.result_schema),
    };
    known.insert(name.to_owned(), (declaration.clone(), Box::leak(Box::new(definition))));
}

/// Every declared kind that this process knows.
pub fn all_declared() -> Vec<&'static KindDefinition> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.values().map(|(_, definition)| *definition).collect()
}

pub(super) fn find(name: &str) -> Option<&'static KindDefinition> {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.get(name).map(|(_, definition)| *definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declared_kind_is_found_changed_and_never_takes_the_place_of_one_that_is_built_in() {
        let mut declaration = super::super::named("test-sleep").declaration();
        let accept = || -> CheckInput { Box::new(|input| Ok(input.clone())) };
        make_known(&declaration, accept());
        let built_in = super::super::find(&declaration.name).unwrap();
        assert!((built_in.normalise_input)(&serde_json::json!({ "seconds": -1 })).is_err());

        declaration.name = "of-another-team".parse().unwrap();
        make_known(&declaration, accept());
        let first = super::super::find(&declaration.name).unwrap();
        assert_eq!(first.declaration(), declaration, "nothing is lost on the way");
        make_known(&declaration, accept());
        assert!(
            std::ptr::eq(first, super::super::find(&declaration.name).unwrap()),
            "the same stays as it is"
        );
        declaration.max_attempts += 1;
        make_known(&declaration, accept());
        let changed = super::super::find(&declaration.name).unwrap();
        assert_eq!(changed.max_attempts, first.max_attempts + 1);
        assert_eq!(all_declared().iter().filter(|kind| kind.name == "of-another-team").count(), 1);
    }
}
