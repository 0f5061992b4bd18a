//! The commands that need no running node, as a user types them: exit codes, messages, files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value as Json;

const DOCUMENTATION: &str = include_str!("../../../docs/configuration.md");
const ID_B: &str = "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46";
const HYPRSPACE_KEY: &str =
    "z23jhTbcjBgHmxFeeC11RXxeXb32Ce9eMvMy75ke2TrCsXpNrNvVsH98qSumzxPBbF7TqyBsd7macsAYfnVQzUApd51ZgC";

struct Answer {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Answer {
    fn json(&self) -> Json {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}\n{}\n{}", self.stdout, self.stderr))
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stderr, "");
        self
    }

    /// Exit code 1, nothing on stdout, and an error on stderr that has all of `parts`.
    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "{}\n{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(self.stderr.starts_with("ringlane: "), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{}\nlacks {part:?}", self.stderr);
        }
    }
}

fn ringlane(arguments: &[&str]) -> Answer {
    let Output { status, stdout, stderr } =
        Command::new(env!("CARGO_BIN_EXE_ringlane")).args(arguments).output().expect("the binary is built");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Answer { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// A directory of its own for one test, and names in it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("temporary directories have plain names").to_owned()
    }

    fn init(&self, name: &str, more: &[&str]) -> Answer {
        ringlane(&[&["init", "-c", &self.text(name)], more].concat())
    }

    fn check(&self, name: &str, more: &[&str]) -> Answer {
        ringlane(&[&["check", "-c", &self.text(name)], more].concat())
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).expect("the file is there")
    }

    fn append(&self, name: &str, text: &str) {
        self.write(name, &(self.read(name) + text));
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("the directory is ours");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the directory is ours");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("it can be listed").file_name().into_string().expect("plain")).collect();
        names.sort();
        names
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("the file is there").permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("the file is ours");
}

#[test]
fn init_writes_a_configuration_and_a_secret_key_that_check_accepts() {
    let place = Place::new();
    let listen = ["--listen", "/ip4/192.0.2.1/udp/8001/quic-v1", "--listen", "/ip6/::/tcp/8001"];
    let made = place.init("a.toml", &[&listen[..], &["--name", "site-a", "--json"]].concat()).succeeded().json();
    assert_eq!(place.names(), ["a.key", "a.toml"]);
    assert_eq!(mode(&place.path("a.key")), 0o600);
    assert_eq!(made["name"], "site-a");
    assert_eq!(made["addresses"], serde_json::json!(["/ip4/192.0.2.1/udp/8001/quic-v1"]));
    assert_eq!(made["config"], place.text("a.toml"));
    assert_eq!(made["key_file"], place.text("a.key"));

    let checked = place.check("a.toml", &["--json"]).succeeded().json();
    assert_eq!(checked["ok"], true);
    assert_eq!(checked["interface"], "a");
    assert_eq!(checked["network"], "a");
    for key in ["id", "builtin_ipv4", "builtin_ipv6", "key_file"] {
        assert_eq!(checked[key], made[key], "{key}");
    }
    assert_eq!(checked["listen"], serde_json::json!(["/ip4/192.0.2.1/udp/8001/quic-v1", "/ip6/::/tcp/8001"]));
    assert_eq!((&checked["mdns"], &checked["port"], &checked["mtu"]), (&true.into(), &8100.into(), &1420.into()));
    assert!(checked["workers"].as_u64().is_some_and(|workers| (1..=64).contains(&workers)));

    let summary = place.check("a.toml", &[]).succeeded().stdout;
    for part in [made["id"].as_str(), made["builtin_ipv4"].as_str(), made["builtin_ipv6"].as_str()] {
        assert!(summary.contains(part.expect("a string")), "{summary}");
    }
}

#[test]
fn the_settings_that_init_writes_as_comments_are_the_defaults() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let checked = place.check("a.toml", &["--json"]).succeeded().json();
    assert_eq!(checked["cores"], serde_json::json!([]));
    assert_eq!((&checked["busy_poll_us"], &checked["tun_queue_packets"]), (&0.into(), &500.into()));
    assert_eq!(
        checked["offload"],
        serde_json::json!({
            "tun_checksum": true, "tun_tso": true, "tun_uso": true, "tun_coalesce": true,
            "udp_gso": true, "udp_gro": true, "udp_sentinel": "auto", "huge_pages": true,
        })
    );

    let text = place.read("a.toml");
    let (settings, peers) = text.split_once("# One entry").expect("the file ends with an example of a peer");
    let is_example = |line: &str| {
        let without_default = ["workers", "cores", "delegated_routers", "swarm_key", "proxy", "tls_"];
        let is_example = |key: &&str| line.strip_prefix("# ").is_some_and(|line| line.starts_with(key));
        let others = ["# rate_mbit = 100", "# listen = \"127.0.0.1:9100\""];
        without_default.iter().any(is_example) || others.contains(&line)
    };
    let uncommented: Vec<_> = settings
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if !is_example(line) && (setting.contains(" = ") || setting.starts_with('[')) => setting,
            _ => line,
        })
        .collect();
    assert!(uncommented.contains(&"[dataplane.offload]") && uncommented.contains(&"udp_sentinel = \"auto\""));
    for key in MOVING_KEYS {
        let is_there = text.lines().any(|line| line.starts_with(&format!("# {key} = ")));
        assert!(is_there && checked.get(key).is_some(), "{key}");
    }
    assert!(peers.contains("# carrier = "), "{peers}");
    place.write("a.toml", &format!("{}\n# One entry{peers}", uncommented.join("\n")));
    assert_eq!(place.check("a.toml", &["--json"]).succeeded().json(), checked);
}

#[test]
fn every_key_that_is_documented_is_in_what_init_writes() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let written = place.read("a.toml");
    let of = |text: &str| -> BTreeSet<String> {
        let mut table = String::new();
        let mut keys = BTreeSet::new();
        for line in text.lines().map(|line| line.strip_prefix("# ").unwrap_or(line)) {
            match line.split_once([' ', ']']) {
                Some((name, _)) if line.starts_with('[') => table = name.trim_start_matches('[').to_owned(),
                Some((key, value)) if value.starts_with("= ") => drop(keys.insert(format!("{table}.{key}"))),
                _ => {}
            }
        }
        keys
    };
    let (_, example) = DOCUMENTATION.split_once("```toml\n").expect("it begins with an example of everything");
    let (example, _) = example.split_once("```").expect("that ends");
    let missing: Vec<_> = of(example).difference(&of(&written)).cloned().collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(of(example).len() > 50, "{:?}", of(example));
}

#[test]
fn check_tells_how_peers_are_found_and_what_is_offered_to_whom() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let checked = place.check("a.toml", &["--json"]).succeeded().json();
    assert_eq!((&checked["dht"], &checked["swarm_key"]), (&"client".into(), &serde_json::Value::Null));
    for key in ["bootstrap", "delegated_routers", "services"] {
        assert_eq!(checked[key], serde_json::json!([]), "{key}");
    }

    let peer = place.init("b.toml", &["--json"]).succeeded().json();
    let id = peer["id"].as_str().expect("a string");
    let contact = "/ip4/192.0.2.9/tcp/8001/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN";
    let control = format!(
        "[control]\ndht = \"server\"\nbootstrap = [{contact:?}]\nproxy = \"http://me:secret@proxy.example:3128\"\n\
         delegated_routers = [{{ url = \"https://router.example\" }}]\nfilter_private_addresses = true\n"
    );
    place.write("a.toml", &place.read("a.toml").replacen("[control]\n", &control, 1));
    place.append("a.toml", &format!("[[peers]]\nname = \"site-b\"\nid = {id:?}\n"));
    place.append("a.toml", "[services.www]\ntarget = \"/tcp/8080\"\nallow = [\"@site-b\"]\n");
    let checked = place.check("a.toml", &["--json"]).succeeded().json();
    assert_eq!((&checked["dht"], &checked["filter_private_addresses"]), (&"server".into(), &true.into()));
    let proxy = serde_json::json!("http://proxy.example:3128");
    assert_eq!((&checked["scope"], &checked["proxy"]), (&"any".into(), &proxy), "without the password");
    assert_eq!(checked["bootstrap"], serde_json::json!([contact]));
    assert_eq!(checked["delegated_routers"], serde_json::json!(["https://router.example"]));
    let [service] = checked["services"].as_array().expect("a list").as_slice() else { panic!("{checked}") };
    assert_eq!((&service["name"], &service["target"]), (&"www".into(), &"/ip4/127.0.0.1/tcp/8080".into()));
    assert_eq!((&service["allow"], &service["deny"]), (&serde_json::json!([id]), &serde_json::json!([])));
    let address = service["address"].as_str().expect("a string");
    assert!(address.starts_with("fd00:6879:7072:7370:7376:"), "{address}");

    let summary = place.check("a.toml", &[]).succeeded().stdout;
    for part in ["server", "1 address ", "https://router.example", "no private addresses", "www", address, "site-b"] {
        assert!(summary.contains(part), "{part} is missing in\n{summary}");
    }
}

/// The keys of `[dataplane]` that say how packets travel.
const MOVING_KEYS: [&str; 10] = [
    "engine",
    "carrier",
    "cipher",
    "rekey_seconds",
    "rekey_records",
    "keep_alive_seconds",
    "rate_mbit",
    "fragments",
    "copy_dscp",
    "copy_ecn",
];

#[test]
fn check_tells_how_packets_travel() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let usual = place.check("a.toml", &[]).succeeded().stdout;
    for line in [
        "engine      auto\n",
        "carrier     auto\n",
        "cipher      auto\n",
        "rekey       after 120 s or 67108864 records\n",
        "keep alive  every 25 s\n",
        "fragments   on\n",
        "copied      ecn\n",
    ] {
        assert!(usual.contains(line), "{usual}\nlacks {line}");
    }
    assert!(!usual.contains("\nrate "), "{usual}");
    place.write(
        "b.toml",
        &format!(
            "identity.key_file = \"a.key\"\n[dataplane]\nengine = \"epoll\"\ncarrier = \"lane\"\n\
             cipher = \"chacha20-poly1305\"\nrekey_seconds = 60\nrekey_records = 1000\nkeep_alive_seconds = 5\n\
             rate_mbit = 90\nfragments = false\ncopy_dscp = true\ncopy_ecn = false\n\
             [[peers]]\nid = \"{ID_B}\"\ncarrier = \"quic\"\n"
        ),
    );
    let json = place.check("b.toml", &["--json"]).succeeded().json();
    let told: Vec<_> = MOVING_KEYS.iter().map(|key| json[key].clone()).collect();
    let set = serde_json::json!(["epoll", "lane", "chacha20-poly1305", 60, 1000, 5, 90, false, true, false]);
    assert_eq!((Json::Array(told), &json["peers"][0]["carrier"]), (set, &"quic".into()));
    let summary = place.check("b.toml", &[]).succeeded().stdout;
    for line in [
        "engine      epoll\n",
        "carrier     lane\n",
        "cipher      chacha20-poly1305\n",
        "rekey       after 60 s or 1000 records\n",
        "keep alive  every 5 s\n",
        "rate        90 Mbit/s\n",
        "fragments   off\n",
        "copied      dscp\n",
        "  carrier   quic\n",
    ] {
        assert!(summary.contains(line), "{summary}\nlacks {line}");
    }
}

#[test]
fn check_tells_what_is_done_about_nats() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let usual = place.check("a.toml", &[]).succeeded().stdout;
    for line in [
        "nat         port mapping on, punching on\n",
        "relay       serves: auto, up to 1000 Mbit/s; reachable through 2 at once\n",
    ] {
        assert!(usual.contains(line), "{usual}\nlacks {line}");
    }
    place.write(
        "b.toml",
        &format!(
            "identity.key_file = \"a.key\"\n[control]\ntls_certificate = \"c.pem\"\ntls_key = \"k.pem\"\n\
             [nat]\nport_mapping = false\npunch = false\n\
             [relay]\nserve = \"never\"\naddresses = [\"/ip4/192.0.2.9/tcp/8001/p2p/{ID_B}\"]\nmax = 0\nrate_mbit = 5\n\
             [[peers]]\nid = \"{ID_B}\"\nname = \"r\"\n"
        ),
    );
    let json = place.check("b.toml", &["--json"]).succeeded().json();
    let relay = serde_json::json!({ "serve": "never", "preferred": [ID_B], "max": 0, "rate_mbit": 5 });
    assert_eq!((&json["port_mapping"], &json["punch"], &json["relay"]), (&false.into(), &false.into(), &relay));
    for (key, file) in [("tls_certificate", "c.pem"), ("tls_key", "k.pem")] {
        assert!(json[key].as_str().is_some_and(|path| path.ends_with(file)), "{json}");
    }
    let summary = place.check("b.toml", &[]).succeeded().stdout;
    for line in [
        "nat         port mapping off, punching off\n",
        "relay       serves: never, up to 5 Mbit/s; reachable through 0 at once\n",
        "  preferred r\n",
    ] {
        assert!(summary.contains(line), "{summary}\nlacks {line}");
    }
}

#[test]
fn check_tells_what_of_the_packet_path_is_not_as_usual() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let usual = place.check("a.toml", &[]).succeeded().stdout;
    assert!(usual.contains("tun queue   500 packets") && !usual.contains("not used"), "{usual}");
    let core = first_core();
    let dataplane = format!(
        "[dataplane]\ncores = [{core}]\nbusy_poll_us = 20\ntun_queue_packets = 64\n\
         offload = {{ tun_checksum = false, udp_sentinel = true }}\n"
    );
    place.write("b.toml", &format!("identity.key_file = \"a.key\"\n{dataplane}"));
    let json = place.check("b.toml", &["--json"]).succeeded().json();
    assert_eq!((&json["workers"], &json["cores"]), (&1.into(), &serde_json::json!([core])), "one for each core");
    assert_eq!((&json["offload"]["tun_tso"], &json["offload"]["udp_sentinel"]), (&false.into(), &true.into()));
    let summary = place.check("b.toml", &[]).succeeded().stdout;
    for line in [
        format!("cores       {core}\n"),
        "busy poll   20 us\n".to_owned(),
        "tun queue   64 packets for each worker\n".to_owned(),
        "not used    tun_checksum, tun_tso, tun_uso\n".to_owned(),
    ] {
        assert!(summary.contains(&line), "{summary}\nlacks {line}");
    }
}

/// The first CPU this process may use.
fn first_core() -> u16 {
    let status = fs::read_to_string("/proc/thread-self/status").expect("Linux has it");
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("it has the line");
    let first = list.trim().split([',', '-']).next().expect("there is one at least");
    first.parse().expect("a number")
}

#[test]
fn the_entry_that_init_prints_works_in_the_other_nodes_configuration() {
    let place = Place::new();
    let entry_of = |name: &str, address: &str| {
        let printed = place.init(name, &["--listen", address, "--name", name]).succeeded().stdout;
        printed[printed.find("[[peers]]").expect("there is an entry")..].to_owned()
    };
    let entry_a = entry_of("a.toml", "/ip4/10.201.0.1/udp/8001/quic-v1");
    let entry_b = entry_of("b.toml", "/ip4/10.201.0.2/udp/8001/quic-v1");
    place.append("a.toml", &format!("{entry_b}routes = [\"10.20.0.0/16\"]\n"));
    place.append("b.toml", &entry_a);
    let [a, b] = ["a.toml", "b.toml"].map(|name| place.check(name, &["--json"]).succeeded().json());
    assert_eq!(a["peers"][0]["id"], b["id"]);
    assert_eq!(b["peers"][0]["id"], a["id"]);
    assert_eq!(a["peers"][0]["builtin_ipv6"], b["builtin_ipv6"]);
    assert_eq!(a["peers"][0]["addresses"], b["listen"]);
    assert_eq!(a["peers"][0]["routes"], serde_json::json!(["10.20.0.0/16"]));

    place.append("a.toml", &entry_a);
    place.check("a.toml", &[]).refused(&[
        "a.toml",
        "peers[1].id",
        a["id"].as_str().expect("a string"),
        "own id",
        "remove",
    ]);
}

#[test]
fn init_never_overwrites_anything_without_force() {
    for existing in ["a.key", "a.toml"] {
        let place = Place::new();
        place.write(existing, "precious");
        place.init("a.toml", &[]).refused(&[&place.text(existing), "exists", "--force"]);
        assert_eq!(place.names(), [existing], "nothing else was written");
        assert_eq!(place.read(existing), "precious");
        place.init("a.toml", &["--force"]).succeeded();
        assert_eq!(place.names(), ["a.key", "a.toml"]);
        assert_ne!(place.read(existing), "precious");
        assert_eq!(mode(&place.path("a.key")), 0o600);
        place.check("a.toml", &[]).succeeded();
    }
    let place = Place::new();
    fs::create_dir(place.path("a.toml")).expect("the directory is ours");
    place.init("a.toml", &["--force"]).refused(&["a.toml", "not a regular file"]);
    assert_eq!(place.names(), ["a.toml"]);
}

#[test]
fn init_makes_no_configuration_that_could_not_be_used() {
    let place = Place::new();
    place.init("a-network-with-a-long-name.toml", &[]).refused(&["a-network-with-a-long-name", "interface", "1 to 15"]);
    place.init("a.json", &[]).refused(&["a.json", ".toml"]);
    place.init("a.toml", &["--listen", "/ip4/0.0.0.0/udp/8100/quic-v1"]).refused(&["control.listen[0]", "8100"]);
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn wrong_usage_is_exit_code_2_and_help_is_0() {
    let place = Place::new();
    let config = place.text("a.toml");
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["init"],
        &["check"],
        &["check", "-c"],
        &["init", "-c", &config, "--listen", "0.0.0.0:8001"],
        &["init", "-c", &config, "--listen", "/ip4/10.0.0.1/udp/8001"],
        &["init", "-c", &config, "--name", "a\nb"],
        &["version", "extra"],
        &["completions", "tcsh"],
    ] {
        let answer = ringlane(arguments);
        assert_eq!(answer.code, Some(2), "{arguments:?}\n{}", answer.stderr);
        assert!(!answer.stderr.is_empty() && answer.stdout.is_empty(), "{arguments:?}");
    }
    assert_eq!(place.names(), [""; 0]);
    for arguments in [&["--help"][..], &["--version"], &["init", "--help"]] {
        ringlane(arguments).succeeded();
    }
}

#[test]
fn each_kind_of_mistake_is_exit_code_1_and_names_file_key_value_and_remedy() {
    let place = Place::new();
    let id = place.init("a.toml", &["--json"]).succeeded().json()["id"].as_str().expect("a string").to_owned();
    let peer = |id: &str, more: &str| format!("[[peers]]\nid = \"{id}\"\n{more}\n");
    let cases = [
        ("colour = 1".to_owned(), ["colour", "= 1", "remove it"]),
        ("interface = \"a/b\"".to_owned(), ["interface", "\"a/b\"", "set interface"]),
        ("[dataplane]\nworkers = 0".to_owned(), ["dataplane.workers", "= 0", "from 1 to 64"]),
        // A machine with 1024 CPUs would have to be found first.
        ("[dataplane]\ncores = [1023]".to_owned(), ["dataplane.cores[0]", "= 1023", "write CPUs from"]),
        (
            "dataplane.offload = { tun_checksum = false, tun_tso = true }".to_owned(),
            ["dataplane.offload.tun_tso", "= true", "set tun_checksum = true"],
        ),
        (peer(ID_B, "") + &peer(ID_B, ""), ["peers[1].id", ID_B, "one entry"]),
        (peer(&id, ""), ["peers[0].id", &id, "remove this entry"]),
        (peer(ID_B, "routes = [\"10.0.0.5\"]"), ["peers[0].routes[0]", "\"10.0.0.5\"", "10.0.0.5/32"]),
        (
            peer(ID_B, "routes = [\"10.0.0.0/8\", { net = \"10.0.0.0/8\", metric = 1 }]"),
            ["peers[0].routes[1].net", "\"10.0.0.0/8\"", "remove one"],
        ),
    ];
    for (text, parts) in &cases {
        place.write("b.toml", &format!("identity.key_file = \"a.key\"\n{text}"));
        place.check("b.toml", &[]).refused(&[&[&*place.text("b.toml")][..], parts].concat());
        ringlane(&["up", "-c", &place.text("b.toml")]).refused(parts);
        let answer = place.check("b.toml", &["--json"]);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(1), ""));
        let json = answer.json();
        assert_eq!((&json["ok"], &json["file"]), (&false.into(), &place.text("b.toml").into()));
        let problem = &json["problems"][0];
        assert_eq!(problem["key"], parts[0], "{json}");
        assert!(problem["value"].is_string() && problem["problem"].is_string(), "{json}");
        assert!(problem["remedy"].as_str().is_some_and(|remedy| remedy.contains(parts[2])), "{json}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let place = Place::new();
    place.check("none.toml", &[]).refused(&["none.toml", "No such file"]);
    fs::create_dir(place.path("dir.toml")).expect("the directory is ours");
    place.check("dir.toml", &[]).refused(&["dir.toml", "cannot be read"]);
    fs::write(place.path("latin.toml"), b"# \xe4").expect("the directory is ours");
    place.check("latin.toml", &[]).refused(&["latin.toml", "UTF-8"]);
    place.write("big.toml", &"#".repeat((1 << 20) + 1));
    place.check("big.toml", &[]).refused(&["big.toml", "1048576"]);
}

#[test]
fn a_key_that_cannot_be_trusted_is_refused_naming_the_command_that_helps() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let key = place.path("a.key");
    set_mode(&key, 0o644);
    let remedy = format!("chmod 600 {}", key.display());
    place.check("a.toml", &[]).refused(&["a.toml", "identity.key_file", "a.key", "mode 0644", &remedy]);
    set_mode(&key, 0o600);
    place.check("a.toml", &[]).succeeded();

    let text = place.read("a.key");
    place.write("a.key", &text[..40]);
    let answer = place.check("a.toml", &[]);
    answer.refused(&["identity.key_file", "damaged", "backup"]);
    assert!(!answer.stderr.contains(&text[..20]), "{}", answer.stderr);
    fs::remove_file(&key).expect("the file is ours");
    place.check("a.toml", &[]).refused(&["identity.key_file", "no key file", "ringlane init"]);
}

#[test]
fn a_hyprspace_configuration_is_checked_like_our_own() {
    let place = Place::new();
    let config = |peer: &str| {
        format!(
            r#"{{"privateKey": "{HYPRSPACE_KEY}", "peers": [{{"name": "b", "id": "{peer}"}}],
                "bootstrapPeers": ["/ip4/10.55.0.2/tcp/8001/p2p/{ID_B}"], "services": {{"a": {{"target": "/tcp/80"}}}}}}"#
        )
    };
    place.write("hs0.json", &config(ID_B));
    set_mode(&place.path("hs0.json"), 0o644);
    let json = place.check("hs0.json", &["--json"]).succeeded().json();
    assert_eq!(json["id"], "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN");
    assert_eq!((&json["builtin_ipv4"], &json["interface"]), (&"100.64.132.22".into(), &"hs0".into()));
    assert_eq!(json["key_file"], Json::Null);
    assert_eq!(json["peers"][0]["addresses"], serde_json::json!(["/ip4/10.55.0.2/tcp/8001"]));
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("chmod 600"), "{warnings}");
    assert_eq!(json["services"][0]["target"], "/ip4/127.0.0.1/tcp/80");

    place.write("hs0.json", &config("12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN"));
    place.check("hs0.json", &[]).refused(&["hs0.json", "peers[0].id", "own id"]);
}

#[test]
fn check_tells_where_names_are_asked_and_metrics_read() {
    let place = Place::new();
    place.init("hs0.toml", &[]).succeeded();
    let checked = place.check("hs0.toml", &["--json"]).succeeded().json();
    let names = serde_json::json!({
        "enabled": true, "zone": "hs0.hyprspace.", "listen": "127.56.114.5:20647", "resolved": true
    });
    assert_eq!((&checked["dns"], &checked["metrics"]), (&names, &Json::Null));
    let text = place.check("hs0.toml", &[]).succeeded().stdout;
    assert!(text.contains("names       hs0.hyprspace. at 127.56.114.5:20647, systemd-resolved is told\n"), "{text}");

    let more = "\n[dns]\ndomain = \"VPN.example.org.\"\nresolved = false\nlisten = \"[::1]:5300\"\n\
                [metrics]\nlisten = \"127.0.0.1:9100\"\n";
    place.append("hs0.toml", more);
    let text = place.check("hs0.toml", &[]).succeeded().stdout;
    assert!(text.contains("names       hs0.vpn.example.org. at [::1]:5300\n"), "{text}");
    assert!(text.contains("metrics     http://127.0.0.1:9100/metrics\n"), "{text}");
}

#[test]
fn hyprspace_s_variable_says_where_metrics_are_read() {
    let place = Place::new();
    place.init("a.toml", &[]).succeeded();
    let check = |port: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringlane"));
        command.args(["check", "--json", "--config", &place.text("a.toml")]).env("HYPRSPACE_METRICS_PORT", port);
        let Output { status, stdout, .. } = command.output().expect("the binary is built");
        let answer: Json = serde_json::from_slice(&stdout).expect("check prints JSON");
        (status.success(), answer)
    };
    let (is_right, answer) = check("9105");
    assert!(is_right && answer["metrics"] == "127.0.0.1:9105", "{answer}");
    for port in ["", "0", "65536", "http", "127.0.0.1:9105"] {
        let (is_right, answer) = check(port);
        assert!(!is_right && answer["problems"][0]["key"] == "HYPRSPACE_METRICS_PORT", "{port:?}: {answer}");
    }
}

#[test]
fn version_and_completions_print_what_they_promise() {
    assert_eq!(ringlane(&["version"]).succeeded().stdout, format!("ringlane {}\n", env!("CARGO_PKG_VERSION")));
    let json = ringlane(&["version", "--json"]).succeeded().json();
    assert_eq!((&json["name"], &json["version"]), (&"ringlane".into(), &env!("CARGO_PKG_VERSION").into()));
    for shell in ["bash", "zsh", "fish"] {
        let script = ringlane(&["completions", shell]).succeeded().stdout;
        assert!(script.contains("ringlane") && script.contains("check"), "{shell}");
    }
}
