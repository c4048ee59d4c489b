//! The two secrets of a repository. The password is what people use with the `restic` and `rustic` command
//! lines: it opens the key file in the repository, which holds the key. The repository key is kept beside the
//! password as well and handed to jobs, so that none of them pays for a derivation.
//!
//! rustic_core derives the key of a key file with scrypt at a cost of 0.4 s and 150 MB, which is for passwords
//! that people think of. Nobody guesses 32 random bytes at any cost, so for those the key file is written here,
//! with little of it; restic and rustic read the cost from the file.

use std::fmt;

use aes256ctr_poly1305aes::aead::{self, Aead, AeadInPlace};
use aes256ctr_poly1305aes::{Aes256CtrPoly1305Aes, Key};
use rand::RngCore;
use rustic_core::repofile::{KeyFile, MasterKey};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer, Serialize};

/// The key that encrypts everything in one repository: rustic's master key. In JSON it has the shape that
/// the rustic command line reads with `--key-file`. `Debug` shows nothing of it.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct RepositoryKey(MasterKey);

/// scrypt's block size and parallelism: those that it was published with.
const SCRYPT_BLOCK_SIZE: u32 = 8;
const SCRYPT_PARALLELISM: u32 = 1;

/// scrypt's cost for a password of 32 random bytes, as the logarithm to base 2: 1 MiB, some milliseconds.
const SCRYPT_LOG_COST_RANDOM: u8 = 10;

/// scrypt's cost for any other password: rustic_core's.
const SCRYPT_LOG_COST: u8 = 17;

/// What stands before everything encrypted.
const NONCE_BYTES: usize = 16;

impl RepositoryKey {
    pub(crate) fn new(key: MasterKey) -> Self {
        Self(key)
    }

    /// A new one from the operating system's randomness.
    pub(crate) fn generate() -> Self {
        Self(MasterKey::new())
    }

    /// The file with which the password opens the repository: what is to be stored as `keys/<SHA-256>`.
    /// In restic's format, see "Keys, Encryption and MAC" in its design document. Errors are texts without
    /// secrets.
    pub(crate) fn key_file(&self, password: &RepositoryPassword) -> Result<Vec<u8>, String> {
        let log_cost = if password.is_random() { SCRYPT_LOG_COST_RANDOM } else { SCRYPT_LOG_COST };
        let parameters = scrypt::Params::new(log_cost, SCRYPT_BLOCK_SIZE, SCRYPT_PARALLELISM)
            .map_err(|error| error.to_string())?;
        let mut salt = vec![0; 64];
        rand::rng().fill_bytes(&mut salt);
        let mut derived = Key::default();
        scrypt::scrypt(password.expose().as_bytes(), &salt, &parameters, &mut derived)
            .map_err(|error| error.to_string())?;

        let data = seal(&derived, &serde_json::to_vec(&self.0).map_err(|error| error.to_string())?)?;
        serde_json::to_vec(&KeyFile {
            hostname: Some("longhaul".to_owned()),
            username: Some("registry".to_owned()),
            created: Some(jiff::Zoned::now()),
            kdf: "scrypt".to_owned(),
            n: 1 << log_cost,
            r: SCRYPT_BLOCK_SIZE,
            p: SCRYPT_PARALLELISM,
            data,
            salt,
        })
        .map_err(|error| error.to_string())
    }

    pub(crate) fn master_key(&self) -> MasterKey {
        self.0.clone()
    }

    /// Encrypts as everything in the repository is: the nonce, the text, the tag. Errors are texts without secrets.
    pub(crate) fn seal(&self, plain: &[u8]) -> Result<Vec<u8>, String> {
        seal(&self.cipher_key(), plain)
    }

    /// What [`Self::seal`] has encrypted; `None` where a bit of it is not as it was.
    pub(crate) fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_at_checked(NONCE_BYTES)?;
        Aes256CtrPoly1305Aes::new(&self.cipher_key())
            .decrypt(aead::Nonce::<Aes256CtrPoly1305Aes>::from_slice(nonce), rest)
            .ok()
    }

    /// The parts in the order in which the cipher takes them; their lengths were checked when they were read.
    fn cipher_key(&self) -> Key {
        let MasterKey { mac, encrypt, .. } = &self.0;
        let mut key = Key::default();
        let parts = encrypt.iter().chain(&mac.k).chain(&mac.r);
        key.iter_mut().zip(parts).for_each(|(byte, part)| *byte = *part);
        key
    }
}

fn seal(key: &Key, plain: &[u8]) -> Result<Vec<u8>, String> {
    let mut nonce = aead::Nonce::<Aes256CtrPoly1305Aes>::default();
    rand::rng().fill_bytes(&mut nonce);
    let mut sealed = nonce.to_vec();
    sealed.extend_from_slice(plain);
    let tag = Aes256CtrPoly1305Aes::new(key)
        .encrypt_in_place_detached(&nonce, &[], &mut sealed[NONCE_BYTES..])
        .map_err(|error| error.to_string())?;
    sealed.extend(tag);
    Ok(sealed)
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

    /// Whether it looks like one that was generated.
    fn is_random(&self) -> bool {
        let text = self.expose().as_bytes();
        text.len() == 64 && text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
    fn what_is_sealed_is_unsealed_unless_a_bit_of_it_has_changed() {
        let key = RepositoryKey::new(MasterKey::new());
        let sealed = key.seal(b"owes 100").unwrap();
        assert_eq!(key.unseal(&sealed).unwrap(), b"owes 100");
        for byte in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[byte] ^= 1;
            assert_eq!(key.unseal(&changed), None, "byte {byte}");
        }
        assert_eq!(RepositoryKey::new(MasterKey::new()).unseal(&sealed), None);
        assert_eq!(key.unseal(b"short"), None);
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
