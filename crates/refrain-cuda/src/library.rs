//! Finding NVIDIA's libraries at run time.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::ffi::{CStr, OsStr, c_void};
use std::path::{Path, PathBuf};

/// Where CUDA's libraries are looked for before the loader's own places (`LD_LIBRARY_PATH`, the system's cache) and
/// `/usr/local/cuda*`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CudaOptions {
    /// Folders with libraries (a toolkit's `lib64`, a Python package's `nvidia/cu13/lib`), or of toolkits, as `CUDA_HOME`
    /// names them: `lib64`, `lib` and `targets/*/lib` in them are looked into too.
    pub library_dirs: Vec<PathBuf>,
}

/// A loaded library. It stays loaded until the process ends: unloading NVIDIA's libraries is not safe.
pub(crate) struct Found {
    pub(crate) library: Library,
    /// The name or path by which it was found.
    pub(crate) name: String,
}

/// Folders with libraries: those that somebody named, and those in which they usually are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Folders {
    /// Before the loader's own places.
    pub(crate) given: Vec<PathBuf>,
    /// Behind them.
    pub(crate) usual: Vec<PathBuf>,
}

/// Loads the first library that exists: each name in each folder that was given, then through the loader, then in the
/// usual folders.
///
/// # Errors
/// What was looked for and where, and what the loader said about files that exist.
pub(crate) fn find<S: AsRef<str>>(names: &[S], folders: &Folders) -> Result<Found, String> {
    let mut problems = Vec::new();
    let mut try_load = |candidate: &OsStr| match load(candidate) {
        Ok(library) => Some(Found { library, name: candidate.to_string_lossy().into_owned() }),
        Err(problem) => {
            // A library that is nowhere is the usual case; one that is there and can't be loaded has to be told.
            if !problem.contains("No such file") || Path::new(candidate).exists() {
                problems.push(problem);
            }
            None
        }
    };
    let files = |folders: &[PathBuf]| -> Vec<PathBuf> {
        let all = folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name.as_ref())));
        all.filter(|path| path.exists()).collect()
    };
    let by_name = names.iter().map(|name| PathBuf::from(name.as_ref()));
    let candidates = files(&folders.given).into_iter().chain(by_name).chain(files(&folders.usual));
    let found = candidates.into_iter().find_map(|candidate| try_load(candidate.as_os_str()));
    found.ok_or_else(|| {
        let folders = folders.given.iter().chain(&folders.usual).map(|folder| folder.display().to_string());
        let folders: Vec<String> = folders.collect();
        let places = if folders.is_empty() { String::new() } else { format!(", nor in {}", folders.join(", ")) };
        let problems: String = problems.iter().map(|problem| format!("; {problem}")).collect();
        let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
        format!("{} was not found where the system's loader looks{places}{problems}", names.join(" or "))
    })
}

/// Names of a library in the versions that are known here, newest first, and without one; not those of a later CUDA than
/// the driver supports, whose code it would not load.
pub(crate) fn versioned(stem: &'static str, major: Option<u32>) -> Vec<String> {
    let versions = [13, 12].into_iter().filter(|&version| major.is_none_or(|major| version <= major));
    versions.map(|version| format!("{stem}.{version}")).chain([stem.to_owned()]).collect()
}

/// Loads a library by name or path. Its symbols become visible to libraries that are loaded later, which is how NVRTC
/// finds its built-ins.
pub(crate) fn load(name: &OsStr) -> Result<Library, String> {
    // SAFETY: NVIDIA's libraries may be initialised on any thread.
    unsafe { Library::open(Some(name), RTLD_LAZY | RTLD_GLOBAL) }.map_err(|error| {
        // The loader's own words are in the source.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), |source| source.to_string())
    })
}

/// Folders in which a toolkit's libraries may lie: those of the options, and `/usr/local/cuda*`, newest first.
pub(crate) fn folders(options: &CudaOptions) -> Folders {
    let mut toolkits: Vec<PathBuf> = std::fs::read_dir("/usr/local")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cuda")))
        .collect();
    toolkits.sort_by_key(|path| std::cmp::Reverse(version_in(path)));
    let given = options.library_dirs.iter().flat_map(|folder| std::iter::once(folder.clone()).chain(below(folder)));
    Folders { given: given.collect(), usual: toolkits.iter().flat_map(|toolkit| below(toolkit)).collect() }
}

/// The library folders of a toolkit that exist.
fn below(toolkit: &Path) -> Vec<PathBuf> {
    let machine = if cfg!(target_arch = "aarch64") { "sbsa-linux" } else { "x86_64-linux" };
    ["lib64".to_owned(), "lib".to_owned(), format!("targets/{machine}/lib")]
        .iter()
        .map(|name| toolkit.join(name))
        .filter(|path| path.is_dir())
        .collect()
}

/// The numbers in a folder's name: 12 and 8 of `cuda-12.8`; none of `cuda`, the usual link to the preferred one, which
/// counts as newest.
fn version_in(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let numbers: Vec<u32> = name.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
    if numbers.is_empty() { vec![u32::MAX] } else { numbers }
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

    /// C's cosine.
    fn cos(math: &Found) -> *const c_void {
        // SAFETY: its signature.
        let cos = unsafe { *math.library.get::<unsafe extern "C" fn(f64) -> f64>(b"cos\0").unwrap() };
        cos as *const c_void
    }

    fn usual(folder: &Path) -> Folders {
        Folders { usual: vec![folder.to_owned()], ..Folders::default() }
    }

    #[test]
    fn what_is_missing_is_named_with_the_places() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = ["librefrain-nowhere.so.13", "librefrain-nowhere.so.12"];
        let why = find(&wanted, &usual(folder.path())).err().unwrap();
        assert!(why.contains("librefrain-nowhere.so.13 or librefrain-nowhere.so.12 was not found"), "{why}");
        assert!(why.contains(&folder.path().display().to_string()), "{why}");
    }

    #[test]
    fn a_file_that_is_no_library_is_reported_with_the_loaders_words() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("librefrain-broken.so"), "not a library").unwrap();
        let why = find(&["librefrain-broken.so"], &usual(folder.path())).err().unwrap();
        let path = folder.path().join("librefrain-broken.so");
        assert!(why.contains(&path.display().to_string()), "{why}");
        assert!(why.contains("invalid ELF header") || why.contains("too short"), "{why}");
    }

    #[test]
    fn folders_that_are_given_come_before_the_loaders_own_places_and_the_usual_ones_behind_them() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let real = find(&["libm.so.6"], &Folders::default()).unwrap();
        assert_eq!(real.name, "libm.so.6");
        for folder in [&first, &second] {
            std::fs::copy(file_of(cos(&real)).unwrap(), folder.path().join("libm.so.6")).unwrap();
        }
        let wanted = ["librefrain-nowhere.so", "libm.so.6"];
        assert_eq!(find(&wanted, &usual(first.path())).unwrap().name, "libm.so.6");
        let options = CudaOptions { library_dirs: [&second, &first].map(|folder| folder.path().to_owned()).to_vec() };
        let found = find(&wanted, &folders(&options)).unwrap();
        assert_eq!(file_of(cos(&found)).unwrap(), second.path().join("libm.so.6"));
    }

    #[test]
    fn a_toolkit_is_searched_where_its_libraries_lie() {
        let toolkit = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(toolkit.path().join("lib64")).unwrap();
        let options = CudaOptions { library_dirs: vec![toolkit.path().to_owned()] };
        assert_eq!(folders(&options).given, [toolkit.path().to_owned(), toolkit.path().join("lib64")]);
    }

    #[test]
    fn newer_toolkits_come_first_and_the_link_to_the_preferred_one_before_them() {
        let mut names = ["/usr/local/cuda-12.8", "/usr/local/cuda-9.2", "/usr/local/cuda", "/usr/local/cuda-13.0"];
        names.sort_by_key(|name| std::cmp::Reverse(version_in(Path::new(name))));
        assert_eq!(names, ["/usr/local/cuda", "/usr/local/cuda-13.0", "/usr/local/cuda-12.8", "/usr/local/cuda-9.2"]);
    }

    #[test]
    fn no_library_is_newer_than_the_driver() {
        assert_eq!(versioned("libnvrtc.so", None), ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]);
        assert_eq!(versioned("libnvrtc.so", Some(12)), ["libnvrtc.so.12", "libnvrtc.so"]);
    }

    #[test]
    fn the_file_of_a_function_is_found() {
        let found = find(&["libm.so.6"], &Folders::default()).unwrap();
        assert!(file_of(cos(&found)).unwrap().ends_with("libm.so.6"));
    }
}
