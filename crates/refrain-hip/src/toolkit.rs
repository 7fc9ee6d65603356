//! Where AMD's and Hygon's toolkits lie, and how their libraries are found and loaded.

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use std::ffi::{CStr, c_void};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// How the HIP device and its tools are looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HipOptions {
    /// The HIP library itself; no other is tried then.
    pub library: Option<PathBuf>,
    /// Folders with libraries, or of toolkits (`lib`, `hip/lib`, `llvm/bin` in them are looked into too), before those
    /// that the system knows.
    pub library_dirs: Vec<PathBuf>,
    /// What code is compiled for, such as `gfx906`, where the driver doesn't tell or tells wrong.
    pub arch: Option<String>,
    /// Where toolkits are installed: DTK as `dtk*`, ROCm as `rocm*`.
    pub toolkit_root: PathBuf,
}

impl Default for HipOptions {
    /// Toolkits in `/opt`, nothing given.
    fn default() -> HipOptions {
        HipOptions { library: None, library_dirs: Vec::new(), arch: None, toolkit_root: PathBuf::from("/opt") }
    }
}

impl HipOptions {
    /// Toolkits whose folders begin so; the plain name (a link to the preferred one) first, then newer ones first.
    pub(crate) fn toolkits(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.toolkit_root).into_iter().flatten().flatten();
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
        let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(named).collect();
        found.sort_by_key(|path| std::cmp::Reverse(version(path)));
        found
    }
}

/// The numbers in a folder's name: 6, 3 and 1 of `rocm-6.3.1`. No number counts as newest.
fn version(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbers: Vec<u32> = name.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    if numbers.is_empty() { vec![u32::MAX] } else { numbers }
}

/// A loaded library. It stays loaded until the process ends: the runtimes have threads of their own.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) library: ManuallyDrop<Library>,
    /// The name or path by which it was loaded.
    pub(crate) name: String,
}

/// Why a library can't be loaded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LoadProblem {
    /// There is none of this name.
    Missing,
    /// There is one, but it can't be loaded; the loader's words.
    Broken(String),
}

/// Loads a library by name (as the system's loader finds it) or by path.
pub(crate) fn load(name: &Path) -> Result<Loaded, LoadProblem> {
    // SAFETY: vendors' runtimes may be initialised on any thread, and are never unloaded.
    match unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_LOCAL) } {
        Ok(library) => Ok(Loaded { library: ManuallyDrop::new(library), name: name.display().to_string() }),
        Err(error) => {
            // The loader's own words are in the source.
            let words = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            // The same words about another file mean that a dependency of this one is missing.
            let missing = words.starts_with(&*name.to_string_lossy()) && words.contains("No such file");
            Err(if missing { LoadProblem::Missing } else { LoadProblem::Broken(words) })
        }
    }
}

/// The file from which a function was loaded.
pub(crate) fn file_of(function: *const c_void) -> Option<PathBuf> {
    // SAFETY: dladdr accepts any address and fills the struct when it knows it; zeroes are a valid value of it.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(function, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(PathBuf::from(CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_toolkits_come_first_and_the_link_to_the_preferred_one_before_them() {
        let root = tempfile::tempdir().unwrap();
        for name in ["rocm-5.7.0", "rocm", "rocm-6.10.1", "rocm-6.3.1", "dtk-26.04", "other"] {
            std::fs::create_dir(root.path().join(name)).unwrap();
        }
        let options = HipOptions { toolkit_root: root.path().to_owned(), ..HipOptions::default() };
        let names = |prefix| -> Vec<String> {
            let found = options.toolkits(prefix);
            found.iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(names("rocm"), ["rocm", "rocm-6.10.1", "rocm-6.3.1", "rocm-5.7.0"]);
        assert_eq!(names("dtk"), ["dtk-26.04"]);
        assert!(names("cuda").is_empty());
    }

    #[test]
    fn a_missing_library_is_told_from_a_broken_one() {
        assert_eq!(load(Path::new("librefrain-nowhere.so")).unwrap_err(), LoadProblem::Missing);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("libbroken.so");
        assert_eq!(load(&path).unwrap_err(), LoadProblem::Missing);
        std::fs::write(&path, "no library").unwrap();
        let LoadProblem::Broken(words) = load(&path).unwrap_err() else { panic!("it is there") };
        assert!(words.contains("too short") || words.contains("invalid ELF header"), "{words}");
    }

    #[test]
    fn the_file_of_a_function_is_found() {
        let loaded = load(Path::new("libm.so.6")).unwrap();
        // SAFETY: the type of C's `cos`.
        let cos: unsafe extern "C" fn(f64) -> f64 = unsafe { crate::api::symbol(&loaded.library, "cos") }.unwrap();
        assert!(file_of(cos as *const c_void).unwrap().ends_with("libm.so.6"));
    }
}
