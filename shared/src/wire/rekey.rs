//! The messages on a lane's QUIC stream by which its ends agree on new keys.
//!
//! ```text
//! 0          1             3
//! +----------+-------------+------+
//! | type (8) | length (16) | body |
//! +----------+-------------+------+
//! ```
//! All integers are big-endian. [`crate::lane::rekey`] says who sends what when.

use thiserror::Error;

use crate::lane::epoch::NOISE_MESSAGE_BYTES;

const HEADER_BYTES: usize = 3;
const EPOCH_BYTES: usize = 8;
/// Bytes of the longest message.
const MESSAGE_BYTES_MAX: usize = HEADER_BYTES + EPOCH_BYTES + NOISE_MESSAGE_BYTES;

const HELLO: u8 = 0;
const ASK: u8 = 1;
const INIT: u8 = 2;
const REPLY: u8 = 3;
const DONE: u8 = 4;

/// One message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RekeyMessage {
    /// Client to server, first of all: there is a stream now.
    Hello,
    /// Server to client: please begin this epoch.
    Ask {
        /// Its number.
        epoch: u64,
    },
    /// Client to server: the first message of this epoch's handshake.
    Init {
        /// Its number.
        epoch: u64,
        /// Noise's.
        noise: [u8; NOISE_MESSAGE_BYTES],
    },
    /// Server to client: the second one; from here on the server opens records of the epoch.
    Reply {
        /// Its number.
        epoch: u64,
        /// Noise's.
        noise: [u8; NOISE_MESSAGE_BYTES],
    },
    /// From either: I seal with this epoch now.
    Done {
        /// Its number.
        epoch: u64,
    },
}

/// What the peer wrote is no message. It is authenticated, so it is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MessageError {
    /// A type this version does not know.
    #[error("message of unknown type {0}")]
    Type(u8),
    /// A length that no message of its type has.
    #[error("message of type {kind} with a body of {bytes} bytes")]
    Length {
        /// Its type.
        kind: u8,
        /// The length it claims.
        bytes: usize,
    },
}

impl RekeyMessage {
    /// Reads the message at the start of `bytes`, and how many bytes it has. `None` as long as it is not complete;
    /// never for more bytes than a message may have.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, MessageError> {
        let Some((&[kind, high, low], rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let expected = match kind {
            HELLO => 0,
            ASK | DONE => EPOCH_BYTES,
            INIT | REPLY => EPOCH_BYTES + NOISE_MESSAGE_BYTES,
            _ => return Err(MessageError::Type(kind)),
        };
        if length != expected {
            return Err(MessageError::Length { kind, bytes: length });
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let (number, noise) = body.split_at(length.min(EPOCH_BYTES));
        let epoch = number.try_into().map_or(0, u64::from_be_bytes);
        let noise = noise.try_into().unwrap_or([0; NOISE_MESSAGE_BYTES]);
        let message = match kind {
            HELLO => Self::Hello,
            ASK => Self::Ask { epoch },
            INIT => Self::Init { epoch, noise },
            REPLY => Self::Reply { epoch, noise },
            _ => Self::Done { epoch },
        };
        Ok(Some((message, HEADER_BYTES + length)))
    }

    /// Appends the message's bytes.
    pub fn write(&self, to: &mut Vec<u8>) {
        let (kind, epoch, noise): (u8, Option<u64>, &[u8]) = match self {
            Self::Hello => (HELLO, None, &[]),
            Self::Ask { epoch } => (ASK, Some(*epoch), &[]),
            Self::Init { epoch, noise } => (INIT, Some(*epoch), noise),
            Self::Reply { epoch, noise } => (REPLY, Some(*epoch), noise),
            Self::Done { epoch } => (DONE, Some(*epoch), &[]),
        };
        let length = if epoch.is_some() { EPOCH_BYTES + noise.len() } else { 0 };
        to.push(kind);
        to.extend((length as u16).to_be_bytes());
        to.extend(epoch.into_iter().flat_map(u64::to_be_bytes));
        to.extend(noise);
    }
}

/// The bytes of the stream, cut into messages. Bounded: a message that may not be that long is refused by its header.
#[derive(Debug, Default)]
pub struct MessageReader {
    bytes: Vec<u8>,
}

impl MessageReader {
    /// Takes bytes and gives every message that they complete to `handle`, whose first error ends it.
    pub fn read<E: From<MessageError>>(
        &mut self,
        mut bytes: &[u8],
        mut handle: impl FnMut(RekeyMessage) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at(bytes.len().min(MESSAGE_BYTES_MAX - self.bytes.len()));
            self.bytes.extend_from_slice(taken);
            bytes = rest;
            while let Some((message, length)) = RekeyMessage::parse(&self.bytes)? {
                self.bytes.drain(..length);
                handle(message)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGES: [RekeyMessage; 5] = [
        RekeyMessage::Hello,
        RekeyMessage::Ask { epoch: 1 },
        RekeyMessage::Init { epoch: u64::MAX, noise: [3; NOISE_MESSAGE_BYTES] },
        RekeyMessage::Reply { epoch: 0x0102_0304_0506_0708, noise: [4; NOISE_MESSAGE_BYTES] },
        RekeyMessage::Done { epoch: 0 },
    ];

    #[test]
    fn messages_read_back_as_written_however_the_stream_was_cut() {
        let mut stream = Vec::new();
        MESSAGES.iter().cycle().take(50).for_each(|message| message.write(&mut stream));
        assert_eq!(stream[..14], [0, 0, 0, 1, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]);
        for piece_bytes in [1, 2, 3, 58, 59, 60, 1000, stream.len()] {
            let (mut reader, mut read) = (MessageReader::default(), Vec::new());
            for piece in stream.chunks(piece_bytes) {
                let read: Result<(), MessageError> = reader.read(piece, |message| {
                    read.push(message);
                    Ok(())
                });
                assert_eq!(read, Ok(()));
            }
            assert!(read.iter().eq(MESSAGES.iter().cycle().take(50)), "pieces of {piece_bytes}");
            assert!(reader.bytes.is_empty());
        }
    }

    #[test]
    fn a_message_of_another_length_or_type_is_refused_by_its_header() {
        for message in MESSAGES {
            let mut bytes = Vec::new();
            message.write(&mut bytes);
            assert_eq!(RekeyMessage::parse(&bytes[..bytes.len() - 1]), Ok(None));
            let length = bytes.len() - HEADER_BYTES;
            for wrong in [length + 1, length.wrapping_sub(1) & 0xffff, 0xffff, 257] {
                let header = [bytes[0], (wrong >> 8) as u8, wrong as u8];
                let refused = Err(MessageError::Length { kind: bytes[0], bytes: wrong });
                assert_eq!(RekeyMessage::parse(&header), refused);
            }
        }
        assert_eq!(RekeyMessage::parse(&[5, 0, 0]), Err(MessageError::Type(5)));
    }
}
