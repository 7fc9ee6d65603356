//! What the tests of this crate share.
#![allow(dead_code)] // each test binary uses some of it

pub mod fake;

use refrain_device::KernelSource;
use refrain_testkit::{debian_libraries, debian_packages, target_dir, workspace_root};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

/// A kernel that uses every function of the dialect.
pub const EVERYTHING: &str = include_str!("everything.cu");

/// A source with the headers of the dialect.
pub fn source(name: &str, text: &str, defines: &[(&str, &str)]) -> KernelSource {
    let folder = workspace_root().join("kernels");
    let mut headers: Vec<(String, String)> = fs::read_dir(&folder)
        .expect("the kernels' folder")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|end| end == "h"))
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(path).unwrap()))
        .collect();
    headers.sort();
    let defines = defines.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
    KernelSource { name: name.to_owned(), text: text.to_owned(), headers, defines }
}

/// Debian's HIP 5.2, with what it needs loaded into this process, since the loader would not look where it lies. `None` when
/// it can't be had; why is said.
pub fn debian_hip() -> Option<PathBuf> {
    let root = debian_packages(&["libamdhip64-5", "libhiprtc-builtins5"])?;
    let folder = debian_libraries(&root);
    let hip = folder.join("libamdhip64.so.5");
    let mut waiting: Vec<PathBuf> = fs::read_dir(&folder)
        .expect("the tree's libraries")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.to_string_lossy().contains(".so."))
        .collect();
    // In whatever order their dependencies allow.
    loop {
        let before = waiting.len();
        waiting.retain(|path| {
            // SAFETY: Debian's libraries may be loaded on any thread; they stay loaded.
            match unsafe { libloading::os::unix::Library::open(Some(path), libloading::os::unix::RTLD_NOW) } {
                Ok(library) => {
                    std::mem::forget(library);
                    false
                }
                Err(_) => true,
            }
        });
        if waiting.is_empty() {
            return Some(hip);
        }
        assert!(waiting.len() < before, "these can't be loaded: {waiting:?}");
    }
}

/// A shared object compiled from a C++ file, given with all that it includes besides the dialect, by the system's compiler;
/// made once for each text and each set of options. The tests of the simulated GPU need that compiler too, so it is there.
pub fn shared_object(name: &str, files: &[(&str, &str)], options: &[&str]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (files, options, source(name, "", &[]).headers).hash(&mut hasher);
    let folder = target_dir().join("test-hip");
    fs::create_dir_all(&folder).expect("the target folder can be written");
    let path = folder.join(format!("{name}-{:016x}.so", hasher.finish()));
    if path.exists() {
        return path;
    }
    let sources = tempfile::tempdir_in(&folder).expect("a folder for the sources");
    for (name, text) in files {
        fs::write(sources.path().join(name), text).expect("the source is written");
    }
    // Under another name until it is complete.
    let partial = sources.path().join("image.so");
    let output = Command::new("c++")
        .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-fvisibility=hidden"])
        .args(options)
        .arg("-I")
        .arg(workspace_root().join("kernels"))
        .arg("-o")
        .arg(&partial)
        .args(["-x", "c++"])
        .arg(sources.path().join(files[0].0))
        .output()
        .expect("the tests need a C++ compiler, c++: install g++");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    fs::rename(&partial, &path).expect("a file in the same folder");
    path
}
