//! What of the underlay may be used, and through what: `scope`, `proxy`, the certificate of `/wss`, and its addresses.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::path::Path;

use ringlane_shared::config::{
    ConfigError, DhtMode, RelayServe, Scope, Settings, WebSettings, parse_hyprspace, parse_toml,
};

const ID_B: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";

const KEY_A: &str = "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";

fn control(text: &str) -> Result<Settings, ConfigError> {
    parse_toml(&format!("[control]\n{text}"), Path::new("/etc/ringlane/net0.toml"))
}

fn web(text: &str) -> WebSettings {
    control(text).unwrap().control.web
}

fn refusal(text: &str) -> String {
    control(text).unwrap_err().to_string()
}

#[test]
fn everything_is_used_directly_unless_the_file_says_otherwise() {
    assert_eq!(web(""), WebSettings::default());
    assert_eq!(web("scope = \"any\"").scope, Scope::Any);
    let settings = web("proxy = \"http://me:secret@proxy.example:3128\"");
    let proxy = settings.proxy.unwrap();
    assert_eq!(
        (proxy.host.as_str(), proxy.port, proxy.credentials.as_deref()),
        ("proxy.example", 3128, Some("me:secret"))
    );
    let certificate = web("tls_certificate = \"cert.pem\"\ntls_key = \"/etc/key.pem\"").certificate.unwrap();
    assert_eq!(certificate.certificate, Path::new("/etc/ringlane/cert.pem"));
    assert_eq!(certificate.key, Path::new("/etc/key.pem"));
}

#[test]
fn no_message_and_no_debug_output_has_the_proxys_password() {
    for text in ["ftp://me:secret@proxy.example:3128", "http://me:secret@proxy.example", "http://me:secret@:1"] {
        let message = refusal(&format!("proxy = \"{text}\""));
        assert!(message.contains("control.proxy") && message.contains("http://user:password@"), "{message}");
        assert!(!message.contains("secret"), "{message}");
    }
    for misplaced in
        ["proxxy = \"http://me:secret@proxy.example:3128\"", "mdns = \"http://me:secret@proxy.example:3128\""]
    {
        assert!(!refusal(misplaced).contains("secret"), "{misplaced}");
    }
    let settings = control("proxy = \"http://me:secret@proxy.example:3128\"").unwrap();
    assert!(!format!("{settings:?}").contains("secret"));
    let message = refusal("scope = \"lan\"\nproxy = \"http://me:secret@proxy.example:3128\"");
    assert!(message.contains("leads beyond the LAN") && !message.contains("secret"), "{message}");
}

#[test]
fn a_node_of_a_lan_is_in_no_dht_and_what_leads_beyond_must_not_be_asked_for() {
    let settings = control("scope = \"lan\"").unwrap();
    assert_eq!((settings.control.web.scope, settings.control.discovery.dht), (Scope::Lan, DhtMode::Off));
    assert!(settings.control.mdns, "neighbours are what it looks for");
    assert!(control("scope = \"lan\"\ndht = \"off\"\nbootstrap = []").is_ok());
    for (text, key) in [
        (format!("bootstrap = [\"/ip4/192.0.2.1/tcp/1/p2p/{ID_B}\"]"), "control.bootstrap"),
        ("bootstrap = [\"public\"]".to_owned(), "control.bootstrap"),
        ("delegated_routers = [{ url = \"https://router.example\" }]".to_owned(), "control.delegated_routers"),
        ("dht = \"server\"".to_owned(), "control.dht"),
        ("proxy = \"http://proxy.example:3128\"".to_owned(), "control.proxy"),
    ] {
        let message = refusal(&format!("scope = \"lan\"\n{text}"));
        assert!(message.contains(key), "{message}");
        assert!(message.contains("leads beyond the LAN, and control.scope is \"lan\""), "{message}");
        assert!(message.contains("or set scope = \"any\""), "{message}");
        assert!(control(&text).is_ok(), "{text}");
    }
    assert!(refusal("scope = \"wan\"").contains("write one of \"any\", \"lan\""));
}

#[test]
fn a_certificate_and_its_key_come_together() {
    assert!(refusal("tls_certificate = \"cert.pem\"").contains("add tls_key"));
    assert!(refusal("tls_key = \"key.pem\"").contains("add tls_certificate"));
    assert!(refusal("tls_key = \"\"\ntls_certificate = \"cert.pem\"").contains("is not a file name"));
}

#[test]
fn websockets_are_listened_on_and_dialled_in_each_of_their_spellings() {
    let listen = ["/ip4/0.0.0.0/tcp/443/ws", "/ip6/::/tcp/443/wss", "/ip4/10.0.0.1/tcp/444/tls/ws"];
    let listen = listen.map(|address| format!("{address:?}")).join(", ");
    assert_eq!(control(&format!("listen = [{listen}]")).unwrap().control.listen.len(), 3);
    assert!(refusal("listen = [\"/ip4/0.0.0.0/tcp/443/tls/sni/a.example/ws\"]").contains("write /tls/ws or /wss"));
    assert!(refusal("listen = [\"/ip4/0.0.0.0/tcp/443/tls\"]").contains("which /ws or /wss may follow"));

    let peer = |address: &str| {
        let text = format!("[[peers]]\nid = \"{ID_B}\"\naddresses = [{address:?}]");
        parse_toml(&text, Path::new("/etc/ringlane/net0.toml"))
    };
    for address in [
        "/dns4/b.example/tcp/443/wss",
        "/dns/b.example/tcp/80/ws",
        "/ip4/192.0.2.1/tcp/443/tls/ws",
        "/ip6/2001:db8::1/tcp/443/tls/sni/b.example/ws",
    ] {
        let settings = peer(&format!("{address}/p2p/{ID_B}")).unwrap();
        assert_eq!(settings.peers[0].addresses[0].to_string(), address);
    }
    assert!(peer("/dns4/b.example/tcp/0/wss").unwrap_err().to_string().contains("port 0"));
    assert!(peer("/ip4/192.0.2.1/tcp/1/x-parity-ws/%2fmesh").is_err(), "the only path is /");
}

#[test]
fn hyprspaces_format_has_none_of_it_but_the_addresses() {
    let text = format!("{{\"privateKey\": \"{KEY_A}\", \"listenAddresses\": [\"/ip4/0.0.0.0/tcp/443/ws\"]}}");
    let settings = parse_hyprspace(&text, Path::new("/etc/hyprspace/hs0.json")).unwrap();
    assert_eq!(settings.control.web, WebSettings::default());
    assert_eq!(settings.control.listen.len(), 1);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn what_leads_beyond_the_lan_is_refused_beside_it_and_relays_are_off() {
    let settings = control("scope = \"lan\"").unwrap();
    assert_eq!((settings.relay.serve, settings.relay.max), (RelayServe::Never, 0));
    for (table, key) in [("nat", "stun_servers"), ("relay", "addresses")] {
        let error = control(&format!("scope = \"lan\"\n[{table}]\n{key} = []")).unwrap_err().to_string();
        assert!(error.contains(&format!("{table}.{key}")) && error.contains("beyond the LAN"), "{error}");
    }
}
