//! The key of a private libp2p network: a file as Kubo and Hyprspace have it (libp2p's "PSK v1").

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use libp2p::pnet::PreSharedKey;
use ringlane_shared::limits::KEY_FILE_BYTES_MAX;
use thiserror::Error;

const KEY_DIGITS: usize = 64;

/// Why there is no swarm key; whoever wrote the file or its name is at fault.
#[derive(Debug, Error)]
pub enum SwarmKeyError {
    /// It cannot be read.
    #[error("the swarm key {} cannot be read: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// It is not a swarm key.
    #[error(
        "{} is not a swarm key: it must have the lines /key/swarm/psk/1.0.0/, /base16/ and {KEY_DIGITS} hexadecimal digits",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
}

/// Reads a swarm key file.
pub fn read(path: &Path) -> Result<PreSharedKey, SwarmKeyError> {
    let text = fs::read(path).map_err(|error| SwarmKeyError::Unreadable { path: path.to_owned(), error })?;
    parse(&text).ok_or_else(|| SwarmKeyError::Malformed { path: path.to_owned() })
}

/// The key, if these are the bytes of a swarm key file.
pub fn parse(file: &[u8]) -> Option<PreSharedKey> {
    if file.len() > KEY_FILE_BYTES_MAX || !file.is_ascii() {
        return None;
    }
    let mut lines = std::str::from_utf8(file).ok()?.lines().map(str::trim_end);
    let head = (lines.next()?, lines.next()?);
    let key = lines.next()?;
    let rest_is_empty = lines.all(str::is_empty);
    if head != ("/key/swarm/psk/1.0.0/", "/base16/") || key.len() != KEY_DIGITS || !rest_is_empty {
        return None;
    }
    let mut bytes = [0; KEY_DIGITS / 2];
    for (byte, digits) in bytes.iter_mut().zip(key.as_bytes().chunks(2)) {
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(PreSharedKey::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_has_three_lines_and_nothing_else_passes_for_one() {
        let key = "0123456789abcdef0123456789ABCDEF".repeat(2);
        let file = |head: &str, encoding: &str, key: &str| format!("{head}\n{encoding}\n{key}\n").into_bytes();
        let good = file("/key/swarm/psk/1.0.0/", "/base16/", &key);
        assert_eq!(parse(&good).unwrap().to_key_file().as_bytes().to_ascii_lowercase(), good.to_ascii_lowercase());
        assert!(parse(good.trim_ascii_end()).is_some(), "the last line end may be missing");
        for bad in [
            file("/key/swarm/psk/2.0.0/", "/base16/", &key),
            file("/key/swarm/psk/1.0.0/", "/base64/", &key),
            file("/key/swarm/psk/1.0.0/", "/base16/", &key[1..]),
            file("/key/swarm/psk/1.0.0/", "/base16/", &key.replace('0', "+")),
            file("/key/swarm/psk/1.0.0/", "/base16/", &"ä".repeat(32)),
            file("/key/swarm/psk/1.0.0/", "/base16/", &format!("{key}\nmore")),
            Vec::new(),
            vec![b'\n'; 1 << 20],
        ] {
            assert!(parse(&bad).is_none(), "{:?}", String::from_utf8_lossy(&bad[..bad.len().min(100)]));
        }
    }

    #[test]
    fn what_is_wrong_with_a_key_is_said() {
        let missing = read(Path::new("/nonexistent/swarm.key")).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/swarm.key cannot be read"), "{missing}");
        let malformed = read(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(malformed.contains("/dev/null is not a swarm key"), "{malformed}");
    }
}
