//! Logins of people and their programs (account APP): the server asks here what the holder of a token may
//! do (NATS auth callout, ADR-26), and freezes the answer for the length of the connection. Therefore a
//! login lasts minutes; the client connects again by itself.
//!
//! The token names an account; what it may do follows from the catalog: its own subjects, and those of the
//! projects that it owns or collaborates in. Nothing that the client sends names its authority.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bus_client::{Bus, BusMessage};
use bytes::Bytes;
use catalog_database::{AccountRights, Database};
use data_encoding::BASE64URL_NOPAD;
use futures::StreamExt;
use nkeys::KeyPair;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::accounts::token_digest;
use crate::errors::chain;
use crate::settings::AuthorizationSettings;

const QUESTIONS: &str = "$SYS.REQ.USER.AUTH";
/// Where the server awaits its answers; nothing else is answered.
const REPLIES: &str = "$SYS._INBOX.";
/// The one account that logins are let into.
const ACCOUNT: &str = "APP";
/// Logins decided at the same time.
const CONCURRENCY: usize = 16;
/// Projects that fit into the permissions of one connection.
const MOST_PROJECTS: usize = 1000;

/// Decides about logins.
pub(crate) struct Authorization {
    bus: Bus,
    database: Database,
    issuer: KeyPair,
    session: Duration,
}

/// What the server asks: its own id, the key of the connection, and what the client sent.
struct Question {
    server_id: String,
    user_nkey: String,
    token: Option<String>,
}

impl Authorization {
    pub(crate) fn new(
        bus: Bus,
        database: Database,
        settings: &AuthorizationSettings,
    ) -> anyhow::Result<Self> {
        let issuer = KeyPair::from_seed(settings.issuer_seed.expose_secret())
            .context("authorization.issuer_seed is not the seed of an account key (nats: nk -gen account)")?;
        Ok(Self { bus, database, issuer, session: Duration::from_secs(settings.session_s) })
    }

    /// Answers until `stopping`.
    pub(crate) async fn answer(self: Arc<Self>, stopping: CancellationToken) {
        while !stopping.is_cancelled() {
            match self.bus.subscribe_queue(QUESTIONS.to_owned(), crate::api::SERVICE.to_owned()).await {
                Ok(questions) => {
                    let deciding = questions.for_each_concurrent(CONCURRENCY, |message| {
                        let this = Arc::clone(&self);
                        async move { this.decide(message).await }
                    });
                    if stopping.run_until_cancelled(deciding).await.is_none() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(error = chain(&error), "cannot listen for logins"),
            }
            stopping.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await;
        }
    }

    async fn decide(&self, message: BusMessage) {
        let Some(reply) = message.reply.filter(|reply| reply.starts_with(REPLIES)) else { return };
        let Some(question) = read_question(&message.payload) else {
            tracing::warn!("a question about a login does not read");
            return;
        };
        // The digest of a token that is not there matches nothing, and is not looked up.
        let rights = match &question.token {
            None => Ok(None),
            Some(token) => self.database.rights_of_token(&token_digest(token)).await,
        };
        let answer = match rights {
            Ok(Some(rights)) => self.user(&question, &rights).map(|user| json!({ "jwt": user })),
            Ok(None) => Ok(json!({ "error": "log in with a token of an account that is not over" })),
            Err(error) => {
                tracing::warn!(error = chain(&error), "a login cannot be decided");
                Ok(json!({ "error": "the registry cannot look the token up now" }))
            }
        };
        let answer = answer.and_then(|mut answer| {
            answer["type"] = json!("authorization_response");
            answer["version"] = json!(2);
            self.sign(json!({ "sub": question.user_nkey, "aud": question.server_id, "nats": answer }))
        });
        let sent = match answer {
            Ok(answer) => self.bus.publish(reply, Bytes::from(answer)).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        if let Err(error) = sent {
            tracing::warn!(error = format!("{error:#}"), "a login was not answered");
        }
    }

    /// The user that a connection becomes: a name that requests then carry, and permissions.
    fn user(&self, question: &Question, rights: &AccountRights) -> anyhow::Result<String> {
        let account = rights.account_id;
        let mut publish = vec![format!("api.v1.account-{account}.>")];
        let mut subscribe = vec![format!("persist.account-{account}.>"), format!("_INBOX_{account}.>")];
        for project in rights.projects.iter().take(MOST_PROJECTS) {
            publish.push(format!("api.v1.project-{project}.>"));
            subscribe.push(format!("persist.project-{project}.>"));
        }
        let nats = json!({
            "type": "user",
            "version": 2,
            "subs": 1000,
            "data": -1,
            "payload": -1,
            // Spelled out: a user without them may do everything in its account.
            "pub": { "allow": publish },
            "sub": { "allow": subscribe },
        });
        let name = format!("account-{account}");
        self.sign(json!({ "sub": question.user_nkey, "aud": ACCOUNT, "name": name, "nats": nats }))
    }

    /// A JWT as NATS has them, signed by the issuer.
    fn sign(&self, mut claims: Value) -> anyhow::Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        claims["iss"] = json!(self.issuer.public_key());
        claims["iat"] = json!(now);
        claims["exp"] = json!(now + self.session.as_secs());
        claims["jti"] = json!(Uuid::new_v4().to_string());
        let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed =
            format!("{}.{}", encode(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), encode(&claims));
        let signature = self.issuer.sign(signed.as_bytes()).context("sign the answer to a login")?;
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

/// Reads the server's question. Only the server can publish it (its system account), so its signature is not
/// checked again.
fn read_question(payload: &[u8]) -> Option<Question> {
    let claims = std::str::from_utf8(payload).ok()?.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&BASE64URL_NOPAD.decode(claims.as_bytes()).ok()?).ok()?;
    let nats = &claims["nats"];
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    Some(Question {
        server_id: text(&nats["server_id"]["id"])?,
        user_nkey: text(&nats["user_nkey"])?,
        token: text(&nats["connect_opts"]["auth_token"]),
    })
}
