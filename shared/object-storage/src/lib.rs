//! Objects and buckets behind one small interface: an S3 server (Cloudflare R2 and any other) or a directory.
//!
//! The callers of this crate decide from *listings* what may be deleted and from *acknowledgements* what
//! exists. So nothing here is best effort: a listing is whole or an error, a deletion is verified or an
//! error, a write is acknowledged by the provider or an error.

mod error;
mod object_store;

pub use error::{ObjectStorageError, ObjectStorageErrorKind};
pub use object_store::{
    BucketControl, BucketLocation, ObjectKey, ObjectKeyError, ObjectMetadata, ObjectStore, PutMode,
};
