//! What a peer writes on a lane's stream.

use std::time::{Duration, Instant};

use ringlane_shared::id::LaneId;
use ringlane_shared::lane::epoch::{EpochSecrets, PSK_BYTES};
use ringlane_shared::lane::keys::{Role, Suite};
use ringlane_shared::lane::rekey::{Rekey, RekeyOutput};
use ringlane_shared::plane::RekeyLimits;
use ringlane_shared::wire::rekey::{MessageError, MessageReader, RekeyMessage};

/// The first byte says which end hears the rest, whether it wants a new epoch by then, and in how large pieces the rest
/// comes. Accepted is what consists of whole messages none of which is out of turn. The psk is that of
/// `shared/tests/vectors.rs`, whose init a server thus takes.
pub fn rekey(input: &[u8]) -> bool {
    let Some((&how, stream)) = input.split_first() else { return false };
    let (role, wants_epoch, piece_bytes) =
        (if how & 1 == 0 { Role::Server } else { Role::Client }, how & 2 != 0, 1 + usize::from(how >> 2));
    messages(stream, piece_bytes);

    let (clients, servers) = (LaneId::from_be_bytes([0, 0, 7]), LaneId::from_be_bytes([0xab, 0xcd, 0xef]));
    let (outbound, inbound) = if role == Role::Client { (servers, clients) } else { (clients, servers) };
    let psk = std::array::from_fn::<u8, PSK_BYTES, _>(|at| 0xc0 + at as u8).into();
    let secrets = EpochSecrets::new(Suite::Aes128Gcm, role, outbound, inbound, psk);
    let now = Instant::now();
    let mut rekey = Rekey::new(secrets, RekeyLimits::default(), 0, now);
    if wants_epoch {
        rekey.handle_timeout(0, now + Duration::from_secs(3600)).expect("the first step needs nobody");
    }
    for piece in stream.chunks(piece_bytes) {
        if rekey.handle_stream(piece, now).is_err() {
            return false;
        }
    }
    let mut opens = 0;
    while let Some(output) = rekey.poll_output() {
        match output {
            // Nobody but who has the psk gets an end to make keys, and the input has no answer to a reply of ours.
            RekeyOutput::Open { epoch, .. } | RekeyOutput::Seal { epoch, .. } | RekeyOutput::Settled { epoch } => {
                assert_eq!((role, epoch), (Role::Server, 1));
                opens += 1;
            }
            RekeyOutput::RetireBefore { .. } | RekeyOutput::Overdue => {}
        }
    }
    assert!(opens <= 3 && rekey.unsent().len() <= 256, "an end says little, whatever it hears");
    let mut read = 0;
    while let Ok(Some((_, bytes))) = RekeyMessage::parse(&stream[read..]) {
        read += bytes;
    }
    read == stream.len()
}

/// Cut up or not, a stream is the same messages, and each says exactly what its bytes say.
fn messages(stream: &[u8], piece_bytes: usize) {
    let mut written = Vec::new();
    let mut reader = MessageReader::default();
    let read: Result<(), MessageError> = stream.chunks(piece_bytes).try_for_each(|piece| {
        reader.read(piece, |message| {
            message.write(&mut written);
            Ok(())
        })
    });
    assert!(stream.starts_with(&written));
    match (read, RekeyMessage::parse(&stream[written.len()..])) {
        (Ok(()), Ok(None)) => {}
        (Err(error), Err(again)) => assert_eq!(error, again),
        (read, parsed) => panic!("{read:?} cut up, {parsed:?} whole"),
    }
}
