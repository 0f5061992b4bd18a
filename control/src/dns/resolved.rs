//! systemd-resolved: told over D-Bus which names our server knows.
//!
//! What is told hangs on the interface and goes with it. Where resolved does not run, docs/dns.md says what to write for
//! other resolvers.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZero;
use std::time::Duration;

use futures::StreamExt;
use ringlane_shared::limits::DNS_BUS_SIGNALS_MAX;
use tokio::time::timeout;
use tracing::{debug, info, warn};
use zbus::connection::Builder;
use zbus::message::{Message, Type};
use zbus::{Connection, MatchRule, MessageStream};

const RESOLVED: &str = "org.freedesktop.resolve1";
const PATH: &str = "/org/freedesktop/resolve1";
const MANAGER: &str = "org.freedesktop.resolve1.Manager";
const BUS: &str = "org.freedesktop.DBus";

/// How long the bus or resolved may take for one thing.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// Errors that say that resolved does not run and is not to be started, which is no failure.
const ABSENT: [&str; 3] = [
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.systemd1.NoSuchUnit",
];

/// What resolved is told of our interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    /// The interface.
    pub(super) interface: u32,
    /// Where the name server listens.
    pub(super) server: SocketAddr,
    /// What its names end in, with the final dot.
    pub(super) zone: String,
}

/// What came of telling it.
#[derive(Debug)]
enum Failure {
    /// There is no resolved here, or it is not this network's.
    Absent(&'static str),
    /// The bus or resolved refused.
    Refused { call: &'static str, error: zbus::Error },
}

/// Tells resolved, and again whenever it has been started anew. Ends when there is no bus.
pub(super) async fn tell(link: Link) {
    let building = Builder::system().method_timeout(CALL_LIMIT).build();
    let connection = match timeout(CALL_LIMIT, building).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            match has_no_bus(&error) {
                true => report(&Failure::Absent("there is no system bus")),
                false => report(&Failure::Refused { call: "connecting to the system bus", error }),
            }
            return;
        }
        Err(_) => {
            warn!("systemd-resolved is not told of our names: the system bus does not answer");
            return;
        }
    };
    keep_told(&connection, &link).await;
}

/// Until the connection ends.
async fn keep_told(connection: &Connection, link: &Link) {
    let watching = owner_changes(connection).await;
    let mut changes = watching.inspect_err(|error| debug!(%error, "a restart of systemd-resolved is not noticed")).ok();
    let mut is_reported = false;
    loop {
        match apply(connection, link).await {
            Ok(()) => info!(zone = link.zone, server = %link.server, "systemd-resolved asks us for our names"),
            Err(failure) if !is_reported => {
                report(&failure);
                is_reported = true;
            }
            Err(_) => {}
        }
        let Some(changes) = &mut changes else { return };
        loop {
            let Some(Ok(change)) = changes.next().await else { return };
            if has_new_owner(&change) {
                break;
            }
        }
    }
}

fn report(failure: &Failure) {
    match failure {
        Failure::Absent(reason) => {
            info!("systemd-resolved is not told of our names: {reason}; docs/dns.md has other ways");
        }
        Failure::Refused { call, error } => warn!(call, %error, "systemd-resolved is not told of our names"),
    }
}

async fn owner_changes(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(BUS)
        .interface(BUS)
        .member("NameOwnerChanged")
        .add_arg(RESOLVED)
        .build()?;
    MessageStream::for_match_rule(rule, connection, NonZero::new(DNS_BUS_SIGNALS_MAX)).await
}

fn has_new_owner(change: &Message) -> bool {
    let body = change.body();
    body.deserialize::<(&str, &str, &str)>().is_ok_and(|(name, _, owner)| name == RESOLVED && !owner.is_empty())
}

/// The calls of Hyprspace in its order, and one more: that resolved asks us nothing else.
async fn apply(connection: &Connection, link: &Link) -> Result<(), Failure> {
    if is_of_another_network(connection).await {
        return Err(Failure::Absent("it runs in another network namespace"));
    }
    let interface = i32::try_from(link.interface).unwrap_or_default();
    let (family, address) = match link.server.ip() {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let server = (family, address, link.server.port(), "");
    call(connection, "SetLinkDNSEx", &(interface, vec![server])).await?;
    call(connection, "SetLinkDomains", &(interface, vec![(link.zone.as_str(), false)])).await?;
    for setting in ["SetLinkDNSSEC", "SetLinkDNSOverTLS", "SetLinkLLMNR", "SetLinkMulticastDNS"] {
        call(connection, setting, &(interface, "no")).await?;
    }
    call(connection, "SetLinkDefaultRoute", &(interface, false)).await
}

async fn call<B>(connection: &Connection, name: &'static str, body: &B) -> Result<(), Failure>
where
    B: serde::Serialize + zbus::zvariant::DynamicType,
{
    match connection.call_method(Some(RESOLVED), PATH, Some(MANAGER), name, body).await {
        Ok(_) => Ok(()),
        Err(error) if is_absence(&error) => Err(Failure::Absent("it does not run")),
        Err(error) => Err(Failure::Refused { call: name, error }),
    }
}

/// Whether nothing is there to connect to, as on a host without D-Bus.
fn has_no_bus(error: &zbus::Error) -> bool {
    let (zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _)) = error else { return false };
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn is_absence(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => ABSENT.contains(&name.as_str()),
        zbus::Error::FDO(error) => {
            matches!(**error, zbus::fdo::Error::ServiceUnknown(_) | zbus::fdo::Error::NameHasNoOwner(_))
        }
        _ => false,
    }
}

/// Whether resolved is there and certainly in another network namespace, where our interface's number is that of some
/// other interface.
async fn is_of_another_network(connection: &Connection) -> bool {
    if !connection.is_bus() {
        return false;
    }
    let asked = connection
        .call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "GetConnectionUnixProcessID", &RESOLVED)
        .await;
    let Some(process) = asked.ok().and_then(|reply| reply.body().deserialize::<u32>().ok()) else { return false };
    let network = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    matches!((network(&process.to_string()), network("self")), (Some(theirs), Some(ours)) if theirs != ours)
}

#[cfg(test)]
mod tests {
    use zbus::Guid;
    use zbus::connection::socket::Channel;

    use super::*;

    /// Both ends of a connection: ours, and a stream of all that arrives at resolved's.
    async fn pair() -> (Connection, MessageStream) {
        let guid = Guid::generate();
        let (ours, theirs) = Channel::pair();
        let ours = Builder::authenticated_socket(ours, guid.clone()).p2p().method_timeout(CALL_LIMIT).build();
        let theirs = Builder::authenticated_socket(theirs, guid).p2p().build();
        let (ours, theirs) = futures::future::try_join(ours, theirs).await.unwrap();
        (ours, MessageStream::from(theirs))
    }

    fn link() -> Link {
        Link { interface: 7, server: ([127, 56, 114, 5], 20647).into(), zone: "hs0.hyprspace.".to_owned() }
    }

    /// Answers `count` calls and returns each one's method, signature and arguments as they arrived.
    async fn answer(stream: &mut MessageStream, count: usize) -> Vec<(String, String, Vec<u8>)> {
        let mut calls = Vec::new();
        while calls.len() < count {
            let message = stream.next().await.unwrap().unwrap();
            let header = message.header();
            assert_eq!(header.destination().map(|name| name.as_str()), Some(RESOLVED));
            assert_eq!(header.path().map(|path| path.as_str()), Some(PATH));
            assert_eq!(header.interface().map(|name| name.as_str()), Some(MANAGER));
            let body = message.body();
            let name = header.member().unwrap().as_str().to_owned();
            calls.push((name, body.signature().to_string(), body.data().bytes().to_vec()));
            stream_connection(stream).reply(&header, &()).await.unwrap();
        }
        calls
    }

    fn stream_connection(stream: &MessageStream) -> Connection {
        Connection::from(stream)
    }

    #[tokio::test]
    async fn a_host_without_a_bus_is_no_failure() {
        let address = "unix:path=/nonexistent/system_bus_socket";
        let error = Builder::address(address).build().await.unwrap_err();
        assert!(has_no_bus(&error), "{error:?}");
    }

    #[tokio::test]
    async fn resolved_is_told_what_hyprspace_tells_it_and_to_ask_us_nothing_else() {
        let (connection, mut resolved) = pair().await;
        let link = link();
        let (applied, calls) = tokio::join!(apply(&connection, &link), answer(&mut resolved, 7));
        applied.unwrap();
        let setting = |value: &[u8]| [&7u32.to_ne_bytes()[..], value].concat();
        let no = setting(&[&2u32.to_ne_bytes()[..], b"no\0"].concat());
        let server = [
            // The array's bytes.
            &21u32.to_ne_bytes()[..],
            // AF_INET, the address, its port, no name for TLS.
            &2u32.to_ne_bytes(),
            &4u32.to_ne_bytes(),
            &[127, 56, 114, 5],
            &20647u16.to_ne_bytes(),
            &[0, 0],
            &0u32.to_ne_bytes(),
            &[0],
        ]
        .concat();
        let domain = [&24u32.to_ne_bytes()[..], &14u32.to_ne_bytes(), b"hs0.hyprspace.\0", &[0], &[0; 4]].concat();
        let expected = [
            ("SetLinkDNSEx", "ia(iayqs)", setting(&server)),
            ("SetLinkDomains", "ia(sb)", setting(&domain)),
            ("SetLinkDNSSEC", "is", no.clone()),
            ("SetLinkDNSOverTLS", "is", no.clone()),
            ("SetLinkLLMNR", "is", no.clone()),
            ("SetLinkMulticastDNS", "is", no),
            ("SetLinkDefaultRoute", "ib", setting(&[0; 4])),
        ];
        for (call, (name, signature, arguments)) in calls.iter().zip(expected) {
            assert_eq!((call.0.as_str(), call.1.trim_matches(['(', ')'])), (name, signature.trim_matches(['(', ')'])));
            assert_eq!(call.2, arguments, "{name}");
        }
    }

    #[tokio::test]
    async fn a_refusal_names_the_call_and_absence_is_told_from_it() {
        for (error, is_absent) in [
            ("org.freedesktop.DBus.Error.ServiceUnknown", true),
            ("org.freedesktop.systemd1.NoSuchUnit", true),
            ("org.freedesktop.DBus.Error.AccessDenied", false),
            ("org.freedesktop.resolve1.LinkBusy", false),
        ] {
            let (connection, mut resolved) = pair().await;
            let link = link();
            let refusing = async {
                let message = resolved.next().await.unwrap().unwrap();
                stream_connection(&resolved).reply_error(&message.header(), error, &"no").await.unwrap();
            };
            let (applied, ()) = tokio::join!(apply(&connection, &link), refusing);
            match applied.unwrap_err() {
                Failure::Absent(_) => assert!(is_absent, "{error}"),
                Failure::Refused { call, .. } => assert!(!is_absent && call == "SetLinkDNSEx", "{error}"),
            }
        }
    }

    #[tokio::test]
    async fn a_resolved_that_was_started_anew_is_told_again() {
        let (connection, mut resolved) = pair().await;
        let link = link();
        let telling = keep_told(&connection, &link);
        let restarting = async {
            assert_eq!(answer(&mut resolved, 7).await.len(), 7);
            let bus = stream_connection(&resolved);
            for owner in ["", ":1.9"] {
                let change = Message::signal("/org/freedesktop/DBus", BUS, "NameOwnerChanged");
                let change = change.sender(BUS).build(&(RESOLVED, "", owner)).unwrap();
                bus.send(&change).await.unwrap();
            }
            assert_eq!(answer(&mut resolved, 7).await.len(), 7);
        };
        tokio::select! {
            () = telling => panic!("the connection stands"),
            () = restarting => {}
        }
    }

    /// A message bus of its own, killed when dropped.
    struct Bus {
        daemon: std::process::Child,
        address: String,
        _directory: tempfile::TempDir,
    }

    impl Bus {
        /// `None` where there is no `dbus-daemon`.
        fn start() -> Option<Self> {
            use std::io::{BufRead, BufReader};
            let directory = tempfile::tempdir().unwrap();
            let address = format!("unix:path={}/bus", directory.path().display());
            let mut daemon = std::process::Command::new("dbus-daemon")
                .args(["--session", "--nofork", "--nopidfile", "--print-address", "--address", &address])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::null())
                .spawn()
                .ok()?;
            // It prints its address when it listens.
            let mut address = String::new();
            BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut address).unwrap();
            Some(Self { daemon, address: address.trim().to_owned(), _directory: directory })
        }

        async fn connect(&self) -> Connection {
            Builder::address(self.address.as_str()).method_timeout(CALL_LIMIT).build().await.unwrap()
        }
    }

    impl Drop for Bus {
        fn drop(&mut self) {
            let _ = self.daemon.kill();
            let _ = self.daemon.wait();
        }
    }

    #[tokio::test]
    async fn on_a_real_bus_resolved_is_told_when_it_comes_and_when_it_comes_again() {
        use std::io::Write;
        let Some(bus) = Bus::start() else {
            // Not eprintln!, which is only shown of tests that fail.
            let _ = io::stderr().write_all(b"SKIPPED: a test of systemd-resolved needs dbus-daemon\n");
            return;
        };
        let connection = bus.connect().await;
        let link = link();
        // It does not run yet, which is no failure.
        assert!(matches!(apply(&connection, &link).await, Err(Failure::Absent("it does not run"))));

        let running = async {
            for _ in 0..2 {
                let resolved = bus.connect().await;
                let mut calls = MessageStream::from(&resolved);
                resolved.request_name(RESOLVED).await.unwrap();
                let mut told = Vec::new();
                while told.len() < 7 {
                    let message = calls.next().await.unwrap().unwrap();
                    let header = message.header();
                    if header.message_type() == Type::MethodCall {
                        told.push(header.member().unwrap().to_string());
                        resolved.reply(&header, &()).await.unwrap();
                    }
                }
                assert_eq!((told[0].as_str(), told[6].as_str()), ("SetLinkDNSEx", "SetLinkDefaultRoute"));
                resolved.close().await.unwrap();
            }
        };
        let limit = Duration::from_secs(20);
        tokio::select! {
            () = keep_told(&connection, &link) => panic!("the connection stands"),
            done = timeout(limit, running) => done.unwrap(),
        }
    }
}
