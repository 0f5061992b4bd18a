//! Replays the committed corpus of the fuzz target `kernel`; `shared/tests/corpus.rs` has the others and the rules.
#![allow(missing_docs)]

use std::fs;
use std::path::Path;

#[path = "../../shared/fuzz/src/kernel.rs"]
#[allow(unreachable_pub, reason = "public to the fuzz target")]
mod kernel;

#[test]
fn the_kernel_corpus_is_handled() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fuzz/corpus/kernel");
    let (mut accepted, mut refused) = (0, 0);
    for entry in fs::read_dir(directory).expect("the corpus is committed") {
        let path = entry.expect("the directory can be read").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        let outcome = kernel::kernel(&fs::read(&path).expect("the file can be read"));
        *if outcome { &mut accepted } else { &mut refused } += 1;
        match name.split_once('-') {
            Some(("ok", _)) => assert!(outcome, "{name} is refused"),
            Some(("bad", _)) => assert!(!outcome, "{name} is accepted"),
            _ => {}
        }
    }
    assert!(accepted > 0 && refused > 0);
}
