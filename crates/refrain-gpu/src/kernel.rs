//! A kernel before it is compiled, and a launch of it whose arguments never change.

use crate::StepCounts;
use bytemuck::{NoUninit, bytes_of};
use refrain_device::DevicePtr;
use refrain_program::{CacheDtype, Dtype, Fp8};
use std::sync::Arc;

/// What to compile: one entry of one source file, with its constants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kernel {
    /// File below `kernels/`; of a generated kernel a name for messages.
    pub source: &'static str,
    /// The text of a generated kernel, whose first line says what it computes.
    pub text: Option<Arc<str>>,
    /// Entry point in it.
    pub entry: &'static str,
    /// Constants by name, sorted.
    pub defines: Vec<(&'static str, String)>,
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, bytes.
    pub shared_bytes: u32,
}

impl Kernel {
    /// A kernel without dynamic shared memory. Every kernel gets its thread count as the constant `THREADS`.
    pub fn new(source: &'static str, entry: &'static str, threads: u32) -> Kernel {
        let defines = vec![("THREADS", threads.to_string())];
        Kernel { source, text: None, entry, defines, threads, shared_bytes: 0 }
    }

    /// A kernel whose text was made just now.
    pub fn generated(text: String, entry: &'static str, threads: u32) -> Kernel {
        Kernel { text: Some(text.into()), ..Kernel::new("generated.cu", entry, threads) }
    }

    /// With one more constant.
    pub fn define(mut self, name: &'static str, value: impl ToString) -> Kernel {
        self.defines.push((name, value.to_string()));
        self.defines.sort();
        self
    }

    /// With an element type as a constant.
    pub fn define_type(self, name: &'static str, dtype: Dtype) -> Kernel {
        self.define(name, dtype_define(dtype))
    }

    /// With a type of states, by the name that kernels have for it.
    pub fn define_cache_type(self, name: &'static str, dtype: CacheDtype) -> Kernel {
        self.define(name, cache_define(dtype))
    }

    /// With dynamic shared memory.
    pub fn shared(mut self, bytes: u32) -> Kernel {
        self.shared_bytes = bytes;
        self
    }
}

/// The name of an element type in kernels.
pub fn dtype_define(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::Bf16 => "bf16",
    }
}

/// The name that kernels have for a type of states.
pub fn cache_define(dtype: CacheDtype) -> &'static str {
    match dtype {
        CacheDtype::Plain(dtype) => dtype_define(dtype),
        CacheDtype::Fp8(Fp8::E4m3) => "e4m3",
        CacheDtype::Fp8(Fp8::E5m2) => "e5m2",
    }
}

/// A number of a step that grids depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Rows of the step.
    Tokens,
    /// Rows whose logits are wanted.
    LogitRows,
    /// Sequences.
    Segments,
    /// Pieces of sequences with more than one token.
    PrefillPieces,
    /// Pieces of a single token: behind those in the list.
    DecodePieces,
    /// All pieces.
    Pieces,
    /// Chunks of the chunked scan.
    Chunks,
    /// Sequences with chunks.
    Scans,
    /// Sequences with tokens for the recurrence.
    Recurrent,
    /// Pieces of a single token, if some of them are for the chunked scan.
    ScannedDecodePieces,
    /// Sequences with tokens for the recurrence, if some of them have more than one token in the step.
    LongRecurrent,
    /// Logit rows of a step in which tokens are chosen.
    Sampled,
    /// The same, if some of them have adjustments.
    Adjusted,
    /// The same, if some of them are drawn.
    Drawn,
    /// The same, if some of them want log-probabilities.
    Logprobs,
    /// The same, if both is so, be it of different rows.
    AdjustedLogprobs,
}

/// Blocks along one axis of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Always so many.
    Fixed(u32),
    /// One for each `per` of the count, rounded up.
    Each {
        /// What is counted.
        count: Count,
        /// How many of them a block takes.
        per: u32,
    },
}

impl Extent {
    /// One block for each.
    pub fn one(count: Count) -> Extent {
        Extent::Each { count, per: 1 }
    }

    /// Blocks in a step; 0 means that there is nothing to launch.
    pub fn blocks(self, counts: &StepCounts) -> u32 {
        match self {
            Extent::Fixed(blocks) => blocks,
            Extent::Each { count, per } => counts.of(count).div_ceil(per),
        }
    }
}

/// A launch whose arguments are the same in every step.
#[derive(Clone, Debug, PartialEq)]
pub struct LaunchSpec {
    /// The kernel.
    pub kernel: Kernel,
    /// Blocks in x, y and z.
    pub grid: [Extent; 3],
    /// Its argument struct.
    pub arguments: Vec<u8>,
}

impl LaunchSpec {
    /// A launch on a grid of one axis.
    pub fn new(kernel: Kernel, x: Extent, arguments: &impl NoUninit) -> LaunchSpec {
        LaunchSpec::on_grid(kernel, [x, Extent::Fixed(1), Extent::Fixed(1)], arguments)
    }

    /// A launch on any grid.
    pub fn on_grid(kernel: Kernel, grid: [Extent; 3], arguments: &impl NoUninit) -> LaunchSpec {
        LaunchSpec { kernel, grid, arguments: bytes_of(arguments).to_vec() }
    }

    /// Blocks in a step; `None` when there is nothing to do.
    pub fn blocks(&self, counts: &StepCounts) -> Option<[u32; 3]> {
        let grid = self.grid.map(|extent| extent.blocks(counts));
        grid.iter().all(|&blocks| blocks > 0).then_some(grid)
    }
}

/// Some columns of an activation in device memory: `[rows, width]` with a row stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First element of the first row.
    pub base: DevicePtr,
    /// Elements between the starts of two rows.
    pub stride: u32,
    /// Elements of a row.
    pub width: u32,
    /// Element type.
    pub dtype: Dtype,
}
