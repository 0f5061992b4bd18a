//! Networks behind peers: who offers to route which, and who of them does.
//!
//! | File | What it is |
//! |---|---|
//! | `book.rs` | [`RouteBook`]: the offers and the choice among them; pure |
//! | `reference.rs` | [`find_peer`]: how the command line names a peer |
//! | `ledger.rs` | what the kernel has been told of the book, and what it is to be told next |
//!
//! The book is the truth. Two things follow it: the kernel's routes, one for each prefix whatever the number of its
//! routers (`runtime/routes.rs` installs them), and the workers' tables ([`crate::coordinator::publisher`]). A kernel
//! route is there before the workers know the prefix, and goes after they have forgotten it.

mod book;
mod ledger;
mod reference;

pub use self::book::{Health, Offer, Origin, RouteBook, RouteError, Router};
pub(crate) use self::ledger::{Ledger, Placement, Step};
pub use self::reference::{ReferenceError, find_peer};
