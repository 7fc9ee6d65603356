//! The text form: one line for each op, weight and state.
//!
//! Names of a layer's own things are printed without the `layers.N.` in front of them: ops below that layer's heading,
//! checkpoint tensors behind the weight of the layer that is made of them.

use crate::{
    Elementwise, ElementwiseFunction, ElementwiseOperand, GdnPrepare, Node, Op, Program, Prologue, QkNormRopeAppend,
    Rows, StateKind, View, WeightKind, WeightPart,
};
use refrain_model::Dtype;
use std::fmt;

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tensors, weights, states) = (self.tensors.len(), self.weights.len(), self.states.len());
        let ops = self.nodes.len();
        let activations = self.usual_dtype().map_or("none".to_owned(), |dtype| dtype.to_string());
        writeln!(f, "program: {ops} ops, {tensors} tensors, {weights} weights, {states} states")?;
        writeln!(f, "activations are {activations} where no type is given; vocabulary {}", self.vocab_size)?;
        writeln!(f, "\nweights")?;
        for weight in &self.weights {
            let layer = layer_prefix(&weight.name);
            let parts: Vec<String> =
                weight.parts.iter().map(ToString::to_string).map(|part| without(&part, layer).to_owned()).collect();
            writeln!(f, "  {} {} {} = {}", weight.name, weight.kind, weight.dtype, parts.join(" + "))?;
        }
        writeln!(f, "\nstates")?;
        for state in &self.states {
            writeln!(f, "  {} {} {}", state.name, state.kind, state.dtype)?;
        }
        let mut layer = None;
        for (index, node) in self.nodes.iter().enumerate() {
            if index == 0 || layer != node.layer {
                layer = node.layer;
                match layer {
                    Some(layer) => writeln!(f, "\nlayer {layer}")?,
                    None if index == 0 => writeln!(f, "\nbefore the layers")?,
                    None => writeln!(f, "\nafter the layers")?,
                }
            }
            writeln!(f, "  {}", self.node_text(node, true))?;
        }
        Ok(())
    }
}

impl Program {
    /// The type of most activations.
    fn usual_dtype(&self) -> Option<Dtype> {
        let count = |dtype| self.tensors.iter().filter(|tensor| tensor.dtype == dtype).count();
        let counts = [Dtype::F32, Dtype::Bf16, Dtype::F16].map(|dtype| (count(dtype), dtype));
        counts.into_iter().filter(|(count, _)| *count > 0).max_by_key(|(count, _)| *count).map(|(_, dtype)| dtype)
    }

    /// `h[T, 1024] = rms_norm(x, input_layernorm; eps=1e-6)`; types and what comes after the semicolon only `in_full`.
    pub(crate) fn node_text(&self, node: &Node, in_full: bool) -> String {
        let mut operands: Vec<String> = node.op.reads().into_iter().map(|view| self.read_text(view, node)).collect();
        operands.extend(node.op.weights().iter().map(|id| local_name(&self.weight(*id).name, node.layer).to_owned()));
        operands.extend(node.op.states().iter().map(|id| local_name(&self.state(*id).name, node.layer).to_owned()));
        let results: Vec<String> =
            node.op.writes().into_iter().map(|view| self.write_text(view, node, in_full)).collect();
        let results = if results.is_empty() { String::new() } else { format!("{} = ", results.join(", ")) };
        let parameters = match in_full {
            true => self.node_parameters(node).map_or(String::new(), |parameters| format!("; {parameters}")),
            false => String::new(),
        };
        format!("{results}{}({}{parameters})", node.op.name(), operands.join(", "))
    }

    /// What an op knows besides its operands, and where it stages what.
    fn node_parameters(&self, node: &Node) -> Option<String> {
        let mut parameters: Vec<String> = parameters(&node.op).into_iter().collect();
        let staged: Vec<String> = node.op.staged().into_iter().map(|view| self.write_text(view, node, true)).collect();
        if !staged.is_empty() {
            parameters.push(format!("via {}", staged.join(", ")));
        }
        (!parameters.is_empty()).then(|| parameters.join(" "))
    }

    fn read_text(&self, view: View, node: &Node) -> String {
        local_name(&self.view_name(view), node.layer).to_owned()
    }

    /// `beta[T, 16] f32`, or `conv[T, 0:2048]` for some columns.
    fn write_text(&self, view: View, node: &Node, in_full: bool) -> String {
        let tensor = self.tensor(view.tensor);
        let name = local_name(&tensor.name, node.layer);
        let columns = match view.width == tensor.width {
            true => tensor.width.to_string(),
            false => format!("{}:{}", view.column, view.end()),
        };
        let dtype = match in_full && Some(tensor.dtype) != self.usual_dtype() {
            false => String::new(),
            true => format!(" {}", tensor.dtype),
        };
        format!("{name}[{}, {columns}]{dtype}", tensor.rows)
    }
}

/// A name without the `layers.N.` of its own layer.
pub(crate) fn local_name(name: &str, layer: Option<usize>) -> &str {
    layer.and_then(|layer| name.strip_prefix(&format!("layers.{layer}."))).unwrap_or(name)
}

/// The `layers.N.` of a name, if it begins with that.
pub(crate) fn layer_prefix(name: &str) -> &str {
    let dot = name.strip_prefix("layers.").and_then(|rest| rest.find('.'));
    dot.map_or("", |dot| &name[..="layers.".len() + dot])
}

fn without<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// What an op knows besides its operands.
fn parameters(op: &Op) -> Option<String> {
    Some(match op {
        Op::RmsNorm { eps, .. } => format!("eps={eps:?}"),
        Op::GdnConv { kernel, .. } => format!("kernel={kernel}"),
        Op::L2Norm { heads, scaled, scale, eps, .. } => {
            format!("heads={heads} scaled={scaled} scale={scale:.6} eps={eps:?}")
        }
        Op::GdnScan { shape, .. } => format!(
            "heads={}:{} dims={}:{}",
            shape.num_key_heads, shape.num_value_heads, shape.key_head_dim, shape.value_head_dim
        ),
        Op::GatedRmsNorm { heads, eps, .. } => format!("heads={heads} eps={eps:?}"),
        Op::QkNormRope { heads, rotary_dim, theta, eps, .. } => {
            format!("heads={heads} rotary={rotary_dim} theta={theta} eps={eps:?}")
        }
        Op::KvAppend { shape, .. } => format!("heads={} dim={}", shape.num_kv_heads, shape.head_dim),
        Op::Attention { shape, .. } => {
            format!("heads={}:{} dim={} scale={:.6}", shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.scale)
        }
        Op::AddRmsNorm { eps, .. } => format!("eps={eps:?}"),
        Op::FusedLinear { prologue: Prologue::RmsNorm { eps, .. }, .. } => format!("eps={eps:?}"),
        Op::FusedLinear { prologue: Prologue::GatedRmsNorm { heads, eps, .. }, .. } => {
            format!("heads={heads} eps={eps:?}")
        }
        Op::QkNormRopeAppend(QkNormRopeAppend { shape, rotary_dim, theta, eps, .. }) => {
            let (heads, kv_heads, dim) = (shape.num_heads, shape.num_kv_heads, shape.head_dim);
            format!("heads={heads}:{kv_heads} dim={dim} rotary={rotary_dim} theta={theta} eps={eps:?}")
        }
        Op::GdnPrepare(prepare) | Op::GdnStep { prepare, .. } => prepare_text(prepare),
        Op::Elementwise(tree) => elementwise_text(tree, &mut 0),
        Op::FusedLinear { prologue: Prologue::None { .. }, .. }
        | Op::Embed { .. }
        | Op::Linear { .. }
        | Op::GdnGates { .. }
        | Op::SigmoidGate { .. }
        | Op::SiluMul { .. }
        | Op::Add { .. }
        | Op::GatherRows { .. } => return None,
    })
}

fn prepare_text(prepare: &GdnPrepare) -> String {
    let &GdnPrepare { kernel, shape, scale, eps, .. } = prepare;
    format!(
        "kernel={kernel} heads={}:{} dims={}:{} scale={scale:.6} eps={eps:?}",
        shape.num_key_heads, shape.num_value_heads, shape.key_head_dim, shape.value_head_dim
    )
}

/// `silu_mul(0, add(1, 2))`: the operands by their numbers.
fn elementwise_text(tree: &Elementwise, leaf: &mut usize) -> String {
    let function = match tree.function {
        ElementwiseFunction::Add => "add",
        ElementwiseFunction::SigmoidGate => "sigmoid_gate",
        ElementwiseFunction::SiluMul => "silu_mul",
    };
    let [a, b] = [&tree.a, &tree.b].map(|operand| match operand {
        ElementwiseOperand::View(_) => {
            *leaf += 1;
            (*leaf - 1).to_string()
        }
        ElementwiseOperand::Result(inner) => elementwise_text(inner, leaf),
    });
    format!("{function}({a}, {b})")
}

impl fmt::Display for WeightPart {
    /// `norm.weight` when all of it is taken in order, `q_proj.weight[256 of 512 from 0]` for runs, `up.weight[0:768]`
    /// for consecutive rows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        let consecutive = self.rows <= self.run || self.stride == self.run;
        match (consecutive, self.rows == self.source_rows) {
            (true, true) => Ok(()),
            (true, false) => write!(f, "[{}:{}]", self.start, self.start + self.rows),
            (false, _) => write!(f, "[{} of {} from {}]", self.run, self.stride, self.start),
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rows::Tokens => "T",
            Rows::Logits => "S",
        })
    }
}

impl fmt::Display for WeightKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WeightKind::Matrix { outputs, inputs } => write!(f, "[{outputs}, {inputs}]"),
            WeightKind::Vector { length } => write!(f, "[{length}]"),
            WeightKind::Convolution { channels, taps } => write!(f, "[{channels}, 1, {taps}]"),
        }
    }
}

impl fmt::Display for StateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StateKind::KvCache { kv_heads, head_dim } => write!(f, "kv [token, 2, {kv_heads}, {head_dim}]"),
            StateKind::GdnState { value_heads, key_head_dim, value_head_dim } => {
                write!(f, "gdn [slot, {value_heads}, {key_head_dim}, {value_head_dim}]")
            }
            StateKind::ConvState { channels, taps } => write!(f, "conv [slot, {}, {channels}]", taps - 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BF16, dense, one_gdn_layer, tinytales};
    use crate::{BuildOptions, TensorId};

    #[test]
    fn tinytales_reads_well() {
        insta::assert_snapshot!(Program::build(&tinytales(), &BF16).unwrap());
    }

    #[test]
    fn a_dense_model_reads_well() {
        let options = BuildOptions { weights: Dtype::F16, activations: Dtype::F32, kv_cache: Dtype::F16.into() };
        insta::assert_snapshot!(Program::build(&dense(), &options).unwrap());
    }

    #[test]
    fn a_single_gdn_layer_reads_well() {
        insta::assert_snapshot!(Program::build(&one_gdn_layer(), &BF16).unwrap());
    }

    #[test]
    fn every_part_that_differs_shows() {
        let program = Program::build(&tinytales(), &BF16).unwrap();
        let text = program.to_string();
        let mut other = program.clone();
        other.nodes[1].op = match other.nodes[1].op.clone() {
            Op::RmsNorm { x, weight, out, .. } => Op::RmsNorm { x, weight, out, eps: 1e-5 },
            op => panic!("{op:?}"),
        };
        assert_ne!(other.to_string(), text);
        let mut other = program.clone();
        other.weights[2].parts[1].source_rows += 1;
        other.weights[2].parts[1].start = 1;
        assert!(other.to_string().contains("in_proj_z.weight[1:513]"));
    }

    #[test]
    fn names_of_other_layers_stay_whole() {
        let mut program = Program::build(&tinytales(), &BF16).unwrap();
        let tensor = TensorId(program.tensors.iter().position(|tensor| tensor.name == "layers.0.h").unwrap());
        let node = program.nodes.iter_mut().find(|node| node.layer == Some(1)).unwrap();
        if let Op::RmsNorm { x, .. } = &mut node.op {
            x.tensor = tensor;
        }
        let node = node.clone();
        assert_eq!(program.node_text(&node, false), "h[T, 256] = rms_norm(layers.0.h, input_layernorm)");
    }

    #[test]
    fn an_empty_program_has_a_text() {
        let mut program = Program::build(&tinytales(), &BF16).unwrap();
        program.nodes.clear();
        program.tensors.clear();
        program.weights.clear();
        program.states.clear();
        assert!(program.to_string().starts_with("program: 0 ops"));
    }
}
