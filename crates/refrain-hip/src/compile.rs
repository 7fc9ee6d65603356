//! What both compilers share: options, the report, and which of them a device gets.

use crate::clang::ClangCompiler;
use crate::code_object::CodeObject;
use crate::driver::Driver;
use crate::hiprtc::HiprtcCompiler;
use crate::toolkit::HipOptions;
use refrain_device::{CompiledKernel, Compiler, DeviceError, KernelSource};

/// Options of clang, in both its forms. Products and sums may be fused, as on every device; a division may be wrong in its
/// last bits (2.5 units), which saves half of its instructions.
pub(crate) const OPTIONS: [&str; 5] = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=fast",
    "-fno-hip-fp32-correctly-rounded-divide-sqrt",
    // hipRTC 5 compiles in two runs, and gives all options to both.
    "-Wno-unused-command-line-argument",
];

/// `-DNAME=VALUE` for each define of a source.
pub(crate) fn defines(source: &KernelSource) -> impl Iterator<Item = String> {
    source.defines.iter().map(|(name, value)| format!("-D{name}={value}"))
}

/// The image with the compiler's messages and what each kernel needs.
pub(crate) fn compiled(image: Vec<u8>, messages: &str) -> CompiledKernel {
    let mut log = messages.trim().to_owned();
    match CodeObject::read(&image) {
        Ok(object) => {
            for kernel in &object.kernels {
                if !log.is_empty() {
                    log.push('\n');
                }
                log.push_str(&format!(
                    "{} ({}): {} vector and {} scalar registers, {} and {} of them spilled, {} bytes shared, {} bytes private",
                    kernel.name,
                    object.target,
                    kernel.vector_registers,
                    kernel.scalar_registers,
                    kernel.vector_spills,
                    kernel.scalar_spills,
                    kernel.shared_bytes,
                    kernel.private_bytes,
                ));
            }
        }
        Err(error) => log.push_str(&format!("\n{error}")),
    }
    CompiledKernel { image, log }
}

/// The compiler for a device: the vendor's hipRTC, else a clang.
///
/// # Errors
/// Why there is neither.
pub(crate) fn find(driver: &Driver, options: &HipOptions) -> Result<Box<dyn Compiler>, String> {
    match HiprtcCompiler::find(&driver.loaded, &driver.file(), options) {
        Ok(compiler) => Ok(Box::new(compiler)),
        Err(no_hiprtc) => match ClangCompiler::find(options) {
            Ok(compiler) => Ok(Box::new(compiler)),
            Err(DeviceError::NoCompiler { why, .. }) => Err(format!("{no_hiprtc}; {why}")),
            Err(other) => Err(format!("{no_hiprtc}; {other}")),
        },
    }
}

/// The error for a device without a compiler.
pub(crate) fn no_compiler(why: String) -> DeviceError {
    DeviceError::NoCompiler { compiler: "hipRTC or clang", why }
}
