//! The binary by the name `hyprspace`: what needs no running node, as a script types it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with the binary by that name.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().expect("a temporary directory can be made"));
        symlink(env!("CARGO_BIN_EXE_ringlane"), place.0.path().join("hyprspace")).expect("a link can be made");
        place
    }

    /// Exit code, stdout and stderr, run in the directory.
    fn run(&self, line: &str) -> (Option<i32>, String, String) {
        let mut command = Command::new(self.0.path().join("hyprspace"));
        command.args(line.split_whitespace()).current_dir(self.0.path());
        let Output { status, stdout, stderr } = command.output().expect("the binary is built");
        let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
        (status.code(), text(stdout), text(stderr))
    }

    #[track_caller]
    fn succeeds(&self, line: &str) -> (String, String) {
        let (code, stdout, stderr) = self.run(line);
        assert_eq!(code, Some(0), "{line}: {stdout}{stderr}");
        (stdout, stderr)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).expect("the file is there")
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.0.path().join(name)).expect("the file is there").permissions().mode() & 0o777
    }
}

/// The value of a JSON text's key, wherever it stands.
fn value(text: &str, key: &str) -> String {
    let rest = text.split(&format!("\"{key}\": \"")).nth(1).unwrap_or_else(|| panic!("{text}\nlacks {key}"));
    rest.split('"').next().expect("a string ends").to_owned()
}

#[test]
fn usage_goes_to_stdout_and_is_a_failure_unless_it_was_asked_for() {
    let place = Place::new();
    for line in ["", "nosuch", "--version", "-h", "-i gr0 status"] {
        let (code, stdout, stderr) = place.run(line);
        assert_eq!((code, stderr.as_str()), (Some(1), ""), "{line}");
        assert!(stdout.starts_with("USAGE: hyprspace CMD [OPTIONS]\n"), "{line}: {stdout}");
    }
    for (line, error) in [
        ("status extra", "too many arguments"),
        ("route", "Missing argument(s)"),
        ("help", "Missing argument(s)"),
        ("up --config=x", "invalid flag 'config=x'"),
    ] {
        let (code, stdout, stderr) = place.run(line);
        let command = line.split(' ').next().expect("a line has a first word");
        let begin = format!("Error: {error}\n\nUSAGE: hyprspace {command} [OPTIONS]");
        assert_eq!((code, stderr.as_str()), (Some(1), ""), "{line}");
        assert!(stdout.starts_with(&begin), "{line}: {stdout}");
    }
    let (usage, _) = place.succeeds("help r");
    assert!(usage.starts_with("USAGE: hyprspace route [OPTIONS] <Action> [Args...]\n"), "{usage}");
    let (code, stdout, _) = place.run("? nosuch");
    assert_eq!(code, Some(1));
    assert!(stdout.starts_with("ERROR: 'nosuch' is not a valid subcommand\nUSAGE: hyprspace CMD"), "{stdout}");
}

#[test]
fn the_version_begins_as_hyprspaces_and_tells_who_it_is() {
    let (stdout, _) = Place::new().succeeds("version");
    assert_eq!(stdout, format!("hyprspace 0.15.0 (ringlane {})\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn init_writes_for_its_owner_alone_and_keeps_what_it_replaces() {
    let place = Place::new();
    let (first, stderr) = place.succeeds("i --name myhost -c new/hs0.json");
    assert_eq!(stderr, "");
    let id = value(&first, "id");
    assert_eq!(
        first,
        format!(
            "Initialized new config at new/hs0.json\nAdd this entry to your other peers:\n{{\n  \"name\": \"myhost\",\n  \"id\": \"{id}\"\n}}\n"
        )
    );
    let written = place.read("new/hs0.json");
    assert!(written.starts_with("{\n  \"listenAddresses\": [\n    \"/ip4/0.0.0.0/tcp/8001\",\n"), "{written}");
    assert_eq!(place.mode("new/hs0.json"), 0o600);

    fs::set_permissions(place.0.path().join("new/hs0.json"), fs::Permissions::from_mode(0o644)).unwrap();
    let (second, _) = place.succeeds("init -c new/hs0.json");
    assert_ne!(value(&second, "id"), id);
    assert_ne!(value(&place.read("new/hs0.json"), "privateKey"), value(&written, "privateKey"));
    assert_eq!(place.read("new/hs0.json.bak"), written);
    assert_eq!((place.mode("new/hs0.json"), place.mode("new/hs0.json.bak")), (0o600, 0o600));
}

#[test]
fn keygen_writes_a_private_key_and_tells_or_writes_its_peer_id() {
    let place = Place::new();
    let (code, stdout, stderr) = place.run("keygen");
    assert_eq!((code, stdout.as_str()), (Some(1), ""));
    assert_eq!(stderr.get(19..), Some(" --private-key-file is required\n"));

    let (stdout, stderr) = place.succeeds("keygen --private-key-file priv");
    assert_eq!(stderr, "Private key written to priv\n");
    assert!(stdout.starts_with("12D3KooW") && stdout.ends_with('\n'), "{stdout}");
    let key = place.read("priv");
    assert!(key.starts_with("z23jhT") && !key.ends_with('\n'), "its form");
    assert_eq!(place.mode("priv"), 0o600);

    let (stdout, stderr) = place.succeeds("keygen --private-key-file priv --public-key-file pub");
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", "Private key written to priv\nPublic key written to pub\n"));
    assert_ne!(place.read("priv"), key);
    assert!(place.read("pub").starts_with("12D3KooW") && !place.read("pub").ends_with('\n'));
    assert_eq!(place.mode("pub"), 0o644);

    let (code, _, stderr) = place.run("keygen --private-key-file /proc/nope/x");
    assert_eq!(code, Some(1), "{stderr}");
}

#[test]
fn what_cannot_start_says_why_with_a_time_and_ends_with_1() {
    let place = Place::new();
    assert!(!Path::new("/run/ringlane/nodaemon.sock").exists());
    for (line, text) in [
        (
            "status -i nodaemon",
            "[!] Failed to connect to RPC server: dial unix /run/ringlane/nodaemon.sock: connect: no such file or directory",
        ),
        ("up -c /nonexistent.json -i gr9", "/nonexistent.json: cannot be read: No such file or directory"),
        ("up -i an-interface-name-too-long", "cannot be the name of an interface"),
    ] {
        let (code, stdout, stderr) = place.run(line);
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{line}");
        let (time, told) = stderr.split_at(19);
        assert!(
            time.bytes().zip(*b"0000/00/00 00:00:00").all(|(is, like)| is == like || is.is_ascii_digit()),
            "{time}"
        );
        assert!(told.contains(text), "{line}: {told}");
    }
}
