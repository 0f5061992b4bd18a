//! What a node keeps on disk: its key, and the addresses its peers were last seen at.
//!
//! Files are replaced whole or not at all. Everything here blocks, so the control thread calls it at start-up and
//! rarely after that.

mod files;
mod peer_cache;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use libp2p::identity::Keypair;
use ringlane_shared::identity::{KeyError, decode_private_key, encode_private_key, keypair_from_seed};
use ringlane_shared::limits::KEY_FILE_BYTES_MAX;
use thiserror::Error;
use zeroize::Zeroizing;

pub use self::files::{Existing, NewFile, write_files};
pub use self::peer_cache::{CachedAddress, PeerCache, peer_cache_file};

/// Mode of a file that only its owner may read: a key.
pub const SECRET_MODE: u32 = 0o600;
/// Mode of a file that holds no secret, before the umask.
pub const PUBLIC_MODE: u32 = 0o644;

/// Why a file of ours cannot be used or written: the problem. [`StoreError::remedy`] says what to do.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The operating system refuses.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The key file does not exist.
    #[error("there is no key file {path}")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The key file is a directory, a device or a pipe.
    #[error("{path} is not a regular file")]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// Someone other than us and root owns the key file, and could replace it.
    #[error("key file {path} belongs to user {owner}, who could read and replace it")]
    ForeignOwner {
        /// The file.
        path: PathBuf,
        /// Its owner's user id.
        owner: u32,
        /// Our effective user id.
        us: u32,
    },
    /// The key file's mode lets others in.
    #[error("key file {path} is accessible to others (mode {mode:04o})")]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The key file's content is not our kind of key.
    #[error("key file {path}: {source}")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: KeyError,
    },
    /// A file that must not be overwritten is there.
    #[error("{path} exists and is left as it is")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Something that is not a file stands where one is to be written.
    #[error("{path} exists and is not a regular file")]
    Occupied {
        /// What stands there.
        path: PathBuf,
    },
    /// The operating system has no randomness for a key or a name.
    #[error("the system has no randomness")]
    NoRandomness,
}

impl StoreError {
    /// What the user can do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "run as root, or as the user who owns the file".to_owned()
            }
            Self::Io { .. } => "correct the path, or see to the file system it is on".to_owned(),
            Self::NoKey { .. } => "create a node with `ringlane init`, or correct identity.key_file".to_owned(),
            Self::NotRegular { .. } => "correct identity.key_file".to_owned(),
            Self::ForeignOwner { path, us, .. } => format!("run: chown {us} {}", path.display()),
            Self::KeyExposed { path, .. } => format!("run: chmod 600 {}", path.display()),
            Self::Key { .. } => "restore it from a backup, or create a new node with `ringlane init`".to_owned(),
            Self::Exists { .. } => "use --force to replace it".to_owned(),
            Self::Occupied { .. } => "choose another name".to_owned(),
            Self::NoRandomness => "try again when the system has started".to_owned(),
        }
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// A new Ed25519 key from the system's randomness.
pub fn generate_key() -> Result<Keypair, StoreError> {
    let mut seed = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(seed.as_mut_slice()).map_err(|_| StoreError::NoRandomness)?;
    keypair_from_seed(seed).map_err(|_| StoreError::NoRandomness)
}

/// Reads a key file, which must be ours or root's, and nobody else's to read.
pub fn read_key(path: &Path) -> Result<Keypair, StoreError> {
    let open = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => StoreError::NoKey { path: path.to_owned() },
        _ => StoreError::io("open key file", path)(error),
    };
    // Opening a pipe must not wait for a writer; what it is, is decided on the open file.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(open)?;
    let metadata = file.metadata().map_err(StoreError::io("examine key file", path))?;
    let (owner, us) = (metadata.uid(), rustix::process::geteuid().as_raw());
    let mode = metadata.mode() & 0o7777;
    if !metadata.is_file() {
        return Err(StoreError::NotRegular { path: path.to_owned() });
    }
    if owner != us && owner != 0 {
        return Err(StoreError::ForeignOwner { path: path.to_owned(), owner, us });
    }
    if mode & 0o077 != 0 {
        return Err(StoreError::KeyExposed { path: path.to_owned(), mode });
    }
    let not_a_key = |source| StoreError::Key { path: path.to_owned(), source };
    let text = Zeroizing::new(read_bounded(file, KEY_FILE_BYTES_MAX).map_err(StoreError::io("read key file", path))?);
    let text = std::str::from_utf8(&text).map_err(|_| not_a_key(KeyError::NotMultibase))?;
    decode_private_key(text).map_err(not_a_key)
}

/// The text a key file holds.
pub fn key_file_text(keypair: &Keypair) -> Result<Zeroizing<String>, KeyError> {
    let text = encode_private_key(keypair)?;
    // Room for the newline first: growing would leave the key behind in the old allocation.
    let mut with_newline = Zeroizing::new(String::with_capacity(text.len() + 1));
    with_newline.push_str(&text);
    with_newline.push('\n');
    Ok(with_newline)
}

/// The buffer never grows while it holds a key, so none is left behind in freed memory.
fn read_bounded(file: File, bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity((bytes_max + 1).min(2 * KEY_FILE_BYTES_MAX));
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Reads a text file of at most `bytes_max` bytes, a configuration for example.
pub fn read_text(path: &Path, bytes_max: usize) -> Result<String, StoreError> {
    let file = File::open(path).map_err(StoreError::io("open", path))?;
    let bytes = read_bounded(file, bytes_max).map_err(StoreError::io("read", path))?;
    String::from_utf8(bytes)
        .map_err(|_| StoreError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, "it is not UTF-8 text")))
}

/// Whether anyone but its owner may read a file; `None` if that cannot be told.
pub fn readable_by_others(path: &Path) -> Option<bool> {
    Some(fs::metadata(path).ok()?.mode() & 0o044 != 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key_file(directory: &Path, contents: &str, mode: u32) -> PathBuf {
        let path = directory.join("a.key");
        write_files(&[NewFile { path: &path, contents: contents.as_bytes(), mode }], Existing::Replace).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_new_key_is_written_for_its_owner_alone_and_read_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("var/net0/identity.key");
        let keypair = generate_key().unwrap();
        let text = key_file_text(&keypair).unwrap();
        let file = NewFile { path: &path, contents: text.as_bytes(), mode: SECRET_MODE };
        write_files(&[file], Existing::Keep).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(read_key(&path).unwrap().public(), keypair.public());
        assert_ne!(generate_key().unwrap().public(), keypair.public());
    }

    #[test]
    fn a_key_that_others_can_reach_is_refused_with_the_command_that_helps() {
        let directory = tempfile::tempdir().unwrap();
        let text = key_file_text(&generate_key().unwrap()).unwrap();
        for mode in [0o644, 0o640, 0o620, 0o601] {
            let path = key_file(directory.path(), &text, mode);
            let error = read_key(&path).unwrap_err();
            assert!(error.to_string().contains(&format!("mode {mode:04o}")), "{error}");
            assert_eq!(error.remedy(), format!("run: chmod 600 {}", path.display()));
        }
        assert!(read_key(&key_file(directory.path(), &text, 0o400)).is_ok());
    }

    #[test]
    fn what_is_not_a_key_file_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("none.key");
        assert!(matches!(read_key(&missing), Err(StoreError::NoKey { path }) if path == missing));
        assert!(matches!(read_key(directory.path()), Err(StoreError::NotRegular { .. })));
        let pipe = directory.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(read_key(&pipe), Err(StoreError::NotRegular { .. })));
        for (contents, error) in [
            (String::new(), KeyError::Empty),
            ("nonsense".to_owned(), KeyError::NotMultibase),
            ("z23jhTbc".to_owned(), KeyError::Malformed),
        ] {
            let path = key_file(directory.path(), &contents, 0o600);
            assert!(matches!(read_key(&path), Err(StoreError::Key { source, .. }) if source == error), "{contents}");
        }
        let path = key_file(directory.path(), &"z".repeat(KEY_FILE_BYTES_MAX + 1), 0o600);
        assert!(read_key(&path).unwrap_err().to_string().contains("more than 4096 bytes"));
    }
}
