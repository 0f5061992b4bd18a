//! DSCP and ECN: the byte that IPv4 calls type of service and IPv6 traffic class, of inner and of outer headers.
//!
//! A tunnel that lets its outer headers be marked has to carry the marks on (RFC 6040), or congestion goes unheard.

use super::checksum::fold;
use crate::plane::OuterMarks;

/// The ECN field's bits (RFC 3168, section 5).
const ECN_BITS: u8 = 0b11;

/// What a header says of congestion.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Ecn {
    /// The transport does not know of ECN: only loss speaks to it.
    #[default]
    NotEct = 0b00,
    /// ECN-capable, for experiments such as L4S (RFC 9331).
    Ect1 = 0b01,
    /// ECN-capable.
    Ect0 = 0b10,
    /// Congestion experienced.
    Ce = 0b11,
}

impl Ecn {
    /// The two low bits of a type of service or traffic class.
    pub fn of(class: u8) -> Self {
        match class & ECN_BITS {
            0b00 => Self::NotEct,
            0b01 => Self::Ect1,
            0b10 => Self::Ect0,
            _ => Self::Ce,
        }
    }

    /// Whether a tunnel's exit has to look at the packets inside: other values leave every inner header as it is.
    pub fn concerns_inner(self) -> bool {
        matches!(self, Self::Ce | Self::Ect1)
    }
}

/// The byte of DSCP and ECN in the packet that `packet` begins with; 0 if it is no IP packet.
pub fn class_of(packet: &[u8]) -> u8 {
    match packet {
        [first, class, ..] if first >> 4 == 4 => *class,
        [first, second, ..] if first >> 4 == 6 => first << 4 | second >> 4,
        _ => 0,
    }
}

/// The part of an inner packet's class that its record's outer header repeats.
pub fn class_mask(marks: OuterMarks) -> u8 {
    let dscp = if marks.copies_dscp { !ECN_BITS } else { 0 };
    let ecn = if marks.copies_ecn { ECN_BITS } else { 0 };
    dscp | ecn
}

/// Marks a packet as having met congestion, if its transport understands that; false if only a drop would tell it.
pub fn mark_congestion(packet: &mut [u8]) -> bool {
    match Ecn::of(class_of(packet)) {
        Ecn::NotEct => false,
        Ecn::Ce => true,
        Ecn::Ect0 | Ecn::Ect1 => set_ecn(packet, Ecn::Ce).is_some(),
    }
}

/// An inner packet met congestion on a path whose marks its transport does not understand: the path is at fault, for it
/// marked what was not ECN-capable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("congestion was marked outside a packet whose transport does not know of it")]
pub struct MarkedNotEct;

/// Carries what the outer header says into the inner one, by RFC 6040, section 4.2. On an error the packet must be
/// dropped: nothing else would tell its sender.
pub fn decapsulate(packet: &mut [u8], outer: Ecn) -> Result<(), MarkedNotEct> {
    let combined = match (Ecn::of(class_of(packet)), outer) {
        (Ecn::NotEct, Ecn::Ce) => return Err(MarkedNotEct),
        (Ecn::Ect0 | Ecn::Ect1, Ecn::Ce) => Ecn::Ce,
        (Ecn::Ect0, Ecn::Ect1) => Ecn::Ect1,
        _ => return Ok(()),
    };
    // What is too short to have a checksum is dropped by whoever reads it next.
    set_ecn(packet, combined);
    Ok(())
}

/// Writes the ECN field, and keeps IPv4's header checksum true (RFC 1624).
fn set_ecn(packet: &mut [u8], ecn: Ecn) -> Option<()> {
    let ecn = ecn as u8;
    if packet.first()? >> 4 == 6 {
        let second = packet.get_mut(1)?;
        *second = *second & !(ECN_BITS << 4) | ecn << 4;
        return Some(());
    }
    let [first, class, _, _, _, _, _, _, _, _, high, low] = packet.first_chunk_mut()?;
    let before = u16::from_be_bytes([*first, *class]);
    *class = *class & !ECN_BITS | ecn;
    let after = u16::from_be_bytes([*first, *class]);
    let checksum = u16::from_be_bytes([*high, *low]);
    let sum = !fold(u64::from(!checksum) + u64::from(!before) + u64::from(after));
    [*high, *low] = sum.to_be_bytes();
    Some(())
}

#[cfg(test)]
mod tests {
    use super::super::checksum::Sum;
    use super::*;

    fn ipv4(class: u8, id: u16) -> Vec<u8> {
        let mut packet =
            vec![0x45, class, 0, 20, (id >> 8) as u8, id as u8, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let checksum = !Sum::default().plus(&packet).fold();
        packet[10..12].copy_from_slice(&checksum.to_be_bytes());
        packet
    }

    fn ipv6(class: u8) -> Vec<u8> {
        let mut packet = vec![0x60 | class >> 4, class << 4 | 0x0a, 0xbc, 0xde];
        packet.resize(40, 0xfd);
        packet
    }

    const ALL: [Ecn; 4] = [Ecn::NotEct, Ecn::Ect1, Ecn::Ect0, Ecn::Ce];

    /// Figure 4 of RFC 6040: rows by inner, columns by outer, in the order of [`ALL`].
    const TABLE: [[Option<Ecn>; 4]; 4] = [
        [Some(Ecn::NotEct), Some(Ecn::NotEct), Some(Ecn::NotEct), None],
        [Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ect1), Some(Ecn::Ce)],
        [Some(Ecn::Ect0), Some(Ecn::Ect1), Some(Ecn::Ect0), Some(Ecn::Ce)],
        [Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce), Some(Ecn::Ce)],
    ];

    #[test]
    fn the_outer_mark_comes_into_the_inner_header_by_the_rfcs_table() {
        for (inner, row) in ALL.into_iter().zip(TABLE) {
            for (outer, expected) in ALL.into_iter().zip(row) {
                for dscp in [0, 46 << 2, 0xfc] {
                    let class = dscp | inner as u8;
                    let mut packets = [ipv4(class, 0x1234), ipv6(class)];
                    for packet in &mut packets {
                        assert_eq!(class_of(packet), class);
                        let before = packet.clone();
                        let result = decapsulate(packet, outer);
                        let Some(expected) = expected else {
                            assert_eq!(result, Err(MarkedNotEct));
                            continue;
                        };
                        assert_eq!(
                            (result, class_of(packet)),
                            (Ok(()), dscp | expected as u8),
                            "{inner:?} in {outer:?}"
                        );
                        assert!(outer.concerns_inner() || *packet == before, "{outer:?} changes nothing");
                        assert_eq!(packet[2..10], before[2..10]);
                        assert_eq!(packet[12..], before[12..]);
                    }
                    assert_eq!(Sum::default().plus(&packets[0]).fold(), 0xffff, "the header checksum stays true");
                }
            }
        }
    }

    #[test]
    fn congestion_is_marked_where_it_is_understood_whatever_the_checksum_was() {
        for id in 0..=u16::MAX {
            let mut packet = ipv4(Ecn::Ect0 as u8, id);
            assert!(mark_congestion(&mut packet));
            assert_eq!(packet, ipv4(Ecn::Ce as u8, id));
        }
        for mut packet in [ipv4(0xb8, 7), ipv6(0xb8), vec![0x45, 2], vec![0x60], vec![]] {
            let before = packet.clone();
            assert!(!mark_congestion(&mut packet));
            assert_eq!(packet, before);
        }
    }

    #[test]
    fn an_outer_header_repeats_what_the_policy_says() {
        let mask = |copies_dscp, copies_ecn| class_mask(OuterMarks { copies_dscp, copies_ecn });
        assert_eq!([mask(false, false), mask(false, true), mask(true, false), mask(true, true)], [0, 3, 0xfc, 0xff]);
    }
}
