//! What integration tests share: goldens, checkpoints with random weights, a Python of their own, NVIDIA's compiler. A
//! dev-dependency only.
#![forbid(unsafe_code)]

mod checkpoint;
mod debian;
mod difference;
mod drive;
mod evals;
mod flight;
mod golden;
mod nvrtc;
mod python;
mod ways;

pub use checkpoint::{checkpoint, random_checkpoint};
pub use debian::{clang19, debian_libraries, debian_packages, llvm19};
pub use difference::Difference;
pub use drive::{MAX_SEQUENCES, Part, Prepared, Runner, bits, smallest_graph};
pub use evals::{Eval, tinytales_evals};
pub use flight::{answer_step, answer_tokens};
pub use golden::{Golden, GoldenPrompt, TOP};
pub use nvrtc::nvrtc_dir;
pub use python::python;
pub use ways::{Invariance, check_all_ways};

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Root of the repository.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/refrain-testkit").to_owned()
}

/// The build's target folder, found from where the running program lies: a test at `target/debug/deps/test-...`, or
/// `target/debug/xtask`. The profile's folder is the one with cargo's fingerprints; a program that was taken to another
/// machine has none near it, and lies as an example or a test does, two folders below the target folder.
pub fn target_dir() -> PathBuf {
    target_dir_of(&std::env::current_exe().expect("a running program has a path"))
}

fn target_dir_of(program: &Path) -> PathBuf {
    let profile = program.ancestors().find(|folder| folder.join(".fingerprint").is_dir());
    let target = profile.and_then(Path::parent).or_else(|| program.ancestors().nth(3));
    target.unwrap_or_else(|| panic!("{} lies less than three folders deep", program.display())).to_owned()
}

/// Says past the capture of test output that a test was skipped and why; where `CI` is set nothing may be skipped, so
/// it panics there.
pub fn skip(what: &str, why: &str) {
    let ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    // The macros are captured for passing tests, the stream itself is not.
    let _ = std::io::stderr().write_all(skip_message(what, why, ci).as_bytes());
}

fn skip_message(what: &str, why: &str, ci: bool) -> String {
    assert!(!ci, "{what} can't run, and with CI set nothing is skipped: {why}");
    format!("\nSKIPPED {what}: {why}\n\n")
}

/// Runs `body` while no other test process does so for the same name.
pub(crate) fn locked<T>(name: &str, body: impl FnOnce() -> T) -> T {
    let folder = target_dir().join("test-locks");
    std::fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let path = folder.join(name);
    let lock = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    lock.lock().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    body()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_folder_is_found_with_and_without_fingerprints() {
        let carried = Path::new("/nowhere/target/profile/examples/proof");
        assert_eq!(target_dir_of(carried), Path::new("/nowhere/target"));
        let folder = target_dir().join("testkit-target-dir");
        std::fs::create_dir_all(folder.join("debug/.fingerprint")).unwrap();
        for program in ["debug/xtask", "debug/deps/test", "debug/examples/deeper/proof"] {
            assert_eq!(target_dir_of(&folder.join(program)), folder);
        }
    }

    #[test]
    fn skipping_says_why() {
        assert_eq!(skip_message("x", "no Python", false), "\nSKIPPED x: no Python\n\n");
    }

    #[test]
    #[should_panic(expected = "nothing is skipped: no Python")]
    fn nothing_is_skipped_in_ci() {
        skip_message("x", "no Python", true);
    }
}
