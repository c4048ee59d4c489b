//! What is told about the running system: the ready file, kept up to date by whoever replaces a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;

use super::private_file;
use super::ready_file::{ReadyFile, ServiceSummary};

/// The ready file in all its places.
pub(super) struct Board {
    files: Vec<PathBuf>,
    ready: Mutex<Option<ReadyFile>>,
}

impl Board {
    /// A board on which nothing is told yet: what the last start left behind is removed.
    pub(super) fn new(data_directory: &Path, ready_file: Option<PathBuf>) -> anyhow::Result<Self> {
        let own = data_directory.join("ready.json");
        let mut files = vec![own];
        files.extend(ready_file.map(|file| std::path::absolute(&file)).transpose()?);
        files.dedup();
        for file in &files {
            match fs::remove_file(file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("removing {}", file.display()));
                }
                _ => {}
            }
        }
        Ok(Self { files, ready: Mutex::new(None) })
    }

    /// Tells that the system is ready.
    pub(super) fn publish(&self, ready: ReadyFile) -> anyhow::Result<()> {
        self.write(&ready)?;
        *self.lock() = Some(ready);
        Ok(())
    }

    /// What is told at this moment.
    pub(super) fn ready(&self) -> Option<ReadyFile> {
        self.lock().clone()
    }

    /// Tells that a service has been started again. Nothing happens before the system is ready.
    pub(super) fn note(&self, service: &ServiceSummary) {
        let mut ready = self.lock();
        let Some(ready) = ready.as_mut() else { return };
        ready.note(service);
        if let Err(error) = self.write(ready) {
            eprintln!("up: {error:#}");
        }
    }

    /// Tells nothing any more: the system is being stopped.
    pub(super) fn withdraw(&self) {
        *self.lock() = None;
        for file in &self.files {
            // One that is gone already, or stays, does no harm: the next start removes it.
            let _ = fs::remove_file(file);
        }
    }

    fn write(&self, ready: &ReadyFile) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(ready)?;
        self.files.iter().try_for_each(|file| private_file::write(file, &json))
    }

    fn lock(&self) -> MutexGuard<'_, Option<ReadyFile>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
