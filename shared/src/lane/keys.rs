//! The keys of one epoch of a lane, and how they come out of the TLS exporter.
//!
//! Both ends export one block per direction, `EXPORTER-ringlane-lane-1` with the direction's name as context
//! (RFC 8446, section 7.5): the AEAD key, then the 12-byte IV that the counter is mixed into.

use aws_lc_rs::aead::{AES_128_GCM, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, UnboundKey};
use thiserror::Error;
use zeroize::Zeroizing;

/// Label of the exporter; the number rises when anything about records changes.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-ringlane-lane-1";

/// The AEAD of a lane's records. Both ends choose it from both offers, so they agree without a round trip.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// For two CPUs with AES instructions.
    Aes128Gcm,
    /// For any other pair.
    ChaCha20Poly1305,
}

impl Suite {
    /// The suite for two nodes, given whether each has AES instructions.
    pub fn choose(ours_has_aes: bool, theirs_has_aes: bool) -> Self {
        if ours_has_aes && theirs_has_aes { Self::Aes128Gcm } else { Self::ChaCha20Poly1305 }
    }

    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128Gcm => &AES_128_GCM,
            Self::ChaCha20Poly1305 => &CHACHA20_POLY1305,
        }
    }

    fn key_bytes(self) -> usize {
        self.algorithm().key_len()
    }
}

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
    fn sending_context(self) -> &'static [u8] {
        match self {
            Self::Client => b"client to server",
            Self::Server => b"server to client",
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
#[error("the TLS session exported no lane keys")]
pub struct KeyError;

/// One direction's key and IV.
pub(super) struct DirectionKey {
    pub(super) aead: LessSafeKey,
    pub(super) iv: [u8; NONCE_LEN],
}

impl DirectionKey {
    fn from_block(suite: Suite, block: &[u8]) -> Result<Self, KeyError> {
        let (key, iv) = block.split_at_checked(suite.key_bytes()).ok_or(KeyError)?;
        let aead = LessSafeKey::new(UnboundKey::new(suite.algorithm(), key).map_err(|_| KeyError)?);
        Ok(Self { aead, iv: iv.try_into().map_err(|_| KeyError)? })
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
        let mut direction = |sender: Role| {
            let mut block = Zeroizing::new([0u8; 32 + NONCE_LEN]);
            let block = &mut block[..suite.key_bytes() + NONCE_LEN];
            export(block, EXPORTER_LABEL, sender.sending_context()).map_err(|_| KeyError)?;
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
