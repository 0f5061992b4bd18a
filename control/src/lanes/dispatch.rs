//! What arrives at the listeners, and to whom it goes.
//!
//! The order of the tests: an expected token; the address of a handshake under way; for a record, the lane it names,
//! whose peer may have moved; else it is counted, and the sender hears nothing. Each test is one look into a bounded
//! table.

use std::rc::Rc;
use std::time::Instant;

use ringlane_shared::limits::{LANE_HANDSHAKES_MAX, TOKEN_BYTES};
use ringlane_shared::path::candidate::Pair;
use ringlane_shared::wire::probe::{ProbeKind, ProbeTag, UnverifiedProbe};
use ringlane_shared::wire::record::DatagramKind;

use super::drops::ListenerDrop;
use super::engine::{Key, LaneEngine, draw_transaction};
use super::handshake::Path;
use super::quic::QUIC_VERSION;
use super::setup::{LaneFailure, LaneSetup};
use super::socket;

impl LaneEngine {
    /// Takes in a datagram from a listener, a lane's socket or a worker. Whoever sent it, only an authentic probe, an
    /// Initial with an expected token and an authentic record of a lane can make us send anything.
    pub(super) fn handle_datagram(&mut self, path: Path, datagram: &[u8], now: Instant) {
        if datagram.len() > self.datagram_bytes_max {
            return self.drops.count(ListenerDrop::Unrecognised);
        }
        let kind = DatagramKind::of(datagram);
        if self.relayed.refuses(path, kind) {
            return self.drops.count(ListenerDrop::Unrecognised);
        }
        let dropped = match kind {
            DatagramKind::Quic => self.handle_quic(path, datagram, now),
            DatagramKind::Probe => self.handle_probe(path, datagram, now),
            DatagramKind::Record => self.handle_record(path, datagram, now),
            DatagramKind::Sentinel => Ok(()),
            DatagramKind::Stun => self.handle_stun(path, datagram, now),
            DatagramKind::Bind => self.handle_bind(path, datagram, now),
            DatagramKind::Unknown => Err(ListenerDrop::Unrecognised),
        };
        if let Err(reason) = dropped {
            self.drops.count(reason);
        }
    }

    fn handle_quic(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        // The token before the address: a peer that returns from the same port must not meet its old lane.
        if let Some(key) = initial_token(datagram).and_then(|token| self.tokens.get(token)) {
            return self.handle_initial(*key, path, datagram, now);
        }
        let handshake = self.paths.get(&path).and_then(|key| self.setups.get_mut(key)).and_then(LaneSetup::handshake);
        match handshake {
            Some(handshake) => {
                handshake.handle_quic(datagram, now);
                Ok(())
            }
            None if self.handed_over.contains_key(&path) => Err(ListenerDrop::Late),
            None if datagram[0] & 0x80 != 0 => Err(ListenerDrop::UnknownToken),
            None => Err(ListenerDrop::UnknownConnection),
        }
    }

    fn handle_initial(&mut self, key: Key, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        let Some(setup) = self.setups.get_mut(&key) else { return Err(ListenerDrop::UnknownToken) };
        if let Some(handshake) = setup.handshake() {
            if handshake.path != path {
                return Err(ListenerDrop::OtherPath);
            }
            handshake.handle_quic(datagram, now);
            return Ok(());
        }
        if self.paths.len() >= LANE_HANDSHAKES_MAX {
            return Err(ListenerDrop::Busy);
        }
        match setup.accept(&self.quic, path, datagram, now) {
            Ok(()) => {
                self.begin_path(path, key);
                Ok(())
            }
            Err(LaneFailure::Socket(error)) => {
                self.discard(key, now);
                self.fail(key, error.into());
                Ok(())
            }
            Err(_) => Err(ListenerDrop::BadInitial),
        }
    }

    fn handle_probe(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        let unverified = UnverifiedProbe::parse(datagram).map_err(|_| ListenerDrop::BadProbe)?;
        let ProbeTag(tag) = unverified.tag();
        let link = &Rc::clone(self.links.get(&tag).ok_or(ListenerDrop::UnknownProbe)?);
        let probe = link.probe_key.verify(&unverified).map_err(|_| ListenerDrop::BadProbe)?;
        let pair = Pair { local: path.local.ip(), remote: path.remote };
        // Not even an authentic request may lead a lane through Ringlane's own networks, or to another worker's port.
        let is_admitted = !self.policy.pairs(&[pair.local], [pair.remote]).is_empty();
        let key = (link.peer, probe.lane);
        let is_relayed = self.relayed.leads(key, path);
        let is_lanes = path.local.port() == self.local_port(probe.lane) || is_relayed;
        let usable = is_lanes && is_admitted;
        if is_admitted && self.birthdays.is_of(path.local, key) {
            let is_handled = self.handle_fan_probe(link, &probe, path, now);
            return if is_handled { Ok(()) } else { Err(ListenerDrop::UnknownProbe) };
        }
        if usable && !is_relayed && self.handle_tried(link, &probe, path, now) {
            return Ok(());
        }
        let setup = self.setups.get_mut(&key);
        let Some(setup) = setup.filter(|setup| usable && Rc::ptr_eq(&setup.link, link)) else {
            return if usable { self.handle_scouted(link, &probe, path, now) } else { Err(ListenerDrop::UnknownProbe) };
        };
        match probe.kind {
            ProbeKind::Request => {
                setup.prober().handle_request(pair, draw_transaction(), now);
                let reply = link.probe_key.seal(&probe.reply(link.our_tag, path.remote));
                if let Some(listener) = self.listeners.get(path.local) {
                    socket::send_to(listener, path.remote, &reply);
                }
            }
            ProbeKind::Reply { .. } => setup.handle_reply(pair, probe.transaction, now),
        }
        Ok(())
    }

    fn handle_record(&mut self, path: Path, datagram: &[u8], now: Instant) -> Result<(), ListenerDrop> {
        let handshake = self.paths.get(&path).and_then(|key| self.setups.get_mut(key)).and_then(LaneSetup::handshake);
        match handshake {
            Some(handshake) => handshake.keep_early(datagram).then_some(()).ok_or(ListenerDrop::TooEarly),
            None => self.pass_on(path, datagram, now),
        }
    }
}

/// The destination connection id of a version 1 long header, if it is as long as a token (RFC 8999, section 5.1).
fn initial_token(datagram: &[u8]) -> Option<&[u8; TOKEN_BYTES]> {
    let (&first, rest) = datagram.split_first()?;
    let (&version, rest) = rest.split_first_chunk::<4>()?;
    let (&length, rest) = rest.split_first()?;
    let expected =
        first & 0x80 != 0 && u32::from_be_bytes(version) == QUIC_VERSION && usize::from(length) == TOKEN_BYTES;
    if expected { rest.first_chunk() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_version_1_long_header_with_a_whole_20_byte_id_has_a_token() {
        let mut header = vec![0xc0, 0, 0, 0, 1, 20];
        header.extend(1..=20);
        assert_eq!(initial_token(&header), header[6..].first_chunk());
        for length in 0..header.len() {
            assert_eq!(initial_token(&header[..length]), None, "{length}");
        }
        for (position, value) in [(0, 0x40), (1, 1), (4, 0), (4, 2), (5, 19), (5, 21)] {
            let mut other = header.clone();
            other[position] = value;
            assert_eq!(initial_token(&other), None, "byte {position} = {value}");
        }
    }
}
