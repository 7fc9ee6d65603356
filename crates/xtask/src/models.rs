//! The models whose kernels are compiled ahead, by their shapes.

use refrain_model::{AttentionConfig, Dtype, GdnConfig, LayerKind, ModelConfig};

/// A shape with its name.
pub struct Model {
    /// Name, as the command line takes it.
    pub name: &'static str,
    /// Its shape.
    pub config: ModelConfig,
}

/// The embedded model and the published ones; the numbers are those of their config.json.
pub fn published() -> Vec<Model> {
    let small = qwen(1024, 3584, 8, 16);
    vec![
        Model { name: "tinytales", config: tinytales() },
        Model { name: "0.8b", config: layers(24, small.clone()) },
        Model { name: "2b", config: layers(24, ModelConfig { hidden_size: 2048, intermediate_size: 6144, ..small }) },
        Model { name: "4b", config: layers(32, qwen(2560, 9216, 16, 32)) },
        Model {
            name: "9b",
            config: layers(32, ModelConfig { tie_word_embeddings: false, ..qwen(4096, 12288, 16, 32) }),
        },
        Model {
            name: "27b",
            config: layers(64, ModelConfig { tie_word_embeddings: false, ..qwen(5120, 17408, 24, 48) }),
        },
    ]
}

/// The small shapes of the goldens, which tests run: every kernel without the sizes that it was made for.
pub fn of_tests() -> Vec<Model> {
    let micro = micro();
    let gdn = micro.gdn.clone().expect("it has GDN layers");
    let odd = ModelConfig {
        hidden_size: 72,
        intermediate_size: 100,
        vocab_size: 509,
        attention: AttentionConfig {
            num_heads: 3,
            num_kv_heads: 1,
            head_dim: 40,
            rotary_dim: 10,
            ..micro.attention.clone()
        },
        gdn: Some(GdnConfig { num_key_heads: 1, num_value_heads: 3, key_head_dim: 24, value_head_dim: 40, ..gdn }),
        ..micro.clone()
    };
    vec![Model { name: "micro", config: micro }, Model { name: "odd", config: odd }]
}

/// A shape of the published family: 256 wide heads, 128 wide GDN heads, everything else by the model's size.
fn qwen(hidden: usize, intermediate: usize, heads: usize, value_heads: usize) -> ModelConfig {
    let base = tinytales();
    let gdn = base.gdn.clone().expect("it has GDN layers");
    ModelConfig {
        hidden_size: hidden,
        intermediate_size: intermediate,
        vocab_size: 248_320,
        max_position_embeddings: 262_144,
        attention: AttentionConfig {
            num_heads: heads,
            num_kv_heads: if heads == 8 { 2 } else { 4 },
            rope_theta: 1e7,
            ..base.attention.clone()
        },
        gdn: Some(GdnConfig { num_key_heads: 16, num_value_heads: value_heads, ..gdn }),
        ..base
    }
}

/// Three GDN layers, then one of full attention, and so on.
fn layers(count: usize, config: ModelConfig) -> ModelConfig {
    let kind = |layer: usize| if layer.is_multiple_of(4) { LayerKind::FullAttention } else { LayerKind::Gdn };
    ModelConfig { layers: (1..=count).map(kind).collect(), ..config }
}

fn tinytales() -> ModelConfig {
    let config = ModelConfig {
        hidden_size: 256,
        intermediate_size: 768,
        vocab_size: 8192,
        max_position_embeddings: 8192,
        layers: Vec::new(),
        attention: AttentionConfig {
            num_heads: 2,
            num_kv_heads: 1,
            head_dim: 256,
            rotary_dim: 64,
            rope_theta: 1e6,
            output_gate: true,
        },
        gdn: Some(GdnConfig {
            num_key_heads: 2,
            num_value_heads: 4,
            key_head_dim: 128,
            value_head_dim: 128,
            conv_kernel: 4,
        }),
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        eos_token_ids: Vec::new(),
        dtype: Some(Dtype::Bf16),
        architecture: "Qwen3_5ForCausalLM".to_owned(),
    };
    layers(8, config)
}

fn micro() -> ModelConfig {
    let base = tinytales();
    let config = ModelConfig {
        hidden_size: 64,
        intermediate_size: 160,
        vocab_size: 512,
        max_position_embeddings: 4096,
        attention: AttentionConfig {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 64,
            rotary_dim: 16,
            rope_theta: 1e7,
            output_gate: true,
        },
        gdn: Some(GdnConfig {
            num_key_heads: 2,
            num_value_heads: 4,
            key_head_dim: 32,
            value_head_dim: 32,
            conv_kernel: 4,
        }),
        tie_word_embeddings: false,
        ..base
    };
    layers(4, config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_testkit::{random_checkpoint, workspace_root};
    use std::path::Path;

    /// Without what decides about no kernel.
    fn shape(config: &ModelConfig) -> ModelConfig {
        let (eos_token_ids, architecture) = (Vec::new(), String::new());
        ModelConfig { eos_token_ids, architecture, dtype: None, ..config.clone() }
    }

    fn stored(folder: &Path) -> ModelConfig {
        ModelConfig::from_json(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap()
    }

    #[test]
    fn small_shapes_are_those_of_their_folders() {
        let of = |name: &str| {
            let models = published().into_iter().chain(of_tests());
            models.into_iter().find(|model| model.name == name).unwrap().config
        };
        assert_eq!(shape(&of("tinytales")), shape(&stored(&workspace_root().join("models/tinytales"))));
        for (name, golden) in [("micro", "micro-0-bf16"), ("odd", "odd-1-bf16")] {
            let Some(folder) = random_checkpoint(golden) else { return };
            assert_eq!(shape(&of(name)), shape(&stored(&folder)), "{name}");
        }
    }
}
