//! One number that says whether two trees are the same, wherever they are.
//!
//! rustic's own tree id cannot: it covers inode numbers, change times and device numbers, which no restore
//! can set. They stay in the nodes all the same, because change detection relies on the change time: without
//! it, a file rewritten with its size and its modification time put back would be taken for unchanged, and
//! its new content would be lost without a word. So the receipt is compared by a digest of our own.
//!
//! It is SHA-256 over every entry in the order of the snapshot: path, kind, permission bits, owner, group,
//! modification time to the nanosecond, link target, device number, extended attributes, the first path of
//! its hard-link group, and for files the SHA-256 of each chunk of content. Any byte, mode, owner, time,
//! link or attribute that is lost or changed changes it. Chunk boundaries come from the snapshot: the
//! restored file is hashed along them, so that verification needs no chunking of its own.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustic_core::repofile::{Node, NodeType};
use sha2::{Digest, Sha256};

use crate::node_metadata::permissions;

/// Numbers about a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct TreeCounts {
    /// Entries that are not directories.
    pub(crate) files: u64,
    pub(crate) directories: u64,
    /// Bytes of the regular files, as their metadata has them.
    pub(crate) bytes: u64,
}

#[derive(Debug)]
pub(crate) struct TreeDigest {
    hasher: Sha256,
    hard_links: HashMap<(u64, u64), PathBuf>,
    counts: TreeCounts,
}

/// The group of hard links that an entry belongs to, if it has more than one name.
pub(crate) fn hard_link_group(node: &Node) -> Option<(u64, u64)> {
    (!node.is_dir() && node.meta.links > 1 && node.meta.inode != 0)
        .then_some((node.meta.device_id, node.meta.inode))
}

impl TreeDigest {
    pub(crate) fn new() -> Self {
        let mut hasher = Sha256::new();
        hasher.update(b"longhaul tree 1\n");
        Self { hasher, hard_links: HashMap::new(), counts: TreeCounts::default() }
    }

    fn field(&mut self, bytes: &[u8]) {
        self.hasher.update((bytes.len() as u64).to_le_bytes());
        self.hasher.update(bytes);
    }

    /// Adds the next entry, parents before children, siblings in the order of their names' bytes.
    pub(crate) fn add(&mut self, path: &Path, node: &Node) {
        self.field(path.as_os_str().as_bytes());
        let kind: &[u8] = match node.node_type {
            NodeType::File => b"file",
            NodeType::Dir => b"dir",
            NodeType::Symlink { .. } => b"symlink",
            NodeType::Dev { .. } => b"block device",
            NodeType::Chardev { .. } => b"character device",
            NodeType::Fifo => b"fifo",
            NodeType::Socket => b"socket",
        };
        self.field(kind);
        if !node.is_symlink() {
            self.field(&permissions(node.meta.mode.unwrap_or_default()).to_le_bytes());
        }
        self.field(&node.meta.uid.unwrap_or_default().to_le_bytes());
        self.field(&node.meta.gid.unwrap_or_default().to_le_bytes());
        let mtime = node.meta.mtime.unwrap_or_default();
        self.field(&mtime.as_nanosecond().to_le_bytes());
        match &node.node_type {
            NodeType::Symlink { .. } => self.field(node.node_type.to_link().as_os_str().as_bytes()),
            NodeType::Dev { device } | NodeType::Chardev { device } => self.field(&device.to_le_bytes()),
            NodeType::File | NodeType::Dir | NodeType::Fifo | NodeType::Socket => {}
        }
        self.hasher.update((node.meta.extended_attributes.len() as u64).to_le_bytes());
        for attribute in &node.meta.extended_attributes {
            self.field(attribute.name.as_bytes());
            self.field(attribute.value.as_deref().unwrap_or_default());
        }
        let first = hard_link_group(node).and_then(|group| match self.hard_links.get(&group) {
            Some(first) => Some(first.as_os_str().as_bytes().to_vec()),
            None => {
                self.hard_links.insert(group, path.to_owned());
                None
            }
        });
        self.field(first.as_deref().unwrap_or_default());
        let content = node.content.as_deref().unwrap_or_default();
        self.hasher.update((content.len() as u64).to_le_bytes());
        for chunk in content {
            self.hasher.update(chunk.to_hex().as_str().as_bytes());
        }
        if node.is_dir() {
            self.counts.directories += 1;
        } else {
            self.counts.files += 1;
            self.counts.bytes += node.meta.size;
        }
    }

    pub(crate) fn counts(&self) -> TreeCounts {
        self.counts
    }

    /// 64 lower-case hexadecimal digits.
    pub(crate) fn finish(self) -> String {
        data_encoding::HEXLOWER.encode(&self.hasher.finalize())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use std::ffi::OsStr;

    use jiff::Timestamp;
    use rustic_core::repofile::Metadata;
    use rustic_core::{DataId, Id};

    use super::*;
    use crate::node_metadata::set_extended_attributes;

    fn file(name: &str) -> Node {
        let meta = Metadata {
            mode: Some(0o644),
            mtime: Some(Timestamp::new(1_700_000_000, 5).unwrap()),
            uid: Some(1000),
            gid: Some(1000),
            size: 10,
            ..Metadata::default()
        };
        let mut node = Node::new_node(OsStr::new(name), NodeType::File, meta);
        node.content = Some(vec![DataId::from(Id::new([7; 32]))]);
        node
    }

    fn digest(nodes: &[Node]) -> String {
        let mut digest = TreeDigest::new();
        for node in nodes {
            digest.add(Path::new(&node.name()), node);
        }
        digest.finish()
    }

    #[test]
    fn whatever_a_restore_could_lose_changes_the_digest() {
        let good = digest(&[file("a")]);
        assert_eq!(good.len(), 64);
        let spoil: [fn(&mut Node); 8] = [
            |node| node.name = "b".to_owned(),
            |node| node.meta.mode = Some(0o600),
            |node| node.meta.uid = Some(0),
            |node| node.meta.gid = Some(0),
            |node| node.meta.mtime = Some(Timestamp::new(1_700_000_000, 6).unwrap()),
            |node| node.content = Some(vec![DataId::from(Id::new([8; 32]))]),
            |node| node.node_type = NodeType::from_link(Path::new("x")),
            |node| set_extended_attributes(&mut node.meta, vec![("user.a".into(), vec![1])]).unwrap(),
        ];
        for spoil in spoil {
            let mut node = file("a");
            spoil(&mut node);
            assert_ne!(digest(&[node]), good);
        }
    }

    #[test]
    fn what_differs_from_host_to_host_does_not_change_it() {
        let mut node = file("a");
        node.meta.inode = 99;
        node.meta.device_id = 3;
        node.meta.ctime = Some(Timestamp::UNIX_EPOCH);
        node.meta.atime = Some(Timestamp::UNIX_EPOCH);
        node.meta.links = 1;
        assert_eq!(digest(&[node]), digest(&[file("a")]));
    }

    #[test]
    fn a_broken_hard_link_changes_it_and_another_inode_number_does_not() {
        let linked = |inode: u64, links: u64| {
            let mut nodes = [file("a"), file("b")];
            for node in &mut nodes {
                node.meta.inode = inode;
                node.meta.device_id = 1;
                node.meta.links = links;
            }
            digest(&nodes)
        };
        assert_eq!(linked(5, 2), linked(77, 3));
        assert_ne!(linked(5, 2), linked(5, 1));
    }
}
