//! The tests of `on_the_kernel.rs` on this engine.

#[path = "on_the_kernel.rs"]
#[allow(clippy::duplicate_mod, reason = "the other engine has them too")]
mod tests;

type UnderTest = crate::sys::ring::Uring;
