//! What nodes tell each other of third ones, and of themselves to the neighbourhood.

use std::collections::BTreeMap;

use ringlane_shared::limits::{
    MDNS_TOLD_MAX, PEX_ADDRESSES_PER_PEER_MAX, PEX_ANSWER_BYTES_MAX, PEX_LINES_MAX, SIGNED_RECORD_BYTES_MAX,
};
use ringlane_shared::wire::peers::{LENGTH_BYTES, PeerRecord, PeersMessage};
use ringlane_shared::wire::pex::{Told, parse_answer, write_answer};
use ringlane_shared::wire::{mdns as wire, pex as lines};

/// An answer of Hyprspace's peer exchange. Accepted is what has an address and no bad line.
pub fn pex(answer: &[u8]) -> bool {
    let told = parse_answer(answer, |_| true);
    assert_eq!(told, slow_twin(answer));
    let written = write_answer(told.addresses.iter().map(|(peer, address)| (*peer, address)));
    assert_eq!(parse_answer(&written, |_| true), Told { bad_lines: 0, ..told.clone() }, "what we write, anybody reads");
    !told.addresses.is_empty() && told.bad_lines == 0
}

/// The same, line by line and without thought for its cost.
fn slow_twin(answer: &[u8]) -> Told {
    let mut told = Told::default();
    let mut counts = BTreeMap::new();
    let (mut line, mut lines) = (Vec::new(), 0);
    for byte in answer.iter().take(PEX_ANSWER_BYTES_MAX) {
        if *byte != b'\n' {
            line.push(*byte);
            continue;
        }
        lines += 1;
        match lines::parse_line(&std::mem::take(&mut line)) {
            _ if lines > PEX_LINES_MAX => {}
            Err(_) => told.bad_lines += 1,
            Ok((peer, address)) => {
                let count = counts.entry(peer).or_insert(0);
                *count += 1;
                if *count <= PEX_ADDRESSES_PER_PEER_MAX {
                    told.addresses.push((peer, address));
                }
            }
        }
    }
    told
}

/// A message between Ringlane's nodes; then the same bytes as what an authentic envelope holds.
pub fn peers(message: &[u8]) -> bool {
    if let Ok(record) = PeerRecord::parse(message) {
        let again = record.to_bytes();
        assert!(again.len() + 256 <= SIGNED_RECORD_BYTES_MAX);
        assert_eq!(PeerRecord::parse(&again), Ok(record));
    }
    let Ok(parsed) = PeersMessage::parse(message.to_vec().into()) else { return PeerRecord::parse(message).is_ok() };
    let wire = parsed.to_bytes();
    assert_eq!(wire.len(), parsed.wire_bytes());
    assert_eq!(&wire[LENGTH_BYTES..], message, "there is one way to write a message");
    true
}

/// A packet to the mDNS group. Accepted is what asks or tells something.
pub fn mdns(packet: &[u8]) -> bool {
    let Ok(heard) = wire::parse(packet) else { return false };
    assert!(heard.told.len() <= MDNS_TOLD_MAX && (!heard.asks || heard.told.is_empty()));
    heard.asks || !heard.told.is_empty()
}
