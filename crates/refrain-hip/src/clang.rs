//! Any clang that knows AMD GPUs, as a compiler: Debian's, AMD's or Hygon's. It needs no device, no HIP headers and no
//! device libraries, so it makes the packs and runs in CI.

use crate::compile::{OPTIONS, compiled, defines, no_compiler};
use crate::toolkit::HipOptions;
use refrain_device::{CompiledKernel, Compiler, DeviceError, KernelSource};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The oldest clang that compiles the dialect.
const OLDEST: u32 = 15;
/// The one that is tested comes first, then older ones down to the oldest, then newer ones.
const NAMES: [&str; 9] =
    ["clang-19", "clang-18", "clang-17", "clang-16", "clang-15", "clang-20", "clang-21", "clang-22", "clang"];
/// Where toolkits have theirs.
const IN_TOOLKITS: [&str; 3] = ["llvm/bin/clang", "dcc/bin/clang", "bin/clang"];

/// Only the device's half, as a bare code object, with nothing of HIP's; in the form (version 4) that all of ROCm since
/// 4.5 and DTK load; the same bytes wherever it is compiled.
const DEVICE_ONLY: [&str; 8] = [
    "-x",
    "hip",
    "--cuda-device-only",
    "--no-gpu-bundle-output",
    "-nogpuinc",
    "-nogpulib",
    "-mcode-object-version=4",
    "-fuse-cuid=none",
];

/// A clang.
#[derive(Clone, Debug)]
pub struct ClangCompiler {
    program: PathBuf,
    version: String,
}

impl ClangCompiler {
    /// Uses this clang.
    ///
    /// # Errors
    /// [`DeviceError::NoCompiler`] when it can't be started, is too old, or has no AMD GPUs.
    pub fn new(program: &Path) -> Result<ClangCompiler, DeviceError> {
        check(program).map_err(no_compiler)
    }

    /// The first clang that can be used: by name as the system finds programs, then in the folders of the options, then in
    /// the toolkits of AMD and Hygon.
    ///
    /// # Errors
    /// [`DeviceError::NoCompiler`]: what was looked for, and why what was found can't be used.
    pub fn find(options: &HipOptions) -> Result<ClangCompiler, DeviceError> {
        let toolkits = ["rocm", "dtk"].into_iter().flat_map(|prefix| options.toolkits(prefix));
        let folders: Vec<PathBuf> = options.library_dirs.iter().cloned().chain(toolkits).collect();
        let in_folders = folders.iter().flat_map(|folder| IN_TOOLKITS.map(|below| folder.join(below)));
        let mut problems = Vec::new();
        for program in NAMES.iter().map(PathBuf::from).chain(in_folders.filter(|program| program.exists())) {
            match check(&program) {
                Ok(compiler) => return Ok(compiler),
                Err(problem) => problems.push(problem),
            }
        }
        problems.retain(|problem| !problem.contains("No such file"));
        let found = if problems.is_empty() { String::new() } else { format!(" ({})", problems.join("; ")) };
        let root = options.toolkit_root.display();
        Err(no_compiler(format!(
            "no clang from {OLDEST} on that knows AMD GPUs was found by name, nor in {root}/rocm* or {root}/dtk*{found}; \
             install clang and lld (Debian and Ubuntu: clang-19 and lld-19)"
        )))
    }
}

/// Asks a clang what it is.
fn check(program: &Path) -> Result<ClangCompiler, String> {
    let ask = |question: &str| -> Result<String, String> {
        let output = Command::new(program).arg(question).output();
        let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let text = ask("--version")?;
    let line = text.lines().next().unwrap_or_default().trim();
    let major = major(line).ok_or_else(|| format!("{}: no clang, it says {line:?}", program.display()))?;
    if major < OLDEST {
        return Err(format!("{}: {line} is older than {OLDEST}", program.display()));
    }
    if !ask("--print-targets")?.contains("amdgcn") {
        return Err(format!("{}: {line} was built without AMD GPUs", program.display()));
    }
    Ok(ClangCompiler { program: program.to_owned(), version: line.to_owned() })
}

/// 19 of `Debian clang version 19.1.7 (3)`.
fn major(line: &str) -> Option<u32> {
    let version = line.split_once("clang version ")?.1;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

impl Compiler for ClangCompiler {
    fn describe(&self) -> String {
        format!("{} {} {}", self.version, DEVICE_ONLY.join(" "), OPTIONS.join(" "))
    }

    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError> {
        let failed = |log: String| DeviceError::Compile {
            kernel: source.name.clone(),
            arch: arch.to_owned(),
            compiler: self.version.clone(),
            log,
        };
        let folder = tempfile::tempdir().map_err(|error| failed(format!("no folder for its files: {error}")))?;
        let run = || -> io::Result<(Output, Option<Vec<u8>>)> {
            let main = write(folder.path(), &source.name, &source.text)?;
            for (name, text) in &source.headers {
                write(folder.path(), name, text)?;
            }
            let image = folder.path().join("image.co");
            // Relative names, so that messages name the file as the caller does.
            let output = Command::new(&self.program)
                .current_dir(folder.path())
                .args(DEVICE_ONLY)
                .arg(format!("--offload-arch={arch}"))
                .args(OPTIONS)
                .args(["-I", "."])
                .args(defines(source))
                .arg("-o")
                .arg(&image)
                .arg("--")
                .arg(main)
                .output()?;
            let image = if output.status.success() { Some(fs::read(&image)?) } else { None };
            Ok((output, image))
        };
        let (output, image) = run().map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        match image {
            Some(image) => Ok(compiled(image, &messages)),
            None if messages.trim().is_empty() => Err(failed(output.status.to_string())),
            None => Err(failed(messages)),
        }
    }
}

/// Writes a file below a folder; its name as it is given back.
fn write<'a>(folder: &Path, name: &'a str, text: &str) -> io::Result<&'a Path> {
    let relative = Path::new(name);
    if !relative.components().all(|part| matches!(part, std::path::Component::Normal(_))) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is no name of a source file")));
    }
    let path = folder.join(relative);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, text)?;
    Ok(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_every_vendor_s_line() {
        assert_eq!(major("Debian clang version 19.1.7 (3~deb12u1)"), Some(19));
        assert_eq!(major("clang version 17.0.0git (ssh://host/path 1234)"), Some(17));
        assert_eq!(major("AMD clang version 15.0.0 (https://github.com/RadeonOpenCompute/llvm-project)"), Some(15));
        assert_eq!(major("gcc (Debian 12.2.0) 12.2.0"), None);
    }

    #[test]
    fn what_can_not_be_used_says_why() {
        let why = |program: &str| ClangCompiler::new(Path::new(program)).unwrap_err().to_string();
        assert!(why("/nowhere/clang").contains("/nowhere/clang: No such file"), "{}", why("/nowhere/clang"));
        assert!(why("true").contains("true: no clang"), "{}", why("true"));
    }

    #[test]
    fn files_stay_within_their_folder() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write(folder.path(), "../escaped.h", "").is_err());
        assert!(write(folder.path(), "/escaped.h", "").is_err());
        assert_eq!(write(folder.path(), "sub/kept.h", "x").unwrap(), Path::new("sub/kept.h"));
        assert_eq!(fs::read_to_string(folder.path().join("sub/kept.h")).unwrap(), "x");
    }
}
