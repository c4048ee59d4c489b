//! What rustic_core asks of a backend, and restic's layout: which object is which file.

use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use object_storage::{ObjectStorageErrorKind, PutMode};
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};

use super::{RepositoryBackend, SnapshotWrites, lock};

impl ReadBackend for RepositoryBackend {
    fn location(&self) -> String {
        self.root.clone()
    }

    fn list_with_size(&self, file_type: FileType) -> RusticResult<Vec<(Id, u32)>> {
        if file_type == FileType::Config {
            // One read instead of a listing and a read: rustic asks for the content right afterwards.
            if let Some(bytes) = &*lock(&self.config) {
                return Ok(vec![(Id::default(), u32::try_from(bytes.len()).unwrap_or(u32::MAX))]);
            }
            let key = self.key("config")?;
            self.counters.get.fetch_add(1, Ordering::Relaxed);
            return match self.runtime.block_on(self.store.get(&key)) {
                Ok(bytes) => {
                    let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    *lock(&self.config) = Some(bytes);
                    Ok(vec![(Id::default(), size)])
                }
                Err(error) if error.kind() == ObjectStorageErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(self.failed("read", key.as_str(), error)),
            };
        }
        let prefix = format!("{}/{}/", self.root, file_type.dirname());
        self.counters.list.fetch_add(1, Ordering::Relaxed);
        let objects = self
            .runtime
            .block_on(self.store.list(&prefix))
            .map_err(|error| self.failed("list", &prefix, error))?;
        let mut files = Vec::with_capacity(objects.len());
        for object in objects {
            let name = object.key.as_str().strip_prefix(&prefix).unwrap_or_default();
            let Some(id) = id_of_name(file_type, name) else {
                tracing::warn!(object.key = %object.key, "passed over an object that is no repository file");
                continue;
            };
            let size = u32::try_from(object.size_bytes).map_err(|error| {
                RusticError::with_source(ErrorKind::Backend, format!("{} is over 4 GiB", object.key), error)
            })?;
            files.push((id, size));
        }
        match file_type {
            FileType::Key => {
                if let Some(only) = *lock(&self.only_key) {
                    files.retain(|(id, _)| *id == only);
                }
            }
            FileType::Snapshot => {
                self.check_required(&files)?;
                let hidden = lock(&self.hidden_snapshots);
                files.retain(|(id, _)| !hidden.contains(id));
            }
            FileType::Pack => {
                let bytes = files.iter().map(|(_, size)| u64::from(*size)).sum();
                self.listed_pack_bytes.store(bytes, Ordering::SeqCst);
            }
            FileType::Config | FileType::Index => {}
        }
        Ok(files)
    }

    fn read_full(&self, file_type: FileType, id: &Id) -> RusticResult<Bytes> {
        match file_type {
            FileType::Config => {
                if let Some(bytes) = lock(&self.config).take() {
                    return Ok(bytes);
                }
                self.get(file_type, id)
            }
            FileType::Snapshot | FileType::Index => self.get_cached(file_type, id),
            FileType::Key | FileType::Pack => self.get_verified(file_type, id),
        }
    }

    fn read_partial(
        &self,
        file_type: FileType,
        id: &Id,
        cacheable: bool,
        offset: u32,
        length: u32,
    ) -> RusticResult<Bytes> {
        if cacheable {
            // A pack of trees: its neighbours are wanted next, so it is fetched whole.
            let bytes = self.get_cached(file_type, id)?;
            let from = offset as usize;
            let to = from + length as usize;
            return if to <= bytes.len() {
                Ok(bytes.slice(from..to))
            } else {
                Err(self.damaged(file_type, id))
            };
        }
        match self.in_window(id, offset, length) {
            Some(bytes) => Ok(bytes),
            None => self.get_range(file_type, id, offset, length),
        }
    }

    fn warmup_path(&self, file_type: FileType, id: &Id) -> String {
        file_name(file_type, id)
    }
}

impl WriteBackend for RepositoryBackend {
    fn write_bytes(
        &self,
        file_type: FileType,
        id: &Id,
        cacheable: bool,
        content: BytesList,
    ) -> RusticResult<()> {
        let key = self.file_key(file_type, id)?;
        self.check_may_write(key.as_str())?;
        let body = joined(content);
        match file_type {
            FileType::Pack => {
                if cacheable {
                    self.cache.put(id, &body);
                }
                self.upload(key, body)
            }
            FileType::Index => {
                self.finish_uploads()?;
                self.check_may_write(key.as_str())?;
                self.put(&key, body.clone(), PutMode::NamedByHash)?;
                self.index_writes.fetch_add(1, Ordering::SeqCst);
                self.cache.put(id, &body);
                Ok(())
            }
            FileType::Snapshot => {
                self.finish_uploads()?;
                if *lock(&self.snapshot_writes) == SnapshotWrites::HeldBack {
                    return Ok(());
                }
                self.check_may_write(key.as_str())?;
                self.put(&key, body.clone(), PutMode::NamedByHash)?;
                *lock(&self.last_snapshot) = Some(*id);
                self.cache.put(id, &body);
                Ok(())
            }
            FileType::Key => self.put(&key, body, PutMode::NamedByHash),
            // Two that initialise at once must not both believe that their config is the one.
            FileType::Config => self.put(&key, body, PutMode::CreateOnly),
        }
    }

    fn remove(&self, file_type: FileType, id: &Id, _cacheable: bool) -> RusticResult<()> {
        let key = self.file_key(file_type, id)?;
        self.check_may_write(key.as_str())?;
        self.counters.delete.fetch_add(1, Ordering::Relaxed);
        self.runtime
            .block_on(self.store.delete(std::slice::from_ref(&key)))
            .map_err(|error| self.failed("delete", key.as_str(), error))
    }
}

/// The name of a file below the root, in restic's default layout.
pub(super) fn file_name(file_type: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match file_type {
        FileType::Config => "config".to_owned(),
        FileType::Pack => format!("data/{}/{}", &hex.as_str()[..2], hex.as_str()),
        FileType::Key | FileType::Snapshot | FileType::Index => {
            format!("{}/{}", file_type.dirname(), hex.as_str())
        }
    }
}

pub(super) fn id_of_name(file_type: FileType, name: &str) -> Option<Id> {
    let hex = match file_type {
        FileType::Pack => name.split_once('/').filter(|(shelf, hex)| hex.get(..2) == Some(shelf))?.1,
        _ => name,
    };
    (hex.len() == 64).then(|| hex.parse().ok())?
}

fn joined(content: BytesList) -> Bytes {
    let size = content.size();
    let mut parts = content.into_vec();
    if parts.len() == 1 {
        return parts.remove(0);
    }
    let mut body = BytesMut::with_capacity(size);
    for part in parts {
        body.extend_from_slice(&part);
    }
    body.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;
    use crate::metadata_cache::hash;

    #[test]
    fn names_follow_the_default_layout_of_restic_and_are_read_back() {
        let id = hash(b"x");
        let hex = id.to_hex().as_str().to_owned();
        assert_eq!(file_name(FileType::Pack, &id), format!("data/{}/{hex}", &hex[..2]));
        assert_eq!(file_name(FileType::Key, &id), format!("keys/{hex}"));
        assert_eq!(file_name(FileType::Config, &id), "config");
        assert_eq!(id_of_name(FileType::Pack, &format!("{}/{hex}", &hex[..2])), Some(id));
        assert_eq!(id_of_name(FileType::Pack, &format!("zz/{hex}")), None);
        assert_eq!(id_of_name(FileType::Index, &hex[..60]), None);
    }
}
