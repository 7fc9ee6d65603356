//! What the memory plan says: the table of the start, and errors with the numbers that would work.

use super::{DEFAULT_MAX_NUM_SEQS, MemoryRequest};
use refrain_device::{BLOCK_TOKENS, PoolSizes};

/// One line of the start-up table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryLine {
    /// What the memory is for.
    pub what: String,
    /// Bytes.
    pub bytes: usize,
}

/// Where the memory goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Sizes of the pools.
    pub pools: PoolSizes,
    /// Sequences that can be running.
    pub max_num_seqs: usize,
    /// Each use of memory; the sum is [`MemoryPlan::total_bytes`].
    pub lines: Vec<MemoryLine>,
    /// Bytes of all lines.
    pub total_bytes: usize,
    /// What was changed from what was asked for or from the defaults, with the reason.
    pub notes: Vec<String>,
}

/// The plan can't be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// A setting makes no sense.
    #[error("{setting}: {message}")]
    Invalid {
        /// The flag.
        setting: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// Not even the model itself fits, or the pools that were asked for don't fit beside it.
    #[error("not enough memory: {0}")]
    TooLittle(String),
    /// One sequence of full length doesn't fit.
    #[error(
        "one sequence of --max-model-len {max_model_len} tokens needs {} of state, but {} are left for it; {}",
        human_bytes(*needed), human_bytes(*available), advice(*largest)
    )]
    SequenceTooLong {
        /// Tokens of the sequence.
        max_model_len: usize,
        /// Bytes of its state.
        needed: usize,
        /// Bytes there are.
        available: usize,
        /// The largest `max_model_len` that fits, 0 when none does.
        largest: usize,
    },
    /// The sequences that were asked for don't fit.
    #[error("{0}")]
    TooManySequences(String),
    /// The KV blocks that were asked for don't fit beside the state of one sequence.
    #[error(
        "--num-gpu-blocks-override: {blocks} blocks don't fit beside the state of one sequence; at most {largest} do"
    )]
    TooManyBlocks {
        /// Blocks that were asked for.
        blocks: usize,
        /// The most that fit.
        largest: usize,
    },
}

fn advice(largest: usize) -> String {
    let more = "raise --gpu-memory-utilization or --kv-cache-memory-bytes";
    match largest {
        0 | 1 => format!("no length fits: {more}"),
        _ => format!("the largest that fits is --max-model-len {largest}; or {more}"),
    }
}

/// Bytes for people: `1.50 GiB`.
pub fn human_bytes(bytes: usize) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if bytes < 1024 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}

pub(super) fn too_little(request: &MemoryRequest) -> MemoryError {
    let footprint = &request.footprint;
    let model = format!(
        "{} ({} weights, {} activations, {} workspace{}{}{})",
        human_bytes(request.fixed()),
        human_bytes(footprint.weights),
        human_bytes(footprint.activations),
        human_bytes(footprint.workspace),
        match footprint.graphs {
            0 => String::new(),
            graphs => format!(", {} for graphs, --graph-memory-budget", human_bytes(graphs)),
        },
        match footprint.code {
            0 => String::new(),
            code => format!(", {} for device code", human_bytes(code)),
        },
        match footprint.held {
            0 => String::new(),
            held => format!(", {} that the driver and others hold already", human_bytes(held)),
        }
    );
    let usable = human_bytes(request.usable_bytes);
    MemoryError::TooLittle(match request.kv_cache_memory_bytes {
        Some(bytes) => {
            let free = request.usable_bytes.saturating_sub(request.fixed());
            format!(
                "the model needs {model} and --kv-cache-memory-bytes asks for {}, but {usable} may be used; at most {} \
                 are left for --kv-cache-memory-bytes",
                human_bytes(bytes),
                human_bytes(free)
            )
        }
        None => format!(
            "the model needs {model}, but --gpu-memory-utilization {} of the {usable} that may be used is {}; {}",
            request.utilization,
            human_bytes(request.budget()),
            if request.fixed() < request.usable_bytes {
                "raise it, or use a device with more memory"
            } else {
                "use a device with more memory (--device)"
            }
        ),
    })
}

/// Which number would fit is not known here: the footprint is that of as many sequences.
pub(super) fn too_many_sequences(request: &MemoryRequest, slots: usize, bytes: usize) -> MemoryError {
    let blocks = match request.num_blocks_override {
        Some(blocks) => format!("--num-gpu-blocks-override {blocks}"),
        None => format!("one sequence of --max-model-len {}", request.max_model_len),
    };
    MemoryError::TooManySequences(format!(
        "--max-num-seqs {slots} needs {} of state slots beside the KV blocks of {blocks}, but together they may have {}",
        human_bytes(slots.saturating_mul(request.footprint.gdn_slot)),
        human_bytes(bytes)
    ))
}

pub(super) fn too_many_blocks(request: &MemoryRequest, blocks: usize, bytes: usize) -> MemoryError {
    let left = bytes.saturating_sub(request.footprint.gdn_slot);
    let largest = left.checked_div(request.footprint.kv_block).unwrap_or(usize::MAX);
    MemoryError::TooManyBlocks { blocks, largest }
}

pub(super) fn reduced(request: &MemoryRequest, slots: usize, bytes: usize) -> String {
    format!(
        "max_num_seqs: {DEFAULT_MAX_NUM_SEQS} (default) -> {slots}, because each sequence has a state of {} and the \
         pools have {}",
        human_bytes(request.footprint.gdn_slot),
        human_bytes(bytes)
    )
}

pub(super) fn plan(request: &MemoryRequest, pools: PoolSizes, notes: Vec<String>) -> MemoryPlan {
    let footprint = &request.footprint;
    let line = |what: String, bytes| MemoryLine { what, bytes };
    let tokens = pools.blocks * BLOCK_TOKENS;
    let full = pools.blocks as f64 / request.blocks_per_sequence() as f64;
    let held = (footprint.held > 0).then(|| line("held already".to_owned(), footprint.held));
    let model = [
        line("weights".to_owned(), footprint.weights),
        line("activations".to_owned(), footprint.activations),
        line("workspace".to_owned(), footprint.workspace),
    ];
    let graphs = (footprint.graphs > 0).then(|| line("graphs, at most".to_owned(), footprint.graphs));
    let code = (footprint.code > 0).then(|| line("device code and driver, at most".to_owned(), footprint.code));
    let states = [
        line(format!("state slots, {} sequences", pools.slots), pools.slots * footprint.gdn_slot),
        line(
            format!("KV blocks, {tokens} tokens, {full:.1} sequences of {}", request.max_model_len),
            pools.blocks * footprint.kv_block,
        ),
    ];
    let lines: Vec<MemoryLine> = held.into_iter().chain(model).chain(graphs).chain(code).chain(states).collect();
    let total_bytes = lines.iter().map(|line| line.bytes).sum();
    MemoryPlan { pools, max_num_seqs: pools.slots, lines, total_bytes, notes }
}
