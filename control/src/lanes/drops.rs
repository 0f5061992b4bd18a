//! Why control dropped a datagram that arrived at a listener: one counter per reason, and never an answer or a log line.

/// Why a datagram was dropped. Names are stable: status and metrics print them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum ListenerDrop {
    /// Its first byte says that it is nothing of ours.
    Unrecognised,
    /// A QUIC long header whose destination is no token we expect: a scanner, or a dial we have given up.
    UnknownToken,
    /// A QUIC short header from an address where no handshake is under way.
    UnknownConnection,
    /// It carries an expected token but does not open a connection.
    BadInitial,
    /// It carries the token of a handshake that is under way from another address.
    OtherPath,
    /// Its lane must wait: as many handshakes as allowed are under way. The peer will repeat it.
    Busy,
    /// A probe of a link or lane we know nothing of, or on a path that cannot be the lane's.
    UnknownProbe,
    /// A probe that is malformed or does not authenticate.
    BadProbe,
    /// A record that names no lane of ours, from an address where no handshake is under way.
    UnknownRecord,
    /// A record of a lane in the making that already has as many waiting as are kept.
    TooEarly,
    /// A bind of no relayed lane that we know, in either part, or from where it cannot be.
    BadBind,
    /// For a lane that has been handed over: it was on its way to the listener when the lane's socket took over.
    Late,
    /// A record that names a lane of ours, from an address that is not the lane's: more of them than its worker looks at. Or more
    /// binds of an end than are looked at.
    TooMany,
}

impl ListenerDrop {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 13] = [
        Self::Unrecognised,
        Self::UnknownToken,
        Self::UnknownConnection,
        Self::BadInitial,
        Self::OtherPath,
        Self::Busy,
        Self::UnknownProbe,
        Self::BadProbe,
        Self::UnknownRecord,
        Self::TooEarly,
        Self::BadBind,
        Self::Late,
        Self::TooMany,
    ];

    /// The reason's stable name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unrecognised => "unrecognised",
            Self::UnknownToken => "unknown_token",
            Self::UnknownConnection => "unknown_connection",
            Self::BadInitial => "bad_initial",
            Self::OtherPath => "other_path",
            Self::Busy => "busy",
            Self::UnknownProbe => "unknown_probe",
            Self::BadProbe => "bad_probe",
            Self::UnknownRecord => "unknown_record",
            Self::TooEarly => "too_early",
            Self::BadBind => "bad_bind",
            Self::Late => "late",
            Self::TooMany => "too_many",
        }
    }
}

/// One counter per [`ListenerDrop`]. Owner: control.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListenerDrops([u64; ListenerDrop::ALL.len()]);

impl ListenerDrops {
    pub(crate) fn count(&mut self, reason: ListenerDrop) {
        self.0[reason as usize] += 1;
    }

    /// Drops for one reason.
    pub fn get(&self, reason: ListenerDrop) -> u64 {
        self.0[reason as usize]
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (ListenerDrop, u64)> {
        ListenerDrop::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut drops = ListenerDrops::default();
        for (position, reason) in ListenerDrop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            assert_eq!(ListenerDrop::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
            drops.count(reason);
        }
        assert!(drops.iter().all(|(_, count)| count == 1));
    }
}
