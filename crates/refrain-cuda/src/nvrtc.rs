//! NVRTC: CUDA C++ to device code, in the process.

use crate::bindings::nvrtc::{NvrtcTable, nvrtcProgram};
use crate::library::{self, CudaOptions};
use refrain_device::{CompiledKernel, Compiler, DeviceError, KernelSource};
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// Options of every compilation, beside the architecture and the defines. Products and sums are fused as the default
/// says (`--fmad=true`); fast forms of functions are chosen in the sources, so `--use_fast_math` is not among them.
/// Line numbers are for the profiler and compute-sanitizer and change no code.
const OPTIONS: [&str; 4] = ["--std=c++17", "--ptxas-options=-v", "--generate-line-info", "--no-source-include"];

/// NVIDIA's run-time compiler. It needs no device.
pub struct NvrtcCompiler {
    table: NvrtcTable,
    version: (c_int, c_int),
    path: PathBuf,
    /// Name and size of the file: releases of one version differ in them, and in their code.
    file: String,
}

impl NvrtcCompiler {
    /// Finds and loads NVRTC: in the folders of the options, then through the loader, then in `/usr/local/cuda*`.
    ///
    /// # Errors
    /// [`DeviceError::NoCompiler`]: what was looked for, where, and what to do.
    pub fn load(options: &CudaOptions) -> Result<NvrtcCompiler, DeviceError> {
        Self::load_for(options, None).map_err(no_compiler)
    }

    /// As [`NvrtcCompiler::load`], for a driver that supports CUDA up to this major version.
    pub(crate) fn load_for(options: &CudaOptions, major: Option<u32>) -> Result<NvrtcCompiler, String> {
        let names = library::versioned("libnvrtc.so", major);
        let folders = library::folders(options);
        let found = library::find(&names, &folders).map_err(|why| {
            format!(
                "NVIDIA's run-time compiler {why}; install CUDA's toolkit 12 or 13 (or only nvidia-cuda-nvrtc, by pip) and \
                 put the folder of {} on LD_LIBRARY_PATH",
                names[0]
            )
        })?;
        // SAFETY: NVRTC, which stays loaded: it is never dropped.
        let table = unsafe { NvrtcTable::load(&found.library) }
            .map_err(|symbol| format!("{} has no {symbol}: CUDA 12.0 or later is needed", found.name))?;
        std::mem::forget(found.library);
        let mut version = (0, 0);
        // SAFETY: the numbers are stored before the call returns.
        unsafe { (table.nvrtcVersion)(&raw mut version.0, &raw mut version.1) };
        let path = library::file_of(table.nvrtcVersion as *const c_void).unwrap_or_else(|| found.name.into());
        load_builtins(&path, version)?;
        let file = describe_file(&path);
        Ok(NvrtcCompiler { table, version, path, file })
    }

    /// The file that was loaded.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn failed(&self, source: &KernelSource, arch: &str, log: String) -> DeviceError {
        let compiler = format!("NVRTC {}.{}", self.version.0, self.version.1);
        DeviceError::Compile { kernel: source.name.clone(), arch: arch.to_owned(), compiler, log }
    }

    fn text(&self, code: u32) -> String {
        // SAFETY: the function returns a constant for every code.
        unsafe { CStr::from_ptr((self.table.nvrtcGetErrorString)(code)) }.to_string_lossy().into_owned()
    }
}

impl Compiler for NvrtcCompiler {
    fn describe(&self) -> String {
        format!("NVRTC {}.{} ({}) {}", self.version.0, self.version.1, self.file, OPTIONS.join(" "))
    }

    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError> {
        let failed = |log: String| self.failed(source, arch, log);
        let program = Program::new(&self.table, source).map_err(|why| failed(why.text(self)))?;
        let options = c_strings(&options(source, arch)).map_err(|why| failed(why.text(self)))?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        // SAFETY: a program that was made, and as many strings as said.
        let code =
            unsafe { (self.table.nvrtcCompileProgram)(program.handle, count(pointers.len()), pointers.as_ptr()) };
        let log = program.log();
        if code != 0 {
            // A log says more than the code, but there is none for an option that NVRTC doesn't know.
            return Err(failed(format!("{}\n{log}", self.text(code)).trim_end().to_owned()));
        }
        let image = program.image().map_err(|why| failed(why.text(self)))?;
        Ok(CompiledKernel { image, log })
    }
}

/// Why NVRTC could not even begin, or end.
enum Problem {
    Status(&'static str, u32),
    Zero(String),
}

impl Problem {
    fn text(self, compiler: &NvrtcCompiler) -> String {
        match self {
            Problem::Status(call, code) => format!("{call} gave {code} ({})", compiler.text(code)),
            Problem::Zero(what) => format!("a zero byte in {what:?}"),
        }
    }
}

/// A program of NVRTC's: one source in work.
struct Program<'a> {
    table: &'a NvrtcTable,
    handle: nvrtcProgram,
}

impl<'a> Program<'a> {
    fn new(table: &'a NvrtcTable, source: &KernelSource) -> Result<Program<'a>, Problem> {
        let [text, name] = c_strings(&[source.text.clone(), source.name.clone()])?.try_into().expect("two strings");
        let (names, texts): (Vec<String>, Vec<String>) = source.headers.iter().cloned().unzip();
        let (names, texts) = (c_strings(&names)?, c_strings(&texts)?);
        let names: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let texts: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
        let mut handle = std::ptr::null_mut();
        // SAFETY: all strings end with a zero and live until the call returns, which copies them.
        let code = unsafe {
            (table.nvrtcCreateProgram)(
                &raw mut handle,
                text.as_ptr(),
                name.as_ptr(),
                count(names.len()),
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if code == 0 { Ok(Program { table, handle }) } else { Err(Problem::Status("nvrtcCreateProgram", code)) }
    }

    /// Messages of the compiler and the report of ptxas.
    fn log(&self) -> String {
        let mut bytes = 0;
        // SAFETY: the size includes the zero at the end; as many bytes are stored.
        let log = unsafe {
            if (self.table.nvrtcGetProgramLogSize)(self.handle, &raw mut bytes) != 0 {
                return String::new();
            }
            let mut log = vec![0_u8; bytes];
            (self.table.nvrtcGetProgramLog)(self.handle, log.as_mut_ptr().cast());
            log
        };
        String::from_utf8_lossy(log.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
    }

    /// The device code.
    fn image(&self) -> Result<Vec<u8>, Problem> {
        let mut bytes = 0;
        // SAFETY: as many bytes are stored as the size says.
        unsafe {
            let code = (self.table.nvrtcGetCUBINSize)(self.handle, &raw mut bytes);
            if code != 0 {
                return Err(Problem::Status("nvrtcGetCUBINSize", code));
            }
            let mut image = vec![0_u8; bytes];
            let code = (self.table.nvrtcGetCUBIN)(self.handle, image.as_mut_ptr().cast());
            if code == 0 { Ok(image) } else { Err(Problem::Status("nvrtcGetCUBIN", code)) }
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once.
        unsafe { (self.table.nvrtcDestroyProgram)(&raw mut self.handle) };
    }
}

/// All options of one compilation.
fn options(source: &KernelSource, arch: &str) -> Vec<String> {
    let fixed = OPTIONS.iter().map(|&option| option.to_owned());
    let defines = source.defines.iter().map(|(name, value)| format!("-D{name}={value}"));
    std::iter::once(format!("--gpu-architecture={arch}")).chain(fixed).chain(defines).collect()
}

fn c_strings(texts: &[String]) -> Result<Vec<CString>, Problem> {
    let string = |text: &String| CString::new(text.as_str()).map_err(|_| Problem::Zero(text.clone()));
    texts.iter().map(string).collect()
}

fn count(length: usize) -> c_int {
    c_int::try_from(length).expect("fewer than 2^31 strings")
}

/// `libnvrtc.so.12.8.93 of 104883408 bytes`: the name behind all links, without the folder, which may be moved.
fn describe_file(path: &Path) -> String {
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let bytes = real.metadata().map_or(0, |found| found.len());
    format!("{} of {bytes} bytes", real.file_name().unwrap_or_default().to_string_lossy())
}

/// Loads the library of NVRTC's built-in functions, which NVRTC itself asks the loader for by name: beside NVRTC it is
/// usually in no place where the loader looks.
fn load_builtins(nvrtc: &Path, (major, minor): (c_int, c_int)) -> Result<(), String> {
    let name = format!("libnvrtc-builtins.so.{major}.{minor}");
    let real = nvrtc.canonicalize().unwrap_or_else(|_| nvrtc.to_owned());
    let beside = [nvrtc, real.as_path()].map(|path| path.parent().unwrap_or(Path::new("")).to_owned());
    let path = beside.iter().map(|folder| folder.join(&name)).find(|path| path.exists());
    let loaded = match &path {
        Some(path) => library::load(path.as_os_str()),
        None => library::load(OsStr::new(&name)),
    };
    // Stays loaded until the process ends.
    loaded.map(std::mem::forget).map_err(|why| {
        format!(
            "{} works only with {name}, which belongs into the same folder and can't be loaded: {why}",
            nvrtc.display()
        )
    })
}

pub(crate) fn no_compiler(why: String) -> DeviceError {
    DeviceError::NoCompiler { compiler: "NVRTC", why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_the_architecture_and_the_defines() {
        let source = KernelSource {
            name: "add.cu".to_owned(),
            text: String::new(),
            headers: Vec::new(),
            defines: vec![("WIDTH".to_owned(), "2560".to_owned()), ("TYPE".to_owned(), "bf16".to_owned())],
        };
        let options = options(&source, "sm_90a");
        assert_eq!(options[0], "--gpu-architecture=sm_90a");
        assert_eq!(options[options.len() - 2..], ["-DWIDTH=2560", "-DTYPE=bf16"]);
        assert!(options.contains(&"--ptxas-options=-v".to_owned()));
        assert!(!options.iter().any(|option| option.contains("fast_math")));
    }

    #[test]
    fn a_zero_byte_is_refused() {
        assert!(matches!(c_strings(&["a\0b".to_owned()]), Err(Problem::Zero(what)) if what == "a\0b"));
    }

    #[test]
    fn releases_of_one_version_are_told_apart_wherever_they_lie() {
        let [one, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let described = |folder: &Path, name: &str, bytes: &str| {
            std::fs::write(folder.join(name), bytes).unwrap();
            let link = folder.join(format!("{name}-link"));
            std::os::unix::fs::symlink(folder.join(name), &link).unwrap();
            describe_file(&link)
        };
        let first = described(one.path(), "libnvrtc.so.12.8.61", "code");
        assert_eq!(first, "libnvrtc.so.12.8.61 of 4 bytes");
        assert_eq!(first, described(other.path(), "libnvrtc.so.12.8.61", "edoc"));
        assert_ne!(first, described(other.path(), "libnvrtc.so.12.8.93", "code"));
        std::fs::remove_file(other.path().join("libnvrtc.so.12.8.61-link")).unwrap();
        assert_ne!(first, described(other.path(), "libnvrtc.so.12.8.61", "longer"));
    }

    #[test]
    fn missing_built_ins_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let why = load_builtins(&folder.path().join("libnvrtc.so.99"), (99, 7)).unwrap_err();
        assert!(why.contains("libnvrtc-builtins.so.99.7"), "{why}");
    }
}
