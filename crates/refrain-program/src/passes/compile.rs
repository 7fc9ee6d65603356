//! All passes in their order, with what each has saved.

use super::add_rms_norm::FuseAddRmsNorm;
use super::elementwise::FuseElementwise;
use super::gdn::{FuseGdnDecode, FuseGdnPrepare};
use super::linear_add::FuseLinearAdd;
use super::norm_linear::{FuseGatedNormLinear, FuseNormLinear};
use super::qk_norm_rope_append::FuseQkNormRopeAppend;
use super::sigmoid_gate::FuseSigmoidGate;
use super::silu_mul::FuseSiluMul;
use super::{Pass, PassConfig};
use crate::{Program, StepShape};
use serde::Serialize;

/// Up to so many rows a product takes as long as reading its weights, and what is done to its input and its result in the
/// same kernel costs nothing. With more rows the products of a vendor's library are faster, which do nothing else.
pub const FEW_ROWS: usize = 8;

/// A program that has gone through the passes.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// What is run. Tensors, weights and states are those of the program it was made of, with the same ids; tensors that
    /// no op names any more stay unused.
    pub program: Program,
    /// What each pass has done, in the order in which they ran.
    pub applied: Vec<Applied>,
}

/// What a pass has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Its name.
    pub pass: &'static str,
    /// At how many places it has rewritten the program.
    pub places: usize,
    /// Ops fewer in a step.
    pub launches_saved: usize,
    /// Bytes of activations that need not be moved.
    pub bytes_saved: BytesSaved,
    /// Why it did nothing; none when it did something.
    pub not_applicable: Option<String>,
}

/// Bytes that a step saves, by its rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BytesSaved {
    /// For each token.
    pub per_token: u64,
    /// For each row whose logits are wanted.
    pub per_logit_row: u64,
}

/// Rewrites a sound program for steps of at most `most_rows` rows, tokens or logits. The result is right for any step of
/// so many, whatever it consists of: products are fused with what surrounds them only up to [`FEW_ROWS`], because with
/// more rows that is no gain on most devices.
///
/// # Panics
/// When the program isn't sound, or a pass breaks it: an error in the pass.
pub fn compile(program: &Program, config: &PassConfig, most_rows: usize) -> Compiled {
    let mut program = program.clone();
    let mut applied = Vec::new();
    // What is fused into a product comes before what would fuse the same op with something else.
    let passes: [(&dyn Pass, bool); 10] = [
        (&FuseGdnPrepare, false),
        (&FuseGdnDecode, false),
        (&FuseQkNormRopeAppend, false),
        (&FuseSigmoidGate, false),
        (&FuseSiluMul, true),
        (&FuseNormLinear, true),
        (&FuseGatedNormLinear, true),
        (&FuseLinearAdd, true),
        (&FuseAddRmsNorm, false),
        (&FuseElementwise, false),
    ];
    for (pass, few) in passes {
        let name = pass.name();
        applied.push(if !config.runs(name) {
            idle(name, "switched off".to_owned())
        } else if few && most_rows > FEW_ROWS {
            idle(name, format!("only in steps of at most {FEW_ROWS} rows"))
        } else {
            apply(pass, &mut program)
        });
    }
    for name in ["fuse_norm_quant", "fuse_act_quant"] {
        let reason = if config.runs(name) { "no product takes quantised input" } else { "switched off" };
        applied.push(idle(name, reason.to_owned()));
    }
    Compiled { program, applied }
}

fn idle(pass: &'static str, reason: String) -> Applied {
    let (places, launches_saved, bytes_saved) = (0, 0, BytesSaved::default());
    Applied { pass, places, launches_saved, bytes_saved, not_applicable: Some(reason) }
}

fn apply(pass: &dyn Pass, program: &mut Program) -> Applied {
    let name = pass.name();
    let (ops, bytes) = (program.nodes.len(), row_bytes(program));
    let places = pass.run(program);
    if let Err(error) = program.validate() {
        panic!("pass {name}: {error}");
    }
    if places == 0 {
        return idle(name, format!("found no {}", pass.looks_for()));
    }
    let left = row_bytes(program);
    let bytes_saved = BytesSaved {
        per_token: bytes.per_token - left.per_token,
        per_logit_row: bytes.per_logit_row - left.per_logit_row,
    };
    Applied { pass: name, places, launches_saved: ops - program.nodes.len(), bytes_saved, not_applicable: None }
}

/// Bytes of activations that each row moves.
fn row_bytes(program: &Program) -> BytesSaved {
    let bytes = |tokens: usize, logit_rows| {
        let segments = if tokens == 0 { vec![] } else { vec![(tokens, 0)] };
        program.step_cost(&StepShape { segments, logit_rows }).activation_bytes
    };
    BytesSaved { per_token: bytes(1, 0), per_logit_row: bytes(0, 1) }
}
