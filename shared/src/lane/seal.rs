//! Sealing frames into records and opening them again, in place, in the buffer that goes to or came from the kernel.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::error::Unspecified;
use thiserror::Error;

use super::keys::{DirectionKey, LaneKeys};
use super::replay::ReplayWindow;
use crate::drop_reason::DropReason;
use crate::id::LaneId;
use crate::limits::{RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES, RECORD_TAG_BYTES, RECORDS_PER_EPOCH_MAX};
use crate::wire::record::{EpochTag, RecordHeader};

/// Why a record could not be sealed. Both are ours to handle: the packet is dropped and counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SealError {
    /// This epoch's key has sealed as many records as it may.
    #[error("the epoch has sealed its last record")]
    EpochExhausted,
    /// The buffer cannot hold header, frames and tag.
    #[error("the record buffer is too small")]
    Buffer,
}

impl From<SealError> for DropReason {
    fn from(error: SealError) -> Self {
        match error {
            SealError::EpochExhausted => Self::EpochExhausted,
            SealError::Buffer => Self::TooBig,
        }
    }
}

/// Why a record could not be opened: the network or the peer is at fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum OpenError {
    /// It cannot be a record at all.
    #[error("not a record")]
    Malformed,
    /// It names another lane.
    #[error("record of another lane")]
    UnknownLane,
    /// It was sealed in an epoch we have no key for.
    #[error("record of an unknown epoch")]
    UnknownEpoch,
    /// Its counter was seen before or is too old.
    #[error("record seen before")]
    Replayed,
    /// It does not authenticate.
    #[error("record does not authenticate")]
    Unauthentic,
}

impl From<OpenError> for DropReason {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Malformed => Self::InboundMalformed,
            OpenError::UnknownLane => Self::UnknownLane,
            OpenError::UnknownEpoch => Self::UnknownEpoch,
            OpenError::Replayed => Self::Replayed,
            OpenError::Unauthentic => Self::Unauthentic,
        }
    }
}

/// Splits an epoch's keys into the two halves a worker uses.
///
/// `outbound` is the name the peer gave this lane, `inbound` ours.
pub fn split(keys: LaneKeys, outbound: LaneId, inbound: LaneId) -> (Sealer, Opener) {
    let LaneKeys { sealing, opening } = keys;
    (
        Sealer { key: sealing, epoch: EpochTag::default(), lane: outbound, counter: 0 },
        Opener { key: opening, epoch: EpochTag::default(), lane: inbound, window: ReplayWindow::default() },
    )
}

/// Seals records of one lane and epoch. Owner: the lane's worker.
pub struct Sealer {
    key: DirectionKey,
    epoch: EpochTag,
    lane: LaneId,
    counter: u64,
}

impl Sealer {
    /// Seals `record[RECORD_HEADER_BYTES..][..frame_bytes]` in place, writes the header before it and the tag behind
    /// it, and returns the record's length.
    pub fn seal(&mut self, record: &mut [u8], frame_bytes: usize) -> Result<usize, SealError> {
        let (header, frames, tag) = self.begin(record, frame_bytes)?;
        let sealed = self.key.aead.seal_in_place_scatter(self.nonce(), Aad::from(header), frames, &[], tag);
        self.end(sealed, frame_bytes)
    }

    /// As [`Self::seal`], but with the frames taken from somewhere else, which costs no more and spares copying them.
    pub fn seal_from(&mut self, frames: &[u8], record: &mut [u8]) -> Result<usize, SealError> {
        let (header, room, tag) = self.begin(record, frames.len())?;
        let aead = &self.key.aead;
        let sealed = aead.seal_out_of_place_scatter(self.nonce(), Aad::from(header), frames, room, &[], tag);
        self.end(sealed, frames.len())
    }

    /// Writes the record's header. Returns it and where frames and tag go.
    #[inline]
    #[expect(clippy::type_complexity, reason = "the three parts of a record")]
    fn begin<'r>(
        &self,
        record: &'r mut [u8],
        frame_bytes: usize,
    ) -> Result<(&'r [u8], &'r mut [u8], &'r mut [u8]), SealError> {
        if self.is_exhausted() {
            return Err(SealError::EpochExhausted);
        }
        let record = record.get_mut(..frame_bytes + RECORD_OVERHEAD_BYTES).ok_or(SealError::Buffer)?;
        let (head, rest) = record.split_at_mut(RECORD_HEADER_BYTES);
        let (frames, tag) = rest.split_at_mut(frame_bytes);
        let header = RecordHeader { epoch: self.epoch, lane: self.lane, counter: self.counter };
        head.copy_from_slice(&header.to_bytes());
        Ok((head, frames, tag))
    }

    fn nonce(&self) -> Nonce {
        nonce(&self.key.iv, self.counter)
    }

    fn end(&mut self, sealed: Result<(), Unspecified>, frame_bytes: usize) -> Result<usize, SealError> {
        sealed.map_err(|Unspecified| SealError::Buffer)?;
        self.counter += 1;
        Ok(frame_bytes + RECORD_OVERHEAD_BYTES)
    }

    /// Records sealed so far in this epoch.
    pub fn sealed(&self) -> u64 {
        self.counter
    }

    /// Whether this epoch's key has sealed as many records as it may: the lane is of no more use.
    pub fn is_exhausted(&self) -> bool {
        self.counter >= RECORDS_PER_EPOCH_MAX
    }

    /// Skips counters, as if so many records had been sealed. Never goes back: a counter is used once.
    pub fn skip(&mut self, records: u64) {
        self.counter = self.counter.saturating_add(records);
    }
}

/// Opens records of one lane and epoch, each once. Owner: the lane's worker.
pub struct Opener {
    key: DirectionKey,
    epoch: EpochTag,
    lane: LaneId,
    window: ReplayWindow,
}

impl Opener {
    /// Opens a record in place and returns its frames, a slice of `record` that starts at [`RECORD_HEADER_BYTES`].
    ///
    /// The replay window is asked before the work is done and marked only after the record has proved authentic.
    pub fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<&'r mut [u8], OpenError> {
        let header = RecordHeader::parse(record).map_err(|_| OpenError::Malformed)?;
        if header.lane != self.lane {
            return Err(OpenError::UnknownLane);
        }
        if header.epoch != self.epoch {
            return Err(OpenError::UnknownEpoch);
        }
        if !self.window.is_fresh(header.counter) {
            return Err(OpenError::Replayed);
        }
        let (head, sealed) = record.split_at_mut(RECORD_HEADER_BYTES);
        let frames = self
            .key
            .aead
            .open_in_place(nonce(&self.key.iv, header.counter), Aad::from(&*head), sealed)
            .map_err(|_| OpenError::Unauthentic)?;
        self.window.accept(header.counter);
        debug_assert_eq!(frames.len() + RECORD_TAG_BYTES + RECORD_HEADER_BYTES, record_bytes(frames.len()));
        Ok(frames)
    }
}

fn record_bytes(frame_bytes: usize) -> usize {
    frame_bytes + RECORD_OVERHEAD_BYTES
}

/// The epoch's IV with the counter mixed into its last eight bytes, big-endian.
fn nonce(iv: &[u8; NONCE_LEN], counter: u64) -> Nonce {
    let mut nonce = *iv;
    for (byte, mixed) in nonce[NONCE_LEN - 8..].iter_mut().zip(counter.to_be_bytes()) {
        *byte ^= mixed;
    }
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::keys::{KeyError, Role, Suite};

    /// A stand-in exporter: any function of label and context that both ends share.
    fn export(output: &mut [u8], label: &[u8], context: &[u8]) -> Result<(), KeyError> {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, &[label, context].concat());
        output.copy_from_slice(&digest.as_ref()[..output.len()]);
        Ok(())
    }

    fn pair(suite: Suite) -> (Sealer, Opener) {
        let (a, b) = (LaneId::new(1).unwrap(), LaneId::new(0x00ff_ffff).unwrap());
        let client = LaneKeys::derive(suite, Role::Client, export).unwrap();
        let server = LaneKeys::derive(suite, Role::Server, export).unwrap();
        (split(client, a, b).0, split(server, b, a).1)
    }

    fn sealed(sealer: &mut Sealer, frames: &[u8]) -> Vec<u8> {
        let mut record = vec![0; frames.len() + RECORD_OVERHEAD_BYTES];
        record[RECORD_HEADER_BYTES..][..frames.len()].copy_from_slice(frames);
        let length = sealer.seal(&mut record, frames.len()).unwrap();
        assert_eq!(length, record.len());
        record
    }

    #[test]
    fn a_record_opens_once_on_the_other_side() {
        for suite in [Suite::Aes128Gcm, Suite::ChaCha20Poly1305] {
            let (mut sealer, mut opener) = pair(suite);
            for frames in [&b""[..], b"x", &[9; 1424]] {
                let record = sealed(&mut sealer, frames);
                assert_eq!(opener.open(&mut record.clone()), Ok(&mut frames.to_vec()[..]));
                assert_eq!(opener.open(&mut record.clone()), Err(OpenError::Replayed));
            }
        }
    }

    #[test]
    fn a_record_is_the_same_wherever_its_frames_came_from() {
        let ((mut here, _), (mut elsewhere, _)) = (pair(Suite::Aes128Gcm), pair(Suite::Aes128Gcm));
        for frames in [&b""[..], b"x", &[9; 1424]] {
            let mut record = vec![0; frames.len() + RECORD_OVERHEAD_BYTES];
            assert_eq!(elsewhere.seal_from(frames, &mut record), Ok(record.len()));
            assert_eq!(record, sealed(&mut here, frames));
        }
        assert_eq!(elsewhere.seal_from(&[0; 4], &mut [0; 31]), Err(SealError::Buffer));
        assert_eq!(elsewhere.sealed(), 3);
    }

    #[test]
    fn the_counter_is_mixed_into_the_whole_end_of_the_iv() {
        let iv = [0xff, 0xfe, 0xfd, 0xfc, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x80];
        let expected = [0xff, 0xfe, 0xfd, 0xfc, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
        assert_eq!(nonce(&iv, 0x0102_0304_0506_0708).as_ref(), &expected);
    }

    #[test]
    fn any_flipped_bit_is_refused_and_does_not_burn_the_counter() {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        let record = sealed(&mut sealer, b"inner packet");
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(opener.open(&mut flipped).is_err(), "bit {bit}");
        }
        assert!(opener.open(&mut record.clone()).is_ok());
    }

    #[test]
    fn our_own_record_reflected_at_us_does_not_open() {
        let id = LaneId::new(5).unwrap();
        let (mut sealer, mut opener) = split(LaneKeys::derive(Suite::Aes128Gcm, Role::Client, export).unwrap(), id, id);
        let mut record = sealed(&mut sealer, b"inner packet");
        assert_eq!(opener.open(&mut record), Err(OpenError::Unauthentic));
    }

    #[test]
    fn short_and_foreign_datagrams_are_refused() {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        for length in 0..RECORD_OVERHEAD_BYTES {
            assert_eq!(opener.open(&mut vec![0x30; length]), Err(OpenError::Malformed));
        }
        let mut other_lane = sealed(&mut sealer, b"x");
        other_lane[3] ^= 1;
        assert_eq!(opener.open(&mut other_lane), Err(OpenError::UnknownLane));
        let mut other_epoch = sealed(&mut sealer, b"x");
        other_epoch[0] ^= 1;
        assert_eq!(opener.open(&mut other_epoch), Err(OpenError::UnknownEpoch));
    }

    #[test]
    fn an_exhausted_epoch_seals_nothing_more() {
        let (mut sealer, _) = pair(Suite::Aes128Gcm);
        sealer.skip(RECORDS_PER_EPOCH_MAX - 1);
        assert!(!sealer.is_exhausted());
        assert!(sealer.seal(&mut [0; 64], 4).is_ok());
        assert!(sealer.is_exhausted());
        assert_eq!(sealer.seal(&mut [0; 64], 4), Err(SealError::EpochExhausted));
        assert_eq!(sealer.counter, RECORDS_PER_EPOCH_MAX);
    }
}
