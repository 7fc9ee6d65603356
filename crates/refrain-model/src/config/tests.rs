use super::*;

/// A config.json as published, with one field replaced (`"{}"` JSON, `"-"` removes it).
fn nested(field: &str, value: &str) -> String {
    let text = r#"{
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "image_token_id": 248056,
        "tie_word_embeddings": true, "vision_config": {"depth": 12, "hidden_size": 768},
        "text_config": {
            "attention_bias": false, "attn_output_gate": true, "dtype": "bfloat16", "eos_token_id": 248044,
            "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 1024,
            "intermediate_size": 3584, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 16, "linear_value_head_dim": 128,
            "max_position_embeddings": 262144, "mtp_num_hidden_layers": 1, "num_attention_heads": 8,
            "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 248320,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                "mrope_interleaved": true, "mrope_section": [11, 11, 10]}
        }
    }"#;
    let mut config: Value = serde_json::from_str(text).unwrap();
    let mut at = &mut config;
    let mut parts: Vec<&str> = field.split('.').collect();
    let last = parts.pop().unwrap();
    for part in parts {
        at = &mut at[part];
    }
    if value == "-" {
        at.as_object_mut().unwrap().remove(last);
    } else {
        at[last] = serde_json::from_str(value).unwrap();
    }
    config.to_string()
}

#[test]
fn reads_the_published_layout() {
    let config = ModelConfig::from_json(&nested("x", "1")).unwrap();
    assert_eq!(config.architecture, "Qwen3_5ForConditionalGeneration");
    assert_eq!((config.hidden_size, config.intermediate_size, config.vocab_size), (1024, 3584, 248_320));
    assert_eq!(config.layers.len(), 24);
    let full: Vec<usize> = (0..24).filter(|&i| config.layers[i] == LayerKind::FullAttention).collect();
    assert_eq!(full, [3, 7, 11, 15, 19, 23]);
    let attention = AttentionConfig {
        num_heads: 8,
        num_kv_heads: 2,
        head_dim: 256,
        rotary_dim: 64,
        rope_theta: 1e7,
        output_gate: true,
    };
    assert_eq!(config.attention, attention);
    let gdn =
        GdnConfig { num_key_heads: 16, num_value_heads: 16, key_head_dim: 128, value_head_dim: 128, conv_kernel: 4 };
    assert_eq!(config.gdn, Some(gdn));
    assert_eq!((config.max_position_embeddings, config.rms_norm_eps), (262_144, 1e-6));
    assert!(config.tie_word_embeddings);
    assert_eq!((config.eos_token_ids, config.dtype), (vec![248_044], Some(Dtype::Bf16)));
}

#[test]
fn absent_fields_have_the_defaults_of_transformers() {
    let config = ModelConfig::from_json(r#"{"architectures": ["Qwen3_5ForCausalLM"]}"#).unwrap();
    let expected = ModelConfig {
        hidden_size: 4096,
        intermediate_size: 12_288,
        vocab_size: 248_320,
        max_position_embeddings: 32_768,
        layers: (1..=32).map(|i| if i % 4 == 0 { LayerKind::FullAttention } else { LayerKind::Gdn }).collect(),
        attention: AttentionConfig {
            num_heads: 16,
            num_kv_heads: 4,
            head_dim: 256,
            rotary_dim: 64,
            rope_theta: 1e4,
            output_gate: true,
        },
        gdn: Some(GdnConfig {
            num_key_heads: 16,
            num_value_heads: 32,
            key_head_dim: 128,
            value_head_dim: 128,
            conv_kernel: 4,
        }),
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        eos_token_ids: vec![],
        dtype: None,
        architecture: "Qwen3_5ForCausalLM".into(),
    };
    assert_eq!(config, expected);
}

#[test]
fn reads_flat_rope_fields_and_both_names_of_the_dtype() {
    let json = r#"{"architectures": ["Qwen3_5ForCausalLM"], "rope_theta": 500000, "partial_rotary_factor": 0.5,
        "head_dim": 64, "torch_dtype": "float16", "eos_token_id": [5, 3, 5]}"#;
    let config = ModelConfig::from_json(json).unwrap();
    assert_eq!((config.attention.rope_theta, config.attention.rotary_dim), (5e5, 32));
    assert_eq!((config.dtype, config.eos_token_ids), (Some(Dtype::F16), vec![3, 5]));
    let nested = r#"{"architectures": ["Qwen3_5ForCausalLM"], "rope_theta": 1e6, "rope_scaling": {"type": "default",
        "rope_theta": 2e6}}"#;
    assert_eq!(ModelConfig::from_json(nested).unwrap().attention.rope_theta, 2e6, "the nested field wins");
}

#[test]
fn takes_any_schedule_of_layers() {
    let json = r#"{"model_type": "qwen3_5_text", "num_hidden_layers": 3,
        "layer_types": ["full_attention", "linear_attention", "full_attention"]}"#;
    let config = ModelConfig::from_json(json).unwrap();
    assert_eq!(config.layers, [LayerKind::FullAttention, LayerKind::Gdn, LayerKind::FullAttention]);
    assert_eq!(config.architecture, "Qwen3_5ForCausalLM");
    let dense = r#"{"model_type": "qwen3_5_text", "num_hidden_layers": 2, "full_attention_interval": 1,
        "linear_num_key_heads": 3, "linear_num_value_heads": 4}"#;
    let config = ModelConfig::from_json(dense).unwrap();
    assert_eq!(config.layers, [LayerKind::FullAttention; 2]);
    assert_eq!(config.gdn, None, "the sizes of layers that aren't there are not looked at");
}

#[test]
fn the_inner_tie_counts_where_the_outer_is_absent() {
    let json = nested("tie_word_embeddings", "-");
    assert!(!ModelConfig::from_json(&json).unwrap().tie_word_embeddings);
    let json = json.replace(r#""head_dim":256"#, r#""head_dim":256,"tie_word_embeddings":true"#);
    assert!(ModelConfig::from_json(&json).unwrap().tie_word_embeddings);
}

#[test]
fn names_the_field_that_is_wrong_and_what_would_be_right() {
    let mut messages = String::new();
    for (field, value) in [
        ("architectures", r#"["LlamaForCausalLM"]"#),
        ("architectures", r#""Qwen3_5ForCausalLM""#),
        ("architectures", "[]"),
        ("text_config", "-"),
        ("text_config", "[]"),
        ("text_config.num_hidden_layers", "0"),
        ("text_config.num_hidden_layers", "1000000000"),
        ("text_config.hidden_size", "-1024"),
        ("text_config.hidden_size", "1024.5"),
        ("text_config.hidden_size", r#""1024""#),
        ("text_config.hidden_size", "18446744073709551615"),
        ("text_config.hidden_size", "1e300"),
        ("text_config.vocab_size", "0"),
        ("text_config.intermediate_size", "9999999999"),
        ("text_config.num_key_value_heads", "3"),
        ("text_config.head_dim", "0"),
        ("text_config.num_attention_heads", "8192"),
        ("text_config.linear_num_value_heads", "17"),
        ("text_config.linear_conv_kernel_dim", "1"),
        ("text_config.max_position_embeddings", "0"),
        ("text_config.rms_norm_eps", "0"),
        ("text_config.rms_norm_eps", "-1e-6"),
        ("text_config.rope_parameters.rope_theta", "0"),
        ("text_config.rope_parameters.partial_rotary_factor", "1.5"),
        ("text_config.rope_parameters.partial_rotary_factor", "0.001"),
        ("text_config.rope_parameters.partial_rotary_factor", "0.25390625"),
        ("text_config.rope_parameters.rope_type", r#""yarn""#),
        ("text_config.rope_parameters", "[]"),
        ("text_config.attention_bias", "true"),
        ("text_config.attention_bias", "0"),
        ("text_config.hidden_act", r#""gelu""#),
        ("text_config.output_gate_type", r#""sigmoid""#),
        ("text_config.dtype", r#""float8_e4m3fn""#),
        ("text_config.layer_types", r#"["full_attention"]"#),
        ("text_config.layer_types", "7"),
        ("text_config.full_attention_interval", "0"),
        ("text_config.eos_token_id", "248320"),
        ("text_config.eos_token_id", "[1, -1]"),
        ("quantization_config", r#"{"quant_method": "fp8"}"#),
    ] {
        match ModelConfig::from_json(&nested(field, value)) {
            Err(error @ ModelError::Field { .. }) => messages.push_str(&format!("{error}\n")),
            other => panic!("{field} = {value}: {other:?}"),
        }
    }
    insta::assert_snapshot!(messages);
}

#[test]
fn a_wrong_layer_type_is_named_by_its_place() {
    let json = r#"{"model_type": "qwen3_5_text", "num_hidden_layers": 2,
        "layer_types": ["full_attention", "sliding_attention"]}"#;
    insta::assert_snapshot!(ModelConfig::from_json(json).unwrap_err());
}

#[test]
fn a_model_type_that_is_not_known_is_named() {
    let errors = [r#"{"model_type": "llama"}"#, "{}"].map(|json| ModelConfig::from_json(json).unwrap_err().to_string());
    insta::assert_snapshot!(errors.join("\n"));
}

#[test]
fn a_product_that_no_model_has_is_refused() {
    let json = r#"{"model_type": "qwen3_5_text", "num_attention_heads": 4096, "head_dim": 4096}"#;
    let error = ModelConfig::from_json(json).unwrap_err().to_string();
    assert!(error.contains("num_attention_heads x head_dim") && error.contains("16777216"), "{error}");
}

#[test]
fn text_that_is_no_json_object_is_an_error() {
    for json in ["", "[]", "{", "\u{feff}{}", "{} x", "null", &"[".repeat(100_000)] {
        assert!(matches!(ModelConfig::from_json(json), Err(ModelError::Json { .. })), "{json:.20}");
    }
}

proptest::proptest! {
    /// Any text gives a config or an error; any config that comes out is sound.
    #[test]
    fn mutated_configs_never_panic(at in 0usize..1500, byte in 32u8..127) {
        let mut json = nested("x", "1").into_bytes();
        let at = at % json.len();
        json[at] = byte;
        if let Ok(config) = ModelConfig::from_json(std::str::from_utf8(&json).unwrap()) {
            assert!(!config.layers.is_empty() && config.hidden_size > 0 && config.vocab_size > 0);
            assert!(config.attention.num_heads.is_multiple_of(config.attention.num_kv_heads));
            assert!(config.attention.rotary_dim <= config.attention.head_dim);
            assert!(config.attention.rotary_dim > 0 && config.attention.rotary_dim.is_multiple_of(2));
            assert!(config.eos_token_ids.iter().all(|&id| (id as usize) < config.vocab_size));
        }
    }

    #[test]
    fn any_text_is_answered(text in ".{0,200}") {
        let _ = ModelConfig::from_json(&text);
    }
}
