//! `ringlane init`: writes a new configuration and its key, and prints the entry other nodes need.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use multiaddr::{Multiaddr, Protocol};
use ringlane_control::store::{self, Existing, NewFile};
use ringlane_shared::config;
use ringlane_shared::dns::listen_address;
use ringlane_shared::identity::{builtin_ipv4, builtin_ipv6};
use ringlane_shared::lane::keys::CipherChoice;
use ringlane_shared::limits::{KEEP_ALIVE_SECONDS_DEFAULT, TUN_QUEUE_PACKETS_DEFAULT};
use ringlane_shared::plane::{CarrierChoice, Engine, Offload, OuterMarks, RekeyLimits};
use serde::Serialize;

use super::{print, print_json};
use crate::cli::InitArgs;

/// What was made.
#[derive(Serialize)]
struct NewNode<'a> {
    name: String,
    id: String,
    addresses: Vec<String>,
    builtin_ipv4: Ipv4Addr,
    builtin_ipv6: Ipv6Addr,
    config: &'a Path,
    key_file: &'a Path,
}

/// Writes both files or neither.
pub(crate) fn run(arguments: &InitArgs) -> anyhow::Result<ExitCode> {
    let config_file = arguments.config.as_path();
    let extension = config_file.extension().unwrap_or_default();
    ensure!(
        !extension.eq_ignore_ascii_case("json") && !extension.eq_ignore_ascii_case("key"),
        "{}: a new configuration is TOML, and its key is beside it with the ending .key; choose a name that ends in .toml",
        config_file.display()
    );
    let key_file = config_file.with_extension("key");
    let text = render(config_file, &key_file, &arguments.listen)?;
    config::parse_toml(&text, config_file)?;

    let keypair = store::generate_key()?;
    let key = store::key_file_text(&keypair)?;
    let files = [
        NewFile { path: &key_file, contents: key.as_bytes(), mode: store::SECRET_MODE },
        NewFile { path: config_file, contents: text.as_bytes(), mode: store::PUBLIC_MODE },
    ];
    store::write_files(&files, if arguments.force { Existing::Replace } else { Existing::Keep })
        .map_err(|error| anyhow::anyhow!("{error}; {}", error.remedy()))?;

    let id = keypair.public().to_peer_id();
    let node = NewNode {
        name: arguments.name.clone().unwrap_or_else(host_name),
        id: id.to_string(),
        addresses: arguments.listen.iter().filter(|address| is_concrete(address)).map(ToString::to_string).collect(),
        builtin_ipv4: builtin_ipv4(&id),
        builtin_ipv6: builtin_ipv6(&id),
        config: config_file,
        key_file: &key_file,
    };
    if arguments.output.json {
        print_json(&node)?
    } else {
        print(&describe(&node))?
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration: what was chosen, and the rest as comments that show the defaults.
fn render(config_file: &Path, key_file: &Path, listen: &[Multiaddr]) -> anyhow::Result<String> {
    let stem = config_file.file_stem().and_then(|stem| stem.to_str()).with_context(|| {
        format!("{}: the file name is not text; choose a name such as net0.toml", config_file.display())
    })?;
    let key_name = key_file.file_name().map(PathBuf::from).unwrap_or_default();
    let listen_default = config::DEFAULT_LISTEN.map(quoted).join(", ");
    let listen = if listen.is_empty() {
        format!("# listen = [{listen_default}]")
    } else {
        format!(
            "listen = [{}]",
            listen.iter().map(|address| quoted(&address.to_string())).collect::<Vec<_>>().join(", ")
        )
    };
    let offloads = Offload::ALL.map(|offload| match offload {
        Offload::UdpSentinel => format!("# {} = \"auto\"", offload.name()),
        _ => format!("# {} = true", offload.name()),
    });
    let (rekey, marks) = (RekeyLimits::default(), OuterMarks::default());
    Ok(format!(
        r#"# A Ringlane node. `ringlane check -c` validates this file; docs/configuration.md explains every key.

# The TUN interface.
interface = {interface}

[identity]
# The secret key, mode 0600. Relative paths are relative to this file.
key_file = {key_file}

[control]
# Where libp2p listens, to find and authenticate peers.
{listen}
# Whether to find peers on the local network.
# mdns = true
# The node's part in the distributed hash table: "client", "server" (for configured peers) or "off".
# dht = "client"
# DHT nodes to begin with, such as "/ip4/192.0.2.1/tcp/8001/p2p/12D3KooW..."; "public" stands for Hyprspace's list. With
# none, only configured peers are ever dialled.
# bootstrap = []
# HTTP servers that are asked where peers are.
# delegated_routers = [{{ url = "https://router.example" }}]
# The key file of a private libp2p network, which then uses TCP only.
# swarm_key = "swarm.key"
# Whether to use no private addresses of peers, such as 10.0.0.0/8; turns mDNS off.
# filter_private_addresses = false
# With whom the node has anything to do: "any", or "lan" for directly connected networks only.
# scope = "any"
# An HTTP proxy that all outgoing TCP connections go through.
# proxy = "http://user:password@proxy.example:3128"
# The certificate and key (PEM) of listen addresses that end in /wss; by default one is made that nobody signed.
# tls_certificate = "cert.pem"
# tls_key = "key.pem"

[dataplane]
# Threads that move packets, each on a core of its own; by default one per core.
# workers = 2
# Worker i uses UDP port + i.
# port = {port}
# Of the TUN interface, in bytes.
# mtu = 1420
# The CPUs the workers run on, worker i on the i-th of them; by default all this process may use.
# cores = [2, 3]
# How long an idle worker looks again before it sleeps, in microseconds.
# busy_poll_us = 0
# How many packets wait for a worker before the kernel drops the next.
# tun_queue_packets = {queue}
# What moves packets between a worker and the kernel: "auto", "io_uring" or "epoll".
# engine = "{engine}"
# How packets leave: "auto", in records ("lane"), in QUIC datagrams ("quic"), which is slower and passes where records do
# not, or without lanes on a libp2p stream ("stream"), where UDP does not pass at all.
# carrier = "{carrier}"
# What seals them: "auto", "aes-128-gcm", "aes-256-gcm" or "chacha20-poly1305".
# cipher = "{cipher}"
# A lane gets new keys after so many seconds, or so many records if that is sooner.
# rekey_seconds = {rekey_seconds}
# rekey_records = {rekey_records}
# How long a lane that is not used may be silent.
# keep_alive_seconds = {keep_alive}
# How much the node sends, in Mbit/s; by default as much as there is.
# rate_mbit = 100
# Whether a packet larger than its path travels in fragments, or else its sender is told.
# fragments = true
# What of the inner IP header is repeated in the outer one.
# copy_dscp = {copy_dscp}
# copy_ecn = {copy_ecn}

# What the kernel does for many packets at once; where it cannot, the node does without. docs/configuration.md says
# which to switch off if a driver does one of them wrong.
# [dataplane.offload]
{offloads}

# Names of the network's nodes, such as site-b.{stem}.{domain}; docs/dns.md says how hosts come to ask for them.
# [dns]
# enabled = true
# domain = "{domain}"
# Whether systemd-resolved is told to ask.
# resolved = true
# Where the name server listens.
# listen = "{names}"

# What is done about translators between this node and its peers.
# [nat]
# Whether routers are asked for port mappings, by PCP, NAT-PMP and UPnP.
# port_mapping = true
# Whether peers are told where this node is seen from outside, and ports are tried that nobody can name.
# punch = true
# Whom to ask, beside peers, what translators make of the lanes' ports, such as "stun.example:3478".
# stun_servers = []

# Figures for Prometheus, as /metrics over HTTP; by default nowhere.
# [metrics]
# listen = "127.0.0.1:9100"

# Peers that no direct path joins are joined by a third that both reach; it reads nothing of what it passes on.
# [relay]
# Whether this node is one for its peers: "auto" (while it can be reached from everywhere), "always" or "never".
# serve = "auto"
# Peers to use as relays before others, with their ids: "/ip4/192.0.2.1/udp/8001/quic-v1/p2p/12D3KooW...".
# addresses = []
# Through how many relays this node is to be reached at once while it is behind a translator or firewall.
# max = 2
# How much of others' lanes this node forwards, in Mbit/s.
# rate_mbit = {relay_rate}

# One entry for each peer, as `ringlane init` printed it on that node.
# [[peers]]
# name = "site-b"
# id = "12D3KooW..."
# addresses = ["/ip4/192.0.2.2/udp/8001/quic-v1"]   # optional: where to dial it
# routes = ["10.20.0.0/16", {{ net = "fd00:20::/64", metric = 10 }}]   # optional: the networks behind it
# carrier = "quic"                                  # optional: how packets leave to it, if not as above

# TCP services for peers, each with an address of its own.
# [services.www]
# target = "/tcp/8080"                              # or "/ip4/10.0.0.1/tcp/80", "/unix/run/x.sock"
# allow = ["@site-b"]                               # optional: who may use it; by default every peer
# deny = []                                         # optional: who may not
"#,
        interface = quoted(stem),
        key_file = quoted(&key_name.to_string_lossy()),
        port = config::DEFAULT_PORT,
        queue = TUN_QUEUE_PACKETS_DEFAULT,
        engine = Engine::default().name(),
        carrier = config::carrier_word(CarrierChoice::default()),
        cipher = config::cipher_word(CipherChoice::default()),
        rekey_seconds = rekey.after.as_secs(),
        rekey_records = rekey.records,
        keep_alive = KEEP_ALIVE_SECONDS_DEFAULT,
        copy_dscp = marks.copies_dscp,
        copy_ecn = marks.copies_ecn,
        offloads = offloads.join("\n"),
        domain = config::DEFAULT_DOMAIN,
        names = listen_address(stem),
        relay_rate = config::RELAY_RATE_MBIT_DEFAULT,
    ))
}

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Whether others can dial it as it stands.
fn is_concrete(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => !ip.is_unspecified(),
        _ => false,
    };
    host && !matches!(parts.next(), Some(Protocol::Tcp(0) | Protocol::Udp(0)))
}

/// Of this machine, as far as it can be a peer's; or nothing.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    config::parse_peer_name(name.trim()).unwrap_or_default()
}

fn describe(node: &NewNode<'_>) -> String {
    let mut text = format!("Wrote {} and {}\n", node.config.display(), node.key_file.display());
    let addresses: Vec<_> = node.addresses.iter().map(|address| quoted(address)).collect();
    // Writing to a string cannot fail.
    let _ = write!(
        text,
        "This node's addresses in the network are {} and {}\n\
         Add this entry to the configuration of your other nodes:\n\n\
         [[peers]]\nname = {}\nid = {}\n",
        node.builtin_ipv4,
        node.builtin_ipv6,
        quoted(&node.name),
        quoted(&node.id),
    );
    if !addresses.is_empty() {
        let _ = writeln!(text, "addresses = [{}]", addresses.join(", "));
    }
    text
}
