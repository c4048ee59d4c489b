//! The two secrets of a repository. The password is what people use with the `restic` and `rustic` command
//! lines; deriving the key from it costs 0.4 s and 150 MB (scrypt) each time. The repository key is the
//! result: it is kept beside the password and handed to jobs, so that no job ever pays for the derivation.

use std::fmt;

use rand::RngCore;
use rustic_core::repofile::MasterKey;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};

/// The key that encrypts everything in one repository: rustic's master key. In JSON it has the shape that
/// the rustic command line reads with `--key-file`. `Debug` shows nothing of it.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct RepositoryKey(MasterKey);

impl RepositoryKey {
    pub(crate) fn new(key: MasterKey) -> Self {
        Self(key)
    }

    pub(crate) fn master_key(&self) -> MasterKey {
        self.0.clone()
    }
}

impl<'de> Deserialize<'de> for RepositoryKey {
    /// Refuses a key whose parts have the wrong length: rustic_core would panic on it.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = MasterKey::deserialize(deserializer)?;
        if key.encrypt.len() != 32 || key.mac.k.len() != 16 || key.mac.r.len() != 16 {
            return Err(serde::de::Error::custom("not a repository key: its parts have the wrong length"));
        }
        Ok(Self(key))
    }
}

impl PartialEq for RepositoryKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.encrypt == other.0.encrypt && self.0.mac.k == other.0.mac.k && self.0.mac.r == other.0.mac.r
    }
}

impl Eq for RepositoryKey {}

impl fmt::Debug for RepositoryKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RepositoryKey(redacted)")
    }
}

/// The password of a repository: 32 random bytes as 64 lower-case hexadecimal digits, or any other text
/// that a repository was once initialised with. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct RepositoryPassword(SecretString);

impl RepositoryPassword {
    /// A new one from the operating system's randomness.
    pub fn generate() -> Self {
        let mut bytes = [0_u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(SecretString::from(data_encoding::HEXLOWER.encode(&bytes)))
    }

    /// The text itself, to wrap it for storage or to show it to its owner.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<String> for RepositoryPassword {
    fn from(password: String) -> Self {
        Self(SecretString::from(password))
    }
}

impl fmt::Debug for RepositoryPassword {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("RepositoryPassword(redacted)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

    use super::*;

    #[test]
    fn neither_secret_shows_in_debug_output() {
        let key = RepositoryKey::new(MasterKey::new());
        let password = RepositoryPassword::generate();
        assert_eq!(format!("{key:?} {password:?}"), "RepositoryKey(redacted) RepositoryPassword(redacted)");
        assert_eq!(password.expose().len(), 64);
    }

    #[test]
    fn a_key_survives_its_json_and_a_short_one_is_refused() {
        let key = RepositoryKey::new(MasterKey::new());
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<RepositoryKey>(&json).unwrap(), key);
        let short = r#"{"mac":{"k":"AAAA","r":"AAAA"},"encrypt":"AAAA"}"#;
        serde_json::from_str::<RepositoryKey>(short).unwrap_err();
    }
}
