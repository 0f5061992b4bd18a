//! What a node keeps on disk: its key, and the addresses its peers were last seen at.
//!
//! Files are replaced whole or not at all. Everything here blocks, so the control thread calls it at start-up and
//! rarely after that.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

pub use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId};
use ringlane_shared::config::{IdentitySettings, STATE_DIRECTORY, Settings};
use ringlane_shared::identity::{KeyError, decode_private_key, encode_private_key, keypair_from_seed};
use ringlane_shared::limits::{
    ADDRESS_TEXT_BYTES_MAX, KEY_FILE_BYTES_MAX, PEER_CACHE_ADDRESSES_MAX, PEER_CACHE_BYTES_MAX, PEERS_MAX,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;
use zeroize::Zeroizing;

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

/// A file to be written.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Where.
    pub path: &'a Path,
    /// What.
    pub contents: &'a [u8],
    /// Its permission bits, before the umask.
    pub mode: u32,
}

/// Whether a file that exists may be replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Existing {
    /// It is left alone and nothing is written.
    Keep,
    /// It is replaced.
    Replace,
}

/// Writes all files or none. Missing directories are created for us alone.
pub fn write_files(files: &[NewFile<'_>], existing: Existing) -> Result<(), StoreError> {
    for file in files {
        match fs::symlink_metadata(file.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::io("examine", file.path)(error)),
            Ok(_) if existing == Existing::Keep => return Err(StoreError::Exists { path: file.path.to_owned() }),
            Ok(metadata) if metadata.is_file() => {}
            Ok(_) => return Err(StoreError::Occupied { path: file.path.to_owned() }),
        }
    }
    let staged = files.iter().map(|file| Staged::write(file)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::with_capacity(staged.len());
    for file in staged {
        // On failure, dropping `done` and the files still staged puts everything back.
        done.push(file.put_in_place(existing)?);
    }
    for file in done {
        file.keep();
    }
    Ok(())
}

/// A file complete on disk under a temporary name beside its destination; removed when dropped.
struct Staged {
    temporary: PathBuf,
    destination: PathBuf,
}

impl Staged {
    fn write(file: &NewFile<'_>) -> Result<Self, StoreError> {
        let directory = parent(file.path);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(StoreError::io("create directory", directory))?;
        let temporary = beside(file.path, "new")?;
        let mut created = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(file.mode)
            .open(&temporary)
            .map_err(StoreError::io("create", &temporary))?;
        let staged = Self { temporary, destination: file.path.to_owned() };
        let written = created.write_all(file.contents).and_then(|()| created.sync_all());
        written.map_err(StoreError::io("write", &staged.temporary))?;
        Ok(staged)
    }

    fn put_in_place(self, existing: Existing) -> Result<InPlace, StoreError> {
        let Self { temporary, destination } = &self;
        let mut former = None;
        if existing == Existing::Keep {
            // Unlike a rename, a link never replaces what has appeared in the meantime.
            fs::hard_link(temporary, destination).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => StoreError::Exists { path: destination.clone() },
                _ => StoreError::io("create", destination)(error),
            })?;
        } else {
            if destination.exists() {
                let backup = beside(destination, "old")?;
                fs::hard_link(destination, &backup).map_err(StoreError::io("back up", destination))?;
                former = Some(backup);
            }
            if let Err(error) = fs::rename(temporary, destination) {
                former.iter().for_each(|backup| drop(fs::remove_file(backup)));
                return Err(StoreError::io("replace", destination)(error));
            }
        }
        let in_place = InPlace { destination: destination.clone(), former, keep: false };
        let synced = File::open(parent(destination)).and_then(|directory| directory.sync_all());
        synced.map_err(StoreError::io("write", destination))?;
        Ok(in_place)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// A file at its destination; taken back when dropped before it is kept.
struct InPlace {
    destination: PathBuf,
    former: Option<PathBuf>,
    keep: bool,
}

impl InPlace {
    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        let _ = match (&self.former, self.keep) {
            (Some(former), true) => fs::remove_file(former),
            (Some(former), false) => fs::rename(former, &self.destination),
            (None, true) => Ok(()),
            (None, false) => fs::remove_file(&self.destination),
        };
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A hidden name in the same directory that no other process of ours uses.
fn beside(path: &Path, role: &str) -> Result<PathBuf, StoreError> {
    let Some(name) = path.file_name() else {
        return Err(StoreError::Occupied { path: path.to_owned() });
    };
    let mut random = [0; 8];
    aws_lc_rs::rand::fill(&mut random).map_err(|_| StoreError::NoRandomness)?;
    let random = u64::from_le_bytes(random);
    Ok(path.with_file_name(format!(".{}.{role}-{random:016x}", name.display())))
}

/// Whether anyone but its owner may read a file; `None` if that cannot be told.
pub fn readable_by_others(path: &Path) -> Option<bool> {
    Some(fs::metadata(path).ok()?.mode() & 0o044 != 0)
}

/// Where the addresses of a network's peers are remembered: beside a key file of the default name, else at its path
/// with another extension, so that several nodes can keep their keys in one directory.
pub fn peer_cache_file(settings: &Settings) -> PathBuf {
    match &settings.identity {
        IdentitySettings::KeyFile(key) if key.file_name().is_some_and(|name| name != "identity.key") => {
            key.with_extension("peers.json")
        }
        IdentitySettings::KeyFile(key) => key.with_file_name("peers.json"),
        IdentitySettings::Inline(_) => Path::new(STATE_DIRECTORY).join(&settings.network).join("peers.json"),
    }
}

/// Addresses that peers were reached at, so that a node finds them again after a restart without any help. At most
/// [`PEERS_MAX`] peers with [`PEER_CACHE_ADDRESSES_MAX`] addresses each. Owned by the control thread.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PeerCache {
    peers: BTreeMap<PeerId, Vec<CachedAddress>>,
}

/// An address and when it last worked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CachedAddress {
    /// Where the peer was reached, without `/p2p/`.
    pub address: Multiaddr,
    /// When, in seconds since 1970.
    pub last_seen_unix_s: u64,
}

/// The file: peer id to addresses, newest first.
type PeerCacheFile = BTreeMap<String, Vec<CachedAddress>>;

impl PeerCache {
    /// Reads a cache file. One that is missing counts as empty; so does one that is damaged, with a warning, since a
    /// cache must never keep a node from starting.
    pub fn load(path: &Path) -> Self {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot open the peer cache; starting without it");
                return Self::default();
            }
        };
        let parsed = read_bounded(file, PEER_CACHE_BYTES_MAX)
            .map_err(|error| error.to_string())
            .and_then(|bytes| serde_json::from_slice::<PeerCacheFile>(&bytes).map_err(|error| error.to_string()));
        match parsed {
            Ok(file) => Self::from_file(file),
            Err(error) => {
                warn!(path = %path.display(), error, "the peer cache is damaged; starting without it");
                Self::default()
            }
        }
    }

    fn from_file(file: PeerCacheFile) -> Self {
        let mut cache = Self::default();
        for (peer, addresses) in file {
            if let Ok(peer) = peer.parse() {
                for CachedAddress { address, last_seen_unix_s } in addresses.into_iter().rev() {
                    cache.remember(peer, address, last_seen_unix_s);
                }
            }
        }
        cache
    }

    /// The addresses of a peer, the one seen last first.
    pub fn addresses(&self, peer: &PeerId) -> impl Iterator<Item = &Multiaddr> {
        self.peers.get(peer).into_iter().flatten().map(|cached| &cached.address)
    }

    /// Notes that a peer was reached at an address. Past a bound, what was seen least recently is forgotten, and a
    /// peer that would be one too many is not remembered at all.
    pub fn remember(&mut self, peer: PeerId, address: Multiaddr, now_unix_s: u64) {
        let known = self.peers.contains_key(&peer);
        if !known && self.peers.len() >= PEERS_MAX || address.to_string().len() > ADDRESS_TEXT_BYTES_MAX {
            return;
        }
        let addresses = self.peers.entry(peer).or_default();
        addresses.retain(|cached| cached.address != address);
        let position = addresses.partition_point(|cached| cached.last_seen_unix_s > now_unix_s);
        addresses.insert(position, CachedAddress { address, last_seen_unix_s: now_unix_s });
        addresses.truncate(PEER_CACHE_ADDRESSES_MAX);
    }

    /// Forgets every peer that `is_configured` does not know.
    pub fn retain(&mut self, is_configured: impl Fn(&PeerId) -> bool) {
        self.peers.retain(|peer, _| is_configured(peer));
    }

    /// Replaces the cache file.
    pub fn save(&self, path: &Path) -> Result<(), StoreError> {
        let file: PeerCacheFile =
            self.peers.iter().map(|(peer, addresses)| (peer.to_base58(), addresses.clone())).collect();
        let encode = |error: serde_json::Error| StoreError::io("encode", path)(error.into());
        let contents = serde_json::to_vec_pretty(&file).map_err(encode)?;
        write_files(&[NewFile { path, contents: &contents, mode: SECRET_MODE }], Existing::Replace)
    }
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

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn address(port: usize) -> Multiaddr {
        format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap()
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

    #[test]
    fn files_are_written_all_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::write(&second, "old").unwrap();
        let files = |contents| [&first, &second].map(|path| NewFile { path, contents, mode: PUBLIC_MODE });
        let error = write_files(&files(b"new"), Existing::Keep).unwrap_err();
        assert!(matches!(&error, StoreError::Exists { path } if *path == second), "{error}");
        assert_eq!(names(directory.path()), ["second"]);
        write_files(&files(b"new"), Existing::Replace).unwrap();
        assert_eq!(names(directory.path()), ["first", "second"]);
        assert_eq!(fs::read(&second).unwrap(), b"new");

        fs::remove_file(&second).unwrap();
        fs::create_dir(&second).unwrap();
        let error = write_files(&files(b"newer"), Existing::Replace).unwrap_err();
        assert!(matches!(&error, StoreError::Occupied { path } if *path == second), "{error}");
        assert_eq!(fs::read(&first).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["first", "second"]);
    }

    #[test]
    fn a_failure_half_way_puts_back_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::write(&first, "old").unwrap();
        let stage = |path| Staged::write(&NewFile { path, contents: b"new", mode: PUBLIC_MODE }).unwrap();
        let replaced = stage(&first).put_in_place(Existing::Replace).unwrap();
        let created = stage(&second).put_in_place(Existing::Keep).unwrap();
        assert_eq!(fs::read(&first).unwrap(), b"new");
        drop((replaced, created));
        assert_eq!(fs::read(&first).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["first"]);

        let late = stage(&first).put_in_place(Existing::Keep);
        assert!(matches!(late, Err(StoreError::Exists { .. })), "a file that appeared late is not replaced");
        assert_eq!(names(directory.path()), ["first"]);
    }

    #[test]
    fn the_peer_cache_survives_a_restart_newest_address_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers.json");
        let [here, gone] = [PeerId::random(), PeerId::random()];
        let mut cache = PeerCache::load(&path);
        assert_eq!(cache, PeerCache::default());
        for (port, seen) in [(1, 10), (2, 30), (3, 20), (1, 40)] {
            cache.remember(here, address(port), seen);
        }
        cache.remember(gone, address(9), 50);
        cache.save(&path).unwrap();
        let mut loaded = PeerCache::load(&path);
        assert_eq!(loaded, cache);
        assert!(loaded.addresses(&here).eq([&address(1), &address(2), &address(3)]));
        loaded.retain(|peer| *peer == here);
        assert_eq!(loaded.addresses(&gone).count(), 0);
    }

    #[test]
    fn the_peer_cache_is_bounded_and_forgets_the_oldest() {
        let mut cache = PeerCache::default();
        let peer = PeerId::random();
        for port in 1..=PEER_CACHE_ADDRESSES_MAX + 5 {
            cache.remember(peer, address(port), port as u64);
        }
        assert_eq!(cache.addresses(&peer).count(), PEER_CACHE_ADDRESSES_MAX);
        assert_eq!(cache.addresses(&peer).next(), Some(&address(PEER_CACHE_ADDRESSES_MAX + 5)));
        for _ in 0..PEERS_MAX + 5 {
            cache.remember(PeerId::random(), address(1), 1);
        }
        assert_eq!(cache.peers.len(), PEERS_MAX);
        cache.remember(peer, address(1), 99);
        assert_eq!(cache.addresses(&peer).next(), Some(&address(1)));
    }

    #[test]
    fn a_damaged_peer_cache_counts_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("peers.json");
        for contents in [&b""[..], b"[", b"{\"x\": 1}", b"\xff", b"{\"not a peer\": []}"] {
            fs::write(&path, contents).unwrap();
            assert_eq!(PeerCache::load(&path), PeerCache::default());
        }
        fs::write(&path, vec![b' '; PEER_CACHE_BYTES_MAX + 1]).unwrap();
        assert_eq!(PeerCache::load(&path), PeerCache::default());
    }
}
