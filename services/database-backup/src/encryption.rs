//! Encryption on this side, in the file format of age: what the bucket has then is of no use without an identity, and the
//! service that takes backups need not have one.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use age::stream::{StreamReader, StreamWriter};
use age::x25519::{Identity, Recipient};
use age::{DecryptError, Decryptor, Encryptor};

use crate::failure::{Failure, FailureKind, Result};

/// What the metadata of an encrypted backup says.
pub(crate) const AGE: &str = "age";

/// Reads recipients (`age1…`) with commas or spaces between them; none of an empty text.
///
/// # Errors
///
/// The number, from 1, of the first that is none. It is not shown: it could be an identity, which is secret.
pub(crate) fn recipients(text: &str) -> std::result::Result<Vec<Recipient>, usize> {
    let words = text.split([',', ' ', '\n']).filter(|word| !word.is_empty());
    words.enumerate().map(|(index, word)| word.parse().map_err(|_| index + 1)).collect()
}

/// Encrypts what is written to it, for these recipients; to be finished.
///
/// # Errors
///
/// If the head of the file cannot be written.
pub(crate) fn encrypting<W: Write>(recipients: &[Recipient], to: W) -> io::Result<StreamWriter<W>> {
    let recipients = recipients.iter().map(|recipient| recipient as &dyn age::Recipient);
    Encryptor::with_recipients(recipients).map_err(io::Error::other)?.wrap_output(to)
}

/// The identities of a file as `age-keygen` writes it.
///
/// # Errors
///
/// [`FailureKind::KeyMissing`] where there is no file, or nothing in it.
pub(crate) fn identities(file: &Path) -> Result<Vec<Identity>> {
    if file.as_os_str().is_empty() {
        let message = "the backup is encrypted: set encryption.identity_file to a file with the age identity that opens it";
        return Err(Failure::new(FailureKind::KeyMissing, message));
    }
    let missing = |what: &str| {
        Failure::new(FailureKind::KeyMissing, format!("encryption.identity_file {} {what}", file.display()))
    };
    let text = std::fs::read_to_string(file).map_err(|error| missing("cannot be read").with_source(error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let found: std::result::Result<Vec<Identity>, _> = lines.map(str::parse).collect();
    match found {
        Ok(identities) if !identities.is_empty() => Ok(identities),
        _ => Err(missing("is to have lines AGE-SECRET-KEY-1… and comments, and nothing else")),
    }
}

/// Decrypts what is read from it.
///
/// # Errors
///
/// [`FailureKind::KeyMissing`] where no identity fits.
pub(crate) fn decrypting<R: Read>(identities: &[Identity], from: R) -> Result<StreamReader<R>> {
    let identities = identities.iter().map(|identity| identity as &dyn age::Identity);
    let opened = Decryptor::new(from).and_then(|decryptor| decryptor.decrypt(identities));
    opened.map_err(|error| match error {
        DecryptError::NoMatchingKeys => Failure::new(
            FailureKind::KeyMissing,
            "the backup is encrypted for somebody else: no identity of encryption.identity_file opens it",
        ),
        DecryptError::Io(error)
            if !matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) =>
        {
            Failure::io("reading the head of the encrypted backup", error)
        }
        error => {
            Failure::new(FailureKind::ChecksumMismatch, "the encrypted backup is damaged").with_source(error)
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn what_is_encrypted_is_read_by_each_recipient_and_by_nobody_else() {
        let keys = [Identity::generate(), Identity::generate()];
        let text = format!("{}, {}", keys[0].to_public(), keys[1].to_public());
        let mut writer = encrypting(&recipients(&text).unwrap(), Vec::new()).unwrap();
        writer.write_all(b"rows").unwrap();
        let sealed = writer.finish().unwrap();
        assert!(sealed.starts_with(b"age-encryption.org/v1\n"));
        for key in keys {
            let mut read = String::new();
            decrypting(&[key], sealed.as_slice()).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, "rows");
        }
        let refused = |sealed: &[u8]| match decrypting(&[Identity::generate()], sealed) {
            Ok(_) => panic!("a stranger reads it"),
            Err(failure) => failure.kind(),
        };
        assert_eq!(refused(&sealed), FailureKind::KeyMissing);
        assert_eq!(refused(b"a plain text"), FailureKind::ChecksumMismatch);
    }

    #[test]
    fn recipients_and_identities_are_read_and_mistakes_are_named_without_being_shown() {
        let key = Identity::generate();
        assert!(recipients("").unwrap().is_empty());
        let text = format!("{} {}", key.to_public(), key.to_string().expose_secret());
        assert_eq!(recipients(&text).unwrap_err(), 2);
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, good) in [
            (format!("# created: today\n\n{}\n", key.to_string().expose_secret()), true),
            ("# nothing\n".to_owned(), false),
            ("AGE-SECRET-KEY-1NONSENSE\n".to_owned(), false),
        ] {
            std::fs::write(file.path(), text).unwrap();
            match identities(file.path()) {
                Ok(found) => assert!(good && found.len() == 1),
                Err(failure) => assert!(!good && !failure.describe().contains("NONSENSE"), "{failure}"),
            }
        }
        for missing in ["", "/no/such/file"] {
            assert_eq!(identities(Path::new(missing)).err().unwrap().kind(), FailureKind::KeyMissing);
        }
    }
}
