//! What has lanes relayed: messages on the stream, and the datagrams by which an end shows itself.

use ringlane_shared::wire::bind::{BIND_BYTES, BindToken, UnverifiedBind, is_bind};
use ringlane_shared::wire::record::DatagramKind;
use ringlane_shared::wire::relay::{LENGTH_BYTES, RelayMessage};

/// A message of `/ringlane/relay/1`, or a bind: what is accepted says exactly what its bytes say.
pub fn relay(message: &[u8]) -> bool {
    let bound = bind(message);
    let Ok(read) = RelayMessage::parse(message) else { return bound };
    let again = read.to_message().expect("what was accepted can be sent");
    assert!(message.starts_with(&again[LENGTH_BYTES..]));
    assert_eq!(RelayMessage::parse(&again[LENGTH_BYTES..]).as_ref(), Ok(&read));
    if let RelayMessage::Allotted(allotment) | RelayMessage::Invite { allotment, .. } = &read {
        assert_eq!(allotment.lane_set().iter().count(), allotment.lanes.len(), "each once");
        assert!(allotment.lanes.iter().all(|lane| allotment.addresses_of(lane).next().is_some()));
    }
    true
}

fn bind(datagram: &[u8]) -> bool {
    let Ok(unverified) = UnverifiedBind::parse(datagram) else { return false };
    assert_eq!((DatagramKind::of(datagram), datagram.len()), (DatagramKind::Bind, BIND_BYTES));
    let keys = BindToken::new(std::array::from_fn(|at| at as u8)).keys();
    let Ok(bind) = keys.verify(&unverified) else { return false };
    assert_eq!(unverified.name(), keys.name());
    assert_eq!(keys.seal(&bind), datagram);
    assert!(is_bind(datagram) == matches!(bind.kind, ringlane_shared::wire::bind::BindKind::Request { .. }));
    true
}
