//! `init` and `keygen`: new keys in the formats that Hyprspace reads too.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _, stderr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ringlane_control::store::{self, Existing, Keypair, NewFile, PUBLIC_MODE, SECRET_MODE};
use ringlane_shared::identity::encode_private_key;

use crate::commands::init::host_name;
use crate::commands::print;

/// As Hyprspace orders them.
const LISTEN: [&str; 4] =
    ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1", "/ip6/::/tcp/8001", "/ip6/::/udp/8001/quic-v1"];

/// Writes a configuration with a new key, for its owner alone, and prints the entry that other nodes need. One that is
/// there is replaced without a question, as scripts expect, and stays beside it as `FILE.bak`: its key exists only once.
pub(super) fn init(file: &Path, name: Option<&str>) -> anyhow::Result<()> {
    let keypair = store::generate_key()?;
    let text = configuration(&keypair)?;
    let backup = beside(file, ".bak");
    let replaced = match fs::read(file) {
        Ok(replaced) => Some(replaced),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("open {}", file.display())),
    };
    let secret = |path, contents| NewFile { path, contents, mode: SECRET_MODE };
    let new = secret(file, text.as_bytes());
    let files = match &replaced {
        Some(replaced) => vec![secret(&backup, replaced), new],
        None => vec![new],
    };
    store::write_files(&files, Existing::Replace)?;
    let name = name.filter(|name| !name.is_empty()).map_or_else(host_name, str::to_owned);
    print(&entry(file, &name, &keypair.public().to_peer_id().to_string()))
}

/// Writes a new private key, for its owner alone, and its peer id or prints that.
pub(crate) fn keygen(private: &Path, public: Option<&Path>) -> anyhow::Result<()> {
    let keypair = store::generate_key()?;
    let key = encode_private_key(&keypair)?;
    let id = keypair.public().to_peer_id().to_string();
    let mut files = vec![NewFile { path: private, contents: key.as_bytes(), mode: SECRET_MODE }];
    files.extend(public.map(|path| NewFile { path, contents: id.as_bytes(), mode: PUBLIC_MODE }));
    store::write_files(&files, Existing::Replace)?;
    let mut told = format!("Private key written to {}\n", private.display());
    match public {
        // Writing to a string cannot fail.
        Some(path) => drop(writeln!(told, "Public key written to {}", path.display())),
        None => print(&format!("{id}\n"))?,
    }
    // Nobody may be left to read it.
    let _ = stderr().write_all(told.as_bytes());
    Ok(())
}

fn configuration(keypair: &Keypair) -> anyhow::Result<String> {
    let listen = LISTEN.map(|address| format!("    \"{address}\"")).join(",\n");
    let key = encode_private_key(keypair)?;
    Ok(format!("{{\n  \"listenAddresses\": [\n{listen}\n  ],\n  \"privateKey\": \"{}\"\n}}", key.as_str()))
}

fn entry(file: &Path, name: &str, id: &str) -> String {
    let name = match name {
        "" => String::new(),
        // As JSON, for names that would end the string.
        name => format!("  \"name\": {},\n", serde_json::Value::from(name)),
    };
    let file = file.display();
    format!("Initialized new config at {file}\nAdd this entry to your other peers:\n{{\n{name}  \"id\": \"{id}\"\n}}\n")
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use ringlane_shared::config;

    use super::*;

    #[test]
    fn the_configuration_is_laid_out_as_hyprspaces_and_can_be_read() {
        let keypair = store::generate_key().unwrap();
        let text = configuration(&keypair).unwrap();
        let key = encode_private_key(&keypair).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{
  "listenAddresses": [
    "/ip4/0.0.0.0/tcp/8001",
    "/ip4/0.0.0.0/udp/8001/quic-v1",
    "/ip6/::/tcp/8001",
    "/ip6/::/udp/8001/quic-v1"
  ],
  "privateKey": "{}"
}}"#,
                key.as_str()
            )
        );
        let settings = config::parse(&text, Path::new("hs0.json")).unwrap();
        assert_eq!((settings.interface.as_str(), settings.control.listen.len()), ("hs0", 4));
    }

    #[test]
    fn the_entry_is_printed_as_by_hyprspace() {
        assert_eq!(
            entry(Path::new("/etc/hyprspace/hs0.json"), "myhost", "12D3KooW"),
            "\
Initialized new config at /etc/hyprspace/hs0.json
Add this entry to your other peers:
{
  \"name\": \"myhost\",
  \"id\": \"12D3KooW\"
}
"
        );
        assert!(entry(Path::new("x"), "", "12D3KooW").ends_with("{\n  \"id\": \"12D3KooW\"\n}\n"));
    }
}
