//! Rules by which an S3 server deletes objects by itself.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{BuildError, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{
    AbortIncompleteMultipartUpload, BucketLifecycleConfiguration, ExpirationStatus, LifecycleExpiration,
    LifecycleRule, LifecycleRuleFilter,
};

use crate::requests::Result;
use crate::s3_errors::{is_not_implemented, translate};
use crate::{ExpiryRule, ObjectStorageError, ObjectStorageErrorKind};

/// Other people's rules stay as they are; a rule that is there already is not written again.
pub(crate) async fn set_expiry(client: &Client, bucket: &str, rule: &ExpiryRule) -> Result<bool> {
    const OPERATION: &str = "set bucket expiry";
    let answer = client.get_bucket_lifecycle_configuration().bucket(bucket).send().await;
    let mut rules = match answer {
        Ok(answer) => answer.rules().to_vec(),
        Err(error) if error.code() == Some("NoSuchLifecycleConfiguration") => Vec::new(),
        Err(error) if has_no_lifecycle(&error) => return Ok(false),
        Err(error) => return Err(translate(OPERATION, bucket, error)),
    };
    let ours = lifecycle_rule(rule).map_err(|error| {
        let kind = ObjectStorageErrorKind::Permanent;
        ObjectStorageError::new(kind, OPERATION, bucket, "the rule cannot be built").with_source(error)
    })?;
    if rules.iter().any(|there| is_same_rule(there, &ours)) {
        return Ok(true);
    }
    rules.retain(|there| there.id() != ours.id());
    rules.push(ours);
    let unsendable = |error| {
        let kind = ObjectStorageErrorKind::Permanent;
        ObjectStorageError::new(kind, OPERATION, bucket, "the rules cannot be built").with_source(error)
    };
    let configuration =
        BucketLifecycleConfiguration::builder().set_rules(Some(rules)).build().map_err(unsendable)?;
    let request = client.put_bucket_lifecycle_configuration().bucket(bucket);
    match request.lifecycle_configuration(configuration).send().await {
        Ok(_) => Ok(true),
        Err(error) if has_no_lifecycle(&error) => Ok(false),
        Err(error) => Err(translate(OPERATION, bucket, error)),
    }
}

fn has_no_lifecycle<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    is_not_implemented(error) || error.code() == Some("MethodNotAllowed")
}

fn lifecycle_rule(rule: &ExpiryRule) -> std::result::Result<LifecycleRule, BuildError> {
    LifecycleRule::builder()
        .id(&rule.id)
        .status(ExpirationStatus::Enabled)
        .filter(LifecycleRuleFilter::builder().prefix(&rule.prefix).build())
        .expiration(LifecycleExpiration::builder().days(i32::from(rule.days)).build())
        .abort_incomplete_multipart_upload(
            AbortIncompleteMultipartUpload::builder().days_after_initiation(1).build(),
        )
        .build()
}

/// Servers give back what they make of a rule, so only what it says counts.
fn is_same_rule(there: &LifecycleRule, ours: &LifecycleRule) -> bool {
    there.id() == ours.id()
        && there.status() == ours.status()
        && there.filter().and_then(LifecycleRuleFilter::prefix)
            == ours.filter().and_then(LifecycleRuleFilter::prefix)
        && there.expiration().and_then(LifecycleExpiration::days)
            == ours.expiration().and_then(LifecycleExpiration::days)
}
