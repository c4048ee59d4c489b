//! What copies are applied from on this host: one directory for all destinations of a copy.
//!
//! A copy that comes from another host is downloaded once, and cloned from there into each project; of one from a project on this
//! host a snapshot is taken once. Both are the host's own, are deleted a while after the last use, and what a
//! crash leaves of them at the next start.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backup_repository::RestoreTarget;
use bus_messages::kinds::{CopiedFrom, CopyApplyInput};
use bus_messages::{EventLevel, RepositoryGrant};
use domain_model::OperationId;
use host_operations::{JobRunner, freeze_files, volume_work};
use operation_engine::{OperationContext, OperationFailure};
use tokio::sync::Mutex;
use tokio::time::Instant;
use volumes::{CopyDirectory, FrozenFiles, HostRoot, SourceKind};

/// How long somebody waits for files that another one is having brought here, before it makes way.
const PATIENCE: Duration = Duration::from_secs(5);
/// The name of the files of a project in its backups.
const FILES: &str = "project";

/// A directory that stands for the files of the source project. Good for as long as it is held.
#[derive(Debug)]
pub(crate) struct Source {
    project_dir: PathBuf,
    made: Made,
}

/// What was made for it.
#[derive(Debug)]
enum Made {
    Downloaded(CopyDirectory),
    Frozen(FrozenFiles),
}

impl Source {
    pub(crate) fn project_dir(&self) -> &Path {
        &self.project_dir
    }

    /// Whether it may change while it is read.
    pub(crate) fn is_live(&self) -> bool {
        matches!(&self.made, Made::Frozen(frozen) if frozen.kind == SourceKind::Live)
    }
}

/// One copy's source: nothing until somebody has made it.
#[derive(Debug, Default)]
struct Place {
    source: Option<Arc<Source>>,
    last_used: Option<Instant>,
}

/// The sources of all copies that are being applied.
#[derive(Debug)]
pub(crate) struct Sources {
    root: HostRoot,
    runner: JobRunner,
    keep: Duration,
    places: Mutex<HashMap<OperationId, Arc<Mutex<Place>>>>,
}

impl Sources {
    pub(crate) fn new(root: HostRoot, runner: JobRunner, keep: Duration) -> Self {
        Self { root, runner, keep, places: Mutex::default() }
    }

    /// The source of a copy, made by the first who asks; the others wait for it.
    pub(crate) async fn get(
        &self,
        operation: &OperationContext,
        input: &CopyApplyInput,
        repository: Option<&RepositoryGrant>,
    ) -> Result<Arc<Source>, OperationFailure> {
        let place = Arc::clone(self.places.lock().await.entry(input.copy_op_id).or_default());
        let mut place = match place.try_lock() {
            Ok(place) => place,
            Err(_) => {
                operation.progress("download", "waiting for the files", None);
                let locked = tokio::time::timeout(PATIENCE, operation.unless_stopped(place.lock())).await;
                // Meanwhile others may work on this project, and here on copies whose files are there.
                locked.map_err(|_| OperationFailure::HandedBack)??
            }
        };
        place.last_used = Some(Instant::now());
        if let Some(source) = &place.source {
            return Ok(Arc::clone(source));
        }
        let source = match (input.from, repository) {
            (CopiedFrom::Host, _) => self.freeze(operation, input).await?,
            (CopiedFrom::Bucket, Some(repository)) => self.download(operation, input, repository).await?,
            (CopiedFrom::Bucket, None) => {
                return Err(OperationFailure::retryable("no_repository", "the registry gave no repository"));
            }
        };
        let source = Arc::new(source);
        place.source = Some(Arc::clone(&source));
        place.last_used = Some(Instant::now());
        Ok(source)
    }

    async fn freeze(
        &self,
        operation: &OperationContext,
        input: &CopyApplyInput,
    ) -> Result<Source, OperationFailure> {
        operation.progress("download", "freezing the files of the source", None);
        let (copy, dereference) = (input.copy_op_id.as_uuid(), input.options.dereference);
        let paths = input.entries.iter().map(|entry| &entry.from);
        let frozen = freeze_files(&self.root, input.source_project_id, copy, paths, dereference).await?;
        if frozen.kind == SourceKind::Live {
            let message = "the files of the source cannot be frozen: what changes now may be copied in part";
            operation.event(EventLevel::Warn, "download", message, None);
        }
        Ok(Source { project_dir: frozen.project_dir.clone(), made: Made::Frozen(frozen) })
    }

    async fn download(
        &self,
        operation: &OperationContext,
        input: &CopyApplyInput,
        repository: &RepositoryGrant,
    ) -> Result<Source, OperationFailure> {
        let copy = input.copy_op_id.as_uuid();
        let snapshot = repository.backup.as_ref().ok_or_else(|| {
            OperationFailure::retryable("no_snapshot", "the registry knows of no snapshot of this copy")
        })?;
        let path = FILES.parse().map_err(|error| OperationFailure::permanent("invalid_argument", error))?;
        let directory = volume_work(&self.root, move |root| root.copy_directory(copy)).await?;
        operation.progress("download", "reading the snapshot", None);
        // The directory itself is locked by this service; a restore locks what it writes to.
        let into = directory.path().join("restored");
        let target = RestoreTarget::Path { path, into: into.clone() };
        match self.runner.restore(operation, repository, snapshot, target, None, false).await {
            Ok(_) => Ok(Source { project_dir: into.join(FILES), made: Made::Downloaded(directory) }),
            Err(failure) => {
                self.delete(Made::Downloaded(directory), input.copy_op_id).await;
                Err(failure)
            }
        }
    }

    /// Deletes what nobody has used for a while.
    pub(crate) async fn discard_idle(&self) {
        self.discard(|place| place.last_used.is_none_or(|used| used.elapsed() >= self.keep)).await;
    }

    /// Deletes what nobody uses.
    pub(crate) async fn discard_all(&self) {
        self.discard(|_| true).await;
    }

    async fn discard(&self, is_over: impl Fn(&Place) -> bool) {
        let known = self.places.lock().await;
        let places: Vec<_> = known.iter().map(|(copy, place)| (*copy, Arc::clone(place))).collect();
        drop(known);
        for (copy, place) in places {
            // Held until all is deleted: who wants to use it again waits, and makes it anew.
            let Ok(mut held) = Arc::clone(&place).try_lock_owned() else { continue };
            let is_used = held.source.as_ref().is_some_and(|source| Arc::strong_count(source) > 1);
            if is_used || !is_over(&held) {
                continue;
            }
            if let Some(source) = held.source.take().and_then(Arc::into_inner) {
                self.delete(source.made, copy).await;
            }
            drop(held);
            let mut known = self.places.lock().await;
            // The map's and this one: nobody else is about to use it.
            if Arc::strong_count(&place) == 2 {
                known.remove(&copy);
            }
        }
    }

    async fn delete(&self, made: Made, copy: OperationId) {
        let deleted = volume_work(&self.root, move |root| match made {
            Made::Downloaded(directory) => root.discard_copy_directory(directory),
            Made::Frozen(frozen) => {
                drop(frozen);
                root.drop_snapshot(copy.as_uuid())
            }
        });
        if let Err(error) = deleted.await {
            tracing::warn!(op.id = %copy, ?error, "what a copy was applied from is left for the next start");
        }
    }
}
