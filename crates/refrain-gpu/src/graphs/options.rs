//! What can be chosen about graphs, and the sizes that are recorded when nobody chooses.

use refrain_device::{DeviceError, GraphMode, SCAN_CHUNK, StepLimits};

/// Device memory that graphs may take when nobody says otherwise, bytes.
pub const DEFAULT_GRAPH_MEMORY_BUDGET: usize = 64 << 20;

/// What is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GraphOptions {
    /// Which steps.
    pub mode: GraphMode,
    /// Numbers of sequences for which steps that decode are recorded; `None` is [`default_decode_sizes`].
    pub decode_sizes: Option<Vec<u32>>,
    /// Numbers of tokens for which pieces of prompts, and steps of any kind, are recorded; `None` is
    /// [`default_prefill_sizes`].
    pub prefill_sizes: Option<Vec<u32>>,
    /// Whether the program as it is is recorded beside the compiled one, from what memory that leaves.
    pub as_it_is_too: bool,
    /// Device memory that graphs may take, bytes. What doesn't fit is refused.
    pub budget_bytes: usize,
    /// Whether a cell that can't be had is an error.
    pub strict: bool,
}

impl Default for GraphOptions {
    /// No graphs.
    fn default() -> GraphOptions {
        GraphOptions {
            mode: GraphMode::None,
            decode_sizes: None,
            prefill_sizes: None,
            as_it_is_too: false,
            budget_bytes: DEFAULT_GRAPH_MEMORY_BUDGET,
            strict: false,
        }
    }
}

impl GraphOptions {
    /// Device memory to be kept for graphs, bytes.
    pub fn reserved_bytes(&self) -> usize {
        if self.mode == GraphMode::None { 0 } else { self.budget_bytes }
    }

    /// The sizes for decode and for prefill within some limits, ascending.
    ///
    /// # Errors
    /// [`DeviceError::GraphSetting`] for a size that no step has.
    pub fn sizes(&self, limits: &StepLimits) -> Result<(Vec<u32>, Vec<u32>), DeviceError> {
        let decode = match &self.decode_sizes {
            Some(sizes) => check_sizes("cudagraph_capture_sizes", sizes, most_decode_rows(limits), "--max-num-seqs")?,
            None => default_decode_sizes(limits),
        };
        let prefill = match &self.prefill_sizes {
            Some(sizes) => {
                check_sizes("prefill_capture_sizes", sizes, limits.max_tokens as u32, "--max-num-batched-tokens")?
            }
            None => default_prefill_sizes(limits),
        };
        Ok((decode, prefill))
    }
}

fn most_decode_rows(limits: &StepLimits) -> u32 {
    limits.max_segments.min(limits.max_tokens).min(limits.max_logit_rows) as u32
}

/// Sizes as they were given, sorted, each once.
///
/// # Errors
/// [`DeviceError::GraphSetting`] for a size of 0, or above `most`, which `limit` sets.
pub fn check_sizes(
    setting: &'static str,
    sizes: &[u32],
    most: u32,
    limit: &'static str,
) -> Result<Vec<u32>, DeviceError> {
    if let Some(size) = sizes.iter().find(|size| !(1..=most).contains(*size)) {
        let nearest = (*size).clamp(1, most);
        let why = format!("{size} is out of range; 1 to {most} ({limit}), the nearest is {nearest}");
        return Err(DeviceError::GraphSetting { setting, why });
    }
    let mut sizes = sizes.to_vec();
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

/// 1, 2, 4, every 8 up to 256, every 16 up to 512, and the most sequences that a step can have if that is less.
pub fn default_decode_sizes(limits: &StepLimits) -> Vec<u32> {
    let most = most_decode_rows(limits).min(512);
    let steps = [1, 2, 4].into_iter().chain((8..256).step_by(8)).chain((256..=512).step_by(16));
    let mut sizes: Vec<u32> = steps.filter(|&size| size < most).collect();
    sizes.push(most);
    sizes
}

/// Every 64 tokens up to 512, then powers of two, and the longest piece of a prompt that a step can have, which is what
/// long prompts are cut into.
pub fn default_prefill_sizes(limits: &StepLimits) -> Vec<u32> {
    let chunk = SCAN_CHUNK as u32;
    let most = limits.max_tokens as u32 / chunk * chunk;
    let powers = std::iter::successors(Some(1024_u32), |size| size.checked_mul(2));
    let mut sizes: Vec<u32> = (chunk..=512)
        .step_by(SCAN_CHUNK)
        .chain(powers.take_while(|&size| size < most))
        .filter(|&size| size < most)
        .collect();
    sizes.extend((most > 0).then_some(most));
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(max_segments: usize, max_tokens: usize) -> StepLimits {
        StepLimits { max_tokens, max_segments, max_logit_rows: max_segments + 64, max_model_len: 4096 }
    }

    #[test]
    fn default_sizes_end_with_the_limits() {
        assert_eq!(default_decode_sizes(&limits(1, 2048)), [1]);
        assert_eq!(default_decode_sizes(&limits(20, 2048)), [1, 2, 4, 8, 16, 20]);
        let large = default_decode_sizes(&limits(2000, 8192));
        assert_eq!((large.len(), large.last()), (51, Some(&512)));
        assert_eq!(default_prefill_sizes(&limits(1, 65)), [64]);
        assert!(default_prefill_sizes(&limits(1, 63)).is_empty());
        assert_eq!(default_prefill_sizes(&limits(1, 512)), [64, 128, 192, 256, 320, 384, 448, 512]);
        assert_eq!(default_prefill_sizes(&limits(1, 3100))[7..], [512, 1024, 2048, 3072]);
    }

    #[test]
    fn sizes_are_sorted_and_impossible_ones_named() {
        let given = |decode: &[u32]| GraphOptions { decode_sizes: Some(decode.to_vec()), ..GraphOptions::default() };
        assert_eq!(given(&[8, 1, 8]).sizes(&limits(8, 256)).unwrap().0, [1, 8]);
        for (size, nearest) in [(0, "nearest is 1"), (9, "nearest is 8")] {
            let error = given(&[1, size]).sizes(&limits(8, 256)).unwrap_err().to_string();
            assert!(error.contains("cudagraph_capture_sizes: ") && error.contains(nearest), "{error}");
        }
        let prefill = GraphOptions { prefill_sizes: Some(vec![512]), ..GraphOptions::default() };
        let error = prefill.sizes(&limits(8, 256)).unwrap_err().to_string();
        assert!(error.contains("prefill_capture_sizes") && error.contains("--max-num-batched-tokens"), "{error}");
    }

    #[test]
    fn memory_is_kept_only_for_graphs_that_are_made() {
        let mut options = GraphOptions::default();
        assert_eq!(options.reserved_bytes(), 0);
        options.mode = GraphMode::Full;
        assert_eq!(options.reserved_bytes(), 64 << 20);
    }
}
