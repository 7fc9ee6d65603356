//! Reads what ptxas reports about kernels.

use refrain_device::KernelResources;

/// The kernels that a compile log reports on, in its order, with what each needs. `log` is that of
/// [`crate::NvrtcCompiler`], or of `nvcc --ptxas-options=-v`:
///
/// ```text
/// ptxas info    : Compiling entry function 'add' for 'sm_90a'
/// ptxas info    : Function properties for add
///     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 12 registers, used 0 barriers, 1024 bytes smem, 384 bytes cmem[0]
/// ```
///
/// `local_bytes` is the stack frame, where spills lie too.
pub fn kernel_resources(log: &str) -> Vec<(String, KernelResources)> {
    let mut kernels: Vec<(String, KernelResources)> = Vec::new();
    // Functions that were not inlined have properties of their own; only those of the entry count.
    let mut of_entry = false;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            kernels.push((name.to_owned(), KernelResources::default()));
            of_entry = false;
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            of_entry = kernels.last().is_some_and(|(entry, _)| entry == name.trim().trim_matches('\''));
        } else if let Some((_, kernel)) = kernels.last_mut() {
            if line.contains(" registers") && line.contains("Used ") {
                kernel.registers = before(line, " registers");
                kernel.shared_bytes = before(line, " bytes smem");
            } else if of_entry && line.contains("bytes stack frame") {
                let parts = ["bytes stack frame", "bytes spill stores", "bytes spill loads"];
                kernel.local_bytes = parts.iter().map(|what| before(line, &format!(" {what}"))).max().unwrap_or(0);
            }
        }
    }
    kernels
}

/// The number that stands right before `what`; 0 when `what` isn't there.
fn before(line: &str, what: &str) -> u32 {
    let Some(end) = line.find(what) else { return 0 };
    let digits = line[..end].rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'add' for 'sm_90a'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
ptxas info    : Compile time = 3.120 ms
ptxas info    : Compiling entry function 'scan_chunks' for 'sm_90a'
ptxas info    : Function properties for helper
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for scan_chunks
ptxas         .     104 bytes stack frame, 96 bytes spill stores, 112 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 104 bytes cumulative stack size, 49152 bytes smem, 592 bytes cmem[0]
";

    #[test]
    fn every_entry_gets_its_registers_shared_memory_and_spills() {
        let expected = [
            ("add".to_owned(), KernelResources { registers: 12, shared_bytes: 0, local_bytes: 0 }),
            ("scan_chunks".to_owned(), KernelResources { registers: 255, shared_bytes: 49152, local_bytes: 112 }),
        ];
        assert_eq!(kernel_resources(LOG), expected);
    }

    #[test]
    fn a_log_without_a_report_has_no_kernels() {
        assert_eq!(
            kernel_resources("add.cu(3): warning #177-D: variable \"x\" was declared but never referenced\n"),
            []
        );
    }
}
