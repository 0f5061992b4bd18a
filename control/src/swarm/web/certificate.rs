//! The certificate of `/wss` in files that somebody renews: read anew when they have changed, without a restart.
//!
//! The files are looked at when somebody shakes hands, and not more often than every [`LOOK_EVERY`]. What cannot be used is
//! said once, and what there was is shown on.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use ringlane_shared::config::CertificateFiles;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::WebError;

/// Between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// When files were written, and how long they are: of those that are not there, nothing.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// What a server of `/wss` shows. Used on the control thread only; the lock is what rustls asks for, and never contended.
#[derive(Debug)]
pub(super) struct FileCertificate {
    files: CertificateFiles,
    provider: Arc<CryptoProvider>,
    shown: Mutex<Shown>,
}

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    stamp: Stamp,
    looked_at: Instant,
}

impl FileCertificate {
    /// Reads the files.
    pub(super) fn new(files: &CertificateFiles, provider: Arc<CryptoProvider>) -> Result<Self, WebError> {
        let stamp = stamp_of(files);
        let key = Arc::new(read(files, &provider)?);
        let shown = Mutex::new(Shown { key, stamp, looked_at: Instant::now() });
        Ok(Self { files: files.clone(), provider, shown })
    }

    /// What to show now.
    fn current(&self, now: Instant) -> Arc<CertifiedKey> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(shown.looked_at) >= LOOK_EVERY {
            shown.looked_at = now;
            // Before they are read: what is written meanwhile is read the next time.
            let stamp = stamp_of(&self.files);
            if std::mem::replace(&mut shown.stamp, stamp) != stamp {
                match read(&self.files, &self.provider) {
                    Ok(key) => {
                        tracing::info!(file = %self.files.certificate.display(), "the certificate of /wss is a new one");
                        shown.key = Arc::new(key);
                    }
                    Err(error) => tracing::warn!(%error, "the certificate of /wss has changed; the old one is kept"),
                }
            }
        }
        Arc::clone(&shown.key)
    }
}

impl ResolvesServerCert for FileCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Instant::now()))
    }
}

fn stamp_of(files: &CertificateFiles) -> Stamp {
    [&files.certificate, &files.key].map(|file| {
        let metadata = fs::metadata(file).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn read(files: &CertificateFiles, provider: &CryptoProvider) -> Result<CertifiedKey, WebError> {
    let unreadable = |key, file: &Path, error: String| WebError::File { key, file: file.display().to_string(), error };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&files.certificate).and_then(Iterator::collect);
    let chain = chain.map_err(|error| unreadable("tls_certificate", &files.certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable("tls_certificate", &files.certificate, "there is no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unreadable("tls_key", &files.key, error.to_string()))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| WebError::Certificate(error.to_string()))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::default_provider;

    use super::*;

    /// Writes a new certificate with its key; what is to be shown.
    fn renew(files: &CertificateFiles, name: &str) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
        fs::write(&files.key, made.key_pair.serialize_pem()).unwrap();
        made.cert.der().clone()
    }

    #[test]
    fn a_renewed_certificate_is_shown_and_one_that_cannot_be_used_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let files =
            CertificateFiles { certificate: directory.path().join("cert.pem"), key: directory.path().join("key.pem") };
        let first = renew(&files, "a.example");
        let certificate = FileCertificate::new(&files, Arc::new(default_provider())).unwrap();
        let mut now = Instant::now();
        let mut shown = |later: Duration| {
            now += later;
            certificate.current(now).cert[0].clone()
        };
        assert_eq!(shown(LOOK_EVERY), first);
        // Of another length, as the clock of the file system may be slow.
        let second = renew(&files, "a-much-longer-name.example");
        assert_eq!(shown(Duration::ZERO), first, "nobody has looked");
        assert_eq!(shown(LOOK_EVERY), second);
        fs::write(&files.key, "no key").unwrap();
        assert_eq!(shown(LOOK_EVERY), second);
        fs::remove_file(&files.certificate).unwrap();
        assert_eq!(shown(LOOK_EVERY), second);
        let third = renew(&files, "yet-another-name-that-is-longer.example");
        assert_eq!(shown(LOOK_EVERY), third);
    }
}
