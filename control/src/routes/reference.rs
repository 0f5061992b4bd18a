//! How the command line names a peer, as Hyprspace's does.

use ringlane_shared::config::PeerSettings;
use ringlane_shared::id::PeerIndex;
use thiserror::Error;

/// Why a text names no peer.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ReferenceError {
    /// No configured peer has this name or id.
    #[error("no such peer: {0:?} is neither a configured peer's name nor the beginning of its id")]
    Unknown(String),
    /// The beginning of more than one id.
    #[error("ambiguous peer prefix \"{prefix}\" matches {matches} peers")]
    Ambiguous {
        /// What was written.
        prefix: String,
        /// How many ids begin with it.
        matches: usize,
    },
}

/// The peer that `@name`, a name, or the beginning of an id stands for. Names are exact, and case counts. A name that
/// is also the beginning of an id is the name.
pub fn find_peer(peers: &[PeerSettings], text: &str) -> Result<PeerIndex, ReferenceError> {
    let index = |position: usize| PeerIndex(position as u16);
    let name = text.strip_prefix('@').unwrap_or(text);
    if !name.is_empty()
        && let Some(position) = peers.iter().position(|peer| peer.name == name)
    {
        return Ok(index(position));
    }
    if text.is_empty() || text.starts_with('@') {
        return Err(ReferenceError::Unknown(text.to_owned()));
    }
    let begins = |(_, peer): &(usize, &PeerSettings)| peer.id.to_base58().starts_with(text);
    let matches: Vec<usize> = peers.iter().enumerate().filter(begins).map(|(position, _)| position).collect();
    match matches.as_slice() {
        [] => Err(ReferenceError::Unknown(text.to_owned())),
        [only] => Ok(index(*only)),
        more => Err(ReferenceError::Ambiguous { prefix: text.to_owned(), matches: more.len() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers() -> Vec<PeerSettings> {
        let ids = [
            ("site-b", "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRN"),
            ("", "12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46"),
            ("12D", "12D3KooW9twh1frMEkJ1ypnsH8bWcPgesfJCYM3MoXnKmEDdtP73"),
        ];
        let peer = |(name, id): (&str, &str)| PeerSettings {
            name: name.to_owned(),
            id: id.parse().unwrap(),
            addresses: Vec::new(),
            routes: Vec::new(),
            carrier: None,
        };
        ids.map(peer).to_vec()
    }

    #[test]
    fn a_peer_is_named_by_its_name_or_the_beginning_of_its_id() {
        let found = |text: &str| find_peer(&peers(), text).map(|index| index.0);
        for (text, position) in [
            ("@site-b", 0),
            ("site-b", 0),
            ("12D3KooWP", 0),
            ("12D3KooWNfMAtF1ZWb2j9MYpFz1ZmRzUAyq1CPYAwGttomNmqY46", 1),
            ("12D", 2),
        ] {
            assert_eq!(found(text), Ok(position), "{text}");
        }
        for text in [
            "",
            "@",
            "@Site-b",
            "Site-b",
            "@12D3KooWP",
            "12D3KooWx",
            "12D3KooWP6VEGDDp6eiCSubLai8A9hoAWuFN9A2A5BysyaSbXtRNx",
        ] {
            assert_eq!(found(text), Err(ReferenceError::Unknown(text.to_owned())));
        }
        let ambiguous = found("12D3KooW").unwrap_err();
        assert_eq!(ambiguous.to_string(), "ambiguous peer prefix \"12D3KooW\" matches 3 peers");
    }
}
