//! The offloads of the packet path: which are wanted, and what became of each.

use std::sync::atomic::{AtomicU8, Ordering};

/// One thing the kernel can do for many packets at once.
///
/// [`Offload::name`] is its key in `[dataplane.offload]` and what status and metrics print: it is stable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Offload {
    /// The TUN gives packets whose checksum is left partial (`TUN_F_CSUM`).
    TunChecksum,
    /// The TUN gives TCP super-segments (`TUN_F_TSO4`, `TUN_F_TSO6`); needs [`Offload::TunChecksum`].
    TunTso,
    /// The TUN gives UDP super-segments (`TUN_F_USO4`, `TUN_F_USO6`, Linux 6.2); needs [`Offload::TunChecksum`].
    TunUso,
    /// We give the TUN super-segments, rebuilt from segments or coalesced from packets.
    TunCoalesce,
    /// Records of one size leave in one send (`UDP_SEGMENT`).
    UdpGso,
    /// Datagrams of one size arrive in one receive (`UDP_GRO`).
    UdpGro,
    /// Each train of equal records is ended by a datagram of one byte, for the drivers of Linux 7.0 to 7.1.4 that spoil
    /// trains of equal datagrams.
    UdpSentinel,
    /// The workers' memory is backed by huge pages.
    HugePages,
}

impl Offload {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::TunChecksum,
        Self::TunTso,
        Self::TunUso,
        Self::TunCoalesce,
        Self::UdpGso,
        Self::UdpGro,
        Self::UdpSentinel,
        Self::HugePages,
    ];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TunChecksum => "tun_checksum",
            Self::TunTso => "tun_tso",
            Self::TunUso => "tun_uso",
            Self::TunCoalesce => "tun_coalesce",
            Self::UdpGso => "udp_gso",
            Self::UdpGro => "udp_gro",
            Self::UdpSentinel => "udp_sentinel",
            Self::HugePages => "huge_pages",
        }
    }

    fn position(self) -> usize {
        self as usize
    }
}

/// Which offloads may be used: what the configuration says, with what others need.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offloads(u8);

const _: () = assert!(Offload::ALL.len() <= u8::BITS as usize);

impl Offloads {
    /// No offload at all.
    pub const NONE: Self = Self(0);
    /// Every offload, the sentinel too.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether this one may be used.
    pub fn has(self, offload: Offload) -> bool {
        self.0 & 1 << offload.position() != 0
    }

    /// The same with this one allowed or not.
    #[must_use]
    pub fn with(self, offload: Offload, allowed: bool) -> Self {
        let bit = 1 << offload.position();
        Self(if allowed { self.0 | bit } else { self.0 & !bit })
    }
}

impl Default for Offloads {
    /// All but the sentinel, which only certain kernels need.
    fn default() -> Self {
        Self::ALL.with(Offload::UdpSentinel, false)
    }
}

/// What became of an offload.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum OffloadState {
    /// Not known yet.
    #[default]
    Unknown = 0,
    /// In use.
    On = 1,
    /// Switched off by the configuration, or not needed.
    Off = 2,
    /// The kernel does not have it.
    Unavailable = 3,
    /// The kernel has it, but it failed while in use and was switched off.
    Failed = 4,
}

impl OffloadState {
    /// Its stable name, as status and metrics print it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::On => "on",
            Self::Off => "off",
            Self::Unavailable => "unavailable",
            Self::Failed => "failed",
        }
    }

    fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::On,
            2 => Self::Off,
            3 => Self::Unavailable,
            4 => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// What became of each offload: written by one worker, read by anyone.
#[derive(Debug, Default)]
pub struct OffloadGauges([AtomicU8; Offload::ALL.len()]);

impl OffloadGauges {
    /// Stores the state of one. Only the owning worker may call this.
    pub fn set(&self, offload: Offload, state: OffloadState) {
        self.0[offload.position()].store(state as u8, Ordering::Relaxed);
    }

    /// The state of one.
    pub fn get(&self, offload: Offload) -> OffloadState {
        OffloadState::from_bits(self.0[offload.position()].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offload_has_a_bit_and_a_gauge_of_its_own() {
        let gauges = OffloadGauges::default();
        for offload in Offload::ALL {
            let only = Offloads::NONE.with(offload, true);
            assert_eq!(Offload::ALL.into_iter().filter(|&other| only.has(other)).collect::<Vec<_>>(), [offload]);
            assert!(!Offloads::ALL.with(offload, false).has(offload));
            assert_eq!(gauges.get(offload), OffloadState::Unknown);
            for state in [OffloadState::On, OffloadState::Off, OffloadState::Unavailable, OffloadState::Failed] {
                gauges.set(offload, state);
                assert_eq!(gauges.get(offload), state);
            }
        }
        assert!(!Offloads::default().has(Offload::UdpSentinel));
    }
}
