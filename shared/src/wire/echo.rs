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

/// Bytes of an echo frame's payload.
pub const ECHO_BYTES: usize = 9;

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
