//! Finds the largest datagram that a lane's path carries (RFC 8899), notices when it shrinks, and looks for more.
//!
//! Packets travel in records, so the lane's QUIC connection, which looks after its own datagrams, sees neither that the
//! path swallows large ones nor that it takes larger ones. A probe is an echo request padded to the size in question. All
//! sizes are bytes of UDP payload.
//!
//! ```text
//!          all is tried                     hole, too big, the route's MTU is another, time to look again
//! search ----------------> settled --------------------------------------------------------------> search
//! ```
//! - **Search.** What the kernel says of the route comes first, so that an ordinary path is known after one round trip.
//!   Then the gap between what passes and what does not is closed: first by halving the list of sizes that links usually
//!   have, then to [`PRECISION`] bytes. One probe is on its way at a time; three that are not answered refuse a size.
//!   Meanwhile records have the largest size that is proven.
//! - **Holes.** While records above [`MTU_BASE`] leave, a probe of the present size leaves every [`CHECK_EVERY`]. One
//!   that is not answered raises doubt: five more follow, each with a short echo beside it. If the short ones come back and
//!   none of the six does, the path has a hole for such sizes: back to the base, and search. If nothing comes back
//!   the path is dead or congested, which says nothing of sizes. A path that loses a tenth of all datagrams each way
//!   passes for one with a hole once in hours of full use, and is put right by the search.
//! - **Raise.** A settled path is searched again after 5 s, in case chance refused a size, and then ever more rarely, down to
//!   once a minute. RFC 8899 has ten minutes for endpoints that pay for each probe with a congestion window; a route that
//!   has changed should not be felt for that long. Nothing is searched on a lane that sends nothing.
//!
//! Pure: whoever owns it sends what [`PathMtu::poll`] gives and comes back at [`PathMtu::poll_timeout`].

use std::cmp::Ordering;
use std::time::{Duration, Instant};

use crate::limits::RECORD_BYTES_MIN;

/// What every path carries: QUIC's minimum (RFC 9000, section 14), as the lane's handshake has shown, and less than any
/// IPv6 path has.
pub const MTU_BASE: u16 = RECORD_BYTES_MIN as u16;

/// The search ends when the sizes between what passes and what does not are fewer than this.
pub const PRECISION: u16 = 4;

/// How often the present size is checked while it is used.
pub const CHECK_EVERY: Duration = Duration::from_millis(200);

/// Unanswered probes that refuse a size (RFC 8899's MAX_PROBES).
const TRIES_MAX: u8 = 3;

/// Probes of the present size that follow an unanswered check, and the time from one to the next.
const SALVO: u8 = 5;
const SALVO_GAP: Duration = Duration::from_millis(10);
/// Short echoes that must be answered meanwhile for the path to be alive.
const ALIVE: u8 = 2;

/// Before a settled path is searched again, the first time and at most.
const RAISE_FIRST: Duration = Duration::from_secs(5);
const RAISE_MAX: Duration = Duration::from_secs(60);

/// MTUs that links have, headers of IP and UDP included, in ascending order: the least of IPv6, tunnels and mobile
/// networks, WireGuard, PPP over Ethernet, Ethernet, AWS and Google's clouds, FDDI, jumbo frames.
const USUAL: [u16; 16] =
    [1280, 1300, 1340, 1360, 1380, 1400, 1420, 1440, 1460, 1480, 1492, 1500, 4352, 8896, 8952, 9000];

/// A question to put on the path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MtuProbe {
    /// An echo request in a datagram of exactly so many bytes.
    Padded(u16),
    /// An echo request in as few bytes as can be.
    Short,
}

/// The path MTU of one lane. Owner: the lane's worker.
#[derive(Debug)]
pub struct PathMtu {
    /// Headers of IP and UDP on this path.
    header_bytes: u16,
    /// The largest there is any use of.
    ceiling: u16,
    /// What the kernel says.
    route: u16,
    /// The largest size shown to pass.
    proven: u16,
    /// `None` while settled.
    search: Option<Search>,
    raise_at: Instant,
    raise_after: Duration,
    watch: Watch,
    told: Option<u16>,
}

#[derive(Debug)]
struct Search {
    since: Instant,
    /// The smallest size that does not pass.
    refused: u16,
    /// The size in question, how often it was asked for, and when the next try is due.
    probe: Option<(u16, u8, Instant)>,
}

/// Looks whether the present size still passes.
#[derive(Debug)]
struct Watch {
    /// Records above the base have left since the last check.
    is_used: bool,
    checked_at: Instant,
    doubt: Option<Doubt>,
}

#[derive(Debug)]
struct Doubt {
    since: Instant,
    /// What has left: first the check, then by turns a probe of the present size and a short one.
    sent: u8,
    /// Short echoes that have been answered.
    alive: u8,
    next_at: Instant,
}

impl PathMtu {
    /// Of a path whose IP and UDP headers have `header_bytes`, where datagrams beyond `ceiling` are of no use.
    /// `route_mtu` is what the kernel says of the route, if it says anything: the MTU of its IP packets.
    pub fn new(header_bytes: u16, ceiling: u16, route_mtu: Option<u32>, now: Instant) -> Self {
        let mut path = Self {
            header_bytes,
            ceiling: ceiling.clamp(MTU_BASE, u16::MAX - 1),
            route: MTU_BASE,
            proven: MTU_BASE,
            search: None,
            raise_at: now,
            raise_after: RAISE_FIRST,
            watch: Watch { is_used: false, checked_at: now, doubt: None },
            told: None,
        };
        path.route = route_mtu.map_or(MTU_BASE, |mtu| path.payload_of(mtu));
        path.begin_search(now);
        path
    }

    /// The largest datagram that is shown to pass: at least [`MTU_BASE`].
    pub fn bytes(&self) -> u16 {
        self.proven
    }

    /// Whether it is still being found out what passes: it may be more than [`Self::bytes`].
    pub fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// Bytes of IP and UDP headers of this path.
    pub fn header_bytes(&self) -> u16 {
        self.header_bytes
    }

    /// The value the search has come to, each time it is another one.
    pub fn poll_change(&mut self) -> Option<u16> {
        (self.search.is_none() && self.told != Some(self.proven)).then(|| {
            self.told = Some(self.proven);
            self.proven
        })
    }

    /// Records have left, the largest of them in a datagram of `bytes`.
    pub fn note_sent(&mut self, bytes: usize, now: Instant) {
        self.watch.is_used |= bytes > usize::from(MTU_BASE);
        if self.search.is_none() && now >= self.raise_at {
            self.begin_search(now);
        }
    }

    /// The kernel says, perhaps anew, what the MTU of the route is. What it has said before is no news: it may be wrong.
    pub fn set_route_mtu(&mut self, mtu: u32, now: Instant) {
        let route = self.payload_of(mtu);
        let before = std::mem::replace(&mut self.route, route);
        if route < before && route < self.proven {
            self.lower(route, now);
        } else if route > before && route > self.proven {
            self.raise_after = RAISE_FIRST;
            self.begin_search(now);
        }
    }

    /// The kernel did not take a record because of its size.
    pub fn handle_too_big(&mut self, route_mtu: Option<u32>, now: Instant) {
        let route = route_mtu.map_or(self.ceiling, |mtu| self.payload_of(mtu));
        self.route = if route_mtu.is_some() { route } else { MTU_BASE };
        match route.cmp(&self.proven) {
            Ordering::Less => self.lower(route, now),
            // It was a record from before, or else the next check will show that this size does not pass either.
            Ordering::Equal => {}
            Ordering::Greater if self.proven == MTU_BASE => {}
            // Who knows of no smaller MTU cannot say how large a record may be.
            Ordering::Greater => self.lower(MTU_BASE, now),
        }
    }

    /// The echo of a probe of `bytes`, or of a short one, that left at `sent_at` has come back.
    pub fn handle_answer(&mut self, bytes: Option<u16>, sent_at: Instant, now: Instant) {
        let bytes = bytes.unwrap_or(0).min(self.ceiling);
        if let Some(doubt) = self.watch.doubt.as_mut().filter(|doubt| doubt.since <= sent_at) {
            match bytes >= self.proven {
                true => {
                    self.watch.doubt = None;
                    self.watch.checked_at = now;
                }
                false => doubt.alive = doubt.alive.saturating_add(1),
            }
        }
        let Some(search) = &mut self.search else { return };
        // One that left before a hole was found tells of the past.
        if bytes > self.proven && sent_at >= search.since {
            self.proven = bytes;
            if bytes >= search.refused {
                // It was refused for being late.
                search.refused = self.ceiling + 1;
            }
            if search.probe.is_some_and(|(asked, ..)| asked <= bytes) {
                search.probe = None;
            }
        }
    }

    /// A probe could not leave: the kernel takes no datagram of that size.
    pub fn handle_refused(&mut self, bytes: u16) {
        if let Some(search) = &mut self.search
            && search.probe.is_some_and(|(asked, ..)| asked == bytes)
        {
            search.probe = None;
            search.refused = search.refused.min(bytes);
        }
    }

    /// A probe could not leave for another reason, such as a full socket: that is no try.
    pub fn handle_unsent(&mut self, bytes: u16) {
        if let Some(Search { probe: Some((asked, tries, _)), .. }) = &mut self.search
            && *asked == bytes
        {
            *tries = tries.saturating_sub(1);
        }
    }

    /// What to send now. Call until there is nothing; `patience` is how long an answer may take.
    pub fn poll(&mut self, now: Instant, patience: Duration) -> Option<MtuProbe> {
        self.poll_watch(now, patience).or_else(|| self.poll_search(now, patience))
    }

    /// When to call [`Self::poll`] next, if ever: at once while a new size is to be asked for.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let search = self.search.as_ref().map(|search| search.probe.map_or(self.watch.checked_at, |(_, _, at)| at));
        let Watch { is_used, checked_at, doubt } = &self.watch;
        let check = match doubt {
            Some(doubt) => Some(doubt.next_at),
            None => (*is_used && self.proven > MTU_BASE).then(|| *checked_at + CHECK_EVERY),
        };
        search.into_iter().chain(check).min()
    }

    fn poll_search(&mut self, now: Instant, patience: Duration) -> Option<MtuProbe> {
        let search = self.search.as_mut()?;
        if let Some((bytes, tries, at)) = &mut search.probe {
            if now < *at {
                return None;
            }
            if *tries < TRIES_MAX {
                (*tries, *at) = (*tries + 1, now + patience);
                return Some(MtuProbe::Padded(*bytes));
            }
            search.refused = search.refused.min(*bytes);
            search.probe = None;
        }
        let refused = search.refused;
        let next = self.next_size(refused);
        let Some((bytes, search)) = next.zip(self.search.as_mut()) else {
            self.search = None;
            self.raise_at = now + self.raise_after;
            self.raise_after = (self.raise_after * 2).min(RAISE_MAX);
            return None;
        };
        search.probe = Some((bytes, 1, now + patience));
        Some(MtuProbe::Padded(bytes))
    }

    /// A size worth asking for, between what passes and what does not.
    fn next_size(&self, refused: u16) -> Option<u16> {
        let (proven, route) = (self.proven, self.route);
        let is_open = |bytes: u16| proven < bytes && bytes < refused;
        if is_open(route) {
            return Some(route);
        }
        let usual = USUAL.map(|mtu| mtu - self.header_bytes);
        // A size that is somebody's limit is likely to be this path's: if a little more does not pass, that was it.
        let next = proven.saturating_add(PRECISION);
        if proven == route && is_open(next) {
            return Some(next);
        }
        let first = usual.partition_point(|bytes| *bytes <= proven);
        let open = usual.get(first..usual.partition_point(|bytes| *bytes < refused)).unwrap_or_default();
        if let Some(bytes) = open.get(open.len() / 2) {
            return Some(*bytes);
        }
        if refused - proven <= PRECISION {
            return None;
        }
        Some(if usual.contains(&proven) { next } else { proven + (refused - proven) / 2 })
    }

    fn poll_watch(&mut self, now: Instant, patience: Duration) -> Option<MtuProbe> {
        let present = MtuProbe::Padded(self.proven);
        let Watch { is_used, checked_at, doubt } = &mut self.watch;
        let Some(asked) = doubt else {
            if !*is_used || self.proven == MTU_BASE || now < *checked_at + CHECK_EVERY {
                return None;
            }
            (*is_used, *checked_at) = (false, now);
            *doubt = Some(Doubt { since: now, sent: 1, alive: 0, next_at: now + patience });
            return Some(present);
        };
        if now < asked.next_at {
            return None;
        }
        if asked.sent <= 2 * SALVO {
            let is_short = asked.sent % 2 == 0;
            asked.sent += 1;
            if is_short {
                asked.next_at = now + if asked.sent > 2 * SALVO { patience } else { SALVO_GAP };
            }
            return Some(if is_short { MtuProbe::Short } else { present });
        }
        let is_hole = asked.alive >= ALIVE;
        *doubt = None;
        *checked_at = now;
        if is_hole {
            let hole = self.proven;
            self.lower(MTU_BASE, now);
            if let Some(search) = &mut self.search {
                search.refused = hole;
            }
        }
        None
    }

    fn lower(&mut self, to: u16, now: Instant) {
        self.proven = self.proven.min(to);
        self.watch = Watch { is_used: false, checked_at: now, doubt: None };
        self.raise_after = RAISE_FIRST;
        self.begin_search(now);
    }

    fn begin_search(&mut self, now: Instant) {
        self.search = Some(Search { since: now, refused: self.ceiling + 1, probe: None });
    }

    /// The payload of an IP packet of `mtu` bytes, as far as it is of use.
    fn payload_of(&self, mtu: u32) -> u16 {
        let payload = mtu.saturating_sub(self.header_bytes.into()).min(self.ceiling.into());
        (payload as u16).max(MTU_BASE)
    }
}

#[cfg(test)]
mod tests;
