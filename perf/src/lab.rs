//! A lab of `scripts/lab`.

use std::path::Path;
use std::process::Command;

use anyhow::Context;

use crate::process::{Process, run, run_in_any_case};
use crate::underlay::{self, Underlay};

/// A site of the lab: a router and a host behind it. Addresses are those of `scripts/lab`.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) letter: char,
    /// The router's address on the underlay.
    pub(crate) underlay: &'static str,
    /// The router's address in a tunnel that does not bring addresses of its own.
    pub(crate) tunnel: &'static str,
    /// The host's address.
    pub(crate) host: &'static str,
    /// The networks behind the router, IPv4 and IPv6.
    pub(crate) networks: [&'static str; 2],
}

/// All sites a lab can have, in its order.
pub(crate) const SITES: [Site; 3] = [
    Site {
        letter: 'a',
        underlay: "10.201.0.1",
        tunnel: "10.202.0.1",
        host: "10.10.0.2",
        networks: ["10.10.0.0/16", "fd00:10::/64"],
    },
    Site {
        letter: 'b',
        underlay: "10.201.0.2",
        tunnel: "10.202.0.2",
        host: "10.20.0.2",
        networks: ["10.20.0.0/16", "fd00:20::/64"],
    },
    Site {
        letter: 'c',
        underlay: "10.201.0.3",
        tunnel: "10.202.0.3",
        host: "10.30.0.2",
        networks: ["10.30.0.0/16", "fd00:30::/64"],
    },
];

impl Site {
    /// Its host's namespace.
    pub(crate) fn host_namespace(&self) -> String {
        format!("host-{}", self.letter)
    }

    /// Its router's namespace.
    pub(crate) fn router(&self) -> String {
        format!("router-{}", self.letter)
    }
}

/// Sites in namespaces. Dropping it ends every process in it and removes it.
#[derive(Debug)]
pub(crate) struct Lab {
    prefix: String,
    sites: usize,
    /// What emulates the link between the sites where the kernel does not.
    pub(crate) emulator: Option<Process>,
}

impl Lab {
    /// Makes a lab; what an interrupted run left of it goes first. With `routed`, the sites reach each other over the
    /// bare underlay.
    pub(crate) fn up(prefix: &str, sites: usize, routed: bool, underlay: &Underlay) -> anyhow::Result<Self> {
        let mut lab = Self { prefix: prefix.into(), sites, emulator: None };
        run_in_any_case(&mut lab.script("down"))?;
        run(lab.script("up").args(["--sites", &sites.to_string()]).args(routed.then_some("--routed")))?;
        underlay::shape(&mut lab, underlay, routed)?;
        Ok(lab)
    }

    /// What its namespaces' names begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Both ends of every veth pair, with their namespaces.
    pub(crate) fn devices(&self) -> Vec<(String, String)> {
        let mut devices = Vec::new();
        for Site { letter, .. } in &SITES[..self.sites] {
            devices.push((format!("host-{letter}"), "eth0".into()));
            devices.push((format!("router-{letter}"), "lan".into()));
            devices.push((format!("router-{letter}"), "underlay".into()));
            if self.sites > 2 {
                devices.push(("underlay".into(), format!("port-{letter}")));
            }
        }
        devices
    }

    /// The full name of one of its namespaces.
    pub(crate) fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A command that will run in one of the lab's namespaces; its process id is the program's own.
    pub(crate) fn command(&self, namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(namespace)]).arg(program);
        command
    }

    /// One of this program's own tools, to run in a namespace.
    pub(crate) fn tool(&self, namespace: &str, tool: &str) -> anyhow::Result<Command> {
        let mut command = self.command(namespace, std::env::current_exe().context("our own path")?);
        command.args(["tool", tool]);
        Ok(command)
    }

    /// Runs a line of words in a namespace and returns what it printed.
    pub(crate) fn run(&self, namespace: &str, line: &str) -> anyhow::Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty line names no program")?;
        run(self.command(namespace, program).args(words))
    }

    fn script(&self, action: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/lab"));
        command.args([action, "--prefix", &self.prefix]);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.emulator = None;
        if let Err(error) = run_in_any_case(&mut self.script("down")) {
            eprintln!("{error:#}");
        }
    }
}
