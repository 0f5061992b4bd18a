//! Which TUN queue the kernel puts a packet into: a small eBPF program instead of the kernel's own guess.
//!
//! Without it the kernel learns from our writes: a flow moves to the queue that last wrote its other direction, and
//! overtakes itself when it does. With it a flow has one queue, so one worker, for ever, whoever writes its other
//! direction; and no write pays for the learning.
//!
//! The queue follows from a hash of protocol, addresses and ports that is the same in both directions, so that two
//! nodes with equally many workers use the same lane for both. Fragments are hashed without ports, all of a packet
//! alike. The hash has no secret: whoever can choose the ports of his own flows can put them on one core.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
/// `TUNSETSTEERINGEBPF`: `_IOR('T', 224, int)`.
const TUN_SET_STEERING_EBPF: libc::Ioctl = 0x8004_54e0_u32 as libc::Ioctl;

/// Knuth's multiplicative constant, 2^32 divided by the golden ratio.
const MIX: i32 = 0x9e37_79b1_u32 as i32;

/// One eBPF instruction (`struct bpf_insn`).
#[derive(Clone, Copy)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Destination register in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// The part of `union bpf_attr` that loading a program uses.
#[derive(Default)]
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    program_flags: u32,
}

/// Makes the TUN interface that `queue` belongs to steer by flow hash.
pub(crate) fn steer_by_flow(queue: BorrowedFd<'_>) -> io::Result<()> {
    let program = load()?;
    let descriptor = program.as_raw_fd();
    // SAFETY: both descriptors are open, and the ioctl reads one integer.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), TUN_SET_STEERING_EBPF, &raw const descriptor) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load() -> io::Result<OwnedFd> {
    let instructions = program();
    let license = c"Dual MIT/GPL";
    let attributes = LoadAttributes {
        program_type: BPF_PROG_TYPE_SOCKET_FILTER,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    let size = size_of::<LoadAttributes>();
    // SAFETY: the attributes point at instructions and a string that live until the call returns.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size) };
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

// Registers: 0 takes what a load finds, 6 holds the packet, 7 the hash, 8 the protocol, 9 where the ports are.

const WORD: u8 = 0x00;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;

/// r0 = packet[at..], in host order; a packet too short for it ends the program with hash 0.
fn load_at(size: u8, at: i32) -> Instruction {
    Instruction { code: 0x20 | size, registers: 0, offset: 0, immediate: at }
}

/// r0 = packet[r9..].
fn load_at_r9(size: u8) -> Instruction {
    Instruction { code: 0x40 | size, registers: 9 << 4, offset: 0, immediate: 0 }
}

/// 32-bit arithmetic between two registers.
fn compute(operation: u8, to: u8, from: u8) -> Instruction {
    Instruction { code: 0x0c | operation, registers: from << 4 | to, offset: 0, immediate: 0 }
}

/// 32-bit arithmetic with a constant.
fn compute_with(operation: u8, to: u8, immediate: i32) -> Instruction {
    Instruction { code: 0x04 | operation, registers: to, offset: 0, immediate }
}

const MULTIPLY: u8 = 0x20;
const AND: u8 = 0x50;
const SHIFT_LEFT: u8 = 0x60;
const SHIFT_RIGHT: u8 = 0x70;
const XOR: u8 = 0xa0;
const MOVE: u8 = 0xb0;

const IF_EQUAL: u8 = 0x16;
const IF_ANY_BIT: u8 = 0x46;
const ALWAYS: u8 = 0x05;

/// Protocols that begin with two ports: TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [i32; 5] = [6, 17, 33, 132, 136];

/// A place to jump to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label {
    Version6,
    Protocol,
    Ports,
    Mix,
}

/// A program in the making: jumps forward are filled in when their label is reached.
#[derive(Default)]
struct Assembler {
    program: Vec<Instruction>,
    open: Vec<(usize, Label)>,
}

impl Assembler {
    fn put(&mut self, instructions: impl IntoIterator<Item = Instruction>) {
        self.program.extend(instructions);
    }

    fn jump(&mut self, condition: u8, register: u8, immediate: i32, to: Label) {
        self.open.push((self.program.len(), to));
        self.program.push(Instruction { code: condition, registers: register, offset: 0, immediate });
    }

    fn label(&mut self, label: Label) {
        let here = self.program.len();
        let program = &mut self.program;
        self.open.retain(|&(at, to)| {
            if to == label {
                program[at].offset = (here - at - 1) as i16;
            }
            to != label
        });
    }
}

/// The program; the tests say the same in Rust and let the kernel compare.
fn program() -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    assembler.put([
        // A 64-bit move: loads want the packet in r6.
        Instruction { code: 0xbf, registers: 1 << 4 | 6, offset: 0, immediate: 0 },
        compute_with(MOVE, 7, 0),
        load_at(BYTE, 0),
        compute(MOVE, 9, 0),
        compute_with(SHIFT_RIGHT, 0, 4),
    ]);
    assembler.jump(IF_EQUAL, 0, 6, Label::Version6);
    assembler.put([
        compute_with(AND, 9, 0x0f),
        compute_with(SHIFT_LEFT, 9, 2),
        load_at(WORD, 12),
        compute(XOR, 7, 0),
        load_at(WORD, 16),
        compute(XOR, 7, 0),
        load_at(BYTE, 9),
        compute(MOVE, 8, 0),
        load_at(HALF, 6),
    ]);
    // A fragment: more of them follow, or this one is not the first.
    assembler.jump(IF_ANY_BIT, 0, 0x3fff, Label::Mix);
    assembler.jump(ALWAYS, 0, 0, Label::Protocol);
    assembler.label(Label::Version6);
    for word in 0..8 {
        assembler.put([load_at(WORD, 8 + 4 * word), compute(XOR, 7, 0)]);
    }
    // Behind an extension header there may be ports too, but the header's own number will do.
    assembler.put([load_at(BYTE, 6), compute(MOVE, 8, 0), compute_with(MOVE, 9, 40)]);
    assembler.label(Label::Protocol);
    for protocol in WITH_PORTS {
        assembler.jump(IF_EQUAL, 8, protocol, Label::Ports);
    }
    assembler.jump(ALWAYS, 0, 0, Label::Mix);
    assembler.label(Label::Ports);
    assembler.put([
        load_at_r9(WORD),
        compute(MOVE, 9, 0),
        compute_with(SHIFT_RIGHT, 9, 16),
        compute(XOR, 9, 0),
        compute_with(AND, 9, 0xffff),
        compute_with(MULTIPLY, 9, 0x1_0001),
        compute(XOR, 7, 9),
    ]);
    assembler.label(Label::Mix);
    assembler.put([
        compute(XOR, 7, 8),
        compute_with(MULTIPLY, 7, MIX),
        compute(MOVE, 0, 7),
        compute_with(SHIFT_RIGHT, 0, 15),
        compute(XOR, 7, 0),
        compute_with(MULTIPLY, 7, MIX),
        compute(MOVE, 0, 7),
        compute_with(SHIFT_RIGHT, 0, 16),
        compute(XOR, 0, 7),
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ]);
    assembler.program
}

#[cfg(test)]
mod tests {
    use super::*;

    const BPF_PROG_TEST_RUN: libc::c_long = 10;
    const ETHERNET_HEADER_BYTES: usize = 14;

    /// The hash as the program should compute it.
    fn hash(packet: &[u8]) -> u32 {
        let word = |at: usize| Some(u32::from_be_bytes(packet.get(at..at + 4)?.try_into().ok()?));
        let computed = || {
            let first = *packet.first()?;
            let (addresses, protocol, fragment, ports_at) = if first >> 4 == 6 {
                let addresses = (0..8).try_fold(0, |hash, step| Some(hash ^ word(8 + 4 * step)?))?;
                (addresses, *packet.get(6)?, false, 40)
            } else {
                let fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff != 0;
                (word(12)? ^ word(16)?, packet[9], fragment, usize::from(first & 0x0f) * 4)
            };
            let mut hash = addresses;
            if !fragment && WITH_PORTS.contains(&i32::from(protocol)) {
                let ports = word(ports_at)?;
                hash ^= ((ports ^ (ports >> 16)) & 0xffff).wrapping_mul(0x1_0001);
            }
            hash = (hash ^ u32::from(protocol)).wrapping_mul(MIX as u32);
            hash ^= hash >> 15;
            hash = hash.wrapping_mul(MIX as u32);
            Some(hash ^ (hash >> 16))
        };
        computed().unwrap_or(0)
    }

    #[derive(Default)]
    #[repr(C)]
    struct RunAttributes {
        program: u32,
        result: u32,
        input_bytes: u32,
        output_bytes: u32,
        input: u64,
        output: u64,
        repeat: u32,
        duration: u32,
    }

    /// Lets the kernel run the program on a packet, or says that it may not be asked.
    fn run(program: &OwnedFd, packet: &[u8]) -> io::Result<u32> {
        let mut frame = vec![0; ETHERNET_HEADER_BYTES];
        frame.extend_from_slice(packet);
        let mut attributes = RunAttributes {
            program: program.as_raw_fd() as u32,
            input_bytes: frame.len() as u32,
            input: frame.as_ptr() as u64,
            repeat: 1,
            ..RunAttributes::default()
        };
        let size = size_of::<RunAttributes>();
        // SAFETY: the attributes point at a frame that lives until the call returns.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes.result) }
    }

    fn packet(v6: bool, protocol: u8, [from, to]: [u8; 2], ports: [u16; 2]) -> Vec<u8> {
        let mut packet = if v6 {
            let mut packet = vec![0x60, 0, 0, 0, 0, 24, protocol, 64];
            packet.extend([0xfd; 15]);
            packet.push(from);
            packet.extend([0xfe; 15]);
            packet.push(to);
            packet
        } else {
            vec![0x45, 0, 0, 44, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 10, 0, from, 10, 20, 0, to]
        };
        ports.iter().for_each(|port| packet.extend(port.to_be_bytes()));
        packet.extend([0; 20]);
        packet
    }

    fn reverse(v6: bool, packet: &[u8]) -> Vec<u8> {
        let (source, bytes, ports) = if v6 { (8, 16, 40) } else { (12, 4, 20) };
        let mut reverse = packet.to_vec();
        reverse[source..source + bytes].copy_from_slice(&packet[source + bytes..source + 2 * bytes]);
        reverse[source + bytes..source + 2 * bytes].copy_from_slice(&packet[source..source + bytes]);
        reverse[ports..ports + 2].copy_from_slice(&packet[ports + 2..ports + 4]);
        reverse[ports + 2..ports + 4].copy_from_slice(&packet[ports..ports + 2]);
        reverse
    }

    #[test]
    fn the_kernel_computes_the_hash_that_the_twin_does() {
        let program = match load() {
            Ok(program) => program,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: not allowed to load eBPF programs");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let mut packets = Vec::new();
        for v6 in [false, true] {
            for protocol in [1, 6, 17, 33, 44, 58, 132, 136, 200] {
                packets.push(packet(v6, protocol, [2, 3], [40_000, 443]));
            }
        }
        let mut fragment = packet(false, 17, [2, 3], [1, 2]);
        fragment[6] = 0x20;
        packets.push(fragment);
        let mut options = packet(false, 6, [2, 3], [1, 2]);
        options[0] = 0x47;
        packets.push(options);
        for packet in packets {
            assert_eq!(run(&program, &packet).unwrap(), hash(&packet), "{packet:02x?}");
        }
    }

    #[test]
    fn both_directions_of_a_flow_share_a_queue_and_flows_spread() {
        for v6 in [false, true] {
            let mut queues = [0u32; 3];
            for port in 0..3000 {
                let there = packet(v6, 6, [2, 3], [30_000 + port, 443]);
                assert_eq!(hash(&there), hash(&reverse(v6, &there)));
                queues[(hash(&there) % 3) as usize] += 1;
            }
            assert!(queues.iter().all(|flows| (850..1150).contains(flows)), "{queues:?}");
        }
    }
}
