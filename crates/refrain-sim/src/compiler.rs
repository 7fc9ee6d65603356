//! Compiles kernel files with the system's C++ compiler.

use refrain_device::{CompiledKernel, Compiler, DeviceError, KernelSource};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CANDIDATES: [&str; 3] = ["c++", "g++", "clang++"];

/// Kernels read memory through types of their choice, products are fused only where they say so, and every NaN counts.
const OPTIONS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-asynchronous-unwind-tables",
    "-fno-stack-protector",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-unused-function",
    // A simulated thread's stack has 128 KiB.
    "-Werror=frame-larger-than=65536",
    "-Wno-unknown-warning-option",
    "-Wl,--as-needed",
    "-Wl,-z,defs",
];

pub(crate) struct SimCompiler {
    program: PathBuf,
    version: String,
    machine: &'static [&'static str],
}

impl SimCompiler {
    /// Finds a compiler, and asks it for its version.
    pub(crate) fn find(wanted: Option<&Path>) -> Result<SimCompiler, DeviceError> {
        let candidates = wanted.map_or_else(|| CANDIDATES.map(PathBuf::from).to_vec(), |path| vec![path.to_owned()]);
        let mut tried = Vec::new();
        for program in candidates {
            match first_line(&program) {
                Ok(version) => return Ok(SimCompiler { program, version, machine: machine() }),
                Err(why) => tried.push(format!("{}: {why}", program.display())),
            }
        }
        let why = format!("no C++ compiler ({}); install one, such as g++", tried.join("; "));
        Err(DeviceError::Unavailable { device: "sim", why })
    }

    fn run(&self, source: &KernelSource, wave: &str, folder: &Path) -> io::Result<(Output, PathBuf)> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            std::fs::write(&path, text)
        };
        write(&source.name, &source.text)?;
        for (name, text) in &source.headers {
            write(name, text)?;
        }
        let image = folder.join("kernel-image.so");
        let mut command = Command::new(&self.program);
        command.current_dir(folder).args(OPTIONS).args(self.machine).args(["-DKX_SIM", &format!("-DKX_WAVE={wave}")]);
        command.args(source.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        command.args(["-I.", "-x", "c++"]).arg(&source.name).arg("-o").arg(&image);
        Ok((command.output()?, image))
    }
}

impl Compiler for SimCompiler {
    fn describe(&self) -> String {
        format!("{} {} {}", self.version, OPTIONS.join(" "), self.machine.join(" "))
    }

    fn compile(&self, source: &KernelSource, arch: &str) -> Result<CompiledKernel, DeviceError> {
        let failed = |log: String| DeviceError::Compile {
            kernel: source.name.clone(),
            arch: arch.to_owned(),
            compiler: self.version.clone(),
            log,
        };
        let wave = match arch {
            "sim32" => "32",
            "sim64" => "64",
            _ => return Err(failed(format!("{arch} is no simulated device; those are sim32 and sim64"))),
        };
        let folder = tempfile::Builder::new().prefix("refrain-sim-").tempdir();
        let folder = folder.map_err(|error| failed(format!("no temporary folder can be made: {error}")))?;
        let run = self.run(source, wave, folder.path());
        let (output, image) = run.map_err(|error| failed(format!("{}: {error}", self.program.display())))?;
        let log = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !output.status.success() {
            return Err(failed(format!("{}\n{log}", output.status)));
        }
        let image = std::fs::read(&image).map_err(|error| failed(format!("{}: {error}", image.display())))?;
        Ok(CompiledKernel { image, log })
    }
}

/// Instructions beyond the oldest processors', where this one has them. Results are the same with and without: only
/// `kx_fma` fuses, and it does so everywhere.
fn machine() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2")
        && std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("bmi2")
        && std::arch::is_x86_feature_detected!("f16c")
    {
        return &["-mavx2", "-mfma", "-mbmi2", "-mf16c"];
    }
    &[]
}

fn first_line(program: &Path) -> Result<String, String> {
    let output = Command::new(program).arg("--version").output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if output.status.success() && !line.trim().is_empty() => Ok(line.trim().to_owned()),
        _ => Err(format!("--version gives {} and {text:?}", output.status)),
    }
}
