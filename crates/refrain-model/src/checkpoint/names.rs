//! What a tensor belongs to, by its name.

/// The part of the model that a tensor belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// The language model; its canonical name.
    Text(&'a str),
    /// The vision tower.
    Vision,
    /// The multi-token-prediction block.
    Mtp,
    /// None of these.
    Unknown,
}

/// Names of one decoder layer, behind `layers.N.`.
const LAYER_WEIGHTS: [&str; 20] = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "linear_attn.in_proj_qkv.weight",
    "linear_attn.in_proj_z.weight",
    "linear_attn.in_proj_b.weight",
    "linear_attn.in_proj_a.weight",
    "linear_attn.conv1d.weight",
    "linear_attn.A_log",
    "linear_attn.dt_bias",
    "linear_attn.norm.weight",
    "linear_attn.out_proj.weight",
];

/// What the tensor of this name, as a file spells it, belongs to.
pub(super) fn role(name: &str) -> Role<'_> {
    if name.starts_with("model.visual.") || name.starts_with("visual.") {
        return Role::Vision;
    }
    if name.starts_with("mtp.") || name.starts_with("model.mtp.") {
        return Role::Mtp;
    }
    if name == "lm_head.weight" {
        return Role::Text(name);
    }
    let inner = name.strip_prefix("model.language_model.").or_else(|| name.strip_prefix("model."));
    match inner {
        Some("embed_tokens.weight" | "norm.weight") => Role::Text(inner.unwrap_or(name)),
        Some(inner) if is_layer_weight(inner) => Role::Text(inner),
        _ => Role::Unknown,
    }
}

fn is_layer_weight(inner: &str) -> bool {
    let Some((layer, weight)) = inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.')) else {
        return false;
    };
    // The number as it would be written, so that `layers.07` doesn't stand for two names.
    layer.parse::<u32>().is_ok_and(|number| number.to_string() == layer) && LAYER_WEIGHTS.contains(&weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_prefixes_lead_to_one_name() {
        for prefix in ["model.", "model.language_model."] {
            for name in
                ["embed_tokens.weight", "norm.weight", "layers.31.mlp.up_proj.weight", "layers.0.linear_attn.A_log"]
            {
                assert_eq!(role(&format!("{prefix}{name}")), Role::Text(name));
            }
        }
        assert_eq!(role("lm_head.weight"), Role::Text("lm_head.weight"));
    }

    #[test]
    fn other_parts_are_known() {
        assert_eq!(role("model.visual.blocks.0.norm1.weight"), Role::Vision);
        assert_eq!(role("visual.pos_embed.weight"), Role::Vision);
        assert_eq!(role("mtp.layers.0.mlp.up_proj.weight"), Role::Mtp);
        assert_eq!(role("mtp.fc.weight"), Role::Mtp);
    }

    #[test]
    fn nothing_else_is() {
        for name in [
            "",
            "model.",
            "model.lm_head.weight",
            "model.layers.0.mlp.up_proj.bias",
            "model.layers.0.self_attn.q_proj.weight_scale",
            "model.layers.00.input_layernorm.weight",
            "model.layers.+1.input_layernorm.weight",
            "model.layers.-1.input_layernorm.weight",
            "model.layers.99999999999.input_layernorm.weight",
            "model.layers..input_layernorm.weight",
            "model.model.norm.weight",
        ] {
            assert_eq!(role(name), Role::Unknown, "{name}");
        }
    }
}
