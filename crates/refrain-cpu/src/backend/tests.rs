use super::*;
use refrain_device::BLOCK_TOKENS;
use refrain_device::Segment;
use refrain_model::{AttentionConfig, GdnConfig, LayerKind, ModelConfig};
use refrain_program::{BuildOptions, CacheDtype, Dtype, TensorView, WeightKind, WeightSource};
use std::collections::HashMap;
use std::ops::Range;

mod compiled;

const MAX_LEN: usize = 256;

/// Odd on purpose: no width but the KV block is a multiple of anything.
fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 52,
        intermediate_size: 75,
        vocab_size: 77,
        max_position_embeddings: MAX_LEN,
        layers: vec![LayerKind::Gdn, LayerKind::FullAttention, LayerKind::FullAttention, LayerKind::Gdn],
        attention: AttentionConfig {
            num_heads: 3,
            num_kv_heads: 1,
            head_dim: 40,
            rotary_dim: 20,
            rope_theta: 10_000.0,
            output_gate: true,
        },
        gdn: Some(GdnConfig {
            num_key_heads: 1,
            num_value_heads: 3,
            key_head_dim: 36,
            value_head_dim: 44,
            conv_kernel: 4,
        }),
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        eos_token_ids: vec![0],
        dtype: Some(Dtype::F32),
        architecture: "Qwen3_5ForCausalLM".to_owned(),
    }
}

fn program(config: &ModelConfig, dtype: Dtype) -> Program {
    program_with(config, dtype, dtype.into())
}

fn program_with(config: &ModelConfig, dtype: Dtype, kv_cache: CacheDtype) -> Program {
    let options = BuildOptions { weights: dtype, activations: Dtype::F32, kv_cache };
    Program::build(config, &options).unwrap()
}

/// Random weights under the names that the program asks for.
struct Weights(HashMap<String, (Vec<usize>, Vec<u8>)>);

impl Weights {
    fn new(program: &Program) -> Self {
        let mut tensors = HashMap::new();
        let mut state = 0x1234_5678_9abc_def1u64;
        let mut noise = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        for weight in &program.weights {
            for part in &weight.parts {
                let (shape, scale) = match weight.kind {
                    WeightKind::Matrix { inputs, .. } => (vec![part.source_rows, inputs], 1.5 / (inputs as f32).sqrt()),
                    WeightKind::Vector { .. } => (vec![part.source_rows], 0.5),
                    WeightKind::Convolution { taps, .. } => (vec![part.source_rows, 1, taps], 0.7),
                };
                let bytes = || (0..shape.iter().product()).flat_map(|_| (noise() * scale).to_le_bytes()).collect();
                if !tensors.contains_key(&part.source) {
                    let data: Vec<u8> = { bytes }();
                    tensors.insert(part.source.clone(), (shape, data));
                }
            }
        }
        Self(tensors)
    }
}

impl WeightSource for Weights {
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        self.0.get(name).map(|(shape, data)| TensorView { dtype: Dtype::F32, shape, data })
    }
}

const LIMITS: StepLimits = StepLimits { max_tokens: 300, max_segments: 8, max_logit_rows: 300, max_model_len: MAX_LEN };
const POOLS: PoolSizes = PoolSizes { blocks: 64, slots: 8 };

fn load(dtype: Dtype, isa: Isa, threads: usize) -> CpuBackend {
    let program = program(&config(), dtype);
    let precision = if dtype == Dtype::Bf16 { Precision::Bf16 } else { Precision::F32 };
    let options = CpuOptions { threads, precision, isa: Some(isa), passes: None };
    CpuBackend::load(&program, &Weights::new(&program), LIMITS, POOLS, &options).unwrap()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| (i * i * 31 + 7 * i + 3) % 77).collect()
}

/// Part of a sequence: its tokens `range`, with `prompt` prompt tokens in all, in a slot with blocks of its own.
#[derive(Clone)]
struct Part<'a> {
    tokens: &'a [u32],
    range: Range<usize>,
    prompt: usize,
    slot: u32,
}

/// Logits of all rows of one step, row by row.
fn step(backend: &mut CpuBackend, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
    step_in(backend, parts, Cell::EAGER)
}

fn step_in(backend: &mut CpuBackend, parts: &[Part<'_>], cell: Cell) -> Vec<Vec<f32>> {
    let mut step = Step::default();
    for part in parts {
        let blocks = part.range.end.div_ceil(BLOCK_TOKENS) as u32;
        step.segments.push(Segment {
            row: step.tokens.len() as u32,
            len: part.range.len() as u32,
            position: part.range.start as u32,
            scan: part.prompt.clamp(part.range.start, part.range.end) as u32 - part.range.start as u32,
            slot: part.slot,
            blocks: step.block_table.len() as u32,
            num_blocks: blocks,
        });
        // Backwards and interleaved, so that nothing works by accident of order.
        step.block_table.extend((0..blocks).map(|block| (15 - block) * 4 + part.slot % 4));
        step.tokens.extend(&part.tokens[part.range.clone()]);
    }
    step.logit_rows = (0..step.tokens.len() as u32).collect();
    backend.begin(&step, cell).unwrap();
    backend.finish().unwrap().into_logits().chunks(77).map(<[f32]>::to_vec).collect()
}

fn run(backend: &mut CpuBackend, tokens: &[u32], prompt: usize, cuts: &[usize], slot: u32) -> Vec<Vec<f32>> {
    let mut rows = Vec::new();
    for pair in cuts.windows(2) {
        rows.extend(step(backend, &[Part { tokens, range: pair[0]..pair[1], prompt, slot }]));
    }
    rows
}

fn bits(rows: &[Vec<f32>]) -> Vec<Vec<u32>> {
    rows.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

fn largest_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_instruction_set_agrees_and_any_cut_is_right() {
    let text = tokens(200);
    let reference = run(&mut load(Dtype::F32, Isa::Portable, 1), &text, 200, &[0, 200], 0);
    assert!(reference.iter().flatten().all(|x| x.is_finite()));
    for isa in Isa::available() {
        let mut backend = load(Dtype::F32, isa, 2);
        let one_by_one: Vec<usize> = (0..=200).collect();
        for (prompt, cuts) in [(200, vec![0, 200]), (200, vec![0, 1, 63, 70, 135, 200]), (0, one_by_one)] {
            let rows = run(&mut backend, &text, prompt, &cuts, 1);
            let difference = largest_difference(&rows, &reference);
            assert!(difference < 1e-3, "{isa}, cuts {:?}...: off by {difference}", &cuts[..2]);
        }
    }
}

#[test]
fn cuts_at_chunk_boundaries_change_no_bit() {
    let text = tokens(220);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut backend = load(dtype, Isa::detect(), 2);
        let whole = run(&mut backend, &text, 220, &[0, 220], 0);
        let pieces = run(&mut backend, &text, 220, &[0, 64, 192, 220], 1);
        assert_eq!(bits(&whole), bits(&pieces), "{dtype}");
    }
}

#[test]
fn recomputing_generated_tokens_changes_no_bit() {
    let text = tokens(140);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut backend = load(dtype, Isa::detect(), 2);
        let mut cuts = vec![0, 64, 100];
        cuts.extend(101..=140);
        let decoded = run(&mut backend, &text, 100, &cuts, 0);
        let recomputed = run(&mut backend, &text, 100, &[0, 128, 140], 1);
        assert_eq!(bits(&decoded), bits(&recomputed), "{dtype}");
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_batch_or_the_threads() {
    let texts = [tokens(130), tokens(9).into_iter().rev().collect(), tokens(70)];
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let alone: Vec<_> = texts
            .iter()
            .map(|text| {
                run(&mut load(dtype, Isa::detect(), 1), text, text.len() - 2, &[0, text.len() - 2, text.len()], 0)
            })
            .collect();
        let mut backend = load(dtype, Isa::detect(), 3);
        let part = |index: usize, range: Range<usize>| Part {
            tokens: &texts[index],
            range,
            prompt: texts[index].len() - 2,
            slot: index as u32,
        };
        let mut first = step(&mut backend, &[part(0, 0..128), part(1, 0..7)]);
        let second = step(&mut backend, &[part(1, 7..9), part(0, 128..130), part(2, 0..68)]);
        let third = step(&mut backend, &[part(2, 68..70)]);
        let mut got = [first.drain(..128).collect::<Vec<_>>(), first, second[4..].to_vec()];
        got[1].extend_from_slice(&second[..2]);
        got[0].extend_from_slice(&second[2..4]);
        got[2].extend(third);
        for (got, alone) in got.iter().zip(&alone) {
            assert_eq!(bits(got), bits(alone), "{dtype}");
        }
    }
}

#[test]
fn missing_and_misshapen_weights_are_named() {
    let program = program(&config(), Dtype::F32);
    let options = CpuOptions { threads: 1, precision: Precision::F32, isa: None, passes: None };
    for (name, why) in
        [("layers.1.self_attn.q_proj.weight", "not in the checkpoint"), ("norm.weight", "must have [52]")]
    {
        let mut weights = Weights::new(&program);
        let (shape, data) = weights.0.remove(name).unwrap();
        if name == "norm.weight" {
            weights.0.insert(name.to_owned(), (vec![shape[0] / 2, 2], data));
        }
        let error = CpuBackend::load(&program, &weights, LIMITS, POOLS, &options).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains(why), "{error}");
    }
}
