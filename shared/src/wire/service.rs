//! The stream on which one TCP connection reaches a peer's service, as Hyprspace defines it.
//!
//! The client writes the two bytes of the service's identifier ([`service_id`](crate::identity::service_id)) at once and
//! reads one byte, a [`ServiceReply`]. After [`ServiceReply::Open`] the stream carries the connection's bytes both ways.

use thiserror::Error;

/// The protocol's name.
pub const SERVICE_PROTOCOL: &str = "/hyprspace/service/0.0.1";

/// Bytes of a request: the service's identifier.
pub const REQUEST_BYTES: usize = 2;

/// What a node answers to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceReply {
    /// The connection's bytes follow.
    Open,
    /// There is no such service, or what is behind it cannot be reached.
    Unknown,
    /// The service is not for the one who asks.
    NotAllowed,
}

impl ServiceReply {
    /// The byte on the wire.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Open => 0xf1,
            Self::Unknown => 0xf2,
            Self::NotAllowed => 0xf3,
        }
    }

    /// Reads the byte on the wire.
    pub fn parse(byte: u8) -> Result<Self, UnknownReply> {
        [Self::Open, Self::Unknown, Self::NotAllowed]
            .into_iter()
            .find(|reply| reply.to_byte() == byte)
            .ok_or(UnknownReply(byte))
    }
}

/// The peer answered with a byte that means nothing: it is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the peer answered {0:#04x}, which means nothing")]
pub struct UnknownReply(pub u8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_those_of_hyprspace_and_nothing_else_is_one() {
        let replies = [(0xf1, ServiceReply::Open), (0xf2, ServiceReply::Unknown), (0xf3, ServiceReply::NotAllowed)];
        for byte in 0..=u8::MAX {
            let known = replies.iter().find(|(known, _)| *known == byte).map(|(_, reply)| *reply);
            assert_eq!(ServiceReply::parse(byte), known.ok_or(UnknownReply(byte)));
            assert!(known.is_none_or(|reply| reply.to_byte() == byte));
        }
    }
}
