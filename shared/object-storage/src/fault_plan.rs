//! Faults as data: what goes wrong, at which requests, at which moment.
//!
//! A plan is JSON, so that a test can hand it to a service in another process:
//!
//! ```json
//! {
//!   "faults": [
//!     {"operation": "put", "key": "*/data/*", "moment": {"nth": 3}, "action": {"fail": "retryable"}},
//!     {"operation": "list", "moment": {"first": 2}, "action": {"delay": {"milliseconds": 500}}},
//!     {"operation": "get", "action": {"truncate_body": {"bytes": 10}}},
//!     {"operation": "put", "moment": {"after_bytes": 1000000}, "action": "lose_acknowledgement"},
//!     {"operation": "delete", "key": "*/snapshots/*", "action": "pretend_deletion"},
//!     {"operation": "list", "key": "*/index/*", "action": "omit_from_listing"}
//!   ],
//!   "report_location": [
//!     {"bucket": "lh-backups-*", "answer": {"fixed": "enam"}},
//!     {"bucket": "*", "answer": "first_hint"}
//!   ]
//! }
//! ```

use serde::{Deserialize, Serialize};

use crate::RequestKind;

/// What goes wrong, in the order in which it is looked for: each request meets every fault that matches it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// The faults.
    #[serde(default)]
    pub faults: Vec<Fault>,
    /// What the provider says about the locations of buckets; the first rule that matches answers, and
    /// the provider itself where none does.
    #[serde(default)]
    pub report_location: Vec<LocationRule>,
}

/// A text that is no [`FaultPlan`].
#[derive(Debug, thiserror::Error)]
#[error("not a plan of object store faults")]
pub struct FaultPlanError(#[source] serde_json::Error);

impl FaultPlan {
    /// Reads a plan from its JSON. Unknown fields are refused.
    pub fn from_json(json: &str) -> Result<Self, FaultPlanError> {
        serde_json::from_str(json).map_err(FaultPlanError)
    }

    /// The plan as JSON, for the file that a service reads it from.
    pub fn to_json(&self) -> Result<String, FaultPlanError> {
        serde_json::to_string_pretty(self).map_err(FaultPlanError)
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// The kind of request that meets it; any, if none is named.
    #[serde(default)]
    pub operation: Option<RequestKind>,
    /// Pattern of bucket names, where `*` stands for anything.
    #[serde(default = "anything")]
    pub bucket: String,
    /// Pattern of keys, where `*` stands for anything, `/` included. A listing is matched by its prefix (but
    /// see [`FaultAction::OmitFromListing`]), a deletion if any of its keys matches, a bucket's own requests
    /// by an empty key.
    #[serde(default = "anything")]
    pub key: String,
    /// When, among the requests that match.
    #[serde(default)]
    pub moment: FaultMoment,
    /// What happens.
    pub action: FaultAction,
}

fn anything() -> String {
    "*".to_owned()
}

/// When a fault happens, counted over the requests that match it (retries are requests, too).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultMoment {
    /// At every request.
    #[default]
    Every,
    /// Only at the request of this number, from 1.
    Nth(u64),
    /// At so many first requests.
    First(u64),
    /// From the request of this number on, from 1.
    From(u64),
    /// At every request from the one whose body takes the matching requests past so many bytes sent.
    AfterBytes(u64),
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultAction {
    /// An error answers, and nothing happens.
    Fail(InjectedFailure),
    /// The request waits before it goes on, in addition to any other fault that it meets.
    Delay {
        /// How long.
        milliseconds: u64,
    },
    /// The connection ends after so many bytes: the reader of an object gets no more of it than that, and
    /// a write fails without having stored anything. Other requests are not concerned.
    TruncateBody {
        /// How many bytes pass.
        bytes: u64,
    },
    /// The request has its effect, and a retryable error answers.
    LoseAcknowledgement,
    /// A deletion answers that all is deleted, and leaves the objects whose keys match.
    PretendDeletion,
    /// A page of a listing comes without the objects whose keys match.
    OmitFromListing,
}

/// The error of [`FaultAction::Fail`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InjectedFailure {
    /// Worth another try.
    Retryable,
    /// Not worth another try.
    Permanent,
    /// Wrong credentials.
    PermissionDenied,
    /// No such object or bucket.
    NotFound,
}

/// What the provider says about the location of some buckets, for tests of buckets that are elsewhere
/// than asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationRule {
    /// Pattern of bucket names, where `*` stands for anything.
    pub bucket: String,
    /// The answer.
    pub answer: LocationAnswer,
}

/// A provider's word about a location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LocationAnswer {
    /// Always this one, whatever was asked for.
    Fixed(String),
    /// As R2 does it: the hint of the first creation under this name, even if the bucket was deleted and
    /// created again with another hint since. Remembered in this process.
    FirstHint,
    /// It does not tell.
    NotReported,
}

/// Whether `text` matches `pattern`, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "a/b"),
            ("a*", "a"),
            ("*/data/*", "x/data/ab/c"),
            ("a*b*c", "a-b-b-c"),
            ("ab", "ab"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in
            [("", "a"), ("a*", "b"), ("*/data/*", "data/a"), ("ab*ba", "aba"), ("ab", "abc")]
        {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn the_plan_in_the_documentation_is_one() {
        let documentation = include_str!("fault_plan.rs");
        let json: String = documentation
            .lines()
            .skip_while(|line| *line != "//! ```json")
            .skip(1)
            .take_while(|line| *line != "//! ```")
            .map(|line| line.trim_start_matches("//!"))
            .collect();
        let plan = FaultPlan::from_json(&json).unwrap();
        assert_eq!((plan.faults.len(), plan.report_location.len()), (6, 2));
        assert_eq!(FaultPlan::from_json(&plan.to_json().unwrap()).unwrap(), plan);
        assert!(FaultPlan::from_json(r#"{"fault": []}"#).is_err());
    }
}
