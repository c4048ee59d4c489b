//! The project of the demo: a real tree, as large as real ones.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_util::sync::CancellationToken;
use walkdir::WalkDir;

use super::{say, special_files};

/// The least and the most that the tree holds, special files apart.
const LEAST_BYTES: u64 = 200_000_000;
const MOST_BYTES: u64 = 600_000_000;
const FILLER_FILE_BYTES: usize = 1_000_000;
/// Not a part of a project's source.
const LEFT_OUT: [&str; 2] = ["target", ".git"];

/// What a tree holds; a symbolic link counts as a file without bytes.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Filled {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// Fills the project's files and its persist store. `own` is the demo's directory, which is never copied into itself.
pub(super) fn fill(
    project: &Path,
    persist: &Path,
    own: &Path,
    interrupt: &CancellationToken,
) -> anyhow::Result<Filled> {
    let mut filled = Filled::default();
    match checkout() {
        Some(checkout) => copy(&checkout, &project.join("source"), own, interrupt, &mut filled)?,
        None => say(
            "this is no checkout of the project (LONGHAUL_CHECKOUT names one): its own source is not in the tree",
        ),
    }
    let registry = registry_sources();
    match &registry {
        Some(registry) => copy(registry, &project.join("registry"), own, interrupt, &mut filled)?,
        None => say("there are no cargo registry sources on this machine"),
    }
    if filled.bytes < LEAST_BYTES {
        say(&format!("real files: {} bytes; generated text makes up {LEAST_BYTES}", filled.bytes));
        generate(&project.join("generated"), interrupt, &mut filled)?;
    }
    special_files::create(&project.join("special"), &mut filled)?;
    fill_persist(persist, &mut filled)?;
    Ok(filled)
}

/// Where `./dev` says that the source is, or the current directory where it is the top of one.
fn checkout() -> Option<PathBuf> {
    let given = std::env::var_os("LONGHAUL_CHECKOUT").map(PathBuf::from);
    let directory = given.or_else(|| std::env::current_dir().ok())?;
    directory.join("Cargo.toml").is_file().then_some(directory)
}

fn registry_sources() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")))?;
    let sources = home.join("registry/src");
    sources.is_dir().then_some(sources)
}

/// Copies directories, files (with mode and mtime) and symbolic links until there are enough.
fn copy(
    from: &Path,
    to: &Path,
    own: &Path,
    interrupt: &CancellationToken,
    filled: &mut Filled,
) -> anyhow::Result<()> {
    let part = |entry: &walkdir::DirEntry| {
        let left_out = entry.depth() == 1 && LEFT_OUT.iter().any(|name| entry.file_name() == *name);
        !left_out && entry.path() != own
    };
    for entry in WalkDir::new(from).sort_by_file_name().into_iter().filter_entry(part) {
        if interrupt.is_cancelled() {
            bail!("interrupted");
        }
        if filled.bytes >= MOST_BYTES {
            say(&format!("{MOST_BYTES} bytes are enough: the rest of {} is left out", from.display()));
            break;
        }
        let entry = entry.with_context(|| format!("reading {}", from.display()))?;
        let target = to.join(entry.path().strip_prefix(from)?);
        let kind = entry.file_type();
        let copied = if kind.is_dir() {
            fs::create_dir_all(&target)
        } else if kind.is_symlink() {
            filled.files += 1;
            fs::read_link(entry.path()).and_then(|link| std::os::unix::fs::symlink(link, &target))
        } else if kind.is_file() {
            copy_file(entry.path(), &target, filled)
        } else {
            Ok(())
        };
        match copied {
            // Somebody works there: gone meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => copied.with_context(|| format!("copying {}", entry.path().display()))?,
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path, filled: &mut Filled) -> std::io::Result<()> {
    filled.bytes += fs::copy(from, to)?;
    filled.files += 1;
    let modified = fs::metadata(from)?.modified()?;
    // A file without write permission can still be opened to set its time.
    File::open(to)?.set_modified(modified)
}

/// Text that compresses about as well as people's, the same at each run.
fn generate(directory: &Path, interrupt: &CancellationToken, filled: &mut Filled) -> anyhow::Result<()> {
    let mut random = SmallRng::seed_from_u64(20_261_121);
    fs::create_dir_all(directory)?;
    let words: Vec<String> = (0..4000)
        .map(|_| (0..random.random_range(2..12)).map(|_| random.random_range('a'..='z')).collect())
        .collect();
    let mut number = 0;
    while filled.bytes < LEAST_BYTES {
        if interrupt.is_cancelled() {
            bail!("interrupted");
        }
        let mut text = String::with_capacity(FILLER_FILE_BYTES + 16);
        while text.len() < FILLER_FILE_BYTES {
            text.push_str(&words[random.random_range(0..words.len())]);
            text.push(if random.random_range(0..12) == 0 { '\n' } else { ' ' });
        }
        write(&directory.join(format!("text-{number:04}.txt")), text.as_bytes(), filled)?;
        number += 1;
    }
    Ok(())
}

fn fill_persist(persist: &Path, filled: &mut Filled) -> anyhow::Result<()> {
    write(&persist.join("settings.json"), br#"{"theme":"dark"}"#, filled)?;
    fs::create_dir_all(persist.join("streams/chat"))?;
    for number in 0..20_u32 {
        let lines: String =
            (0..200).map(|line| format!("{{\"n\":{},\"text\":\"hello\"}}\n", number * 200 + line)).collect();
        write(&persist.join(format!("streams/chat/{number:02}.jsonl")), lines.as_bytes(), filled)?;
    }
    Ok(())
}

/// Writes a file and counts it.
pub(super) fn write(file: &Path, contents: &[u8], filled: &mut Filled) -> anyhow::Result<()> {
    let written = File::create(file).and_then(|mut file| file.write_all(contents));
    written.with_context(|| format!("writing {}", file.display()))?;
    filled.files += 1;
    filled.bytes += contents.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    #[test]
    fn a_copied_tree_leaves_out_what_is_built_and_the_demo_itself() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        let own = from.join("demo");
        for name in ["src", "target/debug", ".git", "demo", "src/target"] {
            fs::create_dir_all(from.join(name)).unwrap();
            fs::write(from.join(name).join("file"), name).unwrap();
        }
        let (to, mut filled) = (directory.path().join("to"), Filled::default());
        copy(&from, &to, &own, &CancellationToken::new(), &mut filled).unwrap();
        assert_eq!(filled.files, 2);
        assert!(to.join("src/file").exists() && to.join("src/target/file").exists());
        assert!(!to.join("target").exists() && !to.join(".git").exists() && !to.join("demo").exists());
        let modified = |root: &Path| fs::metadata(root.join("src/file")).unwrap().modified().unwrap();
        assert_eq!(modified(&from), modified(&to));
    }

    #[test]
    fn an_interrupted_fill_stops() {
        let directory = tempfile::tempdir().unwrap();
        let interrupt = CancellationToken::new();
        interrupt.cancel();
        assert!(generate(&directory.path().join("g"), &interrupt, &mut Filled::default()).is_err());
    }
}
