//! Restoring one file or directory into a project that people are working in.
//!
//! Two dangers. The project is the tenant's: a symbolic link on the way to the target, or one swapped in while
//! we look, would make a privileged host write anywhere. So every step goes from one open directory to the next
//! and follows no link, and the content is staged in a directory that is reached by its handle, not its name. And
//! a target written in place would be seen half-written, so the content is put there by one rename, with its
//! missing parent directories, if any, in the same rename.
//!
//! As with a whole restore, what is staged outlasts a crash for the next attempt, which looks at every byte of it, and so
//! does what was replaced, so that another attempt finds that nothing is left to do.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use domain_model::{ProjectPath, RESERVED_PREFIX};
use rustix::fs::{AtFlags, Gid, Mode, Stat, Uid};
use rustix::io::Errno;
use uuid::Uuid;

use crate::VolumeError;
use crate::btrfs::handle_path;
use crate::copy_into::open_staging;
use crate::deletion::{delete_at, names_in};
use crate::error::VolumeErrorKind;
use crate::exchange::Settled;
use crate::host_root::HostRoot;
use crate::journal::{Journal, Phase, Work};
use crate::operation_directory::OperationDirectory;
use crate::pair_walk::DIRECTORY;
use crate::rename::{Exchange, exchange, place};
use crate::whole_restore::nobody_writes_into;

/// What is being restored, in the staging directory inside the project.
const DOWNLOAD: &str = "download";
/// The same when it is complete.
const CONTENT: &str = "content";
/// Missing parent directories, made around the content before all are put in place together.
const PARENTS: &str = "parents";
/// How the names of old content begin that was moved away, where names cannot be exchanged.
const OLD: &str = "old-";
/// How often a target that others change between a look and a rename is tried again.
const MAX_TRIES: usize = 32;

/// What to do if the target of a path restore exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Conflict {
    /// Put the restored content in its place, all of it: a directory is replaced, not merged.
    Replace,
    /// Leave it as it is.
    Keep,
    /// Fail with `AlreadyExists`.
    Fail,
}

/// What became of the target of a path restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathOutcome {
    /// There was nothing; now the restored content is there.
    Created,
    /// The restored content has taken the place of what was there.
    Replaced,
    /// What was there is still there ([`Conflict::Keep`]).
    Kept,
}

/// A place inside the project's volume to restore one file or directory to. Dropping this without
/// [`HostRoot::discard_path`] leaves it for the next attempt, or for [`HostRoot::abandon`].
#[derive(Debug)]
pub struct StagedPath {
    /// Whether it is an earlier attempt's, with what it has restored.
    pub resumed: bool,
    project_dir: PathBuf,
    target: ProjectPath,
    content: PathBuf,
    volume: OwnedFd,
    staging: OwnedFd,
    directory: OperationDirectory,
}

impl StagedPath {
    /// A directory, missing yet or an earlier attempt's, in which the caller may make the content. Whoever writes into it
    /// holds a lock (`flock`) on it, or on the directories in it. The path is as that of the content.
    pub fn download_path(&self) -> PathBuf {
        self.content.with_file_name(DOWNLOAD)
    }

    /// Where the caller is to put the file, directory or symbolic link; nothing is there yet. The path goes by
    /// an open handle (`/proc/<pid>/fd/<n>/content`), which no tenant can redirect; it is good for this process
    /// and its children of the same user, as long as `self` lives.
    pub fn content_path(&self) -> &Path {
        &self.content
    }

    fn target_path(&self) -> PathBuf {
        self.project_dir.join(self.target.as_path())
    }
}

impl HostRoot {
    /// Makes a place to stage what the restore `op_id` will put at `target` in the files of `project`, or finds that of an
    /// earlier attempt. What is there may be half-written: the caller looks at every byte. What an earlier attempt has left
    /// in another state, or may still be writing to, is deleted.
    ///
    /// # Errors
    ///
    /// `NotFound` if the project has no files on this host; `InUse` if an earlier attempt is still at work.
    pub fn stage_path(
        &self,
        project: Uuid,
        op_id: Uuid,
        target: &ProjectPath,
    ) -> Result<StagedPath, VolumeError> {
        let project_dir = self.project_dir(project);
        let Some(volume) = self.open_project(project)? else {
            return Err(VolumeError::ProjectNotFound { project, path: project_dir });
        };
        if let Some(directory) = OperationDirectory::claim_existing(&self.staging(), op_id)? {
            match staging_of_an_earlier_attempt(&directory, project, target, &volume)
                .map_err(VolumeError::io("look what is staged in", &project_dir))?
            {
                Some(staging) if nobody_downloads_into(&handle_path(&staging).join(DOWNLOAD))? => {
                    let content = handle_path(&staging).join(CONTENT);
                    let target = target.clone();
                    return Ok(StagedPath {
                        resumed: true,
                        project_dir,
                        target,
                        content,
                        volume,
                        staging,
                        directory,
                    });
                }
                _ => self.settle(directory).map(drop)?,
            }
        }
        let directory = self.claim_empty_staging(op_id)?;
        let work = Work::Path { target: target.clone(), staging_inode: None, content_inode: None };
        let mut journal = Journal::new(project, work);
        journal.write(&directory)?;
        self.steps.done("the journal of a path restore is begun")?;
        let name = staging_name(op_id);
        let shown = project_dir.join(staging_name_text(op_id));
        // The name is reserved, so whatever has it is an earlier attempt's whose journal was lost with its disk.
        delete_at(&self.btrfs, volume.as_fd(), &name, &shown)?;
        rustix::fs::mkdirat(&volume, &name, Mode::RWXU)
            .map_err(VolumeError::io("create the directory", &shown))?;
        self.steps.done("the staging directory in the project is made")?;
        let staging = rustix::fs::openat(&volume, &name, DIRECTORY, Mode::empty())
            .map_err(VolumeError::io("open the directory", &shown))?;
        let inode = rustix::fs::fstat(&staging).map_err(VolumeError::io("look at", &shown))?.st_ino;
        journal.work = Work::Path { target: target.clone(), staging_inode: Some(inode), content_inode: None };
        journal.write(&directory)?;
        self.steps.done("the staging directory of a path is in the journal")?;
        let content = handle_path(&staging).join(CONTENT);
        let target = target.clone();
        Ok(StagedPath { resumed: false, project_dir, target, content, volume, staging, directory })
    }

    /// Makes the content of what was downloaded: of all of it, or of what is in it under this name. It is durable then: making it
    /// so may take minutes, in which a crash is no reason to begin anew.
    ///
    /// # Errors
    ///
    /// If it is not there, or cannot be stored.
    pub fn complete_path(&self, staged: &StagedPath, name: Option<&OsStr>) -> Result<(), VolumeError> {
        let all = staged.download_path();
        let downloaded = name.map_or_else(|| all.clone(), |name| all.join(name));
        rustix::fs::syncfs(&staged.staging).map_err(VolumeError::io("sync", &downloaded))?;
        std::fs::rename(&downloaded, &staged.content).map_err(VolumeError::io("complete", &downloaded))?;
        self.steps.done("the content of a path is complete")
    }

    /// Puts the staged content at its target, in one step, with the parent directories that are missing.
    /// Calling it again after it was done is fine.
    ///
    /// # Errors
    ///
    /// `NotFound` if nothing was staged; `AlreadyExists` under [`Conflict::Fail`]; `InvalidPath` if a parent of the
    /// target is a symbolic link, a file or on another volume: the target is then as it was. After any other error the
    /// content may be in place; [`HostRoot::was_exchanged`] tells.
    pub fn exchange_path(&self, staged: &StagedPath, conflict: Conflict) -> Result<PathOutcome, VolumeError> {
        let directory = &staged.directory;
        let not_staged =
            |path: &Path| VolumeError::NotStaged { op_id: directory.op_id(), path: path.to_owned() };
        let mut journal = Journal::read(directory)?.ok_or_else(|| not_staged(directory.path()))?;
        let staging_inode = match &journal.work {
            Work::Path { staging_inode, .. } => *staging_inode,
            _ => None,
        };
        let content_inode = match &journal.work {
            Work::Path { content_inode: Some(inode), .. } => *inode,
            _ => {
                let content = look(staged.staging.as_fd(), CONTENT, &staged.content)?;
                let inode = content.ok_or_else(|| not_staged(&staged.content))?.st_ino;
                // What it holds is durable since it was complete; now its name is.
                rustix::fs::fsync(&staged.staging).map_err(VolumeError::io("sync", &staged.content))?;
                let target = staged.target.clone();
                journal.work = Work::Path { target, staging_inode, content_inode: Some(inode) };
                journal.phase = Phase::Exchanging;
                journal.write(directory)?;
                self.steps.done("the exchange of a path is in the journal")?;
                inode
            }
        };
        let outcome = self.put_in_place(staged, content_inode, conflict)?;
        if outcome != PathOutcome::Kept {
            self.note_exchanged(directory, &mut journal)?;
        }
        Ok(outcome)
    }

    /// Deletes what is staged: after [`HostRoot::exchange_path`] what was replaced, before it the new content. Where another
    /// attempt is to find what this one has done, that is left to [`HostRoot::abandon`].
    pub fn discard_path(&self, staged: StagedPath) -> Result<(), VolumeError> {
        self.settle(staged.directory).map(drop)
    }

    fn put_in_place(
        &self,
        staged: &StagedPath,
        content_inode: u64,
        conflict: Conflict,
    ) -> Result<PathOutcome, VolumeError> {
        let target_path = staged.target_path();
        let staging = staged.staging.as_fd();
        let failed = |errno: Errno| match errno {
            Errno::XDEV => VolumeError::OtherVolume { path: target_path.clone() },
            errno => VolumeError::io("put restored content at", &target_path)(errno),
        };
        let outcome = || -> Result<PathOutcome, VolumeError> {
            let is_old = |name: &CString| ![PARENTS, DOWNLOAD].map(str::as_bytes).contains(&name.as_bytes());
            let replaced = names_in(staging).map_err(failed)?.iter().any(is_old);
            Ok(if replaced { PathOutcome::Replaced } else { PathOutcome::Created })
        };
        // An earlier call may have done it.
        if !is_staged(&staged.staging, content_inode).map_err(failed)? {
            return outcome();
        }
        for attempt in 0..MAX_TRIES {
            let (parent, missing) = descend(&staged.volume, &staged.target, &staged.project_dir)?;
            let placed = match missing.split_first() {
                Some((last, [])) => match (look(parent.as_fd(), last, &target_path)?, conflict) {
                    (None, _) => place(staging, CONTENT, &parent, *last),
                    (Some(_), Conflict::Keep) => return Ok(PathOutcome::Kept),
                    (Some(_), Conflict::Fail) => return Err(VolumeError::TargetExists { path: target_path }),
                    (Some(_), Conflict::Replace) => {
                        let exchanged = match self.use_rename_exchange {
                            true => exchange(staging, CONTENT, &parent, *last),
                            false => Ok(Exchange::Unsupported),
                        };
                        match exchanged {
                            Ok(Exchange::Done) => Ok(()),
                            Err(errno) => Err(errno),
                            Ok(Exchange::Unsupported) => {
                                let old = format!("{OLD}{attempt}");
                                let moved = place(&parent, *last, staging, old.as_str());
                                self.steps.done("the old content of a path is moved away")?;
                                // Its place is free now, unless somebody is faster.
                                moved.and(Err(Errno::EXIST))
                            }
                        }
                    }
                },
                None | Some(_) => self.place_with_parents(staged, parent.as_fd(), &missing),
            };
            match placed {
                // Whatever becomes of it from now on is the tenant's doing.
                Ok(()) => {
                    self.steps.done("a path has changed place")?;
                    rustix::fs::fsync(&parent).map_err(failed)?;
                    rustix::fs::fsync(staging).map_err(failed)?;
                    return outcome();
                }
                // Look again; what was seen may have been changed by the tenant in between.
                Err(Errno::NOENT | Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(failed(Errno::BUSY))
    }

    /// Makes the parent directories `missing` (all but its last) around the content, and puts them into `parent`
    /// together. `EXIST` if the first of them has come to exist.
    fn place_with_parents(
        &self,
        staged: &StagedPath,
        parent: BorrowedFd<'_>,
        missing: &[&str],
    ) -> Result<(), Errno> {
        let like = rustix::fs::fstat(parent)?;
        let staging = staged.staging.as_fd();
        let make = |directory: BorrowedFd<'_>, name: &str| -> Result<OwnedFd, Errno> {
            match rustix::fs::mkdirat(directory, name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            rustix::fs::openat(directory, name, DIRECTORY, Mode::empty())
        };
        let parents = make(staging, PARENTS)?;
        let mut innermost = parents.as_fd().try_clone_to_owned().map_err(|error| errno_of(&error))?;
        let (last, directories) = missing.split_last().ok_or(Errno::INVAL)?;
        for name in directories {
            innermost = make(innermost.as_fd(), name)?;
            take_after(innermost.as_fd(), &like)?;
        }
        rustix::fs::renameat(staging, CONTENT, &innermost, *last)?;
        let first = directories.first().ok_or(Errno::INVAL)?;
        let placed = place(&parents, *first, parent, *first);
        if placed.is_err() {
            // Parents that are there say that the content is among them.
            rustix::fs::renameat(&innermost, *last, staging, CONTENT)?;
            for depth in (0..directories.len()).rev() {
                let made: PathBuf = directories[..=depth].iter().collect();
                rustix::fs::unlinkat(&parents, &made, AtFlags::REMOVEDIR)?;
            }
        }
        placed
    }

    /// Ends the path restore that `journal` describes, and deletes what is staged of it or was replaced.
    pub(crate) fn settle_path(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<Settled, VolumeError> {
        self.finish_path(directory, journal)?;
        if let Some(volume) = self.open_project(journal.project)? {
            let op_id = directory.op_id();
            let project_dir = self.project_dir(journal.project);
            let delete = |name: &CStr| {
                let shown = project_dir.join(OsStr::from_bytes(name.to_bytes()));
                delete_at(&self.btrfs, volume.as_fd(), name, &shown)
            };
            let (staged, given_up) = (staging_name(op_id), given_up_name(op_id));
            delete(&given_up)?;
            if journal.phase != Phase::Exchanged {
                self.keep_what_was_moved_away(&volume, op_id, journal)?;
                // From here on it says nothing that content is missing where it was staged.
                match rustix::fs::renameat(&volume, &staged, &volume, &given_up) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => {
                        return Err(VolumeError::io("give up what is staged in", &project_dir)(errno));
                    }
                }
                self.steps.done("what is staged of a path is given up")?;
                delete(&given_up)?;
            }
            delete(&staged)?;
            self.steps.done("the staging directory in the project is deleted")?;
        }
        Ok(if journal.phase == Phase::Exchanged { Settled::Finished } else { Settled::RolledBack })
    }

    /// Puts old content, which was moved away for content that has not come, into the project's top directory: its place is
    /// taken, or cannot be reached.
    fn keep_what_was_moved_away(
        &self,
        volume: &OwnedFd,
        op_id: Uuid,
        journal: &Journal,
    ) -> Result<(), VolumeError> {
        let Work::Path { target, staging_inode, .. } = &journal.work else { return Ok(()) };
        let project_dir = self.project_dir(journal.project);
        let failed = |errno: Errno| VolumeError::io("keep what was moved away in", &project_dir)(errno);
        let Some(staging) = open_staging(volume, op_id, *staging_inode).map_err(failed)? else {
            return Ok(());
        };
        for (number, old) in names_in(staging.as_fd()).map_err(failed)?.iter().enumerate() {
            if old.as_bytes().starts_with(OLD.as_bytes()) {
                let name = target.components().last().unwrap_or_default();
                let kept = format!("{name}.before-restore-{op_id}-{number}");
                place(&staging, old.as_c_str(), volume, kept.as_str()).map_err(failed)?;
                tracing::warn!(op.id = %op_id, name = kept, "what a restore had moved away is kept");
            }
        }
        Ok(())
    }

    /// Takes a path restore in the phase `Exchanging` to `Exchanged`, if its content is in place. A target is only ever
    /// touched by renames that leave it old or new, but for one case, which is finished here: without an exchange of names,
    /// the old content is moved away first. What is not staged any more was put in place, whatever became of it since.
    pub(crate) fn finish_path(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<(), VolumeError> {
        let (Phase::Exchanging, Work::Path { target, staging_inode, content_inode: Some(content_inode) }) =
            (journal.phase, &journal.work)
        else {
            return Ok(());
        };
        let project_dir = self.project_dir(journal.project);
        let target_path = project_dir.join(target.as_path());
        let failed =
            |errno: Errno| VolumeError::io("finish putting restored content at", &target_path)(errno);
        let Some(volume) = self.open_project(journal.project)? else { return Ok(()) };
        let Some(staging) = open_staging(&volume, directory.op_id(), *staging_inode).map_err(failed)? else {
            return Ok(());
        };
        let names = names_in(staging.as_fd()).map_err(failed)?;
        let moved_away = names.iter().any(|name| name.as_bytes().starts_with(OLD.as_bytes()));
        let (parent, missing) = match descend(&volume, target, &project_dir) {
            Ok((parent, missing)) => (Some(parent), missing),
            // Somebody has put something else on the way to the target.
            Err(VolumeError::NotADirectory { .. } | VolumeError::OtherVolume { .. }) => (None, Vec::new()),
            Err(error) => return Err(error),
        };
        if is_staged(&staging, *content_inode).map_err(failed)? {
            let (true, Some(parent), [last]) = (moved_away, &parent, &missing[..]) else { return Ok(()) };
            match place(&staging, CONTENT, parent, *last) {
                Ok(()) => {}
                // Somebody has made it anew, or it is among the parents that were made around it.
                Err(Errno::EXIST | Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(failed(errno)),
            }
        }
        for changed in parent.iter().chain([&staging]) {
            rustix::fs::fsync(changed).map_err(failed)?;
        }
        self.steps.done("the exchange of a path is finished")?;
        self.note_exchanged(directory, journal)
    }

    fn note_exchanged(
        &self,
        directory: &OperationDirectory,
        journal: &mut Journal,
    ) -> Result<(), VolumeError> {
        journal.phase = Phase::Exchanged;
        match journal.write(directory) {
            // That its content is not staged any more says the same, and what was replaced can go, which makes room.
            Err(error) if error.kind() == VolumeErrorKind::NoSpace => {}
            written => written?,
        }
        self.steps.done("the end of the exchange of a path is in the journal")
    }

    /// The root directory of a project's files; `None` if there is none.
    pub(crate) fn open_project(&self, project: Uuid) -> Result<Option<OwnedFd>, VolumeError> {
        let path = self.project_dir(project);
        match rustix::fs::open(&path, DIRECTORY, Mode::empty()) {
            Ok(volume) => Ok(Some(volume)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(VolumeError::io("open the directory", &path)(errno)),
        }
    }
}

/// What an earlier attempt of the same restore has staged, if nothing of it is complete and nobody else can have written
/// to it: a tenant can move the directory away, and put another in its place, but not one of ours.
fn staging_of_an_earlier_attempt(
    directory: &OperationDirectory,
    project: Uuid,
    target: &ProjectPath,
    volume: &OwnedFd,
) -> Result<Option<OwnedFd>, std::io::Error> {
    // One that does not read is left to whoever ends it.
    let Ok(Some(journal)) = Journal::read(directory) else { return Ok(None) };
    let Work::Path { target: staged_for, staging_inode: inode @ Some(_), .. } = &journal.work else {
        return Ok(None);
    };
    if journal.phase != Phase::Staged || journal.project != project || staged_for != target {
        return Ok(None);
    }
    let Some(staging) = open_staging(volume, directory.op_id(), *inode)? else { return Ok(None) };
    let found = rustix::fs::fstat(&staging)?;
    let is_ours = found.st_uid == rustix::process::geteuid().as_raw() && found.st_mode & 0o077 == 0;
    let only_downloaded =
        names_in(staging.as_fd())?.iter().all(|name| name.as_bytes() == DOWNLOAD.as_bytes());
    Ok((is_ours && only_downloaded).then_some(staging))
}

/// Whether the directory is there, and nobody holds a lock on it or on those in it.
fn nobody_downloads_into(download: &Path) -> Result<bool, VolumeError> {
    if !nobody_writes_into(download)? {
        return Ok(false);
    }
    let failed = |error| VolumeError::io("list", download)(error);
    for entry in std::fs::read_dir(download).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir() && !nobody_writes_into(&entry.path())? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whether the content is still where it was staged, or among the parents that were made around it.
fn is_staged(staging: &OwnedFd, content_inode: u64) -> Result<bool, Errno> {
    match rustix::fs::statat(staging, CONTENT, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if found.st_ino == content_inode => return Ok(true),
        Ok(_) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    match rustix::fs::openat(staging, PARENTS, DIRECTORY, Mode::empty()) {
        Ok(parents) => Ok(!names_in(parents.as_fd())?.is_empty()),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Follows the parents of `target` as far as they exist: the last open directory, and the components from there
/// on, the target's own name last (so never none).
fn descend<'a>(
    volume: &OwnedFd,
    target: &'a ProjectPath,
    project_dir: &Path,
) -> Result<(OwnedFd, Vec<&'a str>), VolumeError> {
    let mut shown = project_dir.to_owned();
    let mut directory =
        volume.try_clone().map_err(VolumeError::io::<std::io::Error>("open the directory", &shown))?;
    let device = rustix::fs::fstat(&directory).map_err(VolumeError::io("look at", &shown))?.st_dev;
    let mut components: Vec<&str> = target.components().collect();
    while components.len() > 1 {
        let name = components[0];
        shown.push(name);
        let next = match rustix::fs::openat(&directory, name, DIRECTORY, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOENT) => break,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let link = look(directory.as_fd(), name, &shown)?
                    .is_some_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink());
                let found = if link { "a symbolic link" } else { "not a directory" };
                return Err(VolumeError::NotADirectory { path: shown, found });
            }
            Err(errno) => return Err(VolumeError::io("open the directory", &shown)(errno)),
        };
        if rustix::fs::fstat(&next).map_err(VolumeError::io("look at", &shown))?.st_dev != device {
            return Err(VolumeError::OtherVolume { path: shown });
        }
        directory = next;
        components.remove(0);
    }
    Ok((directory, components))
}

/// What `name` in an open directory is, following no link; `None` if there is nothing.
fn look(directory: BorrowedFd<'_>, name: &str, shown: &Path) -> Result<Option<Stat>, VolumeError> {
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(VolumeError::io("look at", shown)(errno)),
    }
}

/// Gives a new parent directory the owner and permissions of the directory it will be in.
fn take_after(directory: BorrowedFd<'_>, like: &Stat) -> Result<(), Errno> {
    match rustix::fs::fchown(directory, Some(Uid::from_raw(like.st_uid)), Some(Gid::from_raw(like.st_gid))) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fchmod(directory, Mode::from_raw_mode(like.st_mode))
}

pub(crate) fn staging_name_text(op_id: Uuid) -> String {
    format!("{RESERVED_PREFIX}{op_id}")
}

/// What is staged is called so while it is deleted without having been put in place.
fn given_up_name(op_id: Uuid) -> CString {
    CString::new(format!("{}-given-up", staging_name_text(op_id))).expect("it holds no NUL")
}

pub(crate) fn staging_name(op_id: Uuid) -> CString {
    CString::new(staging_name_text(op_id)).expect("a prefix and a uuid hold no NUL")
}

fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::os::unix::fs::symlink;

    use super::*;
    use crate::test_support::{Crash, fill, is_empty, mark_of, on_each_filesystem};
    use crate::{Filesystem, VolumeErrorKind};

    fn project(root: &HostRoot) -> Uuid {
        let project = Uuid::new_v4();
        let volume = root.ensure_volume(project).unwrap();
        std::fs::create_dir(volume.project_dir.join("work")).unwrap();
        fill(&volume.project_dir.join("work/tree"), "old");
        std::fs::write(volume.project_dir.join("work/file"), "old").unwrap();
        project
    }

    fn restore_tree(
        root: &HostRoot,
        project: Uuid,
        target: &str,
        conflict: Conflict,
    ) -> Result<PathOutcome, VolumeError> {
        let staged = root.stage_path(project, Uuid::now_v7(), &target.parse().unwrap())?;
        fill(staged.content_path(), "new");
        let outcome = root.exchange_path(&staged, conflict);
        if !matches!(&outcome, Err(VolumeError::Io { .. })) {
            root.discard_path(staged)?;
        }
        outcome
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_directory_is_replaced_kept_or_refused_as_asked() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let id = project(&root);
            let tree = root.project_dir(id).join("work/tree");
            assert_eq!(restore_tree(&root, id, "work/tree", Conflict::Keep).unwrap(), PathOutcome::Kept);
            assert_eq!(mark_of(&tree), "old");
            let refused = restore_tree(&root, id, "work/tree", Conflict::Fail).unwrap_err();
            assert_eq!(refused.kind(), VolumeErrorKind::AlreadyExists);
            assert_eq!(mark_of(&tree), "old");
            assert_eq!(
                restore_tree(&root, id, "work/tree", Conflict::Replace).unwrap(),
                PathOutcome::Replaced
            );
            assert_eq!(mark_of(&tree), "new");
            assert_eq!(
                restore_tree(&root, id, "work/file", Conflict::Replace).unwrap(),
                PathOutcome::Replaced
            );
            assert_eq!(mark_of(&root.project_dir(id).join("work/file")), "new");
            assert_eq!(names(&root.project_dir(id)), ["work"], "nothing is left staged");
            assert!(is_empty(&root.staging()));
        });
    }

    #[test]
    fn missing_parent_directories_come_with_the_content_and_take_after_their_parent() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let id = project(&root);
            let work = root.project_dir(id).join("work");
            rustix::fs::chmod(&work, Mode::from_raw_mode(0o750)).unwrap();
            for conflict in [Conflict::Keep, Conflict::Fail, Conflict::Replace] {
                let target = format!("work/a-{conflict:?}/b/c");
                assert_eq!(restore_tree(&root, id, &target, conflict).unwrap(), PathOutcome::Created);
                assert_eq!(mark_of(&root.project_dir(id).join(&target)), "new");
                let parent = work.join(format!("a-{conflict:?}/b")).metadata().unwrap();
                assert_eq!(std::os::unix::fs::MetadataExt::mode(&parent) & 0o7777, 0o750);
            }
            assert_eq!(restore_tree(&root, id, "top", Conflict::Fail).unwrap(), PathOutcome::Created);
            assert_eq!(names(&root.project_dir(id)), ["top", "work"]);
        });
    }

    #[test]
    fn a_single_file_and_a_symbolic_link_can_be_put_in_place() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let id = project(&root);
            let target: ProjectPath = "work/file".parse().unwrap();
            let staged = root.stage_path(id, Uuid::now_v7(), &target).unwrap();
            std::fs::write(staged.content_path(), "new").unwrap();
            assert_eq!(root.exchange_path(&staged, Conflict::Replace).unwrap(), PathOutcome::Replaced);
            assert_eq!(
                root.exchange_path(&staged, Conflict::Replace).unwrap(),
                PathOutcome::Replaced,
                "again is fine"
            );
            root.discard_path(staged).unwrap();
            assert_eq!(std::fs::read_to_string(root.project_dir(id).join("work/file")).unwrap(), "new");

            let staged = root.stage_path(id, Uuid::now_v7(), &target).unwrap();
            symlink("/nowhere", staged.content_path()).unwrap();
            root.exchange_path(&staged, Conflict::Replace).unwrap();
            root.discard_path(staged).unwrap();
            assert_eq!(root.project_dir(id).join("work/file").read_link().unwrap(), Path::new("/nowhere"));
            // A link at the target itself is replaced, not followed.
            restore_tree(&root, id, "work/file", Conflict::Replace).unwrap();
            assert_eq!(mark_of(&root.project_dir(id).join("work/file")), "new");
        });
    }

    #[test]
    fn a_link_on_the_way_is_never_followed() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (id, victim) = (project(&root), project(&root));
            symlink(root.project_dir(victim), root.project_dir(id).join("out")).unwrap();
            symlink("work", root.project_dir(id).join("inside")).unwrap();
            for target in ["out/work/tree", "out/new", "inside/tree", "work/file/x"] {
                let error = restore_tree(&root, id, target, Conflict::Replace).unwrap_err();
                assert_eq!(error.kind(), VolumeErrorKind::InvalidPath, "{target}: {error}");
            }
            assert_eq!(mark_of(&root.project_dir(victim).join("work/tree")), "old");
            assert_eq!(names(&root.project_dir(victim)), ["work"]);
            assert!(is_empty(&root.staging()));
        });
    }

    #[test]
    fn a_staging_directory_that_the_tenant_moves_away_or_replaces_leads_nowhere() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (id, victim) = (project(&root), project(&root));
            let op_id = Uuid::now_v7();
            let staged = root.stage_path(id, op_id, &"work/tree".parse().unwrap()).unwrap();
            let staging = root.project_dir(id).join(staging_name_text(op_id));
            std::fs::rename(&staging, root.project_dir(id).join("mine")).unwrap();
            symlink(root.project_dir(victim), &staging).unwrap();
            fill(staged.content_path(), "new");
            root.exchange_path(&staged, Conflict::Replace).unwrap();
            root.discard_path(staged).unwrap();
            assert_eq!(mark_of(&root.project_dir(id).join("work/tree")), "new");
            assert_eq!(mark_of(&root.project_dir(victim).join("work/tree")), "old");
            assert_eq!(names(&root.project_dir(victim)), ["work"]);
        });
    }

    #[test]
    fn a_target_in_a_nested_subvolume_is_refused() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            if root.filesystem() == Filesystem::Plain {
                return;
            }
            let id = project(&root);
            root.btrfs.create_subvolume(&root.project_dir(id).join("nested")).unwrap();
            let error = restore_tree(&root, id, "nested/tree", Conflict::Replace).unwrap_err();
            assert_eq!(error.kind(), VolumeErrorKind::InvalidPath, "{error}");
        });
    }

    #[test]
    fn a_project_without_files_is_not_found() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let error = restore_tree(&root, Uuid::new_v4(), "a", Conflict::Replace).unwrap_err();
            assert_eq!(error.kind(), VolumeErrorKind::NotFound);
            assert!(is_empty(&root.staging()));
        });
    }

    /// What a start of the host does, and then the registry's word that there is no other attempt.
    fn recover_and_abandon(root: &HostRoot) -> Result<(), VolumeError> {
        let report = root.recover().unwrap();
        assert!(report.in_use.is_empty(), "{report:?}");
        if let Some((_, error)) = report.failed.into_iter().next() {
            return Err(error);
        }
        root.kept_for_another_attempt()
            .unwrap()
            .into_iter()
            .try_for_each(|op_id| root.abandon(op_id).map(drop))
    }

    /// A crash after every step of a path restore, and then one after every step of its recovery.
    #[test]
    fn a_crash_at_any_step_leaves_after_recovery_the_old_or_the_new_target_and_nothing_else() {
        for target in ["work/tree", "work/made/up/tree"] {
            on_each_filesystem(|new_root| {
                let (mut old, mut new) = (0, 0);
                for restore_steps in 1.. {
                    let mut restore_ended = false;
                    for recovery_steps in 1.. {
                        let root = new_root();
                        let id = project(&root);
                        let stopping = Crash::after(&root, restore_steps);
                        restore_ended =
                            !Crash::happened(&restore_tree(&stopping, id, target, Conflict::Replace));
                        let first = recover_and_abandon(&Crash::after(&root, recovery_steps));
                        let interrupted = Crash::happened(&first);
                        recover_and_abandon(&root).unwrap();
                        assert!(is_empty(&root.staging()));
                        assert_eq!(names(&root.project_dir(id)), ["work"]);
                        let tree = root.project_dir(id).join(target);
                        let made_up = target == "work/made/up/tree";
                        if !tree.exists() {
                            assert!(made_up);
                            assert_eq!(names(&root.project_dir(id).join("work")), ["file", "tree"]);
                            old += 1;
                        } else if mark_of(&tree) == "new" {
                            new += 1;
                        } else {
                            assert!(!made_up);
                            old += 1;
                        }
                        if !interrupted {
                            break;
                        }
                    }
                    if restore_ended {
                        break;
                    }
                }
                assert!(old > 3 && new > 3, "{old} {new}");
            });
        }
    }

    /// An attempt as a host makes it; `Ok(true)` where it has gone on with what was there.
    fn attempt(
        root: &HostRoot,
        project: Uuid,
        op_id: Uuid,
        (target, conflict): (&str, Conflict),
    ) -> Result<bool, VolumeError> {
        let staged = root.stage_path(project, op_id, &target.parse().unwrap())?;
        let download = staged.download_path();
        assert_eq!(staged.resumed, download.exists());
        if !download.join("tree").exists() {
            fill(&download.join("tree"), "new");
        }
        root.steps.done("it is downloaded")?;
        root.complete_path(&staged, Some("tree".as_ref()))?;
        root.exchange_path(&staged, conflict)?;
        Ok(staged.resumed)
    }

    /// A crash after every step of an attempt, after every step of the next one, and then a third.
    #[test]
    fn after_a_crash_at_any_step_another_attempt_goes_on_or_finds_it_done() {
        for what in [("work/tree", Conflict::Replace), ("work/made/up/tree", Conflict::Fail)] {
            on_each_filesystem(|new_root| {
                let (mut resumed, mut anew, mut done) = (0, 0, 0);
                for steps in 1.. {
                    let mut crashed = false;
                    for steps_of_the_next in 1.. {
                        let root = new_root();
                        let (id, op_id) = (project(&root), Uuid::now_v7());
                        let tree = root.project_dir(id).join(what.0);
                        let moved = root.project_dir(id).join("work/moved");
                        // What is in place may be moved or edited at once; it is done all the same.
                        let is_done = || {
                            let is_in_place = tree.exists() && mark_of(&tree) == "new";
                            if is_in_place {
                                std::fs::rename(&tree, &moved).unwrap();
                            }
                            let report = root.recover().unwrap();
                            assert!(report.failed.is_empty() && report.in_use.is_empty(), "{report:?}");
                            let is_done = root.was_exchanged(id, op_id).unwrap();
                            assert!(is_done || !is_in_place);
                            assert!(!root.was_exchanged(Uuid::new_v4(), op_id).unwrap());
                            if is_in_place {
                                std::fs::rename(&moved, &tree).unwrap();
                            }
                            is_done
                        };
                        crashed = Crash::happened(&attempt(&Crash::after(&root, steps), id, op_id, what));
                        let mut crashed_again = false;
                        if is_done() {
                            done += 1;
                        } else {
                            let next = attempt(&Crash::after(&root, steps_of_the_next), id, op_id, what);
                            crashed_again = Crash::happened(&next);
                            if is_done() {
                                done += 1;
                            } else if attempt(&root, id, op_id, what).unwrap() {
                                resumed += 1;
                            } else {
                                anew += 1;
                            }
                        }
                        assert_eq!(mark_of(&tree), "new");
                        assert!(root.abandon(op_id).unwrap());
                        assert_eq!(mark_of(&tree), "new");
                        assert!(is_empty(&root.staging()));
                        assert_eq!(names(&root.project_dir(id)), ["work"]);
                        if !crashed_again {
                            break;
                        }
                    }
                    if !crashed {
                        break;
                    }
                }
                assert!(resumed >= 3 && anew >= 3 && done >= 3, "{resumed} {anew} {done}");
            });
        }
    }

    #[test]
    fn what_is_being_given_up_is_never_taken_for_done() {
        on_each_filesystem(|new_root| {
            let mut tried = 0;
            for steps in 1.. {
                let root = new_root();
                let (id, op_id) = (project(&root), Uuid::now_v7());
                let staged = root.stage_path(id, op_id, &"work/tree".parse().unwrap()).unwrap();
                fill(staged.content_path(), "new");
                assert_eq!(root.exchange_path(&staged, Conflict::Keep).unwrap(), PathOutcome::Kept);
                let crashed = Crash::happened(&Crash::after(&root, steps).discard_path(staged));
                // A deletion has steps of its own.
                for name in [staging_name(op_id), given_up_name(op_id)] {
                    let content = root.project_dir(id).join(name.to_str().unwrap()).join(CONTENT);
                    if content.exists() {
                        std::fs::remove_dir_all(&content).unwrap();
                        tried += 1;
                    }
                }
                root.recover().unwrap();
                assert!(!root.was_exchanged(id, op_id).unwrap());
                assert_eq!(mark_of(&root.project_dir(id).join("work/tree")), "old");
                root.abandon(op_id).unwrap();
                assert_eq!(names(&root.project_dir(id)), ["work"]);
                if !crashed {
                    break;
                }
            }
            assert!(tried > 0);
        });
    }

    #[test]
    fn old_content_that_was_moved_away_for_nothing_is_kept() {
        on_each_filesystem(|new_root| {
            let mut kept = 0;
            for steps in 1.. {
                let root = new_root();
                let (id, op_id) = (project(&root), Uuid::now_v7());
                let what = ("work/tree", Conflict::Replace);
                let crashed = Crash::happened(&attempt(&Crash::after(&root, steps), id, op_id, what));
                let tree = root.project_dir(id).join("work/tree");
                if !tree.exists() {
                    // Moved away; and somebody is faster, or cuts off the way.
                    fill(&tree, "mine");
                    if steps % 2 == 0 {
                        std::fs::rename(root.project_dir(id).join("work"), root.project_dir(id).join("was"))
                            .unwrap();
                        symlink("was", root.project_dir(id).join("work")).unwrap();
                    }
                    root.recover().unwrap();
                    assert!(!root.was_exchanged(id, op_id).unwrap());
                    assert!(root.abandon(op_id).unwrap());
                    let names = names(&root.project_dir(id));
                    let old = names.iter().find(|name| name.starts_with("tree.before-restore-")).unwrap();
                    assert_eq!(mark_of(&root.project_dir(id).join(old)), "old");
                    assert_eq!(mark_of(&tree), "mine");
                    assert!(!names.iter().any(|name| name.starts_with(RESERVED_PREFIX)), "{names:?}");
                    kept += 1;
                }
                if !crashed {
                    break;
                }
            }
            assert_eq!(kept > 0, !new_root().use_rename_exchange);
        });
    }

    #[test]
    fn what_somebody_may_still_be_writing_to_is_not_gone_on_with() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (id, op_id, target) = (project(&root), Uuid::now_v7(), "work/tree".parse().unwrap());
            for locked in ["", "project"] {
                let staged = root.stage_path(id, op_id, &target).unwrap();
                std::fs::create_dir_all(staged.download_path().join("project")).unwrap();
                let writer = std::fs::File::open(staged.download_path().join(locked)).unwrap();
                drop(staged);
                assert!(root.stage_path(id, op_id, &target).unwrap().resumed);
                rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
                assert!(!root.stage_path(id, op_id, &target).unwrap().resumed, "{locked}");
            }
        });
    }

    #[test]
    fn what_a_tenant_has_put_in_the_place_of_what_is_staged_is_not_gone_on_with() {
        on_each_filesystem(|new_root| {
            let root = new_root();
            let (id, op_id, target) = (project(&root), Uuid::now_v7(), "work/tree".parse().unwrap());
            let staging = root.project_dir(id).join(staging_name_text(op_id));
            let download = || {
                let staged = root.stage_path(id, op_id, &target).unwrap();
                std::fs::create_dir_all(staged.download_path()).unwrap();
                staged
            };
            drop(download());
            assert!(download().resumed);
            std::fs::rename(&staging, root.project_dir(id).join("mine")).unwrap();
            std::fs::create_dir_all(staging.join(DOWNLOAD)).unwrap();
            assert!(!download().resumed);
            // What others may write to, and what is for another target or project.
            rustix::fs::chmod(&staging, Mode::from_raw_mode(0o770)).unwrap();
            assert!(!download().resumed);
            assert!(!root.stage_path(id, op_id, &"work/other".parse().unwrap()).unwrap().resumed);
            drop(download());
            let other = project(&root);
            assert!(!root.stage_path(other, op_id, &target).unwrap().resumed);
        });
    }
}
