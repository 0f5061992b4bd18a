//! The secrets of a lane's later epochs: for each a Noise handshake under a psk that nobody else has had.
//!
//! ```text
//! psk 1    = TLS exporter of the lane's QUIC connection, "EXPORTER-ringlane-rekey-1", empty context, 32 bytes
//!
//! epoch n  = Noise_NNpsk0_25519_ChaChaPoly_SHA256 under psk n, the lane's client initiating, empty payloads,
//!            prologue "ringlane rekey 1" || n (64) || client's lane id (24) || server's lane id (24) || suite's name
//!            -> k1 (client to server), k2 (server to client)
//! prk n    = HKDF-Extract(salt = "ringlane epoch 1", IKM = k1 || k2)
//! block    = HKDF-Expand(prk n, direction || " " || suite's name || n (64), key and IV)     one for each direction
//! psk n+1  = HKDF-Expand(prk n, "psk" || n+1 (64), 32)
//! ```
//! HKDF is RFC 5869's with SHA-256. `docs/protocol.md` says what this is worth; `shared/tests/vectors.rs` has known answers.

use aws_lc_rs::hkdf;
use snow::HandshakeState;
use thiserror::Error;
use zeroize::Zeroizing;

use super::keys::{KeyError, LaneKeys, Role, Suite};
use super::noise::AwsLc;
pub use super::noise::Randomness;
use crate::id::LaneId;

/// Label of the exporter that gives the first psk; its context is empty.
pub const PSK_EXPORTER_LABEL: &[u8] = b"EXPORTER-ringlane-rekey-1";

/// Bytes of a psk.
pub const PSK_BYTES: usize = 32;

/// Bytes of either message of the handshake: an X25519 key and the tag of an empty payload.
pub const NOISE_MESSAGE_BYTES: usize = 32 + 16;

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
const PROLOGUE: &[u8] = b"ringlane rekey 1";
const SALT: &[u8] = b"ringlane epoch 1";

/// Why a handshake gave no keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum EpochError {
    /// The peer's message does not prove that it has the psk and means this epoch of this lane: it is broken, or not who
    /// wrote it.
    #[error("the handshake's message is not authentic")]
    Unauthentic,
    /// The cryptography failed on our side.
    #[error("no keys could be made")]
    Keys,
}

impl From<KeyError> for EpochError {
    fn from(_: KeyError) -> Self {
        Self::Keys
    }
}

/// What the next epoch's keys will be made from. Owner: the lane's worker.
///
/// A psk is used once and then replaced: whoever learns this one can open neither what earlier handshakes protected nor,
/// without having taken part in it, what the one after the next will.
pub struct EpochSecrets {
    suite: Suite,
    role: Role,
    /// What records to the client carry.
    client_lane: LaneId,
    /// What records to the server carry.
    server_lane: LaneId,
    psk: Zeroizing<[u8; PSK_BYTES]>,
}

/// A handshake that the client has begun. Its ephemeral key is forgotten with it.
pub struct Handshake(Box<HandshakeState>);

impl EpochSecrets {
    /// Of a lane whose records carry `outbound` to the peer and `inbound` to us; `psk` is the exporter's.
    pub fn new(suite: Suite, role: Role, outbound: LaneId, inbound: LaneId, psk: Zeroizing<[u8; PSK_BYTES]>) -> Self {
        let (client_lane, server_lane) = match role {
            Role::Client => (inbound, outbound),
            Role::Server => (outbound, inbound),
        };
        Self { suite, role, client_lane, server_lane, psk }
    }

    /// Which end of the lane this is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The AEAD of all epochs of the lane.
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Begins the handshake of epoch number `epoch`, as the client: the state to [`Self::finish`] it, and the message for
    /// the server.
    pub fn initiate(
        &self,
        epoch: u64,
        randomness: Randomness,
    ) -> Result<(Handshake, [u8; NOISE_MESSAGE_BYTES]), EpochError> {
        let mut noise = self.noise(epoch, randomness)?;
        let message = write(&mut noise)?;
        Ok((Handshake(noise), message))
    }

    /// Answers the client's message, as the server: the keys of the epoch, and the message for the client.
    pub fn respond(
        &mut self,
        epoch: u64,
        message: &[u8; NOISE_MESSAGE_BYTES],
        randomness: Randomness,
    ) -> Result<(LaneKeys, [u8; NOISE_MESSAGE_BYTES]), EpochError> {
        let mut noise = self.noise(epoch, randomness)?;
        read(&mut noise, message)?;
        let reply = write(&mut noise)?;
        Ok((self.advance(epoch, noise)?, reply))
    }

    /// Takes the server's message, as the client: the keys of the epoch.
    pub fn finish(
        &mut self,
        epoch: u64,
        handshake: Handshake,
        message: &[u8; NOISE_MESSAGE_BYTES],
    ) -> Result<LaneKeys, EpochError> {
        let Handshake(mut noise) = handshake;
        read(&mut noise, message)?;
        self.advance(epoch, noise)
    }

    fn noise(&self, epoch: u64, randomness: Randomness) -> Result<Box<HandshakeState>, EpochError> {
        let prologue = [
            PROLOGUE,
            &epoch.to_be_bytes(),
            &self.client_lane.to_be_bytes(),
            &self.server_lane.to_be_bytes(),
            self.suite.name().as_bytes(),
        ]
        .concat();
        let pattern = PATTERN.parse().map_err(|_| EpochError::Keys)?;
        let builder = snow::Builder::with_resolver(pattern, Box::new(AwsLc(randomness)))
            .psk(0, &self.psk)
            .and_then(|builder| builder.prologue(&prologue))
            .map_err(|_| EpochError::Keys)?;
        let noise = match self.role {
            Role::Client => builder.build_initiator(),
            Role::Server => builder.build_responder(),
        };
        noise.map(Box::new).map_err(|_| EpochError::Keys)
    }

    /// Derives what follows from a finished handshake, and forgets what it came from.
    fn advance(&mut self, epoch: u64, mut noise: Box<HandshakeState>) -> Result<LaneKeys, EpochError> {
        let split = Zeroizing::new(noise.dangerously_get_raw_split());
        let mut keys = Zeroizing::new([0; 2 * PSK_BYTES]);
        let (to_server, to_client) = keys.split_at_mut(PSK_BYTES);
        to_server.copy_from_slice(&split.0);
        to_client.copy_from_slice(&split.1);
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(keys.as_slice());
        let expand = |info: &[&[u8]], output: &mut [u8]| {
            prk.expand(info, OutputBytes(output.len())).and_then(|okm| okm.fill(output)).map_err(|_| KeyError)
        };
        let keys = LaneKeys::from_blocks(self.suite, self.role, |block, sender| {
            let number = epoch.to_be_bytes();
            expand(&[sender.direction().as_bytes(), b" ", self.suite.name().as_bytes(), &number], block)
        })?;
        expand(&[b"psk", &(epoch + 1).to_be_bytes()], self.psk.as_mut_slice())?;
        Ok(keys)
    }
}

fn write(noise: &mut HandshakeState) -> Result<[u8; NOISE_MESSAGE_BYTES], EpochError> {
    let mut message = [0; NOISE_MESSAGE_BYTES];
    match noise.write_message(&[], &mut message) {
        Ok(NOISE_MESSAGE_BYTES) => Ok(message),
        _ => Err(EpochError::Keys),
    }
}

fn read(noise: &mut HandshakeState, message: &[u8; NOISE_MESSAGE_BYTES]) -> Result<(), EpochError> {
    match noise.read_message(message, &mut []) {
        Ok(0) => Ok(()),
        _ => Err(EpochError::Unauthentic),
    }
}

struct OutputBytes(usize);

impl hkdf::KeyType for OutputBytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl std::fmt::Debug for EpochSecrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EpochSecrets").field("suite", &self.suite).field("role", &self.role).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshake(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lane::seal::{Opener, Sealer, split};
    use crate::limits::RECORD_OVERHEAD_BYTES;

    fn secrets(role: Role, suite: Suite, psk: u8, ids: [u32; 2]) -> EpochSecrets {
        let [to_client, to_server] = ids.map(|id| LaneId::new(id).unwrap());
        let (outbound, inbound) = if role == Role::Client { (to_server, to_client) } else { (to_client, to_server) };
        EpochSecrets::new(suite, role, outbound, inbound, Zeroizing::new([psk; PSK_BYTES]))
    }

    fn pair(suite: Suite) -> (EpochSecrets, EpochSecrets) {
        (secrets(Role::Client, suite, 7, [1, 2]), secrets(Role::Server, suite, 7, [1, 2]))
    }

    fn handshake(client: &mut EpochSecrets, server: &mut EpochSecrets, epoch: u64) -> (LaneKeys, LaneKeys) {
        let (begun, init) = client.initiate(epoch, Randomness::System).unwrap();
        let (servers, reply) = server.respond(epoch, &init, Randomness::System).unwrap();
        (client.finish(epoch, begun, &reply).unwrap(), servers)
    }

    /// Whether what one end seals the other opens.
    fn passes(sealer: &mut Sealer, opener: &mut Opener) -> bool {
        let mut record = [0; RECORD_OVERHEAD_BYTES + 4];
        sealer.seal(&mut record, 4).unwrap();
        opener.open(&mut record).is_ok()
    }

    #[test]
    fn both_ends_have_the_same_keys_and_each_epoch_others() {
        for suite in Suite::ALL {
            let (mut client, mut server) = pair(suite);
            let id = LaneId::new(9).unwrap();
            let mut last: Option<Opener> = None;
            for epoch in 1..4 {
                let (clients, servers) = handshake(&mut client, &mut server, epoch);
                let (mut client_sealer, mut client_opener) = split(clients, id, id);
                let (mut server_sealer, mut server_opener) = split(servers, id, id);
                assert!(passes(&mut client_sealer, &mut server_opener));
                assert!(passes(&mut server_sealer, &mut client_opener));
                assert!(!passes(&mut client_sealer, &mut client_opener), "each direction has keys of its own");
                assert!(last.is_none_or(|mut last| !passes(&mut client_sealer, &mut last)));
                last = Some(server_opener);
            }
        }
    }

    #[test]
    fn a_handshake_needs_the_psk_and_the_same_epoch_lane_and_suite() {
        let suite = Suite::Aes128Gcm;
        let (client, _) = pair(suite);
        let (_, init) = client.initiate(3, Randomness::System).unwrap();
        let respond = |mut server: EpochSecrets, epoch| server.respond(epoch, &init, Randomness::System).map(drop);
        let server = |suite, psk, ids| secrets(Role::Server, suite, psk, ids);
        assert_eq!(respond(server(suite, 7, [1, 2]), 3), Ok(()));
        for (other, epoch) in [
            (server(suite, 8, [1, 2]), 3),
            (server(suite, 7, [1, 2]), 4),
            (server(suite, 7, [3, 2]), 3),
            (server(suite, 7, [1, 3]), 3),
            (server(Suite::Aes256Gcm, 7, [1, 2]), 3),
        ] {
            assert_eq!(respond(other, epoch), Err(EpochError::Unauthentic), "{epoch}");
        }
    }

    #[test]
    fn no_flipped_bit_of_either_message_goes_unnoticed() {
        for bit in (0..NOISE_MESSAGE_BYTES * 8).step_by(7) {
            let (mut client, mut server) = pair(Suite::Aes128Gcm);
            let (begun, init) = client.initiate(1, Randomness::System).unwrap();
            let flipped = |mut message: [u8; NOISE_MESSAGE_BYTES]| {
                message[bit / 8] ^= 1 << (bit % 8);
                message
            };
            let refused = server.respond(1, &flipped(init), Randomness::System).map(drop);
            assert_eq!(refused, Err(EpochError::Unauthentic), "bit {bit}");
            let (_, reply) = server.respond(1, &init, Randomness::System).unwrap();
            assert_eq!(client.finish(1, begun, &flipped(reply)).map(drop), Err(EpochError::Unauthentic), "bit {bit}");
        }
    }

    #[test]
    fn a_psk_serves_once() {
        let (mut client, mut server) = pair(Suite::Aes128Gcm);
        let (_, init) = client.initiate(1, Randomness::System).unwrap();
        handshake(&mut client, &mut server, 1);
        assert_eq!(server.respond(1, &init, Randomness::System).map(drop), Err(EpochError::Unauthentic));
        assert_eq!(client.psk, server.psk);
        assert_ne!(*client.psk, [7; PSK_BYTES]);
    }
}
