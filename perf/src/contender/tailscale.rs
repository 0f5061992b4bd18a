//! Tailscale: `tailscaled` on each router, and on the first one what it takes without the internet: headscale to
//! coordinate them, and derper, the relay and STUN server without which a node finds no path at all.
//!
//! The servers are idle once the nodes know each other, and are not measured. A tunnel that is relayed is not Tailscale at
//! its best, so start fails unless every pair has a direct path.
//!
//! Settings beyond those that make it a site-to-site tunnel:
//! - `TS_DEBUG_MTU`: the inner MTU of all contenders; Tailscale's own is 1280.
//! - `--netfilter-mode=off --snat-subnet-routes=false`: no packet is filtered or rewritten, and hosts see each other's
//!   addresses, as with the other contenders. Faster than the default.
//! - `ethtool -K ... rx-udp-gro-forwarding on rx-gro-list off`: what its performance guide asks of subnet routers.
//! - Offloads, batch sizes and `GOMAXPROCS` are as it comes; it turns on all it has by itself.
//!
//! Tried with tailscaled 1.102.3, headscale 0.27.1.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::json;

use super::{Launch, Presence, Setup, Side, Tunnel, directory, version_of};
use crate::lab::{Lab, Site};
use crate::process::{Process, Running, run, wait_at_most, wait_for};

const CONTROL_PORT: u16 = 8080;
const RELAY_PORT: u16 = 3340;
const STUN_PORT: u16 = 3478;
const NODE_PORT: u16 = 41641;

/// A node logs in, looks for its relay, learns of the others and tries paths to them: some 15 s without any trouble.
const PATIENCE: Duration = Duration::from_secs(45);

/// Whether the node, its tool and both servers are there.
pub(super) fn presence() -> Presence {
    let headscale = run(Command::new("headscale").arg("version")).ok();
    let [node, tool, relay] = ["tailscaled", "tailscale", "derper"].map(|program| match program {
        // A flag of Go's own kind: it knows one dash.
        "derper" => run(Command::new(program).arg("-version")).ok(),
        _ => version_of(program.as_ref()),
    });
    match (node, tool, headscale, relay) {
        (None, ..) => Presence::Absent("tailscaled is not installed".into()),
        (_, None, ..) => Presence::Absent("tailscale is not installed".into()),
        (_, _, None, _) => Presence::Absent("headscale is not installed".into()),
        (.., None) => Presence::Absent("derper is not installed".into()),
        (Some(node), _, Some(headscale), _) => {
            let headscale = headscale.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or("");
            Presence::Version(format!("tailscaled {node}, headscale {headscale}"))
        }
    }
}

/// Starts the servers and a node on each router; see [`super::Contender::start`].
pub(super) fn start(lab: Lab, setup: &Setup) -> anyhow::Result<Tunnel> {
    let directory = directory()?;
    let servers = Servers { lab: &lab, site: &setup.sites()[0], directory: directory.path() };
    let servants = servers.start()?;
    let key = servers.make_key()?;
    let mut sides = Vec::new();
    for site in setup.sites() {
        for device in ["lan", "underlay"] {
            // Without ethtool this advice of theirs goes unheeded, as it does on most routers.
            let _ = lab.run(&site.router(), &format!("ethtool -K {device} rx-udp-gro-forwarding on rx-gro-list off"));
        }
        let node = Node { site, directory: directory.path().into() };
        let interface = format!("{}{}", lab.prefix(), site.letter);
        let (name, mtu) = (interface.clone(), setup.inner_mtu());
        let launch: Launch = Box::new(move |lab| Ok(vec![node.start(lab, &name, mtu)?]));
        sides.push(Side::start(site, String::new(), Some(interface), &lab, launch)?);
    }
    let mut tunnel = Tunnel { sides, servants, lab, directory: Some(directory) };
    if let Err(error) = join(&mut tunnel, &servers_url(&setup.sites()[0]), &key) {
        bail!("{error:#}; {}", tunnel.logs());
    }
    Ok(tunnel)
}

/// Logs all nodes in and waits until the first has direct paths to the others.
fn join(tunnel: &mut Tunnel, url: &str, key: &str) -> anyhow::Result<()> {
    let directory = tunnel.directory.as_ref().context("the tunnel has a directory")?.path();
    let nodes: Vec<_> = tunnel.sides.iter().map(|side| Node { site: side.site, directory: directory.into() }).collect();
    let logins = nodes.iter().map(|node| node.log_in(&tunnel.lab, url, key)).collect::<anyhow::Result<Vec<_>>>()?;
    for login in logins {
        login.finish(PATIENCE)?;
    }
    for (side, node) in tunnel.sides.iter_mut().zip(&nodes) {
        side.address = run(node.tool(&tunnel.lab).args(["ip", "-4"]))?.trim().to_owned();
    }
    let first = &nodes[0];
    for side in &tunnel.sides[1..] {
        // It also succeeds when it was answered through the relay before its time was up.
        let direct = format!("via {}:{NODE_PORT} ", side.site.underlay);
        wait_at_most(
            PATIENCE,
            &format!("tailscale to reach {} directly, not through its relay", side.address),
            || {
                let mut ping = first.tool(&tunnel.lab);
                let said = run(ping.args(["ping", "--until-direct", "--c=1", "--timeout=1s", &side.address])).ok()?;
                said.contains(&direct).then_some(())
            },
        )?;
    }
    Ok(())
}

fn servers_url(site: &Site) -> String {
    format!("http://{}:{CONTROL_PORT}", site.underlay)
}

/// What all nodes depend on, in the first router's namespace.
struct Servers<'lab> {
    lab: &'lab Lab,
    site: &'static Site,
    directory: &'lab Path,
}

impl Servers<'_> {
    fn start(&self) -> anyhow::Result<Vec<Process>> {
        self.configure()?;
        let mut relay = self.lab.command(&self.site.router(), "derper");
        // Plain HTTP, and no second port for redirections.
        relay.arg("-a").arg(format!("{}:{RELAY_PORT}", self.site.underlay)).args(["-http-port", "-1"]);
        relay.args(["-stun-port", &STUN_PORT.to_string(), "-c"]).arg(self.file("derper.json"));
        let relay = Process::start(&mut relay)?;
        let control = Process::start(self.headscale().arg("serve"))?;
        wait_for("headscale", || self.file("headscale.sock").exists().then_some(()))
            .with_context(|| format!("headscale says: {}", control.log()))?;
        Ok(vec![control, relay])
    }

    /// Makes a user and returns a key that any number of nodes can log in with.
    fn make_key(&self) -> anyhow::Result<String> {
        run(self.headscale().args(["users", "create", "perf"]))?;
        let key = run(self.headscale().args(["preauthkeys", "create", "--user", "1", "--reusable"]))?;
        let key = key.trim();
        ensure!(!key.is_empty() && !key.contains(char::is_whitespace), "headscale printed no key but: {key}");
        Ok(key.into())
    }

    /// Every JSON document is a YAML document, so all files are JSON, but for a key that has to be a number.
    fn configure(&self) -> anyhow::Result<()> {
        let region = json!({
            "regionid": 900, "regioncode": "perf", "regionname": "perf",
            "nodes": [{
                "name": "900a", "regionid": 900, "hostname": self.site.underlay, "ipv4": self.site.underlay,
                "stunport": STUN_PORT, "derpport": RELAY_PORT, "insecurefortests": true,
            }],
        });
        let relays = format!("regions:\n  900: {region}\n");
        let policy = json!({
            "acls": [{ "action": "accept", "src": ["*"], "dst": ["*:*"] }],
            "autoApprovers": { "routes": { "10.0.0.0/8": ["perf@"], "fd00::/16": ["perf@"] } },
        });
        let settings = json!({
            "server_url": servers_url(self.site),
            "listen_addr": format!("{}:{CONTROL_PORT}", self.site.underlay),
            "metrics_listen_addr": "",
            "grpc_listen_addr": "127.0.0.1:50443",
            "noise": { "private_key_path": self.file("noise.key") },
            "prefixes": { "v4": "100.64.0.0/10", "v6": "fd7a:115c:a1e0::/48", "allocation": "sequential" },
            "derp": {
                "server": { "enabled": false }, "urls": [], "paths": [self.file("relays.yaml")],
                "auto_update_enabled": false,
            },
            "disable_check_updates": true,
            "database": { "type": "sqlite", "sqlite": { "path": self.file("headscale.sqlite") } },
            "policy": { "mode": "file", "path": self.file("policy.json") },
            "dns": { "magic_dns": false, "override_local_dns": false, "base_domain": "perf.internal" },
            "unix_socket": self.file("headscale.sock"),
        });
        let files =
            [("relays.yaml", relays), ("policy.json", policy.to_string()), ("headscale.json", settings.to_string())];
        for (name, content) in files {
            fs::write(self.file(name), content).with_context(|| format!("the file {name}"))?;
        }
        Ok(())
    }

    fn headscale(&self) -> Command {
        let mut command = self.lab.command(&self.site.router(), "headscale");
        command.arg("--config").arg(self.file("headscale.json"));
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// One router's `tailscaled`.
struct Node {
    site: &'static Site,
    directory: PathBuf,
}

impl Node {
    /// Starts it. Once it has logged in, it finds back into the network by itself.
    fn start(&self, lab: &Lab, interface: &str, mtu: u16) -> anyhow::Result<Process> {
        let state = self.directory.join(format!("node-{}", self.site.letter));
        fs::create_dir_all(&state).context("the node's directory")?;
        // What a killed one has left would be taken for the new one's.
        let _ = fs::remove_file(self.socket());
        let mut command = lab.command(&self.site.router(), "tailscaled");
        command.env("TS_DEBUG_MTU", mtu.to_string()).env("TS_DEBUG_USE_DERP_HTTP", "1").env("TS_LOGS_DIR", &state);
        command.args(["--no-logs-no-support", "--tun", interface, "--port", &NODE_PORT.to_string()]);
        let node = Process::start(command.arg("--statedir").arg(&state).arg("--socket").arg(self.socket()))?;
        wait_for("tailscaled", || self.socket().exists().then_some(()))
            .with_context(|| format!("tailscaled says: {}", node.log()))?;
        Ok(node)
    }

    /// Begins to make it a member of the network, and to make the networks behind it known.
    fn log_in(&self, lab: &Lab, url: &str, key: &str) -> anyhow::Result<Running> {
        let mut command = self.tool(lab);
        command.args(["up", "--login-server", url, "--auth-key", key, "--timeout=40s", "--accept-dns=false"]);
        command.args(["--netfilter-mode=off", "--snat-subnet-routes=false", "--accept-routes"]);
        command.arg(format!("--hostname=site-{}", self.site.letter));
        command.arg(format!("--advertise-routes={}", self.site.networks.join(",")));
        Running::start(&mut command)
    }

    fn tool(&self, lab: &Lab) -> Command {
        let mut command = lab.command(&self.site.router(), "tailscale");
        command.arg("--socket").arg(self.socket());
        command
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!("node-{}.sock", self.site.letter))
    }
}
