//! The tests of `tests.rs` on this engine.

#[path = "tests.rs"]
#[allow(clippy::duplicate_mod, reason = "the other engine has them too")]
mod tests;

type UnderTest = crate::sys::ring::Uring;
