//! The two encodings between the kernel's view of a file and restic's: modes with Go's bits, and extended
//! attributes.

use std::io;
use std::path::Path;

use rustic_core::repofile::Metadata;
use rustix::io::Errno;

const GO_DIRECTORY: u32 = 1 << 31;
const GO_SYMLINK: u32 = 1 << 27;
const GO_DEVICE: u32 = 1 << 26;
const GO_FIFO: u32 = 1 << 25;
const GO_SOCKET: u32 = 1 << 24;
const GO_SETUID: u32 = 1 << 23;
const GO_SETGID: u32 = 1 << 22;
const GO_CHARACTER_DEVICE: u32 = 1 << 21;
const GO_STICKY: u32 = 1 << 20;

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// The mode of a file as Go, and therefore restic, writes it.
pub(crate) fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => GO_DIRECTORY,
        0o120_000 => GO_SYMLINK,
        0o060_000 => GO_DEVICE,
        0o020_000 => GO_DEVICE | GO_CHARACTER_DEVICE,
        0o010_000 => GO_FIFO,
        0o140_000 => GO_SOCKET,
        _ => 0,
    };
    let special = [(SETUID, GO_SETUID), (SETGID, GO_SETGID), (STICKY, GO_STICKY)];
    special.iter().filter(|(unix, _)| mode & unix != 0).fold(mode & 0o777 | kind, |mode, (_, go)| mode | go)
}

/// The twelve permission bits of a mode that Go wrote.
pub(crate) fn permissions(go_mode: u32) -> u32 {
    let special = [(SETUID, GO_SETUID), (SETGID, GO_SETGID), (STICKY, GO_STICKY)];
    special.iter().filter(|(_, go)| go_mode & go != 0).fold(go_mode & 0o777, |mode, (unix, _)| mode | unix)
}

/// The extended attributes of a file (of the link itself, where it is one), sorted by name.
pub(crate) fn extended_attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut attributes = Vec::new();
    for name in names {
        let Some(value) = xattr::get(path, &name)? else {
            continue; // removed in between
        };
        let name = name.into_string().map_err(|name| {
            io::Error::other(format!("the name of its extended attribute {} is not UTF-8", name.display()))
        })?;
        attributes.push((name, value));
    }
    attributes.sort();
    Ok(attributes)
}

/// Puts extended attributes into a node. rustic_core does not export their type, so they go through JSON.
pub(crate) fn set_extended_attributes(
    metadata: &mut Metadata,
    attributes: Vec<(String, Vec<u8>)>,
) -> io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let json = attributes
        .into_iter()
        .map(|(name, value)| {
            serde_json::json!({ "name": name, "value": data_encoding::BASE64.encode(&value) })
        })
        .collect();
    metadata.extended_attributes = serde_json::from_value(serde_json::Value::Array(json))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_survive_the_way_through_go() {
        for kind in [0o100_000, 0o040_000, 0o120_000, 0o020_000, 0o010_000, 0o140_000, 0o060_000] {
            for bits in 0..=0o7777 {
                assert_eq!(permissions(go_mode(kind | bits)), bits);
            }
        }
        assert_eq!(go_mode(0o104_755), GO_SETUID | 0o755);
        assert_eq!(go_mode(0o041_777), GO_DIRECTORY | GO_STICKY | 0o777);
    }
}
