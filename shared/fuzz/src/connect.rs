//! What an HTTP proxy answers to CONNECT.

use ringlane_shared::limits::PROXY_ANSWER_BYTES_MAX;
use ringlane_shared::wire::connect::{AnswerReader, ConnectError, Reading};

/// An answer, as a whole and in pieces of each length, and as a slow twin reads it; whether the connection stands.
pub fn connect(answer: &[u8]) -> bool {
    let whole = AnswerReader::default().read(answer);
    assert_eq!(whole, slow_twin(answer));
    for length in [1, 2, 3, 64] {
        let mut reader = AnswerReader::default();
        let mut read = 0;
        let mut outcome = Ok(Reading::Going);
        for piece in answer.chunks(length) {
            outcome = reader.read(piece);
            if let Ok(Reading::Ended(end)) = outcome {
                outcome = Ok(Reading::Ended(read + end));
            }
            if outcome != Ok(Reading::Going) {
                break;
            }
            read += piece.len();
        }
        assert_eq!(outcome, whole, "in pieces of {length}");
    }
    matches!(whole, Ok(Reading::Ended(_)))
}

/// Looks for the end first, and at what stands before it afterwards.
fn slow_twin(answer: &[u8]) -> Result<Reading, ConnectError> {
    let pattern = b"HTTP/1.d ddd";
    for (byte, expected) in answer.iter().zip(pattern) {
        let fits = if *expected == b'd' { byte.is_ascii_digit() } else { byte == expected };
        if !fits {
            return Err(ConnectError::NotHttp);
        }
    }
    let is_end = |at: &usize| {
        let before = &answer[..*at];
        answer[*at] == b'\n' && [&b"\n"[..], b"\n\r"].iter().any(|end| before.ends_with(end))
    };
    match (pattern.len()..answer.len().min(PROXY_ANSWER_BYTES_MAX)).find(is_end) {
        Some(end) => match std::str::from_utf8(&answer[9..12]).ok().and_then(|status| status.parse().ok()) {
            Some(200..=299) => Ok(Reading::Ended(end + 1)),
            Some(407) => Err(ConnectError::Credentials),
            Some(status @ (401 | 403 | 405)) => Err(ConnectError::Forbidden(status)),
            Some(status @ 502..=504) => Err(ConnectError::Unreachable(status)),
            Some(status) => Err(ConnectError::Status(status)),
            None => Err(ConnectError::NotHttp),
        },
        None if answer.len() > PROXY_ANSWER_BYTES_MAX => Err(ConnectError::TooLong),
        None => Ok(Reading::Going),
    }
}
