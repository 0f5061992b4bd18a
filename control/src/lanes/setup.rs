//! One lane in the making: probing, then handshaking, then handed over or failed.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn_proto::ServerConfig;
use quinn_proto::crypto::rustls::QuicClientConfig;
use ringlane_shared::id::{LaneIndex, LaneSerial, PeerIndex};
use ringlane_shared::lane::connection::{LaneConnection, LaneConnectionError};
use ringlane_shared::lane::keys::{KeyError, Role, Suite};
use ringlane_shared::lane::seal;
use ringlane_shared::limits::TOKEN_BYTES;
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::path::prober::{PROBING_PERIOD, Prober};
use ringlane_shared::plane::{CarrierChoice, LaneGauges, LaneHandOver};
use ringlane_shared::wire::offer::Offer;
use ringlane_shared::wire::probe::{ProbeKey, ProbeTag, Transaction};
use thiserror::Error;
use tokio::net::UdpSocket;

use super::engine::draw_transaction;
use super::handshake::{Handshake, Path, Progress};
use super::quic::QuicConfig;
use super::tls::{PublicKeyInfo, TlsError};

/// How long a server waits for the client's Initial: the client may probe to the end of its time, and the two do not
/// start at the same moment.
const INITIAL_PERIOD: Duration = PROBING_PERIOD.saturating_add(Duration::from_secs(3));

/// Between two looks for room among the handshakes under way.
const DIAL_RETRY: Duration = Duration::from_millis(50);

/// How long a handshake may take. Its connection has no idle timeout, so this also ends a dial that nobody answers.
const HANDSHAKE_PERIOD: Duration = Duration::from_secs(10);

/// Why a lane could not be set up.
#[derive(Debug, Error)]
pub enum LaneFailure {
    /// The peer id is none a lane can authenticate, or TLS could not be configured.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// As many lanes as allowed are in the making: start this one again later.
    #[error("too many lanes in the making")]
    Busy,
    /// No pair of addresses answered a probe: something on the way drops UDP to this lane's port.
    #[error("no answer from any of the peer's addresses; let UDP through to the lanes' ports on both sides")]
    NoPath,
    /// The peer, which should dial, did not.
    #[error("the peer did not dial, as probes do not pass; let UDP through to the lanes' ports on both sides")]
    NotDialled,
    /// The kernel refused the lane's socket.
    #[error("lane socket: {0}")]
    Socket(#[from] io::Error),
    /// The QUIC handshake failed.
    #[error("handshake: {0}")]
    Handshake(#[from] LaneConnectionError),
    /// The handshake did not end in time.
    #[error("the handshake did not end in time")]
    TimedOut,
    /// The other end has another key than the peer's. TLS refuses that first; this is the second look.
    #[error("the other end is not the peer")]
    WrongPeer,
    /// TLS exported no keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// What all lanes of one exchange of offers share.
pub(super) struct Link {
    pub(super) peer: PeerIndex,
    pub(super) peer_key: PublicKeyInfo,
    pub(super) ours: Offer,
    pub(super) theirs: Offer,
    pub(super) crypto: Crypto,
    pub(super) carrier: CarrierChoice,
    pub(super) probe_key: ProbeKey,
    pub(super) our_tag: ProbeTag,
    pub(super) their_tag: ProbeTag,
}

/// The side of the handshake that is ours, ready to begin.
pub(super) enum Crypto {
    Client(Arc<QuicClientConfig>),
    Server(Arc<ServerConfig>),
}

impl Link {
    pub(super) fn is_client(&self) -> bool {
        matches!(self.crypto, Crypto::Client(_))
    }

    pub(super) fn role(&self) -> Role {
        if self.is_client() { Role::Client } else { Role::Server }
    }

    /// When to begin to probe: a server waits until its answer has reached the client.
    pub(super) fn starts_at(&self, now: Instant) -> Instant {
        if self.is_client() { now } else { now + self.theirs.extensions.punch.start_delay }
    }

    fn suite(&self) -> Suite {
        self.ours.suite(&self.theirs)
    }
}

/// One lane in the making. Owner: control.
pub(super) struct LaneSetup {
    pub(super) link: Rc<Link>,
    pub(super) index: LaneIndex,
    /// What the client's first datagrams are addressed to.
    pub(super) token: [u8; TOKEN_BYTES],
    prober: Prober,
    /// A path that has answered where ports were tried.
    way: Option<Path>,
    handshake: Option<Box<Handshake>>,
    /// When to dial, once a pair has answered and dialling is ours.
    dial_at: Option<Instant>,
    deadline: Instant,
}

/// What [`LaneSetup::tick`] found.
pub(super) enum Step {
    /// Wait until the setup's timeout.
    Wait,
    /// This pair answered, and dialling is ours: call [`LaneSetup::dial`] when there is room.
    Dial(Pair),
    /// The same of a path that was found by trying ports.
    DialFrom(Path),
    /// The handshake is confirmed: call [`LaneSetup::hand_over`].
    Confirmed,
    /// It is over.
    Failed(LaneFailure),
}

impl LaneSetup {
    pub(super) fn new(
        link: Rc<Link>,
        index: LaneIndex,
        token: [u8; TOKEN_BYTES],
        prober: Prober,
        now: Instant,
    ) -> Self {
        let deadline = now + probing_period(&link);
        Self { link, index, token, prober, way: None, handshake: None, dial_at: None, deadline }
    }

    pub(super) fn prober(&mut self) -> &mut Prober {
        &mut self.prober
    }

    /// Another exchange of offers has told where the peer is: looks there too, from `starts_at` on. What is agreed on for the
    /// lane stays as it is, for both ends.
    pub(super) fn refresh(&mut self, pairs: &[Pair], starts_at: Instant, now: Instant) {
        if !self.has_path() {
            self.prober.refresh(pairs, starts_at, draw_transaction);
            self.look_on(now);
        }
    }

    /// Gives the search as long as if it had begun now.
    pub(super) fn look_on(&mut self, now: Instant) {
        self.deadline = now + probing_period(&self.link);
    }

    /// Whether a path has answered.
    pub(super) fn has_path(&self) -> bool {
        self.handshake.is_some() || self.way.is_some() || self.prober.winner().is_some()
    }

    /// By which path the lane is about to be dialled, if one has answered. `path_for` tells that of a pair.
    pub(super) fn chosen(&self, path_for: impl FnOnce(Pair) -> Path) -> Option<Path> {
        self.path().or(self.way).or_else(|| Some(path_for(self.prober.winner()?.pair)))
    }

    /// A path has answered that no pair is of, or a port that was tried, and we are the client.
    pub(super) fn handle_way(&mut self, path: Path, now: Instant) {
        self.way.get_or_insert(path);
        self.dial_at.get_or_insert(now);
    }

    /// Takes in an authentic probe reply.
    pub(super) fn handle_reply(&mut self, pair: Pair, transaction: Transaction, now: Instant) {
        self.prober.handle_reply(pair, transaction, now);
        if self.link.is_client() && self.prober.winner().is_some() {
            self.dial_at.get_or_insert(now);
        }
    }

    /// As many handshakes as allowed are under way: look again a little later.
    pub(super) fn postpone_dial(&mut self, now: Instant) {
        self.dial_at = Some(now + DIAL_RETRY);
    }

    pub(super) fn handshake(&mut self) -> Option<&mut Handshake> {
        self.handshake.as_deref_mut()
    }

    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        self.handshake.as_ref().map(|handshake| handshake.socket())
    }

    pub(super) fn path(&self) -> Option<Path> {
        self.handshake.as_ref().map(|handshake| handshake.path)
    }

    /// When to call [`Self::tick`] at the latest.
    pub(super) fn poll_timeout(&self) -> Instant {
        let due = match &self.handshake {
            Some(handshake) => handshake.poll_timeout(),
            None => self.prober.poll_timeout().into_iter().chain(self.dial_at).min(),
        };
        due.unwrap_or(self.deadline).min(self.deadline)
    }

    /// Does what is due, except for sending probes, which takes the listeners: see [`Self::prober`].
    pub(super) fn tick(&mut self, now: Instant) -> Step {
        let expired = now >= self.deadline;
        if let Some(handshake) = &mut self.handshake {
            return match handshake.drive(now) {
                Progress::Lost(error) => Step::Failed(error.into()),
                Progress::Confirmed => Step::Confirmed,
                Progress::Pending if expired => Step::Failed(LaneFailure::TimedOut),
                Progress::Pending => Step::Wait,
            };
        }
        let is_dial_due = self.dial_at.is_some_and(|at| at <= now);
        if let Some(way) = self.way.filter(|_| is_dial_due && !expired) {
            return Step::DialFrom(way);
        }
        match self.prober.winner() {
            Some(winner) if is_dial_due => Step::Dial(winner.pair),
            Some(_) if expired && self.link.is_client() => Step::Failed(LaneFailure::Busy),
            _ if expired && self.link.is_client() => Step::Failed(LaneFailure::NoPath),
            _ if expired => Step::Failed(LaneFailure::NotDialled),
            _ => Step::Wait,
        }
    }

    /// Begins the handshake as the client.
    pub(super) fn dial(&mut self, config: &QuicConfig, path: Path, now: Instant) -> Result<(), LaneFailure> {
        let Crypto::Client(crypto) = &self.link.crypto else { return Ok(()) };
        let client = config.client(Arc::clone(crypto), self.token);
        let connection = LaneConnection::connect(config.endpoint(), client, path.remote, now)?;
        self.begin(connection, path, now)?;
        Ok(())
    }

    /// Begins the handshake as the server, if `initial` really opens one. Only then is the token spent: it can be read
    /// on the way, and junk sent under it must not keep the peer out.
    pub(super) fn accept(
        &mut self,
        config: &QuicConfig,
        path: Path,
        initial: &[u8],
        now: Instant,
    ) -> Result<(), LaneFailure> {
        let Crypto::Server(server) = &self.link.crypto else {
            return Err(LaneConnectionError::NotInitial.into());
        };
        let connection = LaneConnection::accept(config.endpoint(), Arc::clone(server), path.remote, initial, now)?;
        self.begin(connection, path, now)?;
        Ok(())
    }

    fn begin(&mut self, connection: LaneConnection, path: Path, now: Instant) -> io::Result<()> {
        self.handshake = Some(Box::new(Handshake::new(connection, path, now)?));
        self.deadline = now + HANDSHAKE_PERIOD;
        Ok(())
    }

    /// Ends the setup; a handshake's other end is told.
    pub(super) fn cancel(self, now: Instant) {
        if let Some(handshake) = self.handshake {
            handshake.cancel(now);
        }
    }

    /// Turns a confirmed handshake into what the lane's worker will own.
    pub(super) fn hand_over(self, serial: LaneSerial) -> Result<Box<LaneHandOver>, LaneFailure> {
        let Self { link, index, handshake, .. } = self;
        let finished = handshake.ok_or(LaneFailure::TimedOut)?.finish()?;
        if finished.connection.peer_public_key_info().as_deref() != Some(link.peer_key.as_bytes()) {
            return Err(LaneFailure::WrongPeer);
        }
        let inbound_id = link.ours.lane_id(index);
        let (suite, outbound_id) = (link.suite(), link.theirs.lane_id(index));
        let (sealer, opener) = seal::split(finished.connection.lane_keys(suite)?, outbound_id, inbound_id);
        let secrets = finished.connection.epoch_secrets(suite, outbound_id, inbound_id)?;
        Ok(Box::new(LaneHandOver {
            serial,
            peer: link.peer,
            index,
            inbound_id,
            socket: finished.socket.into(),
            local: finished.path.local,
            remote: finished.path.remote,
            connection: finished.connection,
            sealer,
            opener,
            secrets,
            early: finished.early,
            carrier: link.carrier,
            gauges: Arc::new(LaneGauges::default()),
        }))
    }
}

/// How long a path is looked for.
fn probing_period(link: &Link) -> Duration {
    if link.is_client() { PROBING_PERIOD } else { INITIAL_PERIOD }
}

/// Our socket's address for a pair: the lane's worker decides the port.
pub(super) fn path_of(pair: Pair, local_port: u16) -> Path {
    Path { local: SocketAddr::new(pair.local, local_port), remote: pair.remote }
}
