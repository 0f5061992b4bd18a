//! Our own services: who asks for them, and what is behind them.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use futures::{AsyncReadExt, AsyncWriteExt};
use ringlane_shared::config::ServiceSettings;
use ringlane_shared::id::PeerIndex;
use ringlane_shared::wire::service::{REQUEST_BYTES, ServiceReply};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::far::{ANSWER_TIMEOUT, Far, connect};
use super::splice::splice;

/// A service of ours, and what became of those who asked for it.
#[derive(Debug)]
pub(super) struct Offer {
    pub(super) settings: ServiceSettings,
    pub(super) open: Cell<u64>,
    pub(super) accepted: Cell<u64>,
    /// The peer may not use it.
    pub(super) not_allowed: Cell<u64>,
    /// What is behind it did not take the connection.
    pub(super) target_failed: Cell<u64>,
}

/// All services of ours. Shared by the streams that ask for them, on one thread.
#[derive(Debug)]
pub(super) struct Offers {
    pub(super) offers: Vec<Rc<Offer>>,
    /// Requests that named none of them.
    pub(super) unknown: Cell<u64>,
    /// Streams that ended, or were silent, before they had named one.
    pub(super) unasked: Cell<u64>,
}

pub(super) fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// A connection that is open, for as long as this lives.
pub(super) struct OpenConnection(Rc<Offer>);

impl OpenConnection {
    pub(super) fn new(offer: &Rc<Offer>) -> Self {
        count(&offer.open);
        count(&offer.accepted);
        Self(Rc::clone(offer))
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

impl Offers {
    pub(super) fn new(services: Vec<ServiceSettings>) -> Self {
        let offer = |settings| {
            Rc::new(Offer {
                settings,
                open: Cell::default(),
                accepted: Cell::default(),
                not_allowed: Cell::default(),
                target_failed: Cell::default(),
            })
        };
        Self { offers: services.into_iter().map(offer).collect(), unknown: Cell::default(), unasked: Cell::default() }
    }

    pub(super) fn find(&self, id: [u8; 2]) -> Option<&Rc<Offer>> {
        self.offers.iter().find(|offer| offer.settings.id == id)
    }
}

/// Serves one stream of a peer to its end.
///
/// Unlike Hyprspace, which says yes and then connects to the target, the target is connected to first: a client learns
/// by the answer that nothing is there.
pub(super) async fn serve(offers: Rc<Offers>, peer: PeerIndex, mut stream: Far) {
    let mut id = [0; REQUEST_BYTES];
    if !matches!(timeout(ANSWER_TIMEOUT, stream.read_exact(&mut id)).await, Ok(Ok(()))) {
        count(&offers.unasked);
        return;
    }
    let Some(offer) = offers.find(id) else {
        count(&offers.unknown);
        return refuse(stream, ServiceReply::Unknown).await;
    };
    let name = &offer.settings.name;
    if !offer.settings.allows(peer) {
        debug!(service = name, peer = peer.0, "the peer may not use the service");
        count(&offer.not_allowed);
        return refuse(stream, ServiceReply::NotAllowed).await;
    }
    let target = match connect_to(offer).await {
        Some(target) => target,
        None => return refuse(stream, ServiceReply::Unknown).await,
    };
    let open = OpenConnection::new(offer);
    if let Err(error) = reply(&mut stream, ServiceReply::Open).await {
        debug!(service = name, peer = peer.0, %error, "the peer did not wait for the answer");
        return;
    }
    if let Err(error) = splice(stream, target).await {
        debug!(service = name, peer = peer.0, %error, "a connection to the service failed");
    }
    drop(open);
}

/// Connects to what is behind a service, and counts when that fails.
pub(super) fn connect_to(offer: &Rc<Offer>) -> impl Future<Output = Option<Far>> + use<> {
    let offer = Rc::clone(offer);
    async move {
        let settings = &offer.settings;
        match connect(&settings.target).await {
            Ok(target) => Some(target),
            Err(error) => {
                // Said once, then only counted: clients decide how often it happens.
                if offer.target_failed.get() == 0 {
                    warn!(service = settings.name, target = %settings.target, %error, "the target does not answer");
                }
                count(&offer.target_failed);
                None
            }
        }
    }
}

async fn reply(stream: &mut Far, reply: ServiceReply) -> std::io::Result<()> {
    let written = async {
        stream.write_all(&[reply.to_byte()]).await?;
        stream.flush().await
    };
    timeout(ANSWER_TIMEOUT, written).await.map_err(std::io::Error::other)?
}

/// Says no, and waits until the peer has read it: a stream dropped earlier is reset, and the answer may be lost.
async fn refuse(mut stream: Far, answer: ServiceReply) {
    let refused = async {
        reply(&mut stream, answer).await?;
        stream.close().await?;
        let mut ignored = [0; 64];
        while stream.read(&mut ignored).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever becomes of it, the stream is over.
    let _ = timeout(ANSWER_TIMEOUT, refused).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::super::far::Target;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_asks_for_nothing_or_half_a_service_is_given_up() {
        for half in [&b""[..], b"\xa3"] {
            let offers = Rc::new(Offers::new(Vec::new()));
            let (ours, mut peer) = UnixStream::pair().unwrap();
            peer.write_all(half).await.unwrap();
            serve(Rc::clone(&offers), PeerIndex(0), Box::new(Target::Unix(ours))).await;
            assert_eq!((offers.unasked.get(), offers.unknown.get()), (1, 0));
            assert_eq!(peer.read(&mut [0; 2]).await.unwrap(), 0, "it is dropped without an answer");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_the_stream_and_does_not_wait_for_ever() {
        let offers = Rc::new(Offers::new(Vec::new()));
        let (ours, mut peer) = UnixStream::pair().unwrap();
        peer.write_all(&[1, 2]).await.unwrap();
        serve(Rc::clone(&offers), PeerIndex(0), Box::new(Target::Unix(ours))).await;
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).await.unwrap();
        assert_eq!((answer.as_slice(), offers.unknown.get()), (&[0xf2][..], 1));
    }
}
