//! A node's configuration, process, log and status.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use toml::{Table, Value as Toml};

use crate::lab::{Lab, Namespace, Site, succeed, wait_for};

pub(crate) const RINGLANE: &str = env!("CARGO_BIN_EXE_ringlane");

/// Worker i listens on this port + i.
pub(crate) const LANE_PORT: u16 = 8100;
/// libp2p's port, UDP and TCP.
pub(crate) const CONTROL_PORT: u16 = 8001;

/// Lines of a node's log printed when its test fails.
const LOG_LINES_SHOWN: usize = 120;

/// The configuration of one site's node: what `ringlane init` wrote, and what a test changes of it.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) site: Site,
    pub(crate) router: Namespace,
    pub(crate) file: PathBuf,
    pub(crate) interface: String,
    pub(crate) id: String,
    pub(crate) settings: Table,
}

impl Setup {
    /// Runs `ringlane init` for a site. The interface, the file and so the socket are named after the lab.
    pub(crate) fn init(lab: &Lab, site: Site) -> Self {
        let interface = format!("{}{}", lab.prefix(), site.letter());
        let file = lab.directory().join(format!("{interface}.toml"));
        let mut init = Command::new(RINGLANE);
        init.arg("init").arg("--config").arg(&file).args(["--json", "--name", &name_of(site)]);
        for address in control_addresses(site) {
            init.args(["--listen", &address]);
        }
        let entry: Value = parse_json(&succeed(&mut init).stdout);
        let id = find(&entry, "id").and_then(Value::as_str).expect("init prints the node's id").to_owned();
        let settings = fs::read_to_string(&file).expect("init wrote the configuration");
        let mut setup = Self {
            site,
            router: lab.router(site),
            file,
            interface: interface.clone(),
            id,
            settings: settings.parse().expect("init wrote TOML"),
        };
        setup.settings.insert("interface".into(), interface.into());
        setup.set("control", "mdns", false);
        // The host's, if there is one, is not the lab's.
        setup.set("dns", "resolved", false);
        if let Ok(engine) = env::var("RINGLANE_TEST_ENGINE") {
            setup.set("dataplane", "engine", engine);
        }
        setup.set("dataplane", "port", i64::from(LANE_PORT));
        setup.workers(2)
    }

    /// Sets a key of a table.
    pub(crate) fn set(&mut self, table: &str, key: &str, value: impl Into<Toml>) {
        let table = self.settings.entry(table).or_insert_with(|| Table::new().into());
        table.as_table_mut().expect("the key names a table").insert(key.into(), value.into());
    }

    pub(crate) fn workers(mut self, workers: u8) -> Self {
        self.set("dataplane", "workers", i64::from(workers));
        self
    }

    /// Adds a peer with all of its networks.
    pub(crate) fn trust(&mut self, peer: &Setup) {
        self.add_peer(&name_of(peer.site), &peer.id, &control_addresses(peer.site), &peer.site.networks());
    }

    pub(crate) fn add_peer(&mut self, name: &str, id: &str, addresses: &[String], routes: &[String]) {
        let strings = |list: &[String]| Toml::Array(list.iter().cloned().map(Toml::String).collect());
        let mut peer = Table::new();
        peer.insert("name".into(), name.into());
        peer.insert("id".into(), id.into());
        peer.insert("addresses".into(), strings(addresses));
        peer.insert("routes".into(), strings(routes));
        let peers = self.settings.entry("peers").or_insert_with(|| Toml::Array(Vec::new()));
        peers.as_array_mut().expect("peers is an array").push(peer.into());
    }

    /// Writes the file as the settings are now.
    pub(crate) fn write(&self) {
        fs::write(&self.file, self.settings.to_string()).expect("the configuration can be written");
    }

    /// Where `init` put the key.
    pub(crate) fn key_file(&self) -> PathBuf {
        let key_file = self.settings["identity"]["key_file"].as_str().expect("init names the key file");
        self.file.with_file_name(key_file)
    }

    /// Writes what Hyprspace would have in its place: a JSON file that holds the key, has no word about workers, and
    /// knows no addresses of peers.
    pub(crate) fn write_hyprspace(&mut self) {
        let key = fs::read_to_string(self.key_file()).expect("init wrote the key");
        let peers = self.settings["peers"].as_array().expect("peers is an array").iter().map(|peer| {
            let routes = peer["routes"].as_array().expect("routes is an array");
            let routes: Vec<_> = routes.iter().map(|net| json!({ "net": net.as_str() })).collect();
            json!({ "name": peer["name"].as_str(), "id": peer["id"].as_str(), "routes": routes })
        });
        let configuration = json!({
            "privateKey": key.trim(),
            "listenAddresses": control_addresses(self.site),
            "bootstrapPeers": [],
            "peers": peers.collect::<Vec<_>>(),
        });
        self.file.set_extension("json");
        fs::write(&self.file, configuration.to_string()).expect("the configuration can be written");
        // It holds a key.
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o600)).expect("our own file can be locked");
    }

    pub(crate) fn socket(&self) -> PathBuf {
        socket_of(&self.interface)
    }

    /// `ringlane up` inside the site's router.
    pub(crate) fn up_command(&self) -> Command {
        let mut command = self.router.command(RINGLANE);
        command.arg("up").arg("--config").arg(&self.file).stdin(Stdio::null());
        command
    }
}

fn spawn(setup: &Setup, log: Stdio) -> Child {
    setup.up_command().stdout(Stdio::null()).stderr(log).spawn().expect("the node can be started")
}

fn append(log: &Path) -> File {
    File::options().create(true).append(true).open(log).expect("the log can be written")
}

fn log_of(setup: &Setup) -> PathBuf {
    setup.file.with_extension("log")
}

fn socket_of(interface: &str) -> PathBuf {
    Path::new("/run/ringlane").join(format!("{interface}.sock"))
}

/// A peer's name in configurations: long enough to be found in a capture by no accident.
pub(crate) fn name_of(site: Site) -> String {
    format!("ringlane-test-site-{}", site.letter())
}

fn control_addresses(site: Site) -> [String; 2] {
    let address = site.underlay();
    [format!("/ip4/{address}/udp/{CONTROL_PORT}/quic-v1"), format!("/ip4/{address}/tcp/{CONTROL_PORT}")]
}

/// Configurations of `sites`, each trusting all others, written.
pub(crate) fn mesh<const N: usize>(lab: &Lab, sites: [(Site, u8); N]) -> [Setup; N] {
    let mut setups = sites.map(|(site, workers)| Setup::init(lab, site).workers(workers));
    for ours in 0..N {
        for theirs in 0..N {
            if let Ok([ours, theirs]) = setups.get_disjoint_mut([ours, theirs]) {
                ours.trust(theirs);
            }
        }
    }
    setups.iter().for_each(Setup::write);
    setups
}

/// A running `ringlane up`. Dropping it kills it; when its test fails, its log is printed.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    log: PathBuf,
    interface: String,
    network: PathBuf,
}

impl Node {
    /// Starts the node; returns before it is ready.
    pub(crate) fn up(setup: &Setup) -> Self {
        Self::of(setup, spawn(setup, append(&log_of(setup)).into()))
    }

    fn of(setup: &Setup, child: Child) -> Self {
        let network = Path::new("/var/lib/ringlane").join(&setup.interface);
        Self { child, log: log_of(setup), interface: setup.interface.clone(), network }
    }

    /// Starts the node again after it has ended. Not by a new [`Node`] in this one's place: dropping this one would take
    /// away what the new one has made.
    pub(crate) fn up_again(&mut self, setup: &Setup) {
        self.wait_ended();
        self.child = spawn(setup, append(&self.log).into());
    }

    /// As [`Self::up`], with a log that nobody reads: its pipe is closed from the beginning.
    pub(crate) fn up_unread(setup: &Setup) -> Self {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let mut node = Self::of(setup, spawn(setup, writer.into()));
        node.log = PathBuf::from("/dev/null");
        node
    }

    /// All that this node and those before it with the same configuration have logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What `ringlane status --json` says; `None` while the node does not answer.
    pub(crate) fn try_status(&self) -> Option<Status> {
        let output = Command::new(RINGLANE)
            .args(["status", "--json", "--interface", &self.interface])
            .stdin(Stdio::null())
            .output()
            .expect("status can be run");
        output.status.success().then(|| Status(parse_json(&output.stdout)))
    }

    pub(crate) fn status(&self) -> Status {
        self.try_status().expect("the node answers")
    }

    /// Waits until the status is as wanted; panics when the node ends or time is up.
    pub(crate) fn wait_until(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        let mut latest = None;
        let interface = self.interface.clone();
        wait_for(&format!("{what} on {interface}"), || {
            if let Some(ended) = self.child.try_wait().expect("a child can be waited for") {
                panic!("{interface} ended with {ended} while waiting for {what}; last status: {latest:?}");
            }
            let status = self.try_status()?;
            if wanted(&status) {
                return Some(status);
            }
            latest = Some(status);
            None
        })
    }

    /// Waits until this node says that packets to each of `peers` go over that many lanes.
    pub(crate) fn wait_direct(&mut self, peers: &[Site], lanes: usize) -> Status {
        self.wait_until(&format!("{lanes} lanes to {peers:?}"), |status| {
            peers.iter().all(|&peer| status.state(peer) == "direct" && status.lanes(peer) == lanes)
        })
    }

    /// The CPUs that the thread of this name may run on, as the kernel writes them.
    pub(crate) fn cores_of(&self, thread: &str) -> String {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("a child has threads");
        let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
        let named = |status: &String| field(status, "Name:") == Some(thread);
        let status = statuses.into_iter().find(named).unwrap_or_else(|| panic!("no thread is called {thread}"));
        field(&status, "Cpus_allowed_list:").expect("the kernel says so of each thread").to_owned()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a child has a process id");
        kill_process(pid, signal).expect("a child that was not waited for can be signalled");
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_ended(&mut self) -> ExitStatus {
        wait_for("the node to end", || self.child.try_wait().expect("a child can be waited for"))
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_ended()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("---- status of {}: {:?}", self.interface, self.try_status());
        }
        // Both fail harmlessly for a process that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.network);
        let _ = fs::remove_file(socket_of(&self.interface));
        if thread::panicking() {
            let log = self.log();
            let skipped = log.lines().count().saturating_sub(LOG_LINES_SHOWN);
            eprintln!("---- log of {}, first {skipped} lines left out", self.interface);
            log.lines().skip(skipped).for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Two sites, both up and direct over as many lanes as the larger side has workers.
pub(crate) fn two_direct(lab: &Lab, workers: [u8; 2]) -> ([Setup; 2], [Node; 2]) {
    let setups = mesh(lab, [(Site::A, workers[0]), (Site::B, workers[1])]);
    let nodes = up_and_direct(&setups, workers);
    (setups, nodes)
}

/// As [`two_direct`], on these engines.
pub(crate) fn two_direct_on(lab: &Lab, workers: [u8; 2], engines: [&str; 2]) -> ([Setup; 2], [Node; 2]) {
    let mut setups = mesh(lab, [(Site::A, workers[0]), (Site::B, workers[1])]);
    for (setup, engine) in setups.iter_mut().zip(engines) {
        setup.set("dataplane", "engine", engine);
        setup.write();
    }
    let nodes = up_and_direct(&setups, workers);
    for ((node, engine), workers) in nodes.iter().zip(engines).zip(workers) {
        assert_eq!(node.status().engines(), vec![engine; workers.into()]);
    }
    (setups, nodes)
}

/// Nodes of two configurations, as [`two_direct`] has them.
pub(crate) fn up_and_direct(setups: &[Setup; 2], workers: [u8; 2]) -> [Node; 2] {
    let mut nodes = setups.each_ref().map(Node::up);
    let lanes = usize::from(workers[0].max(workers[1]));
    nodes[0].wait_direct(&[Site::B], lanes);
    nodes[1].wait_direct(&[Site::A], lanes);
    nodes
}

/// The answer of `ringlane status --json`.
#[derive(Debug)]
pub(crate) struct Status(Value);

impl Status {
    /// The entry of a peer, if the node knows it.
    pub(crate) fn peer(&self, site: Site) -> Option<&Value> {
        let peers = find(&self.0, "peers").and_then(Value::as_array)?;
        peers.iter().find(|peer| peer["name"] == name_of(site).as_str())
    }

    /// `direct`, `relayed`, `connecting` or `offline`; empty for an unknown peer.
    pub(crate) fn state(&self, site: Site) -> &str {
        self.peer(site).and_then(|peer| peer["state"].as_str()).unwrap_or_default()
    }

    /// How many lanes to a peer are up.
    pub(crate) fn lanes(&self, site: Site) -> usize {
        self.peer(site).and_then(|peer| peer["lanes"].as_array()).map_or(0, Vec::len)
    }

    /// All drops by reason, whoever counted them.
    pub(crate) fn drops(&self) -> BTreeMap<String, u64> {
        let mut drops = BTreeMap::new();
        visit(&self.0, &mut |key, value| {
            if key == "drops" {
                for (reason, count) in value.as_object().into_iter().flatten() {
                    *drops.entry(reason.clone()).or_default() += count.as_u64().unwrap_or(0);
                }
            }
        });
        drops
    }

    /// Drops for one reason.
    pub(crate) fn dropped(&self, reason: &str) -> u64 {
        self.drops().get(reason).copied().unwrap_or(0)
    }

    /// How much the gate refused for one reason.
    pub(crate) fn gate(&self, reason: &str) -> u64 {
        self.0["gate"][reason].as_u64().unwrap_or(0)
    }

    /// What the TUN's entry says of this name.
    pub(crate) fn tun(&self, name: &str) -> Option<u64> {
        self.0["tun"][name].as_u64()
    }

    /// What the node knows of NATs.
    pub(crate) fn nat(&self) -> &Value {
        &self.0["nat"]
    }

    /// A figure of one way to find peers: `mdns`, `pex` or `records`.
    pub(crate) fn discovery(&self, part: &str, figure: &str) -> Option<u64> {
        self.0["discovery"][part][figure].as_u64()
    }

    /// The gateways that are asked for port mappings.
    pub(crate) fn gateways(&self) -> &[Value] {
        self.0["mappings"]["gateways"].as_array().map_or(&[], Vec::as_slice)
    }

    /// Each worker's offloads and their states, in the workers' order.
    pub(crate) fn offloads(&self) -> Vec<BTreeMap<String, String>> {
        let workers = self.0["workers"].as_array().expect("status lists the workers");
        let states = |worker: &Value| serde_json::from_value(worker["offloads"].clone()).expect("names and states");
        workers.iter().map(states).collect()
    }

    /// What each worker runs on, in the workers' order.
    pub(crate) fn engines(&self) -> Vec<&str> {
        let workers = self.0["workers"].as_array().expect("status lists the workers");
        workers.iter().map(|worker| worker["engine"].as_str().expect("a worker has an engine")).collect()
    }

    /// A counter of each worker, in the workers' order.
    pub(crate) fn workers(&self, counter: &str) -> Vec<u64> {
        let workers = self.0["workers"].as_array().expect("status lists the workers");
        workers.iter().map(|worker| worker[counter].as_u64().expect("a worker has this counter")).collect()
    }

    /// How each worker's packets leave, in the workers' order.
    pub(crate) fn egress_states(&self) -> Vec<String> {
        let workers = self.0["workers"].as_array().expect("status lists the workers");
        let state = |worker: &Value| worker["egress"]["state"].as_str().expect("a worker says so").to_owned();
        workers.iter().map(state).collect()
    }

    /// A part of it that has a struct of its own.
    pub(crate) fn part(&self, name: &str) -> &Value {
        &self.0[name]
    }

    /// The node's own built-in addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        serde_json::from_value(self.0["node"]["addresses"].clone()).expect("addresses")
    }

    /// The sum of every number of this name.
    pub(crate) fn sum(&self, name: &str) -> u64 {
        let mut sum = 0;
        visit(&self.0, &mut |key, value| {
            if key == name {
                sum += value.as_u64().unwrap_or(0);
            }
        });
        sum
    }
}

/// A field of a thread's or process's `status` in `/proc`.
pub(crate) fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn parse_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| panic!("--json printed no JSON: {error}\n{}", String::from_utf8_lossy(bytes)))
}

/// The first value of this key, wherever it stands.
fn find<'v>(value: &'v Value, key: &str) -> Option<&'v Value> {
    match value {
        Value::Object(fields) => fields.get(key).or_else(|| fields.values().find_map(|field| find(field, key))),
        Value::Array(items) => items.iter().find_map(|item| find(item, key)),
        _ => None,
    }
}

fn visit(value: &Value, seen: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                seen(key, field);
                visit(field, seen);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| visit(item, seen)),
        _ => {}
    }
}
