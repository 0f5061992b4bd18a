//! `ringlane keygen`: a new private key in a file, and its peer id.

use std::process::ExitCode;

use crate::cli::KeygenArgs;
use crate::hyprspace::keys;

pub(crate) fn run(args: &KeygenArgs) -> anyhow::Result<ExitCode> {
    keys::keygen(&args.private_key_file, args.public_key_file.as_deref())?;
    Ok(ExitCode::SUCCESS)
}
