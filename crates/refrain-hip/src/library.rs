//! Which library is HIP: Hygon's DTK calls it `libgalaxyhip.so`, AMD's ROCm `libamdhip64.so`, and neither is always known
//! to the system's loader.

use crate::api::{Graphs, Hip};
use crate::toolkit::{HipOptions, LoadProblem, Loaded, load};
use refrain_device::DeviceError;
use std::path::{Path, PathBuf};

const GALAXY: [&str; 2] = ["libgalaxyhip.so", "libgalaxyhip.so.5"];
const AMD: [&str; 4] = ["libamdhip64.so", "libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5"];
/// Folders with libraries within a toolkit.
const FOLDERS: [&str; 3] = ["hip/lib", "lib", "lib64"];

/// HIP's functions, and where they are from.
pub(crate) struct Found {
    pub(crate) loaded: Loaded,
    pub(crate) hip: Hip,
    /// Those for graphs, or the names of those that are missing.
    pub(crate) graphs: Result<Graphs, Vec<&'static str>>,
}

/// Finds and loads HIP: the library or the folders of the options; DTK's by the system's loader, then in its folders;
/// ROCm's likewise.
///
/// # Errors
/// [`DeviceError::Unavailable`]: what was looked for, what was found, what to do.
pub(crate) fn find(options: &HipOptions) -> Result<Found, DeviceError> {
    let mut problems = Vec::new();
    for candidate in candidates(options) {
        let loaded = match load(&candidate) {
            Ok(loaded) => loaded,
            // Given by the user, so it counts as found.
            Err(LoadProblem::Missing) if options.library.is_some() => {
                problems.push(format!("{}: there is no such file", candidate.display()));
                continue;
            }
            Err(LoadProblem::Missing) => continue,
            Err(LoadProblem::Broken(words)) => {
                problems.push(words);
                continue;
            }
        };
        match Hip::find(&loaded.library) {
            Ok(hip) => return Ok(Found { graphs: Graphs::find(&loaded.library), hip, loaded }),
            Err(missing) => problems.push(format!(
                "{} is not the HIP library that is needed (HIP 5 or later): it lacks {}",
                candidate.display(),
                missing.join(", ")
            )),
        }
    }
    Err(DeviceError::Unavailable { device: "hip", why: explain(options, &problems) })
}

/// What is tried, in order: bare names are for the system's loader, paths are files that exist.
fn candidates(options: &HipOptions) -> Vec<PathBuf> {
    if let Some(library) = &options.library {
        // Without a slash the loader would look for it elsewhere.
        return vec![if library.components().count() == 1 { Path::new(".").join(library) } else { library.clone() }];
    }
    let mut found = Vec::new();
    let files = |folder: &Path, names: &[&str]| -> Vec<PathBuf> {
        names.iter().map(|name| folder.join(name)).filter(|path| path.exists()).collect()
    };
    for folder in &options.library_dirs {
        found.extend(files(folder, &GALAXY));
        found.extend(files(folder, &AMD));
        for below in FOLDERS {
            found.extend(files(&folder.join(below), &GALAXY));
            found.extend(files(&folder.join(below), &AMD));
        }
    }
    found.extend(GALAXY.map(PathBuf::from));
    for toolkit in options.toolkits("dtk") {
        for below in FOLDERS {
            found.extend(files(&toolkit.join(below), &GALAXY));
            found.extend(files(&toolkit.join(below), &AMD));
        }
    }
    found.extend(AMD.map(PathBuf::from));
    for toolkit in options.toolkits("rocm") {
        for below in FOLDERS {
            found.extend(files(&toolkit.join(below), &AMD));
        }
    }
    found
}

fn explain(options: &HipOptions, problems: &[String]) -> String {
    if options.library.is_some() {
        return format!("the HIP library that was given can't be used: {}", problems.join("; "));
    }
    let why = if problems.is_empty() {
        let names = [&GALAXY[..], &AMD[..]].concat().join(", ");
        let root = options.toolkit_root.display();
        let given: String = options.library_dirs.iter().map(|folder| format!("{}, ", folder.display())).collect();
        format!(
            "no HIP library was found: the system's loader knows none of {names}, and none lies in {given}{root}/dtk* or \
             {root}/rocm*"
        )
    } else {
        format!("no HIP library that was found can be used: {}", problems.join("; "))
    };
    why + ". Install the driver and runtime of the card's vendor (AMD's ROCm, Hygon's DTK), or name the folder of its \
           libraries"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(root: &Path) -> HipOptions {
        HipOptions { toolkit_root: root.join("opt"), ..HipOptions::default() }
    }

    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "no library").unwrap();
        path
    }

    #[test]
    fn given_folders_come_first_then_dtk_then_rocm() {
        let root = tempfile::tempdir().unwrap();
        let opt = root.path().join("opt");
        let dtk = touch(opt.join("dtk-26.04/hip/lib/libgalaxyhip.so.5"));
        let dtk_amd = touch(opt.join("dtk-26.04/lib/libamdhip64.so"));
        let rocm = touch(opt.join("rocm/lib/libamdhip64.so.6"));
        let given = touch(root.path().join("mine/lib/libamdhip64.so.7"));
        let options = HipOptions { library_dirs: vec![root.path().join("mine")], ..options(root.path()) };
        let name = PathBuf::from;
        let expected = [
            given,
            name("libgalaxyhip.so"),
            name("libgalaxyhip.so.5"),
            dtk,
            dtk_amd,
            name("libamdhip64.so"),
            name("libamdhip64.so.7"),
            name("libamdhip64.so.6"),
            name("libamdhip64.so.5"),
            rocm,
        ];
        assert_eq!(candidates(&options), expected);
    }

    #[test]
    fn a_library_that_is_given_is_the_only_one() {
        let options = HipOptions { library: Some("libx.so".into()), ..HipOptions::default() };
        assert_eq!(candidates(&options), [PathBuf::from("./libx.so")]);
        let why = find(&options).err().unwrap().to_string();
        assert!(why.contains("./libx.so: there is no such file"), "{why}");
        // A library, but another one.
        let math = load(Path::new("libm.so.6")).unwrap();
        // SAFETY: the type of C's `cos`.
        let cos: unsafe extern "C" fn(f64) -> f64 = unsafe { crate::api::symbol(&math.library, "cos") }.unwrap();
        let math = HipOptions { library: crate::toolkit::file_of(cos as *const _), ..HipOptions::default() };
        let why = find(&math).err().unwrap().to_string();
        assert!(why.contains("it lacks hipInit, ") && why.contains("hipModuleLaunchKernel"), "{why}");
    }

    #[test]
    fn nothing_found_says_what_was_looked_for_and_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        let options = HipOptions { library_dirs: vec!["/nowhere/hip".into()], ..options(root.path()) };
        let why = explain(&options, &[]);
        for part in ["libgalaxyhip.so.5", "libamdhip64.so.7", "/nowhere/hip, ", "opt/rocm*", "ROCm", "DTK"] {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn a_broken_library_is_named() {
        let root = tempfile::tempdir().unwrap();
        let broken = touch(root.path().join("opt/dtk/lib/libamdhip64.so"));
        // Only where the machine has no HIP of its own.
        if let Err(error) = find(&options(root.path())) {
            assert!(error.to_string().contains(&broken.display().to_string()), "{error}");
        }
    }
}
