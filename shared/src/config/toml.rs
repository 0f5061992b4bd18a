//! Ringlane's own format.

use std::path::Path;
use std::time::Duration;

use super::error::Report;
use super::tree::{self, Item, Node, Place, Placed, Table};
use super::validate::{Draft, Format, PeerDraft};
use super::value::{self, Flaw, HostBits};
use super::{
    ConfigError, DEFAULT_PORT, IdentitySettings, RelayServe, RelaySettings, RouteSettings, Scope, Settings, Switch,
    discovery, dns, metrics, nat, relay, routes, services, web,
};
use crate::lane::keys::CipherChoice;
use crate::limits::{
    ADDRESSES_PER_PEER_MAX, BUSY_POLL_US_MAX, CORE_MAX, INNER_MTU_MAX, INNER_MTU_MIN, KEEP_ALIVE_SECONDS_MAX,
    KEEP_ALIVE_SECONDS_MIN, LISTEN_ADDRESSES_MAX, PEERS_MAX, RATE_MBIT_MAX, RATE_MBIT_MIN, REKEY_RECORDS_MAX,
    REKEY_RECORDS_MIN, REKEY_SECONDS_MAX, REKEY_SECONDS_MIN, ROUTES_PER_PEER_MAX, TUN_QUEUE_PACKETS_MAX,
    TUN_QUEUE_PACKETS_MIN, WORKERS_MAX,
};
use crate::plane::{CarrierChoice, Engine, Offload};

/// Every key there is, by table.
const SCHEMA: [(&str, &[&str]); 13] = [
    ("", &["interface", "identity", "control", "dataplane", "dns", "metrics", "nat", "peers", "relay", "services"]),
    ("identity", &["key_file"]),
    (
        "control",
        &[
            "listen",
            "mdns",
            "dht",
            "bootstrap",
            "delegated_routers",
            "swarm_key",
            "filter_private_addresses",
            "scope",
            "proxy",
            "tls_certificate",
            "tls_key",
        ],
    ),
    ("control.delegated_routers", &["url", "pin"]),
    (
        "dataplane",
        &[
            "workers",
            "port",
            "mtu",
            "cores",
            "busy_poll_us",
            "tun_queue_packets",
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
            "offload",
        ],
    ),
    ("dataplane.offload", &OFFLOAD_KEYS),
    ("dns", &["enabled", "domain", "resolved", "listen"]),
    ("metrics", &["listen"]),
    ("nat", &["stun_servers", "port_mapping", "punch"]),
    ("relay", &["serve", "addresses", "max", "rate_mbit"]),
    ("peers", &["name", "id", "addresses", "routes", "carrier"]),
    ("peers.routes", &["net", "metric"]),
    ("services", &services::KEYS),
];

const OFFLOAD_KEYS: [&str; Offload::ALL.len()] = {
    let mut keys = [""; Offload::ALL.len()];
    let mut position = 0;
    while position < keys.len() {
        keys[position] = Offload::ALL[position].name();
        position += 1;
    }
    keys
};

/// Reads a TOML configuration. `file` is where the text came from: messages name it, relative paths start there, and
/// its stem is the network's name.
pub fn parse_toml(text: &str, file: &Path) -> Result<Settings, ConfigError> {
    let mut report = Report::new(file, text);
    if super::is_too_long(text, &mut report) {
        return Err(report.into_error());
    }
    let Some(root) = tree::parse_toml(text, &mut report) else {
        return Err(report.into_error());
    };
    let draft = read(&root, &mut report);
    draft.settle(report)
}

fn read(root: &Node, report: &mut Report<'_>) -> Draft {
    let mut draft = Draft::new(Format::Toml, report);
    let Some(root) = Item::root(root).table(report) else {
        return draft;
    };
    known_keys_only(&root, "", report);
    if let Some(item) = root.get("interface")
        && let Some(text) = item.string(report)
    {
        draft.interface = Placed::new(text.to_owned(), item.place());
    }
    draft.identity = Some(IdentitySettings::KeyFile(draft.default_key_file()));
    if let Some(table) = section(&root, "identity", report)
        && let Some(item) = table.get("key_file")
        && let Some(text) = item.string(report)
    {
        if text.is_empty() || text.contains('\0') {
            report.refuse(&item.place(), "is not a file name", "write the path of the key file, or remove the key");
        }
        draft.identity = Some(IdentitySettings::KeyFile(super::beside(report.file(), text)));
    }
    let control = section(&root, "control", report);
    if let Some(table) = &control {
        if let Some(item) = table.get("listen") {
            draft.listen = listen_addresses(&item, report);
        }
        if let Some(mdns) = table.get("mdns").and_then(|item| item.boolean(report)) {
            draft.mdns = mdns;
        }
        if let Some(filter) = table.get("filter_private_addresses").and_then(|item| item.boolean(report)) {
            draft.filter_private_addresses = filter;
        }
    }
    if let Some(table) = section(&root, "dataplane", report) {
        dataplane(&table, &mut draft, report);
    }
    if let Some(table) = section(&root, "dns", report) {
        draft.dns = dns::read(&table, report);
    }
    if let Some(table) = section(&root, "metrics", report) {
        draft.metrics = metrics::read(&table, report);
    }
    if let Some(table) = section(&root, "nat", report) {
        draft.nat = nat::read(&table, report);
    }
    if let Some(item) = root.get("peers") {
        let items = item.list(PEERS_MAX, report).unwrap_or_default();
        draft.peers = items.iter().filter_map(|item| peer(item, report)).collect();
    }
    if let Some(table) = section(&root, "relay", report) {
        draft.relay = relay::read(&table, &mut draft.peers, report);
    }
    if let Some(item) = root.get("services") {
        for table in item.tables() {
            known_keys_only(&table, "services", report);
        }
        draft.services = services::from_toml(&item, report);
    }
    if let Some(table) = &control {
        draft.discovery = discovery::control(table, &mut draft.peers, report);
        draft.web = web::control(table, &mut draft.discovery, report);
    }
    if draft.web.scope == Scope::Lan {
        for (table, key) in [("nat", "stun_servers"), ("relay", "addresses")] {
            let item = root.get(table).and_then(|item| item.table(report)?.get(key));
            if let Some(item) = item {
                web::refuse_beyond_lan(&item, key, report);
            }
        }
        draft.relay = RelaySettings { serve: RelayServe::Never, max: 0, ..RelaySettings::default() };
    }
    draft
}

fn section<'n>(root: &Table<'n>, name: &str, report: &mut Report<'_>) -> Option<Table<'n>> {
    let table = root.get(name)?.table(report)?;
    known_keys_only(&table, name, report);
    Some(table)
}

fn dataplane(table: &Table<'_>, draft: &mut Draft, report: &mut Report<'_>) {
    if let Some(item) = table.get("workers")
        && let Some(workers) = item.integer(1..=WORKERS_MAX as u16, "a number of workers", report)
    {
        draft.workers = Some(Placed::new(workers as u8, item.place()));
    }
    match table.get("port") {
        Some(item) => {
            if let Some(port) = item.integer(1..=u16::MAX, "a UDP port", report) {
                draft.port = Placed::new(port, item.place());
            }
        }
        None => draft.port = Placed::new(DEFAULT_PORT, Place::default_of("dataplane.port", DEFAULT_PORT)),
    }
    if let Some(mtu) =
        table.get("mtu").and_then(|item| item.integer(INNER_MTU_MIN..=INNER_MTU_MAX, "an MTU in bytes", report))
    {
        draft.mtu = mtu;
    }
    let items = table.get("cores").and_then(|item| item.list(WORKERS_MAX, report)).unwrap_or_default();
    for item in &items {
        let core = item.integer(0..=CORE_MAX, "the number of a CPU", report);
        draft.cores.extend(core.map(|core| Placed::new(core, item.place())));
    }
    if let Some(microseconds) =
        table.get("busy_poll_us").and_then(|item| item.integer(0..=BUSY_POLL_US_MAX, "microseconds", report))
    {
        draft.busy_poll_us = microseconds;
    }
    if let Some(item) = table.get("tun_queue_packets")
        && let Some(packets) =
            item.integer(TUN_QUEUE_PACKETS_MIN..=TUN_QUEUE_PACKETS_MAX, "a number of packets", report)
    {
        draft.tun_queue_packets = packets;
    }
    moving(table, draft, report);
    if let Some(table) = table.get("offload").and_then(|item| item.table(report)) {
        known_keys_only(&table, "dataplane.offload", report);
        draft.offloads = offloads(&table, report);
    }
}

const ENGINES: [(&str, Engine); 3] = [("auto", Engine::Auto), ("io_uring", Engine::IoUring), ("epoll", Engine::Epoll)];
const CARRIERS: [(&str, CarrierChoice); 4] = [
    ("auto", CarrierChoice::Auto),
    ("lane", CarrierChoice::Lane),
    ("quic", CarrierChoice::Quic),
    ("stream", CarrierChoice::Stream),
];
const CIPHERS: [(&str, CipherChoice); 4] = [
    ("auto", CipherChoice::Auto),
    ("aes-128-gcm", CipherChoice::Aes128Gcm),
    ("aes-256-gcm", CipherChoice::Aes256Gcm),
    ("chacha20-poly1305", CipherChoice::ChaCha20Poly1305),
];

/// What `carrier` says for this choice.
pub fn carrier_word(choice: CarrierChoice) -> &'static str {
    word_of(&CARRIERS, choice)
}

/// What `dataplane.cipher` says for this choice.
pub fn cipher_word(choice: CipherChoice) -> &'static str {
    word_of(&CIPHERS, choice)
}

fn word_of<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, means)| *means == value).map_or("", |(word, _)| word)
}

/// How packets travel: what carries and protects them, and how fast they go.
fn moving(table: &Table<'_>, draft: &mut Draft, report: &mut Report<'_>) {
    if let Some(engine) = table.get("engine").and_then(|item| item.word(&ENGINES, report)) {
        draft.engine = engine;
    }
    if let Some(carrier) = table.get("carrier").and_then(|item| item.word(&CARRIERS, report)) {
        draft.carrier = carrier;
    }
    if let Some(cipher) = table.get("cipher").and_then(|item| item.word(&CIPHERS, report)) {
        draft.cipher = cipher;
    }
    let seconds = REKEY_SECONDS_MIN..=REKEY_SECONDS_MAX;
    if let Some(seconds) = table.get("rekey_seconds").and_then(|item| item.integer(seconds, "seconds", report)) {
        draft.rekey.after = Duration::from_secs(seconds.into());
    }
    let records = REKEY_RECORDS_MIN..=REKEY_RECORDS_MAX;
    if let Some(records) =
        table.get("rekey_records").and_then(|item| item.integer(records, "a number of records", report))
    {
        draft.rekey.records = records;
    }
    let seconds = KEEP_ALIVE_SECONDS_MIN..=KEEP_ALIVE_SECONDS_MAX;
    if let Some(seconds) = table.get("keep_alive_seconds").and_then(|item| item.integer(seconds, "seconds", report)) {
        draft.keep_alive_seconds = seconds;
    }
    let rates = RATE_MBIT_MIN..=RATE_MBIT_MAX;
    if let Some(rate) = table.get("rate_mbit").and_then(|item| item.integer(rates, "Mbit/s", report)) {
        draft.rate_mbit = Some(rate);
    }
    for (key, target) in [("fragments", &mut draft.fragments), ("copy_dscp", &mut draft.copy_dscp)] {
        if let Some(item) = table.get(key)
            && let Some(value) = item.boolean(report)
        {
            *target = Placed::new(value, item.place());
        }
    }
    if let Some(copies) = table.get("copy_ecn").and_then(|item| item.boolean(report)) {
        draft.copy_ecn = copies;
    }
}

/// What the file says of offloads, each by itself.
fn offloads(table: &Table<'_>, report: &mut Report<'_>) -> Vec<(Offload, Placed<Switch>)> {
    let mut offloads = Vec::new();
    for offload in Offload::ALL {
        let Some(item) = table.get(offload.name()) else { continue };
        let switch = match offload {
            Offload::UdpSentinel => item.switch(report),
            _ => item.boolean(report).map(|allowed| if allowed { Switch::On } else { Switch::Off }),
        };
        offloads.extend(switch.map(|switch| (offload, Placed::new(switch, item.place()))));
    }
    offloads
}

fn listen_addresses(item: &Item<'_>, report: &mut Report<'_>) -> Vec<Placed<multiaddr::Multiaddr>> {
    let items = item.list(LISTEN_ADDRESSES_MAX, report).unwrap_or_default();
    items.iter().filter_map(|item| accept(item, value::listen_address, report)).collect()
}

fn peer(item: &Item<'_>, report: &mut Report<'_>) -> Option<PeerDraft> {
    let table = item.table(report)?;
    known_keys_only(&table, "peers", report);
    let name = table.get("name").and_then(|item| accept(&item, value::peer_name, report));
    let id = match table.get("id") {
        Some(item) => accept(&item, value::peer_id, report),
        None => {
            let remedy = "add the id that `ringlane init` or `ringlane check` prints on that node";
            report.refuse(&table.missing("id"), "is missing", remedy);
            None
        }
    };
    let known_id = id.as_ref().map(|id| id.value);
    let addresses = list_of(&table, "addresses", ADDRESSES_PER_PEER_MAX, report, |text| {
        value::peer_address(text, known_id.as_ref())
    });
    let routes = table.get("routes").and_then(|item| item.list(ROUTES_PER_PEER_MAX, report)).unwrap_or_default();
    let routes = routes.iter().filter_map(|item| route(item, report)).collect();
    let carrier = table.get("carrier").and_then(|item| item.word(&CARRIERS, report));
    Some(PeerDraft { name, id, addresses, routes, carrier })
}

/// A network as text, or a table of it and its metric.
fn route(item: &Item<'_>, report: &mut Report<'_>) -> Option<Placed<RouteSettings>> {
    let prefix = |text: &str| value::prefix(text, HostBits::Refuse).map(RouteSettings::from);
    if !item.is_table() {
        return accept(item, prefix, report);
    }
    let table = item.table(report)?;
    known_keys_only(&table, "peers.routes", report);
    let Some(net) = table.get("net") else {
        let place = Place { offset: item.place().offset, ..table.missing("net") };
        report.refuse(&place, "is missing", "add the network, for example \"10.20.0.0/16\"");
        return None;
    };
    let mut route = accept(&net, prefix, report)?;
    route.value.metric = routes::metric(&table, report);
    Some(route)
}

fn list_of<T>(
    table: &Table<'_>,
    name: &str,
    max: usize,
    report: &mut Report<'_>,
    parse: impl Fn(&str) -> Result<T, Flaw>,
) -> Vec<Placed<T>> {
    let items = table.get(name).and_then(|item| item.list(max, report)).unwrap_or_default();
    items.iter().filter_map(|item| accept(item, &parse, report)).collect()
}

/// The parsed text of `item`, or a report of its flaw.
fn accept<T>(item: &Item<'_>, parse: impl Fn(&str) -> Result<T, Flaw>, report: &mut Report<'_>) -> Option<Placed<T>> {
    match parse(item.string(report)?) {
        Ok(value) => Some(Placed::new(value, item.place())),
        Err(flaw) => {
            report.refuse(&item.place(), flaw.problem, flaw.remedy);
            None
        }
    }
}

pub(super) fn known_keys_only(table: &Table<'_>, name: &str, report: &mut Report<'_>) {
    let known = SCHEMA.iter().find(|(table, _)| *table == name).map_or(&[][..], |(_, keys)| keys);
    for (key, item) in table.items().filter(|(key, _)| !known.contains(key)) {
        let home = SCHEMA.iter().find(|(_, keys)| keys.contains(&key)).map(|(home, _)| *home);
        let remedy = match (value::closest(key, known.iter().copied()), home) {
            (_, Some("")) => "move it to the top of the file, before the first [table]".to_owned(),
            (_, Some("services")) => "move it into the [services.NAME] table of its service".to_owned(),
            (_, Some("peers")) => "move it into a [[peers]] entry".to_owned(),
            (_, Some(home)) => format!("move it into [{home}]"),
            (Some(word), None) => format!("did you mean {word}?"),
            (None, None) => format!("remove it; the keys here are {}", known.join(", ")),
        };
        report.refuse(&item.place(), "is not a known key", remedy);
    }
}
