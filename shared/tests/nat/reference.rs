//! Which paths there can be, by the kinds of the translators alone: slow, and too simple to be wrong.

use ringlane_shared::path::choice::PathClass;

use crate::translator::{Dependence, Network, Ports};

/// What must be, or need not be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The ends get through to each other, by this class of path or a better one.
    Must(PathClass),
    /// It takes luck.
    May,
    Never,
}

/// Of ends in these realms. `is_near`: both have an address in one network besides, and may use it. `is_far_open`: what
/// they have else carries datagrams.
pub fn verdict(network: &Network, realms: [usize; 2], is_near: bool, is_far_open: bool) -> Verdict {
    if is_near || (realms[0] == realms[1] && realms[0] != 0) {
        return Verdict::Must(PathClass::Lan);
    }
    if !is_far_open {
        return Verdict::Never;
    }
    let chains = realms.map(|realm| network.chain(realm));
    // The translator at which both ways meet, if both are behind it.
    let shared = chains[0].iter().find(|translator| chains[1].contains(translator));
    if chains.iter().all(Vec::is_empty) {
        return Verdict::Must(PathClass::DirectV4);
    }
    let kinds =
        chains.each_ref().map(|chain| -> Vec<_> { chain.iter().map(|at| network.translators[at].kind).collect() });
    if let Some(shared) = shared {
        // They know each other's outermost addresses, and one translator has them all; or one of them is in a realm that
        // the other comes through.
        let is_passed = chains[0].contains(&realms[1]) || chains[1].contains(&realms[0]);
        return match is_passed || network.translators[shared].kind.hairpin {
            true => Verdict::May,
            false => Verdict::Never,
        };
    }
    let symmetric = kinds.each_ref().map(|kinds| kinds.iter().filter(|kind| kind.is_symmetric()).count());
    let strict = kinds.each_ref().map(|kinds| kinds.iter().any(|kind| kind.filtering == Dependence::AddressAndPort));
    let must = match symmetric {
        [0, 0] => true,
        [0, count] | [count, 0] => {
            let (cone, other) = if symmetric[0] == 0 { (0, 1) } else { (1, 0) };
            // The cone's filter lets any port of an address in that it has sent to; or the port can be guessed.
            // Those outside of the one that counts must not change what it gives.
            let is_counting = count == 1
                && kinds[other].iter().rposition(|kind| kind.ports != Ports::Preserved).is_some_and(|last| {
                    kinds[other][last].is_symmetric() && kinds[other][last].ports == Ports::Sequential
                });
            !strict[cone] || is_counting
        }
        _ => false,
    };
    if must { Verdict::Must(PathClass::Translated) } else { Verdict::May }
}
