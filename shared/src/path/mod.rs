//! Candidate addresses and the state machine that probes them.
