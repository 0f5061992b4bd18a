//! A soak of seconds, with the nodes of this build.
//!
//! It needs root and the node's binary beside ours; without root it is skipped, and says so.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The node is killed, and datagrams to the other one are lost.
const PLAN: &str = r#"{"seed": 1, "sites": 2, "length_ms": 8000, "disturbances": [
    {"at_ms": 1000, "kind": "restart", "sites": "b", "hold_ms": 0, "amount": 0},
    {"at_ms": 4500, "kind": "loss", "sites": "a", "hold_ms": 1000, "amount": 5}
]}"#;

#[test]
fn streams_outlive_a_nodes_death_and_loss() {
    if !rustix::process::geteuid().is_root() {
        assert_eq!(std::env::var_os("RINGLANE_REQUIRE_NETNS").filter(|value| value == "1"), None, "this needs root");
        return eprintln!("skipped: making network namespaces needs root");
    }
    let harness = Path::new(env!("CARGO_BIN_EXE_ringlane-perf"));
    if !harness.with_file_name("ringlane").exists() {
        return eprintln!("skipped: the node is not built; `cargo build` builds it");
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (plan, report) = (directory.path().join("plan.json"), directory.path().join("report.json"));
    fs::write(&plan, PLAN).expect("the plan is written");
    // Of its own, as the same test may run in another checkout.
    let prefix = format!("rl{:x}", std::process::id() % (1 << 24));
    let mut soak = Command::new(harness);
    soak.args(["soak", "--prefix", &prefix, "--replay"]).arg(&plan).arg("--json").arg(&report);
    let output = soak.output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let report = fs::read_to_string(&report).expect("there is a report");
    let report: Value = serde_json::from_str(&report).expect("it is JSON");
    assert_eq!(report["plan"], serde_json::from_str::<Value>(PLAN).expect("the plan is JSON"));
    assert_eq!(report["outcomes"].as_array().map(Vec::len), Some(2), "{said}");
    assert_eq!(report["nodes"]["b"]["starts"], 2, "{said}");
    assert!(report["traffic"]["chunks"].as_u64() > Some(100), "{said}");
}
