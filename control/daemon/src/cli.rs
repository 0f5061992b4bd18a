//! The command line: what a user may type, and nothing of what it does.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use multiaddr::Multiaddr;
use ringlane_shared::config;

/// A controller-less mesh and site-to-site VPN for Linux routers.
#[derive(Debug, Parser)]
#[command(name = "ringlane", version, propagate_version = true, arg_required_else_help = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a new configuration and key, and print the entry other nodes need
    Init(InitArgs),
    /// Write a new private key to a file, and print or write its peer id
    Keygen(KeygenArgs),
    /// Validate a configuration, on this machine, without starting anything
    Check(ConfigArgs),
    /// Run a node in the foreground until SIGINT, SIGTERM or SIGHUP
    Up(UpArgs),
    /// Stop the node that runs an interface
    Down(InterfaceArgs),
    /// Show a running node: itself, its offloads and drops, and its peers
    Status(InterfaceArgs),
    /// Tell what lies between this node and everybody else: NATs, port mappings, relays, and what to do about it
    Netcheck(NetcheckArgs),
    /// Ask a peer whether it is there, path by path, until a direct one answers
    Ping(PingArgs),
    /// Show every libp2p connection of a running node
    Peers(InterfaceArgs),
    /// Show and change a running node's routes
    Route(RouteArgs),
    /// Print a running node's figures as Prometheus reads them
    Metrics(InterfaceArgs),
    /// Print the version
    Version(OutputArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// Print JSON, as documented in docs/cli.md
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of `init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The configuration file to write; the key is written beside it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// An address the control thread listens on, for example /ip4/192.0.2.1/udp/8001/quic-v1 (repeatable)
    #[arg(long, value_name = "MULTIADDR", value_parser = config::parse_listen_address)]
    pub(crate) listen: Vec<Multiaddr>,
    /// Name of this node in the printed entry [default: the host name]
    #[arg(long, value_parser = config::parse_peer_name)]
    pub(crate) name: Option<String>,
    /// Replace an existing configuration and key
    #[arg(long)]
    pub(crate) force: bool,
    /// How to print
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Arguments of `keygen`.
#[derive(Debug, Args)]
pub(crate) struct KeygenArgs {
    /// Where the key goes, mode 0600: what identity.key_file names, or a Hyprspace configuration has as privateKey
    #[arg(long, value_name = "FILE")]
    pub(crate) private_key_file: PathBuf,
    /// Where the peer id goes; without, it is printed
    #[arg(long, value_name = "FILE")]
    pub(crate) public_key_file: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration file: Ringlane's TOML or Hyprspace's JSON
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// How to print
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The configuration file: Ringlane's TOML or Hyprspace's JSON
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Log one line of JSON per event instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of the commands that talk to a running node.
#[derive(Debug, Args)]
pub(crate) struct InterfaceArgs {
    /// The node's TUN interface; names the socket /run/ringlane/INTERFACE.sock
    #[arg(short, long)]
    pub(crate) interface: String,
    /// How to print
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Arguments of `netcheck`.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("whom").required(true).args(["interface", "config"])))]
pub(crate) struct NetcheckArgs {
    /// Ask the node that runs this TUN interface
    #[arg(short, long)]
    pub(crate) interface: Option<String>,
    /// Ask the node of this configuration if it runs, else find out without it
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How to print
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// Arguments of `ping`.
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// The peer: @NAME, NAME, the beginning of its id, or a built-in address of it
    pub(crate) peer: String,
    /// How often to ask [default: until a direct path answers, 10 times at most]
    #[arg(short = 'n', long, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Ask until a direct path answers, COUNT times at most if that is given; exit code 3 if none does
    #[arg(long)]
    pub(crate) until_direct: bool,
    /// From one question to the next, in milliseconds
    #[arg(long = "interval", value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=3_600_000))]
    pub(crate) interval_ms: u64,
    /// How long to wait for answers, in milliseconds
    #[arg(long = "timeout", value_name = "MS", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(10..=8000))]
    pub(crate) timeout_ms: u64,
    /// Which node, and how to print
    #[command(flatten)]
    pub(crate) node: InterfaceArgs,
}

/// Arguments of `route`.
#[derive(Debug, Args)]
pub(crate) struct RouteArgs {
    /// What to do with routes.
    #[command(subcommand)]
    pub(crate) action: RouteAction,
}

/// What to do with routes.
#[derive(Debug, Subcommand)]
pub(crate) enum RouteAction {
    /// List every inner prefix and the peer it goes to
    Show(InterfaceArgs),
    /// Route a network to a peer until the node ends; several peers may route one network
    Add(RouteAddArgs),
    /// Route a network no longer
    Del(RouteDelArgs),
}

/// Arguments of `route add`.
#[derive(Debug, Args)]
pub(crate) struct RouteAddArgs {
    /// The network, for example 10.20.0.0/16; 0.0.0.0/0 or ::/0 for everything
    pub(crate) net: String,
    /// The peer: @NAME, NAME or the beginning of its id
    pub(crate) peer: String,
    /// Of several peers that route the network, the one with the lowest metric carries it
    #[arg(long, default_value_t = 0)]
    pub(crate) metric: u32,
    /// Which node, and how to print
    #[command(flatten)]
    pub(crate) node: InterfaceArgs,
}

/// Arguments of `route del`.
#[derive(Debug, Args)]
pub(crate) struct RouteDelArgs {
    /// The network
    pub(crate) net: String,
    /// Only this peer's route: @NAME, NAME or the beginning of its id
    pub(crate) peer: Option<String>,
    /// Which node, and how to print
    #[command(flatten)]
    pub(crate) node: InterfaceArgs,
}
