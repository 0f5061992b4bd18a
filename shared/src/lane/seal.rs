//! Sealing frames into records and opening them again, in place, in the buffer that goes to or came from the kernel.

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use aws_lc_rs::error::Unspecified;
use thiserror::Error;

use super::keys::{DirectionKey, LaneKeys};
use super::replay::ReplayWindow;
use crate::drop_reason::DropReason;
use crate::id::LaneId;
use crate::limits::{
    EPOCHS_LIVE_MAX, HEAVY_RECORD_WEAR, LIGHT_RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_OVERHEAD_BYTES,
    RECORD_TAG_BYTES, RECORDS_PER_EPOCH_MAX,
};
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

/// Where a record stands among all that one end of a lane sends: later ones are greater.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Sequence {
    /// Number of the epoch.
    pub epoch: u64,
    /// The record's counter within it.
    pub counter: u64,
}

impl Sequence {
    /// Whether this record was sealed directly after `before`. The first of an epoch follows none that we could name: how
    /// many the epoch before it had is not known.
    pub fn follows(self, before: Self) -> bool {
        self.epoch == before.epoch && self.counter.checked_sub(1) == Some(before.counter)
    }
}

/// Splits the keys of epoch 0 into the two halves a worker uses.
///
/// `outbound` is the name the peer gave this lane, `inbound` ours.
pub fn split(keys: LaneKeys, outbound: LaneId, inbound: LaneId) -> (Sealer, Opener) {
    let LaneKeys { sealing, opening } = keys;
    let newest = LiveEpoch::new(0, opening);
    (
        Sealer { key: sealing, epoch: 0, lane: outbound, counter: 0, wear: 0 },
        Opener { lane: inbound, newest, has_opened_newest: false, older: Default::default() },
    )
}

/// Seals records of one lane, in one epoch at a time. Owner: the lane's worker.
pub struct Sealer {
    key: DirectionKey,
    epoch: u64,
    lane: LaneId,
    counter: u64,
    wear: u64,
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
        let epoch = EpochTag::of_epoch(self.epoch);
        let header = RecordHeader { epoch, lane: self.lane, counter: self.counter };
        head.copy_from_slice(&header.to_bytes());
        Ok((head, frames, tag))
    }

    fn nonce(&self) -> Nonce {
        nonce(&self.key.iv, self.counter)
    }

    fn end(&mut self, sealed: Result<(), Unspecified>, frame_bytes: usize) -> Result<usize, SealError> {
        sealed.map_err(|Unspecified| SealError::Buffer)?;
        let record_bytes = frame_bytes + RECORD_OVERHEAD_BYTES;
        self.counter += 1;
        self.wear += if record_bytes > LIGHT_RECORD_BYTES_MAX { HEAVY_RECORD_WEAR } else { 1 };
        Ok(record_bytes)
    }

    /// Seals with the keys of a later epoch from now on, from counter 0. The key before is forgotten.
    pub fn install(&mut self, epoch: u64, key: DirectionKey) {
        assert!(epoch > self.epoch, "epochs only rise: a key whose counter began again would use a nonce twice");
        *self = Self { key, epoch, lane: self.lane, counter: 0, wear: 0 };
    }

    /// The epoch it seals in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Records sealed so far in this epoch.
    pub fn sealed(&self) -> u64 {
        self.counter
    }

    /// How far this epoch's key is used up: its records, each one above [`LIGHT_RECORD_BYTES_MAX`] counting as
    /// [`HEAVY_RECORD_WEAR`].
    pub fn wear(&self) -> u64 {
        self.wear
    }

    /// Whether this epoch's key has sealed as many records as it may: without another one the lane is of no more use.
    pub fn is_exhausted(&self) -> bool {
        self.wear >= RECORDS_PER_EPOCH_MAX
    }

    /// Skips counters, as if so many records had been sealed. Never goes back: a counter is used once.
    pub fn skip(&mut self, records: u64) {
        self.counter = self.counter.saturating_add(records);
        self.wear = self.wear.saturating_add(records);
    }
}

/// A record that has proved authentic and fresh.
#[derive(PartialEq, Eq, Debug)]
pub struct Opened<'r> {
    /// Where it stands among all of its lane.
    pub sequence: Sequence,
    /// Its frames: a slice of the record that starts at [`RECORD_HEADER_BYTES`].
    pub frames: &'r mut [u8],
}

/// Opens records of one lane, each once: of the newest epoch and of those before it that may still be on their way. Owner:
/// the lane's worker.
pub struct Opener {
    lane: LaneId,
    newest: LiveEpoch,
    /// A record of the newest epoch has been opened.
    has_opened_newest: bool,
    /// Those before it, the later ones first.
    older: [Option<LiveEpoch>; EPOCHS_LIVE_MAX - 1],
}

/// What opens the records of one epoch.
struct LiveEpoch {
    epoch: u64,
    tag: EpochTag,
    key: DirectionKey,
    window: ReplayWindow,
}

impl LiveEpoch {
    fn new(epoch: u64, key: DirectionKey) -> Self {
        Self { epoch, tag: EpochTag::of_epoch(epoch), key, window: ReplayWindow::default() }
    }
}

impl Opener {
    /// Opens a record in place.
    ///
    /// The replay window is asked before the work is done and marked only after the record has proved authentic.
    pub fn open<'r>(&mut self, record: &'r mut [u8]) -> Result<Opened<'r>, OpenError> {
        let header = RecordHeader::parse(record).map_err(|_| OpenError::Malformed)?;
        if header.lane != self.lane {
            return Err(OpenError::UnknownLane);
        }
        let is_newest = header.epoch == self.newest.tag;
        let live = if is_newest { &mut self.newest } else { self.older_epoch(header.epoch)? };
        if !live.window.is_fresh(header.counter) {
            return Err(OpenError::Replayed);
        }
        let (head, sealed) = record.split_at_mut(RECORD_HEADER_BYTES);
        let frames = live
            .key
            .aead
            .open_in_place(nonce(&live.key.iv, header.counter), Aad::from(&*head), sealed)
            .map_err(|_| OpenError::Unauthentic)?;
        live.window.accept(header.counter);
        let sequence = Sequence { epoch: live.epoch, counter: header.counter };
        self.has_opened_newest |= is_newest;
        debug_assert_eq!(frames.len() + RECORD_TAG_BYTES + RECORD_HEADER_BYTES, record_bytes(frames.len()));
        Ok(Opened { sequence, frames })
    }

    /// Of the few records that cross a rekeying.
    #[cold]
    fn older_epoch(&mut self, tag: EpochTag) -> Result<&mut LiveEpoch, OpenError> {
        self.older.iter_mut().flatten().find(|live| live.tag == tag).ok_or(OpenError::UnknownEpoch)
    }

    /// Opens records of this epoch too from now on. What opened the oldest of [`EPOCHS_LIVE_MAX`] is forgotten.
    pub fn install(&mut self, epoch: u64, key: DirectionKey) {
        assert!(
            epoch > self.newest.epoch,
            "epochs only rise: a fresh window would open the records of a known key twice"
        );
        let before = std::mem::replace(&mut self.newest, LiveEpoch::new(epoch, key));
        self.has_opened_newest = false;
        self.older.rotate_right(1);
        self.older[0] = Some(before);
    }

    /// Forgets what opened the epochs before this one.
    pub fn retire_before(&mut self, epoch: u64) {
        for place in &mut self.older {
            if place.as_ref().is_some_and(|live| live.epoch < epoch) {
                *place = None;
            }
        }
    }

    /// The newest epoch that the peer is known to seal in: the newest there is once a record of it has been opened, until
    /// then the one before.
    pub fn newest_epoch(&self) -> u64 {
        self.newest.epoch.saturating_sub(u64::from(!self.has_opened_newest))
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
        for suite in Suite::ALL {
            let (mut sealer, mut opener) = pair(suite);
            for (counter, frames) in (0..).zip([&b""[..], b"x", &[9; 1424]]) {
                let record = sealed(&mut sealer, frames);
                let sequence = Sequence { epoch: 0, counter };
                assert_eq!(opener.open(&mut record.clone()), Ok(Opened { sequence, frames: &mut frames.to_vec() }));
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

    /// A key that both ends have for an epoch, as they would after a rekey.
    fn direction_key(epoch: u8) -> DirectionKey {
        DirectionKey::from_block(Suite::Aes128Gcm, &[epoch; 28]).unwrap()
    }

    #[test]
    fn records_of_the_last_four_epochs_open_once_each_and_older_ones_never() {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        let mut records = Vec::new();
        for epoch in 0..40 {
            if epoch > 0 {
                sealer.install(epoch, direction_key(epoch as u8));
                opener.install(epoch, direction_key(epoch as u8));
            }
            // Of each epoch one record arrives now and one later.
            assert!(opener.open(&mut sealed(&mut sealer, b"now")).is_ok());
            assert_eq!(opener.newest_epoch(), epoch);
            records.push(sealed(&mut sealer, b"late"));
            if let Some(old) = epoch.checked_sub(4) {
                let mut record = records[old as usize].clone();
                let opened = opener.open(&mut record);
                assert_eq!(opened, Err(OpenError::UnknownEpoch), "epoch {old} in epoch {epoch}");
            }
            if let Some(late) = epoch.checked_sub(3) {
                let record = &records[late as usize];
                let sequence = Sequence { epoch: late, counter: 1 };
                let (mut first, mut again) = (record.clone(), record.clone());
                assert_eq!(opener.open(&mut first).map(|opened| opened.sequence), Ok(sequence));
                assert_eq!(opener.open(&mut again), Err(OpenError::Replayed));
                assert_eq!(opener.newest_epoch(), epoch, "an old record makes no epoch the newest");
            }
        }
        opener.retire_before(39);
        assert_eq!(opener.open(&mut records[38].clone()), Err(OpenError::UnknownEpoch));
        assert!(opener.open(&mut records[39].clone()).is_ok());
    }

    #[test]
    fn a_record_of_another_epoch_with_the_same_tag_does_not_open() {
        let (mut sealer, mut opener) = pair(Suite::Aes128Gcm);
        let mut old = sealed(&mut sealer, b"epoch 0");
        (1..=16).for_each(|epoch| opener.install(epoch, direction_key(epoch as u8)));
        assert_eq!(opener.open(&mut old), Err(OpenError::Unauthentic));
        sealer.install(16, direction_key(16));
        let mut new = sealed(&mut sealer, b"epoch 16");
        assert_eq!((new[0], opener.open(&mut new).is_ok()), (0x30, true));
    }

    #[test]
    #[should_panic(expected = "epochs only rise")]
    fn no_epoch_is_sealed_in_twice() {
        let (mut sealer, _) = pair(Suite::Aes128Gcm);
        sealer.install(1, direction_key(1));
        sealer.install(1, direction_key(1));
    }

    #[test]
    fn a_large_record_wears_a_key_like_sixteen_small_ones_and_a_new_key_is_not_worn() {
        let (mut sealer, _) = pair(Suite::Aes128Gcm);
        for (record_bytes, wear) in [(28, 1), (LIGHT_RECORD_BYTES_MAX, 2), (LIGHT_RECORD_BYTES_MAX + 1, 18), (9032, 34)]
        {
            sealer.seal(&mut vec![0; record_bytes], record_bytes - RECORD_OVERHEAD_BYTES).unwrap();
            assert_eq!(sealer.wear(), wear);
        }
        sealer.skip(RECORDS_PER_EPOCH_MAX - 35);
        assert!(!sealer.is_exhausted());
        sealer.seal(&mut vec![0; 9032], 9000).unwrap();
        assert_eq!(sealer.seal(&mut [0; 64], 4), Err(SealError::EpochExhausted));
        sealer.install(1, direction_key(1));
        assert!(sealer.seal(&mut [0; 64], 4).is_ok());
        assert_eq!((sealer.epoch(), sealer.sealed(), sealer.wear()), (1, 1, 1));
    }

    #[test]
    fn only_the_next_record_of_the_same_epoch_follows_one() {
        let at = |epoch, counter| Sequence { epoch, counter };
        assert!(at(3, 8).follows(at(3, 7)));
        for other in [at(3, 6), at(3, 8), at(3, 9), at(2, 7), at(4, 7), at(2, u64::MAX)] {
            assert!(!at(3, 8).follows(other), "{other:?}");
        }
        assert!(!at(3, 0).follows(at(2, u64::MAX)) && !at(0, 0).follows(at(0, u64::MAX)));
        assert!(at(3, 0) > at(2, u64::MAX));
    }
}
