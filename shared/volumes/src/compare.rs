//! Whether two trees are the same, in everything that a restore has to bring back.
//!
//! "The restore succeeded" is a claim. This is how the demo and the tests hold it to the files: every byte, and also
//! what is lost quietly by most ways of copying: modes, owners, times, links, extended attributes.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::VolumeError;

/// [`compare_trees`] stops after this many differences.
pub const MAX_DIFFERENCES: usize = 200;

/// One way in which two trees differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Where, relative to the roots; empty for the roots themselves.
    pub path: PathBuf,
    /// In what.
    pub kind: DifferenceKind,
}

/// In what an entry differs; of two values the first tree's comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DifferenceKind {
    /// Only the first tree has it.
    OnlyInFirst,
    /// Only the second tree has it.
    OnlyInSecond,
    /// The type ("file", "directory", "symbolic link", …).
    Type(&'static str, &'static str),
    /// The permission bits, with set-uid, set-gid and sticky.
    Mode(u32, u32),
    /// The user id.
    Owner(u32, u32),
    /// The group id.
    Group(u32, u32),
    /// The modification time, in seconds and nanoseconds since 1970.
    ModificationTime((i64, i64), (i64, i64)),
    /// The length of a file, in bytes.
    Size(u64, u64),
    /// The bytes of a file; the first that differs is at this offset.
    Content(u64),
    /// What a symbolic link points to.
    LinkTarget(PathBuf, PathBuf),
    /// The first path (in byte order) that is a hard link to the same file.
    HardLink(PathBuf, PathBuf),
    /// The number of a device.
    Device(u64, u64),
    /// The value of the extended attribute of this name, or its presence.
    ExtendedAttribute(OsString),
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.as_os_str().is_empty() { Path::new(".") } else { &self.path };
        write!(formatter, "{}: ", path.display())?;
        match &self.kind {
            DifferenceKind::OnlyInFirst => write!(formatter, "only in the first tree"),
            DifferenceKind::OnlyInSecond => write!(formatter, "only in the second tree"),
            DifferenceKind::Type(a, b) => write!(formatter, "{a} / {b}"),
            DifferenceKind::Mode(a, b) => write!(formatter, "mode {a:o} / {b:o}"),
            DifferenceKind::Owner(a, b) => write!(formatter, "owner {a} / {b}"),
            DifferenceKind::Group(a, b) => write!(formatter, "group {a} / {b}"),
            DifferenceKind::ModificationTime(a, b) => {
                write!(formatter, "mtime {}.{:09} / {}.{:09}", a.0, a.1, b.0, b.1)
            }
            DifferenceKind::Size(a, b) => write!(formatter, "{a} bytes / {b} bytes"),
            DifferenceKind::Content(offset) => write!(formatter, "content differs from byte {offset} on"),
            DifferenceKind::LinkTarget(a, b) => {
                write!(formatter, "link to {} / {}", a.display(), b.display())
            }
            DifferenceKind::HardLink(a, b) => {
                write!(formatter, "hard link of {} / {}", a.display(), b.display())
            }
            DifferenceKind::Device(a, b) => write!(formatter, "device {a} / {b}"),
            DifferenceKind::ExtendedAttribute(name) => {
                write!(formatter, "extended attribute {}", name.display())
            }
        }
    }
}

/// Compares everything in two trees, their roots included: type, every byte, mode, owner, group, modification time
/// in nanoseconds, link targets, which names are hard links of one another, devices, extended attributes. At most
/// [`MAX_DIFFERENCES`] are returned; none means that the trees are the same.
///
/// # Errors
///
/// Whatever cannot be read: a comparison that has not seen everything proves nothing.
pub fn compare_trees(first: &Path, second: &Path) -> Result<Vec<Difference>, VolumeError> {
    let first = Tree::read(first)?;
    let second = Tree::read(second)?;
    let mut differences = Vec::new();
    for (path, a) in &first.entries {
        match second.entries.get(path) {
            None => differences.push(Difference { path: path.clone(), kind: DifferenceKind::OnlyInFirst }),
            Some(b) => compare_entries(&first, &second, path, a, b, &mut differences)?,
        }
        if differences.len() >= MAX_DIFFERENCES {
            break;
        }
    }
    let only_in_second = second.entries.keys().filter(|path| !first.entries.contains_key(*path));
    differences.extend(
        only_in_second.map(|path| Difference { path: path.clone(), kind: DifferenceKind::OnlyInSecond }),
    );
    differences.truncate(MAX_DIFFERENCES);
    Ok(differences)
}

struct Tree<'a> {
    root: &'a Path,
    entries: BTreeMap<PathBuf, Metadata>,
    /// For each file with more than one name: the first of its names in the tree.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl<'a> Tree<'a> {
    fn read(root: &'a Path) -> Result<Self, VolumeError> {
        let mut entries = BTreeMap::new();
        for entry in walkdir::WalkDir::new(root) {
            let failed = |error: walkdir::Error| {
                let path = error.path().unwrap_or(root).to_owned();
                VolumeError::io::<std::io::Error>("read", &path)(error.into())
            };
            let entry = entry.map_err(failed)?;
            let metadata = entry.path().symlink_metadata().map_err(VolumeError::io("read", entry.path()))?;
            entries.insert(entry.path().strip_prefix(root).unwrap_or(Path::new("")).to_owned(), metadata);
        }
        let mut first_names = HashMap::new();
        for (path, metadata) in &entries {
            if !metadata.is_dir() && metadata.nlink() > 1 {
                first_names.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone());
            }
        }
        Ok(Self { root, entries, first_names })
    }

    /// The first name of the file that `path` is a name of.
    fn first_name<'b>(&'b self, path: &'b Path, metadata: &Metadata) -> &'b Path {
        self.first_names.get(&(metadata.dev(), metadata.ino())).map_or(path, PathBuf::as_path)
    }
}

fn compare_entries(
    first: &Tree<'_>,
    second: &Tree<'_>,
    path: &Path,
    a: &Metadata,
    b: &Metadata,
    differences: &mut Vec<Difference>,
) -> Result<(), VolumeError> {
    let mut differ = |kind| differences.push(Difference { path: path.to_owned(), kind });
    if type_name(a) != type_name(b) {
        differ(DifferenceKind::Type(type_name(a), type_name(b)));
        return Ok(());
    }
    if a.mode() & 0o7777 != b.mode() & 0o7777 {
        differ(DifferenceKind::Mode(a.mode() & 0o7777, b.mode() & 0o7777));
    }
    if a.uid() != b.uid() {
        differ(DifferenceKind::Owner(a.uid(), b.uid()));
    }
    if a.gid() != b.gid() {
        differ(DifferenceKind::Group(a.gid(), b.gid()));
    }
    if (a.mtime(), a.mtime_nsec()) != (b.mtime(), b.mtime_nsec()) {
        differ(DifferenceKind::ModificationTime((a.mtime(), a.mtime_nsec()), (b.mtime(), b.mtime_nsec())));
    }
    if (a.file_type().is_char_device() || a.file_type().is_block_device()) && a.rdev() != b.rdev() {
        differ(DifferenceKind::Device(a.rdev(), b.rdev()));
    }
    let (name_in_first, name_in_second) = (first.first_name(path, a), second.first_name(path, b));
    if name_in_first != name_in_second {
        differ(DifferenceKind::HardLink(name_in_first.to_owned(), name_in_second.to_owned()));
    }
    let (path_a, path_b) = (join(first.root, path), join(second.root, path));
    if a.is_symlink() {
        let target = |path: &Path| std::fs::read_link(path).map_err(VolumeError::io("read the link", path));
        let (target_a, target_b) = (target(&path_a)?, target(&path_b)?);
        if target_a != target_b {
            differ(DifferenceKind::LinkTarget(target_a, target_b));
        }
    }
    if a.is_file() {
        if a.len() != b.len() {
            differ(DifferenceKind::Size(a.len(), b.len()));
        } else if let Some(offset) = first_different_byte(&path_a, &path_b)? {
            differ(DifferenceKind::Content(offset));
        }
    }
    let (attributes_a, attributes_b) = (extended_attributes(&path_a)?, extended_attributes(&path_b)?);
    if attributes_a != attributes_b {
        let mut names: Vec<&OsString> = attributes_a.keys().chain(attributes_b.keys()).collect();
        names.sort();
        names.dedup();
        for name in names.into_iter().filter(|name| attributes_a.get(*name) != attributes_b.get(*name)) {
            differ(DifferenceKind::ExtendedAttribute(name.clone()));
        }
    }
    Ok(())
}

fn type_name(metadata: &Metadata) -> &'static str {
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_file() => "file",
        () if file_type.is_dir() => "directory",
        () if file_type.is_symlink() => "symbolic link",
        () if file_type.is_fifo() => "named pipe",
        () if file_type.is_socket() => "socket",
        () if file_type.is_char_device() => "character device",
        () if file_type.is_block_device() => "block device",
        () => "unknown",
    }
}

fn join(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

fn first_different_byte(a: &Path, b: &Path) -> Result<Option<u64>, VolumeError> {
    const CHUNK_BYTES: u64 = 256 * 1024;
    let open = |path: &Path| File::open(path).map_err(VolumeError::io("open", path));
    let (mut file_a, mut file_b) = (open(a)?, open(b)?);
    let (mut chunk_a, mut chunk_b) = (Vec::new(), Vec::new());
    let mut offset = 0;
    loop {
        for (file, chunk, path) in [(&mut file_a, &mut chunk_a, a), (&mut file_b, &mut chunk_b, b)] {
            chunk.clear();
            file.take(CHUNK_BYTES).read_to_end(chunk).map_err(VolumeError::io("read", path))?;
        }
        if chunk_a != chunk_b {
            let same = chunk_a.iter().zip(&chunk_b).take_while(|(a, b)| a == b).count();
            return Ok(Some(offset + same as u64));
        }
        if chunk_a.is_empty() {
            return Ok(None);
        }
        offset += chunk_a.len() as u64;
    }
}

fn extended_attributes(path: &Path) -> Result<BTreeMap<OsString, Vec<u8>>, VolumeError> {
    let failed = |error: std::io::Error| VolumeError::io("read the extended attributes of", path)(error);
    let names = match xattr::list(path) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOTSUP.raw_os_error()) => {
            return Ok(BTreeMap::new());
        }
        other => other.map_err(failed)?,
    };
    let mut attributes = BTreeMap::new();
    for name in names {
        if let Some(value) = xattr::get(path, &name).map_err(failed)? {
            attributes.insert(name, value);
        }
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::process::Command;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::test_support::fill;

    /// Two equal trees with hard links and extended attributes.
    fn equal_trees() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        fill(&a, "mark");
        std::fs::write(a.join("one"), vec![7; 600 * 1024]).unwrap();
        std::fs::hard_link(a.join("one"), a.join("two")).unwrap();
        std::fs::write(a.join("three"), vec![7; 600 * 1024]).unwrap();
        xattr::set(a.join("one"), "user.colour", b"green").unwrap();
        assert!(Command::new("cp").arg("-a").arg(&a).arg(&b).status().unwrap().success());
        (directory, a, b)
    }

    fn difference(a: &Path, b: &Path) -> Vec<String> {
        compare_trees(a, b).unwrap().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_faithful_copy_has_no_differences() {
        let (_directory, a, b) = equal_trees();
        assert_eq!(difference(&a, &b), Vec::<String>::new());
        assert_eq!(difference(&a, &a), Vec::<String>::new());
    }

    #[test]
    fn every_kind_of_change_is_seen() {
        let keep_mtime = |path: &Path, change: &dyn Fn()| {
            let before = path.metadata().unwrap().modified().unwrap();
            change();
            File::options().write(true).open(path).unwrap().set_modified(before).unwrap();
        };
        let (_directory, a, b) = equal_trees();
        keep_mtime(&b.join("three"), &|| {
            let mut bytes = vec![7; 600 * 1024];
            bytes[500_000] = 8;
            std::fs::write(b.join("three"), bytes).unwrap();
        });
        assert_eq!(difference(&a, &b), ["three: content differs from byte 500000 on"]);

        let (_directory, a, b) = equal_trees();
        keep_mtime(&b.join("mark"), &|| std::fs::write(b.join("mark"), "marks").unwrap());
        assert_eq!(difference(&a, &b), ["mark: 4 bytes / 5 bytes"]);

        let (_directory, a, b) = equal_trees();
        rustix::fs::chmod(b.join("mark"), rustix::fs::Mode::from_raw_mode(0o4711)).unwrap();
        assert_eq!(difference(&a, &b), ["mark: mode 644 / 4711"]);

        let (_directory, a, b) = equal_trees();
        let modified = SystemTime::UNIX_EPOCH + Duration::new(5, 7);
        File::open(b.join("mark")).unwrap().set_modified(modified).unwrap();
        File::open(a.join("mark")).unwrap().set_modified(modified - Duration::from_nanos(1)).unwrap();
        assert_eq!(difference(&a, &b), ["mark: mtime 5.000000006 / 5.000000007"]);

        let (_directory, a, b) = equal_trees();
        xattr::set(b.join("one"), "user.colour", b"red").unwrap();
        xattr::set(b.join("three"), "user.size", b"large").unwrap();
        assert_eq!(
            difference(&a, &b),
            [
                "one: extended attribute user.colour",
                "three: extended attribute user.size",
                "two: extended attribute user.colour",
            ]
        );

        let (_directory, a, b) = equal_trees();
        let sub = b.join("sub").metadata().unwrap().modified().unwrap();
        std::fs::remove_file(b.join("sub/link")).unwrap();
        std::os::unix::fs::symlink("elsewhere", b.join("sub/link")).unwrap();
        File::open(b.join("sub")).unwrap().set_modified(sub).unwrap();
        let seen = difference(&a, &b);
        assert!(seen.contains(&"sub/link: link to ../mark / elsewhere".to_owned()), "{seen:?}");
    }

    #[test]
    fn a_hard_link_that_became_a_copy_is_seen_and_so_is_what_is_missing_or_of_another_type() {
        let (_directory, a, b) = equal_trees();
        std::fs::remove_file(b.join("two")).unwrap();
        assert!(
            Command::new("cp").args(["-a"]).arg(b.join("one")).arg(b.join("two")).status().unwrap().success()
        );
        std::fs::remove_dir(b.join("sub/empty")).unwrap();
        std::fs::write(b.join("sub/empty"), "").unwrap();
        std::fs::write(b.join("sub/more"), "").unwrap();
        std::fs::remove_file(b.join("mark")).unwrap();
        let kinds: Vec<_> = compare_trees(&a, &b)
            .unwrap()
            .into_iter()
            .filter(|difference| !matches!(difference.kind, DifferenceKind::ModificationTime(..)))
            .map(|difference| difference.to_string())
            .collect();
        assert_eq!(
            kinds,
            [
                "mark: only in the first tree",
                "sub/empty: directory / file",
                "two: hard link of one / two",
                "sub/more: only in the second tree",
            ]
        );
    }

    #[test]
    fn differences_are_bounded_and_a_tree_that_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b) = (directory.path().join("a"), directory.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        for n in 0..MAX_DIFFERENCES {
            std::fs::write(a.join(format!("a{n}")), "").unwrap();
            std::fs::write(b.join(format!("b{n}")), "").unwrap();
        }
        assert_eq!(compare_trees(&a, &b).unwrap().len(), MAX_DIFFERENCES);
        assert!(compare_trees(&a, &directory.path().join("c")).is_err());
    }
}
