//! Packets and records on their way, and what must be true of each of them.

use super::*;

impl World {
    /// Sends a few packets, and plans when to send more.
    pub(super) fn send_packets(&mut self, node: usize) {
        let (count, pause) = match (self.is_measured, self.is_chaos) {
            (true, _) => (1, self.random.milliseconds(10, 70)),
            (_, false) => (1, self.random.milliseconds(500, 3500)),
            _ => match self.random.below(40) {
                0 => (1, self.random.milliseconds(500, 6000)),
                1..6 => (self.random.within(1, 8), self.random.milliseconds(1, 10)),
                _ => (self.random.within(1, 2), self.random.milliseconds(10, 220)),
            },
        };
        self.plan(pause, Event::Traffic { node });
        let serials: Vec<_> = self.nodes[node].lanes.keys().copied().collect();
        if serials.is_empty() {
            return;
        }
        let serial = serials[self.random.below(serials.len() as u64) as usize];
        let mut packets = Vec::new();
        for _ in 0..count {
            let most = if self.random.one_in(3) { u64::from(INNER_MTU_MAX) } else { 1420 };
            let bytes = self.random.within(PACKET_BYTES_MIN, most) as usize;
            let number = self.packets[node].len() as u64;
            packets.push(self.packet(node, number, bytes));
            let ordered = self.directions[node].ordered();
            self.packets[node].push(Packet { bytes, is_delivered: false, ordered });
        }
        let (now, mut out) = (self.now, Outbox::default());
        let Node { lanes, route_mtu, .. } = &mut self.nodes[node];
        lanes.get_mut(&serial).unwrap().lane.send_packets(&packets, *route_mtu, now, &mut out);
        self.drive(node, serial, out);
    }

    /// Every packet begins with its number, and is like no other.
    pub(super) fn packet(&self, node: usize, number: u64, bytes: usize) -> Vec<u8> {
        let at = (number as usize * 7919 + node) % (self.content.len() - bytes);
        let mut packet = self.content[at..at + bytes].to_vec();
        packet[..8].copy_from_slice(&number.to_be_bytes());
        packet
    }

    /// A record has come to a node.
    pub(super) fn arrive(&mut self, node: usize, mut datagram: Datagram) {
        let site = &mut self.nodes[node];
        if datagram.to != site.place {
            return;
        }
        let Origin { token, by, .. } = datagram.origin;
        let Some(serial) = site.lane_of(datagram.index) else {
            let set_up = site.set_ups.get_mut(&datagram.index);
            if let Some(set_up) = set_up.filter(|set_up| set_up.early.len() < EARLY_DATAGRAMS_MAX) {
                set_up.early.push(datagram);
            }
            return;
        };
        let (path, now) = (Path { local: datagram.to, remote: datagram.from }, self.now);
        let mut out = Outbox::default();
        let Node { lanes, assembler, route_mtu, .. } = site;
        let lane = &mut lanes.get_mut(&serial).unwrap().lane;
        let opened = lane.receive(&mut datagram.bytes, path, assembler, *route_mtu, now, &mut out);
        let is_ours = lane.made.token == token && by != By::Forgery;
        match opened {
            Ok(_) => assert!(is_ours, "a record of another lane, or of nobody, was opened"),
            Err(error) if is_ours => {
                let Origin { epoch, sent_at, .. } = datagram.origin;
                let is_old = epoch + EPOCHS_LIVE_MAX as u64 <= lane.installed || sent_at + GRACE <= now;
                let is_copy = by == By::Replay || by == By::Network;
                // A copy may have been opened in its place.
                let is_fair = error == OpenError::Replayed || (error == OpenError::UnknownEpoch && is_old);
                let is_fair = is_fair || (is_copy && epoch + 16 <= lane.installed);
                assert!(is_fair, "a record of epoch {epoch} was dropped in epoch {}: {error}", lane.installed);
                self.tally.replays_refused += u64::from(is_copy);
            }
            Err(_) => {}
        }
        let packets = std::mem::take(&mut out.packets);
        packets.into_iter().for_each(|packet| self.deliver(node, token, &packet, by));
        self.drive(node, serial, out);
    }

    pub(super) fn deliver(&mut self, node: usize, token: Token, packet: &[u8], by: By) {
        let number = u64::from_be_bytes(*packet.first_chunk().expect("no packet is that short"));
        let sender = 1 - node;
        let expected = &mut self.packets[sender][number as usize];
        assert!(!expected.is_delivered, "packet {number} was delivered twice");
        expected.is_delivered = true;
        let (bytes, ordered) = (expected.bytes, expected.ordered);
        assert!(packet == self.packet(sender, number, bytes), "packet {number} was changed");
        // What only a copy brings has no place in the order.
        if let Some(stretch) = ordered.filter(|_| by == By::Peer) {
            let last = self.last.insert((sender, token), (stretch, number));
            assert!(last.is_none_or(|last| last.0 != stretch || last.1 < number), "packet {number} was overtaken");
        }
        self.tally.delivered += 1;
        self.log(2, number);
    }

    /// Has a lane do what is due, and does what it wants.
    pub(super) fn drive(&mut self, node: usize, serial: LaneSerial, mut out: Outbox) {
        let now = self.now;
        let Node { lanes, route_mtu, .. } = &mut self.nodes[node];
        let Some(standing) = lanes.get_mut(&serial) else { return };
        if out.end.is_none() {
            standing.lane.drive(*route_mtu, now, &mut out);
        }
        standing.due = standing.lane.deadline();
        let (index, token, path) = (standing.lane.made.index, standing.lane.made.token, standing.lane.path);
        let epoch = standing.lane.sealer.epoch();
        for sealed in out.datagrams {
            let origin = Origin { token, epoch: sealed.epoch, sent_at: now, by: By::Peer };
            let Path { local: from, remote: to } = sealed.path;
            self.transmit(node, Datagram { from, to, index, bytes: sealed.bytes, origin });
        }
        if !out.stream.is_empty() {
            let lane = &mut self.nodes[node].lanes.get_mut(&serial).unwrap().lane;
            let number = lane.chunks;
            lane.chunks += 1;
            self.try_chunk(node, serial, number, out.stream, 0);
        }
        if let Some(path) = out.seen {
            self.nodes[node].path_seen(serial, path, now);
        }
        if out.moved {
            assert!(path.remote != ATTACKER, "a lane was led away");
            self.tally.moves += 1;
            self.log(3, path.remote.0);
            let [local, remote] = [path.local, path.remote].map(|place| SocketAddr::new(address_of(place), 8100));
            self.nodes[node].lane_changed(serial, LaneChange::Moved { local, remote }, now);
        }
        for change in out.changes {
            match change {
                LaneChange::RekeyOverdue => {
                    let is_well = !self.is_chaos && now > self.healed_at + 2 * REKEY_PERIOD;
                    assert!(!is_well, "rekeying takes too long");
                }
                LaneChange::Silent => self.tally.silences += 1,
                LaneChange::PathMtu(bytes) => {
                    self.tally.path_mtus += 1;
                    self.log(4, bytes.into());
                }
                _ => {}
            }
            self.nodes[node].lane_changed(serial, change, now);
            if self.nodes[node].must_seek() {
                self.dial(Duration::from_millis(400));
            }
        }
        let other = self.nodes[1 - node].lane_with(token).map(|other| &self.nodes[1 - node].lanes[&other].lane);
        if let Some(other) = other {
            assert!(other.sealer.epoch().abs_diff(epoch) <= 1, "both ends seal in one epoch or in the next");
            self.tally.epochs = self.tally.epochs.max(epoch);
        }
        if let Some(reason) = out.end {
            self.log(5, reason.len() as u64);
            self.end_lane(node, serial, true);
        }
    }

    pub(super) fn transmit(&mut self, node: usize, mut datagram: Datagram) {
        let other = 1 - node;
        self.log(6, datagram.bytes.len() as u64);
        // Who passed on the questions put to him and their answers too would be a path like any other, and could be moved to.
        if self.random.one_in(8) && datagram.to != ATTACKER {
            self.recorded.truncate(RECORDED_MAX - 1);
            self.recorded.push_front((other, datagram.clone()));
        }
        if datagram.from != self.nodes[node].place || datagram.to != self.nodes[other].place {
            return;
        }
        if self.now < self.taken_until[node] {
            datagram.from = ATTACKER;
        }
        let copies = self.directions[node].carry(datagram.bytes.len(), &mut self.random, self.now);
        let by = [By::Peer, By::Network];
        for (delay, by) in copies.into_iter().zip(by).filter_map(|(delay, by)| Some((delay?, by))) {
            let mut datagram = datagram.clone();
            datagram.origin.by = by;
            self.plan(delay, Event::Datagram { node: other, datagram });
        }
    }

    /// Sends a chunk of a lane's stream, and again until it arrives.
    pub(super) fn try_chunk(&mut self, node: usize, serial: LaneSerial, number: u64, bytes: Vec<u8>, tries: u32) {
        let Some(standing) = self.nodes[node].lanes.get(&serial) else { return };
        let (token, path) = (standing.lane.made.token, standing.lane.path);
        let other = 1 - node;
        let is_heard = self.nodes[other].lane_with(token).is_some_and(|serial| {
            path.local == self.nodes[node].place
                && path.remote == self.nodes[other].place
                && self.nodes[other].lanes[&serial].lane.knows(path.reversed())
        });
        match self.directions[node].carry(200, &mut self.random, self.now) {
            [Some(delay), _] if is_heard => self.plan(delay, Event::Chunk { node: other, token, number, bytes }),
            _ => {
                let pause = (RETRANSMIT_MIN * (1 << tries.min(8))).min(RETRANSMIT_MAX);
                self.plan(pause, Event::ChunkTry { node, serial, number, bytes, tries: tries + 1 });
            }
        }
    }

    /// A worker closes a lane: control hears of it a little later, the other end if its close arrives.
    pub(super) fn end_lane(&mut self, node: usize, serial: LaneSerial, tells: bool) {
        if tells {
            self.send_close(node, serial);
        }
        let Some(standing) = self.nodes[node].lanes.remove(&serial) else { return };
        assert!(self.trouble == Trouble::Any, "a lane has not survived what it should");
        self.tally.lanes_ended += 1;
        self.log(7, serial.0);
        let (delay, life) = (self.random.milliseconds(0, 2), self.nodes[node].life);
        self.plan(delay, Event::LaneEnded { node, life, serial, index: standing.lane.made.index });
    }

    pub(super) fn send_close(&mut self, node: usize, serial: LaneSerial) {
        let Some(standing) = self.nodes[node].lanes.get(&serial) else { return };
        let (token, Path { local, remote }) = (standing.lane.made.token, standing.lane.path);
        let is_there = local == self.nodes[node].place && remote == self.nodes[1 - node].place;
        if let [Some(delay), _] = self.directions[node].carry(100, &mut self.random, self.now)
            && is_there
        {
            self.plan(delay, Event::Closed { node: 1 - node, token });
        }
    }
}
