//! Connecting, and what is told about the connection afterwards.
//!
//! A wrong password must be an error at once (a service that waits for ever with it looks healthy), a server
//! that is not there yet must not be (all of the system starts at the same moment).

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{broadcast, watch};

use crate::{BusError, BusErrorKind};

/// Where to connect to, and as whom.
#[derive(Debug, Clone)]
pub struct ConnectSettings {
    /// `nats://host:port`, several with commas between them.
    pub url: String,
    /// As whom.
    pub credentials: Credentials,
    /// What inboxes start with, where the credentials allow one prefix only; `_INBOX` where absent or empty.
    pub inbox_prefix: Option<String>,
    /// Names the connection, for people who look at the server.
    pub name: String,
}

/// As whom to connect.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A user of the server's configuration.
    UserPassword {
        /// The name.
        user: String,
        /// The password.
        password: SecretString,
    },
    /// A token, as `account.create_token` gives it.
    Token(SecretString),
}

/// How often the connection came and went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct ConnectionCounts {
    pub(crate) connects: u64,
    pub(crate) disconnects: u64,
}

/// Messages waiting in one subscription; beyond it they are dropped (and logged as a slow consumer).
const SUBSCRIPTION_CAPACITY: usize = 65_536;

const LONGEST_WAIT_BETWEEN_TRIES: Duration = Duration::from_secs(2);

fn wait_before(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt).unwrap_or(u32::MAX).min(10);
    let bound = Duration::from_millis(5 << doublings).min(LONGEST_WAIT_BETWEEN_TRIES);
    bound.mul_f64(rand::random_range(0.5..=1.0))
}

/// Connects; waits as long as no server answers. Refused credentials and a malformed URL are errors at once.
pub(crate) async fn connect(
    settings: &ConnectSettings,
    counts: watch::Sender<ConnectionCounts>,
    refusals: broadcast::Sender<String>,
) -> Result<async_nats::Client, BusError> {
    let error = |kind| BusError::new("connect", redacted(&settings.url), kind);
    let addresses = settings.url.split(',').map(|url| url.trim().parse::<ServerAddr>());
    let addresses: Vec<ServerAddr> =
        addresses.collect::<Result<_, _>>().map_err(|source| error(BusErrorKind::Invalid).because(source))?;
    let mut attempt = 0;
    loop {
        attempt += 1;
        let options = options(settings, counts.clone(), refusals.clone());
        let failure = match options.connect(addresses.as_slice()).await {
            Ok(client) => return Ok(client),
            Err(failure) => failure,
        };
        match failure.kind() {
            ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                return Err(error(BusErrorKind::Unauthorized).because(failure));
            }
            ConnectErrorKind::ServerParse | ConnectErrorKind::Tls => {
                return Err(error(BusErrorKind::Invalid).because(failure));
            }
            _ if attempt % 20 == 1 => {
                tracing::warn!(bus.url = redacted(&settings.url), error = %failure, "waiting for the nats-server");
            }
            _ => {}
        }
        tokio::time::sleep(wait_before(attempt + 1)).await;
    }
}

/// The URL without a password that somebody may have put into it.
fn redacted(url: &str) -> String {
    let without = |url: &str| match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        _ => url.to_owned(),
    };
    url.split(',').map(without).collect::<Vec<_>>().join(",")
}

fn options(
    settings: &ConnectSettings,
    counts: watch::Sender<ConnectionCounts>,
    refusals: broadcast::Sender<String>,
) -> ConnectOptions {
    let slow = SlowConsumerLog::default();
    let mut options = ConnectOptions::new()
        .name(&settings.name)
        .subscription_capacity(SUBSCRIPTION_CAPACITY)
        .connection_timeout(Duration::from_secs(5))
        .ping_interval(Duration::from_secs(10))
        .max_reconnects(None)
        .reconnect_delay_callback(wait_before)
        .event_callback(move |event| {
            on_event(event, &counts, &refusals, &slow);
            std::future::ready(())
        });
    options = match &settings.credentials {
        Credentials::UserPassword { user, password } => {
            options.user_and_password(user.clone(), password.expose_secret().to_owned())
        }
        Credentials::Token(token) => options.token(token.expose_secret().to_owned()),
    };
    match &settings.inbox_prefix {
        Some(prefix) if !prefix.is_empty() => options.custom_inbox_prefix(prefix),
        _ => options,
    }
}

fn on_event(
    event: Event,
    counts: &watch::Sender<ConnectionCounts>,
    refusals: &broadcast::Sender<String>,
    slow: &SlowConsumerLog,
) {
    match event {
        Event::Connected => {
            counts.send_modify(|counts| counts.connects += 1);
            tracing::info!("connected to the nats-server");
        }
        Event::Disconnected => {
            counts.send_modify(|counts| counts.disconnects += 1);
            tracing::warn!("lost the connection to the nats-server; connecting again");
        }
        Event::SlowConsumer(_) => slow.note(),
        Event::ServerError(ServerError::Other(message)) => {
            tracing::warn!(error = message, "the nats-server reports an error");
            if message.to_ascii_lowercase().contains("permissions violation") {
                // Nobody waits for it where the refused message was a mere publish.
                let _ = refusals.send(message);
            }
        }
        Event::ServerError(other) => tracing::warn!(error = %other, "the nats-server reports an error"),
        Event::ClientError(other) => tracing::warn!(error = %other, "the connection reports an error"),
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!("nats connection: {event}"),
    }
}

/// Whether the server's message of a permissions violation is about this subject.
pub(crate) fn refusal_is_about(message: &str, subject: &str) -> bool {
    message.split('"').nth(1) == Some(subject)
}

/// One line in five seconds, with the number of lost messages, instead of one line a lost message.
#[derive(Debug, Default)]
struct SlowConsumerLog(Mutex<(Option<Instant>, u64)>);

impl SlowConsumerLog {
    fn note(&self) {
        let Ok(mut state) = self.0.lock() else { return };
        state.1 += 1;
        if state.0.is_none_or(|last| last.elapsed() >= Duration::from_secs(5)) {
            tracing::error!(messages.lost = state.1, "a subscription is read too slowly: messages are lost");
            *state = (Some(Instant::now()), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_within_two_seconds() {
        assert_eq!(wait_before(1), Duration::ZERO);
        for attempt in 2..100 {
            assert!(wait_before(attempt) <= LONGEST_WAIT_BETWEEN_TRIES);
        }
        assert!(wait_before(50) >= LONGEST_WAIT_BETWEEN_TRIES / 2);
    }

    #[test]
    fn a_refusal_names_its_subject() {
        let message = r#"Permissions Violation for Publish to "api.v1.hub.lro.get""#;
        assert!(refusal_is_about(message, "api.v1.hub.lro.get"));
        assert!(!refusal_is_about(message, "api.v1.hub.lro"));
    }

    #[test]
    fn a_password_in_a_url_is_not_shown() {
        assert_eq!(redacted("nats://a:b@h:1,nats://h:2"), "nats://h:1,nats://h:2");
    }
}
