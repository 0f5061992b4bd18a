//! What each subcommand does, one file per command.

pub(crate) mod down;
pub(crate) mod peers;
pub(crate) mod route;
pub(crate) mod status;
mod text;
