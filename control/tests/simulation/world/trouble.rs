//! What goes wrong.

use super::*;

impl World {
    /// One thing that goes wrong.
    pub(super) fn mishap(&mut self) {
        let now = self.now;
        let node = self.random.below(2) as usize;
        let both = self.random.one_in(2);
        let concerned = (0..2).filter(|other| both || *other == node);
        let is_passing = self.trouble == Trouble::Passing;
        match self.random.below(if is_passing { 12 } else { 14 }) {
            0 | 1 => concerned.for_each(|node| self.directions[node].change_weather(&mut self.random)),
            2 | 3 => concerned.for_each(|node| self.directions[node].change_mtu(&mut self.random)),
            4 => {
                let mtus = [1280, 1420, 1500, 9000];
                self.nodes[node].route_mtu = mtus[self.random.below(4) as usize];
            }
            5 => {
                let limit = if is_passing || self.random.one_in(2) { 3000 } else { 20_000 };
                let until = now + self.random.milliseconds(200, limit);
                concerned.for_each(|node| self.directions[node].black_out(until));
            }
            6 | 7 => concerned.collect::<Vec<_>>().into_iter().for_each(|node| self.change_address(node)),
            8 => self.connect(),
            9 => {
                let until = now + self.random.milliseconds(200, 3000);
                concerned.for_each(|node| self.taken_until[node] = until);
            }
            10 => (0..self.random.within(5, 60)).for_each(|_| self.attack()),
            11 => {
                let pause = self.random.milliseconds(100, if is_passing { 3000 } else { 15_000 });
                self.nodes[node].stopped_until = self.nodes[node].stopped_until.max(now + pause);
            }
            12 => self.restart(node),
            _ => {
                let Some(serial) = self.nodes[node].lanes.keys().next().copied() else { return };
                let left = self.random.within(1, 60);
                match self.random.one_in(2) {
                    true => self.nodes[node].lanes.get_mut(&serial).unwrap().lane.wear_down(left),
                    false => self.end_lane(node, serial, true),
                }
            }
        }
    }

    /// The attacker sends what it has recorded, or something like it, from somewhere.
    pub(super) fn attack(&mut self) {
        if self.recorded.is_empty() {
            return;
        }
        let which = self.random.below(self.recorded.len() as u64) as usize;
        let (mut node, mut datagram) = self.recorded[which].clone();
        datagram.origin.by = By::Replay;
        if self.random.one_in(8) {
            // Back to who sealed it, as if its peer had.
            node = 1 - node;
            datagram.from = self.nodes[1 - node].place;
            datagram.origin.by = By::Forgery;
        }
        if self.random.one_in(4) {
            let bit = self.random.below(datagram.bytes.len() as u64 * 8) as usize;
            datagram.bytes[bit / 8] ^= 1 << (bit % 8);
            datagram.origin.by = By::Forgery;
        }
        if self.random.one_in(2) {
            datagram.from = ATTACKER;
        }
        datagram.to = self.nodes[node].place;
        let delay = self.random.milliseconds(0, 3000);
        self.plan(delay, Event::Datagram { node, datagram });
    }

    pub(super) fn change_address(&mut self, node: usize) {
        let place = Place(self.number());
        self.nodes[node].move_to(place, self.now);
        self.carry_out(node);
        self.lose_connections(CONNECTION_TIMEOUT);
    }

    /// All connections are dead; their ends hear of it within `notice`, and there will be a new one.
    pub(super) fn lose_connections(&mut self, notice: Duration) {
        for connection in self.connections.keys().copied().collect::<Vec<_>>() {
            self.disconnect(connection, notice);
        }
        let at = self.random.milliseconds(100, notice.as_millis() as u64 + 500);
        self.dial(at);
    }

    pub(super) fn restart(&mut self, node: usize) {
        let serials: Vec<_> = self.nodes[node].lanes.keys().copied().collect();
        if self.random.one_in(2) {
            serials.into_iter().for_each(|serial| self.send_close(node, serial));
        }
        let Node { workers, place, settings, route_mtu, stopped_until, .. } = self.nodes[node];
        let life = self.number();
        self.nodes[node] = Node::new(node, life, workers, place, settings, &mut self.random);
        (self.nodes[node].stopped_until, self.nodes[node].route_mtu) = (stopped_until, route_mtu);
        self.nodes[node].coordinator.set_addresses(&[address_of(place)], self.now);
        self.carry_out(node);
        self.lose_connections(CONNECTION_TIMEOUT);
    }

    /// The end of all mishaps, when nobody is stopped any more.
    pub(super) fn heal(&mut self) {
        let last = self.nodes.iter().map(|node| node.stopped_until).fold(self.now, Instant::max);
        if last > self.now {
            return self.plan(last - self.now, Event::Heal);
        }
        self.is_chaos = false;
        self.taken_until = [self.now; 2];
        self.directions.iter_mut().for_each(|direction| direction.calm(self.now));
    }
}
