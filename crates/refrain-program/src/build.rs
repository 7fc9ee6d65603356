//! Builds the base program of a model: unfused, one op after another, in the order of the mathematics.
//!
//! Follows `modeling_qwen3_5.py` of Hugging Face transformers, with projections of the same input packed into one
//! product. A dense model is the special case without GDN layers.

use crate::config_check::check_config;
use crate::{
    AttentionShape, BuildOptions, CacheDtype, GdnShape, Node, Op, Program, ProgramError, Rows, StateDef, StateId,
    StateKind, TensorDef, TensorId, View, WeightDef, WeightId, WeightKind, WeightPart,
};
use refrain_model::{AttentionConfig, Dtype, GdnConfig, LayerKind, ModelConfig};

/// Added to the sum of squares in the norm of GDN queries and keys; a constant of the architecture, not of a checkpoint.
const L2_NORM_EPS: f32 = 1e-6;

impl Program {
    /// The base program of a model.
    ///
    /// The residual stream `x` is one tensor, in f32, updated in place; every layer reads it through a norm and adds to it
    /// twice.
    ///
    /// # Errors
    /// [`ProgramError::Config`] when the configuration describes no possible model.
    pub fn build(config: &ModelConfig, options: &BuildOptions) -> Result<Program, ProgramError> {
        check_config(config)?;
        let mut builder = Builder::new(config, *options);
        let hidden = config.hidden_size;
        // Every layer adds to it: in 16 bits its rounding would outweigh all other errors together.
        let x = builder.wide("x", Rows::Tokens, hidden);
        let table = builder.matrix("embed_tokens", config.vocab_size, hidden, "embed_tokens.weight");
        builder.push(Op::Embed { table, out: x });
        for (layer, kind) in config.layers.iter().enumerate() {
            builder.layer = Some(layer);
            builder.token_mixer(x, *kind);
            builder.mlp(x);
        }
        builder.layer = None;
        let last = builder.wide("last", Rows::Logits, hidden);
        builder.push(Op::GatherRows { x, out: last });
        let last_norm = builder.tensor("last_norm", Rows::Logits, hidden);
        builder.rms_norm(last, "norm", "norm.weight", last_norm);
        let head = match config.tie_word_embeddings {
            true => table,
            false => builder.matrix("lm_head", config.vocab_size, hidden, "lm_head.weight"),
        };
        let logits = builder.wide("logits", Rows::Logits, config.vocab_size);
        builder.push(Op::Linear { x: last_norm, weight: head, out: logits });
        builder.program.logits = logits;
        builder.program.validate()?;
        Ok(builder.program)
    }
}

struct Builder<'a> {
    config: &'a ModelConfig,
    options: BuildOptions,
    program: Program,
    /// Layer being built: its number is in front of the names and in the nodes.
    layer: Option<usize>,
}

impl<'a> Builder<'a> {
    fn new(config: &'a ModelConfig, options: BuildOptions) -> Builder<'a> {
        let program = Program {
            tensors: Vec::new(),
            weights: Vec::new(),
            states: Vec::new(),
            nodes: Vec::new(),
            logits: View { tensor: TensorId(0), column: 0, width: 0 },
            vocab_size: config.vocab_size,
        };
        Builder { config, options, program, layer: None }
    }

    /// GDN or full attention with its norm and its addition to the residual stream.
    fn token_mixer(&mut self, x: View, kind: LayerKind) {
        let h = self.tensor("h", Rows::Tokens, self.config.hidden_size);
        self.rms_norm(x, "input_layernorm", "input_layernorm.weight", h);
        let mixed = self.wide("mixed", Rows::Tokens, self.config.hidden_size);
        let config = self.config;
        match (kind, &config.gdn) {
            (LayerKind::Gdn, Some(gdn)) => self.gdn(h, gdn, mixed),
            (LayerKind::Gdn, None) => unreachable!("check_config wants a GDN configuration for GDN layers"),
            (LayerKind::FullAttention, _) => self.attention(h, &config.attention, mixed),
        }
        self.push(Op::Add { a: x, b: mixed, out: x });
    }

    fn gdn(&mut self, h: View, config: &GdnConfig, mixed: View) {
        let &GdnConfig { num_key_heads, num_value_heads, key_head_dim, value_head_dim, conv_kernel } = config;
        let shape = GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim };
        let key_width = num_key_heads * key_head_dim;
        let value_width = num_value_heads * value_head_dim;
        let channels = 2 * key_width + value_width;

        let projections = [("qkv", channels), ("z", value_width), ("b", num_value_heads), ("a", num_value_heads)];
        let parts = projections.map(|(part, rows)| self.whole(&format!("linear_attn.in_proj_{part}.weight"), rows));
        let proj = self.project(h, "in_proj", parts.to_vec(), "proj");
        let [qkv, z, b, a] = split(proj, projections.map(|(_, width)| width));

        let scanned = self.options.scanned(key_head_dim);
        let conv = self.tensor_of("conv", Rows::Tokens, channels, scanned);
        let part = self.whole("linear_attn.conv1d.weight", channels);
        let kind = WeightKind::Convolution { channels, taps: conv_kernel };
        let weight = self.weight("conv1d", kind, Dtype::F32, vec![part]);
        let kind = StateKind::ConvState { channels, taps: conv_kernel };
        let state = self.state("conv_state", kind, Dtype::F32.into());
        self.push(Op::GdnConv { x: qkv, weight, state, kernel: conv_kernel, out: conv });

        let [q, k, v] = split(conv, [key_width, key_width, value_width]);
        let scale = (key_head_dim as f32).powf(-0.5);
        // Queries and keys side by side; only queries are scaled.
        let both = View { width: q.width + k.width, ..q };
        let heads = 2 * num_key_heads;
        self.push(Op::L2Norm { x: both, heads, scaled: num_key_heads, scale, eps: L2_NORM_EPS, out: both });

        let a_log = self.vector("a_log", num_value_heads, "linear_attn.A_log");
        let dt_bias = self.vector("dt_bias", num_value_heads, "linear_attn.dt_bias");
        let beta = self.tensor_of("beta", Rows::Tokens, num_value_heads, Dtype::F32);
        let decay = self.tensor_of("decay", Rows::Tokens, num_value_heads, Dtype::F32);
        self.push(Op::GdnGates { b, a, a_log, dt_bias, beta, decay });

        let out = self.tensor_of("gdn", Rows::Tokens, value_width, scanned);
        let kind = StateKind::GdnState { value_heads: num_value_heads, key_head_dim, value_head_dim };
        let state = self.state("gdn_state", kind, Dtype::F32.into());
        self.push(Op::GdnScan { q, k, v, beta, decay, state, shape, out });

        let weight = self.vector("gdn_norm", value_head_dim, "linear_attn.norm.weight");
        let eps = self.config.rms_norm_eps;
        let gated = self.tensor("gated", Rows::Tokens, value_width);
        self.push(Op::GatedRmsNorm { x: out, gate: z, weight, heads: num_value_heads, eps, out: gated });
        self.linear(gated, "out_proj", "linear_attn.out_proj.weight", mixed);
    }

    fn attention(&mut self, h: View, config: &AttentionConfig, mixed: View) {
        let &AttentionConfig { num_heads, num_kv_heads, head_dim, output_gate, .. } = config;
        let scale = (head_dim as f32).powf(-0.5);
        let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale };
        let (query_width, kv_width) = (num_heads * head_dim, num_kv_heads * head_dim);
        let gate_width = if output_gate { query_width } else { 0 };

        // With an output gate the checkpoint's `q_proj` holds [query | gate] head by head.
        let heads_of = |start| WeightPart {
            source: self.source("self_attn.q_proj.weight"),
            source_rows: 2 * query_width,
            start,
            rows: query_width,
            run: head_dim,
            stride: 2 * head_dim,
        };
        let mut parts = match output_gate {
            true => vec![heads_of(0), heads_of(head_dim)],
            false => vec![self.whole("self_attn.q_proj.weight", query_width)],
        };
        parts.push(self.whole("self_attn.k_proj.weight", kv_width));
        parts.push(self.whole("self_attn.v_proj.weight", kv_width));
        let proj = self.project(h, "qkv", parts, "proj");
        let [q, gate, k, v] = split(proj, [query_width, gate_width, kv_width, kv_width]);

        let query = self.tensor_of("q", Rows::Tokens, query_width, self.options.queries());
        self.qk_norm_rope(q, num_heads, "q_norm", query);
        self.qk_norm_rope(k, num_kv_heads, "k_norm", k);
        let state = self.state("kv", StateKind::KvCache { kv_heads: num_kv_heads, head_dim }, self.options.kv_cache);
        self.push(Op::KvAppend { k, v, state, shape });
        // The gate, where there is one, takes the result before it is rounded.
        let dtype = if output_gate { Dtype::F32 } else { self.options.activations };
        let mut out = self.tensor_of("attn", Rows::Tokens, query_width, dtype);
        self.push(Op::Attention { q: query, state, shape, gate: None, out });
        if output_gate {
            let gated = self.tensor("attn_gated", Rows::Tokens, query_width);
            self.push(Op::SigmoidGate { x: out, gate, out: gated });
            out = gated;
        }
        self.linear(out, "o_proj", "self_attn.o_proj.weight", mixed);
    }

    fn qk_norm_rope(&mut self, x: View, heads: usize, name: &str, out: View) {
        let AttentionConfig { head_dim, rotary_dim, rope_theta, .. } = self.config.attention;
        let weight = self.vector(name, head_dim, &format!("self_attn.{name}.weight"));
        let eps = self.config.rms_norm_eps;
        self.push(Op::QkNormRope { x, weight, heads, rotary_dim, theta: rope_theta, eps, out });
    }

    fn mlp(&mut self, x: View) {
        let (hidden, width) = (self.config.hidden_size, self.config.intermediate_size);
        let input = self.tensor("mlp_in", Rows::Tokens, hidden);
        self.rms_norm(x, "post_attention_layernorm", "post_attention_layernorm.weight", input);
        let parts = vec![self.whole("mlp.gate_proj.weight", width), self.whole("mlp.up_proj.weight", width)];
        let proj = self.project(input, "gate_up", parts, "mlp_proj");
        let [gate, up] = split(proj, [width, width]);
        let act = self.tensor("mlp_act", Rows::Tokens, width);
        self.push(Op::SiluMul { gate, up, out: act });
        let out = self.wide("mlp_out", Rows::Tokens, hidden);
        self.linear(act, "down", "mlp.down_proj.weight", out);
        self.push(Op::Add { a: x, b: out, out: x });
    }

    /// The packed product of `x` with all parts.
    fn project(&mut self, x: View, name: &str, parts: Vec<WeightPart>, out: &str) -> View {
        let outputs = parts.iter().map(|part| part.rows).sum();
        let kind = WeightKind::Matrix { outputs, inputs: x.width };
        let weight = self.weight(name, kind, self.options.weights, parts);
        let out = self.wide(out, Rows::Tokens, outputs);
        self.push(Op::Linear { x, weight, out });
        out
    }

    fn linear(&mut self, x: View, name: &str, source: &str, out: View) {
        let weight = self.matrix(name, out.width, x.width, source);
        self.push(Op::Linear { x, weight, out });
    }

    fn rms_norm(&mut self, x: View, name: &str, source: &str, out: View) {
        let weight = self.vector(name, x.width, source);
        self.push(Op::RmsNorm { x, weight, eps: self.config.rms_norm_eps, out });
    }

    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize, source: &str) -> WeightId {
        let part = self.whole(source, outputs);
        self.weight(name, WeightKind::Matrix { outputs, inputs }, self.options.weights, vec![part])
    }

    fn vector(&mut self, name: &str, length: usize, source: &str) -> WeightId {
        let part = self.whole(source, length);
        self.weight(name, WeightKind::Vector { length }, Dtype::F32, vec![part])
    }

    /// All rows of a checkpoint tensor of this layer.
    fn whole(&self, source: &str, rows: usize) -> WeightPart {
        WeightPart { source: self.source(source), source_rows: rows, start: 0, rows, run: rows, stride: rows }
    }

    /// The canonical checkpoint name of something of this layer.
    fn source(&self, name: &str) -> String {
        match self.layer {
            Some(layer) => format!("layers.{layer}.{name}"),
            None => name.to_owned(),
        }
    }

    fn weight(&mut self, name: &str, kind: WeightKind, dtype: Dtype, parts: Vec<WeightPart>) -> WeightId {
        self.program.weights.push(WeightDef { name: self.source(name), kind, dtype, parts });
        WeightId(self.program.weights.len() - 1)
    }

    fn state(&mut self, name: &str, kind: StateKind, dtype: CacheDtype) -> StateId {
        self.program.states.push(StateDef { name: self.source(name), kind, dtype });
        StateId(self.program.states.len() - 1)
    }

    /// What a product gives, or the residual stream: in f32.
    fn wide(&mut self, name: &str, rows: Rows, width: usize) -> View {
        self.tensor_of(name, rows, width, Dtype::F32)
    }

    /// What a product or attention takes.
    fn tensor(&mut self, name: &str, rows: Rows, width: usize) -> View {
        self.tensor_of(name, rows, width, self.options.activations)
    }

    fn tensor_of(&mut self, name: &str, rows: Rows, width: usize, dtype: Dtype) -> View {
        self.program.tensors.push(TensorDef { name: self.source(name), rows, width, dtype });
        View { tensor: TensorId(self.program.tensors.len() - 1), column: 0, width }
    }

    fn push(&mut self, op: Op) {
        self.program.nodes.push(Node { layer: self.layer, op });
    }
}

/// Consecutive columns of a view.
fn split<const N: usize>(view: View, widths: [usize; N]) -> [View; N] {
    let mut column = view.column;
    widths.map(|width| {
        let part = View { tensor: view.tensor, column, width };
        column += width;
        part
    })
}

#[cfg(test)]
mod tests;
