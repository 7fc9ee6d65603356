//! A driver of the tests (`fake/cuda.c`), compiled by the system's C compiler, which Rust needs for linking anyway.

use refrain_testkit::workspace_root;
use std::process::Command;
use tempfile::TempDir;

/// A folder with a `libcuda.so.1`, made with these defines.
pub fn fake_driver(defines: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = workspace_root().join("crates/refrain-cuda/tests/fake/cuda.c");
    let output = Command::new("cc")
        .args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
        .arg(folder.path().join("libcuda.so.1"))
        .args(defines)
        .arg(source)
        .output()
        .expect("a C compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder
}
