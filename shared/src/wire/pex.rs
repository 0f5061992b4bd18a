//! Hyprspace's peer exchange, `/hyprspace/pex/0.0.1`: one request and one answer on a stream, in lines of text.
//!
//! ```text
//! asker     r\n                          and the answerer reads nothing else
//! answerer  <peer id>|<multiaddr>\n      for each address it knows of each peer, none or many; then it closes
//! ```
//! Go's asker crashes on a line without `|`, throws away everything on one it cannot read, and takes an answer that is
//! not closed for none. So what we write is always well formed, and of what we read only the bad lines are lost.

use std::collections::BTreeMap;
use std::io::Write;

use multiaddr::Multiaddr;
use thiserror::Error;

use crate::id::PeerId;
use crate::limits::{ADDRESS_TEXT_BYTES_MAX, PEX_ADDRESSES_PER_PEER_MAX, PEX_ANSWER_BYTES_MAX, PEX_LINES_MAX};

/// The only request there is.
pub const REQUEST: &[u8] = b"r\n";

/// Characters of a peer id: the longest usual one, of an Ed25519 key, has 52.
const PEER_ID_TEXT_BYTES_MAX: usize = 64;

/// Why a line was not used: the peer is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LineError {
    /// It has no `|`, or is too long, or is no text.
    #[error("it is not <peer id>|<address>")]
    Malformed,
    /// What precedes the `|` is no peer id.
    #[error("it has no valid peer id")]
    PeerId,
    /// What follows the `|` is no multiaddress.
    #[error("it has no valid address")]
    Address,
}

/// Reads one line, without its end.
pub fn parse_line(line: &[u8]) -> Result<(PeerId, Multiaddr), LineError> {
    let line = str::from_utf8(line).map_err(|_| LineError::Malformed)?;
    let (peer, address) = line.split_once('|').ok_or(LineError::Malformed)?;
    if peer.len() > PEER_ID_TEXT_BYTES_MAX || address.len() > ADDRESS_TEXT_BYTES_MAX {
        return Err(LineError::Malformed);
    }
    let peer = peer.parse().map_err(|_| LineError::PeerId)?;
    let address: Multiaddr = address.parse().map_err(|_| LineError::Address)?;
    // The empty text is a multiaddress without parts.
    if address.is_empty() { Err(LineError::Address) } else { Ok((peer, address)) }
}

/// What an answer told.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// Addresses of the peers that were asked for, in the answer's order.
    pub addresses: Vec<(PeerId, Multiaddr)>,
    /// Lines that could not be read.
    pub bad_lines: usize,
}

/// Reads an answer: its whole lines, and of those the ones about peers that `is_wanted`. What is beyond the bounds is
/// not looked at.
pub fn parse_answer(answer: &[u8], is_wanted: impl Fn(&PeerId) -> bool) -> Told {
    let mut told = Told::default();
    let mut counts: BTreeMap<PeerId, usize> = BTreeMap::new();
    let answer = &answer[..answer.len().min(PEX_ANSWER_BYTES_MAX)];
    // What follows the last line end was cut off.
    let whole = answer.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    if whole == 0 {
        told.bad_lines = usize::from(answer.first() == Some(&b'\n'));
        return told;
    }
    for line in answer[..whole].split(|byte| *byte == b'\n').take(PEX_LINES_MAX) {
        let Ok((peer, address)) = parse_line(line) else {
            told.bad_lines += 1;
            continue;
        };
        if !is_wanted(&peer) {
            continue;
        }
        let count = counts.entry(peer).or_default();
        if *count < PEX_ADDRESSES_PER_PEER_MAX {
            *count += 1;
            told.addresses.push((peer, address));
        }
    }
    told
}

/// Writes an answer. Bounded as a reader's is, so what does not fit is left out, whole lines at a time.
pub fn write_answer<'a>(addresses: impl IntoIterator<Item = (PeerId, &'a Multiaddr)>) -> Vec<u8> {
    let mut answer = Vec::new();
    for (peer, address) in addresses.into_iter().take(PEX_LINES_MAX) {
        let before = answer.len();
        let written = writeln!(answer, "{peer}|{address}");
        if written.is_err() || answer.len() > PEX_ANSWER_BYTES_MAX {
            answer.truncate(before);
            break;
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN";

    #[test]
    fn hyprspaces_sample_reads_and_writes_as_it_stands() {
        let sample = format!("{PEER}|/ip4/10.55.0.1/udp/8001/quic-v1\n");
        let told = parse_answer(sample.as_bytes(), |_| true);
        assert_eq!((told.addresses.len(), told.bad_lines), (1, 0));
        let (peer, address) = &told.addresses[0];
        assert_eq!(peer.to_string(), PEER);
        assert_eq!(write_answer([(*peer, address)]), sample.as_bytes());
        assert_eq!(write_answer([]), b"");
    }

    #[test]
    fn bad_lines_cost_only_themselves_and_a_cut_one_is_not_read() {
        let good = format!("{PEER}|/ip4/10.0.0.1/tcp/1");
        let answer = format!("\nno bar\n{good}\nx|/ip4/10.0.0.1/tcp/1\n{PEER}|nonsense\n{PEER}|\n{good}");
        let told = parse_answer(answer.as_bytes(), |_| true);
        assert_eq!((told.addresses.len(), told.bad_lines), (1, 5));
        assert_eq!(parse_line(b"\xff|/ip4/10.0.0.1/tcp/1"), Err(LineError::Malformed));
        assert_eq!(parse_answer(b"\n", |_| true).bad_lines, 1);
        assert_eq!(parse_answer(b"", |_| true), Told::default());
    }

    #[test]
    fn neither_many_lines_nor_many_addresses_nor_long_lines_are_kept() {
        let mut answer = String::new();
        for port in 0..2 * PEX_LINES_MAX {
            answer += &format!("{PEER}|/ip4/10.0.0.1/tcp/{}\n", port % 0xffff + 1);
        }
        assert_eq!(parse_answer(answer.as_bytes(), |_| true).addresses.len(), PEX_ADDRESSES_PER_PEER_MAX);
        assert_eq!(parse_answer(answer.as_bytes(), |_| false), Told::default());
        let long = "/ip4/10.0.0.1".repeat(ADDRESS_TEXT_BYTES_MAX);
        assert_eq!(parse_line(format!("{PEER}|{long}").as_bytes()), Err(LineError::Malformed));
        assert_eq!(parse_line(format!("{}|/ip4/10.0.0.1", "1".repeat(100_000)).as_bytes()), Err(LineError::Malformed));
        let address: Multiaddr = format!("/dns4/{}/tcp/1", "x".repeat(1000)).parse().unwrap();
        let peer: PeerId = PEER.parse().unwrap();
        let written = write_answer(std::iter::repeat_n((peer, &address), PEX_LINES_MAX));
        assert!(written.len() <= PEX_ANSWER_BYTES_MAX && written.ends_with(b"/tcp/1\n"));
    }
}
