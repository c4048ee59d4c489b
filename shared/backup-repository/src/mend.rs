//! Making the index of a damaged repository say what is there, so that nothing is built on what is not.
//!
//! The object store loses or spoils a pack. Its index goes on saying that the pack's blobs are there, so every later
//! backup counts on them, and is as bad as the first: the loss is carried on although the files are still on the host.
//! Here such packs are taken out of the index. The next backup finds their blobs missing, reads the files again and
//! stores what was lost; with that the older backups that need the same blobs are whole again, too.
//!
//! - A pack that the local cache still has (one of directories) is simply stored again.
//! - Of a pack that is there in part, every blob that is still what it was is copied into a new pack first. So nothing
//!   can be restored less well than before.
//! - An index that is lost or spoilt is made again from its packs, each of which says at its end what it holds.
//! - A listing may lack what is there, and a read may be spoilt on its way: a pack is missing only if asking for it says
//!   so, and damaged only if two reads say so.
//!
//! A crash leaves more than is needed, never less: new packs come first, then the new index, then the old one goes. What
//! is in both is put right by the next prune.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU32;

use bytes::{Buf, BufMut, Bytes};
use data_encoding::HEXLOWER;
use rustic_core::repofile::{BlobType, IndexBlob, IndexFile, IndexId, IndexPack};
use rustic_core::{FileType, Id, ReadBackend, WriteBackend};
use serde::{Deserialize, Serialize};

use crate::backend::RequestCounts;
use crate::error::{BackupRepositoryError, BackupRepositoryErrorKind as Kind, Result};
use crate::metadata_cache::hash;
use crate::repository::{Progress, Repository};
use crate::repository_key::RepositoryKey;
use crate::snapshot::SnapshotId;

/// The compression of rustic's own files; restic reads any.
const COMPRESSION_LEVEL: i32 = 3;

/// The first byte of a repository file that is compressed.
const COMPRESSED: u8 = 2;

/// What was done about damage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MendReceipt {
    /// Names of packs that the local cache had whole, and that were stored again.
    pub stored_again: Vec<String>,
    /// Names of packs that are in the index no longer.
    pub set_aside: Vec<String>,
    /// Names of packs that were in no index, and are in one now.
    pub indexed_again: Vec<String>,
    /// Names of indexes that were damaged, and are gone.
    pub indexes_removed: Vec<String>,
    /// Blobs of packs set aside that were still whole and were copied.
    pub blobs_saved: u64,
    /// Blobs of packs set aside that were not: a later backup has to bring them.
    pub blobs_lost: u64,
    /// Snapshots that need what no index has now, and restore in part at most.
    pub lacking: Vec<SnapshotId>,
    /// Requests to the object store.
    pub requests: RequestCounts,
}

impl MendReceipt {
    /// Whether nothing was changed.
    pub fn is_empty(&self) -> bool {
        let names = [&self.stored_again, &self.set_aside, &self.indexed_again, &self.indexes_removed];
        names.iter().all(|names| names.is_empty())
    }
}

/// A pack that is not what the index says.
struct DamagedPack {
    id: Id,
    /// What is there in its place; nothing where `None`.
    content: Option<Bytes>,
}

impl Repository {
    /// Takes packs that are missing or damaged out of the index, after saving what is left of them, and puts those into
    /// it that are in none. Which packs are missing or have the wrong length is known from their listing; the content of
    /// those in `share` (as in [`Self::check_share`]) is read, of no others where `None`. Blocks.
    ///
    /// # Errors
    /// `Retryable` also where a pack is said to be missing and is there. After any error the repository is as before, or
    /// holds something twice.
    pub fn mend(&self, share: Option<(u32, u32)>, progress: &dyn Progress) -> Result<MendReceipt> {
        let mut receipt = MendReceipt::default();
        let (mut indexes, damaged_indexes) = self.indexes()?;
        let listed: HashMap<Id, u32> = self
            .backend
            .list_with_size(FileType::Pack)
            .map_err(|error| self.error("list packs of", &error))?
            .into_iter()
            .collect();
        let mut lost: BTreeSet<Id> = BTreeSet::new();
        let mut saved = IndexFile::default();
        for damaged in self.damaged_packs(&indexes, &listed, share, progress)? {
            let name = damaged.id.to_hex().as_str().to_owned();
            if let Some(whole) = self.backend.cache().get(&damaged.id) {
                self.store(FileType::Pack, damaged.id, whole)?;
                receipt.stored_again.push(name);
                continue;
            }
            let pack = indexes.values().flat_map(all_packs).find(|pack| *pack.id == damaged.id);
            let blobs = pack.map(|pack| pack.blobs.as_slice()).unwrap_or_default();
            let content = damaged.content.unwrap_or_default();
            let whole: Vec<_> = blobs
                .iter()
                .filter_map(|blob| Some((blob, whole_blob(&self.key, blob, &content)?)))
                .collect();
            receipt.blobs_saved += whole.len() as u64;
            receipt.blobs_lost += (blobs.len() - whole.len()) as u64;
            if !whole.is_empty() {
                let (pack, body) = pack_of(&self.key, &whole).map_err(|message| self.unwritable(message))?;
                self.store(FileType::Pack, *pack.id, body)?;
                saved.packs.push(pack);
            }
            receipt.set_aside.push(name);
            lost.insert(damaged.id);
        }
        let known: BTreeSet<Id> = indexes.values().flat_map(all_packs).map(|pack| *pack.id).collect();
        for id in listed.into_keys().filter(|id| !known.contains(id)) {
            stop_if_canceled(progress)?;
            if let Some(pack) = self.whole_pack(id)? {
                receipt.indexed_again.push(id.to_hex().as_str().to_owned());
                saved.packs.push(pack);
            }
        }
        if !saved.packs.is_empty() {
            self.store_index(&saved)?;
        }
        for id in damaged_indexes {
            self.remove_index(&id)?;
            receipt.indexes_removed.push(id.to_hex().as_str().to_owned());
        }
        for (id, index) in &mut indexes {
            if !all_packs(index).any(|pack| lost.contains(&*pack.id)) {
                continue;
            }
            index.packs.retain(|pack| !lost.contains(&*pack.id));
            index.packs_to_delete.retain(|pack| !lost.contains(&*pack.id));
            if all_packs(index).next().is_some() {
                self.store_index(index)?;
            }
            self.remove_index(id)?;
        }
        self.backend.finish_uploads().map_err(|error| self.error("write packs of", &error))?;
        let snapshots = self.backend.list_snapshots()?;
        let snapshots = snapshots.into_iter().map(SnapshotId::from_rustic).collect::<Result<Vec<_>>>()?;
        receipt.lacking = self.lacking(snapshots.iter())?;
        if !receipt.lacking.is_empty() {
            // The listing of the indexes may have lacked one.
            receipt.lacking = self.lacking(receipt.lacking.iter())?;
        }
        receipt.requests = self.requests();
        Ok(receipt)
    }

    /// All indexes, and the names of those that are damaged.
    fn indexes(&self) -> Result<(BTreeMap<Id, IndexFile>, Vec<Id>)> {
        let (mut indexes, mut damaged) = (BTreeMap::new(), Vec::new());
        let ids = self.rustic.list::<IndexId>().map_err(|error| self.error("list indexes of", &error))?;
        for id in ids {
            match self.rustic.get_file::<IndexFile>(&id) {
                Ok(index) => drop(indexes.insert(*id, index)),
                Err(error) => match self.error("read index of", &error) {
                    error if error.kind() == Kind::Damaged => damaged.push(*id),
                    error => return Err(error),
                },
            }
        }
        Ok((indexes, damaged))
    }

    /// What an index has to say of a pack that is whole; `None` of any other.
    fn whole_pack(&self, id: Id) -> Result<Option<IndexPack>> {
        let content = self.backend.get_as_it_is(&id)?;
        let content = content.filter(|content| hash(content) == id);
        Ok(content.and_then(|content| described_pack(&self.key, id, &content)))
    }

    fn damaged_packs(
        &self,
        indexes: &BTreeMap<Id, IndexFile>,
        listed: &HashMap<Id, u32>,
        share: Option<(u32, u32)>,
        progress: &dyn Progress,
    ) -> Result<Vec<DamagedPack>> {
        let known: BTreeMap<Id, u32> =
            indexes.values().flat_map(all_packs).map(|pack| (*pack.id, pack.pack_size())).collect();
        let mut damaged = Vec::new();
        for (id, size) in known {
            stop_if_canceled(progress)?;
            let is_in_share = share.is_some_and(|(share, of)| id.as_u32() % of.max(1) == share % of.max(1));
            let found = listed.get(&id);
            if found == Some(&size) && !is_in_share {
                continue;
            }
            // Twice, since the first may have been spoilt on its way.
            let mut content = self.backend.get_as_it_is(&id)?;
            if content.as_ref().is_some_and(|content| hash(content) != id) {
                content = self.backend.get_as_it_is(&id)?;
            }
            match content {
                Some(content) if hash(&content) == id => {
                    if found.is_none() {
                        let message = "it is there, and a listing lacked it";
                        let subject = id.to_hex();
                        return Err(BackupRepositoryError::new(
                            Kind::Retryable,
                            "look for pack",
                            subject.as_str(),
                            message,
                        ));
                    }
                }
                content => damaged.push(DamagedPack { id, content }),
            }
        }
        Ok(damaged)
    }

    pub(crate) fn store(&self, file_type: FileType, id: Id, body: Bytes) -> Result<()> {
        self.backend
            .write_bytes(file_type, &id, false, body.into())
            .map_err(|error| self.error("write into", &error))
    }

    fn store_index(&self, index: &IndexFile) -> Result<()> {
        let body = index_file(&self.key, index).map_err(|message| self.unwritable(message))?;
        // The backend waits for all packs before it writes an index.
        self.store(FileType::Index, hash(&body), body)
    }

    fn remove_index(&self, id: &Id) -> Result<()> {
        self.backend.remove(FileType::Index, id, true).map_err(|error| self.error("remove index of", &error))
    }

    fn unwritable(&self, message: String) -> BackupRepositoryError {
        BackupRepositoryError::new(Kind::Permanent, "mend", self.backend.root(), message)
    }
}

fn stop_if_canceled(progress: &dyn Progress) -> Result<()> {
    if progress.is_canceled() { Err(BackupRepositoryError::canceled("mend")) } else { Ok(()) }
}

fn all_packs(index: &IndexFile) -> impl Iterator<Item = &IndexPack> {
    index.packs.iter().chain(&index.packs_to_delete)
}

/// The bytes of a blob as they stand in a pack, if they are what they were.
fn whole_blob(key: &RepositoryKey, blob: &IndexBlob, pack: &Bytes) -> Option<Bytes> {
    let from = blob.location.offset as usize;
    let sealed = pack.get(from..from.checked_add(blob.location.length as usize)?)?;
    let mut plain = key.unseal(sealed)?;
    if let Some(length) = blob.location.uncompressed_length {
        plain = zstd::bulk::decompress(&plain, length.get() as usize).ok()?;
    }
    (hash(&plain) == *blob.id).then(|| pack.slice_ref(sealed))
}

/// A pack of these blobs, and what an index says of it.
fn pack_of(
    key: &RepositoryKey,
    blobs: &[(&IndexBlob, Bytes)],
) -> std::result::Result<(IndexPack, Bytes), String> {
    let mut body = Vec::new();
    let mut header = Vec::new();
    let mut pack = IndexPack::default();
    for (blob, sealed) in blobs {
        let mut blob = **blob;
        blob.location.offset = u32::try_from(body.len()).map_err(|error| error.to_string())?;
        body.extend_from_slice(sealed);
        // As restic's design document has it: the kind, the lengths, the hash.
        let kind = u8::from(blob.tpe == BlobType::Tree);
        match blob.location.uncompressed_length.map(NonZeroU32::get) {
            None => {
                header.put_u8(kind);
                header.put_u32_le(blob.location.length);
            }
            Some(length) => {
                header.put_u8(2 + kind);
                header.put_u32_le(blob.location.length);
                header.put_u32_le(length);
            }
        }
        let id = HEXLOWER.decode(blob.id.to_hex().as_str().as_bytes());
        header.extend(id.map_err(|error| error.to_string())?);
        pack.blobs.push(blob);
    }
    let header = key.seal(&header)?;
    body.extend_from_slice(&header);
    body.put_u32_le(u32::try_from(header.len()).map_err(|error| error.to_string())?);
    pack.id = hash(&body).into();
    Ok((pack, body.into()))
}

/// What the end of a pack says of it: the reverse of [`pack_of`].
fn described_pack(key: &RepositoryKey, id: Id, content: &Bytes) -> Option<IndexPack> {
    let (rest, length) = content.split_last_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let header = key.unseal(rest.get(rest.len().checked_sub(length)?..)?)?;
    let mut header = header.as_slice();
    let mut pack = IndexPack { id: id.into(), ..IndexPack::default() };
    let mut offset = 0_u32;
    while !header.is_empty() {
        let kind = header.try_get_u8().ok()?;
        let length = header.try_get_u32_le().ok()?;
        let uncompressed_length =
            if kind & 2 == 0 { None } else { NonZeroU32::new(header.try_get_u32_le().ok()?) };
        let (id, rest) = header.split_first_chunk::<32>()?;
        header = rest;
        // rustic's type for a place in a pack has no name outside of it, but it reads.
        let mut blob = serde_json::json!({
            "id": HEXLOWER.encode(id),
            "type": if kind & 1 == 0 { "data" } else { "tree" },
            "offset": offset,
            "length": length,
        });
        if kind & 2 != 0 {
            blob["uncompressed_length"] = uncompressed_length?.get().into();
        }
        pack.blobs.push(serde_json::from_value(blob).ok()?);
        offset = offset.checked_add(length)?;
    }
    Some(pack)
}

/// An index as it is stored.
fn index_file(key: &RepositoryKey, index: &IndexFile) -> std::result::Result<Bytes, String> {
    let json = serde_json::to_vec(index).map_err(|error| error.to_string())?;
    let mut plain = vec![COMPRESSED];
    plain.extend(zstd::bulk::compress(&json, COMPRESSION_LEVEL).map_err(|error| error.to_string())?);
    key.seal(&plain).map(Bytes::from)
}
