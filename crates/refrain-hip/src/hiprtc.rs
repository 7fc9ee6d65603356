//! hipRTC as a compiler. HIP 5 has it in the HIP library itself, later versions in a library of its own.

use crate::api::{Handle, Status, table};
use crate::compile::{OPTIONS, compiled, defines, no_compiler};
use crate::library;
use crate::toolkit::{HipOptions, LoadProblem, Loaded, file_of, load};
use refrain_device::{CompiledKernel, Compiler, DeviceError, KernelSource};
use std::ffi::{CStr, CString, NulError, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

table! {
    /// hipRTC's functions, as `hiprtc.h` declares them.
    Hiprtc {
        fn hiprtcVersion(*mut c_int, *mut c_int) -> Status;
        fn hiprtcGetErrorString(Status) -> *const c_char;
        fn hiprtcCreateProgram(
            *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
        ) -> Status;
        fn hiprtcCompileProgram(Handle, c_int, *const *const c_char) -> Status;
        fn hiprtcGetProgramLogSize(Handle, *mut usize) -> Status;
        fn hiprtcGetProgramLog(Handle, *mut c_char) -> Status;
        fn hiprtcGetCodeSize(Handle, *mut usize) -> Status;
        fn hiprtcGetCode(Handle, *mut c_char) -> Status;
        fn hiprtcDestroyProgram(*mut Handle) -> Status;
    }
    optional {}
}

const NAMES: [&str; 4] = ["libhiprtc.so", "libhiprtc.so.7", "libhiprtc.so.6", "libhiprtc.so.5"];

/// hipRTC.
pub struct HiprtcCompiler {
    table: Hiprtc,
    version: String,
}

/// Held by whoever compiles. The compiler behind hipRTC keeps state for the process, and two compilations at once crash in
/// it (HIP 5.2), whichever [`HiprtcCompiler`] they come from.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

impl HiprtcCompiler {
    /// The hipRTC of the HIP library that the options lead to. Needs no device.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] when there is no HIP library, [`DeviceError::NoCompiler`] when there is no hipRTC.
    pub fn load(options: &HipOptions) -> Result<HiprtcCompiler, DeviceError> {
        let found = library::find(options)?;
        let file = file_of(found.hip.hipInit as *const c_void).unwrap_or_default();
        HiprtcCompiler::find(&found.loaded, &file, options).map_err(no_compiler)
    }

    /// Looks in the HIP library itself, then beside it, then where the system and the options say.
    ///
    /// # Errors
    /// What was looked for, and why what was found can't be used.
    pub(crate) fn find(hip: &Loaded, hip_file: &Path, options: &HipOptions) -> Result<HiprtcCompiler, String> {
        if let Ok(table) = Hiprtc::find(&hip.library) {
            return HiprtcCompiler::new(table);
        }
        let beside = hip_file.parent().into_iter().map(Path::to_owned);
        let folders = beside.chain(options.library_dirs.iter().flat_map(|folder| [folder.clone(), folder.join("lib")]));
        let files = folders.flat_map(|folder| NAMES.map(|name| folder.join(name))).filter(|path| path.exists());
        let mut problems = Vec::new();
        for candidate in files.chain(NAMES.map(PathBuf::from)) {
            match load(&candidate) {
                // Its table is copied out of it, and it stays loaded.
                Ok(loaded) => match Hiprtc::find(&loaded.library) {
                    Ok(table) => return HiprtcCompiler::new(table),
                    Err(missing) => problems.push(format!("{} lacks {}", candidate.display(), missing.join(", "))),
                },
                Err(LoadProblem::Missing) => {}
                Err(LoadProblem::Broken(words)) => problems.push(words),
            }
        }
        let found = if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) };
        Err(format!(
            "hipRTC is neither in {} nor a {} beside it or known to the system's loader{found}",
            hip_file.display(),
            NAMES[0]
        ))
    }

    fn new(table: Hiprtc) -> Result<HiprtcCompiler, String> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the numbers are stored before the call returns.
        let code = unsafe { (table.hiprtcVersion)(&raw mut major, &raw mut minor) };
        let file = file_of(table.hiprtcVersion as *const c_void).unwrap_or_default();
        if code != 0 {
            return Err(format!("{}: hiprtcVersion failed: {}", file.display(), words(&table, code)));
        }
        // The same number stands for several compilers; the version of HIP, which caches are keyed by too, tells them apart.
        let version = format!("hipRTC {major}.{minor}");
        Ok(HiprtcCompiler { table, version })
    }
}

impl Compiler for HiprtcCompiler {
    fn describe(&self) -> String {
        format!("{} {}", self.version, OPTIONS.join(" "))
    }

    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError> {
        let failed = |log: String| DeviceError::Compile {
            kernel: source.name.clone(),
            arch: arch.to_owned(),
            compiler: self.version.clone(),
            log,
        };
        let texts =
            Texts::new(source, arch).map_err(|_| failed("a zero byte in the source or the options".to_owned()))?;
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let program = Program::new(&self.table, &texts).map_err(failed)?;
        let options = pointers(&texts.options);
        // SAFETY: a program that was just created, and as many texts as are counted.
        let code = unsafe { (self.table.hiprtcCompileProgram)(program.handle, count(&options), options.as_ptr()) };
        let log = program.log();
        if code != 0 {
            let code = words(&self.table, code);
            return Err(failed(if log.trim().is_empty() { code } else { format!("{code}\n{log}") }));
        }
        let image = program.code().map_err(failed)?;
        Ok(compiled(image, &log))
    }
}

/// All texts of one compilation, ended by zeros.
struct Texts {
    name: CString,
    text: CString,
    header_names: Vec<CString>,
    header_texts: Vec<CString>,
    options: Vec<CString>,
}

impl Texts {
    fn new(source: &KernelSource, arch: &str) -> Result<Texts, NulError> {
        let all = |texts: Vec<String>| texts.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let headers = &source.headers;
        let mut options = vec![format!("--offload-arch={arch}")];
        options.extend(OPTIONS.map(str::to_owned));
        options.extend(defines(source));
        Ok(Texts {
            name: CString::new(source.name.as_str())?,
            text: CString::new(source.text.as_str())?,
            header_names: all(headers.iter().map(|(name, _)| name.clone()).collect())?,
            header_texts: all(headers.iter().map(|(_, text)| text.clone()).collect())?,
            options: all(options)?,
        })
    }
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

fn count(pointers: &[*const c_char]) -> c_int {
    c_int::try_from(pointers.len()).unwrap_or(c_int::MAX)
}

fn words(table: &Hiprtc, code: Status) -> String {
    // SAFETY: hipRTC answers any code with a static text, or null.
    let text = unsafe { (table.hiprtcGetErrorString)(code) };
    if text.is_null() {
        return format!("code {code}");
    }
    // SAFETY: not null, so it ends with a zero and is never freed.
    format!("{} (code {code})", unsafe { CStr::from_ptr(text) }.to_string_lossy())
}

/// A program, destroyed in the end.
struct Program<'a> {
    table: &'a Hiprtc,
    handle: Handle,
}

impl<'a> Program<'a> {
    fn new(table: &'a Hiprtc, texts: &Texts) -> Result<Program<'a>, String> {
        let (names, contents) = (pointers(&texts.header_names), pointers(&texts.header_texts));
        let mut handle = null_mut();
        // SAFETY: texts that end with zeros, as many as are counted; the handle is stored before the call returns.
        let code = unsafe {
            let (text, name) = (texts.text.as_ptr(), texts.name.as_ptr());
            (table.hiprtcCreateProgram)(&raw mut handle, text, name, count(&names), contents.as_ptr(), names.as_ptr())
        };
        if code == 0 { Ok(Program { table, handle }) } else { Err(words(table, code)) }
    }

    /// What the compiler said.
    fn log(&self) -> String {
        let mut length = 0;
        // SAFETY: a program that is alive; the buffer has the length that hipRTC asks for.
        unsafe {
            if (self.table.hiprtcGetProgramLogSize)(self.handle, &raw mut length) != 0 || length == 0 {
                return String::new();
            }
            let mut log = vec![0_u8; length];
            if (self.table.hiprtcGetProgramLog)(self.handle, log.as_mut_ptr().cast()) != 0 {
                return String::new();
            }
            String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()
        }
    }

    fn code(&self) -> Result<Vec<u8>, String> {
        let mut length = 0;
        // SAFETY: as in `log`, after a compilation that succeeded.
        unsafe {
            match (self.table.hiprtcGetCodeSize)(self.handle, &raw mut length) {
                0 => {}
                code => return Err(words(self.table, code)),
            }
            let mut image = vec![0_u8; length];
            match (self.table.hiprtcGetCode)(self.handle, image.as_mut_ptr().cast()) {
                0 => Ok(image),
                code => Err(words(self.table, code)),
            }
        }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once.
        unsafe { (self.table.hiprtcDestroyProgram)(&raw mut self.handle) };
    }
}
