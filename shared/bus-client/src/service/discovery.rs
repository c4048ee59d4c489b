//! `$SRV.PING`, `$SRV.INFO` and `$SRV.STATS`, for all services, those of one name, and one instance.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, SelectAll};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::endpoint::Endpoint;
use crate::headers::header_map;
use crate::{Bus, BusError};

/// What a service says of itself.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) name: String,
    id: String,
    version: String,
    description: String,
    metadata: BTreeMap<String, String>,
    started: OffsetDateTime,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Ping,
    Info,
    Stats,
}

impl Verb {
    const ALL: [Self; 3] = [Self::Ping, Self::Info, Self::Stats];

    fn token(self) -> &'static str {
        match self {
            Self::Ping => "PING",
            Self::Info => "INFO",
            Self::Stats => "STATS",
        }
    }
}

impl Identity {
    pub(super) fn new(
        name: &str,
        version: &str,
        description: &str,
        metadata: BTreeMap<String, String>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            id: format!("{:032x}", rand::random::<u128>()),
            version: version.to_owned(),
            description: description.to_owned(),
            metadata,
            started: OffsetDateTime::now_utc(),
        }
    }

    /// Whether the name is a token of a subject and the version three numbers, as ADR-32 wants.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(allowed) {
            return Err("the name of a service is letters, digits, - and _");
        }
        let core = self.version.split(['-', '+']).next().unwrap_or_default();
        let numbers: Vec<&str> = core.split('.').collect();
        if numbers.len() != 3 || !numbers.iter().all(|number| number.parse::<u32>().is_ok()) {
            return Err("the version of a service is three numbers, such as 1.2.3");
        }
        Ok(())
    }

    fn answer(&self, verb: Verb, endpoints: &[Arc<Endpoint>]) -> Value {
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.token().to_ascii_lowercase()),
            "name": self.name,
            "id": self.id,
            "version": self.version,
            "metadata": self.metadata,
        });
        match verb {
            Verb::Ping => {}
            Verb::Info => {
                answer["description"] = json!(self.description);
                answer["endpoints"] = endpoints.iter().map(|endpoint| endpoint.info()).collect();
            }
            Verb::Stats => {
                answer["started"] = json!(domain_model::Timestamp::from(self.started).to_string());
                answer["endpoints"] = endpoints.iter().map(|endpoint| endpoint.stats()).collect();
            }
        }
        answer
    }
}

type Questions = SelectAll<stream::BoxStream<'static, (Verb, async_nats::Message)>>;

pub(super) async fn subscribe(bus: &Bus, identity: &Identity) -> Result<Questions, BusError> {
    let mut questions = SelectAll::new();
    for verb in Verb::ALL {
        let all = format!("$SRV.{}", verb.token());
        let of_name = format!("{all}.{}", identity.name);
        let of_id = format!("{of_name}.{}", identity.id);
        for subject in [all, of_name, of_id] {
            let subscriber = bus.subscriber("serve", subject, None).await?;
            questions.push(subscriber.map(move |message| (verb, message)).boxed());
        }
    }
    Ok(questions)
}

pub(super) async fn run(
    bus: Bus,
    identity: Identity,
    endpoints: Vec<Arc<Endpoint>>,
    mut questions: Questions,
) {
    while let Some((verb, message)) = questions.next().await {
        let Some(reply_to) = message.reply.map(async_nats::Subject::into_string) else { continue };
        if !bus_subjects::is_reply_subject_allowed(&reply_to) {
            continue;
        }
        let answer = identity.answer(verb, &endpoints);
        let headers = header_map([(super::CONTENT_TYPE, "application/json")]);
        if let Err(error) = bus.publish_headers(reply_to, headers, Bytes::from(answer.to_string())).await {
            tracing::warn!(service.name = identity.name, error = %error, "could not answer a question about the service");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_and_a_version_three_numbers() {
        let check = |name: &str, version: &str| Identity::new(name, version, "", BTreeMap::new()).check();
        assert!(check("registry", "0.1.0").is_ok());
        assert!(check("host-backup", "0.1.0-dev+1").is_ok());
        for (name, version) in [("", "0.1.0"), ("a.b", "0.1.0"), ("a", "1"), ("a", "1.2.x")] {
            assert!(check(name, version).is_err(), "{name} {version}");
        }
    }
}
