use bus_messages::Bucket;
use domain_model::BucketId;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::{Database, DatabaseError};

/// A bucket that is about to be made.
#[derive(Debug, Clone)]
pub struct NewBucket {
    /// Its id.
    pub id: BucketId,
    /// `backups`, …
    pub purpose: &'static str,
    /// `r2`, `s3` or `local`.
    pub provider: String,
    /// The account at the provider.
    pub account_id: Option<String>,
    /// The region that it is to serve.
    pub region: String,
    /// Its name; a new one each time, since a provider may remember where a name was.
    pub name: String,
    /// The URL of the provider.
    pub endpoint: Option<String>,
}

/// What the provider said when asked where a bucket is.
#[derive(Debug, Clone, PartialEq)]
pub enum BucketPlacement {
    /// Where it should be, or the provider does not tell.
    Active(Option<String>),
    /// Somewhere else: never to be used.
    Mismatch(String),
}

struct Row {
    id: Uuid,
    purpose: String,
    provider: String,
    account_id: Option<String>,
    region: String,
    location: Option<String>,
    name: String,
    endpoint: Option<String>,
    status: String,
    created_at: OffsetDateTime,
    updated_at: OffsetDateTime,
}

impl From<Row> for Bucket {
    fn from(row: Row) -> Self {
        Self {
            id: row.id.into(),
            purpose: row.purpose,
            provider: row.provider,
            account_id: row.account_id,
            region: row.region,
            location: row.location,
            name: row.name,
            endpoint: row.endpoint,
            status: row.status,
            created_at: row.created_at.into(),
            updated_at: row.updated_at.into(),
        }
    }
}

impl Database {
    /// Writes down the intent to make a bucket for a purpose and region, unless there is one in use (or in
    /// the making); returns the one that counts. Two callers at the same moment get the same one.
    pub async fn bucket_in_use(&self, new: &NewBucket) -> Result<Bucket, DatabaseError> {
        for _ in 0..5 {
            if let Some(bucket) = self.find_bucket_in_use(new.purpose, &new.region).await? {
                return Ok(bucket);
            }
            sqlx::query!(
                "INSERT INTO buckets (id, purpose, provider, account_id, region, name, endpoint)
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                new.id.as_uuid(),
                new.purpose,
                new.provider,
                new.account_id,
                new.region,
                new.name,
                new.endpoint
            )
            .execute(&self.pool)
            .await
            .during("write down a bucket to be made")?;
        }
        Err(DatabaseError::row("buckets.status", "it changes all the time"))
    }

    /// The bucket of a purpose and region that is in use, or in the making.
    pub async fn find_bucket_in_use(
        &self,
        purpose: &str,
        region: &str,
    ) -> Result<Option<Bucket>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "SELECT * FROM buckets WHERE purpose = $1 AND region = $2 AND status IN ('active', 'unknown')",
            purpose,
            region
        )
        .fetch_optional(&self.pool)
        .await
        .during("find the bucket of a region")?;
        Ok(row.map(Bucket::from))
    }

    /// Records where a bucket turned out to be. One that is disabled stays so, and so does a mismatch whose place another
    /// bucket has taken.
    pub async fn bucket_placed(
        &self,
        id: BucketId,
        placement: &BucketPlacement,
    ) -> Result<Bucket, DatabaseError> {
        let (status, location) = match placement {
            BucketPlacement::Active(location) => ("active", location.as_deref()),
            BucketPlacement::Mismatch(location) => ("mismatch", Some(location.as_str())),
        };
        let row = sqlx::query_as!(
            Row,
            "UPDATE buckets SET location = $3, updated_at = now(),
                status = CASE
                    WHEN status = 'disabled' OR status = 'mismatch' AND EXISTS (
                        SELECT 1 FROM buckets AS other WHERE other.purpose = buckets.purpose
                            AND other.region = buckets.region AND other.status IN ('active', 'unknown')
                    ) THEN status
                    ELSE $2
                END
             WHERE id = $1 RETURNING *",
            id.as_uuid(),
            status,
            location
        )
        .fetch_one(&self.pool)
        .await
        .during("record where a bucket is")?;
        Ok(row.into())
    }

    /// Takes a bucket out of use: no further project gets it. `None` if there is no such bucket.
    pub async fn disable_bucket(&self, id: BucketId) -> Result<Option<Bucket>, DatabaseError> {
        let row = sqlx::query_as!(
            Row,
            "UPDATE buckets SET updated_at = CASE WHEN status = 'disabled' THEN updated_at ELSE now() END,
                status = 'disabled'
             WHERE id = $1 RETURNING *",
            id.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("disable a bucket")?;
        Ok(row.map(Bucket::from))
    }

    /// How many buckets of this purpose and region turned out to be elsewhere.
    pub async fn mismatched_buckets(&self, purpose: &str, region: &str) -> Result<i64, DatabaseError> {
        sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM buckets WHERE purpose = $1 AND region = $2 AND status = 'mismatch'"#,
            purpose,
            region
        )
        .fetch_one(&self.pool)
        .await
        .during("count mismatched buckets")
    }

    /// A bucket.
    pub async fn bucket(&self, id: BucketId) -> Result<Option<Bucket>, DatabaseError> {
        let row = sqlx::query_as!(Row, "SELECT * FROM buckets WHERE id = $1", id.as_uuid())
            .fetch_optional(&self.pool)
            .await
            .during("read a bucket")?;
        Ok(row.map(Bucket::from))
    }

    /// All buckets, oldest first.
    pub async fn list_buckets(&self) -> Result<Vec<Bucket>, DatabaseError> {
        let rows = sqlx::query_as!(Row, "SELECT * FROM buckets ORDER BY created_at, id")
            .fetch_all(&self.pool)
            .await
            .during("list buckets")?;
        Ok(rows.into_iter().map(Bucket::from).collect())
    }
}
