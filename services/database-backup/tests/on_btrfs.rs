//! On a file system that can share bytes between files, a copy is a moment and takes no room.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use database_backup::{BackupKind, Database, Engine};
use support::{Fixture, backup, succeeded};

/// A btrfs in a file, mounted until it is dropped.
struct Btrfs {
    place: PathBuf,
}

impl Btrfs {
    fn mount(image: &Path, place: PathBuf) -> Self {
        std::fs::File::create(image).unwrap().set_len(1 << 30).unwrap();
        std::fs::create_dir(&place).unwrap();
        run(Command::new("mkfs.btrfs").arg("--quiet").arg(image));
        run(Command::new("mount").args(["-t", "btrfs", "-o", "loop,noatime"]).arg(image).arg(&place));
        Self { place }
    }

    /// Bytes that are in use, once all that was written is on the disk.
    fn used(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(&self.place));
        let found = rustix::fs::statvfs(&self.place).unwrap();
        (found.f_blocks - found.f_bfree) * found.f_frsize
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.place).status();
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_shares_the_bytes_of_the_database() {
    if !test_harness::btrfs_is_available() {
        return;
    }
    let Some(fixture) = Fixture::new().await else { return };
    let btrfs = Btrfs::mount(&fixture.path("image"), fixture.path("btrfs"));
    let file = btrfs.place.join("hesocial.duckdb");
    fixture.duckdb(
        &file,
        "CREATE TABLE t AS SELECT i, md5(i::VARCHAR) || md5((i + 1)::VARCHAR) AS digest FROM range(2000000) r(i)",
    );
    let size = std::fs::metadata(&file).unwrap().len();
    assert!(size > 40_000_000, "{size}");
    let settings = fixture.settings("btrfs/hesocial.duckdb", &fixture.endpoint, &[]);
    let (database, copy) = (Database::new(&settings.database), btrfs.place.join("copy"));
    let before = btrfs.used();
    database.copy(Engine::Duckdb, &copy).await.unwrap();
    let taken = btrfs.used().saturating_sub(before);
    assert!(taken < size / 4, "{taken} of {size} bytes were written");
    assert_eq!(database.validate(Engine::Duckdb, &copy).await.unwrap()[0].rows, 2_000_000);
    // The whole of it, with the work directory beside the database.
    let work = format!("directory = {:?}", btrfs.place.join("work").display().to_string());
    let service = fixture.service_of("btrfs/hesocial.duckdb", &[("work", &work)]);
    assert_eq!(backup(succeeded(service.begin_backup(BackupKind::Manual).unwrap()).await).bytes, size);
}
