//! How long sequences can be, how many can run, and where the memory goes: flags, model and machine put together.

use refrain_device::{Footprint, StepLimits};
use refrain_engine::{
    DEFAULT_MAX_NUM_SEQS, MemoryError, MemoryPlan, MemoryRequest, largest_model_len, plan_memory, step_limits,
};

use super::LoadError;
use crate::cli::Origin;

/// Tokens in one step when nobody says otherwise.
pub const DEFAULT_MAX_NUM_BATCHED_TOKENS: usize = 2048;

/// Tokens that a step must have room for beside one for each sequence: one chunk of a prompt.
const ROOM: usize = refrain_device::SCAN_CHUNK;

/// What the plan is made from. `None` is what nobody said.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInputs {
    /// Context length of the model.
    pub model_max_len: usize,
    /// `--max-model-len`; `None` is `auto`.
    pub max_model_len: Option<usize>,
    /// `--max-num-seqs`.
    pub max_num_seqs: Option<usize>,
    /// `--max-num-batched-tokens`.
    pub max_num_batched_tokens: Option<usize>,
    /// Whether steps have twice as many tokens when nobody says how many.
    pub throughput: bool,
    /// Bytes that this process may use.
    pub usable_bytes: usize,
    /// `--gpu-memory-utilization`.
    pub utilization: f64,
    /// `--kv-cache-memory-bytes`.
    pub kv_cache_memory_bytes: Option<usize>,
    /// `--num-gpu-blocks-override`.
    pub num_blocks_override: Option<usize>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Limits of a step, with which the backend is loaded.
    pub limits: StepLimits,
    /// Where the memory goes.
    pub memory: MemoryPlan,
    /// Where the context length came from.
    pub max_model_len_origin: Origin,
    /// Where the number of sequences came from.
    pub max_num_seqs_origin: Origin,
    /// Where the number of tokens in a step came from.
    pub max_num_batched_tokens_origin: Origin,
}

/// Plans a start. `footprint` says what the backend needs for steps within some limits.
///
/// # Errors
/// [`LoadError`] naming the flag whose value can't be had, and what can.
pub fn plan(inputs: &PlanInputs, footprint: impl Fn(&StepLimits) -> Footprint) -> Result<Planned, LoadError> {
    attempt(inputs, &footprint).map_err(|error| match error {
        LoadError::Memory { error, .. } if !matches!(error, MemoryError::Invalid { .. }) => {
            let fits = what_fits(inputs, &footprint);
            LoadError::Memory { error, fits }
        }
        error => error,
    })
}

/// What memory is enough for where it isn't for all that was asked: one flag at a time, with its largest value.
fn what_fits(inputs: &PlanInputs, footprint: &impl Fn(&StepLimits) -> Footprint) -> Vec<String> {
    let Ok((seqs, batched)) = step_size(inputs) else { return Vec::new() };
    let graphs = footprint(&step_limits(1, ROOM + 1, 2)).graphs;
    let with_seqs = largest(1, seqs.value, |seqs| {
        attempt(&PlanInputs { max_num_seqs: Some(seqs), ..inputs.clone() }, footprint).is_ok()
    });
    let with_tokens = largest(seqs.value + ROOM, batched.value, |tokens| {
        let inputs = PlanInputs { max_num_batched_tokens: Some(tokens), throughput: false, ..inputs.clone() };
        attempt(&inputs, footprint).is_ok()
    });
    // In MiB, which is as exact as anybody wants it.
    let with_graphs = largest(1, graphs.div_ceil(1 << 20), |mib| {
        attempt(inputs, &|limits: &StepLimits| Footprint { graphs: mib << 20, ..footprint(limits) }).is_ok()
    });
    let flags = [
        with_seqs.map(|seqs| format!("--max-num-seqs {seqs}")),
        with_tokens.map(|tokens| format!("--max-num-batched-tokens {tokens}")),
        with_graphs.map(|mib| format!("--graph-memory-budget {mib}M")),
    ];
    flags.into_iter().flatten().collect()
}

/// The largest number from `least` on and below `most` for which something holds that holds for no larger ones.
fn largest(least: usize, most: usize, holds: impl Fn(usize) -> bool) -> Option<usize> {
    if least >= most || !holds(least) {
        return None;
    }
    let (mut holding, mut failing) = (least, most);
    while failing - holding > 1 {
        let middle = holding + (failing - holding) / 2;
        *if holds(middle) { &mut holding } else { &mut failing } = middle;
    }
    Some(holding)
}

fn attempt(inputs: &PlanInputs, footprint: &impl Fn(&StepLimits) -> Footprint) -> Result<Planned, LoadError> {
    let (seqs, batched) = step_size(inputs)?;
    if let Some(asked) = inputs.max_model_len.filter(|&asked| asked > inputs.model_max_len) {
        let why = format!(
            "{asked} tokens are more than the model has been made for (max_position_embeddings = {}); answers would be \
             nonsense beyond that",
            inputs.model_max_len
        );
        return Err(LoadError::Setting { flag: "--max-model-len", why });
    }
    let request = |len: usize| MemoryRequest {
        footprint: footprint(&step_limits(seqs.value, batched.value, len)),
        usable_bytes: inputs.usable_bytes,
        utilization: inputs.utilization,
        kv_cache_memory_bytes: inputs.kv_cache_memory_bytes,
        num_blocks_override: inputs.num_blocks_override,
        max_model_len: len,
        // A default that was lowered for the step's sake is as binding as a flag.
        max_num_seqs: if seqs.origin == Origin::Default { None } else { Some(seqs.value) },
    };
    let (mut len, mut len_origin) = match inputs.max_model_len {
        Some(len) => (len, Origin::Given),
        None => (inputs.model_max_len, Origin::File("config.json")),
    };
    let mut memory = plan_memory(&request(len));
    if memory.is_err() && inputs.max_model_len.is_none() {
        let fits = largest_model_len(&request(len)).min(len);
        if fits >= MIN_AUTO_MODEL_LEN.min(len) {
            let smaller = plan_memory(&request(fits));
            if smaller.is_ok() {
                len_origin = Origin::Derived(format!("the model's {len} tokens don't fit into memory"));
                len = fits;
                memory = smaller;
            }
        }
    }
    let memory = memory.map_err(|error| LoadError::Memory { error, fits: Vec::new() })?;
    let seqs_origin = if memory.max_num_seqs == seqs.value {
        seqs.origin
    } else {
        Origin::Derived(format!("not all of {} fit into memory", seqs.value))
    };
    Ok(Planned {
        limits: step_limits(memory.max_num_seqs, batched.value, len),
        memory,
        max_model_len_origin: len_origin,
        max_num_seqs_origin: seqs_origin,
        max_num_batched_tokens_origin: batched.origin,
    })
}

/// `--max-model-len auto` goes no lower than this: a context that holds no conversation is an error, not a default.
const MIN_AUTO_MODEL_LEN: usize = 256;

struct Resolved {
    value: usize,
    origin: Origin,
}

/// Sequences and tokens in one step.
fn step_size(inputs: &PlanInputs) -> Result<(Resolved, Resolved), LoadError> {
    let given = |value| Resolved { value, origin: Origin::Given };
    let default = |value| Resolved { value, origin: Origin::Default };
    if let (true, Some(batched)) = (inputs.throughput, inputs.max_num_batched_tokens) {
        let why = format!(
            "throughput says how many tokens a step has, and so does --max-num-batched-tokens {batched}; leave one of \
             them out"
        );
        return Err(LoadError::Setting { flag: "--performance-mode", why });
    }
    let tokens = match inputs.throughput {
        true => Resolved {
            value: 2 * DEFAULT_MAX_NUM_BATCHED_TOKENS,
            origin: Origin::Derived("performance-mode throughput".to_owned()),
        },
        false => default(DEFAULT_MAX_NUM_BATCHED_TOKENS),
    };
    match (inputs.max_num_seqs, inputs.max_num_batched_tokens) {
        (None, None) => Ok((default(DEFAULT_MAX_NUM_SEQS), tokens)),
        (Some(seqs), None) if seqs + ROOM > tokens.value => {
            let origin = Origin::Derived(format!("max-num-seqs and {ROOM} tokens of a prompt"));
            Ok((given(seqs), Resolved { value: seqs + ROOM, origin }))
        }
        (Some(seqs), None) => Ok((given(seqs), tokens)),
        (None, Some(batched)) if batched > ROOM && batched < DEFAULT_MAX_NUM_SEQS + ROOM => {
            let origin = Origin::Derived(format!("max-num-batched-tokens less {ROOM} tokens of a prompt"));
            Ok((Resolved { value: batched - ROOM, origin }, given(batched)))
        }
        (None, Some(batched)) if batched > ROOM => Ok((default(DEFAULT_MAX_NUM_SEQS), given(batched))),
        (Some(seqs), Some(batched)) if batched >= seqs + ROOM => Ok((given(seqs), given(batched))),
        (seqs, Some(batched)) => {
            let seqs = seqs.unwrap_or(1);
            let least = seqs + ROOM;
            let why = format!(
                "{batched} is too small: a step must have room for one token of each of {seqs} sequences \
                 (--max-num-seqs) and {ROOM} tokens of a prompt; give at least {least}"
            );
            Err(LoadError::Setting { flag: "--max-num-batched-tokens", why })
        }
    }
}

#[cfg(test)]
mod tests;
