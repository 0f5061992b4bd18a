//! One inner packet's way through the pure stages: parse, hash, route, frame, seal, and back.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "the inputs are this file's own")]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use ringlane_shared::id::{LaneId, PeerIndex};
use ringlane_shared::lane::keys::{KeyError, LaneKeys, Role, Suite};
use ringlane_shared::lane::replay::ReplayWindow;
use ringlane_shared::lane::seal::{Opener, Sealer, split};
use ringlane_shared::limits::{
    FRAME_HEADER_ROOM_BYTES, INNER_MTU_DEFAULT, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, RECORDS_PER_EPOCH_MAX,
    REPLAY_WINDOW,
};
use ringlane_shared::packet::{PacketHeader, checksum, flow_hash};
use ringlane_shared::route::RouteTable;
use ringlane_shared::wire::frame::{FrameHeader, FramedPacket, Frames};

const SMALL: usize = 64;
const FULL: usize = INNER_MTU_DEFAULT as usize;
const ROOM: usize = FULL + FRAME_HEADER_ROOM_BYTES;

/// A TCP packet whose checksum the kernel left partial.
fn packet(v6: bool, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0x5a; bytes];
    if v6 {
        packet[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 6, 64]);
        packet[4..6].copy_from_slice(&((bytes - 40) as u16).to_be_bytes());
    } else {
        packet[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    }
    packet
}

/// A deterministic stream of numbers (SplitMix64), so that every run measures the same table and lookups.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn headers(c: &mut Criterion) {
    for (name, v6) in [("v4", false), ("v6", true)] {
        let packet = packet(v6, FULL);
        c.bench_function(&format!("parse/{name}"), |b| b.iter(|| PacketHeader::parse(black_box(&packet)).unwrap()));
        let header = PacketHeader::parse(&packet).unwrap();
        c.bench_function(&format!("flow_hash/{name}"), |b| {
            b.iter(|| flow_hash(black_box(&packet), black_box(&header), 0x0123_4567_89ab_cdef));
        });
    }
}

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for bytes in [FULL, u16::MAX as usize] {
        let mut packet = packet(false, bytes);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |b| {
            b.iter(|| {
                checksum::complete(black_box(&mut packet), checksum::PartialChecksum { start: 20, offset: 16 }).unwrap()
            });
        });
    }
}

/// Routes as sites have them: IPv4 /16 to /28 in 10/8, IPv6 /48 to /64 in fd00::/16, every other one of each.
fn routes(count: usize) -> (RouteTable<PeerIndex>, Vec<IpAddr>) {
    let (mut numbers, mut table, mut inside) = (Numbers(1), RouteTable::default(), Vec::new());
    while table.len() < count {
        let number = numbers.next();
        let prefix: IpNet = if table.len().is_multiple_of(2) {
            let address = Ipv4Addr::from_bits(10 << 24 | (number as u32 & 0x00ff_ffff));
            Ipv4Net::new(address, 16 + (number >> 32) as u8 % 13).unwrap().into()
        } else {
            let address = Ipv6Addr::from_bits(0xfd00 << 112 | u128::from(number) << 48);
            Ipv6Net::new(address, 48 + (number >> 60) as u8).unwrap().into()
        };
        inside.push(prefix.addr());
        table.insert(prefix, PeerIndex(table.len() as u16));
    }
    let lookups = (0..1024).map(|_| inside[numbers.next() as usize % inside.len()]).collect();
    (table, lookups)
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

fn pair(suite: Suite) -> (Sealer, Opener) {
    let export = |output: &mut [u8], _: &[u8], context: &[u8]| {
        output.fill(context[0]);
        Ok::<_, KeyError>(())
    };
    let [a, b] = [1, 2].map(|id| LaneId::new(id).unwrap());
    let keys = |role| LaneKeys::derive(suite, role, export).unwrap();
    (split(keys(Role::Client), a, b).0, split(keys(Role::Server), b, a).1)
}

fn records(c: &mut Criterion) {
    for (name, suite) in [("aes-128-gcm", Suite::Aes128Gcm), ("chacha20-poly1305", Suite::ChaCha20Poly1305)] {
        for bytes in [SMALL, FULL] {
            let mut seal = c.benchmark_group("seal");
            seal.throughput(Throughput::Bytes(bytes as u64));
            seal.bench_function(BenchmarkId::new(name, bytes), |b| {
                let (mut sealer, _) = pair(suite);
                let mut record = vec![0x5a; bytes + RECORD_OVERHEAD_BYTES];
                b.iter(|| {
                    if sealer.sealed() == RECORDS_PER_EPOCH_MAX {
                        sealer = pair(suite).0;
                    }
                    sealer.seal(black_box(&mut record), bytes).unwrap()
                });
            });
            seal.finish();

            let mut open = c.benchmark_group("open");
            open.throughput(Throughput::Bytes(bytes as u64));
            open.bench_function(BenchmarkId::new(name, bytes), |b| b.iter_custom(|n| open_records(suite, bytes, n)));
        }
    }
}

/// Opening destroys a record and no counter opens twice, so batches are sealed off the clock. A batch is what one
/// receive with segmentation offload brings.
fn open_records(suite: Suite, bytes: usize, count: u64) -> Duration {
    const BATCH: usize = 64;
    let (mut sealer, mut opener) = pair(suite);
    let record_bytes = bytes + RECORD_OVERHEAD_BYTES;
    let mut batch = vec![0x5a; BATCH * record_bytes];
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
            black_box(opener.open(record).unwrap());
        }
        elapsed += start.elapsed();
        left -= records as u64;
    }
    elapsed
}

fn frames(c: &mut Criterion) {
    let mut record = vec![0; RECORD_HEADER_BYTES + ROOM];
    for (name, bytes) in [("one full packet", FULL), ("twenty small packets", SMALL)] {
        let packet = packet(false, bytes);
        let mut write = || {
            let (body, mut at) = (&mut record[RECORD_HEADER_BYTES..], 0);
            while let Some(header) = FrameHeader::fit(FramedPacket::Partial, packet.len(), body.len() - at) {
                let header_bytes = header.as_bytes().len();
                body[at..][..header_bytes].copy_from_slice(header.as_bytes());
                body[at + header_bytes..][..packet.len()].copy_from_slice(black_box(&packet));
                at += header_bytes + packet.len();
            }
            at
        };
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

criterion_group!(benches, headers, checksums, lookups, frames, records, replay);
criterion_main!(benches);
