//! Asking ourselves by way of the NAT: whether it leads back inside what is sent to its own address (RFC 5780, section 3.4).

use std::net::SocketAddr;
use std::time::Instant;

use super::host::{Host, Question};
use super::message::{Change, TransactionId};
use super::nat::Mapping;
use super::round::{Kind, Round};

impl Host {
    /// Whether nothing else is to be heard of the round under way, if there is one.
    pub(super) fn asks_only_itself(&self) -> bool {
        self.questions.values().all(|left| left.kind == Kind::Hairpin)
    }

    /// Whether it is a question of ours to ourselves that has come to this port. If so, that is known, and the question answered.
    pub(super) fn handle_own(
        &mut self,
        id: TransactionId,
        local_port: u16,
        now: Instant,
        draw: &mut dyn FnMut() -> TransactionId,
    ) -> bool {
        let is_own =
            |question: &Question| question.kind == Kind::Hairpin && self.port(1 - question.worker) == local_port;
        if !self.questions.get(&id).is_some_and(is_own) {
            return false;
        }
        self.questions.remove(&id);
        if let Some(round) = &mut self.round {
            round.hairpins = Some(true);
        }
        self.end_if_done(now, draw);
        true
    }

    /// Has the first two ports ask each other's outside address, once two parties agree in this round what both are: both ports,
    /// as a NAT that hairpins may yet let in only whom a port has sent to. One party alone could make us send anywhere, and
    /// again each time it tells another address; and where each destination has a port of its own, this would tell nothing, and
    /// take one. Where no lane may go, no question goes either.
    pub(super) fn ask_ourselves(&mut self, now: Instant, draw: &mut dyn FnMut() -> TransactionId) {
        if self.view.mapping != Mapping::EndpointIndependent || !self.is_mapping_told() {
            return;
        }
        let (local, policy) = (self.local, &self.policy);
        let is_admitted = |to: &SocketAddr| !policy.pairs(&[local], [*to]).is_empty();
        let Some(round) = self.round.as_mut().filter(|round| round.is_thorough && !round.has_asked_ourselves) else {
            return;
        };
        let agreed = |worker| round.agreed(worker).filter(is_admitted);
        let (Some(first), Some(second)) = (agreed(0), agreed(1)) else { return };
        round.has_asked_ourselves = true;
        for (worker, to) in [(0, second), (1, first)] {
            self.ask(Kind::Hairpin, worker, to, None, Change::default(), now, draw);
        }
    }

    /// What a thorough round has not asked is not known: the NAT may be another.
    pub(super) fn forget_hairpins_unless_asked(&mut self) {
        let is_unasked = |round: &Round| round.is_thorough && !round.has_asked_ourselves && !round.answers.is_empty();
        if self.round.as_ref().is_some_and(is_unasked) {
            self.news.is_changed |= self.view.hairpins.take().is_some();
        }
    }

    fn port(&self, worker: u8) -> u16 {
        self.first_port.saturating_add(worker.into())
    }
}
