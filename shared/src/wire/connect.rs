//! What is said to an HTTP proxy, and what it answers: the CONNECT of RFC 9110 section 9.3.6, in HTTP/1.1 (RFC 9112).
//!
//! The answer is read as it arrives, and not a byte beyond the empty line that ends it: from there on the connection is
//! the peer's. Whatever answers may be no proxy at all, so the first byte that no HTTP answer has ends it.

use multibase::Base;
use thiserror::Error;

use crate::host::{BeforePort, is_host};
use crate::limits::PROXY_ANSWER_BYTES_MAX;

const VERSION: &[u8] = b"HTTP/1.";
/// `HTTP/1.1 200`.
const STATUS_END: usize = VERSION.len() + 5;

/// Why there is no connection through the proxy. All but the first are the proxy's doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ConnectError {
    /// The host has characters that no name has, so it cannot be asked for.
    #[error("the host is no name")]
    Host,
    /// What answers is no HTTP server.
    #[error("what answers there does not speak HTTP")]
    NotHttp,
    /// 407.
    #[error("it wants a user name and a password, or others (407): see control.proxy")]
    Credentials,
    /// 401, 403 or 405: to this host or port, or to CONNECT at all.
    #[error("it does not allow this connection ({0})")]
    Forbidden(u16),
    /// 502, 503 or 504.
    #[error("it cannot reach the address ({0})")]
    Unreachable(u16),
    /// Another status; most probably it is a server and no proxy.
    #[error("it answers {0}, as a web server that is no proxy does")]
    Status(u16),
    /// The answer does not end.
    #[error("its answer is longer than {PROXY_ANSWER_BYTES_MAX} bytes")]
    TooLong,
}

/// Asks for a connection to `host`, a name or an IP address without brackets. `credentials` are `user:password`.
pub fn request(host: &str, port: u16, credentials: Option<&str>) -> Result<Vec<u8>, ConnectError> {
    if !is_host(host) {
        return Err(ConnectError::Host);
    }
    let to = format!("{}:{port}", BeforePort(host));
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some(credentials) = credentials {
        request += &format!("Proxy-Authorization: Basic {}\r\n", Base::Base64Pad.encode(credentials));
    }
    request += "\r\n";
    Ok(request.into_bytes())
}

/// Reads a proxy's answer.
#[derive(Clone, Debug, Default)]
pub struct AnswerReader {
    /// The first bytes, as far as they tell anything.
    start: Vec<u8>,
    read: usize,
    /// Bytes of the present line, without its end.
    line: usize,
    ended_in_cr: bool,
}

impl AnswerReader {
    /// Reads on, with what has arrived since. Returns how many of these bytes are the answer's; fewer than all only with
    /// its end.
    pub fn read(&mut self, arrived: &[u8]) -> Result<Reading, ConnectError> {
        for (position, &byte) in arrived.iter().enumerate() {
            self.take(byte)?;
            if byte == b'\n' && self.line == 0 && self.start.len() == STATUS_END {
                return self.outcome().map(|()| Reading::Ended(position + 1));
            }
            if byte == b'\n' {
                self.line = 0;
            }
        }
        Ok(Reading::Going)
    }

    fn take(&mut self, byte: u8) -> Result<(), ConnectError> {
        if self.start.len() < STATUS_END {
            let fits = match self.start.len() {
                at if at < VERSION.len() => byte == VERSION[at],
                at if at == VERSION.len() + 1 => byte == b' ',
                _ => byte.is_ascii_digit(),
            };
            if !fits {
                return Err(ConnectError::NotHttp);
            }
            self.start.push(byte);
        }
        self.read += 1;
        if self.read > PROXY_ANSWER_BYTES_MAX {
            return Err(ConnectError::TooLong);
        }
        // A line ends in CR LF, and by RFC 9112 section 2.2 a reader may take LF alone. A CR elsewhere is like any byte.
        match byte {
            b'\r' if !self.ended_in_cr => self.ended_in_cr = true,
            b'\n' => self.ended_in_cr = false,
            _ => {
                self.line += 1 + usize::from(std::mem::take(&mut self.ended_in_cr));
            }
        }
        Ok(())
    }

    fn outcome(&self) -> Result<(), ConnectError> {
        let digits = &self.start[VERSION.len() + 2..];
        let status = digits.iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'));
        match status {
            200..=299 => Ok(()),
            407 => Err(ConnectError::Credentials),
            401 | 403 | 405 => Err(ConnectError::Forbidden(status)),
            502..=504 => Err(ConnectError::Unreachable(status)),
            status => Err(ConnectError::Status(status)),
        }
    }
}

/// How far an answer has been read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// There is more of it to come.
    Going,
    /// The connection stands, and this many of the bytes given last are the answer's.
    Ended(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &[u8]) -> Result<Reading, ConnectError> {
        AnswerReader::default().read(answer)
    }

    #[test]
    fn a_request_names_host_and_port_twice_and_carries_what_the_proxy_asks_for() {
        let text = |host, credentials| String::from_utf8(request(host, 443, credentials).unwrap()).unwrap();
        assert_eq!(text("b.example", None), "CONNECT b.example:443 HTTP/1.1\r\nHost: b.example:443\r\n\r\n");
        assert!(
            text("2001:db8::1", None).starts_with("CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n")
        );
        // RFC 7617, section 2.
        let basic = "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n";
        assert!(text("b.example", Some("Aladdin:open sesame")).ends_with(basic));
        for bad in ["", "a b", "a\r\nX: y", "a/b", "ä.example"] {
            assert_eq!(request(bad, 443, None), Err(ConnectError::Host), "{bad}");
        }
    }

    #[test]
    fn an_answer_ends_with_its_empty_line_and_what_follows_is_the_peers() {
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: proxy\r\n\r\n\x13/multistream/1.0.0\n";
        assert_eq!(read(answer), Ok(Reading::Ended(51)));
        assert_eq!(read(b"HTTP/1.0 200 OK\n\nrest"), Ok(Reading::Ended(17)));
        assert_eq!(read(b"HTTP/1.1 200\r\n\r\n"), Ok(Reading::Ended(16)));
        assert_eq!(read(b"HTTP/1.1 200 OK\r\nA: \rb\r\n"), Ok(Reading::Going));
    }

    #[test]
    fn a_refusal_says_who_is_to_do_something_about_it() {
        let refusal = |status: &str| read(format!("HTTP/1.1 {status}\r\nX: y\r\n\r\n<html>").as_bytes()).unwrap_err();
        assert_eq!(refusal("407 Proxy Authentication Required"), ConnectError::Credentials);
        assert_eq!(refusal("403 Forbidden"), ConnectError::Forbidden(403));
        assert_eq!(refusal("503 Service Unavailable"), ConnectError::Unreachable(503));
        assert_eq!(refusal("400 Bad Request"), ConnectError::Status(400));
        assert_eq!(refusal("101 Switching"), ConnectError::Status(101));
    }

    #[test]
    fn what_is_no_proxy_is_known_by_its_first_strange_byte_and_none_is_read_for_ever() {
        for strange in
            [&b"SSH-2.0-OpenSSH"[..], b"\x13/multi", b"HTTP/2", b"HTTP/1.1_200", b"HTTP/1.1 2x0", b"\r\n\r\n"]
        {
            assert_eq!(read(strange), Err(ConnectError::NotHttp), "{strange:?}");
        }
        let mut endless = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
        endless.resize(PROXY_ANSWER_BYTES_MAX, b'x');
        assert_eq!(read(&endless), Ok(Reading::Going));
        endless.push(b'x');
        assert_eq!(read(&endless), Err(ConnectError::TooLong));
    }

    #[test]
    fn an_answer_in_pieces_reads_like_a_whole_one() {
        let answer = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nrest";
        for cut in 0..answer.len() {
            let mut reader = AnswerReader::default();
            let (first, second) = answer.split_at(cut);
            let end = match reader.read(first).unwrap() {
                Reading::Going => match reader.read(second).unwrap() {
                    Reading::Ended(end) => cut + end,
                    Reading::Going => panic!("it has ended"),
                },
                Reading::Ended(end) => end,
            };
            assert_eq!(end, answer.len() - 4, "{cut}");
        }
    }
}
