//! Hosts as URLs write them.

use std::fmt;

/// Whether a text may be a name, or an IP address without brackets.
pub(crate) fn is_host(text: &str) -> bool {
    let is_of_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    !text.is_empty() && text.bytes().all(is_of_host)
}

/// Shows a host as it stands before a port: an IPv6 address in brackets.
pub(crate) struct BeforePort<'a>(pub(crate) &'a str);

impl fmt::Display for BeforePort<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(host) = self;
        if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
    }
}
