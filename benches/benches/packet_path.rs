//! How long an inner packet's way through the pure stages takes: parse, hash, route, split, frame, seal, and back.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ringlane_benches::{
    ARRIVALS, Buffer, FULL, Pieces, ROOM, SMALL, SUPER, packet, pair, parsed, routes, split_packet, write_frames,
};
use ringlane_shared::lane::keys::Suite;
use ringlane_shared::lane::replay::ReplayWindow;
use ringlane_shared::lane::seal::Sealer;
use ringlane_shared::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, RECORDS_PER_EPOCH_MAX, REPLAY_WINDOW};
use ringlane_shared::packet::{Coalescer, PacketHeader, checksum, flow_hash};
use ringlane_shared::wire::frame::Frames;

fn headers(c: &mut Criterion) {
    for (name, v6) in [("v4", false), ("v6", true)] {
        let packet = &*packet(v6, FULL);
        c.bench_function(&format!("parse/{name}"), |b| b.iter(|| PacketHeader::parse(black_box(packet)).unwrap()));
        let (header, _) = parsed(packet);
        c.bench_function(&format!("flow_hash/{name}"), |b| {
            b.iter(|| flow_hash(black_box(packet), black_box(&header), 0x0123_4567_89ab_cdef));
        });
    }
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for bytes in [FULL, u16::MAX as usize] {
        let packet = &mut *packet(false, bytes);
        let (_, partial) = parsed(packet);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| checksum::complete(black_box(packet), partial).unwrap());
        });
    }
}

fn lookups(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for count in [10, 1000, 50_000] {
        let (table, addresses) = routes(count);
        let mut addresses = addresses.iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| table.lookup(black_box(*addresses.next().unwrap())).copied());
        });
    }
}

fn records(c: &mut Criterion) {
    for (name, suite) in [("aes-128-gcm", Suite::Aes128Gcm), ("chacha20-poly1305", Suite::ChaCha20Poly1305)] {
        for bytes in [SMALL, FULL] {
            let mut seal = c.benchmark_group("seal");
            seal.throughput(Throughput::Bytes(bytes as u64));
            bench_seal(&mut seal, name, bytes, suite, |sealer, record| sealer.seal(record, bytes).unwrap());
            if suite == Suite::Aes128Gcm {
                let frames = &*Buffer::filled(0x5a, bytes);
                bench_seal(&mut seal, "aes-128-gcm, copied first", bytes, suite, |sealer, record| {
                    record[RECORD_HEADER_BYTES..][..bytes].copy_from_slice(black_box(frames));
                    sealer.seal(record, bytes).unwrap()
                });
                bench_seal(&mut seal, "aes-128-gcm, from elsewhere", bytes, suite, |sealer, record| {
                    sealer.seal_from(black_box(frames), record).unwrap()
                });
            }
            seal.finish();

            let mut open = c.benchmark_group("open");
            open.throughput(Throughput::Bytes(bytes as u64));
            open.bench_function(BenchmarkId::new(name, bytes), |b| b.iter_custom(|n| open_records(suite, bytes, n)));
        }
    }
}

fn bench_seal(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    bytes: usize,
    suite: Suite,
    mut seal: impl FnMut(&mut Sealer, &mut [u8]) -> usize,
) {
    group.bench_function(BenchmarkId::new(name, bytes), |b| {
        let (mut sealer, _) = pair(suite);
        let record = &mut *Buffer::filled(0x5a, bytes + RECORD_OVERHEAD_BYTES);
        b.iter(|| {
            if sealer.is_exhausted() {
                sealer = pair(suite).0;
            }
            seal(&mut sealer, black_box(record))
        });
    });
}

/// Opening destroys a record and no counter opens twice, so batches are sealed off the clock. A batch is what one
/// receive with segmentation offload brings.
fn open_records(suite: Suite, bytes: usize, count: u64) -> Duration {
    const BATCH: usize = 64;
    let (mut sealer, mut opener) = pair(suite);
    let record_bytes = bytes + RECORD_OVERHEAD_BYTES;
    let mut batch = Buffer::filled(0x5a, BATCH * record_bytes);
    let (mut left, mut elapsed) = (count, Duration::ZERO);
    while left > 0 {
        let records = left.min(BATCH as u64) as usize;
        let used = &mut batch[..records * record_bytes];
        if sealer.sealed() + BATCH as u64 > RECORDS_PER_EPOCH_MAX {
            (sealer, opener) = pair(suite);
        }
        for record in used.chunks_exact_mut(record_bytes) {
            sealer.seal(record, bytes).unwrap();
        }
        let start = Instant::now();
        for record in used.chunks_exact_mut(record_bytes) {
            black_box(opener.open(record).unwrap().frames);
        }
        elapsed += start.elapsed();
        left -= records as u64;
    }
    elapsed
}

fn super_segments(c: &mut Criterion) {
    let (packet, pieces) = (&*packet(false, SUPER), &mut *Buffer::filled(0, 48 * ROOM));
    let (header, _) = parsed(packet);
    let mut group = c.benchmark_group("split");
    group.throughput(Throughput::Bytes(SUPER as u64));
    group.bench_function("48 pieces", |b| {
        b.iter(|| split_packet(black_box(packet), &header, black_box(pieces)));
    });
    group.finish();

    let mut group = c.benchmark_group("coalesce");
    group.throughput(Throughput::Bytes(SUPER as u64));
    for (name, arrival) in ARRIVALS {
        let (pieces, mut coalescer) = (Pieces::new(arrival), Coalescer::new(true, true));
        group.bench_function(format!("48 {name}"), |b| b.iter(|| black_box(&pieces).join(&mut coalescer)));
    }
}

fn frames(c: &mut Criterion) {
    let record = &mut *Buffer::filled(0, RECORD_HEADER_BYTES + ROOM);
    for (name, bytes) in [("one full packet", FULL), ("21 small packets", SMALL)] {
        let packet = &*packet(false, bytes);
        let mut write = || write_frames(record, black_box(packet));
        let written = write();
        c.bench_function(&format!("frame write/{name}"), |b| b.iter(&mut write));
        let body = &record[RECORD_HEADER_BYTES..][..written];
        c.bench_function(&format!("frame read/{name}"), |b| {
            b.iter(|| Frames::new(black_box(body)).map(|frame| frame.unwrap().payload.len()).sum::<usize>());
        });
    }
}

fn replay(c: &mut Criterion) {
    c.bench_function("replay window/in order", |b| {
        let (mut window, mut counter) = (ReplayWindow::default(), 0);
        b.iter(|| {
            counter += 1;
            window.accept(black_box(counter))
        });
    });
    c.bench_function("replay window/half a window late", |b| {
        let (mut window, mut turn) = (ReplayWindow::default(), 0);
        b.iter(|| {
            turn += 1;
            let late = if turn % 2 == 0 { REPLAY_WINDOW / 2 } else { 0 };
            assert!(window.accept(black_box(REPLAY_WINDOW + turn - late)), "even counters are fresh");
        });
    });
}

criterion_group!(benches, headers, checksums, lookups, super_segments, frames, records, replay);
criterion_main!(benches);
