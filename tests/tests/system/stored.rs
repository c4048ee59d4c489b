//! The repository of a project as the object store has it, behind the back of the services: to be counted, and to be
//! damaged.

use std::sync::Arc;

use bytes::Bytes;
use object_storage::{
    LocalSettings, ObjectKey, ObjectMetadata, ObjectStorageErrorKind, ObjectStore, ProviderSettings, PutMode,
    S3Settings,
};
use serde_json::{Value, json};
use test_harness::{Client, ReadyObjectStore, TestSystem};

use crate::scope;

/// The objects of one repository.
pub(crate) struct StoredRepository {
    objects: Arc<dyn ObjectStore>,
    root: String,
}

impl StoredRepository {
    /// Of a project that has been backed up.
    pub(crate) async fn of(system: &TestSystem, client: &Client, project: &str) -> Self {
        let project_now = client.call(scope(project), "project.get", json!({})).await;
        let bucket_id = project_now["project"]["backup_bucket_id"].clone();
        let bucket = client.call("hub", "bucket.get", json!({ "bucket_id": bucket_id })).await;
        let settings = match system.ready().object_store {
            ReadyObjectStore::Local { root } => ProviderSettings::Local(LocalSettings { root }),
            ReadyObjectStore::S3 { endpoint, access_key_id, secret_access_key } => {
                ProviderSettings::S3(S3Settings {
                    endpoint: Some(endpoint),
                    region: "us-east-1".to_owned(),
                    access_key_id,
                    secret_access_key: secret_access_key.into(),
                    session_token: None,
                    path_style: true,
                })
            }
        };
        let objects = settings.connect().unwrap().open_bucket(bucket["bucket"]["name"].as_str().unwrap());
        Self { objects, root: format!("rustic/project-{project}") }
    }

    /// What is in a directory of the repository.
    async fn list(&self, directory: &str) -> Vec<ObjectMetadata> {
        self.objects.list(&format!("{}/{directory}/", self.root)).await.unwrap()
    }

    /// The packs.
    pub(crate) async fn packs(&self) -> Vec<ObjectMetadata> {
        self.list("data").await
    }

    /// The bytes of the packs.
    pub(crate) async fn bytes(&self) -> u64 {
        self.packs().await.iter().map(|pack| pack.size_bytes).sum()
    }

    /// How many snapshots there are.
    pub(crate) async fn snapshots(&self) -> usize {
        self.list("snapshots").await.len()
    }

    /// The names of the indexes.
    pub(crate) async fn indexes(&self) -> Vec<String> {
        let indexes = self.list("index").await;
        indexes.iter().map(|index| index.key.as_str().rsplit('/').next().unwrap().to_owned()).collect()
    }

    /// The object of a backup's snapshot.
    pub(crate) fn snapshot(&self, backup_id: &Value) -> ObjectKey {
        format!("{}/snapshots/{}", self.root, backup_id.as_str().unwrap()).parse().unwrap()
    }

    /// Whether there is such an object.
    pub(crate) async fn has(&self, key: &ObjectKey) -> bool {
        match self.objects.head(key).await {
            Ok(_) => true,
            Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => false,
            Err(error) => panic!("{key}: {error}"),
        }
    }

    /// Removes an object.
    pub(crate) async fn lose(&self, key: &ObjectKey) {
        self.objects.delete(std::slice::from_ref(key)).await.unwrap();
    }

    /// Turns a bit of an object over.
    pub(crate) async fn spoil(&self, key: &ObjectKey, at: usize) {
        let mut bytes = self.objects.get(key).await.unwrap().to_vec();
        bytes[at] ^= 1;
        self.objects.put(key, Bytes::from(bytes), PutMode::Overwrite).await.unwrap();
    }
}
