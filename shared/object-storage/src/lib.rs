//! Objects and buckets behind one small interface: an S3 server (Cloudflare R2 and any other) or a directory.
//!
//! The callers of this crate decide from *listings* what may be deleted and from *acknowledgements* what
//! exists. So nothing here is best effort: a listing is whole or an error, a deletion is verified or an
//! error, a write is acknowledged by the provider or an error.
//!
//! The layers, from the caller down:
//!
//! 1. [`ObjectStore`] and [`BucketControl`], implemented once, in `reliable.rs`: time limits, retries with
//!    full jitter, whole listings, verified deletions.
//! 2. [`RequestCounter`], if asked for: every request that a provider would bill, retries included.
//! 3. [`FaultInjector`], if asked for: beneath the retries and the verification, so that tests prove those.
//! 4. The provider, one request a call: `local.rs` or `s3.rs`.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use object_storage::{LocalSettings, ProviderSettings, PutMode};
//!
//! let provider = ProviderSettings::Local(LocalSettings { root: "/srv/objects".into() }).connect()?;
//! provider.create_bucket("backups-weur", Some("weur")).await?;
//! let bucket = provider.open_bucket("backups-weur");
//! bucket.put(&"greeting".parse()?, "hello".into(), PutMode::CreateOnly).await?;
//! # Ok(())
//! # }
//! ```

mod error;
mod fault_injection;
mod fault_plan;
mod file_upload;
mod local;
mod local_files;
mod object_store;
mod provider;
mod reliable;
mod request_counter;
mod requests;
mod retry;
mod s3;
mod s3_conditions;
mod s3_errors;
mod s3_lifecycle;

pub use error::{ObjectStorageError, ObjectStorageErrorKind};
pub use fault_injection::{FAULT_PLAN_VARIABLE, FaultInjector};
pub use fault_plan::{
    Fault, FaultAction, FaultMoment, FaultPlan, FaultPlanError, InjectedFailure, LocationAnswer, LocationRule,
};
pub use file_upload::{FileUpload, UploadProgress, UploadState};
pub use object_store::{
    Attributes, BucketControl, BucketLocation, ExpiryRule, ObjectDescription, ObjectKey, ObjectKeyError,
    ObjectMetadata, ObjectStore, PutCondition, PutMode,
};
pub use provider::{ConnectOptions, LocalSettings, ProviderSettings, S3Settings, SecretText};
pub use request_counter::{RequestCounter, RequestCounts};
pub use requests::RequestKind;
pub use retry::{RetryPolicy, TimeLimits};
