//! What connects the two nodes beside their lanes: libp2p, on which offers travel, and the handshakes of new lanes.

use super::*;

impl World {
    /// Makes a new connection after `delay`, or sooner if one is to be made sooner.
    pub(super) fn dial(&mut self, delay: Duration) {
        let at = self.now + delay;
        if self.dial_at.is_none_or(|planned| at < planned) {
            self.dial_at = Some(at);
            self.plan(delay, Event::Dial);
        }
    }

    /// A new connection, which those before it give way to.
    pub(super) fn connect(&mut self) {
        let old: Vec<_> = self.connections.keys().copied().collect();
        let connection = self.number();
        self.connections.insert(connection, [0, 1].map(|node| self.nodes[node].life));
        for node in 0..2 {
            let (delay, life) = (self.directions[1 - node].delay() * 2, self.nodes[node].life);
            self.plan(delay, Event::Connected { node, life, connection });
        }
        old.into_iter().for_each(|connection| self.disconnect(connection, SURPLUS_GRACE));
    }

    pub(super) fn disconnect(&mut self, connection: u64, notice: Duration) {
        let Some(lives) = self.connections.remove(&connection) else { return };
        for (node, life) in lives.into_iter().enumerate() {
            let delay = self.random.milliseconds(500, 500 + notice.as_millis() as u64);
            self.plan(delay, Event::Disconnected { node, life, connection });
        }
    }

    pub(super) fn carries(&self, connection: u64) -> bool {
        self.connections.get(&connection) == Some(&self.nodes.each_ref().map(|node| node.life))
    }

    /// How long something takes that is sent until it arrives; `None` if nobody waits for so long.
    pub(super) fn reliably(&mut self, from: usize) -> Option<Duration> {
        let (mut after, mut pause) = (Duration::ZERO, RETRANSMIT_MIN);
        while after < EXCHANGE_TIMEOUT {
            if let [Some(delay), _] = self.directions[from].carry(1200, &mut self.random, self.now + after) {
                return Some(after + delay);
            }
            (after, pause) = (after + pause, pause * 2);
        }
        None
    }

    /// Does what a node's coordinator wants done, as its runtime would.
    pub(super) fn carry_out(&mut self, node: usize) {
        while let Some(intent) = self.nodes[node].coordinator.poll_intent() {
            match intent {
                Intent::Ask { ask, offer, .. } => self.ask(node, ask, offer),
                Intent::Answer { token: asker, answer } => match self.reliably(node) {
                    Some(delay) if self.carries(asker.connection) => {
                        self.plan(delay, Event::Answer { asker, answer: Ok(answer) });
                    }
                    _ => self.lose(asker),
                },
                Intent::SetUp { role, ours, theirs, lanes, .. } => self.set_up(node, role, &ours, &theirs, lanes),
                // Each node has but one address: there is nothing better to be found.
                Intent::Scout { .. } => {}
                Intent::CancelSetUp(_) => self.nodes[node].set_ups.clear(),
                Intent::Retire { serial, .. } => {
                    assert!(self.nodes[node].handed_over.remove(&serial), "retired twice, or never up");
                    self.end_lane(node, serial, true);
                }
                Intent::Publish(_) => {}
            }
        }
    }

    pub(super) fn ask(&mut self, node: usize, ask: AskId, offer: Offer) {
        let Some(connection) = self.nodes[node].connections.last().copied() else {
            let answer = Err(AskFailure::NotConnected);
            return self.nodes[node].coordinator.handle_answer(PEER, ask, answer, self.now);
        };
        let asker = Asker { node, life: self.nodes[node].life, connection, ask };
        self.nodes[node].asking = Some(asker);
        match self.reliably(node) {
            Some(delay) => self.plan(delay, Event::Offer { node: 1 - node, offer, asker }),
            None => self.lose(asker),
        }
    }

    /// The asker hears of a question's or an answer's loss sooner or later.
    pub(super) fn lose(&mut self, asker: Asker) {
        let answer = Err(AskFailure::Exchange("lost".to_owned()));
        self.plan(EXCHANGE_TIMEOUT, Event::Answer { asker, answer });
    }

    /// Begins the handshakes of lanes. One that the other end has begun too is over after two round trips.
    pub(super) fn set_up(&mut self, node: usize, role: Role, ours: &Offer, theirs: &Offer, lanes: LaneSet) {
        let life = self.nodes[node].life;
        let secrets = match role {
            Role::Client => LinkSecrets::derive(ours, theirs),
            Role::Server => LinkSecrets::derive(theirs, ours),
        };
        for index in lanes.iter() {
            let (id, token) = (self.number(), secrets.lane_token(index));
            let lane_id = |offer: &Offer| LaneId::new(offer.lane_id_base.get() + u32::from(index.get())).unwrap();
            let (outbound, inbound) = (lane_id(theirs), lane_id(ours));
            self.nodes[node].set_ups.insert(index, SetUp { id, token, role, outbound, inbound, early: Vec::new() });
            self.plan(SET_UP_TIMEOUT, Event::SetUpOver { node, life, set_up: id });
            let met = self.nodes[1 - node].set_ups.get(&index).filter(|theirs| theirs.token == token);
            let Some(met) = met.map(|met| met.id) else { continue };
            let path = Path { local: self.nodes[node].place, remote: self.nodes[1 - node].place };
            let Some(first) = self.reliably(node) else { continue };
            let ends =
                [(1 - node, met, path.reversed(), first), (node, id, path, first + self.directions[1 - node].delay())];
            for (end, set_up, path, delay) in ends {
                // One end may believe in a handshake that the other end has given up.
                if self.is_chaos && self.trouble == Trouble::Any && self.random.one_in(8) {
                    continue;
                }
                let life = self.nodes[end].life;
                self.plan(delay, Event::Confirmed { node: end, life, set_up, path });
            }
        }
    }

    pub(super) fn confirm(&mut self, node: usize, set_up: u64, path: Path) {
        let found = self.nodes[node].set_ups.iter().find(|(_, found)| found.id == set_up);
        let Some((&index, _)) = found.filter(|_| path.local == self.nodes[node].place) else { return };
        let serial = LaneSerial(self.number());
        let now = self.now;
        let site = &mut self.nodes[node];
        let SetUp { token, role, outbound, inbound, early, .. } = site.set_ups.remove(&index).unwrap();
        let made = Made { serial, index, token, role, outbound, inbound, path };
        let lane = Lane::new(made, site.settings, site.route_mtu, &mut self.random, now);
        let gauges = Arc::new(LaneGauges::default());
        site.lanes.insert(serial, Standing::new(lane, Arc::clone(&gauges), now));
        site.handed_over.insert(serial);
        let [local, remote] = [path.local, path.remote].map(|place| SocketAddr::new(address_of(place), 8100));
        let worker = index.owner(site.workers);
        let lane = LaneUp { serial, worker, local, remote, since: now, handshake_at: SystemTime::UNIX_EPOCH, gauges };
        self.tally.lanes += 1;
        self.log(1, serial.0);
        self.nodes[node].coordinator.handle_lane_up(PEER, index, lane);
        self.carry_out(node);
        self.drive(node, serial, Outbox::default());
        early.into_iter().for_each(|datagram| self.arrive(node, datagram));
    }
}
