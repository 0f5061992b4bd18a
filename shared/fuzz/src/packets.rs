//! What a peer writes on a stream that carries packets, against a reader that has the whole of it before it.

use ringlane_shared::packet::ip::PacketHeader;
use ringlane_shared::plane::{BatchItem, BatchItemForm};
use ringlane_shared::wire::packets::{Frame, FrameReader, Framing, Mark};

/// What a frame says.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Says {
    Packet(BatchItemForm, Vec<u8>),
    Mark(Mark),
}

/// What a stream says, in order; `None` stands for something that makes no sense.
type Said = Vec<Option<Says>>;

/// The first byte says whose framing it is, and in how large pieces the rest comes. Accepted is a stream of whole frames,
/// each with a packet or a mark in it.
pub fn packets(input: &[u8]) -> bool {
    let Some((&how, stream)) = input.split_first() else { return false };
    let framing = if how & 1 == 0 { Framing::Hyprspace } else { Framing::Ringlane };
    let mut reader = FrameReader::new(framing);
    let mut said = Said::new();
    let read = stream.chunks(1 + usize::from(how >> 1)).try_for_each(|piece| {
        reader.read(piece, |frame| {
            said.push(match frame {
                Frame::Packet(BatchItem { form, packet }) => Some(Says::Packet(form, packet.to_vec())),
                Frame::Mark(mark) => Some(Says::Mark(mark)),
                Frame::Malformed => None,
            });
        })
    });
    let (expected, is_whole) = read_slowly(framing, stream);
    assert_eq!(said, expected);
    assert_eq!(read.is_ok() && reader.is_between_frames(), is_whole);
    if !is_whole || said.is_empty() || said.contains(&None) {
        return false;
    }
    write_again(framing, &said);
    true
}

/// Takes frame after frame off the front, and says whether nothing was left over.
fn read_slowly(framing: Framing, mut stream: &[u8]) -> (Said, bool) {
    let mut said = Said::new();
    let (header, most) = if framing == Framing::Hyprspace { (2, 1420) } else { (4, 65_577) };
    while stream.len() >= header {
        let length = match framing {
            Framing::Hyprspace => usize::from(stream[0]) + 256 * usize::from(stream[1]),
            Framing::Ringlane => {
                65_536 * usize::from(stream[1]) + 256 * usize::from(stream[2]) + usize::from(stream[3])
            }
        };
        if length > most || stream.len() < header + length {
            return (said, false);
        }
        let kind = (framing == Framing::Ringlane).then(|| stream[0]);
        let rest = &stream[header..header + length];
        let plain = BatchItemForm::Packet { is_partial: false };
        match kind {
            None if length == 0 => {}
            None => {
                let header = PacketHeader::parse(rest).ok();
                said.push(header.map(|is| Says::Packet(plain, rest[..is.total_bytes].to_vec())));
            }
            Some(kind @ 0..=1) => {
                let form = BatchItemForm::Packet { is_partial: kind == 1 };
                said.push((length > 0).then(|| Says::Packet(form, rest.to_vec())));
            }
            Some(2) => {
                let segment_bytes = if length < 2 { 0 } else { 256 * u16::from(rest[0]) + u16::from(rest[1]) };
                let form = BatchItemForm::SuperSegment { segment_bytes };
                said.push((segment_bytes > 0 && length > 2).then(|| Says::Packet(form, rest[2..].to_vec())));
            }
            Some(kind @ 3..=4) => {
                let mark = if kind == 3 { Mark::Leave } else { Mark::Join };
                let number = <[u8; 4]>::try_from(rest).ok().map(u32::from_be_bytes);
                said.push(number.map(|number| Says::Mark(mark(number))));
            }
            Some(5) => said.push((length == 0).then_some(Says::Mark(Mark::Retire))),
            Some(_) => {}
        }
        stream = &stream[header + length..];
    }
    (said, stream.is_empty())
}

/// What was said can be said by us, in frames of which Hyprspace's are even.
fn write_again(framing: Framing, said: &Said) {
    let mut bytes = Vec::new();
    for says in said.iter().flatten() {
        match says {
            Says::Packet(form, packet) => {
                let size = framing.write(BatchItem { form: *form, packet }, &mut bytes);
                let size = size.expect("what was read can be written");
                assert!(framing == Framing::Ringlane || size.is_multiple_of(2));
            }
            Says::Mark(mark) => mark.write(&mut bytes),
        }
    }
    assert_eq!(read_slowly(framing, &bytes), (said.clone(), true));
}
