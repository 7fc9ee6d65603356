//! The shapes of Qwen3.5-4B, timed.

use super::{Cut, Decay, Sequence, initial_states, launch, tolerances};
use crate::check::{Case, Outcome, Rig};
use refrain_device::DeviceError;
use refrain_program::{Dtype, GdnShape};

const SHAPE: GdnShape = GdnShape { num_key_heads: 16, num_value_heads: 32, key_head_dim: 128, value_head_dim: 128 };
const DTYPE: Dtype = Dtype::F16;
/// Heads that are compared with double precision; all others must be finite.
const COMPARED: [usize; 3] = [0, 13, 31];

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Timed {
    /// All launches of the step.
    All,
    /// The one with this entry.
    Entry(&'static str),
}

pub(super) fn cases() -> Vec<Case> {
    let case = |name: &str, tokens: usize, sequences: usize, timed: Timed| {
        let kernel = match timed {
            Timed::All => "gdn_scan",
            Timed::Entry(entry) => entry,
        };
        Case::new(kernel, name, move |rig| run(rig, tokens, sequences, timed))
    };
    vec![
        case("F16, T 8192", 8192, 1, Timed::All),
        case("F16, T 8192", 8192, 1, Timed::Entry("gdn_chunk_prepare")),
        case("F16, T 8192", 8192, 1, Timed::Entry("gdn_chunk_scan_mma")),
        case("F16, T 2048", 2048, 1, Timed::All),
        case("F16, 8 sequences of 1024", 1024, 8, Timed::All),
        case("F16, T 1", 1, 1, Timed::Entry("gdn_recurrence")),
        case("F16, T 32", 1, 32, Timed::Entry("gdn_recurrence")),
        case("F16, T 128", 1, 128, Timed::Entry("gdn_recurrence")),
    ]
}

/// Some sequences of as many tokens each: from their beginnings, or one more token of each.
fn run(rig: &Rig, tokens: usize, count: usize, timed: Timed) -> Result<Outcome, DeviceError> {
    let position = if tokens == 1 { 1000 } else { 0 };
    let random = |index: usize| {
        Sequence::random(rig, &SHAPE, DTYPE, Decay::Mild, (position, tokens, (count - 1 - index) as u32))
    };
    let sequences: Vec<Sequence> = (0..count).map(random).collect();
    let scan = if tokens == 1 { 0 } else { tokens };
    let cuts: Vec<Cut> = (0..count).map(|index| (index, tokens, scan)).collect();
    let states = initial_states(rig, &SHAPE, &sequences);
    let pool = rig.upload(&states)?;
    let launched = launch(rig, (DTYPE, SHAPE), &sequences, (&vec![0; count], &cuts), &pool)?;
    let out = launched.out.read(rig)?;
    let after: Vec<f32> = rig.download(&pool, states.len())?;

    let (values, keys) = (SHAPE.value_head_dim, SHAPE.key_head_dim);
    let width = SHAPE.num_value_heads * values;
    let (mut got, mut want, mut got_states, mut want_states) = (vec![], vec![], vec![], vec![]);
    for (index, sequence) in sequences.iter().enumerate().take(4) {
        for head in COMPARED {
            let (outputs, state) = sequence.reference(&SHAPE, head);
            want.extend(outputs);
            want_states.extend(state);
            for token in out[index * tokens * width..][..tokens * width].chunks_exact(width) {
                got.extend_from_slice(&token[head * values..][..values]);
            }
            let at = (sequence.slot as usize * SHAPE.num_value_heads + head) * values * keys;
            got_states.extend_from_slice(&after[at..][..values * keys]);
        }
    }
    let (out_tolerance, state_tolerance) = tolerances(DTYPE);
    let mut outcome =
        Outcome::compare(&got, &want, out_tolerance).and(Outcome::compare(&got_states, &want_states, state_tolerance));
    let used = &after[..count * SHAPE.num_value_heads * values * keys];
    if !out.iter().chain(used).all(|value| value.is_finite()) {
        outcome.error = f64::NAN;
    }

    let mut launches = launched.launches.clone();
    if let Timed::Entry(entry) = timed {
        launches.retain(|launch| launch.kernel.entry == entry);
    }
    let (bytes, flops) = cost(tokens, count, timed);
    Ok(outcome.timed(bytes, flops, rig.time(&launches, &launched.counts)?))
}

/// Bytes that must move and operations that must be done.
fn cost(tokens: usize, sequences: usize, timed: Timed) -> (u64, u64) {
    let GdnShape { num_key_heads, num_value_heads, key_head_dim: keys, value_head_dim: values } = SHAPE;
    let rows = tokens * sequences;
    let qk = 2 * rows * num_key_heads * keys * DTYPE.bytes();
    let v_out = 2 * rows * num_value_heads * values * DTYPE.bytes();
    let gates = 2 * rows * num_value_heads * 4;
    let state = sequences * num_value_heads * values * keys * 4;
    if tokens == 1 {
        let flops = rows * num_value_heads * values * keys * 8;
        return ((qk + v_out + gates + 2 * state) as u64, flops as u64);
    }
    let chunks = sequences * tokens.div_ceil(64);
    // The lower half of two 64 x 64 matrices of f16 for each chunk and value head.
    let triangles = chunks * num_value_heads * (2 * 40 * 64 * 2 + 512);
    let prepare = chunks * num_key_heads * 2 * (2 * 64 * 64 * keys);
    let scan = chunks * num_value_heads * (3 * 2 * 64 * keys * values + 2 * 2 * 64 * 64 * values);
    let (bytes, flops) = match timed {
        Timed::All => (qk + v_out + gates + state, prepare + scan),
        Timed::Entry("gdn_chunk_prepare") => (qk + gates + triangles, prepare),
        Timed::Entry(_) => (qk + v_out + triangles + state, scan),
    };
    (bytes as u64, flops as u64)
}
