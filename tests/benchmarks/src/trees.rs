//! Files to back up: half of the bytes compress like text, half do not compress at all.

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

const FILES_PER_DIRECTORY: u32 = 100;
const DIRECTORIES_PER_LEVEL: u32 = 16;
/// A file whose time of change is younger than this may change again within the same tick of a clock, and is read
/// again by the next backup.
const SETTLED: Duration = Duration::from_millis(2500);

/// Text repeats itself within a piece only as text does.
const PIECE_BYTES: usize = 16 * 1024;
const WORDS: [&str; 32] = [
    "let", "the", "return", "value", "of", "self", "a", "theorem", "matrix", "import", "for", "in", "range",
    "and", "data", "result", "is", "not", "None", "function", "x", "print", "assert", "vector", "proof", "=",
    "+", "->", "(n)", "\n", "\n    ", "lambda",
];

/// Makes so many files of so many bytes in all below `root`, their sizes between a quarter and seven quarters of the
/// mean.
pub(crate) fn make(root: &Path, files: u32, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let words = words(&mut random);
    let mean = bytes / u64::from(files);
    for number in 0..files {
        let path = path_of(root, number);
        if number.is_multiple_of(FILES_PER_DIRECTORY) {
            let parent = path.parent().context("files are in directories")?;
            fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
        }
        // One more, one less: the sum is that of the means.
        let share = f64::from(number / 4 % 8) / 7.0 * 1.5 + 0.25;
        let length = (mean as f64 * share) as usize;
        let contents = if number.is_multiple_of(2) {
            text(&mut random, &words, length)
        } else {
            noise(&mut random, length)
        };
        fs::write(&path, contents).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// Overwrites a kilobyte in the middle of one file in `every`, or as much as is there: no file gets longer.
pub(crate) fn change(root: &Path, files: u32, every: u32, seed: u64) -> anyhow::Result<u32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut changed = 0;
    for number in (0..files).step_by(every as usize) {
        let path = path_of(root, number);
        let mut overwrite = || -> std::io::Result<()> {
            let mut file = fs::File::options().write(true).open(&path)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length / 2))?;
            file.write_all(&noise(&mut random, (length - length / 2).min(1024) as usize))
        };
        overwrite().with_context(|| format!("changing {}", path.display()))?;
        changed += 1;
    }
    Ok(changed)
}

fn path_of(root: &Path, number: u32) -> PathBuf {
    let directory = number / FILES_PER_DIRECTORY;
    let (above, below) = (directory / DIRECTORIES_PER_LEVEL, directory % DIRECTORIES_PER_LEVEL);
    root.join(format!("part-{above:02}/section-{below:02}/file-{number:06}.txt"))
}

/// Pieces of the words, put together anew each time.
fn text(random: &mut StdRng, words: &[u8], length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length);
    while text.len() < length {
        let from = random.random_range(0..words.len());
        let upto = words.len().min(from + PIECE_BYTES).min(from + length - text.len());
        text.extend_from_slice(&words[from..upto]);
    }
    text
}

/// A text of some megabytes.
fn words(random: &mut StdRng) -> Vec<u8> {
    let words = (0..500_000).flat_map(|_| [WORDS[random.random_range(0..WORDS.len())], " "]);
    words.collect::<String>().into_bytes()
}

fn noise(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    random.fill_bytes(&mut noise);
    noise
}

/// Waits until what was written is on the disk, so that nobody pays for what another has written.
pub(crate) fn flush_to_disk() -> anyhow::Result<()> {
    let status = Command::new("sync").status().context("running sync")?;
    ensure!(status.success(), "sync ended with {status}");
    Ok(())
}

/// Waits until files changed before are surely taken for unchanged.
pub(crate) async fn settle() {
    tokio::time::sleep(SETTLED).await;
}

/// Deletes a tree that may not be there.
pub(crate) fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("deleting {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Number of files and sum of their bytes, to see that what was restored is all.
pub(crate) fn count(root: &Path) -> anyhow::Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(root).with_context(|| format!("reading {}", root.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            let below = count(&entry.path())?;
            files += below.0;
            bytes += below.1;
        } else {
            files += 1;
            bytes += metadata.len();
        }
    }
    Ok((files, bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn a_tree_has_the_files_and_about_the_bytes_that_were_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), 256, 2_560_000, 1).unwrap();
        let (files, bytes) = count(directory.path()).unwrap();
        assert_eq!(files, 256);
        assert!(bytes.abs_diff(2_560_000) < 25_600, "{bytes}");
        assert_eq!(change(directory.path(), 256, 100, 2).unwrap(), 3);
        assert_eq!(count(directory.path()).unwrap().0, 256);
    }

    #[test]
    fn small_files_change_and_keep_their_lengths() {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path(), 64, 64 * 2_000, 1).unwrap();
        let before = count(directory.path()).unwrap();
        let smallest = path_of(directory.path(), 0);
        let content = fs::read(&smallest).unwrap();
        assert!(content.len() < 1024, "{}", content.len());
        change(directory.path(), 64, 1, 2).unwrap();
        assert_ne!(fs::read(&smallest).unwrap(), content);
        assert_eq!(count(directory.path()).unwrap(), before);
    }
}
