//! The providers that the tests run on, each started fresh and reached over loopback.
#![allow(dead_code, reason = "each test binary uses a part of it")]

mod embedded_s3;
mod seaweedfs;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use object_storage::{
    BucketControl, ConnectOptions, LocalSettings, ObjectKey, ObjectStorageError, ObjectStorageErrorKind,
    ObjectStore, ProviderSettings, S3Settings,
};

pub(crate) use embedded_s3::EmbeddedS3;

/// Key pair of the S3 servers.
pub(crate) const ACCESS_KEY_ID: &str = "longhaul-test";
/// Its secret half.
pub(crate) const SECRET_ACCESS_KEY: &str = "longhaul-test-secret";

/// A provider, and what is known to differ from the others.
pub(crate) struct Fixture {
    pub(crate) settings: ProviderSettings,
    /// Whether the location of a bucket reads back.
    pub(crate) reports_location: bool,
    /// Whether one of several create-only writers at the same moment wins, and only one.
    pub(crate) create_only_is_atomic: bool,
    /// Whether a body without the hash that its name promises is refused; S3 and R2 do.
    pub(crate) compares_hashes: bool,
    /// Whether a write to a bucket that does not exist is refused.
    pub(crate) refuses_unknown_buckets: bool,
    /// Whether a backslash in a key stays one; SeaweedFS stores it as `/`.
    pub(crate) keeps_backslashes: bool,
    /// Whether it deletes old objects by itself when told so.
    pub(crate) expires_objects: bool,
    /// Whether it says of an upload that is gone that it is gone; s3s-fs says that access to it is denied.
    pub(crate) knows_uploads_that_are_gone: bool,
    _server: Box<dyn Send>,
}

impl Fixture {
    /// A directory.
    pub(crate) async fn local() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        Some(Self {
            settings: ProviderSettings::Local(LocalSettings { root: directory.path().to_owned() }),
            reports_location: true,
            create_only_is_atomic: true,
            compares_hashes: false,
            refuses_unknown_buckets: true,
            keeps_backslashes: true,
            expires_objects: false,
            knows_uploads_that_are_gone: true,
            _server: Box::new(directory),
        })
    }

    /// The S3 server that runs inside this process.
    pub(crate) async fn embedded_s3() -> Option<Self> {
        let server = EmbeddedS3::start().await;
        Some(Self {
            settings: s3_settings(&server.endpoint),
            reports_location: false,
            create_only_is_atomic: false,
            compares_hashes: true,
            refuses_unknown_buckets: false,
            keeps_backslashes: true,
            expires_objects: false,
            knows_uploads_that_are_gone: false,
            _server: Box::new(server),
        })
    }

    /// A real S3 server; none, said aloud, where its program is missing and is not required.
    pub(crate) async fn seaweedfs() -> Option<Self> {
        let endpoint = seaweedfs::endpoint()?;
        Some(Self {
            settings: s3_settings(endpoint),
            reports_location: false,
            create_only_is_atomic: true,
            compares_hashes: false,
            refuses_unknown_buckets: false,
            keeps_backslashes: false,
            expires_objects: true,
            knows_uploads_that_are_gone: true,
            _server: Box::new(()),
        })
    }

    /// A connection with default options.
    pub(crate) fn connect(&self) -> Arc<dyn BucketControl> {
        self.connect_with(ConnectOptions::default())
    }

    /// A connection.
    pub(crate) fn connect_with(&self, options: impl Into<ConnectOptions>) -> Arc<dyn BucketControl> {
        self.settings.connect_with(options).unwrap()
    }

    /// A bucket of its own for one test.
    pub(crate) async fn bucket(&self) -> Arc<dyn ObjectStore> {
        let provider = self.connect();
        let name = bucket_name();
        provider.create_bucket(&name, None).await.unwrap();
        provider.open_bucket(&name)
    }
}

/// Settings of an S3 server on loopback.
pub(crate) fn s3_settings(endpoint: &str) -> ProviderSettings {
    ProviderSettings::S3(S3Settings {
        endpoint: Some(endpoint.to_owned()),
        region: "us-east-1".to_owned(),
        access_key_id: ACCESS_KEY_ID.to_owned(),
        secret_access_key: SECRET_ACCESS_KEY.into(),
        session_token: None,
        path_style: true,
    })
}

/// A bucket name that nobody else uses.
pub(crate) fn bucket_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("lh-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn key(text: &str) -> ObjectKey {
    text.parse().unwrap()
}

/// Bytes that differ from place to place, so that a shifted range shows.
pub(crate) fn pattern(length: usize) -> Bytes {
    (0..length).map(|index| (index % 251) as u8).collect::<Vec<u8>>().into()
}

/// The kind of an error that must have come.
#[track_caller]
pub(crate) fn kind_of<T: std::fmt::Debug>(answer: Result<T, ObjectStorageError>) -> ObjectStorageErrorKind {
    answer.expect_err("this must fail").kind()
}

/// Longest wait for a server to come up.
const START_TIME_LIMIT: Duration = Duration::from_secs(60);
