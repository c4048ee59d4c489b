//! One entry of a restore: what has to be known of it until the end, and nothing else. A restore holds as many as the backup has
//! entries, and of a million of them, with all that rustic's own node says, no job has the memory.

use std::path::Path;

use jiff::Timestamp;
use rustic_core::DataId;
use rustic_core::repofile::{Metadata, Node, NodeType};

/// One entry to be restored.
#[derive(Debug)]
pub(crate) struct PlannedEntry {
    /// Which staging directory, by number.
    pub(crate) staging: usize,
    /// The path as the digest has it.
    pub(crate) path: Box<Path>,
    pub(crate) kind: PlannedKind,
    pub(crate) metadata: PlannedMetadata,
    /// The entry that this one is a hard link to, by number.
    pub(crate) link_to: Option<usize>,
}

#[derive(Debug)]
pub(crate) enum PlannedKind {
    Directory,
    /// With the chunks of its content.
    File(Box<[DataId]>),
    /// A link, a device, a pipe or a socket.
    Special(Box<NodeType>),
}

/// What an entry is given when its content is there.
#[derive(Debug)]
pub(crate) struct PlannedMetadata {
    /// As Go writes it.
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) mtime: Option<Timestamp>,
    /// Names and values of its extended attributes.
    pub(crate) attributes: Box<[(String, Vec<u8>)]>,
}

impl PlannedEntry {
    pub(crate) fn new(staging: usize, path: &Path, node: Node, link_to: Option<usize>) -> Self {
        let kind = match node.node_type {
            NodeType::Dir => PlannedKind::Directory,
            NodeType::File => PlannedKind::File(node.content.unwrap_or_default().into_boxed_slice()),
            special => PlannedKind::Special(Box::new(special)),
        };
        Self { staging, path: path.into(), kind, metadata: PlannedMetadata::of(&node.meta), link_to }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, PlannedKind::Directory)
    }

    /// Whether it is a regular file, and no further name of another one.
    pub(crate) fn has_own_content(&self) -> bool {
        matches!(self.kind, PlannedKind::File(_)) && self.link_to.is_none()
    }

    /// The chunks of a regular file; of anything else there are none.
    pub(crate) fn content(&self) -> &[DataId] {
        match &self.kind {
            PlannedKind::File(chunks) => chunks,
            PlannedKind::Directory | PlannedKind::Special(_) => &[],
        }
    }

    /// Whether it is of this kind, with the same target or device number where there is one.
    pub(crate) fn is_a(&self, node_type: &NodeType) -> bool {
        match &self.kind {
            PlannedKind::Directory => *node_type == NodeType::Dir,
            PlannedKind::File(_) => *node_type == NodeType::File,
            PlannedKind::Special(special) => **special == *node_type,
        }
    }

    pub(crate) fn is_symlink(&self) -> bool {
        matches!(&self.kind, PlannedKind::Special(special) if matches!(**special, NodeType::Symlink { .. }))
    }
}

impl PlannedMetadata {
    fn of(metadata: &Metadata) -> Self {
        let attributes = attributes_of(metadata).map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            attributes: attributes.collect(),
        }
    }

    pub(crate) fn has_attributes_of(&self, found: &Metadata) -> bool {
        let expected = self.attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        expected.eq(attributes_of(found))
    }
}

fn attributes_of(metadata: &Metadata) -> impl Iterator<Item = (&str, &[u8])> {
    let attributes = metadata.extended_attributes.iter();
    attributes.map(|attribute| (attribute.name.as_str(), attribute.value.as_deref().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_of_them_take_128_megabytes_and_what_their_paths_and_chunks_take() {
        assert!(size_of::<PlannedEntry>() <= 128, "{}", size_of::<PlannedEntry>());
    }
}
