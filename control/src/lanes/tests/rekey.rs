//! Lanes that both engines have made get new keys over the QUIC connection that they came with, on a clock of the test's.

use ringlane_shared::lane::connection::LaneConnection;
use ringlane_shared::lane::rekey::{Rekey, RekeyError, RekeyOutput};
use ringlane_shared::lane::seal::{Opener, Sealer};
use ringlane_shared::plane::RekeyLimits;

use super::*;

const AFTER: Duration = Duration::from_secs(2);
/// One of so many datagrams is lost.
const LOSS: u64 = 5;

struct End {
    connection: LaneConnection,
    rekey: Rekey,
    sealer: Sealer,
    opener: Opener,
    settled: u64,
}

impl End {
    fn new(lane: LaneHandOver, now: std::time::Instant) -> Self {
        let LaneHandOver { connection, sealer, opener, secrets, .. } = lane;
        let rekey = Rekey::new(secrets, RekeyLimits { after: AFTER, records: 1000 }, 1, now);
        Self { connection, rekey, sealer, opener, settled: 0 }
    }

    /// What a worker does, without sockets: returns what it would send and when it wants to be called again.
    fn drive(&mut self, now: std::time::Instant) -> Result<(Vec<Vec<u8>>, Option<std::time::Instant>), RekeyError> {
        let mut heard = Ok(());
        let rekey = &mut self.rekey;
        let read = self.connection.read_stream(|bytes| heard = heard.and_then(|()| rekey.handle_stream(bytes, now)));
        read.expect("nobody ends the stream");
        heard?;
        self.rekey.handle_record_of(self.opener.newest_epoch());
        self.rekey.handle_timeout(self.sealer.wear(), now)?;
        while let Some(output) = self.rekey.poll_output() {
            match output {
                RekeyOutput::Open { epoch, key } => self.opener.install(epoch, key),
                RekeyOutput::Seal { epoch, key } => self.sealer.install(epoch, key),
                RekeyOutput::Settled { epoch } => self.settled = epoch,
                RekeyOutput::RetireBefore { epoch } => self.opener.retire_before(epoch),
                RekeyOutput::Overdue => panic!("overdue in epoch {}", self.settled),
            }
        }
        let written = self.connection.write_stream(self.rekey.unsent()).expect("nobody stops the stream");
        self.rekey.handle_sent(written);
        let mut datagrams = Vec::new();
        let quic_at = self.connection.drive(now, |datagram| datagrams.push(datagram.to_vec()));
        Ok((datagrams, [quic_at, self.rekey.poll_timeout()].into_iter().flatten().min()))
    }
}

async fn lane(net: u8) -> [End; 2] {
    let (mut a, mut b) = (Node::listening(net, 1, 1), Node::listening(net, 2, 1));
    start_both(&mut a, &mut b, 1);
    let lanes = outcomes(&mut a, &mut b, [1, 1]).await.map(|mut told| *established(told.remove(0)).1);
    let now = std::time::Instant::now();
    lanes.map(|lane| End::new(lane, now))
}

#[tokio::test]
async fn a_lane_gets_new_keys_again_and_again_though_datagrams_are_lost() {
    let mut ends = lane(31).await;
    let (mut now, mut sent) = (std::time::Instant::now(), 0_u64);
    while ends.iter().any(|end| end.settled < 20) {
        let mut wake_at = now + Duration::from_secs(60);
        let mut is_quiet = true;
        for from in [0, 1] {
            let (datagrams, at) = ends[from].drive(now).unwrap();
            wake_at = at.unwrap_or(wake_at).min(wake_at);
            for datagram in datagrams {
                is_quiet = false;
                sent += 1;
                assert!(sent < 2000, "the two never come to rest");
                // Without a rhythm: QUIC's retransmissions would fall in with it.
                if (sent.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % LOSS != 0 {
                    ends[1 - from].connection.handle_datagram(now, &datagram);
                }
            }
        }
        let mut record = [0; RECORD_OVERHEAD_BYTES + 4];
        for from in [0, 1] {
            ends[from].sealer.seal(&mut record, 4).unwrap();
            assert!(ends[1 - from].opener.open(&mut record).is_ok(), "in epoch {}", ends[from].sealer.epoch());
        }
        now = if is_quiet { wake_at.max(now) } else { now + Duration::from_millis(1) };
    }
}

#[tokio::test]
async fn a_peer_that_writes_no_message_on_the_stream_is_noticed() {
    let [mut client, mut server] = lane(32).await;
    let now = std::time::Instant::now();
    // Instead of hello.
    client.connection.write_stream(&[9, 0, 0]).unwrap();
    client.connection.drive(now, |datagram| server.connection.handle_datagram(now, datagram));
    assert!(matches!(server.drive(now), Err(RekeyError::Message(_))));
}
