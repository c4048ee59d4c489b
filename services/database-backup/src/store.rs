//! The backups in the bucket, and the one object that changes: the manifest.
//!
//! What is fixed about a backup is in its object's own metadata. What changes is which one was restored last; that is one
//! field of one small object, so there can never be two, and it is replaced only in the version that was read.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use object_storage::{
    Attributes, BucketControl, ConnectOptions, ExpiryRule, ObjectKey, ObjectStorageErrorKind, ObjectStore,
    PutCondition, RequestCounter, RetryPolicy, TimeLimits,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::copy::TableRows;
use crate::failure::{Failure, FailureKind, Result};
use crate::names::{BackupId, BackupKind, Engine, NameFacts, Names};
use crate::settings::Settings;

/// Objects asked about themselves at once.
const DESCRIPTIONS_AT_ONCE: usize = 8;

/// How often a manifest that somebody else changed is read again.
const MANIFEST_ATTEMPTS: u32 = 10;

/// What metadata may hold of the rows of each table.
const COUNTS_BYTES: usize = 1200;

/// The attribute of a backup that was asked for on the bus.
pub(crate) const OPERATION: &str = "operation";

/// The status of the backup that was restored last.
pub const LATEST_RESTORED: &str = "latest_restored";

/// One backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// Its name.
    pub id: BackupId,
    /// Why it was taken: `shutdown`, `manual` or `scheduled`.
    pub kind: String,
    /// When.
    pub timestamp: OffsetDateTime,
    /// Bytes of the object.
    pub stored_bytes: u64,
    /// What it says about itself; none for an object that something else has stored under such a name.
    pub facts: Option<BackupFacts>,
    /// What it is of.
    pub engine: Engine,
    /// Whether it was restored last.
    pub latest_restored: bool,
    /// The operation on the bus that it was taken by.
    pub operation: Option<String>,
    number: u32,
}

/// What is fixed about a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFacts {
    /// Bytes of the database file.
    pub bytes: u64,
    /// SHA-256 of the database file.
    pub sha256: String,
    /// How the file is stored: `none` or `zstd`.
    pub encoding: String,
    /// Whether the file is encrypted: `none` or `age`.
    pub encryption: String,
    /// Tables of the database.
    pub tables: u64,
    /// Rows of all of them.
    pub rows: u64,
}

impl BackupFacts {
    /// As metadata of the object.
    pub fn attributes(
        &self,
        kind: BackupKind,
        engine: Engine,
        timestamp: OffsetDateTime,
        tables: &[TableRows],
    ) -> Attributes {
        let mut attributes = Attributes::from([
            ("type".to_owned(), kind.as_str().to_owned()),
            ("timestamp".to_owned(), rfc3339(timestamp)),
            ("engine".to_owned(), engine.as_str().to_owned()),
            ("bytes".to_owned(), self.bytes.to_string()),
            ("sha256".to_owned(), self.sha256.clone()),
            ("encoding".to_owned(), self.encoding.clone()),
            ("encryption".to_owned(), self.encryption.clone()),
            ("tables".to_owned(), self.tables.to_string()),
            ("rows".to_owned(), self.rows.to_string()),
        ]);
        // The names of tables tell something about what is encrypted.
        if self.encryption != "none" {
            return attributes;
        }
        let counts: Vec<(&str, u64)> =
            tables.iter().map(|table| (table.table.as_str(), table.rows)).collect();
        if let Ok(counts) = serde_json::to_string(&counts) {
            let counts = ascii(&counts);
            if counts.len() <= COUNTS_BYTES {
                attributes.insert("row-counts".to_owned(), counts);
            }
        }
        attributes
    }

    /// From the metadata of an object; none if it is not all there.
    pub fn read(attributes: &Attributes) -> Option<Self> {
        let text = |name: &str| attributes.get(name).cloned();
        let number = |name: &str| attributes.get(name)?.parse().ok();
        let sha256 = text("sha256")
            .filter(|sha256| sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        Some(Self {
            bytes: number("bytes")?,
            sha256: sha256.to_ascii_lowercase(),
            encoding: text("encoding")?,
            encryption: text("encryption")?,
            tables: number("tables")?,
            rows: number("rows")?,
        })
    }
}

/// JSON in ASCII, since metadata can be nothing else.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            text.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                text.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    text
}

/// A moment as answers have it.
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    let at = at.to_offset(time::UtcOffset::UTC).replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).unwrap_or_default()
}

/// The object that changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The form of this object.
    pub version: u32,
    /// The backup that was restored last.
    pub latest_restored: Option<String>,
    /// When that was written down.
    pub changed_at: String,
}

/// The bucket.
#[derive(Debug, Clone)]
pub struct BackupStore {
    buckets: Arc<dyn BucketControl>,
    objects: Arc<dyn ObjectStore>,
    bucket: String,
    names: Names,
    counter: Arc<RequestCounter>,
}

impl BackupStore {
    /// The bucket of the settings. Does not reach for the network.
    ///
    /// # Errors
    ///
    /// If the settings make no sense.
    pub fn new(settings: &Settings, names: Names) -> Result<Self> {
        let counter = RequestCounter::new();
        let options = ConnectOptions {
            // The deadline of a backup ends the attempts, not their number.
            retry: RetryPolicy { attempts: 1000, ..RetryPolicy::default() },
            time_limits: TimeLimits { operation: settings.deadline(), ..TimeLimits::default() },
            request_counter: Some(Arc::clone(&counter)),
            ..ConnectOptions::default()
        };
        let buckets = settings.provider().connect_with(options).map_err(Failure::storage)?;
        let bucket = settings.storage.bucket.clone();
        Ok(Self { objects: buckets.open_bucket(&bucket), buckets, bucket, names, counter })
    }

    /// The objects of the bucket.
    pub fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// Requests so far.
    pub fn requests(&self) -> object_storage::RequestCounts {
        self.counter.counts()
    }

    /// Names and keys.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Where a backup is.
    ///
    /// # Errors
    ///
    /// If the path is too long.
    pub fn key(&self, id: &BackupId) -> Result<ObjectKey> {
        self.names.key(id).map_err(|error| Failure::new(FailureKind::InvalidArgument, error.to_string()))
    }

    /// Every backup, newest first.
    ///
    /// # Errors
    ///
    /// If the listing is not whole.
    pub async fn list(&self) -> Result<Vec<Backup>> {
        let listed = self.objects.list(&self.names.key_prefix()).await.map_err(Failure::storage)?;
        let (manifest, _) = self.manifest().await?;
        let named = listed.into_iter().filter_map(|object| {
            let name = object.key.as_str().strip_prefix(self.names.directory())?;
            // What is called otherwise is no backup of this database.
            let (id, facts) = self.names.parse(name).ok()?;
            Some((id, facts, object.key))
        });
        let named: Vec<_> = named.collect();
        let mut backups: Vec<Backup> = stream::iter(named)
            .map(|(id, facts, key)| self.described(id, facts, key, &manifest))
            .buffered(DESCRIPTIONS_AT_ONCE)
            .try_filter_map(|backup| async move { Ok(backup) })
            .try_collect()
            .await?;
        backups.sort_by(|left, right| {
            let order = |backup: &Backup| (backup.timestamp, backup.number, backup.id.clone());
            order(right).cmp(&order(left))
        });
        Ok(backups)
    }

    /// One backup.
    ///
    /// # Errors
    ///
    /// [`FailureKind::InvalidArgument`] for what is no id, [`FailureKind::NotFound`] where there is none of it.
    pub async fn find(&self, id: &str) -> Result<Backup> {
        let (id, facts) = self
            .names
            .parse(id)
            .map_err(|error| Failure::new(FailureKind::InvalidArgument, error.to_string()))?;
        let key = self.key(&id)?;
        let (manifest, _) = self.manifest().await?;
        let found = self.described(id.clone(), facts, key, &manifest).await?;
        found.ok_or_else(|| Failure::new(FailureKind::NotFound, format!("there is no backup {id}")))
    }

    /// None where it was deleted meanwhile.
    async fn described(
        &self,
        id: BackupId,
        facts: NameFacts,
        key: ObjectKey,
        manifest: &Manifest,
    ) -> Result<Option<Backup>> {
        let description = match self.objects.describe(&key).await {
            Ok(description) => description,
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::storage(error)),
        };
        let by_name = if facts.manual { BackupKind::Manual } else { BackupKind::Shutdown };
        let kind = description.attributes.get("type").cloned().unwrap_or_else(|| by_name.as_str().to_owned());
        Ok(Some(Backup {
            latest_restored: manifest.latest_restored.as_deref() == Some(id.as_str()),
            id,
            kind,
            operation: description.attributes.get(OPERATION).cloned(),
            timestamp: facts.timestamp,
            stored_bytes: description.size_bytes,
            facts: BackupFacts::read(&description.attributes),
            engine: facts.engine,
            number: facts.number,
        }))
    }

    /// The manifest and the condition under which it can be replaced.
    async fn manifest(&self) -> Result<(Manifest, PutCondition)> {
        let key = self.manifest_key()?;
        // First the version, then the content: a change between them fails the condition.
        let description = match self.objects.describe(&key).await {
            Ok(description) => description,
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => {
                return Ok((Manifest { version: 1, ..Manifest::default() }, PutCondition::Absent));
            }
            Err(error) => return Err(Failure::storage(error)),
        };
        let json = self.objects.get(&key).await.map_err(Failure::storage)?;
        let manifest: Manifest = serde_json::from_slice(&json).map_err(|error| {
            Failure::new(FailureKind::StorageFailed, format!("the manifest {key} cannot be read"))
                .with_source(error)
        })?;
        Ok((manifest, PutCondition::Matches(description.tag)))
    }

    fn manifest_key(&self) -> Result<ObjectKey> {
        self.names
            .manifest_key()
            .map_err(|error| Failure::new(FailureKind::InvalidArgument, error.to_string()))
    }

    /// Which backup was restored last.
    ///
    /// # Errors
    ///
    /// If the manifest cannot be read.
    pub async fn latest_restored(&self) -> Result<Option<String>> {
        Ok(self.manifest().await?.0.latest_restored)
    }

    /// Writes down which backup was restored last, and answers which it was before.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub async fn set_latest_restored(&self, id: Option<&str>, now: OffsetDateTime) -> Result<Option<String>> {
        let key = self.manifest_key()?;
        let mut attempt = 1;
        loop {
            let (mut manifest, condition) = self.manifest().await?;
            let before = manifest.latest_restored.clone();
            if before.as_deref() == id {
                return Ok(before);
            }
            manifest.latest_restored = id.map(str::to_owned);
            manifest.changed_at = rfc3339(now);
            let json = serde_json::to_vec_pretty(&manifest).map_err(|error| {
                Failure::new(FailureKind::Internal, "the manifest cannot be written").with_source(error)
            })?;
            match self.objects.put_if(&key, json.into(), condition, &Attributes::new()).await {
                Ok(_) => return Ok(before),
                // Somebody else changed it: their change is read, and this one made over it.
                Err(error)
                    if error.kind() == ObjectStorageErrorKind::AlreadyExists
                        && attempt < MANIFEST_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(Failure::storage(error)),
            }
        }
    }

    /// Deletes backups older than `days`, and answers which. Never the newest, nor the newest one that says what it is
    /// (so that was checked), nor the one restored last, nor those of `in_use`.
    ///
    /// # Errors
    ///
    /// If the listing is not whole, or a deletion is not proven.
    pub async fn delete_old(
        &self,
        days: u32,
        now: OffsetDateTime,
        in_use: &BTreeSet<String>,
    ) -> Result<Vec<BackupId>> {
        if days == 0 {
            return Ok(Vec::new());
        }
        let backups = self.list().await?;
        let oldest = now - time::Duration::days(i64::from(days));
        let newest = backups.first().map(|backup| &backup.id);
        let newest_checked = backups.iter().find(|backup| backup.facts.is_some()).map(|backup| &backup.id);
        let old: Vec<BackupId> = backups
            .iter()
            .filter(|backup| {
                backup.timestamp < oldest
                    && Some(&backup.id) != newest
                    && Some(&backup.id) != newest_checked
                    && !backup.latest_restored
                    && !in_use.contains(backup.id.as_str())
            })
            .map(|backup| backup.id.clone())
            .collect();
        if old.is_empty() {
            return Ok(old);
        }
        let keys: Vec<ObjectKey> = old.iter().map(|id| self.key(id)).collect::<Result<_>>()?;
        self.objects.delete(&keys).await.map_err(Failure::storage)?;
        Ok(old)
    }

    /// Lets the bucket delete backups older than `days`; false where it cannot. The manifest changes rarely and is none,
    /// and neither is what another database has under a longer prefix.
    ///
    /// # Errors
    ///
    /// If it refuses.
    pub async fn set_expiry(&self, days: u16) -> Result<bool> {
        for kind in ["backup", "manual"] {
            let rule = ExpiryRule {
                id: format!("longhaul-{}-{kind}", self.names.prefix()),
                prefix: format!("{}{kind}-", self.names.key_prefix()),
                days,
            };
            if !self.buckets.set_expiry(&self.bucket, &rule).await.map_err(Failure::storage)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn facts_are_ascii_metadata_and_read_back() {
        let facts = BackupFacts {
            bytes: 5,
            sha256: "ab".repeat(32),
            encoding: "none".to_owned(),
            encryption: "none".to_owned(),
            tables: 1,
            rows: 3,
        };
        let tables = [TableRows { table: "G\u{e4}ste \u{1f600}".to_owned(), rows: 3 }];
        let at = datetime!(2024-12-30 12:00:00.5 UTC);
        let attributes = facts.attributes(BackupKind::Manual, Engine::Duckdb, at, &tables);
        assert!(attributes.values().all(|value| value.is_ascii()), "{attributes:?}");
        assert_eq!(attributes["timestamp"], "2024-12-30T12:00:00Z");
        let counts: Vec<(String, u64)> = serde_json::from_str(&attributes["row-counts"]).unwrap();
        assert_eq!(counts, [("G\u{e4}ste \u{1f600}".to_owned(), 3)]);
        assert_eq!(BackupFacts::read(&attributes), Some(facts.clone()));
        let many: Vec<TableRows> =
            (0..500).map(|number| TableRows { table: format!("table {number}"), rows: 1 }).collect();
        assert!(!facts.attributes(BackupKind::Manual, Engine::Duckdb, at, &many).contains_key("row-counts"));
        assert_eq!(BackupFacts::read(&Attributes::new()), None);
        let secret = BackupFacts { encryption: "age".to_owned(), ..facts };
        let attributes = secret.attributes(BackupKind::Manual, Engine::Duckdb, at, &tables);
        assert!(!attributes.contains_key("row-counts"), "{attributes:?}");
    }
}
