//! Project secrets, wrapped with a master key that never enters the database: AES-256-GCM with a random
//! nonce, and the project's id as associated data, so that a wrapped secret put into another project's row
//! does not open.

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use secrecy::{ExposeSecret, SecretString};

/// A key that wraps secrets, and its name.
pub(crate) struct MasterKey {
    id: String,
    key: RandomizedNonceKey,
}

/// Why a secret could not be wrapped or unwrapped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error(
        "the master key is to be 64 hexadecimal characters (32 bytes): make one with `openssl rand -hex 32`"
    )]
    Key,
    #[error("could not wrap a secret")]
    Wrap,
    #[error("a secret is wrapped with the master key {wrapped_with:?}, and this registry has {have:?}")]
    OtherKey { wrapped_with: String, have: String },
    #[error("a wrapped secret does not open: it was changed, or belongs to another project")]
    Unwrap,
}

impl MasterKey {
    pub(crate) fn new(id: &str, hexadecimal: &SecretString) -> Result<Self, SecretError> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE
            .decode(hexadecimal.expose_secret().as_bytes())
            .map_err(|_| SecretError::Key)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, &bytes).map_err(|_| SecretError::Key)?;
        Ok(Self { id: id.to_owned(), key })
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Nonce, ciphertext and tag, one after the other.
    pub(crate) fn wrap(&self, owner: &str, secret: &[u8]) -> Result<Vec<u8>, SecretError> {
        let mut sealed = secret.to_vec();
        let nonce = self
            .key
            .seal_in_place_append_tag(Aad::from(owner.as_bytes()), &mut sealed)
            .map_err(|_| SecretError::Wrap)?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    pub(crate) fn unwrap(
        &self,
        owner: &str,
        wrapped_with: &str,
        wrapped: &[u8],
    ) -> Result<Vec<u8>, SecretError> {
        if wrapped_with != self.id {
            return Err(SecretError::OtherKey {
                wrapped_with: wrapped_with.to_owned(),
                have: self.id.clone(),
            });
        }
        let (nonce, sealed) = wrapped.split_at_checked(NONCE_LEN).ok_or(SecretError::Unwrap)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SecretError::Unwrap)?;
        let mut opened = sealed.to_vec();
        let secret = self
            .key
            .open_in_place(nonce, Aad::from(owner.as_bytes()), &mut opened)
            .map_err(|_| SecretError::Unwrap)?;
        Ok(secret.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_secret_opens_only_for_its_owner_and_with_its_key() {
        let key = MasterKey::new("one", &SecretString::from("ab".repeat(32))).unwrap();
        let wrapped = key.wrap("project-1", b"secret").unwrap();
        assert_ne!(wrapped, key.wrap("project-1", b"secret").unwrap(), "each wrapping has its own nonce");
        assert_eq!(key.unwrap("project-1", "one", &wrapped).unwrap(), b"secret");
        assert!(matches!(key.unwrap("project-2", "one", &wrapped), Err(SecretError::Unwrap)));
        assert!(matches!(key.unwrap("project-1", "two", &wrapped), Err(SecretError::OtherKey { .. })));
        let other = MasterKey::new("one", &SecretString::from("cd".repeat(32))).unwrap();
        assert!(other.unwrap("project-1", "one", &wrapped).is_err());
        for at in 0..wrapped.len() {
            let mut changed = wrapped.clone();
            changed[at] ^= 1;
            assert!(key.unwrap("project-1", "one", &changed).is_err());
        }
        assert!(key.unwrap("project-1", "one", b"short").is_err());
        assert!(MasterKey::new("x", &SecretString::from("short".to_owned())).is_err());
    }
}
