//! A lane and its other paths.

use ringlane_shared::plane::{LaneCarrier, LaneChange, PassedOn, TrialPath};

use super::*;

impl Bed {
    /// Has the worker try another path. The far end's socket is that path's from now on; returns the one before.
    fn try_path(&mut self) -> UdpSocket {
        let [local, far] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let ends = [&local, &far].map(|socket| socket.local_addr().unwrap());
        local.connect(ends[1]).unwrap();
        far.connect(ends[0]).unwrap();
        [&local, &far].into_iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        let trial =
            TrialPath { serial: SERIAL, socket: local.into(), local: ends[0], remote: ends[1], is_better: false };
        self.commands.try_send(PlaneCommand::TryPath(Box::new(trial))).unwrap();
        std::mem::replace(&mut self.far, far)
    }

    /// The token of the first request to reach the far end.
    fn request(&mut self) -> u64 {
        self.until(|bed| {
            bed.echoes().into_iter().find_map(|(echo, _)| match echo {
                Echo::Request(token) => Some(token),
                Echo::Reply(_) => None,
            })
        })
    }

    fn told<T>(&mut self, wanted: impl Fn(PlaneEvent) -> Option<T>) -> Option<T> {
        std::iter::from_fn(|| self.events.try_recv()).find_map(wanted)
    }

    fn moved(&mut self) -> Option<SocketAddr> {
        self.told(|event| match event {
            PlaneEvent::LaneChanged { change: LaneChange::Moved { remote, .. }, .. } => Some(remote),
            _ => None,
        })
    }

    fn seen(&mut self) -> Option<SocketAddr> {
        self.told(|event| match event {
            PlaneEvent::PathSeen { serial: SERIAL, from, .. } => Some(from),
            _ => None,
        })
    }

    /// A record with one packet, or with a request.
    fn seal(&mut self, asks: bool) -> Box<[u8]> {
        let mut record = vec![0; 200];
        let room = &mut record[RECORD_HEADER_BYTES..][..200 - RECORD_OVERHEAD_BYTES];
        let frame_bytes = if asks {
            Echo::Request(1).write_frames(room)
        } else {
            let header = FrameHeader::fit(FramedPacket::Complete, 100, room.len()).unwrap();
            let frame = [header.as_bytes(), &packet([10, 20, 0, 2], [10, 10, 0, 2], 100)].concat();
            room[..frame.len()].copy_from_slice(&frame);
            frame.len()
        };
        let bytes = self.far_sealer.seal(&mut record, frame_bytes).unwrap();
        record.truncate(bytes);
        record.into()
    }

    fn pass_on(&mut self, datagram: &[u8], from: &str) {
        let (local, from) = ("127.0.0.1:8100".parse().unwrap(), from.parse().unwrap());
        let passed = PassedOn { serial: SERIAL, local, from, datagram: datagram.into() };
        self.commands.try_send(PlaneCommand::PassOn(Box::new(passed))).unwrap();
        self.turn();
    }
}

#[test]
fn a_lane_moves_when_its_peer_answers_by_another_path_and_no_sooner() {
    let mut bed = Bed::new(0);
    let before = bed.try_path();
    let token = bed.request();
    bed.send_echo(Echo::Reply(token ^ 1), ECHO_RECORD_BYTES);
    bed.send_record(1, 100);
    bed.until(|bed| (bed.counters[0].packets_received.get() == 1).then_some(()));
    assert_eq!(bed.moved(), None, "packets are taken from there, but that is all");

    let after = std::mem::replace(&mut bed.far, before);
    bed.leave(100);
    assert_eq!(bed.until(|bed| Some(bed.records()).filter(|records| records.contains(&1))).last(), Some(&1));
    let before = std::mem::replace(&mut bed.far, after);

    bed.leave(100);
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    assert_eq!(bed.until(Bed::moved), bed.far.local_addr().unwrap());
    bed.leave(100);
    bed.until(|bed| Some(bed.records()).filter(|records| !records.is_empty()));
    assert_eq!(bed.worker.state.lanes.iter().next().unwrap().gauges.moves.get(), 1);

    // What is on its way to where the lane was still arrives, for a while.
    let after = std::mem::replace(&mut bed.far, before);
    bed.send_record(1, 100);
    bed.until(|bed| (bed.counters[0].packets_received.get() == 2).then_some(()));
    let deadline = bed.worker.wake_at().expect("the old path is to be closed");
    assert!(deadline <= Instant::now() + Duration::from_secs(1));
    bed.worker.turn(Instant::now() + Duration::from_secs(2)).unwrap();
    bed.worker.turn(Instant::now() + Duration::from_secs(5)).unwrap();
    bed.send_record(1, 100);
    bed.far = after;
    bed.send_record(1, 100);
    bed.until(|bed| (bed.counters[0].packets_received.get() == 3).then_some(()));
    (0..10).for_each(|_| bed.turn());
    assert_eq!(bed.counters[0].packets_received.get(), 3, "and not any longer");
}

#[test]
fn an_answer_by_the_lanes_own_path_keeps_a_client_where_it_is() {
    let mut bed = Bed::new(0);
    let before = bed.try_path();
    let token = bed.request();
    let other = std::mem::replace(&mut bed.far, before);
    // It was asked there at the same time. What else is asked is about its path.
    let asked = bed.echoes();
    for (echo, _) in &asked {
        let Echo::Request(own) = echo else { continue };
        bed.send_echo(Echo::Reply(*own), ECHO_RECORD_BYTES);
    }
    let answered = asked.len() as u64;
    bed.until(|bed| (bed.counters[0].records_received.get() == answered).then_some(()));
    bed.far = other;
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    bed.until(|bed| (bed.counters[0].records_received.get() == answered + 1).then_some(()));
    bed.turn();
    assert_eq!(bed.moved(), None);
}

#[test]
fn what_comes_to_the_listener_is_delivered_and_tells_of_a_path_only_if_it_is_authentic_and_new() {
    let mut bed = Bed::new(0);
    let [old, asking, newer, newest] = [false, true, false, false].map(|asks| bed.seal(asks));
    bed.pass_on(&newer, "127.0.0.1:1");
    assert_eq!(bed.seen(), Some("127.0.0.1:1".parse().unwrap()));

    // Not twice within a tenth of a second, not for what was seen before, is old, or is nobody's.
    bed.pass_on(&newer, "127.0.0.1:2");
    bed.pass_on(&old, "127.0.0.1:3");
    let mut forged = newest.clone();
    forged[20] ^= 1;
    bed.pass_on(&forged, "127.0.0.1:4");
    assert_eq!(bed.seen(), None);
    assert_eq!(bed.counters[0].packets_received.get(), 2, "no packet is lost for it");
    let drops = &bed.counters[0].drops;
    assert_eq!((drops.get(DropReason::Replayed), drops.get(DropReason::Unauthentic)), (1, 1));

    // One that asks need not be the newest: its sender says that it wants to be answered there.
    let later = Instant::now() + Duration::from_millis(150);
    let passed = |datagram: Box<[u8]>| PassedOn {
        serial: SERIAL,
        local: "127.0.0.1:8100".parse().unwrap(),
        from: "127.0.0.1:5".parse().unwrap(),
        datagram,
    };
    bed.worker.take_passed_on(passed(asking), later);
    bed.turn();
    assert_eq!(bed.seen(), Some("127.0.0.1:5".parse().unwrap()));
    bed.worker.take_passed_on(passed(newest), later + Duration::from_millis(150));
    bed.turn();
    assert_eq!(bed.seen(), Some("127.0.0.1:5".parse().unwrap()));
}

#[test]
fn a_lane_that_ends_takes_its_other_paths_along() {
    let mut bed = Bed::new(0);
    let _before = bed.try_path();
    bed.request();
    bed.commands.try_send(PlaneCommand::RetireLane(SERIAL)).unwrap();
    assert_eq!(bed.until(Bed::lane_end), LaneEnd::Retired);
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    bed.turn();
    bed.send_record(1, 100);
    // Nobody is there any more: the second of two sends hears of it.
    bed.until(|bed| bed.far.send(&[0; 30]).is_err().then_some(()));
}

#[test]
fn keys_are_seen_to_when_the_peer_is_heard_by_another_path_only() {
    let mut bed = Bed::new(0);
    let _before = bed.try_path();
    bed.request();
    bed.until(|bed| bed.worker.ring.is_idle().then_some(()));
    bed.turn();
    let slot = bed.worker.state.lanes.find(SERIAL).unwrap();
    let lane = bed.worker.state.lanes.get_mut(slot).unwrap();
    lane.sealer.skip(bed.worker.rekey.records);
    assert!(lane.rekey.is_due(lane.sealer.wear()));
    bed.send_record(1, 100);
    bed.until(|bed| (bed.counters[0].packets_received.get() == 1).then_some(()));
    let lane = bed.lane();
    assert!(!lane.rekey.is_due(lane.sealer.wear()), "it has begun");
}

#[test]
fn an_answer_that_comes_to_the_listener_says_nothing_of_the_lanes_own_path() {
    let mut bed = Bed::new(0);
    let before = bed.try_path();
    let token = bed.request();
    let other = std::mem::replace(&mut bed.far, before);
    // Everything that is asked on the lane's own path is answered from elsewhere.
    let asked = bed.echoes();
    assert!(asked.len() >= 2, "what the path carries, and whether the peer is still there");
    for (echo, _) in asked {
        let Echo::Request(own) = echo else { continue };
        let mut record = vec![0; ECHO_RECORD_BYTES];
        let frame_bytes = Echo::Reply(own).write_frames(&mut record[RECORD_HEADER_BYTES..][..10]);
        let bytes = bed.far_sealer.seal(&mut record, frame_bytes).unwrap();
        bed.pass_on(&record[..bytes], "127.0.0.1:1");
        bed.turn();
    }
    assert_eq!(bed.lane().gauges.echoes_answered.get(), 0);
    bed.far = other;
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    assert_eq!(bed.until(Bed::moved), bed.far.local_addr().unwrap(), "it does not keep a client where it is");
}

#[test]
fn a_request_that_comes_to_the_listener_is_answered_on_the_lanes_own_path() {
    let mut bed = Bed::new(0);
    let asking = bed.seal(true);
    bed.pass_on(&asking, "127.0.0.1:1");
    bed.until(|bed| bed.echoes().iter().any(|(echo, _)| *echo == Echo::Reply(1)).then_some(()));
}

#[test]
fn a_path_that_was_seen_and_a_new_carrier_are_told_when_control_has_room_again() {
    let mut bed = Bed::new(0);
    while bed.worker.events.try_send(PlaneEvent::Stopped { worker: WorkerId(1) }).is_ok() {}
    let record = bed.seal(false);
    bed.pass_on(&record, "127.0.0.1:1");
    let slot = bed.worker.state.lanes.find(SERIAL).unwrap();
    bed.worker.tell_carrier(slot, LaneCarrier::Quic);
    bed.turn();
    while bed.events.try_recv().is_some() {}
    bed.turn();
    let told: Vec<_> = std::iter::from_fn(|| bed.events.try_recv()).collect();
    assert!(matches!(
        told[..],
        [PlaneEvent::PathSeen { .. }, PlaneEvent::LaneChanged { change: LaneChange::Carrier(LaneCarrier::Quic), .. }]
    ));
}

#[test]
fn a_lane_that_moves_asks_anew_whether_records_pass_and_believes_no_earlier_answer() {
    let mut bed = Bed::with(0, CarrierChoice::Auto, no_queue(), |remote| carrier::connected(remote, true).0);
    bed.until(|bed| bed.lane().carriage.is_asking().then_some(()));
    let _before = bed.try_path();
    let token = bed.request();
    bed.send_echo(Echo::Reply(token), ECHO_RECORD_BYTES);
    bed.until(Bed::moved);
    assert!(!bed.lane().carriage.is_asking());
}
