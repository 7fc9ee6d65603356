//! Which programs the kernels can run. A configuration that they can't is answered before anything is allocated or
//! compiled, with the layer, the value, and what would be right.

use crate::Target;
use crate::kernel::{Count, Extent, LaunchSpec};
use crate::kernels::{attention, gdn};
use crate::layout::Layout;
use crate::lower::{Action, Lowered, Places};
use refrain_device::{DeviceError, DevicePtr, PoolSizes, Runtime, StepLimits};
use refrain_program::{Node, Op, Program};

#[cfg(test)]
mod tests;

/// Most blocks of a grid along x, y and z, on every kind of GPU.
const MOST_BLOCKS: [u64; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// Checks that there are kernels for every op of a program, for steps within `limits`. `library`: whether products of many
/// rows go to the vendor's library.
///
/// # Errors
/// [`DeviceError::Unsupported`] for the first op that can't be run.
pub fn check_program(
    runtime: &dyn Runtime,
    program: &Program,
    limits: &StepLimits,
    library: bool,
) -> Result<(), DeviceError> {
    let target = Target::from(runtime.info());
    let device = runtime.info().kind;
    check(program, &target, limits, library).map_err(|why| DeviceError::Unsupported { device, why })
}

fn check(program: &Program, target: &Target, limits: &StepLimits, gemm: bool) -> Result<(), String> {
    for node in &program.nodes {
        if let Some(why) = shape_of(program, node, target) {
            return Err(format!("{}: {why}", place(node)));
        }
    }
    let layout = Layout::new(program, limits, &PoolSizes { blocks: 0, slots: 0 }, target);
    let places = Places { program, layout: &layout, base: DevicePtr(0), target, gemm, most_rows: u32::MAX };
    for (node, lowered) in program.nodes.iter().zip(places.lower()) {
        launches(&lowered, target, limits).map_err(|why| format!("{}: {why}", place(node)))?;
    }
    launches(&places.lower_sampling(limits), target, limits).map_err(|why| format!("the choice of tokens: {why}"))
}

/// What is wrong with the shape of an op.
fn shape_of(program: &Program, node: &Node, target: &Target) -> Option<String> {
    match &node.op {
        Op::KvAppend { shape, .. } | Op::Attention { shape, .. } => attention::unsupported(shape),
        Op::QkNormRope { x, heads, .. } => attention::unsupported_head(x.width / heads),
        Op::GdnScan { shape, q, .. } => gdn::unsupported(shape, program.tensor(q.tensor).dtype, target),
        _ => None,
    }
}

fn place(node: &Node) -> String {
    match node.layer {
        Some(layer) => format!("layer {layer} ({})", node.op.name()),
        None => node.op.name().to_owned(),
    }
}

/// Checks what is launched for an op against what a launch can have.
fn launches(op: &Lowered, target: &Target, limits: &StepLimits) -> Result<(), String> {
    for (rows, actions) in &op.variants {
        for action in actions {
            if let Action::Launch(spec) = action {
                launch(spec, op.count, *rows, target, limits)?;
            }
        }
    }
    Ok(())
}

fn launch(spec: &LaunchSpec, count: Count, rows: u32, target: &Target, limits: &StepLimits) -> Result<(), String> {
    let (entry, shared) = (spec.kernel.entry, spec.kernel.shared_bytes);
    if shared > target.shared_bytes {
        let most = target.shared_bytes;
        return Err(format!("kernel {entry} needs {shared} bytes of shared memory, and a block has at most {most}"));
    }
    for ((extent, axis), limit) in spec.grid.into_iter().zip(["x", "y", "z"]).zip(MOST_BLOCKS) {
        let (blocks, help) = match extent {
            Extent::Fixed(blocks) => (u64::from(blocks), "this model is too wide for it; use --device cpu"),
            Extent::Each { count: counted, per } => {
                let most =
                    if counted == count { most(counted, limits).min(rows.into()) } else { most(counted, limits) };
                (most.div_ceil(per.into()), "give a smaller --max-num-batched-tokens or --max-num-seqs")
            }
        };
        if blocks > limit {
            return Err(format!(
                "kernel {entry} needs {blocks} blocks along {axis}, and a grid has at most {limit}; {help}"
            ));
        }
    }
    Ok(())
}

/// The most of something that a step within limits has.
fn most(count: Count, limits: &StepLimits) -> u64 {
    let pieces = limits.max_tokens / crate::step_block::PIECE_TOKENS + 2 * limits.max_segments;
    let most = match count {
        Count::Tokens => limits.max_tokens,
        Count::Segments | Count::Scans | Count::Recurrent | Count::LongRecurrent => {
            limits.max_segments.min(limits.max_tokens)
        }
        Count::PrefillPieces | Count::DecodePieces | Count::ScannedDecodePieces | Count::Pieces | Count::Chunks => {
            pieces.min(limits.max_tokens)
        }
        Count::LogitRows
        | Count::Sampled
        | Count::Adjusted
        | Count::Drawn
        | Count::Logprobs
        | Count::AdjustedLogprobs => limits.max_logit_rows,
    };
    most as u64
}
