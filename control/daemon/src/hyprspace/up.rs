//! `up`: the node in the foreground, its interface named on the command line and not by its configuration.

use std::fs;
use std::io::{Write, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::ensure;
use ringlane_control::admin::socket_path;
use ringlane_shared::config::Settings;

use crate::commands::load::load_as;
use crate::commands::up::{run_node, start_logging};

pub(super) fn run(file: &Path, interface: &str) -> anyhow::Result<ExitCode> {
    start_logging(false)?;
    ensure!(socket_path(interface).is_some(), "{interface:?} cannot be the name of an interface");
    let loaded = load_as(file, interface)?;
    // Whoever read it may have gone.
    let _ = stdout().lock().write_all(routes(&loaded.settings).as_bytes());
    let lock = Lock::of(file, interface);
    let path = lock.0.clone();
    let ended = run_node(loaded, move || write_lock(&path));
    drop(lock);
    ended
}

/// What Hyprspace says of configured routes.
fn routes(settings: &Settings) -> String {
    let of_peers = settings.peers.iter().flat_map(|peer| peer.routes.iter().map(move |route| (route, peer.id)));
    of_peers.map(|(route, id)| format!("[+] Route {route} via /p2p/{id}\n")).collect()
}

/// `<directory of the configuration>/<interface>.lock` with our process id. Nobody checks it, so a node does without
/// where it cannot be written, as in a read-only directory.
struct Lock(PathBuf);

impl Lock {
    fn of(file: &Path, interface: &str) -> Self {
        Self(file.with_file_name(format!("{interface}.lock")))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let is_ours = fs::read_to_string(&self.0).is_ok_and(|content| content == std::process::id().to_string());
        if is_ours {
            let _ = fs::remove_file(&self.0);
        }
    }
}

fn write_lock(path: &Path) {
    if let Err(error) = fs::write(path, std::process::id().to_string()) {
        let _ = writeln!(stderr(), "cannot write {}: {error}; going on without", path.display());
    }
}

#[cfg(test)]
mod tests {
    use ringlane_shared::config;

    use super::*;

    #[test]
    fn configured_routes_are_told_in_hyprspaces_words() {
        let text = r#"{
            "privateKey": "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC",
            "peers": [{ "id": "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46",
                        "routes": [{ "net": "10.10.1.1/16" }, { "net": "2001:db8:1::/64" }] }]
        }"#;
        let settings = config::parse(text, Path::new("hs0.json")).unwrap();
        assert_eq!(
            routes(&settings),
            "\
[+] Route 10.10.0.0/16 via /p2p/12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46
[+] Route 2001:db8:1::/64 via /p2p/12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46
"
        );
    }

    #[test]
    fn a_lock_is_ours_to_remove_only_if_it_has_our_process_id() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x.json");
        let path = directory.path().join("hs0.lock");
        let lock = Lock::of(&file, "hs0");
        write_lock(&lock.0);
        assert_eq!(fs::read_to_string(&path).unwrap(), std::process::id().to_string());
        drop(lock);
        assert!(!path.exists());

        let lock = Lock::of(&file, "hs0");
        fs::write(&path, "1").unwrap();
        drop(lock);
        assert!(path.exists());
    }
}
