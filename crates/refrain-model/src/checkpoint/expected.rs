//! The weights that a configuration implies.

use std::collections::BTreeMap;

use crate::{LayerKind, ModelConfig};

/// Canonical name and shape of every weight.
pub(crate) fn expected_weights(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let mut weights = BTreeMap::new();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    weights.insert("embed_tokens.weight".into(), vec![config.vocab_size, hidden]);
    weights.insert("norm.weight".into(), vec![hidden]);
    if !config.tie_word_embeddings {
        weights.insert("lm_head.weight".into(), vec![config.vocab_size, hidden]);
    }
    for (i, kind) in config.layers.iter().enumerate() {
        let mut add = |name: &str, shape: &[usize]| {
            weights.insert(format!("layers.{i}.{name}"), shape.to_vec());
        };
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        add("mlp.gate_proj.weight", &[inner, hidden]);
        add("mlp.up_proj.weight", &[inner, hidden]);
        add("mlp.down_proj.weight", &[hidden, inner]);
        match (kind, &config.gdn) {
            (LayerKind::FullAttention, _) => {
                let attention = &config.attention;
                let (q, kv) = (attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim);
                let gated = if attention.output_gate { 2 * q } else { q };
                add("self_attn.q_proj.weight", &[gated, hidden]);
                add("self_attn.k_proj.weight", &[kv, hidden]);
                add("self_attn.v_proj.weight", &[kv, hidden]);
                add("self_attn.o_proj.weight", &[hidden, q]);
                add("self_attn.q_norm.weight", &[attention.head_dim]);
                add("self_attn.k_norm.weight", &[attention.head_dim]);
            }
            (LayerKind::Gdn, Some(gdn)) => {
                let (key, value) = (gdn.num_key_heads * gdn.key_head_dim, gdn.num_value_heads * gdn.value_head_dim);
                let channels = 2 * key + value;
                add("linear_attn.in_proj_qkv.weight", &[channels, hidden]);
                add("linear_attn.in_proj_z.weight", &[value, hidden]);
                add("linear_attn.in_proj_b.weight", &[gdn.num_value_heads, hidden]);
                add("linear_attn.in_proj_a.weight", &[gdn.num_value_heads, hidden]);
                add("linear_attn.conv1d.weight", &[channels, 1, gdn.conv_kernel]);
                add("linear_attn.A_log", &[gdn.num_value_heads]);
                add("linear_attn.dt_bias", &[gdn.num_value_heads]);
                add("linear_attn.norm.weight", &[gdn.value_head_dim]);
                add("linear_attn.out_proj.weight", &[hidden, value]);
            }
            (LayerKind::Gdn, None) => unreachable!("a config with GDN layers has their sizes"),
        }
    }
    weights
}
