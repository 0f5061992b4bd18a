//! How a configuration says where peers are found: the DHT, its bootstrap list, delegated routers, the swarm key.

use std::path::Path;

use ringlane_shared::config::{
    DhtMode, DiscoverySettings, PUBLIC_BOOTSTRAP, PUBLIC_ROUTER, parse_hyprspace, parse_toml,
};

const ID_B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
const ID_C: &str = "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73";
const KEY_A: &str = "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";

fn toml(control: &str) -> Result<DiscoverySettings, String> {
    let text = format!("[control]\n{control}\n[[peers]]\nid = \"{ID_B}\"\n");
    let settings = parse_toml(&text, Path::new("/etc/ringlane/net0.toml"));
    settings.map(|settings| settings.control.discovery).map_err(|error| error.to_string())
}

fn hyprspace(more: &str) -> Result<DiscoverySettings, String> {
    let text = format!("{{\"privateKey\": \"{KEY_A}\"{more}}}");
    let settings = parse_hyprspace(&text, Path::new("/etc/hyprspace/hs0.json"));
    settings.map(|settings| settings.control.discovery).map_err(|error| error.to_string())
}

#[test]
fn a_node_speaks_to_nobody_it_was_not_told_of_unless_the_file_says_so() {
    let silent = DiscoverySettings::default();
    assert_eq!((silent.dht, silent.bootstrap.len(), silent.delegated_routers.len()), (DhtMode::Client, 0, 0));
    assert_eq!(toml(""), Ok(silent.clone()));
    assert_eq!(toml("bootstrap = []"), Ok(silent.clone()));
    assert_eq!(hyprspace(", \"bootstrapPeers\": []"), Ok(silent));
}

#[test]
fn the_public_list_is_a_word_in_toml_and_the_default_in_hyprspaces_format() {
    let public = toml("bootstrap = [\"public\"]").unwrap();
    assert_eq!(public.bootstrap.iter().map(ToString::to_string).collect::<Vec<_>>(), PUBLIC_BOOTSTRAP);
    assert_eq!(public.delegated_routers[0].url.to_string(), PUBLIC_ROUTER);
    assert_eq!(hyprspace(""), Ok(public.clone()));
    assert_eq!(hyprspace(", \"bootstrapPeers\": null"), Ok(public));
    assert!(hyprspace(", \"bootstrapPeers\": [\"public\"]").unwrap_err().contains("not a multiaddress"));
}

#[test]
fn a_bootstrap_entry_is_a_peers_address_or_a_way_into_the_dht() {
    let list = format!(
        "bootstrap = [\"/ip4/192.0.2.1/tcp/1/p2p/{ID_B}\", \"/dns4/c.example/tcp/1/p2p/{ID_C}\", \"/dnsaddr/c.example/p2p/{ID_C}\"]"
    );
    let text = format!("[control]\n{list}\n[[peers]]\nid = \"{ID_B}\"\n");
    let settings = parse_toml(&text, Path::new("/etc/ringlane/net0.toml")).unwrap();
    assert_eq!(settings.peers[0].addresses, ["/ip4/192.0.2.1/tcp/1".parse().unwrap()]);
    let contacts: Vec<_> = settings.control.discovery.bootstrap.iter().map(ToString::to_string).collect();
    assert_eq!(contacts, [format!("/dns4/c.example/tcp/1/p2p/{ID_C}"), format!("/dnsaddr/c.example/p2p/{ID_C}")]);
    assert!(settings.control.discovery.delegated_routers.is_empty(), "only the public list brings one along");
}

#[test]
fn routers_are_urls_and_their_pins_hashes() {
    let pin = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let settings = toml(&format!(
        "dht = \"server\"\nswarm_key = \"swarm.key\"\n\
         delegated_routers = [{{ url = \"https://r.example/x/\", pin = \"{pin}\" }}, {{ url = \"http://[::1]:8080\" }}]"
    ))
    .unwrap();
    let [pinned, plain] = settings.delegated_routers.as_slice() else { panic!("{settings:?}") };
    assert_eq!(
        (pinned.url.to_string().as_str(), pinned.pin),
        ("https://r.example/x", Some(std::array::from_fn(|i| i as u8)))
    );
    assert_eq!((plain.url.https, plain.url.port, plain.pin), (false, 8080, None));
    assert_eq!(settings.dht, DhtMode::Server);
    assert_eq!(settings.swarm_key.as_deref(), Some(Path::new("/etc/ringlane/swarm.key")));
}

#[test]
fn each_mistake_names_its_key_and_a_remedy() {
    for (control, key, remedy) in [
        ("dht = \"on\"", "control.dht", "\"client\", \"server\", \"off\""),
        ("bootstrap = [\"private\"]", "control.bootstrap[0]", "write one such as"),
        ("bootstrap = [\"/ip4/192.0.2.1/tcp/1\"]", "control.bootstrap[0]", "write one such as"),
        ("swarm_key = \"\"", "control.swarm_key", "path of the swarm key"),
        ("delegated_routers = [{}]", "control.delegated_routers[0].url", "add the router's URL"),
        ("delegated_routers = [{ url = \"r.example\" }]", "control.delegated_routers[0].url", "https://router.example"),
        ("delegated_routers = [{ url = \"https://r\", pin = \"x\" }]", "control.delegated_routers[0].pin", "base64"),
        ("delegated_routers = [{ uri = \"https://r\" }]", "control.delegated_routers[0].uri", "url"),
    ] {
        let message = toml(control).unwrap_err();
        assert!(message.contains(key) && message.contains(remedy), "{control}: {message}");
    }
    let pin = "sha256/AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let plain = toml(&format!("delegated_routers = [{{ url = \"http://r\", pin = \"{pin}\" }}]")).unwrap_err();
    assert!(plain.contains("means nothing without https"), "{plain}");
    let strange = format!("bootstrap = [\"/ip4/192.0.2.1/tcp/1/tls/p2p/{ID_C}\"]");
    assert!(toml(&strange).unwrap_err().contains("control.bootstrap[0]"));
}
