//! What shows a relay that an end is where its binds say: it has heard what was sent there.
//!
//! A number that nobody else can know, of one end and one path alone, and of the time: so none has to be remembered.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use aws_lc_rs::{constant_time, hmac, rand};
use ringlane_shared::path::choice::Ends;
use ringlane_shared::wire::bind::BindName;

/// A number is taken until the next period of this length is over.
const PERIOD: Duration = Duration::from_secs(30);

/// Owner: the book.
#[derive(Debug)]
pub(super) struct Prover {
    key: hmac::Key,
    began_at: Instant,
}

impl Prover {
    /// With a key of its own, drawn at random.
    pub(super) fn new(now: Instant) -> Self {
        let mut key = [0; 32];
        // Without random numbers no lane is ever made, to be relayed or not.
        let _ = rand::fill(&mut key);
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, &key), began_at: now }
    }

    /// The number that this end is to repeat from this path. Never 0.
    pub(super) fn proof(&self, name: BindName, path: Ends, now: Instant) -> u64 {
        self.of_period(name, path, self.period(now))
    }

    /// Whether it has.
    pub(super) fn is_proven(&self, name: BindName, path: Ends, proof: u64, now: Instant) -> bool {
        let period = self.period(now);
        let is_of = |period| {
            let expected = self.of_period(name, path, period).to_be_bytes();
            constant_time::verify_slices_are_equal(&expected, &proof.to_be_bytes()).is_ok()
        };
        is_of(period) || period.checked_sub(1).is_some_and(is_of)
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began_at).as_secs() / PERIOD.as_secs()
    }

    fn of_period(&self, BindName(name): BindName, Ends { local, remote }: Ends, period: u64) -> u64 {
        let mut bytes = [0; 8 + 2 * 18 + 8];
        bytes[..8].copy_from_slice(&name);
        bytes[8..26].copy_from_slice(&bytes_of(local));
        bytes[26..44].copy_from_slice(&bytes_of(remote));
        bytes[44..].copy_from_slice(&period.to_be_bytes());
        let mac = hmac::sign(&self.key, &bytes);
        mac.as_ref().first_chunk().map_or(1, |first| u64::from_be_bytes(*first).max(1))
    }
}

fn bytes_of(address: SocketAddr) -> [u8; 18] {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut bytes = [0; 18];
    bytes[..16].copy_from_slice(&ip.octets());
    bytes[16..].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_of_one_end_one_path_and_a_minute_alone() {
        let began = Instant::now();
        let (prover, name) = (Prover::new(began), BindName([1; 8]));
        let path = |local: &str, remote: &str| Ends { local: local.parse().unwrap(), remote: remote.parse().unwrap() };
        let own = path("192.0.2.9:8100", "198.51.100.1:4000");
        let at = |seconds| began + Duration::from_secs(seconds);
        let proof = prover.proof(name, own, at(29));
        for seconds in [29, 30, 59] {
            assert!(prover.is_proven(name, own, proof, at(seconds)), "{seconds}");
        }
        assert!(!prover.is_proven(name, own, proof, at(60)));
        assert!(!prover.is_proven(name, own, 0, at(29)));
        assert!(!prover.is_proven(BindName([2; 8]), own, proof, at(29)));
        for other in [
            path("192.0.2.9:8101", "198.51.100.1:4000"),
            path("192.0.2.9:8100", "198.51.100.1:4001"),
            path("192.0.2.9:8100", "198.51.100.2:4000"),
            path("[2001:db8::9]:8100", "[2001:db8::1]:4000"),
        ] {
            assert!(!prover.is_proven(name, other, proof, at(29)), "{other:?}");
        }
        assert!(!Prover::new(began).is_proven(name, own, proof, at(29)), "another relay's");
    }
}
