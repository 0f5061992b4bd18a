//! The stages, and what they are given to do. What a stage needs is made before it is measured.

use std::hint::black_box;

use ringlane_benches::{
    ARRIVALS, Buffer, FULL, Pieces, ROOM, SMALL, SUPER, packet, pair, parsed, routes, split_packet, write_frames,
};
use ringlane_shared::lane::keys::Suite;
use ringlane_shared::lane::replay::ReplayWindow;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES};
use ringlane_shared::packet::{Coalescer, PacketHeader, checksum, flow_hash};
use ringlane_shared::wire::frame::Frames;

use super::measured;

/// How often a stage runs where its input does not say it: a power of two that makes the way there and back vanish.
const OPERATIONS: usize = 256;

/// Runs all stages, each announced by a line of operations and name.
pub(super) fn run() {
    headers();
    lookups();
    super_segments();
    frames();
    records();
    replay();
    checksums();
}

fn announce(name: &str, operations: usize) {
    println!("{operations} {name}");
}

fn repeat(name: &str, mut operation: impl FnMut()) {
    announce(name, OPERATIONS);
    measured(|| (0..OPERATIONS).for_each(|_| operation()));
}

fn headers() {
    for (name, v6) in [("v4", false), ("v6", true)] {
        let packet = &*packet(v6, FULL);
        repeat(&format!("parse/{name}"), || {
            black_box(PacketHeader::parse(black_box(packet)).unwrap());
        });
        let (header, _) = parsed(packet);
        repeat(&format!("flow_hash/{name}"), || {
            black_box(flow_hash(black_box(packet), black_box(&header), 0x0123_4567_89ab_cdef));
        });
    }
}

fn lookups() {
    let (table, addresses) = routes(1000);
    announce("route/1000", addresses.len());
    measured(|| {
        for address in &addresses {
            black_box(table.lookup(black_box(*address)));
        }
    });
}

fn super_segments() {
    let (packet, pieces) = (&*packet(false, SUPER), &mut *Buffer::filled(0, 48 * ROOM));
    let (header, _) = parsed(packet);
    repeat("split/48 pieces", || {
        black_box(split_packet(black_box(packet), &header, black_box(pieces)));
    });
    for (name, arrival) in ARRIVALS {
        let (pieces, mut coalescer) = (Pieces::new(arrival), Coalescer::new(true, true));
        repeat(&format!("coalesce/48 {name}"), || {
            black_box(black_box(&pieces).join(&mut coalescer));
        });
    }
}

fn frames() {
    let record = &mut *Buffer::filled(0, RECORD_HEADER_BYTES + ROOM);
    for (name, bytes) in [("one full packet", FULL), ("21 small packets", SMALL)] {
        let packet = &*packet(false, bytes);
        let mut written = 0;
        repeat(&format!("frame write/{name}"), || written = write_frames(black_box(record), black_box(packet)));
        let body = &record[RECORD_HEADER_BYTES..][..written];
        repeat(&format!("frame read/{name}"), || {
            black_box(Frames::new(black_box(body)).map(|frame| frame.unwrap().payload.len()).sum::<usize>());
        });
    }
}

fn records() {
    let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
    let record_bytes = FULL + RECORD_OVERHEAD_BYTES;
    let mut records = Buffer::filled(0x5a, OPERATIONS * record_bytes);
    announce("seal", OPERATIONS);
    measured(|| {
        for record in records.chunks_exact_mut(record_bytes) {
            black_box(sealer.seal(record, FULL).unwrap());
        }
    });
    let (mut other_sealer, _) = pair(Suite::Aes128Gcm);
    let (frames, record) = (&*Buffer::filled(0x5a, FULL), &mut *Buffer::filled(0, record_bytes));
    repeat("seal from elsewhere", || {
        black_box(other_sealer.seal_from(black_box(frames), record).unwrap());
    });
    announce("open", OPERATIONS);
    measured(|| {
        for record in records.chunks_exact_mut(record_bytes) {
            black_box(opener.open(record).unwrap().frames);
        }
    });
}

fn replay() {
    let (mut window, mut counter) = (ReplayWindow::default(), 0);
    repeat("replay window", || {
        counter += 1;
        assert!(window.accept(black_box(counter)), "counters that rise are fresh");
    });
}

fn checksums() {
    let packet = &mut *packet(false, FULL);
    let (_, partial) = parsed(packet);
    repeat("checksum/1420", || checksum::complete(black_box(packet), partial).unwrap());
}
