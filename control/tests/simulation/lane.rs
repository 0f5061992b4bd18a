//! One end of a lane: the real state machines, and between them what `dataplane/src/worker` has between them:
//! `path.rs` ([`Lane::drive_path`], [`Lane::handle_echo`]), `rekey.rs` ([`Lane::drive_rekey`]), `sending.rs`,
//! `oversized.rs` and `outbound.rs` ([`Lane::send_packets`]), `receiving.rs` ([`Lane::receive`]), `movement.rs`
//! ([`Lane::drive_movement`], [`Lane::try_path`]). A path's socket is its two addresses.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringlane_shared::id::{LaneId, LaneIndex, LaneSerial};
use ringlane_shared::lane::epoch::{EpochSecrets, PSK_BYTES, PSK_EXPORTER_LABEL};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::rekey::{Rekey, RekeyOutput};
use ringlane_shared::lane::seal::{OpenError, Opened, Opener, Sealer, Sequence, split};
use ringlane_shared::limits::{
    ECHO_REPLIES_PER_SECOND, ECHOES_ASKED_MAX, FRAME_HEADER_BYTES_MIN, INNER_MTU_MAX, LANE_OTHER_PATHS_MAX,
    RECORD_OVERHEAD_BYTES, RECORDS_PER_EPOCH_MAX, TOKEN_BYTES, datagram_bytes_max,
};
use ringlane_shared::packet::reassembly::Reassembly;
use ringlane_shared::path::liveness::{Liveness, LivenessAction};
use ringlane_shared::path::lull::Lull;
use ringlane_shared::path::mtu::{MTU_BASE, MtuProbe, PathMtu};
use ringlane_shared::path::rtt::Rtt;
use ringlane_shared::path::trial::Trials;
use ringlane_shared::plane::{LaneChange, RekeyLimits};
use ringlane_shared::wire::echo::{ECHO_RECORD_BYTES, Echo};
use ringlane_shared::wire::fragment::{Fragment, FragmentHeader, Uncut};
use ringlane_shared::wire::frame::{FrameHeader, FrameKind, FramedPacket, Frames};

use crate::network::{HEADER_BYTES, Path, Random};

pub type Token = [u8; TOKEN_BYTES];

const ROUTE_CHECK_EVERY: Duration = Duration::from_secs(1);
const CEILING: u16 = datagram_bytes_max(INNER_MTU_MAX) as u16;
const SEEN_PAUSE: Duration = Duration::from_millis(100);

/// What a lane begins with: the outcome of its handshake.
pub struct Made {
    pub serial: LaneSerial,
    pub index: LaneIndex,
    /// Names the lane at both ends, and no other lane ever. Stands in for the TLS session too: keys come from it.
    pub token: Token,
    pub role: Role,
    pub outbound: LaneId,
    pub inbound: LaneId,
    pub path: Path,
}

/// How a node's worker is configured.
#[derive(Clone, Copy)]
pub struct Settings {
    pub rekey: RekeyLimits,
    pub keep_alive: Duration,
}

/// What a lane wants done. The packets it has received are here too.
#[derive(Default)]
pub struct Outbox {
    pub datagrams: Vec<Sealed>,
    pub stream: Vec<u8>,
    pub changes: Vec<LaneChange>,
    pub packets: Vec<Vec<u8>>,
    /// The peer was seen on this other path.
    pub seen: Option<Path>,
    pub moved: bool,
    /// Why it has ended itself.
    pub end: Option<&'static str>,
}

pub struct Sealed {
    pub path: Path,
    pub epoch: u64,
    pub bytes: Vec<u8>,
}

/// The kernel does not take so large a datagram.
struct TooBig;

#[derive(Clone, Copy)]
struct Asked {
    token: u64,
    sent_at: Instant,
    bytes: Option<u16>,
}

pub struct Lane {
    pub made: Made,
    pub path: Path,
    pub sealer: Sealer,
    opener: Opener,
    pub installed: u64,
    rekey: Rekey,
    /// Chunks of the peer's stream that came before those before them, and the number of the next.
    early_chunks: BTreeMap<u64, Vec<u8>>,
    next_chunk: u64,
    /// Number of the next chunk that we write.
    pub chunks: u64,
    rtt: Rtt,
    pub mtu: PathMtu,
    pub liveness: Liveness,
    asked: VecDeque<Asked>,
    route_checked_at: Instant,
    next_cut: u32,
    trials: Trials<Path>,
    /// Where the newest record stands that was opened so far.
    highest: Option<Sequence>,
    /// The other path that the newest record came by, until it has been looked at.
    newest_by: Option<Path>,
    seen_at: Option<Instant>,
    lull: Lull,
    /// The largest datagram that an answer has ever shown to pass.
    shown: usize,
    /// Requests of the peer within a second, and when that began.
    requests: (Instant, u32),
    tokens: Random,
}

/// The frames of the record that is being filled.
#[derive(Default)]
struct Filling {
    frames: Vec<u8>,
    is_complete: bool,
}

impl Filling {
    fn left(&self, record_bytes: usize) -> usize {
        if self.is_complete { 0 } else { record_bytes.saturating_sub(RECORD_OVERHEAD_BYTES + self.frames.len()) }
    }
}

impl Lane {
    pub fn new(made: Made, settings: Settings, route_mtu: u16, random: &mut Random, now: Instant) -> Self {
        let token = made.token;
        let export = |output: &mut [u8], label: &[u8], context: &[u8]| {
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &[&token, label, context].concat());
            output.copy_from_slice(&digest.as_ref()[..output.len()]);
            Ok::<_, KeyError>(())
        };
        let suite = Suite::Aes128Gcm;
        let keys = LaneKeys::derive(suite, made.role, export).unwrap();
        let (sealer, opener) = split(keys, made.outbound, made.inbound);
        let mut psk = zeroize::Zeroizing::new([0; PSK_BYTES]);
        export(psk.as_mut_slice(), PSK_EXPORTER_LABEL, b"").unwrap();
        let secrets = EpochSecrets::new(suite, made.role, made.outbound, made.inbound, psk);
        Self {
            path: made.path,
            sealer,
            opener,
            installed: 0,
            rekey: Rekey::new(secrets, settings.rekey, random.next(), now),
            early_chunks: BTreeMap::new(),
            next_chunk: 0,
            chunks: 0,
            rtt: Rtt::default(),
            mtu: PathMtu::new(HEADER_BYTES as u16, CEILING, Some(route_mtu.into()), now),
            liveness: Liveness::new(settings.keep_alive, random.next(), now),
            asked: VecDeque::new(),
            route_checked_at: now,
            next_cut: 0,
            trials: Trials::new(made.role),
            highest: None,
            newest_by: None,
            seen_at: None,
            lull: Lull::default(),
            shown: usize::from(MTU_BASE),
            requests: (now, 0),
            tokens: Random(random.next()),
            made,
        }
    }

    pub fn deadline(&self) -> Instant {
        let path = self.mtu.poll_timeout().into_iter().fold(self.liveness.poll_timeout(), Instant::min);
        let movement = self.trials.poll_timeout().into_iter().chain(self.lull.poll_timeout());
        movement.chain(self.rekey.poll_timeout()).fold(path, Instant::min)
    }

    /// Does what is due.
    pub fn drive(&mut self, route_mtu: u16, now: Instant, out: &mut Outbox) {
        self.drive_rekey(now, out);
        self.drive_path(route_mtu, now, out);
        self.drive_movement(route_mtu, now, out);
        assert!(self.asked.len() <= ECHOES_ASKED_MAX && self.early_chunks.len() <= 8);
        assert!(self.trials.paths().count() <= LANE_OTHER_PATHS_MAX);
        assert!(out.end.is_some() || self.deadline() > now, "a lane that turns in circles");
    }

    fn drive_rekey(&mut self, now: Instant, out: &mut Outbox) {
        let Self { rekey, sealer, opener, .. } = self;
        rekey.handle_record_of(opener.newest_epoch());
        rekey.handle_timeout(sealer.wear(), now).expect("rekeying goes on");
        while let Some(output) = rekey.poll_output() {
            match output {
                RekeyOutput::Open { epoch, key } => {
                    self.installed = epoch;
                    opener.install(epoch, key);
                }
                RekeyOutput::Seal { epoch, key } => sealer.install(epoch, key),
                RekeyOutput::Settled { .. } => {}
                RekeyOutput::RetireBefore { epoch } => opener.retire_before(epoch),
                RekeyOutput::Overdue => out.changes.push(LaneChange::RekeyOverdue),
            }
        }
        let unsent = rekey.unsent().len();
        assert!(unsent <= 256, "what is to be written is a few messages");
        out.stream.extend_from_slice(rekey.unsent());
        rekey.handle_sent(unsent);
    }

    /// Takes a chunk of the peer's stream, in whatever order.
    pub fn handle_chunk(&mut self, number: u64, bytes: Vec<u8>, now: Instant) {
        self.early_chunks.insert(number, bytes);
        while let Some(bytes) = self.early_chunks.remove(&self.next_chunk) {
            self.next_chunk += 1;
            self.rekey.handle_stream(&bytes, now).expect("the peer makes sense");
        }
    }

    fn drive_path(&mut self, route_mtu: u16, now: Instant, out: &mut Outbox) {
        while let Some(action) = self.liveness.poll(now, self.rtt.patience()) {
            match action {
                LivenessAction::Ask => drop(self.ask(None, route_mtu, now, out)),
                LivenessAction::Late => {}
                LivenessAction::Silent => out.changes.push(LaneChange::Silent),
                LivenessAction::Heard => out.changes.push(LaneChange::Heard),
                LivenessAction::Dead => {
                    out.end = Some("silent");
                    return;
                }
            }
        }
        while let Some(probe) = self.mtu.poll(now, self.rtt.patience()) {
            let bytes = match probe {
                MtuProbe::Padded(bytes) => Some(bytes),
                MtuProbe::Short => None,
            };
            if let (Err(TooBig), Some(bytes)) = (self.ask(bytes, route_mtu, now, out), bytes) {
                match bytes > self.mtu.bytes() {
                    true => self.mtu.handle_refused(bytes),
                    false => self.mtu.handle_too_big(Some(route_mtu.into()), now),
                }
            }
        }
        out.changes.extend(self.mtu.poll_change().map(LaneChange::PathMtu));
    }

    fn ask(&mut self, bytes: Option<u16>, route_mtu: u16, now: Instant, out: &mut Outbox) -> Result<(), TooBig> {
        let token = self.tokens.next();
        self.send_echo(self.path, Echo::Request(token), bytes.map(usize::from), route_mtu, out)?;
        if self.asked.len() >= ECHOES_ASKED_MAX {
            self.asked.pop_front();
        }
        self.asked.push_back(Asked { token, sent_at: now, bytes });
        Ok(())
    }

    fn send_echo(
        &mut self,
        path: Path,
        echo: Echo,
        record_bytes: Option<usize>,
        route_mtu: u16,
        out: &mut Outbox,
    ) -> Result<(), TooBig> {
        let mut frames = vec![0; record_bytes.unwrap_or(ECHO_RECORD_BYTES) - RECORD_OVERHEAD_BYTES];
        let frame_bytes = echo.write_frames(&mut frames);
        self.send(path, &frames[..frame_bytes], route_mtu, out)
    }

    /// Seals frames; the counter is used up even where the kernel refuses the record.
    fn send(&mut self, path: Path, frames: &[u8], route_mtu: u16, out: &mut Outbox) -> Result<(), TooBig> {
        let mut bytes = vec![0; frames.len() + RECORD_OVERHEAD_BYTES];
        let Ok(length) = self.sealer.seal_from(frames, &mut bytes) else { return Ok(()) };
        assert_eq!(length, bytes.len());
        if length + HEADER_BYTES > usize::from(route_mtu) {
            return Err(TooBig);
        }
        out.datagrams.push(Sealed { path, epoch: self.sealer.epoch(), bytes });
        Ok(())
    }

    /// Packs packets into records, cuts those that no record holds, and sends all of it.
    pub fn send_packets(&mut self, packets: &[Vec<u8>], route_mtu: u16, now: Instant, out: &mut Outbox) {
        let record_bytes = usize::from(self.mtu.bytes());
        assert!(record_bytes <= self.shown, "no record is larger than what an answer has shown to pass");
        let mut filling = Filling::default();
        for packet in packets {
            loop {
                let room = filling.left(record_bytes);
                if let Some(header) = FrameHeader::fit(FramedPacket::Complete, packet.len(), room) {
                    filling.frames.extend_from_slice(header.as_bytes());
                    filling.frames.extend_from_slice(packet);
                    filling.is_complete = header.ends_record();
                    break;
                }
                if packet.len() > record_bytes - RECORD_OVERHEAD_BYTES - FRAME_HEADER_BYTES_MIN {
                    self.cut(packet, record_bytes, &mut filling, route_mtu, now, out);
                    break;
                }
                self.finish_record(&mut filling, route_mtu, now, out);
            }
        }
        self.finish_record(&mut filling, route_mtu, now, out);
        self.liveness.note_sent(now);
        if now >= self.route_checked_at + ROUTE_CHECK_EVERY {
            self.route_checked_at = now;
            self.mtu.set_route_mtu(route_mtu.into(), now);
        }
        if self.sealer.is_exhausted() {
            out.end = Some("worn");
        }
    }

    fn cut(
        &mut self,
        packet: &[u8],
        record_bytes: usize,
        filling: &mut Filling,
        route_mtu: u16,
        now: Instant,
        out: &mut Outbox,
    ) {
        let number = self.next_cut;
        self.next_cut = number.wrapping_add(1);
        let mut at = 0;
        while at < packet.len() {
            let uncut = Uncut { packet: number, is_partial: false, offset: at as u16, bytes: packet.len() - at };
            let left = filling.left(record_bytes);
            if let Some(header) = FragmentHeader::fit(uncut, left) {
                filling.frames.extend_from_slice(header.as_bytes());
                filling.frames.extend_from_slice(&packet[at..][..header.packet_bytes]);
                filling.is_complete = header.ends_record();
                at += header.packet_bytes;
            } else {
                assert!(!filling.frames.is_empty(), "an empty record has room for a fragment");
                let padding = vec![0; left];
                filling.frames.extend_from_slice(&padding);
                self.finish_record(filling, route_mtu, now, out);
            }
        }
    }

    fn finish_record(&mut self, filling: &mut Filling, route_mtu: u16, now: Instant, out: &mut Outbox) {
        let Filling { frames, .. } = std::mem::take(filling);
        if frames.is_empty() {
            return;
        }
        let bytes = frames.len() + RECORD_OVERHEAD_BYTES;
        assert!(bytes <= self.shown);
        self.mtu.note_sent(bytes, now);
        if let Err(TooBig) = self.send(self.path, &frames, route_mtu, out) {
            self.mtu.handle_too_big(Some(route_mtu.into()), now);
        }
    }

    /// Opens a record that came by `path`, and takes in what is in it. One that came by none of the lane's paths came to the
    /// listener.
    pub fn receive(
        &mut self,
        record: &mut [u8],
        path: Path,
        assembler: &mut Assembler,
        route_mtu: u16,
        now: Instant,
        out: &mut Outbox,
    ) -> Result<Sequence, OpenError> {
        let Opened { sequence, frames } = self.opener.open(record)?;
        let (is_own, is_known) = (path == self.path, self.knows(path));
        let is_request = Echo::is_request(frames);
        let is_newest = Some(sequence) > self.highest;
        if is_newest {
            self.highest = Some(sequence);
        }
        if is_known {
            match is_own && !is_request {
                true => self.liveness.note_heard(now),
                false => self.liveness.note_asked(now),
            }
            self.lull.note_heard(!is_request && frames.len() + RECORD_OVERHEAD_BYTES > ECHO_RECORD_BYTES, now);
            if is_newest && !is_own {
                self.newest_by = Some(path);
            }
        } else if (is_newest || is_request) && self.seen_at.is_none_or(|at| now - at >= SEEN_PAUSE) {
            self.seen_at = Some(now);
            out.seen = Some(path);
        }
        for frame in Frames::new(frames) {
            let frame = frame.expect("the peer's frames are well-formed");
            let payload = &frames[frame.payload.clone()];
            match frame.kind {
                FrameKind::Packet => out.packets.push(payload.to_vec()),
                FrameKind::Fragment if is_known => {
                    let fragment = Fragment::of(&frame, payload).expect("a fragment");
                    out.packets.extend(assembler.take(self.made.serial, &fragment, now));
                }
                FrameKind::Echo => {
                    let echo = Echo::parse(payload).expect("a well-formed echo");
                    let by = if is_known { path } else { self.path };
                    self.handle_echo(echo, by, route_mtu, now, out);
                }
                FrameKind::Fragment | FrameKind::Pad => {}
                FrameKind::Segment => panic!("nobody sends segments"),
            }
        }
        Ok(sequence)
    }

    /// Whether the lane receives by a path.
    pub fn knows(&self, path: Path) -> bool {
        path == self.path || self.trials.paths().any(|other| other == path)
    }

    fn handle_echo(&mut self, echo: Echo, path: Path, route_mtu: u16, now: Instant, out: &mut Outbox) {
        match echo {
            Echo::Request(token) => {
                let (since, count) = &mut self.requests;
                if now >= *since + Duration::from_secs(1) {
                    (*since, *count) = (now, 0);
                }
                *count += 1;
                if *count <= ECHO_REPLIES_PER_SECOND {
                    let _ = self.send_echo(path, Echo::Reply(token), None, route_mtu, out);
                }
            }
            Echo::Reply(token) => {
                if self.trials.handle_reply(path, token, self.path, now) {
                    return self.move_to(path, route_mtu, now, out);
                }
                if path != self.path {
                    return;
                }
                let Some(at) = self.asked.iter().position(|asked| asked.token == token) else { return };
                let Some(Asked { sent_at, bytes, .. }) = self.asked.remove(at) else { return };
                self.rtt.add(now - sent_at);
                self.shown = self.shown.max(bytes.map_or(0, usize::from));
                self.mtu.handle_answer(bytes, sent_at, now);
            }
        }
    }

    fn move_to(&mut self, path: Path, route_mtu: u16, now: Instant, out: &mut Outbox) {
        self.path = path;
        self.rtt = Rtt::default();
        self.mtu = PathMtu::new(HEADER_BYTES as u16, CEILING, Some(route_mtu.into()), now);
        self.shown = usize::from(MTU_BASE);
        self.asked.clear();
        self.liveness.note_heard(now);
        out.moved = true;
    }

    /// Begins to ask on another path.
    pub fn try_path(&mut self, path: Path, now: Instant) {
        if path == self.path {
            return;
        }
        self.trials.forget(path);
        let tokens = [self.tokens.next(), self.tokens.next()];
        // Whatever has to be closed to make room is not received on any more.
        self.trials.begin(path, now, tokens);
    }

    fn drive_movement(&mut self, route_mtu: u16, now: Instant, out: &mut Outbox) {
        if let Some(path) = self.newest_by.take() {
            let tokens = [self.tokens.next(), self.tokens.next()];
            self.trials.handle_newest(path, now, tokens);
        }
        while let Some((path, token)) = self.trials.poll_transmit(self.path, now) {
            let _ = self.send_echo(path, Echo::Request(token), None, route_mtu, out);
        }
        while self.trials.poll_closed(now).is_some() {}
        if self.lull.poll(now) {
            let token = self.tokens.next();
            let _ = self.send_echo(self.path, Echo::Request(token), None, route_mtu, out);
        }
    }

    /// Uses up the key but for so many records.
    pub fn wear_down(&mut self, left: u64) {
        self.sealer.skip(RECORDS_PER_EPOCH_MAX.saturating_sub(self.sealer.wear() + left));
    }
}

/// A worker's buffers for fragments, and its books.
pub struct Assembler {
    reassembly: Reassembly<((), LaneSerial)>,
    buffers: BTreeMap<u16, Vec<u8>>,
}

impl Assembler {
    pub fn new() -> Self {
        Self { reassembly: Reassembly::default(), buffers: BTreeMap::new() }
    }

    /// The packet that becomes whole with a fragment.
    fn take(&mut self, lane: LaneSerial, fragment: &Fragment<'_>, now: Instant) -> Option<Vec<u8>> {
        let placed = self.reassembly.place(((), lane), fragment, false, now, |_| {})?;
        let buffer = self.buffers.entry(placed.buffer).or_insert_with(|| vec![0; usize::from(INNER_MTU_MAX)]);
        buffer[placed.range].copy_from_slice(fragment.bytes);
        let whole = placed.whole?;
        self.reassembly.give_back(placed.buffer);
        Some(buffer[..whole.bytes].to_vec())
    }
}
