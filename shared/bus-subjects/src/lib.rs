//! The grammar of subjects: built and read in this one place.
//!
//! The scope of the target is in the subject, so that the server itself authorizes by subject. A subject
//! put together by hand somewhere else would be a hole in that.

use std::fmt;
use std::str::FromStr;

use domain_model::{OperationId, Routing, Scope};

/// The JetStream stream that holds every operation's events and summaries.
pub const STREAM: &str = "LRO";

/// What the stream listens to.
pub const STREAM_SUBJECTS: &str = "persist.*.lro.>";

/// A text that is no subject of Longhaul.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a subject of this form: {subject:?}; expected {expected}")]
pub struct SubjectError {
    subject: String,
    expected: &'static str,
}

/// The two subjects that tell of one operation: `persist.<scope>.lro.<op_id>` and then `.evt` or `.state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationSubject {
    /// What the operation is about.
    pub scope: Scope,
    /// Which operation.
    pub op_id: OperationId,
}

/// Which of the two subjects of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationSubjectPart {
    /// The ring of its last 256 events.
    Events,
    /// Its latest summary.
    State,
}

impl OperationSubject {
    /// The ring of events.
    pub fn events(&self) -> String {
        format!("{self}.evt")
    }

    /// The latest summary.
    pub fn state(&self) -> String {
        format!("{self}.state")
    }

    /// Both, as a wildcard to subscribe to.
    pub fn wildcard(&self) -> String {
        format!("{self}.*")
    }

    /// Reads a subject of the stream.
    pub fn parse(subject: &str) -> Result<(Self, OperationSubjectPart), SubjectError> {
        let error = || SubjectError {
            subject: subject.chars().take(200).collect(),
            expected: "persist.<scope>.lro.<op_id>.evt or .state",
        };
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["persist", scope, "lro", op_id, part] = tokens[..] else { return Err(error()) };
        let part = match part {
            "evt" => OperationSubjectPart::Events,
            "state" => OperationSubjectPart::State,
            _ => return Err(error()),
        };
        let scope = scope.parse().map_err(|_| error())?;
        let op_id = op_id.parse().map_err(|_| error())?;
        Ok((Self { scope, op_id }, part))
    }
}

impl fmt::Display for OperationSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "persist.{}.lro.{}", self.scope, self.op_id)
    }
}

/// A subject of the public API: `api.v1.<scope>.<noun>.<verb>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ApiSubject {
    /// What the request is about; clients are let through by this token.
    pub scope: Scope,
    /// `lro`, `project`, `backup` …
    pub noun: String,
    /// `create`, `get`, `list` …
    pub verb: String,
}

impl ApiSubject {
    /// The subject of a verb on a noun.
    pub fn new(scope: Scope, noun: &str, verb: &str) -> Self {
        Self { scope, noun: noun.to_owned(), verb: verb.to_owned() }
    }
}

impl fmt::Display for ApiSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "api.v1.{}.{}.{}", self.scope, self.noun, self.verb)
    }
}

impl FromStr for ApiSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let error = || SubjectError {
            subject: subject.chars().take(200).collect(),
            expected: "api.v1.<scope>.<noun>.<verb>",
        };
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["api", "v1", scope, noun, verb] = tokens[..] else { return Err(error()) };
        Ok(Self::new(scope.parse().map_err(|_| error())?, noun, verb))
    }
}

/// A subject of the worker protocol: `work.v1.<host-uuid|hub>.<verb>`. The caller's credentials pin the
/// routing token: that token, and no payload, says who calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WorkSubject {
    /// Who calls: `hub` or `host-<uuid>`.
    pub caller: Routing,
    /// `claim`, `progress`, `finish`, `repository`.
    pub verb: String,
}

impl WorkSubject {
    /// The subject of a verb of a worker.
    pub fn new(caller: Routing, verb: &str) -> Self {
        Self { caller, verb: verb.to_owned() }
    }
}

impl fmt::Display for WorkSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "work.v1.{}.{}", self.caller, self.verb)
    }
}

impl FromStr for WorkSubject {
    type Err = SubjectError;

    fn from_str(subject: &str) -> Result<Self, SubjectError> {
        let error = || SubjectError {
            subject: subject.chars().take(200).collect(),
            expected: "work.v1.<hub|host-uuid>.<verb>",
        };
        let tokens: Vec<&str> = subject.split('.').collect();
        let ["work", "v1", caller, verb] = tokens[..] else { return Err(error()) };
        match caller.parse().map_err(|_| error())? {
            Routing::Any => Err(error()),
            caller => Ok(Self::new(caller, verb)),
        }
    }
}

/// Where the registry asks to look into a backup: `browse.v1.<host-uuid|hub>`. Only the registry may publish
/// there, and only the credentials of that host (or of a worker in the hub) may listen: no host answers for
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BrowseSubject {
    /// Who answers: `hub` or `host-<uuid>`.
    pub server: Routing,
}

impl fmt::Display for BrowseSubject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "browse.v1.{}", self.server)
    }
}

/// The nudge for the workers of a routing.
pub fn wake(routing: Routing) -> String {
    format!("wake.{routing}")
}

/// Whether a service may answer to this reply subject: an inbox (`_INBOX…`) or what the server puts in
/// place of it where a request crosses accounts (`_R_.…`). A reply subject that the caller chose freely
/// would make the service write where the caller may not.
pub fn is_reply_subject_allowed(reply: &str) -> bool {
    let first = reply.split('.').next().unwrap_or_default();
    let inbox = first == "_INBOX" || first.starts_with("_INBOX_") || first == "_R_";
    inbox && reply.len() > first.len() + 1 && !reply.contains(['*', '>', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";

    #[test]
    fn the_subjects_of_an_operation_read_back() {
        let subject =
            OperationSubject { scope: format!("project-{ID}").parse().unwrap(), op_id: ID.parse().unwrap() };
        assert_eq!(subject.events(), format!("persist.project-{ID}.lro.{ID}.evt"));
        assert_eq!(OperationSubject::parse(&subject.events()), Ok((subject, OperationSubjectPart::Events)));
        assert_eq!(OperationSubject::parse(&subject.state()), Ok((subject, OperationSubjectPart::State)));
        for bad in
            ["", "persist", &subject.to_string(), &subject.wildcard(), &format!("{}.x", subject.events())]
        {
            assert!(OperationSubject::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn api_and_work_subjects_read_back() {
        for text in [format!("api.v1.project-{ID}.lro.create"), "api.v1.hub.project.create".to_owned()] {
            assert_eq!(text.parse::<ApiSubject>().unwrap().to_string(), text);
        }
        for text in [format!("work.v1.host-{ID}.claim"), "work.v1.hub.finish".to_owned()] {
            assert_eq!(text.parse::<WorkSubject>().unwrap().to_string(), text);
        }
        for bad in
            ["api.v1.*.lro.create", "api.v2.hub.lro.create", "api.v1.hub.lro", "api.v1.hub.lro.create.x"]
        {
            assert!(bad.parse::<ApiSubject>().is_err(), "{bad:?}");
        }
        assert!("work.v1.any.claim".parse::<WorkSubject>().is_err());
    }

    #[test]
    fn each_host_is_asked_on_a_subject_of_its_own() {
        let server: Routing = format!("host-{ID}").parse().unwrap();
        assert_eq!(BrowseSubject { server }.to_string(), format!("browse.v1.host-{ID}"));
        assert_eq!(BrowseSubject { server: Routing::Hub }.to_string(), "browse.v1.hub");
    }

    #[test]
    fn only_inboxes_are_answered() {
        for good in ["_INBOX.abc", "_INBOX.abc.def", "_INBOX_host-1.abc", "_R_.abc.def"] {
            assert!(is_reply_subject_allowed(good), "{good}");
        }
        for bad in [
            "",
            "_INBOX",
            "_INBOX.",
            "persist.x",
            "api.v1.hub.lro.create",
            "work.v1.hub.claim",
            "_INBOX.>",
            "_INBOXES",
        ] {
            assert!(!is_reply_subject_allowed(bad), "{bad}");
        }
    }
}
