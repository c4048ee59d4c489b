//! The user that Postgres runs as when the launcher is root: Postgres refuses to be root itself.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context, bail};

/// A user of this machine without privileges.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct UnprivilegedUser {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl UnprivilegedUser {
    /// `None` when this process is not root and can run Postgres as it is; else the user `postgres`, or `nobody`.
    pub(crate) fn needed() -> anyhow::Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = fs::read_to_string("/etc/passwd").context("reading /etc/passwd")?;
        let user = Self::find(&users, "postgres").or_else(|| Self::find(&users, "nobody"));
        user.map(Some).context("Postgres cannot run as root, and there is neither a user postgres nor nobody")
    }

    fn find(users: &str, wanted: &str) -> Option<Self> {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| *name == wanted)?;
            let uid = fields.nth(1)?.parse().ok().filter(|uid| *uid != 0)?;
            let gid = fields.next()?.parse().ok()?;
            Some(Self { name: name.to_owned(), uid, gid })
        })
    }

    /// Makes sure that this user can get to `target`: every directory above it must let it pass. `ours` is opened for
    /// passing (mode +x for others) where it does not; directories above it belong to others and are left alone.
    pub(crate) fn ensure_reach(&self, target: &Path, ours: Option<&Path>) -> anyhow::Result<()> {
        for directory in target.ancestors().skip(1) {
            let metadata =
                fs::metadata(directory).with_context(|| format!("looking at {}", directory.display()))?;
            if self.may_pass(&metadata) {
                continue;
            }
            if ours == Some(directory) {
                let mode = fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o001);
                fs::set_permissions(directory, mode)
                    .with_context(|| format!("opening {}", directory.display()))?;
                continue;
            }
            bail!(
                "Postgres runs as the user {} because it cannot run as root, and that user cannot get to {}: {} does not \
                 let it pass. Use another directory, or allow it with: chmod o+x {}",
                self.name,
                target.display(),
                directory.display(),
                directory.display()
            );
        }
        Ok(())
    }

    fn may_pass(&self, directory: &fs::Metadata) -> bool {
        let execute = if directory.uid() == self.uid {
            0o100
        } else if directory.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        directory.mode() & execute != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name_and_root_is_never_taken() {
        let users =
            "root:x:0:0::/root:/bin/sh\npostgres2:x:9:9::/:/bin/sh\npostgres:x:101:104::/var/lib:/bin/bash\n";
        let user = UnprivilegedUser { name: "postgres".to_owned(), uid: 101, gid: 104 };
        assert_eq!(UnprivilegedUser::find(users, "postgres"), Some(user));
        assert_eq!(UnprivilegedUser::find(users, "nobody"), None);
        assert_eq!(UnprivilegedUser::find(users, "root"), None);
    }
}
