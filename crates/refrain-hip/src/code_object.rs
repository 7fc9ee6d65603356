//! What a compiled code object says of its kernels: registers, spills, shared memory. It stands in an ELF note, in
//! MessagePack, as "User Guide for AMDGPU Backend", code object V3 and later, describes it. Reading it needs no device,
//! so packs and budgets are checked on any machine, and a launch is checked against what the kernel takes.

mod elf;
mod message_pack;

use message_pack::Reader;
use refrain_device::KernelResources;

/// What a code object contains.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CodeObject {
    /// What it was compiled for, such as `gfx906` or `gfx906:xnack-`.
    pub target: String,
    /// Its kernels, in the compiler's order.
    pub kernels: Vec<KernelMetadata>,
}

/// What the compiler says of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelMetadata {
    /// Name by which it is found.
    pub name: String,
    /// Vector registers of a thread.
    pub vector_registers: u32,
    /// Accumulation registers of a thread; 0 where there are none.
    pub accumulation_registers: u32,
    /// Scalar registers of a wave.
    pub scalar_registers: u32,
    /// Vector registers that were kept in memory.
    pub vector_spills: u32,
    /// Scalar registers that were kept elsewhere.
    pub scalar_spills: u32,
    /// Static shared memory of a block, bytes.
    pub shared_bytes: u32,
    /// Private memory of a thread, bytes: spills and arrays that could not be kept in registers.
    pub private_bytes: u32,
    /// Bytes of its own arguments, without those that the compiler adds. `None` where the code object doesn't say.
    pub argument_bytes: Option<u32>,
    /// Most threads of a block.
    pub max_threads: u32,
    /// Threads of a wave.
    pub wave: u32,
}

impl From<&KernelMetadata> for KernelResources {
    fn from(kernel: &KernelMetadata) -> KernelResources {
        KernelResources {
            registers: kernel.vector_registers,
            shared_bytes: kernel.shared_bytes,
            local_bytes: kernel.private_bytes,
        }
    }
}

/// Why a code object can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeObjectError {
    /// Not an ELF file for AMD GPUs.
    #[error("not a code object for AMD GPUs: {found}")]
    Other {
        /// What it is instead.
        found: String,
    },
    /// It ends too early, or points outside of itself.
    #[error("a damaged code object: {what} lies outside of its {bytes} bytes")]
    Truncated {
        /// The part that is missing.
        what: &'static str,
        /// Size of the whole.
        bytes: usize,
    },
    /// It has no metadata, or metadata of a form that is not known.
    #[error("the code object's metadata can't be read: {what}")]
    Metadata {
        /// What is wrong.
        what: String,
    },
}

impl CodeObject {
    /// Reads the metadata of a code object.
    ///
    /// # Errors
    /// [`CodeObjectError`] when it is none, or is damaged.
    pub fn read(image: &[u8]) -> Result<CodeObject, CodeObjectError> {
        let mut reader = Reader::new(elf::metadata(image)?);
        let mut object = CodeObject::default();
        for _ in 0..reader.map()? {
            match reader.string()? {
                "amdhsa.target" => object.target = processor(reader.string()?).to_owned(),
                "amdhsa.kernels" => {
                    for _ in 0..reader.array()? {
                        object.kernels.push(kernel(&mut reader)?);
                    }
                }
                _ => reader.skip()?,
            }
        }
        Ok(object)
    }

    /// The kernel of a name.
    pub fn kernel(&self, name: &str) -> Option<&KernelMetadata> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }
}

/// `gfx906:xnack-` of `amdgcn-amd-amdhsa--gfx906:xnack-`.
fn processor(target: &str) -> &str {
    target.rsplit_once("--").map_or(target, |(_, processor)| processor)
}

fn kernel(reader: &mut Reader<'_>) -> Result<KernelMetadata, CodeObjectError> {
    let mut kernel = KernelMetadata::default();
    for _ in 0..reader.map()? {
        match reader.string()? {
            ".name" => kernel.name = reader.string()?.to_owned(),
            ".vgpr_count" => kernel.vector_registers = reader.unsigned()?,
            ".agpr_count" => kernel.accumulation_registers = reader.unsigned()?,
            ".sgpr_count" => kernel.scalar_registers = reader.unsigned()?,
            ".vgpr_spill_count" => kernel.vector_spills = reader.unsigned()?,
            ".sgpr_spill_count" => kernel.scalar_spills = reader.unsigned()?,
            ".group_segment_fixed_size" => kernel.shared_bytes = reader.unsigned()?,
            ".private_segment_fixed_size" => kernel.private_bytes = reader.unsigned()?,
            ".max_flat_workgroup_size" => kernel.max_threads = reader.unsigned()?,
            ".wavefront_size" => kernel.wave = reader.unsigned()?,
            ".args" => {
                let mut end = 0;
                for _ in 0..reader.array()? {
                    end = end.max(argument_end(reader)?);
                }
                kernel.argument_bytes = Some(end);
            }
            _ => reader.skip()?,
        }
    }
    Ok(kernel)
}

/// Where an argument ends in the block of arguments; 0 for one that the compiler added.
fn argument_end(reader: &mut Reader<'_>) -> Result<u32, CodeObjectError> {
    let (mut offset, mut size, mut hidden) = (0_u32, 0_u32, false);
    for _ in 0..reader.map()? {
        match reader.string()? {
            ".offset" => offset = reader.unsigned()?,
            ".size" => size = reader.unsigned()?,
            ".value_kind" => hidden = reader.string()?.starts_with("hidden_"),
            _ => reader.skip()?,
        }
    }
    Ok(if hidden { 0 } else { offset.saturating_add(size) })
}

#[cfg(test)]
mod tests;
