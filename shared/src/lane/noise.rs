//! aws-lc as the cryptography of `snow`: X25519, SHA-256 and ChaCha20-Poly1305.
//!
//! snow's own resolvers would bring a second implementation of each into the process. Private keys stay in AWS-LC's memory,
//! which is cleansed when it is freed. snow itself overwrites nothing: its copies of the psk, of its chaining key and of the
//! shared secret outlive a handshake in freed memory. That is one reason why each psk serves for one epoch only
//! ([`super::epoch`]).

use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, PrivateKey, UnparsedPublicKey, X25519};
use aws_lc_rs::digest;
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

/// Bytes of an X25519 key, public or private, of a symmetric key and of a SHA-256 digest.
const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
const SHA256_BLOCK_BYTES: usize = 64;

/// Where ephemeral keys come from.
#[derive(Clone, Debug, Default)]
pub enum Randomness {
    /// The system's generator.
    #[default]
    System,
    /// Nowhere: each key is these bytes. For known answers and nothing else, as such a key protects nothing.
    DangerFixed([u8; KEY_BYTES]),
}

impl Random for Randomness {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        match self {
            Self::System => aws_lc_rs::rand::fill(bytes).map_err(|_| Error::Rng),
            Self::DangerFixed(fixed) => {
                bytes.copy_from_slice(fixed.get(..bytes.len()).ok_or(Error::Rng)?);
                Ok(())
            }
        }
    }
}

/// Gives snow its primitives; those of other patterns than ours it does not have.
pub(super) struct AwsLc(pub(super) Randomness);

impl CryptoResolver for AwsLc {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(self.0.clone()))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519Key::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        matches!(choice, HashChoice::SHA256).then(|| Box::new(Sha256::default()) as Box<dyn Hash>)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        matches!(choice, CipherChoice::ChaChaPoly).then(|| Box::new(ChaChaPoly::default()) as Box<dyn Cipher>)
    }
}

#[derive(Default)]
struct X25519Key {
    private: Option<PrivateKey>,
    public: [u8; KEY_BYTES],
}

impl X25519Key {
    fn load(&mut self, private: &[u8]) -> Result<(), Error> {
        let private = PrivateKey::from_private_key(&X25519, private).map_err(|_| Error::Dh)?;
        let public = private.compute_public_key().map_err(|_| Error::Dh)?;
        self.public = public.as_ref().try_into().map_err(|_| Error::Dh)?;
        self.private = Some(private);
        Ok(())
    }
}

impl Dh for X25519Key {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        KEY_BYTES
    }

    fn priv_len(&self) -> usize {
        KEY_BYTES
    }

    /// snow sets static keys, of which our pattern has none. Without a key every later step fails.
    fn set(&mut self, private: &[u8]) {
        if self.load(private).is_err() {
            self.private = None;
        }
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut private = Zeroizing::new([0; KEY_BYTES]);
        random.try_fill_bytes(private.as_mut_slice())?;
        self.load(private.as_slice())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    /// snow asks only for keys that it has been told to make for somebody, which nobody does.
    fn privkey(&self) -> &[u8] {
        &[]
    }

    /// Fails where the result would be all zero, which the peer can bring about with a point of small order.
    fn dh(&self, public: &[u8], shared: &mut [u8]) -> Result<(), Error> {
        let (Some(private), Some(public)) = (&self.private, public.get(..KEY_BYTES)) else { return Err(Error::Dh) };
        let shared = shared.get_mut(..KEY_BYTES).ok_or(Error::Dh)?;
        agreement::agree(private, UnparsedPublicKey::new(&X25519, public), Error::Dh, |secret| {
            shared.copy_from_slice(secret);
            Ok(())
        })
    }
}

struct Sha256(digest::Context);

impl Default for Sha256 {
    fn default() -> Self {
        Self(digest::Context::new(&digest::SHA256))
    }
}

impl Hash for Sha256 {
    fn name(&self) -> &'static str {
        "SHA256"
    }

    fn block_len(&self) -> usize {
        SHA256_BLOCK_BYTES
    }

    fn hash_len(&self) -> usize {
        KEY_BYTES
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn input(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    fn result(&mut self, out: &mut [u8]) {
        let digest = std::mem::take(self).0.finish();
        out[..KEY_BYTES].copy_from_slice(digest.as_ref());
    }
}

#[derive(Default)]
struct ChaChaPoly(Option<LessSafeKey>);

/// Noise has it little-endian for this cipher.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[NONCE_LEN - 8..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Cipher for ChaChaPoly {
    fn name(&self) -> &'static str {
        "ChaChaPoly"
    }

    fn set(&mut self, key: &[u8; KEY_BYTES]) {
        self.0 = UnboundKey::new(&CHACHA20_POLY1305, key).ok().map(LessSafeKey::new);
    }

    /// Cannot say that it failed. If there were no key, what it leaves would not open at the other end.
    fn encrypt(&self, counter: u64, associated: &[u8], plain: &[u8], out: &mut [u8]) -> usize {
        let (sealed, tag) = out[..plain.len() + TAG_BYTES].split_at_mut(plain.len());
        sealed.copy_from_slice(plain);
        let key = self.0.as_ref();
        let done = key.map(|key| key.seal_in_place_scatter(nonce(counter), Aad::from(associated), sealed, &[], tag));
        if !matches!(done, Some(Ok(()))) {
            out[..plain.len() + TAG_BYTES].fill(0);
        }
        plain.len() + TAG_BYTES
    }

    fn decrypt(&self, counter: u64, associated: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let key = self.0.as_ref().ok_or(Error::Decrypt)?;
        let plain_bytes = sealed.len().checked_sub(TAG_BYTES).ok_or(Error::Decrypt)?;
        let (sealed, tag) = sealed.split_at(plain_bytes);
        let out = out.get_mut(..plain_bytes).ok_or(Error::Decrypt)?;
        key.open_separate_gather(nonce(counter), Aad::from(associated), sealed, tag, out)
            .map_err(|_| Error::Decrypt)?;
        Ok(plain_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(hex: &str) -> [u8; N] {
        std::array::from_fn(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap())
    }

    /// RFC 7748, section 5.2: the first iteration, whose scalar and coordinate are both the base point's 9.
    #[test]
    fn x25519_gives_what_rfc_7748_says_and_nothing_for_a_point_of_small_order() {
        let nine: [u8; KEY_BYTES] = std::array::from_fn(|at| if at == 0 { 9 } else { 0 });
        let product = bytes("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        let (mut key, mut shared) = (X25519Key::default(), [0; KEY_BYTES]);
        assert_eq!(key.dh(&nine, &mut shared), Err(Error::Dh), "without a private key");
        key.generate(&mut Randomness::DangerFixed(nine)).unwrap();
        assert_eq!(key.pubkey(), product);
        key.dh(&nine, &mut shared).unwrap();
        assert_eq!(shared, product);
        assert_eq!(key.dh(&[0; KEY_BYTES], &mut shared), Err(Error::Dh));
        assert_eq!(key.dh(&[1], &mut shared), Err(Error::Dh));
    }

    #[test]
    fn a_cipher_opens_what_it_sealed_and_nothing_else_and_without_a_key_neither() {
        let mut cipher = ChaChaPoly::default();
        let mut sealed = [0; 3 + TAG_BYTES];
        let mut plain = [0; 3];
        cipher.encrypt(0, b"", b"abc", &mut sealed);
        assert_eq!((sealed, cipher.decrypt(0, b"", &sealed, &mut plain)), ([0; 19], Err(Error::Decrypt)));
        cipher.set(&[7; KEY_BYTES]);
        assert_eq!(cipher.encrypt(1, b"with", b"abc", &mut sealed), sealed.len());
        assert_eq!((cipher.decrypt(1, b"with", &sealed, &mut plain), plain), (Ok(3), *b"abc"));
        assert_eq!(cipher.decrypt(2, b"with", &sealed, &mut plain), Err(Error::Decrypt));
        assert_eq!(cipher.decrypt(1, b"else", &sealed, &mut plain), Err(Error::Decrypt));
        assert_eq!(cipher.decrypt(1, b"with", &sealed[..15], &mut plain), Err(Error::Decrypt));
    }
}
