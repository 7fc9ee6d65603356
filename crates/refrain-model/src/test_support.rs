//! Small model folders for tests.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;

/// A tensor for a test file: name, type as the format spells it, shape. Its bytes count up from the length of its name.
pub(crate) type TestTensor = (String, &'static str, Vec<usize>);

/// config.json of a model of three layers, GDN, full, GDN.
pub(crate) const TINY_CONFIG: &str = r#"{
    "architectures": ["Qwen3_5ForCausalLM"], "hidden_size": 8, "intermediate_size": 12, "vocab_size": 16,
    "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "linear_num_key_heads": 1,
    "linear_num_value_heads": 2, "linear_key_head_dim": 4, "linear_value_head_dim": 4, "tie_word_embeddings": true,
    "eos_token_id": 3, "max_position_embeddings": 64
}"#;

/// Its tensors, with their names behind `prefix` and in one type, A_log and the GDN norm in F32.
pub(crate) fn tiny_tensors(prefix: &str, dtype: &'static str) -> Vec<TestTensor> {
    let config = crate::ModelConfig::from_json(TINY_CONFIG).unwrap();
    let weights = crate::checkpoint::expected_weights(&config);
    let full = |(name, shape): (String, Vec<usize>)| {
        let f32_here = name.ends_with("A_log") || name.ends_with("linear_attn.norm.weight");
        (format!("{prefix}{name}"), if f32_here { "F32" } else { dtype }, shape)
    };
    weights.into_iter().map(full).collect()
}

fn element_bytes(dtype: &str) -> usize {
    match dtype {
        "F8_E4M3" | "U8" => 1,
        "BF16" | "F16" => 2,
        "F32" => 4,
        other => panic!("{other}"),
    }
}

/// Writes a safetensors file.
pub(crate) fn write_safetensors(path: &Path, tensors: &[TestTensor]) {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, dtype, shape) in tensors {
        let begin = data.len();
        let bytes = shape.iter().product::<usize>() * element_bytes(dtype);
        data.extend((0..bytes).map(|i| (i + name.len()) as u8));
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    fs::write(path, file).unwrap();
}

/// Writes tensors as shards of at most `each` tensors, with an index.
pub(crate) fn write_shards(folder: &Path, tensors: &[TestTensor], each: usize) {
    let mut weight_map = BTreeMap::new();
    for (i, shard) in tensors.chunks(each).enumerate() {
        let name = format!("model-{i:05}.safetensors");
        write_safetensors(&folder.join(&name), shard);
        weight_map.extend(shard.iter().map(|(tensor, _, _)| (tensor.clone(), name.clone())));
    }
    write_index(folder, &weight_map);
}

/// Writes model.safetensors.index.json.
pub(crate) fn write_index(folder: &Path, weight_map: &BTreeMap<String, String>) {
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}
