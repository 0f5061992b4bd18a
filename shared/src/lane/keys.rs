//! The keys of one epoch of a lane, and how they come out of the TLS exporter.
//!
//! For epoch 0 both ends export one block per direction, `EXPORTER-ringlane-lane-1` with the direction's and the suite's
//! name as context (RFC 8446, section 7.5): the AEAD key, then the 12-byte IV that the counter is mixed into. Later
//! epochs have blocks of the same shape from elsewhere: [`super::epoch`].
//!
//! **Memory.** Blocks and IVs are overwritten when they are dropped. The AEAD keys themselves live in AWS-LC's heap, as
//! `EVP_AEAD_CTX` with the expanded key inside: aws-lc-rs frees it by `EVP_AEAD_CTX_free`, which ends in `OPENSSL_free`,
//! and that cleanses whatever it frees. What it does not clean are its own stack frames of the moment.

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, UnboundKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// Label of the exporter; the number rises when anything about records changes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-ringlane-lane-1";

/// The AEAD of a lane's records. Both ends choose it from both offers, so they agree without a round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Suite {
    /// The fastest for two CPUs with AES instructions.
    Aes128Gcm = 1,
    /// For two CPUs with AES instructions, where somebody insists on it.
    Aes256Gcm = 2,
    /// For any other pair.
    ChaCha20Poly1305 = 3,
}

impl Suite {
    /// All of them, the one to be preferred first.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm, Self::Aes256Gcm, Self::ChaCha20Poly1305];

    /// Its name in configurations, in the status, and in what keys are derived from: stable.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
        }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::Aes256Gcm => &AES_256_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn key_bytes(self) -> usize {
        self.algorithm().key_len()
    }

    /// Bytes of a direction's block: key and IV.
    pub(super) fn block_bytes(self) -> usize {
        self.key_bytes() + NONCE_LEN
    }
}

/// Room for the block of any suite.
pub(super) const BLOCK_BYTES_MAX: usize = 32 + NONCE_LEN;

/// Which AEADs a node is willing to use for records.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CipherChoice {
    /// The fastest that both CPUs are good at.
    #[default]
    Auto,
    /// AES-128-GCM where both CPUs have AES instructions.
    Aes128Gcm,
    /// AES-256-GCM where both CPUs have AES instructions; never AES-128-GCM.
    Aes256Gcm,
    /// ChaCha20-Poly1305 always.
    ChaCha20Poly1305,
}

/// Which end of the lane's QUIC connection we are: the node with the lower peer id is the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Dials.
    Client,
    /// Accepts.
    Server,
}

impl Role {
    /// What the direction in which this end sends is called in what keys are derived from.
    pub(super) fn direction(self) -> &'static str {
        match self {
            Self::Client => "client to server",
            Self::Server => "server to client",
        }
    }

    /// The other end's role.
    pub fn opposite(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

/// No keys could be made: the handshake has not finished, which is our mistake, or the library refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the lane's keys could not be derived")]
pub struct KeyError;

/// One direction's key and IV, of one epoch.
pub struct DirectionKey {
    pub(super) aead: LessSafeKey,
    pub(super) iv: Zeroizing<[u8; NONCE_LEN]>,
}

impl DirectionKey {
    /// Takes a block apart.
    pub(super) fn from_block(suite: Suite, block: &[u8]) -> Result<Self, KeyError> {
        let (key, iv) = block.split_at_checked(suite.key_bytes()).ok_or(KeyError)?;
        let aead = LessSafeKey::new(UnboundKey::new(suite.algorithm(), key).map_err(|_| KeyError)?);
        let mut mixed = Zeroizing::new([0; NONCE_LEN]);
        if iv.len() != NONCE_LEN {
            return Err(KeyError);
        }
        mixed.copy_from_slice(iv);
        Ok(Self { aead, iv: mixed })
    }
}

impl std::fmt::Debug for DirectionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DirectionKey(..)")
    }
}

/// Both directions' keys of one epoch. Sealing and opening take them apart: [`super::seal::Sealer`],
/// [`super::seal::Opener`].
pub struct LaneKeys {
    pub(super) sealing: DirectionKey,
    pub(super) opening: DirectionKey,
}

impl LaneKeys {
    /// Derives epoch 0 from an exporter: `export(output, label, context)` fills `output` from the TLS session.
    pub fn derive<E>(
        suite: Suite,
        role: Role,
        mut export: impl FnMut(&mut [u8], &[u8], &[u8]) -> Result<(), E>,
    ) -> Result<Self, KeyError> {
        Self::from_blocks(suite, role, |block, sender| {
            let context = format!("{} {}", sender.direction(), suite.name());
            export(block, EXPORTER_LABEL, context.as_bytes()).map_err(|_| KeyError)
        })
    }

    /// What seals, and what opens.
    pub fn into_directions(self) -> (DirectionKey, DirectionKey) {
        (self.sealing, self.opening)
    }

    /// Makes the keys of the end with this role: `fill(block, sender)` gives the block of the direction in which `sender`
    /// sends.
    pub(super) fn from_blocks(
        suite: Suite,
        role: Role,
        mut fill: impl FnMut(&mut [u8], Role) -> Result<(), KeyError>,
    ) -> Result<Self, KeyError> {
        let mut direction = |sender: Role| {
            let mut block = Zeroizing::new([0; BLOCK_BYTES_MAX]);
            let block = &mut block[..suite.block_bytes()];
            fill(block, sender)?;
            DirectionKey::from_block(suite, block)
        };
        Ok(Self { sealing: direction(role)?, opening: direction(role.opposite())? })
    }
}

impl std::fmt::Debug for LaneKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LaneKeys(..)")
    }
}
