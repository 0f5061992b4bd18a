//! Echo frames: a question that the peer's worker answers at once. They find out what a path carries and whether
//! anybody is there; nothing else that travels in records is answered.
//!
//! ```text
//! 0          1                         9
//! +----------+-------------------------+
//! | kind (8) | token (64)              |     the payload of a frame of kind 4
//! +----------+-------------------------+
//! kind   0 request, 1 reply
//! token  random, chosen by who asks; the reply repeats it
//! ```
//! A request may be followed by a pad frame, so that its record has the size that is in question. A reply is not longer
//! than the shortest request. The record proves who asks; the token, that the answer is not an old one.

use thiserror::Error;

use super::frame::{FRAME_HEADER_BYTES_MAX, FrameKind, LENGTH_FLAG};
use crate::limits::{FRAME_HEADER_BYTES_MIN, RECORD_OVERHEAD_BYTES};

/// Bytes of an echo frame's payload.
pub const ECHO_BYTES: usize = 9;
/// Bytes of a record that carries one echo frame and nothing else.
pub const ECHO_RECORD_BYTES: usize = FRAME_HEADER_BYTES_MIN + ECHO_BYTES + RECORD_OVERHEAD_BYTES;

/// The payload of an echo frame makes no sense: the peer is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("echo frame of {0} bytes or of unknown kind")]
pub struct EchoError(pub usize);

/// Question or answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Echo {
    /// Answer this.
    Request(u64),
    /// The answer to the request with this token.
    Reply(u64),
}

impl Echo {
    /// Reads the payload of an echo frame.
    pub fn parse(payload: &[u8]) -> Result<Self, EchoError> {
        let error = EchoError(payload.len());
        let [kind, token @ ..] =
            payload.first_chunk::<ECHO_BYTES>().filter(|_| payload.len() == ECHO_BYTES).ok_or(error)?;
        let token = u64::from_be_bytes(*token);
        match kind {
            0 => Ok(Self::Request(token)),
            1 => Ok(Self::Reply(token)),
            _ => Err(error),
        }
    }

    /// The payload's wire bytes.
    pub fn to_bytes(self) -> [u8; ECHO_BYTES] {
        let (kind, token) = match self {
            Self::Request(token) => (0, token),
            Self::Reply(token) => (1, token),
        };
        let mut bytes = [kind; ECHO_BYTES];
        bytes[1..].copy_from_slice(&token.to_be_bytes());
        bytes
    }

    /// Whether the frames of a record begin with a request: looks at no more than two bytes.
    pub fn is_request(frames: &[u8]) -> bool {
        const SHORT: u8 = (FrameKind::Echo as u8) << 5;
        const WITH_LENGTH: u8 = SHORT | LENGTH_FLAG;
        match frames {
            [SHORT, kind, ..] | [WITH_LENGTH, _, _, kind, ..] => *kind == 0,
            _ => false,
        }
    }

    /// Writes the frames of a record that carries this echo and nothing else, padded to the whole of `frames` if that has
    /// room for a pad frame. Returns how many bytes they take; 0 if not even the echo fits.
    pub fn write_frames(self, frames: &mut [u8]) -> usize {
        const FIRST: u8 = (FrameKind::Echo as u8) << 5;
        let payload = self.to_bytes();
        if let Some((echo, pad)) = frames.split_first_chunk_mut::<{ FRAME_HEADER_BYTES_MAX + ECHO_BYTES }>()
            && !pad.is_empty()
        {
            echo[0] = FIRST | LENGTH_FLAG;
            echo[1..FRAME_HEADER_BYTES_MAX].copy_from_slice(&(ECHO_BYTES as u16).to_be_bytes());
            echo[FRAME_HEADER_BYTES_MAX..].copy_from_slice(&payload);
            pad.fill((FrameKind::Pad as u8) << 5);
            return frames.len();
        }
        let Some(echo) = frames.first_chunk_mut::<{ FRAME_HEADER_BYTES_MIN + ECHO_BYTES }>() else { return 0 };
        echo[0] = FIRST;
        echo[1..].copy_from_slice(&payload);
        echo.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::Frames;

    #[test]
    fn an_echo_reads_back_as_written_and_nothing_else_is_one() {
        for echo in [Echo::Request(0x0102_0304_0506_0708), Echo::Reply(u64::MAX)] {
            assert_eq!(Echo::parse(&echo.to_bytes()), Ok(echo));
        }
        assert_eq!(Echo::Reply(1).to_bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 1]);
        for payload in [&[][..], &[0; 8], &[0; 10], &[2, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Echo::parse(payload), Err(EchoError(payload.len())), "{payload:?}");
        }
    }

    #[test]
    fn a_records_frames_are_the_echo_and_as_much_padding_as_there_is_room_for() {
        let echo = Echo::Request(7);
        for room in [10, 11, 12, 13, 14, 1172, 8944] {
            let mut frames = vec![0xee; room];
            let bytes = echo.write_frames(&mut frames);
            assert_eq!(bytes, if room < 13 { 10 } else { room });
            let read: Vec<_> = Frames::new(&frames[..bytes]).map(|frame| frame.unwrap()).collect();
            assert_eq!(read[0].kind, FrameKind::Echo);
            assert_eq!(Echo::parse(&frames[read[0].payload.clone()]), Ok(echo));
            assert!(Echo::is_request(&frames));
            Echo::Reply(7).write_frames(&mut frames);
            assert!(!Echo::is_request(&frames));
            assert!(read[1..].iter().all(|frame| frame.kind == FrameKind::Pad) && read.len() <= 2, "{read:?}");
        }
        assert_eq!(echo.write_frames(&mut [0; 9]), 0);
        assert!(!Echo::is_request(&[]) && !Echo::is_request(&[0b1000_0000]) && !Echo::is_request(&[0b0010_0000, 0]));
    }
}
