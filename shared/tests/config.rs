//! Configuration files: what is accepted, what it becomes, and what is said about each kind of mistake.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ringlane_shared::config::{
    DataplaneSettings, DnsSettings, IdentitySettings, RelayServe, RelaySettings, Switch, parse, parse_hyprspace,
    parse_listen_address, parse_toml,
};
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6, keypair_from_seed, parse_peer_id};
use ringlane_shared::lane::keys::CipherChoice;
use ringlane_shared::limits::{CONFIG_BYTES_MAX, CONFIG_PROBLEMS_MAX, PEERS_MAX};
use ringlane_shared::plane::{CarrierChoice, Engine, Offload, Offloads, OuterMarks, RekeyLimits};

const ID_A: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";
const ID_B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
const ID_C: &str = "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73";
const ID_RSA: &str = "QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb";
const KEY_A: &str = "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";

/// The file of the specification, as written there but for the id.
const EXAMPLE: &str = r#"
interface = "ring0"                    # default: the file's stem
[identity]
key_file = "a.key"                     # default: /var/lib/ringlane/<network>/identity.key
[control]
listen = ["/ip4/10.201.0.1/udp/8001/quic-v1", "/ip4/10.201.0.1/tcp/8001"]   # default: 0.0.0.0 and [::], port 8001
mdns = false                           # default true
[dataplane]
workers = 2                            # default: one per available core
port = 8100                            # worker i listens on UDP port + i
mtu = 1420
cores = [2, 3]                         # worker i runs on cores[i]; default: the cores the process may use, in order
busy_poll_us = 50                      # default 0
tun_queue_packets = 250                # default 500
engine = "auto"                        # or "io_uring", "epoll"
carrier = "auto"                       # or "lane", "quic", "stream"
cipher = "auto"                        # or "aes-128-gcm", "aes-256-gcm", "chacha20-poly1305"
rekey_seconds = 120
rekey_records = 67108864
keep_alive_seconds = 25
rate_mbit = 950                        # default: as fast as it goes
fragments = true
copy_dscp = false
copy_ecn = true
[dataplane.offload]                    # default: all of them, the sentinel where the kernel needs it
tun_uso = false
udp_sentinel = "auto"
[[peers]]
name = "site-b"
id = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46"
addresses = ["/ip4/10.201.0.2/udp/8001/quic-v1"]   # optional
routes = ["10.20.0.0/16", "fd00:20::/64"]          # networks behind that peer
carrier = "quic"                                   # default: as dataplane.carrier says
"#;

/// Hyprspace's own example.
const HYPRSPACE_EXAMPLE: &str = r#"{
  "privateKey": "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC",
  "listenAddresses": ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1"],
  "bootstrapPeers": ["/ip4/10.55.0.2/tcp/8001/p2p/12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46"],
  "domain": "hyprspace",
  "filterPrivateAddresses": false,
  "peers": [
    { "name": "peerb", "id": "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46",
      "routes": [ { "net": "10.10.0.0/16" }, { "net": "2001:db8:1::/64" } ] }
  ],
  "services": {
    "example": { "target": "/tcp/8080",
                 "acl": { "enableWhitelist": true, "whitelist": ["@peerb"], "blacklist": [] } }
  }
}"#;

fn toml_file() -> &'static Path {
    Path::new("/etc/ringlane/net0.toml")
}

fn json_file() -> &'static Path {
    Path::new("/etc/hyprspace/hs0.json")
}

fn texts<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(T::to_string).collect()
}

/// A peer entry in TOML, with more keys to follow.
fn peer(id: &str) -> String {
    format!("[[peers]]\nid = \"{id}\"\n")
}

/// A Hyprspace file with a key and more keys.
fn hyprspace(more: &str) -> String {
    format!("{{\"privateKey\": \"{KEY_A}\", {more}}}")
}

fn peer_id_of_seed(seed: u16) -> libp2p_identity::PeerId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&seed.to_be_bytes());
    keypair_from_seed(bytes.into()).expect("any 32 bytes are a seed").public().to_peer_id()
}

#[test]
fn the_example_of_the_specification_works_as_written() {
    let settings = parse(EXAMPLE, toml_file()).unwrap();
    assert_eq!(settings.network, "net0");
    assert_eq!(settings.interface, "ring0");
    assert!(matches!(&settings.identity, IdentitySettings::KeyFile(path) if path == Path::new("/etc/ringlane/a.key")));
    assert_eq!(texts(&settings.control.listen), ["/ip4/10.201.0.1/udp/8001/quic-v1", "/ip4/10.201.0.1/tcp/8001"]);
    assert!(!settings.control.mdns);
    assert_eq!(settings.dataplane.workers, Some(2));
    assert_eq!((settings.dataplane.port, settings.dataplane.mtu), (8100, 1420));
    assert_eq!(settings.dataplane.cores, [2, 3]);
    assert_eq!((settings.dataplane.busy_poll_us, settings.dataplane.tun_queue_packets), (50, 250));
    assert_eq!(settings.dataplane.offloads, Offloads::default().with(Offload::TunUso, false));
    assert_eq!(settings.dataplane.udp_sentinel, Switch::Auto);
    let defaults = default_dataplane();
    assert_eq!((settings.dataplane.rate_mbit, settings.dataplane.rekey), (Some(950), defaults.rekey));
    let [peer] = settings.peers.as_slice() else { panic!("{:?}", settings.peers) };
    assert_eq!((peer.name.as_str(), peer.id), ("site-b", parse_peer_id(ID_B).unwrap()));
    assert_eq!(texts(&peer.addresses), ["/ip4/10.201.0.2/udp/8001/quic-v1"]);
    assert_eq!(texts(&peer.routes), ["10.20.0.0/16", "fd00:20::/64"]);
    assert_eq!(peer.carrier, Some(CarrierChoice::Quic));
    assert_eq!(settings.warnings, Vec::<String>::new());
}

fn default_dataplane() -> DataplaneSettings {
    DataplaneSettings {
        workers: None,
        port: 8100,
        mtu: 1420,
        cores: Vec::new(),
        busy_poll_us: 0,
        tun_queue_packets: 500,
        offloads: Offloads::default(),
        udp_sentinel: Switch::Auto,
        engine: Engine::Auto,
        carrier: CarrierChoice::Auto,
        cipher: CipherChoice::Auto,
        rekey: RekeyLimits { after: Duration::from_secs(120), records: 1 << 26 },
        rate_mbit: None,
        fragments: true,
        outer_marks: OuterMarks { copies_dscp: false, copies_ecn: true },
        keep_alive_seconds: 25,
    }
}

#[test]
fn how_packets_travel_is_chosen_by_words_numbers_and_switches() {
    let text = "[dataplane]\nengine = \"epoll\"\ncarrier = \"lane\"\ncipher = \"aes-256-gcm\"\nrekey_seconds = 1\n\
                rekey_records = 256\nkeep_alive_seconds = 300\nrate_mbit = 400000\nfragments = false\n\
                copy_dscp = true\ncopy_ecn = false";
    let expected = DataplaneSettings {
        engine: Engine::Epoll,
        carrier: CarrierChoice::Lane,
        cipher: CipherChoice::Aes256Gcm,
        rekey: RekeyLimits { after: Duration::from_secs(1), records: 256 },
        rate_mbit: Some(400_000),
        fragments: false,
        outer_marks: OuterMarks { copies_dscp: true, copies_ecn: false },
        keep_alive_seconds: 300,
        ..default_dataplane()
    };
    assert_eq!(parse(text, toml_file()).unwrap().dataplane, expected);
}

#[test]
fn an_empty_file_gives_the_documented_defaults() {
    let settings = parse("", Path::new("home.toml")).unwrap();
    assert_eq!((settings.network.as_str(), settings.interface.as_str()), ("home", "home"));
    let default_key = Path::new("/var/lib/ringlane/home/identity.key");
    assert!(matches!(&settings.identity, IdentitySettings::KeyFile(path) if path == default_key));
    assert_eq!(
        texts(&settings.control.listen),
        ["/ip4/0.0.0.0/udp/8001/quic-v1", "/ip4/0.0.0.0/tcp/8001", "/ip6/::/udp/8001/quic-v1", "/ip6/::/tcp/8001"]
    );
    assert!(settings.control.mdns);
    assert_eq!(settings.dataplane, default_dataplane());
    assert!(settings.peers.is_empty());
}

#[test]
fn key_files_are_relative_to_the_configuration() {
    for (file, key_file, expected) in [
        ("a.toml", "a.key", "a.key"),
        ("sites/a.toml", "../keys/a.key", "sites/../keys/a.key"),
        ("/etc/ringlane/a.toml", "/run/keys/a", "/run/keys/a"),
    ] {
        let settings = parse(&format!("[identity]\nkey_file = {key_file:?}"), Path::new(file)).unwrap();
        assert!(matches!(&settings.identity, IdentitySettings::KeyFile(path) if path == Path::new(expected)));
    }
}

#[test]
fn the_format_is_chosen_by_name_and_then_by_the_first_character() {
    assert!(matches!(parse(HYPRSPACE_EXAMPLE, json_file()).unwrap().identity, IdentitySettings::Inline(_)));
    let named_otherwise = parse(&format!("\n  {HYPRSPACE_EXAMPLE}"), Path::new("hs0.conf")).unwrap();
    assert!(matches!(named_otherwise.identity, IdentitySettings::Inline(_)));
    let error = parse("mdns = true", json_file()).unwrap_err();
    assert!(error.to_string().contains("is not JSON"), "{error}");
    assert_eq!(parse(EXAMPLE, Path::new("ring.conf")).unwrap().network, "ring");
}

#[test]
fn what_is_just_within_the_bounds_is_accepted() {
    for text in [
        "interface = \"a23456789.12_-5\"",
        "[dataplane]\nworkers = 1\nport = 65535",
        "[dataplane]\nworkers = 64\nport = 65472\nmtu = 9000",
        "[dataplane]\nworkers = 64\nmtu = 1280",
        "[dataplane]\ncores = []\nbusy_poll_us = 0\ntun_queue_packets = 16\noffload = {}",
        "[dataplane]\ncores = [1023, 0]\nworkers = 3\nbusy_poll_us = 1000\ntun_queue_packets = 10000",
        "[control]\nlisten = []",
        "[control]\nlisten = [\"/ip4/127.0.0.1/udp/0/quic-v1\", \"/ip4/127.0.0.1/udp/0/quic-v1\"]",
        "[control]\nlisten = [\"/ip4/127.0.0.1/tcp/8100\"]",
        "[control]\nlisten = [\"/ip4/127.0.0.1/udp/8102/quic-v1\"]\n[dataplane]\nworkers = 2",
    ] {
        parse_toml(text, toml_file()).unwrap_or_else(|error| panic!("{text}\n{error}"));
    }
    let addresses = format!("\"/dns/b.io/tcp/1\", \"/dns4/b.io/udp/1/quic-v1\", \"/ip6/::1/tcp/1/p2p/{ID_B}\"");
    let routes = "\"0.0.0.0/0\", \"::/0\", \"100.64.0.0/16\", \"10.0.0.0/8\", \"10.20.0.0/16\", \"10.0.0.5/32\"";
    let text = peer(ID_B) + &format!("name = \"\"\naddresses = [{addresses}]\nroutes = [{routes}]");
    let settings = parse_toml(&text, toml_file()).unwrap();
    let peer = &settings.peers[0];
    assert_eq!(texts(&peer.addresses), ["/dns/b.io/tcp/1", "/dns4/b.io/udp/1/quic-v1", "/ip6/::1/tcp/1"]);
    assert_eq!(peer.routes.len(), 6);
    settings.own_peer_checks(&parse_peer_id(ID_A).unwrap()).unwrap();
}

#[test]
fn a_peer_with_another_kind_of_key_is_accepted_with_a_warning() {
    let settings = parse_toml(&peer(ID_RSA), toml_file()).unwrap();
    let [warning] = settings.warnings.as_slice() else { panic!("{:?}", settings.warnings) };
    assert!(warning.contains("peers[0].id") && warning.contains(ID_RSA) && warning.contains("Ed25519"), "{warning}");
}

/// One mistake: the text, the key, the value as shown (empty where there is none) and a part of the remedy.
struct Mistake {
    text: String,
    key: &'static str,
    value: String,
    remedy: &'static str,
}

fn mistake(text: impl Into<String>, key: &'static str, value: impl Into<String>, remedy: &'static str) -> Mistake {
    Mistake { text: text.into(), key, value: value.into(), remedy }
}

/// The mistake is in `text`, which follows the id of the only peer.
fn in_peer(text: &str, key: &'static str, value: impl Into<String>, remedy: &'static str) -> Mistake {
    mistake(peer(ID_B) + text, key, value, remedy)
}

#[test]
fn the_carrier_of_one_peer_may_be_a_stream_and_of_all_too() {
    let settings =
        parse(&("[dataplane]\ncarrier = \"stream\"\n".to_owned() + &peer(ID_B)), Path::new("/etc/ringlane/a.toml"));
    assert_eq!(settings.unwrap().dataplane.carrier, CarrierChoice::Stream);
    let settings = parse(&(peer(ID_B) + "carrier = \"stream\"\n"), Path::new("/etc/ringlane/a.toml")).unwrap();
    assert_eq!(settings.peers[0].carrier, Some(CarrierChoice::Stream));
}

fn assert_refused(mistakes: &[Mistake], file: &str, with_line: bool) {
    let file = Path::new(file);
    for Mistake { text, key, value, remedy } in mistakes {
        let error = match parse(text, file) {
            Ok(settings) => panic!("accepted:\n{text}\n{settings:?}"),
            Err(error) => error,
        };
        let message = error.to_string();
        let [problem] = error.problems.as_slice() else { panic!("not one problem:\n{text}\n{message}") };
        assert_eq!(problem.key, *key, "{text}\n{message}");
        assert_eq!(problem.value.as_deref().unwrap_or_default(), value, "{text}\n{message}");
        assert!(problem.remedy.contains(remedy), "{text}\n{message}\nlacks {remedy:?}");
        assert!(!problem.problem.is_empty());
        for part in [&file.display().to_string(), *key, value, &problem.problem, &problem.remedy] {
            assert!(message.contains(part), "{message}\nlacks {part:?}");
        }
        assert_eq!(problem.line.is_some(), with_line, "{text}\n{message}");
    }
}

#[test]
fn each_mistake_in_the_head_of_a_toml_file_names_file_line_key_value_and_remedy() {
    let mistakes = [
        mistake("interface = \"ring0", "", "", "correct the syntax"),
        mistake("interface = \"a\"\ninterface = \"b\"", "", "", "correct the syntax"),
        mistake("interfaec = \"ring0\"", "interfaec", "\"ring0\"", "did you mean interface?"),
        mistake("mdns = true", "mdns", "true", "move it into [control]"),
        mistake("[control]\ninterface = \"a\"", "control.interface", "\"a\"", "top of the file"),
        mistake("[dataplane]\nroutes = []", "dataplane.routes", "", "move it into a [[peers]] entry"),
        mistake("[dataplane]\nMTU = 1400", "dataplane.MTU", "1400", "did you mean mtu?"),
        mistake("[identity]\nkey-file = \"a\"", "identity.key-file", "\"a\"", "did you mean key_file?"),
        mistake("colour = \"blue\"", "colour", "\"blue\"", "remove it; the keys here are interface, identity"),
        mistake("interface = 0", "interface", "0", "double quotes"),
        mistake("interface = \"\"", "interface", "\"\"", "1 to 15"),
        mistake("interface = \"sixteen-letters.\"", "interface", "\"sixteen-letters.\"", "1 to 15"),
        mistake("interface = \"a/b\"", "interface", "\"a/b\"", "letters"),
        mistake("interface = \"a b\"", "interface", "\"a b\"", "letters"),
        mistake("interface = \"tun%d\"", "interface", "\"tun%d\"", "letters"),
        mistake("interface = \"eth0:1\"", "interface", "\"eth0:1\"", "letters"),
        mistake("interface = \"..\"", "interface", "\"..\"", "letters"),
        mistake("identity = \"a.key\"", "identity", "\"a.key\"", "write a table"),
        mistake("[identity]\nkey_file = \"\"", "identity.key_file", "\"\"", "path of the key file"),
    ];
    assert_refused(&mistakes, "/etc/ringlane/net0.toml", true);
}

#[test]
fn each_mistake_about_control_and_dataplane_names_file_line_key_value_and_remedy() {
    let listen =
        |items: &str, key, value: &str, remedy| mistake(format!("[control]\nlisten = [{items}]"), key, value, remedy);
    let dataplane = |text: &str, key, value: &str, remedy| mistake(format!("[dataplane]\n{text}"), key, value, remedy);
    let first = "control.listen[0]";
    let mistakes = [
        mistake("[control]\nmdns = \"no\"", "control.mdns", "\"no\"", "true or false"),
        mistake("[control]\nlisten = \"/ip4/0.0.0.0/tcp/1\"", "control.listen", "\"/ip4/0.0.0.0/tcp/1\"", "[...]"),
        listen("1", first, "1", "double quotes"),
        listen("\"0.0.0.0:8001\"", first, "\"0.0.0.0:8001\"", "/udp/8001/quic-v1"),
        listen("\"/ip4/10.0.0.1/udp/80\"", first, "\"/ip4/10.0.0.1/udp/80\"", "/quic-v1"),
        listen("\"/ip4/10.0.0.1/tcp/80/tls\"", first, "\"/ip4/10.0.0.1/tcp/80/tls\"", "write one such as"),
        listen("\"/dns/a/tcp/80\"", first, "\"/dns/a/tcp/80\"", "write one such as"),
        listen("\"/ip6/::/tcp/80\", \"/ip6/::/tcp/80\"", "control.listen[1]", "\"/ip6/::/tcp/80\"", "remove one"),
        listen(&"\"\",".repeat(33), "control.listen", "", "at most 32"),
        dataplane("workers = 0", "dataplane.workers", "0", "from 1 to 64"),
        dataplane("workers = 65", "dataplane.workers", "65", "from 1 to 64"),
        dataplane("workers = -1", "dataplane.workers", "-1", "from 1 to 64"),
        dataplane("workers = \"2\"", "dataplane.workers", "\"2\"", "without quotes"),
        dataplane("workers = 2.0", "dataplane.workers", "2.0", "from 1 to 64"),
        dataplane("port = 0", "dataplane.port", "0", "from 1 to 65535"),
        dataplane("port = 65536", "dataplane.port", "65536", "from 1 to 65535"),
        dataplane("port = 99999999999999999999", "dataplane.port", "99999999999999999999", "from 1 to 65535"),
        dataplane("port = 65534\nworkers = 3", "dataplane.port", "65534", "at most 65533"),
        dataplane("port = 8000\nworkers = 2", "dataplane.port", "8000", "dataplane.port = 8100"),
        mistake(
            "[control]\nlisten = [\"/ip6/::/udp/8101/quic-v1\"]\n[dataplane]\nworkers = 2",
            "dataplane.workers",
            "2",
            "dataplane.port = 8164",
        ),
        dataplane("mtu = 1279", "dataplane.mtu", "1279", "from 1280 to 9000"),
        dataplane("mtu = 9001", "dataplane.mtu", "9001", "from 1280 to 9000"),
        dataplane("cores = 2", "dataplane.cores", "2", "[...]"),
        dataplane("engine = \"uring\"", "dataplane.engine", "\"uring\"", "\"io_uring\", \"epoll\""),
        dataplane(
            "carrier = \"streams\"",
            "dataplane.carrier",
            "\"streams\"",
            "\"auto\", \"lane\", \"quic\", \"stream\"",
        ),
        dataplane("cipher = 256", "dataplane.cipher", "256", "double quotes"),
        dataplane("rekey_seconds = 0", "dataplane.rekey_seconds", "0", "from 1 to 3600"),
        dataplane("rekey_records = 255", "dataplane.rekey_records", "255", "from 256 to 67108864"),
        dataplane("rekey_records = 67108865", "dataplane.rekey_records", "67108865", "from 256 to 67108864"),
        dataplane("keep_alive_seconds = 301", "dataplane.keep_alive_seconds", "301", "from 1 to 300"),
        dataplane("rate_mbit = 0", "dataplane.rate_mbit", "0", "from 1 to 400000"),
        dataplane("fragments = 1", "dataplane.fragments", "1", "true or false"),
        dataplane("rate = 100", "dataplane.rate", "100", "the keys here are"),
        dataplane("cores = [0, -1]", "dataplane.cores[1]", "-1", "from 0 to 1023"),
        dataplane("cores = [1024]", "dataplane.cores[0]", "1024", "from 0 to 1023"),
        dataplane("cores = [\"0-3\"]", "dataplane.cores[0]", "\"0-3\"", "without quotes"),
        dataplane("cores = [2, 3, 2]", "dataplane.cores[2]", "2", "name each CPU once"),
        dataplane(&format!("cores = [{}]", "0,".repeat(65)), "dataplane.cores", "", "at most 64"),
        dataplane("busy_poll_us = 1001", "dataplane.busy_poll_us", "1001", "from 0 to 1000"),
        dataplane("busy_poll_us = -1", "dataplane.busy_poll_us", "-1", "from 0 to 1000"),
        dataplane("busy_poll = 1", "dataplane.busy_poll", "1", "did you mean busy_poll_us?"),
        dataplane("tun_queue_packets = 15", "dataplane.tun_queue_packets", "15", "from 16 to 10000"),
        dataplane("tun_queue_packets = 10001", "dataplane.tun_queue_packets", "10001", "from 16 to 10000"),
        dataplane("tun_queue_packets = true", "dataplane.tun_queue_packets", "true", "a number from 16 to 10000"),
    ];
    assert_refused(&mistakes, "/etc/ringlane/net0.toml", true);
}

#[test]
fn each_mistake_about_offloads_names_file_line_key_value_and_remedy() {
    let offload =
        |text: &str, key, value: &str, remedy| mistake(format!("[dataplane.offload]\n{text}"), key, value, remedy);
    let mistakes = [
        mistake("[dataplane]\noffload = false", "dataplane.offload", "false", "write a table"),
        mistake("[dataplane]\ntun_tso = false", "dataplane.tun_tso", "false", "move it into [dataplane.offload]"),
        mistake("[offload]\ntun_tso = false", "offload", "", "move it into [dataplane]"),
        offload("tun_tsso = true", "dataplane.offload.tun_tsso", "true", "did you mean tun_tso?"),
        offload("lro = true", "dataplane.offload.lro", "true", "keys here are tun_checksum, tun_tso, tun_uso"),
        offload("mtu = 1400", "dataplane.offload.mtu", "1400", "move it into [dataplane]"),
        offload("udp_gso = 1", "dataplane.offload.udp_gso", "1", "true or false, without quotes"),
        offload("udp_gso = \"auto\"", "dataplane.offload.udp_gso", "\"auto\"", "true or false, without quotes"),
        offload("udp_sentinel = 1", "dataplane.offload.udp_sentinel", "1", "true, false or \"auto\""),
        offload("udp_sentinel = \"on\"", "dataplane.offload.udp_sentinel", "\"on\"", "true, false or \"auto\""),
        offload(
            "tun_tso = true\ntun_checksum = false",
            "dataplane.offload.tun_tso",
            "true",
            "set tun_checksum = true, or remove tun_tso",
        ),
        offload(
            "tun_checksum = false\ntun_uso = true",
            "dataplane.offload.tun_uso",
            "true",
            "set tun_checksum = true, or remove tun_uso",
        ),
        offload(
            "udp_gso = false\nudp_sentinel = true",
            "dataplane.offload.udp_sentinel",
            "true",
            "set udp_gso = true, or remove udp_sentinel",
        ),
    ];
    assert_refused(&mistakes, "/etc/ringlane/net0.toml", true);
}

#[test]
fn each_offload_can_be_switched_off_and_takes_with_it_what_needs_it() {
    let offloads = |text: &str, kernel_needs_sentinel| {
        let settings = parse_toml(&format!("[dataplane.offload]\n{text}"), toml_file()).unwrap();
        let allowed = settings.dataplane.offloads_on(kernel_needs_sentinel);
        Offload::ALL.into_iter().filter(|offload| !allowed.has(*offload)).map(Offload::name).collect::<Vec<_>>()
    };
    assert_eq!(offloads("", true), [""; 0]);
    assert_eq!(offloads("", false), ["udp_sentinel"]);
    for (key, off) in [
        ("tun_checksum", &["tun_checksum", "tun_tso", "tun_uso"][..]),
        ("tun_tso", &["tun_tso"]),
        ("tun_uso", &["tun_uso"]),
        ("tun_coalesce", &["tun_coalesce"]),
        ("udp_gso", &["udp_gso", "udp_sentinel"]),
        ("udp_gro", &["udp_gro"]),
        ("udp_sentinel", &["udp_sentinel"]),
        ("huge_pages", &["huge_pages"]),
    ] {
        assert_eq!(offloads(&format!("{key} = false"), true), off);
        assert_eq!(offloads(&format!("{key} = true"), true), [""; 0]);
    }
    assert_eq!(offloads("udp_sentinel = true", false), [""; 0]);
    assert_eq!(offloads("udp_sentinel = \"auto\"", false), ["udp_sentinel"]);
}

#[test]
fn a_core_that_no_worker_takes_is_a_warning() {
    let settings = parse_toml("[dataplane]\nworkers = 2\ncores = [4, 5, 6, 7]", toml_file()).unwrap();
    let [warning] = settings.warnings.as_slice() else { panic!("{:?}", settings.warnings) };
    assert!(warning.contains("dataplane.cores[2] = 6: is not used: there are 2 workers"), "{warning}");
}

#[test]
fn what_is_for_records_is_a_warning_where_all_packets_leave_in_quic_datagrams() {
    let warnings = |dataplane: &str, peers: &str| {
        parse_toml(&format!("[dataplane]\n{dataplane}\n{peers}"), toml_file()).unwrap().warnings
    };
    let warned = warnings("copy_dscp = true\ncarrier = \"quic\"\nfragments = false", &peer(ID_B));
    let [dscp, fragments] = warned.as_slice() else { panic!("{warned:?}") };
    assert!(dscp.contains("dataplane.copy_dscp = true: has no effect"), "{dscp}");
    assert!(fragments.contains("dataplane.fragments = false: has no effect"), "{fragments}");
    for (dataplane, peers) in [
        ("carrier = \"quic\"", String::new()),
        ("carrier = \"quic\"\ncopy_dscp = false\nfragments = true", String::new()),
        ("carrier = \"auto\"\ncopy_dscp = true\nfragments = false", String::new()),
        ("copy_dscp = true\nfragments = false", peer(ID_B) + "carrier = \"quic\"\n"),
        ("carrier = \"quic\"\ncopy_dscp = true\nfragments = false", peer(ID_B) + "carrier = \"lane\"\n"),
    ] {
        assert_eq!(warnings(dataplane, &peers), Vec::<String>::new(), "{dataplane}\n{peers}");
    }
}

#[test]
fn a_core_the_process_may_not_use_is_refused_naming_those_it_may() {
    let settings = parse_toml("[dataplane]\ncores = [3, 9, 1]", toml_file()).unwrap();
    settings.core_checks(&[0, 1, 2, 3, 9]).unwrap();
    let error = settings.core_checks(&[0, 1, 2, 3, 8, 10, 11]).unwrap_err().to_string();
    for part in ["/etc/ringlane/net0.toml", "dataplane.cores[1] = 9: ", "CPUs from 0-3, 8, 10-11,"] {
        assert!(error.contains(part), "{error}\nlacks {part}");
    }
    parse_toml("", toml_file()).unwrap().core_checks(&[]).unwrap();
}

#[test]
fn each_mistake_about_peers_names_file_line_key_value_and_remedy() {
    let route = |text: &str, remedy| {
        in_peer(&format!("routes = [\"{text}\"]"), "peers[0].routes[0]", format!("\"{text}\""), remedy)
    };
    let address = |text: &str, remedy| {
        let shown = if text.len() < 79 { format!("\"{text}\"") } else { format!("\"{}...", &text[..79]) };
        in_peer(&format!("addresses = [\"{text}\"]"), "peers[0].addresses[0]", shown, remedy)
    };
    let second_peer = peer(ID_C);
    let mistakes = [
        mistake("[peers]\nid = \"x\"", "peers", "", "[...]"),
        mistake("peers = [1]", "peers[0]", "1", "write a table"),
        mistake(peer("12D3KooW"), "peers[0].id", "\"12D3KooW\"", "ringlane init"),
        mistake(peer(&"1".repeat(100_000)), "peers[0].id", format!("\"{}...", "1".repeat(79)), "ringlane init"),
        in_peer(&peer(ID_B), "peers[1].id", format!("\"{ID_B}\""), "one entry"),
        in_peer(
            &format!("name = \"Site-B\"\n{second_peer}name = \"site-b\""),
            "peers[1].name",
            "\"site-b\"",
            "name of its own",
        ),
        in_peer("nmae = \"b\"", "peers[0].nmae", "\"b\"", "did you mean name?"),
        in_peer("name = \"a\\u001b[31m\"", "peers[0].name", "\"a\\u{1b}[31m\"", "printable"),
        in_peer(&format!("name = \"{}\"", "n".repeat(256)), "peers[0].name", format!("\"{}...", "n".repeat(79)), "255"),
        route("10.0.0.5", "write \"10.0.0.5/32\""),
        route("fd00::5", "write \"fd00::5/128\""),
        route("10.20.1.0/16", "write \"10.20.0.0/16\""),
        route("fd00::1/64", "write \"fd00::/64\""),
        route("10.0.0.0/33", "from 0 to 32"),
        route("fd00::/129", "from 0 to 128"),
        route("10.1.0.0/255.255.0.0", "write \"10.1.0.0/16\""),
        route("lan", "10.20.0.0/16"),
        route("127.0.0.0/8", "remove it"),
        route("::1/128", "remove it"),
        route("fe80::/10", "remove it"),
        route("169.254.0.0/16", "remove it"),
        route("224.0.0.0/4", "remove it"),
        in_peer("routes = [\"10.0.0.0/8\", \"10.0.0.0/8\"]", "peers[0].routes[1]", "\"10.0.0.0/8\"", "remove one"),
        in_peer("routes = [{ metric = 1 }]", "peers[0].routes[0].net", "", "add the network"),
        in_peer("routes = [{ net = \"10.0.0.0/8\", cost = 1 }]", "peers[0].routes[0].cost", "1", "remove it"),
        in_peer("routes = [{ net = \"10.0.0.0/8\", metric = -1 }]", "peers[0].routes[0].metric", "-1", "from 0 to"),
        in_peer(
            "routes = [{ net = \"10.0.0.0/8\", metric = 1 }, \"10.0.0.0/8\"]",
            "peers[0].routes[1]",
            "\"10.0.0.0/8\"",
            "remove one",
        ),
        route("100.64.4.143/32", "remove it"),
        in_peer(
            &format!("routes = [\"100.64.4.18/32\"]\n{second_peer}"),
            "peers[0].routes[0]",
            "\"100.64.4.18/32\"",
            "remove it",
        ),
        address("10.0.0.2:8001", "/udp/8001/quic-v1"),
        address("/ip4/192.0.2.1/tcp/0", "the port"),
        address("/ip4/0.0.0.0/tcp/1", "own address"),
        address("/ip6/ff02::1/tcp/1", "own address"),
        address("/ip4/192.0.2.1", "write one such as"),
        address("/dnsaddr/b", "write one such as"),
        address(&format!("/ip4/192.0.2.1/tcp/1/p2p/{ID_C}"), "id after /p2p/"),
        address(&format!("/ip4/192.0.2.1/tcp/1/p2p/{}", "1".repeat(100_000)), "write one such as"),
        in_peer(&format!("addresses = [{}]", "\"\",".repeat(33)), "peers[0].addresses", "", "at most 32"),
        in_peer(&format!("routes = [{}]", "\"\",".repeat(1025)), "peers[0].routes", "", "at most 1024"),
        mistake(peer(ID_B).repeat(PEERS_MAX + 1), "peers", "", "at most 1024"),
    ];
    assert_refused(&mistakes, "/etc/ringlane/net0.toml", true);
}

#[test]
fn a_mistake_without_a_line_of_its_own_is_named_all_the_same() {
    let refused = |text: &str, file, key, value: &str, remedy| {
        assert_refused(&[mistake(text, key, value, remedy)], file, false);
    };
    refused("[[peers]]\nname = \"b\"", "a.toml", "peers[0].id", "", "add the id");
    refused("", "a-network-with-a-long-name.toml", "interface", "\"a-network-with-a-long-name\"", "set interface");
    refused(&" ".repeat(CONFIG_BYTES_MAX + 1), "a.toml", "", "", "keep it to 1048576");
    let json = hyprspace("\"peers\": []");
    refused(&json, "a-network-with-a-long-name.json", "interface", "\"a-network-with-a-long-name\"", "rename the file");
    assert!(parse("", Path::new("..")).unwrap_err().to_string().contains("rename it"));
}

#[test]
fn line_and_column_point_at_the_value() {
    let error = parse_toml("# ä\n[dataplane]\nmtu = 1500 \nworkers = 99\n", Path::new("a.toml")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a.toml:4:11: dataplane.workers = 99: is out of range; write a number of workers from 1 to 64"
    );
}

#[test]
fn all_problems_are_named_at_once_and_their_number_is_bounded() {
    let text = "interface = \"a b\"\nmdns = 1\n".to_owned() + &peer("x") + "routes = [\"10.0.0.5\", \"10.0.0.5/8\"]";
    let error = parse_toml(&text, Path::new("a.toml")).unwrap_err();
    let keys: Vec<_> = error.problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["mdns", "peers[0].id", "peers[0].routes[0]", "peers[0].routes[1]", "interface"]);
    assert!(error.to_string().starts_with("a.toml: 5 problems\n  a.toml:2:8: mdns = 1: "), "{error}");

    let error = parse_toml(&format!("{}routes = [{}]", peer(ID_B), "1,".repeat(1000)), toml_file()).unwrap_err();
    assert_eq!((error.problems.len(), error.omitted), (CONFIG_PROBLEMS_MAX, 1000 - CONFIG_PROBLEMS_MAX));
    assert!(error.to_string().ends_with("and 936 more"), "{error}");
}

#[test]
fn all_peers_together_have_a_bounded_number_of_routes() {
    let entry = |seed| peer(&peer_id_of_seed(seed).to_string()) + &format!("routes = [{}]\n", "\"::/0\",".repeat(1024));
    let text: String = (0..65).map(entry).collect();
    let message = parse_toml(&text, toml_file()).unwrap_err().to_string();
    assert!(message.contains("peers: have 66560 routes; keep it to 65536"), "{message}");
}

#[test]
fn hyprspace_example_is_read_unchanged() {
    let settings = parse_hyprspace(HYPRSPACE_EXAMPLE, json_file()).unwrap();
    assert_eq!((settings.network.as_str(), settings.interface.as_str()), ("hs0", "hs0"));
    let IdentitySettings::Inline(keypair) = &settings.identity else { panic!("{:?}", settings.identity) };
    assert_eq!(keypair.public().to_peer_id().to_string(), ID_A);
    assert_eq!(texts(&settings.control.listen), ["/ip4/0.0.0.0/tcp/8001", "/ip4/0.0.0.0/udp/8001/quic-v1"]);
    assert!(settings.control.mdns);
    assert_eq!(settings.dataplane, default_dataplane());
    let [peer] = settings.peers.as_slice() else { panic!("{:?}", settings.peers) };
    assert_eq!((peer.name.as_str(), peer.id.to_string().as_str()), ("peerb", ID_B));
    assert_eq!(texts(&peer.addresses), ["/ip4/10.55.0.2/tcp/8001"]);
    assert_eq!(texts(&peer.routes), ["10.10.0.0/16", "2001:db8:1::/64"]);
    assert_eq!(settings.services.len(), 1);
    assert!(!format!("{settings:?}").contains(&KEY_A[..20]), "the key is in the debug output");
}

#[test]
fn hyprspace_absent_and_null_keys_take_their_defaults_and_empty_lists_are_honoured() {
    let nulls = "\"listenAddresses\": null, \"bootstrapPeers\": null, \"peers\": null, \"services\": null, \
                 \"domain\": null, \"filterPrivateAddresses\": null";
    for text in [hyprspace(nulls), format!("{{\"privateKey\": \"{KEY_A}\"}}")] {
        let settings = parse_hyprspace(&text, json_file()).unwrap();
        assert_eq!(settings.control.listen.len(), 4);
        assert!(settings.peers.is_empty());
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }
    let settings = parse_hyprspace(&hyprspace("\"listenAddresses\": [], \"bootstrapPeers\": []"), json_file()).unwrap();
    assert!(settings.control.listen.is_empty());
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    let settings = parse_hyprspace(&hyprspace("\"unheardOf\": {\"a\": [1]}"), json_file()).unwrap();
    assert!(settings.warnings[0].contains("unheardOf"), "{:?}", settings.warnings);
}

#[test]
fn hyprspace_habits_are_kept_where_they_do_no_harm() {
    let more = format!(
        "\"peers\": [{{\"id\": \"{ID_B}\", \"name\": \"x\", \"routes\": [{{\"net\": \"10.1.2.3/16\"}}], \"extra\": 1}}, \
         {{\"id\": \"{ID_C}\", \"name\": \"x\"}}], \
         \"bootstrapPeers\": [\"/ip4/192.0.2.1/udp/1/quic-v1/p2p/{ID_C}\", \"/ip4/192.0.2.1/udp/1/quic-v1/p2p/{ID_C}\", \
         \"/dnsaddr/c.example/p2p/{ID_C}\", \"/ip4/192.0.2.9/tcp/1/p2p/{ID_RSA}\"], \
         \"listenAddresses\": [\"/ip4/0.0.0.0/udp/8100/quic-v1\", \"/ip4/0.0.0.0/udp/8100/quic-v1\", \
         \"/ip4/0.0.0.0/udp/8001/quic-v1/webtransport\"]"
    );
    let settings = parse_hyprspace(&hyprspace(&more), json_file()).unwrap();
    assert_eq!(texts(&settings.peers[0].routes), ["10.1.0.0/16"]);
    assert_eq!(texts(&settings.peers[1].addresses), ["/ip4/192.0.2.1/udp/1/quic-v1"]);
    assert_eq!(texts(&settings.control.listen), ["/ip4/0.0.0.0/udp/8100/quic-v1"]);
    assert_eq!(settings.dataplane.port, 8164, "there is no key to move the lanes' ports out of the way");
    let warnings = settings.warnings.join("\n");
    let contacts = [format!("/dnsaddr/c.example/p2p/{ID_C}"), format!("/ip4/192.0.2.9/tcp/1/p2p/{ID_RSA}")];
    assert_eq!(
        texts(&settings.control.discovery.bootstrap),
        contacts,
        "ways into the DHT that are no peer's addresses"
    );
    for part in ["/udp/8001/quic-v1/webtransport", "peers[0].extra", "peers[1].name"] {
        assert!(warnings.contains(part), "{warnings}\nlacks {part}");
    }
}

#[test]
fn several_peers_may_route_one_network_each_with_its_metric() {
    let second_peer = format!("[[peers]]\nname = \"c\"\nid = \"{ID_C}\"\n");
    let first = peer(ID_B) + "routes = [\"10.0.0.0/8\", { net = \"::/0\", metric = 5 }]\n";
    let text = first + &second_peer + "routes = [{ net = \"10.0.0.0/8\", metric = 4294967295 }, { net = \"::/0\" }]";
    let settings = parse_toml(&text, toml_file()).unwrap();
    assert_eq!(texts(&settings.peers[0].routes), ["10.0.0.0/8", "::/0 metric 5"]);
    assert_eq!(texts(&settings.peers[1].routes), ["10.0.0.0/8 metric 4294967295", "::/0"]);

    let routed = |id: &str, route: &str| format!("{{\"id\": \"{id}\", \"routes\": [{{\"net\": {route}}}]}}");
    let peers = [routed(ID_B, "\"10.0.0.1/8\""), routed(ID_C, "\"10.0.0.0/8\", \"metric\": 7")].join(",");
    let settings = parse_hyprspace(&hyprspace(&format!("\"peers\": [{peers}]")), json_file()).unwrap();
    assert_eq!(texts(&settings.peers[0].routes), ["10.0.0.0/8"]);
    assert_eq!(texts(&settings.peers[1].routes), ["10.0.0.0/8 metric 7"]);
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn private_addresses_are_filtered_when_either_format_says_so() {
    let filters = |settings: ringlane_shared::config::Settings| settings.control.filter_private_addresses;
    assert!(!filters(parse_toml("", toml_file()).unwrap()));
    assert!(filters(parse_toml("[control]\nfilter_private_addresses = true", toml_file()).unwrap()));
    let json = parse_hyprspace(&hyprspace("\"filterPrivateAddresses\": true"), json_file()).unwrap();
    assert!(json.warnings.is_empty(), "{:?}", json.warnings);
    assert!(filters(json));
}

#[test]
fn each_mistake_in_hyprspace_json_names_file_key_value_and_remedy() {
    let peers = |entries: &str| hyprspace(&format!("\"peers\": [{entries}]"));
    let routed = |id: &str, nets: &str| format!("{{\"id\": \"{id}\", \"routes\": [{nets}]}}");
    let mistakes = [
        mistake("{}", "privateKey", "", "copy the privateKey"),
        mistake("{\"privateKey\": null}", "privateKey", "", "copy the privateKey"),
        mistake("{\"privateKey\": \"\"}", "privateKey", "", "copy the privateKey"),
        mistake("{\"privateKey\": \"zsecret\"}", "privateKey", "", "copy the privateKey"),
        mistake("{\"privateKey\": 7}", "privateKey", "", "double quotes"),
        mistake("[]", "", "", "write a table"),
        mistake(hyprspace("\"peers\": {}"), "peers", "", "[...]"),
        mistake(hyprspace("\"listenAddresses\": [\"8001\"]"), "listenAddresses[0]", "\"8001\"", "write one such as"),
        mistake(
            hyprspace("\"bootstrapPeers\": [\"/ip4/192.0.2.1/tcp/1\"]"),
            "bootstrapPeers[0]",
            "\"/ip4/192.0.2.1/tcp/1\"",
            "/p2p/",
        ),
        mistake(hyprspace("\"domain\": 1"), "domain", "1", "double quotes"),
        mistake(hyprspace("\"filterPrivateAddresses\": 1"), "filterPrivateAddresses", "1", "true or false"),
        mistake(peers("{}"), "peers[0].id", "", "add the peer's id"),
        mistake(peers("{\"id\": \"x\"}"), "peers[0].id", "\"x\"", "ringlane init"),
        mistake(
            peers(&[routed(ID_B, ""), routed(ID_B, "")].join(",")),
            "peers[1].id",
            format!("\"{ID_B}\""),
            "one entry",
        ),
        mistake(peers(&routed(ID_B, "{}")), "peers[0].routes[0].net", "", "add the network"),
        mistake(
            peers(&routed(ID_B, "{\"net\": \"10.0.0.5\"}")),
            "peers[0].routes[0].net",
            "\"10.0.0.5\"",
            "write \"10.0.0.5/32\"",
        ),
        mistake(
            peers(&routed(ID_B, "{\"net\": \"10.0.0.1/8\"}, {\"net\": \"10.0.0.2/8\"}")),
            "peers[0].routes[1].net",
            "\"10.0.0.2/8\"",
            "remove one",
        ),
    ];
    assert_refused(&mistakes, "/etc/hyprspace/hs0.json", false);
    let syntax = mistake("{\n \"peers\": [,]}", "", "", "correct the syntax");
    assert_refused(&[syntax], "/etc/hyprspace/hs0.json", true);
}

#[test]
fn names_and_metrics_are_as_configured() {
    let settings = parse_toml("", toml_file()).unwrap();
    assert_eq!(settings.dns, DnsSettings::default());
    assert_eq!(settings.metrics.listen, None);
    let text = "[dns]\nenabled = false\ndomain = \"VPN.example.org.\"\nresolved = false\nlisten = \"127.0.0.1:53\"\n\
                [metrics]\nlisten = \"[::1]:9100\"";
    let mut settings = parse_toml(text, toml_file()).unwrap();
    let listen = Some("127.0.0.1:53".parse().unwrap());
    let expected = DnsSettings { enabled: false, domain: "vpn.example.org".to_owned(), resolved: false, listen };
    assert_eq!(settings.dns, expected);
    assert_eq!(settings.metrics.listen, Some("[::1]:9100".parse().unwrap()));
    settings.set_metrics_port(None).unwrap();
    assert_eq!(settings.metrics.listen, Some("[::1]:9100".parse().unwrap()));
    settings.set_metrics_port(Some("9200")).unwrap();
    assert_eq!(settings.metrics.listen, Some("127.0.0.1:9200".parse().unwrap()));
    let error = settings.set_metrics_port(Some("0")).unwrap_err().to_string();
    assert!(error.contains("HYPRSPACE_METRICS_PORT = \"0\": is not a port"), "{error}");

    for (domain, expected) in [("\"net.example\"", "net.example"), ("\"\"", "hyprspace"), ("null", "hyprspace")] {
        let settings = parse_hyprspace(&hyprspace(&format!("\"domain\": {domain}")), json_file()).unwrap();
        assert_eq!(settings.dns, DnsSettings { domain: expected.to_owned(), ..DnsSettings::default() });
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }
}

#[test]
fn routers_are_asked_for_mappings_unless_the_file_says_no() {
    assert!(parse_toml("", toml_file()).unwrap().nat.port_mapping);
    assert!(!parse_toml("[nat]\nport_mapping = false", toml_file()).unwrap().nat.port_mapping);
    assert!(parse_hyprspace(&hyprspace("\"domain\": null"), json_file()).unwrap().nat.port_mapping);
    let error = parse_toml("[nat]\nport_mapping = \"no\"", toml_file()).unwrap_err().to_string();
    assert!(error.contains("nat.port_mapping"), "{error}");
}

#[test]
fn ways_through_nats_are_sought_unless_the_file_says_no() {
    assert!(parse_toml("", toml_file()).unwrap().nat.punch);
    assert!(!parse_toml("[nat]\npunch = false", toml_file()).unwrap().nat.punch);
    let error = parse_toml("[nat]\npunch = 0", toml_file()).unwrap_err().to_string();
    assert!(error.contains("nat.punch"), "{error}");
}

#[test]
fn each_mistake_about_names_and_metrics_names_file_line_key_value_and_remedy() {
    let (label, long) = ("d".repeat(64), format!("{}.{}", "d".repeat(50), "e".repeat(50)));
    let shortened = format!("\"{}...", &long[..79]);
    let mistakes = [
        mistake("[dns]\nenabled = 1", "dns.enabled", "1", "true or false"),
        mistake("[dns]\nresolved = \"no\"", "dns.resolved", "\"no\"", "true or false"),
        mistake("[dns]\ndomain = \"\"", "dns.domain", "\"\"", "write one such as"),
        mistake("[dns]\ndomain = \"a..b\"", "dns.domain", "\"a..b\"", "write one such as"),
        mistake("[dns]\ndomain = \"a b\"", "dns.domain", "\"a b\"", "write one such as"),
        mistake(format!("[dns]\ndomain = \"{label}\""), "dns.domain", format!("\"{label}\""), "write one such as"),
        mistake(format!("[dns]\ndomain = \"{long}\""), "dns.domain", shortened, "at most 100 bytes"),
        mistake("[dns]\nlisten = \"127.0.0.1\"", "dns.listen", "\"127.0.0.1\"", "\"127.0.0.53:5353\""),
        mistake("[dns]\nlisten = \"127.0.0.1:0\"", "dns.listen", "\"127.0.0.1:0\"", "write one such as"),
        mistake("[dns]\nlisten = 53", "dns.listen", "53", "double quotes"),
        mistake("[dns]\ndomian = \"x\"", "dns.domian", "\"x\"", "did you mean domain"),
        mistake("[metrics]\nlisten = \"localhost:9100\"", "metrics.listen", "\"localhost:9100\"", "\"127.0.0.1:9100\""),
        mistake("[metrics]\nport = 9100", "metrics.port", "9100", "move it into [dataplane]"),
    ];
    assert_refused(&mistakes, "/etc/ringlane/net0.toml", true);
    let mistakes = [mistake(hyprspace("\"domain\": \"a b\""), "domain", "\"a b\"", "write one such as")];
    assert_refused(&mistakes, "/etc/hyprspace/hs0.json", false);
}

#[test]
fn a_private_key_is_never_repeated_in_a_message() {
    for text in [
        format!("{{\"privateKey\": [\"{KEY_A}\"]}}"),
        format!("{{\"privateKey\": \"{}\"}}", &KEY_A[..90]),
        format!("{{\"privatekey\": \"{KEY_A}\"}}"),
    ] {
        let message = parse_hyprspace(&text, json_file()).unwrap_err().to_string();
        assert!(!message.contains(&KEY_A[..12]), "{message}");
    }
    for text in [format!("private_key = \"{KEY_A}\""), peer(KEY_A)] {
        let message = parse_toml(&text, toml_file()).unwrap_err().to_string();
        assert!(!message.contains(&KEY_A[..12]), "{message}");
    }
}

#[test]
fn our_own_id_among_the_peers_is_refused() {
    let settings = parse_toml(&(peer(ID_B) + &peer(ID_A)), toml_file()).unwrap();
    let error = settings.own_peer_checks(&parse_peer_id(ID_A).unwrap()).unwrap_err().to_string();
    for part in ["/etc/ringlane/net0.toml", "peers[1].id", ID_A, "own id", "remove this entry"] {
        assert!(error.contains(part), "{error}");
    }
    settings.own_peer_checks(&parse_peer_id(ID_C).unwrap()).unwrap();
}

#[test]
fn our_own_builtin_address_as_a_peers_route_is_refused() {
    let own = parse_peer_id(ID_A).unwrap();
    for address in [IpAddr::from(builtin_ipv4(&own)), IpAddr::from(builtin_ipv6(&own))] {
        let prefix = ipnet::IpNet::from(address).to_string();
        let text = peer(ID_B) + &format!("routes = [\"10.0.0.0/8\", \"{prefix}\"]");
        let error = parse_toml(&text, toml_file()).unwrap().own_peer_checks(&own).unwrap_err().to_string();
        for part in ["net0.toml", "peers[0].routes[1]", &prefix, "remove it"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

/// Two nodes whose built-in IPv4 addresses are the same, found by counting seeds up.
fn colliding_peers() -> [libp2p_identity::PeerId; 2] {
    let mut seen = std::collections::BTreeMap::new();
    for seed in 0.. {
        let peer = peer_id_of_seed(seed);
        if let Some(first) = seen.insert(builtin_ipv4(&peer), peer) {
            return [first, peer];
        }
    }
    unreachable!("65536 keys share fewer addresses")
}

#[test]
fn colliding_builtin_addresses_are_refused() {
    let [first, second] = colliding_peers();
    let text = peer(&first.to_string()) + &peer(&second.to_string());
    let error = parse_toml(&text, toml_file()).unwrap_err().to_string();
    for part in ["net0.toml:4:6", "peers[1].id", &second.to_string(), &builtin_ipv4(&first).to_string(), "--force"] {
        assert!(error.contains(part), "{error}");
    }
    let settings = parse_toml(&peer(&first.to_string()), toml_file()).unwrap();
    let error = settings.own_peer_checks(&second).unwrap_err().to_string();
    for part in ["net0.toml", "peers[0].id", &first.to_string(), &builtin_ipv4(&first).to_string(), "--force"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_worker_count_known_only_later_is_checked_as_one_in_the_file_is() {
    let settings = parse_toml("[dataplane]\nport = 65530", toml_file()).unwrap();
    settings.worker_port_checks(6).unwrap();
    let error = settings.worker_port_checks(7).unwrap_err().to_string();
    assert!(error.contains("dataplane.port = 65530") && error.contains("at most 65529"), "{error}");
    let settings = parse_toml("[dataplane]\nport = 8000", toml_file()).unwrap();
    settings.worker_port_checks(1).unwrap();
    let error = settings.worker_port_checks(2).unwrap_err().to_string();
    assert!(error.contains("control.listen[0]") && error.contains("dataplane.port = 8100"), "{error}");
}

#[test]
fn one_listen_address_can_be_read_by_itself() {
    assert_eq!(parse_listen_address("/ip6/::/tcp/1").unwrap().to_string(), "/ip6/::/tcp/1");
    assert!(parse_listen_address("::1").unwrap_err().contains("write one such as"));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(
        any in "\\PC*",
        near_toml in "(interface|peers|\\[\\[peers\\]\\]|id|[=\"{}\\[\\],/.\n 0-9a-z]){0,80}",
        near_json in "\\{\"(peers|listenAddresses|bootstrapPeers)\": \\[(\\{|\\}|\"[/a-z0-9.]{0,40}\"|,|:|null|1){0,20}\\]\\}",
    ) {
        for text in [&any, &near_toml, &near_json] {
            let _ = parse_toml(text, toml_file());
            let _ = parse_hyprspace(text, json_file());
        }
    }
}

#[test]
fn relays_are_peers_whose_addresses_become_the_peers_own() {
    let text = |relay: &str| format!("[[peers]]\nid = \"{ID_B}\"\n[relay]\n{relay}\n");
    let read = |relay: &str| parse_toml(&text(relay), Path::new("net.toml"));
    let address = format!("/ip4/192.0.2.1/tcp/8001/p2p/{ID_B}");
    let settings =
        read(&format!("serve = \"never\"\nmax = 1\nrate_mbit = 20\naddresses = [\"{address}\", \"{address}\"]"))
            .unwrap();
    let id = parse_peer_id(ID_B).unwrap();
    let expected = RelaySettings { serve: RelayServe::Never, preferred: vec![id], max: 1, rate_mbit: 20 };
    assert_eq!(settings.relay, expected);
    assert_eq!(settings.peers[0].addresses, ["/ip4/192.0.2.1/tcp/8001".parse().unwrap()]);
    assert_eq!(read("").unwrap().relay, RelaySettings::default());
    let hyprspace = parse_hyprspace(HYPRSPACE_EXAMPLE, Path::new("net.json")).unwrap();
    assert_eq!(hyprspace.relay, RelaySettings::default());
    for (relay, problem) in [
        ("serve = \"yes\"", "relay.serve"),
        ("max = 9", "relay.max"),
        ("rate_mbit = 0", "relay.rate_mbit"),
        (&format!("addresses = [\"/ip4/192.0.2.1/tcp/8001/p2p/{ID_C}\"]"), "relay.addresses[0]"),
        ("addresses = [\"/ip4/192.0.2.1/tcp/8001\"]", "relay.addresses[0]"),
        ("address = []", "relay.address"),
    ] {
        let error = read(relay).unwrap_err();
        assert_eq!(error.problems.len(), 1, "{relay}: {error}");
        assert_eq!(error.problems[0].key, problem, "{relay}: {error}");
    }
}
