//! Debian packages below the target folder, unpacked but not installed: compilers and libraries that tests need and
//! that nobody should have to install for them.

use crate::python::run;
use crate::{locked, skip, target_dir};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Root folder (with `usr/lib`, ... in it) of an unpacked tree that holds `names` and those of their dependencies that
/// the machine has not installed. It is made at the first call, which needs `apt-get` and a package mirror, and found
/// again by later ones, in every process. `None` when it can't be had: the test that asked is to return, why is said.
pub fn debian_packages(names: &[&str]) -> Option<PathBuf> {
    match tree(names) {
        Ok(root) => Some(root),
        Err(why) => {
            let why = format!("the Debian packages {} can't be had: {why}", names.join(", "));
            skip(std::thread::current().name().unwrap_or("a test"), &why);
            None
        }
    }
}

/// The folder of the unpacked tree that holds its shared libraries: `usr/lib/x86_64-linux-gnu` and the like.
pub fn debian_libraries(root: &Path) -> PathBuf {
    let lib = root.join("usr/lib");
    let entries = fs::read_dir(&lib).into_iter().flatten().flatten();
    let multiarch = entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("-linux-gnu"));
    multiarch.unwrap_or(lib)
}

/// Clang 19 with its linker: able to compile for AMD GPUs with no ROCm. The installed one, or one from Debian's packages
/// as in [`debian_packages`].
pub fn clang19() -> Option<PathBuf> {
    llvm19("clang")
}

/// A tool of LLVM 19 by its plain name, such as `llvm-readelf` or `llvm-objdump`; from where [`clang19`] comes.
pub fn llvm19(tool: &str) -> Option<PathBuf> {
    let installed = |tool: &str| in_path(&format!("{tool}-19"));
    // Clang is of no use without its linker, so installed tools count only all together.
    if let (Some(_), Some(_), Some(tool)) = (installed("clang"), installed("ld.lld"), installed(tool)) {
        return Some(tool);
    }
    let root = debian_packages(&["clang-19", "lld-19", "llvm-19"])?;
    let wrapper = root.join("wrappers").join(tool);
    locked("debian-wrappers", || write_wrapper(&root, tool, &wrapper))
        .unwrap_or_else(|error| panic!("{}: {error}", wrapper.display()));
    Some(wrapper)
}

/// A script that starts a tool of the tree with the tree's libraries. It finds both from where it lies.
fn write_wrapper(root: &Path, tool: &str, wrapper: &Path) -> io::Result<()> {
    let program = Path::new("usr/lib/llvm-19/bin").join(tool);
    if !root.join(&program).exists() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("LLVM 19 has no {tool}")));
    }
    if wrapper.exists() {
        return Ok(());
    }
    let libraries = debian_libraries(root);
    let libraries = libraries.strip_prefix(root).expect("a folder of the tree");
    let script = format!(
        "#!/bin/sh\nroot=\"${{0%/*}}/..\"\n\
         export LD_LIBRARY_PATH=\"$root/{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         exec \"$root/{}\" \"$@\"\n",
        libraries.display(),
        program.display()
    );
    fs::create_dir_all(root.join("wrappers"))?;
    // Under another name until it is complete: an executable that is open for writing can't be started.
    let partial = wrapper.with_extension("partial");
    fs::write(&partial, script)?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, wrapper)
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn tree(names: &[&str]) -> Result<PathBuf, String> {
    let names: BTreeSet<&str> = names.iter().copied().collect();
    let joined = names.iter().copied().collect::<Vec<_>>().join("+");
    let root = target_dir().join("test-debian").join(&joined);
    locked(&format!("debian-{joined}"), || {
        if root.exists() {
            return Ok(root.clone());
        }
        for program in ["apt-get", "dpkg"] {
            in_path(program).ok_or_else(|| format!("this machine has no {program}; install them by hand"))?;
        }
        // Under another name until it is complete.
        let partial = root.with_file_name(format!("{joined}.partial"));
        let _ = fs::remove_dir_all(&partial);
        let downloads = partial.join("downloads");
        fs::create_dir_all(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        // The machine's package lists may be missing or old: then fresh ones, in a folder of our own.
        let lists = target_dir().join("test-debian/lists");
        let unpacked = download(&names, &downloads, &[])
            .or_else(|_| download(&names, &downloads, &fresh_lists(&lists)?))
            .and_then(|()| unpack(&downloads, &partial));
        if unpacked.is_err() {
            let _ = fs::remove_dir_all(&partial);
        }
        unpacked?;
        fs::remove_dir_all(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        fs::rename(&partial, &root).map_err(|error| format!("{}: {error}", root.display()))?;
        Ok(root.clone())
    })
}

/// Downloads packages and their missing dependencies into a folder.
fn download(names: &[String], folder: &Path, options: &[OsString]) -> Result<(), String> {
    // `-s` only says what an installation would do. Packages that are there already it does not name.
    let plan = run(apt_get(options)
        .args(["--simulate", "--assume-yes", "--no-install-recommends", "install"])
        .args(names)
        .current_dir(folder))?;
    let mut wanted: BTreeSet<String> = names.iter().cloned().collect();
    wanted.extend(to_install(&plan));
    run(apt_get(options).arg("download").args(&wanted).current_dir(folder)).map(drop)
}

/// Names of the packages that a simulated installation would install.
fn to_install(plan: &str) -> impl Iterator<Item = String> {
    plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next().map(str::to_owned))
}

/// Fetches package lists into a folder of their own, and gives the options that make `apt-get` use them.
fn fresh_lists(folder: &Path) -> Result<Vec<OsString>, String> {
    for part in ["state", "cache"] {
        fs::create_dir_all(folder.join(part)).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    let option =
        |name: &str, value: &Path| [OsString::from("-o"), OsString::from(format!("{name}={}", value.display()))];
    let options = [
        option("Dir::State", &folder.join("state")),
        option("Dir::State::status", Path::new("/var/lib/dpkg/status")),
        option("Dir::Cache", &folder.join("cache")),
    ]
    .concat();
    locked("debian-lists", || run(apt_get(&options).arg("update")))?;
    Ok(options)
}

fn apt_get(options: &[OsString]) -> Command {
    let mut command = Command::new("apt-get");
    // Its words are read, and no user of its own could write into the target folder.
    command.env("LC_ALL", "C").args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]).args(options);
    command
}

fn unpack(downloads: &Path, root: &Path) -> Result<(), String> {
    let entries = fs::read_dir(downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
    for entry in entries.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "deb")) {
        run(Command::new("dpkg").arg("--extract").arg(entry.path()).arg(root))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clang_comes_with_its_linker_and_its_libraries() {
        let Some(clang) = clang19() else { return };
        let version = run(Command::new(&clang).arg("--version")).unwrap();
        assert!(version.contains("clang version 19."), "{version}");
        let targets = run(Command::new(&clang).arg("--print-targets")).unwrap();
        assert!(targets.contains("amdgcn"), "{targets}");
        let readelf = llvm19("llvm-readelf").expect("where clang is, this is");
        assert!(run(Command::new(readelf).arg("--version")).unwrap().contains("LLVM"));
    }

    #[test]
    fn packages_are_unpacked_once_also_with_lists_of_our_own() {
        let Some(root) = debian_packages(&["libnuma1"]) else { return };
        assert!(debian_libraries(&root).join("libnuma.so.1").exists());
        assert_eq!(debian_packages(&["libnuma1"]), Some(root));
        let folder = target_dir().join("test-debian/own-lists-test");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        let options = match fresh_lists(&target_dir().join("test-debian/lists")) {
            Ok(options) => options,
            Err(why) => return skip("package lists of our own", &why),
        };
        download(&["libnuma1".to_owned()], &folder, &options).unwrap();
        unpack(&folder, &folder.join("root")).unwrap();
        assert!(debian_libraries(&folder.join("root")).join("libnuma.so.1").exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_package_that_does_not_exist_is_named() {
        let why = tree(&["refrain-no-such-package"]).unwrap_err();
        assert!(why.contains("refrain-no-such-package"), "{why}");
    }

    #[test]
    fn only_what_would_be_installed_is_read_from_a_plan() {
        let plan = "Reading state\nInst liba (1 Debian [amd64])\nRemv libb\nConf liba (1)\nInst libc1 [1] (2 Debian)";
        assert_eq!(to_install(plan).collect::<Vec<_>>(), ["liba", "libc1"]);
    }
}
