//! Messages of libp2p's circuit relay.

use ringlane_shared::wire::circuit::{CircuitError, HopRequest, message_length, parse_request, parse_stop_answer};
use ringlane_shared::wire::circuit::{hop_status, stop_connect};

/// A message as clients write them on `hop`, without the length; then the same bytes as an answer on `stop`, and as a
/// length. Accepted is what is a request.
pub fn circuit(message: &[u8]) -> bool {
    if let Ok(Some(length)) = message_length(message) {
        assert!(length <= 4096);
    }
    let _ = parse_stop_answer(message);
    match parse_request(message) {
        Ok(HopRequest::Connect(peer)) => {
            let written = stop_connect(&peer);
            let mut asked = written[1..].to_vec();
            asked[1] = 1;
            assert_eq!(parse_request(&asked), Ok(HopRequest::Connect(peer)), "a peer's id survives");
            true
        }
        Ok(HopRequest::Reserve) => true,
        Err(error) => {
            let answer = hop_status(error.status());
            assert_eq!(parse_request(&answer[1..]), Err(CircuitError::Unexpected), "an answer is no request");
            false
        }
    }
}
