//! `[nat]`: what may stand there, and what is said of what may not.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;

use ringlane_shared::config::{NatSettings, StunServer, parse_hyprspace, parse_toml};

fn file() -> &'static Path {
    Path::new("/etc/ringlane/net0.toml")
}

#[test]
fn stun_servers_are_names_or_addresses_and_by_default_there_are_none() {
    assert_eq!(parse_toml("", file()).unwrap().nat, NatSettings::default());
    let key = "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";
    let hyprspace = format!("{{\"privateKey\": \"{key}\", \"bootstrapPeers\": [], \"peers\": []}}");
    let hyprspace = parse_hyprspace(&hyprspace, Path::new("/etc/hyprspace/hs0.json")).unwrap();
    assert_eq!(hyprspace.nat, NatSettings::default());
    let text = "[nat]\nstun_servers = [\"stun.example:3478\", \"192.0.2.1:3478\", \"[2001:db8::1]:19302\"]";
    let servers = parse_toml(text, file()).unwrap().nat.stun_servers;
    assert_eq!(
        servers.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["stun.example:3478", "192.0.2.1:3478", "[2001:db8::1]:19302"]
    );
    assert_eq!(servers[2], StunServer { host: "2001:db8::1".to_owned(), port: 19302 });
}

#[test]
fn a_mistake_in_nat_names_line_key_value_and_remedy() {
    let many: Vec<_> = (1..=9).map(|port| format!("\"stun.example:{port}\"")).collect();
    let many = format!("stun_servers = [{}]", many.join(", "));
    for (line, key, remedy) in [
        ("stun_servers = [\"stun.example\"]", "nat.stun_servers[0]", "stun.example:3478"),
        ("stun_servers = [\"a:1\", \"a:1\"]", "nat.stun_servers[1]", "remove one of them"),
        ("stun_servers = [1]", "nat.stun_servers[0]", "double quotes"),
        ("stun_server = []", "nat.stun_server", "did you mean stun_servers"),
        (many.as_str(), "nat.stun_servers", "8"),
    ] {
        let error = parse_toml(&format!("[nat]\n{line}"), file()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(remedy) && error.contains(":2:"), "{line}: {error}");
    }
}
