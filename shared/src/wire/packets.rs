//! Packets on libp2p streams, the carrier `stream`: what the bytes of one direction of a stream are.
//!
//! Hyprspace's streams ([`HYPRSPACE_V1`], [`HYPRSPACE_V0`]) carry whole packets, each behind its length:
//!
//! ```text
//! length (16, little-endian) | packet [| zero]
//! ```
//! We send frames of even size only, so that no length ever lies astride two yamux frames, which would crash a
//! Hyprspace node: a packet of odd length is followed by one zero byte, which counts. Receivers therefore trim a packet to
//! what its IP header says. Length 0 means nothing.
//!
//! Between Ringlane nodes ([`RINGLANE_PACKETS`]) a frame may also be a super-segment, and checksums may be unfinished:
//!
//! ```text
//! kind (8) | length of the rest (24, big-endian) | rest
//!
//! kind 0   a packet
//! kind 1   a packet whose TCP or UDP checksum holds only the pseudo-header's sum
//! kind 2   segment bytes (16, big-endian, not 0) | a super-segment, its checksum as in kind 1
//! kind 3   number (32, big-endian): what follows this is on another stream, behind the mark of kind 4
//! kind 4   number (32, big-endian): what follows this comes after all that is before the mark of kind 3
//! kind 5   nothing: the connection is about to be closed, as there is another one
//! ```
//! By the marks of kinds 3 and 4 packets stay in order when their sender takes another stream.
//! A frame of any other kind is skipped: so later versions say more.

use thiserror::Error;

use crate::limits::{STREAM_FRAME_BYTES_MAX, STREAM_PACKET_BYTES_MAX};
use crate::packet::ip::PacketHeader;
use crate::plane::{BatchItem, BatchItemForm};

/// Hyprspace's protocol since 0.15.0: both ends read and write.
pub const HYPRSPACE_V1: &str = "/hyprspace/1";
/// Hyprspace's protocol before: only who opened the stream writes.
pub const HYPRSPACE_V0: &str = "/hyprspace/0.0.1";
/// Ringlane's own: both ends read and write.
pub const RINGLANE_PACKETS: &str = "/ringlane/packets/1";

const HYPRSPACE_HEADER_BYTES: usize = 2;
const RINGLANE_HEADER_BYTES: usize = 4;
const SEGMENT_BYTES_BYTES: usize = 2;

const PACKET: u8 = 0;
const PARTIAL_PACKET: u8 = 1;
const SUPER_SEGMENT: u8 = 2;
const LEAVE: u8 = 3;
const JOIN: u8 = 4;
const RETIRE: u8 = 5;

/// How packets are told apart on a stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Framing {
    /// Hyprspace's.
    Hyprspace,
    /// Ringlane's.
    Ringlane,
}

/// Why a stream cannot be read on. The peer is at fault; its other streams are not concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StreamError {
    /// A frame that no sender may send.
    #[error("frame of {bytes} bytes, at most {max} are allowed")]
    TooLong {
        /// What its length says.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

/// Why a packet cannot be sent on a stream: whoever took it for such a stream is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unsendable {
    /// Empty, or longer than a frame may be.
    #[error("a packet of {0} bytes does not fit a frame")]
    Length(usize),
    /// A super-segment or an unfinished checksum, which Hyprspace does not know.
    #[error("a packet in a form that the stream does not take")]
    Form,
}

/// What a sender says of its streams: where it changes them, each change with a number of its own, and which are to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// The packets go on elsewhere, behind the other mark of this number.
    Leave(u32),
    /// The packets go on here.
    Join(u32),
    /// The connection is to be closed once its streams have ended: packets are to take another.
    Retire,
}

impl Mark {
    /// Appends its frame, which only [`Framing::Ringlane`] has, to `out`.
    pub fn write(self, out: &mut Vec<u8>) {
        let (kind, number) = match self {
            Self::Leave(number) => (LEAVE, Some(number)),
            Self::Join(number) => (JOIN, Some(number)),
            Self::Retire => (RETIRE, None),
        };
        out.extend([kind, 0, 0, if number.is_some() { 4 } else { 0 }]);
        out.extend(number.into_iter().flat_map(u32::to_be_bytes));
    }
}

/// What a frame holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frame<'a> {
    /// A packet.
    Packet(BatchItem<'a>),
    /// Something about the streams.
    Mark(Mark),
    /// Something that is no packet.
    Malformed,
}

impl Framing {
    fn header_bytes(self) -> usize {
        match self {
            Self::Hyprspace => HYPRSPACE_HEADER_BYTES,
            Self::Ringlane => RINGLANE_HEADER_BYTES,
        }
    }

    /// Bytes of the frame that begins with `start`, header included; `None` if its header is not complete.
    fn frame_bytes(self, start: &[u8]) -> Result<Option<usize>, StreamError> {
        let (bytes, max) = match (self, start) {
            (Self::Hyprspace, [low, high, ..]) => {
                (usize::from(u16::from_le_bytes([*low, *high])), STREAM_PACKET_BYTES_MAX)
            }
            (Self::Ringlane, [_, a, b, c, ..]) => {
                (u32::from_be_bytes([0, *a, *b, *c]) as usize, STREAM_FRAME_BYTES_MAX)
            }
            _ => return Ok(None),
        };
        if bytes > max { Err(StreamError::TooLong { bytes, max }) } else { Ok(Some(self.header_bytes() + bytes)) }
    }

    /// What a whole frame says; `None` if that is nothing.
    fn frame(self, whole: &[u8]) -> Option<Frame<'_>> {
        let rest = whole.get(self.header_bytes()..)?;
        match self {
            Self::Hyprspace if rest.is_empty() => None,
            Self::Hyprspace => Some(match PacketHeader::parse(rest) {
                Ok(header) => packet(BatchItemForm::Packet { is_partial: false }, header.trim(rest)),
                Err(_) => Frame::Malformed,
            }),
            Self::Ringlane => match (whole.first()?, rest) {
                (&PACKET, packet_bytes) => Some(packet(BatchItemForm::Packet { is_partial: false }, packet_bytes)),
                (&PARTIAL_PACKET, packet_bytes) => {
                    Some(packet(BatchItemForm::Packet { is_partial: true }, packet_bytes))
                }
                (&SUPER_SEGMENT, [high, low, packet_bytes @ ..]) => {
                    let segment_bytes = u16::from_be_bytes([*high, *low]);
                    let is_one = segment_bytes > 0;
                    Some(if is_one {
                        packet(BatchItemForm::SuperSegment { segment_bytes }, packet_bytes)
                    } else {
                        Frame::Malformed
                    })
                }
                (&LEAVE, &[a, b, c, d]) => Some(Frame::Mark(Mark::Leave(u32::from_be_bytes([a, b, c, d])))),
                (&JOIN, &[a, b, c, d]) => Some(Frame::Mark(Mark::Join(u32::from_be_bytes([a, b, c, d])))),
                (&RETIRE, &[]) => Some(Frame::Mark(Mark::Retire)),
                (&(SUPER_SEGMENT | LEAVE | JOIN | RETIRE), _) => Some(Frame::Malformed),
                _ => None,
            },
        }
    }

    /// Appends the frame of a packet to `out`; returns its size. Nothing is appended of what cannot be sent.
    pub fn write(self, item: BatchItem<'_>, out: &mut Vec<u8>) -> Result<usize, Unsendable> {
        let BatchItem { form, packet } = item;
        let begin = out.len();
        match self {
            Self::Hyprspace => {
                if form != (BatchItemForm::Packet { is_partial: false }) {
                    return Err(Unsendable::Form);
                }
                if packet.is_empty() || packet.len() > STREAM_PACKET_BYTES_MAX {
                    return Err(Unsendable::Length(packet.len()));
                }
                let padding = packet.len() % 2;
                out.extend(((packet.len() + padding) as u16).to_le_bytes());
                out.extend_from_slice(packet);
                out.extend(&[0][..padding]);
            }
            Self::Ringlane => {
                let (kind, segment_bytes) = match form {
                    BatchItemForm::Packet { is_partial: false } => (PACKET, None),
                    BatchItemForm::Packet { is_partial: true } => (PARTIAL_PACKET, None),
                    BatchItemForm::SuperSegment { segment_bytes: 0 } => return Err(Unsendable::Form),
                    BatchItemForm::SuperSegment { segment_bytes } => (SUPER_SEGMENT, Some(segment_bytes.to_be_bytes())),
                };
                let bytes = packet.len() + segment_bytes.map_or(0, |_| SEGMENT_BYTES_BYTES);
                if packet.is_empty() || bytes > STREAM_FRAME_BYTES_MAX {
                    return Err(Unsendable::Length(packet.len()));
                }
                let [_, a, b, c] = (bytes as u32).to_be_bytes();
                out.extend([kind, a, b, c]);
                out.extend(segment_bytes.into_iter().flatten());
                out.extend_from_slice(packet);
            }
        }
        Ok(out.len() - begin)
    }
}

fn packet(form: BatchItemForm, packet: &[u8]) -> Frame<'_> {
    if packet.is_empty() { Frame::Malformed } else { Frame::Packet(BatchItem { form, packet }) }
}

/// Reads one direction of a stream, in whatever pieces it comes. It keeps at most one frame that is not complete.
#[derive(Clone, Debug)]
pub struct FrameReader {
    framing: Framing,
    incomplete: Vec<u8>,
}

impl FrameReader {
    /// One at the beginning of a stream.
    pub fn new(framing: Framing) -> Self {
        Self { framing, incomplete: Vec::new() }
    }

    /// Reads the next piece and gives `each` what the frames that are complete with it hold, in order. After an error the
    /// stream is not to be read on; what precedes the error has been given.
    pub fn read(&mut self, mut piece: &[u8], mut each: impl FnMut(Frame<'_>)) -> Result<(), StreamError> {
        while !piece.is_empty() {
            if self.incomplete.is_empty()
                && let Some(bytes) = self.framing.frame_bytes(piece)?
                && let Some((whole, rest)) = piece.split_at_checked(bytes)
            {
                self.framing.frame(whole).into_iter().for_each(&mut each);
                piece = rest;
                continue;
            }
            let wanted = self.framing.frame_bytes(&self.incomplete)?.unwrap_or(self.framing.header_bytes());
            let missing = wanted.saturating_sub(self.incomplete.len()).min(piece.len());
            self.incomplete.extend_from_slice(&piece[..missing]);
            piece = &piece[missing..];
            if self.framing.frame_bytes(&self.incomplete)? == Some(self.incomplete.len()) {
                self.framing.frame(&self.incomplete).into_iter().for_each(&mut each);
                self.incomplete.clear();
            }
        }
        Ok(())
    }

    /// Whether the stream may end here without a frame being cut short.
    pub fn is_between_frames(&self) -> bool {
        self.incomplete.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(bytes: usize) -> Vec<u8> {
        let mut packet = vec![0x45; bytes];
        packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
        packet
    }

    fn whole(packet: &[u8]) -> BatchItem<'_> {
        BatchItem { form: BatchItemForm::Packet { is_partial: false }, packet }
    }

    /// What the frames hold; `None` stands for what is no packet.
    type Said = Vec<Option<(BatchItemForm, Vec<u8>)>>;

    fn read(framing: Framing, bytes: &[u8]) -> (Said, Result<(), StreamError>) {
        let mut found = Vec::new();
        let mut reader = FrameReader::new(framing);
        let ended = reader.read(bytes, |frame| {
            found.push(match frame {
                Frame::Packet(item) => Some((item.form, item.packet.to_vec())),
                Frame::Mark(_) | Frame::Malformed => None,
            });
        });
        (found, ended)
    }

    #[test]
    fn a_frame_for_hyprspace_is_even_and_reads_as_the_packet_it_was() {
        let mut bytes = Vec::new();
        let packets: Vec<_> = [20, 21, 84, 1419, 1420].map(ipv4).into();
        for packet in &packets {
            let before = bytes.len();
            let size = Framing::Hyprspace.write(whole(packet), &mut bytes).unwrap();
            assert_eq!((size, size % 2), (bytes.len() - before, 0));
        }
        assert_eq!(bytes[..4], [20, 0, 0x45, 0x45]);
        let (found, ended) = read(Framing::Hyprspace, &bytes);
        assert_eq!(ended, Ok(()));
        let expected = packets.into_iter().map(|packet| Some((BatchItemForm::Packet { is_partial: false }, packet)));
        assert!(found.into_iter().eq(expected));
    }

    #[test]
    fn nothing_that_would_crash_a_hyprspace_node_is_ever_written() {
        let mut bytes = Vec::new();
        let long = ipv4(1421);
        assert_eq!(Framing::Hyprspace.write(whole(&long), &mut bytes), Err(Unsendable::Length(1421)));
        assert_eq!(Framing::Hyprspace.write(whole(&[]), &mut bytes), Err(Unsendable::Length(0)));
        for form in [BatchItemForm::Packet { is_partial: true }, BatchItemForm::SuperSegment { segment_bytes: 1000 }] {
            let item = BatchItem { form, packet: &long[..100] };
            assert_eq!(Framing::Hyprspace.write(item, &mut bytes), Err(Unsendable::Form));
        }
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_frame_of_hyprspace_is_trimmed_ignored_when_empty_and_ends_the_stream_when_too_long() {
        let mut bytes = vec![0, 0, 24, 0];
        bytes.extend(ipv4(21));
        bytes.extend([7; 3]);
        bytes.extend([2, 0, 0x45, 0]);
        bytes.extend(1421_u16.to_le_bytes());
        bytes.extend(ipv4(1421));
        let (found, ended) = read(Framing::Hyprspace, &bytes);
        assert_eq!(found, [Some((BatchItemForm::Packet { is_partial: false }, ipv4(21))), None]);
        assert_eq!(ended, Err(StreamError::TooLong { bytes: 1421, max: 1420 }));
    }

    #[test]
    fn a_super_segment_keeps_its_form_and_unknown_kinds_are_skipped() {
        let mut bytes = vec![9, 0, 0, 2, 1, 2];
        let packet = vec![0x60; 65_535];
        let form = BatchItemForm::SuperSegment { segment_bytes: 1380 };
        let size = Framing::Ringlane.write(BatchItem { form, packet: &packet }, &mut bytes).unwrap();
        assert_eq!((size, &bytes[6..12]), (65_541, &[2, 0x01, 0x00, 0x01, 0x05, 0x64][..]));
        Framing::Ringlane
            .write(BatchItem { form: BatchItemForm::Packet { is_partial: true }, packet: &[1] }, &mut bytes)
            .unwrap();
        // No segment size, a segment size of nothing, no packet.
        bytes.extend([2, 0, 0, 1, 5, 2, 0, 0, 3, 0, 0, 1, 0, 0, 0, 0]);
        let (found, ended) = read(Framing::Ringlane, &bytes);
        let partial = Some((BatchItemForm::Packet { is_partial: true }, vec![1]));
        assert_eq!(found, [Some((form, packet)), partial, None, None, None]);
        assert_eq!(ended, Ok(()));
        let error = StreamError::TooLong { bytes: STREAM_FRAME_BYTES_MAX + 1, max: STREAM_FRAME_BYTES_MAX };
        let [_, length @ ..] = (STREAM_FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
        assert_eq!(read(Framing::Ringlane, &[&[0][..], &length].concat()).1, Err(error));
    }

    /// The known answers of `docs/protocol.md`, section 13.
    #[test]
    fn the_bytes_are_those_of_the_specification() {
        let mut bytes = Vec::new();
        let mut packet = vec![1; 21];
        packet[..4].copy_from_slice(&[0x45, 0, 0, 21]);
        Framing::Hyprspace.write(whole(&packet), &mut bytes).unwrap();
        assert_eq!(bytes, [&[22, 0][..], &packet, &[0]].concat());
        bytes.clear();
        let form = BatchItemForm::SuperSegment { segment_bytes: 3 };
        Framing::Ringlane.write(BatchItem { form, packet: &[0x45, 0, 0, 4] }, &mut bytes).unwrap();
        assert_eq!(bytes, [2, 0, 0, 6, 0, 3, 0x45, 0, 0, 4]);
        bytes.clear();
        Mark::Leave(258).write(&mut bytes);
        Mark::Join(258).write(&mut bytes);
        Mark::Retire.write(&mut bytes);
        assert_eq!(bytes, [3, 0, 0, 4, 0, 0, 1, 2, 4, 0, 0, 4, 0, 0, 1, 2, 5, 0, 0, 0]);
        // None is one of any other length.
        bytes.extend([3, 0, 0, 3, 0, 0, 0, 4, 0, 0, 5, 0, 0, 0, 0, 0, 5, 0, 0, 1, 0]);
        let mut found = Vec::new();
        FrameReader::new(Framing::Ringlane)
            .read(&bytes, |frame| {
                found.push(match frame {
                    Frame::Mark(mark) => Some(mark),
                    _ => None,
                });
            })
            .unwrap();
        assert_eq!(found, [Some(Mark::Leave(258)), Some(Mark::Join(258)), Some(Mark::Retire), None, None, None]);
    }
}
