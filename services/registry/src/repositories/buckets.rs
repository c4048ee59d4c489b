//! The buckets that backups are in: made where one is missing, asked where they are, taken out of use.

use bus_messages::{ApiError, Bucket, ErrorCode};
use catalog_database::{BucketPlacement, NewBucket};
use object_storage::{BucketLocation, ProviderSettings};
use uuid::Uuid;

use super::Repositories;
use crate::errors::{from_database, from_object_storage};

const PURPOSE: &str = "backups";
/// So many buckets of a region may turn out to be elsewhere before somebody has to look.
const MOST_MISMATCHES: i64 = 3;

impl Repositories {
    /// The bucket in use for the backups of a region, made where there is none.
    pub(crate) async fn bucket_for(&self, region: &str) -> Result<Bucket, ApiError> {
        loop {
            let known = self.database.find_bucket_in_use(PURPOSE, region).await.map_err(from_database)?;
            let bucket = match known {
                Some(bucket) if bucket.status == "active" => return Ok(bucket),
                Some(bucket) => bucket,
                None => {
                    self.refuse_after_mismatches(region).await?;
                    self.database.bucket_in_use(&self.new_bucket(region)).await.map_err(from_database)?
                }
            };
            let placed = self.place(&bucket).await?;
            if placed.status == "active" {
                return Ok(placed);
            }
            tracing::warn!(
                bucket.name = placed.name,
                bucket.region = region,
                bucket.location = placed.location,
                "a bucket is not where it should be, and is not used"
            );
        }
    }

    /// An error where so many buckets of a region turned out to be elsewhere that somebody has to look.
    async fn refuse_after_mismatches(&self, region: &str) -> Result<(), ApiError> {
        let mismatches = self.database.mismatched_buckets(PURPOSE, region).await.map_err(from_database)?;
        if mismatches < MOST_MISMATCHES {
            return Ok(());
        }
        Err(ApiError::new(
            ErrorCode::FailedPrecondition,
            format!(
                "{mismatches} buckets for the region {region} turned out to be elsewhere; look at bucket.list \
                 and the provider's locations; bucket.verify asks the provider again, bucket.disable sets one aside"
            ),
        ))
    }

    /// Makes a bucket that is written down, reads its location back and records it.
    async fn place(&self, bucket: &Bucket) -> Result<Bucket, ApiError> {
        let hint = self.settings.location_hints.get(&bucket.region);
        let created = self.buckets.create_bucket(&bucket.name, hint.map(String::as_str)).await;
        created.map_err(|error| from_object_storage(&bucket.name, &error))?;
        self.verify_bucket(bucket).await
    }

    /// Reads back where a bucket is, and records it.
    pub(crate) async fn verify_bucket(&self, bucket: &Bucket) -> Result<Bucket, ApiError> {
        let failed = |error| from_object_storage(&bucket.name, &error);
        let hint = self.settings.location_hints.get(&bucket.region);
        let placement = match (self.buckets.bucket_location(&bucket.name).await.map_err(failed)?, hint) {
            (BucketLocation::NotReported, _) => BucketPlacement::Active(None),
            (BucketLocation::Reported(location), Some(hint)) if !location.eq_ignore_ascii_case(hint) => {
                BucketPlacement::Mismatch(location)
            }
            (BucketLocation::Reported(location), _) => BucketPlacement::Active(Some(location)),
        };
        self.database.bucket_placed(bucket.id, &placement).await.map_err(from_database)
    }

    fn new_bucket(&self, region: &str) -> NewBucket {
        let id = Uuid::now_v7();
        // A provider may remember where a name was, so each bucket has a name that was never used.
        let unique = &Uuid::new_v4().simple().to_string()[..10];
        let endpoint = match &self.settings.connection {
            ProviderSettings::S3(settings) => settings.endpoint.clone(),
            ProviderSettings::Local(settings) => Some(settings.root.display().to_string()),
        };
        NewBucket {
            id: id.into(),
            purpose: PURPOSE,
            provider: self.settings.provider.clone(),
            account_id: self.settings.account_id.clone(),
            region: region.to_owned(),
            name: format!("{}-{PURPOSE}-{region}-{unique}", self.settings.bucket_prefix),
            endpoint,
        }
    }
}
