//! Which provider, with which credentials: settings that travel, and the way from them to a connection.
//!
//! They reach a host inside a lease grant and a child process through a pipe, so their secrets serialise.
//! They also reach error messages and logs of whoever holds them, so `Debug` never shows a secret.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fault_injection::{FaultInjector, FaultyBuckets};
use crate::local::LocalProvider;
use crate::reliable::ReliableBuckets;
use crate::request_counter::{CountedBuckets, RequestCounter};
use crate::requests::BucketRequests;
use crate::retry::{RetryPolicy, TimeLimits};
use crate::s3::S3Provider;
use crate::{BucketControl, ObjectStorageError};

/// A secret that serialises as its text, wipes its memory when dropped and prints as `[REDACTED]`.
#[derive(Clone)]
pub struct SecretText(SecretString);

impl SecretText {
    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for SecretText {
    fn from(text: String) -> Self {
        Self(SecretString::from(text))
    }
}

impl From<&str> for SecretText {
    fn from(text: &str) -> Self {
        Self(SecretString::from(text))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[REDACTED]")
    }
}

impl PartialEq for SecretText {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for SecretText {}

impl Serialize for SecretText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.expose())
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        SecretString::deserialize(deserializer).map(Self)
    }
}

/// A provider of buckets and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProviderSettings {
    /// A directory of this machine, or a NAS mounted on it.
    Local(LocalSettings),
    /// An S3 server.
    S3(S3Settings),
}

/// A directory whose subdirectories are buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalSettings {
    /// The directory. It is never created here, because a missing one may be a NAS that is not mounted:
    /// requests then fail with a retryable error.
    pub root: PathBuf,
}

/// An account of an S3 server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Settings {
    /// URL of the server; none for AWS's own of the region.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The region that requests are signed for (`auto` for R2).
    pub region: String,
    /// Public half of the key pair.
    pub access_key_id: String,
    /// Secret half of the key pair.
    pub secret_access_key: SecretText,
    /// The token that belongs to temporary credentials.
    #[serde(default)]
    pub session_token: Option<SecretText>,
    /// Whether the bucket stands in the path of a URL, not in its host name: true for most servers but AWS.
    #[serde(default)]
    pub path_style: bool,
}

/// What a connection does beyond its settings. The default: default retries and limits, and the faults
/// that the environment asks for.
#[derive(Debug, Clone, Default)]
pub struct ConnectOptions {
    /// Attempts and waits.
    pub retry: RetryPolicy,
    /// Limits of one attempt and of all.
    pub time_limits: TimeLimits,
    /// Faults to inject. Without them, those of the file named by
    /// [`FAULT_PLAN_VARIABLE`](crate::FAULT_PLAN_VARIABLE), if it is set.
    pub faults: Option<FaultInjector>,
    /// Counts the requests of this connection.
    pub request_counter: Option<Arc<RequestCounter>>,
}

impl From<RetryPolicy> for ConnectOptions {
    fn from(retry: RetryPolicy) -> Self {
        Self { retry, ..Self::default() }
    }
}

impl ProviderSettings {
    /// [`connect_with`](Self::connect_with) the default options.
    pub fn connect(&self) -> Result<Arc<dyn BucketControl>, ObjectStorageError> {
        self.connect_with(ConnectOptions::default())
    }

    /// Prepares a connection; nothing is sent yet. Its buckets share one pool of connections, so keep it
    /// rather than connecting again. Fails on settings that no server could be reached with.
    pub fn connect_with(
        &self,
        options: impl Into<ConnectOptions>,
    ) -> Result<Arc<dyn BucketControl>, ObjectStorageError> {
        let options = options.into();
        let mut requests: Arc<dyn BucketRequests> = match self {
            Self::Local(settings) => Arc::new(LocalProvider::new(settings)?),
            Self::S3(settings) => Arc::new(S3Provider::new(settings)?),
        };
        if let Some(faults) = options.faults.or_else(FaultInjector::from_environment) {
            requests = Arc::new(FaultyBuckets { inner: requests, faults });
        }
        if let Some(counter) = options.request_counter {
            requests = Arc::new(CountedBuckets { inner: requests, counter });
        }
        Ok(Arc::new(ReliableBuckets::new(requests, options.retry, options.time_limits)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]
    use super::*;

    fn s3() -> ProviderSettings {
        ProviderSettings::S3(S3Settings {
            endpoint: Some("http://127.0.0.1:9000".into()),
            region: "auto".into(),
            access_key_id: "key-id".into(),
            secret_access_key: "very-secret".into(),
            session_token: Some("token-secret".into()),
            path_style: true,
        })
    }

    #[test]
    fn settings_survive_json_and_messagepack_with_their_secrets() {
        for settings in [s3(), ProviderSettings::Local(LocalSettings { root: "/srv/objects".into() })] {
            let json = serde_json::to_string(&settings).unwrap();
            assert_eq!(serde_json::from_str::<ProviderSettings>(&json).unwrap(), settings);
            let packed = rmp_serde::to_vec_named(&settings).unwrap();
            assert_eq!(rmp_serde::from_slice::<ProviderSettings>(&packed).unwrap(), settings);
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?} {:?}", s3(), s3().connect().unwrap());
        assert!(shown.contains("key-id"), "{shown}");
        assert!(!shown.contains("secret\"") && !shown.contains("very-secret"), "{shown}");
        assert!(!shown.contains("token-secret"), "{shown}");
    }

    #[test]
    fn unknown_fields_and_kinds_are_refused() {
        for json in [
            r#"{"kind":"local","root":"/x","rooot":1}"#,
            r#"{"kind":"ftp","root":"/x"}"#,
            r#"{"kind":"s3","region":"auto","access_key_id":"a","secret_access_key":"b","bucket":"c"}"#,
            r#"{"root":"/x"}"#,
        ] {
            assert!(serde_json::from_str::<ProviderSettings>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn a_relative_root_and_a_bad_endpoint_are_refused() {
        assert!(ProviderSettings::Local(LocalSettings { root: "objects".into() }).connect().is_err());
        for endpoint in ["", "127.0.0.1:9000", "ftp://127.0.0.1", "http://user:password@127.0.0.1"] {
            let ProviderSettings::S3(settings) = s3() else { unreachable!("s3() is S3") };
            let settings = S3Settings { endpoint: Some(endpoint.into()), ..settings };
            assert!(ProviderSettings::S3(settings).connect().is_err(), "{endpoint}");
        }
    }
}
