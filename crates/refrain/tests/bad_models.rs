//! Damaged and hostile model folders, given to the real binary: each is refused at once, naming what is wrong.

mod common;

use common::{Server, changed_tinytales, edit, edit_config, refrain};
use std::path::Path;

const SHARD: &str = "model-00002-of-00002.safetensors";

/// Changes the JSON in front of a shard's data.
fn edit_header(folder: &Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    edit(folder, SHARD, |bytes| {
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut json = serde_json::from_slice(header).unwrap();
        change(&mut json);
        let header = serde_json::to_vec(&json).unwrap();
        [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
    });
}

/// Some tensor of the shard.
fn first_tensor(header: &serde_json::Map<String, serde_json::Value>) -> String {
    header.keys().find(|name| name.ends_with(".weight")).unwrap().clone()
}

/// The model is refused, without a panic, and the message has all the words.
fn refused(words: &[&str], damage: impl FnOnce(&Path)) {
    let folder = changed_tinytales(damage);
    let output = refrain().args(["chat", "--prompt", "hi", "--max-tokens", "4", "--model"]).arg(folder.path()).output();
    let output = output.unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in {message:?}");
    }
}

#[test]
fn the_undamaged_copy_works() {
    let folder = changed_tinytales(|_| ());
    let output = refrain().args(["chat", "--prompt", "hi", "--max-tokens", "4", "--model"]).arg(folder.path()).output();
    assert!(output.unwrap().status.success());
}

#[test]
fn damaged_weights_name_the_file_and_the_tensor() {
    refused(&[SHARD], |folder| edit(folder, SHARD, |bytes| bytes[..bytes.len() / 2].to_vec()));
    refused(&[SHARD], |folder| edit(folder, SHARD, |_| Vec::new()));
    refused(&[SHARD], |folder| edit(folder, SHARD, |bytes| [&u64::MAX.to_le_bytes()[..], &bytes[8..]].concat()));
    refused(&[SHARD], |folder| {
        edit(folder, SHARD, |mut bytes| {
            bytes[8..40].fill(b'{');
            bytes
        })
    });
    refused(&[SHARD], |folder| std::fs::remove_file(folder.join(SHARD)).unwrap());
    refused(&["model.safetensors.index.json"], |folder| {
        edit(folder, "model.safetensors.index.json", |_| b"{\"weight_map\": 3}".to_vec());
    });
}

#[test]
fn lying_headers_name_the_tensor() {
    let mut name = String::new();
    let offsets = |begin: u64, end: u64| serde_json::json!([begin, end]);
    for (begin, end) in [(0, u64::MAX), (8, 4), (1 << 40, (1 << 40) + 8)] {
        refused(&[SHARD], |folder| {
            edit_header(folder, |header| {
                name = first_tensor(header);
                header[&name]["data_offsets"] = offsets(begin, end);
            });
        });
    }
    // Two tensors in one place.
    refused(&[SHARD], |folder| {
        edit_header(folder, |header| {
            let names: Vec<String> = header.keys().filter(|name| name.ends_with("_proj.weight")).cloned().collect();
            let place = header[&names[0]]["data_offsets"].clone();
            let shape = header[&names[0]]["shape"].clone();
            header[&names[1]]["data_offsets"] = place;
            header[&names[1]]["shape"] = shape;
        });
    });
    refused(&[SHARD, "Q7"], |folder| {
        edit_header(folder, |header| {
            name = first_tensor(header);
            header[&name]["dtype"] = "Q7".into();
        });
    });
    refused(&["norm.weight"], |folder| {
        edit_header(folder, |header| {
            let norm = header.remove("model.norm.weight").expect("the last shard has the last norm");
            header.insert("model.other.weight".to_owned(), norm);
        });
    });
}

#[test]
fn weights_of_another_shape_name_the_tensor_and_both_shapes() {
    refused(&["layers.0.mlp", "768", "512"], |folder| edit_config(folder, "intermediate_size", 512.into()));
    refused(&["embed_tokens.weight", "8192", "9000"], |folder| edit_config(folder, "vocab_size", 9000.into()));
}

#[test]
fn impossible_configurations_name_the_field() {
    let architecture = serde_json::json!(["GPT2LMHeadModel"]);
    refused(&["GPT2LMHeadModel", "Qwen3_5ForCausalLM"], |folder| edit_config(folder, "architectures", architecture));
    refused(&["hidden_size"], |folder| edit_config(folder, "hidden_size", 0.into()));
    refused(&["num_attention_heads"], |folder| edit_config(folder, "num_attention_heads", (-3).into()));
    refused(&["rms_norm_eps"], |folder| edit_config(folder, "rms_norm_eps", "small".into()));
    refused(&["config.json"], |folder| edit(folder, "config.json", |_| b"{".to_vec()));
    refused(&["config.json"], |folder| std::fs::remove_file(folder.join("config.json")).unwrap());
    refused(&["tokenizer.json"], |folder| edit(folder, "tokenizer.json", |_| b"{}".to_vec()));
    refused(&["generation_config.json"], |folder| edit(folder, "generation_config.json", |_| b"[]".to_vec()));
}

#[test]
fn endless_templates_end() {
    for template in [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% set x = i * j %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(100000) %}{{ 'a' * 100000 }}{% endfor %}",
        "{{ raise_exception('not today') }}",
        "{% if %}",
    ] {
        refused(&["template"], |folder| edit(folder, "chat_template.jinja", |_| template.as_bytes().to_vec()));
    }
}

#[test]
fn a_template_that_fails_fails_one_request_and_not_the_server() {
    let template = "{% if messages[0].content == 'loop' %}{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}\
                    {% endif %}{{ messages[0].content }}";
    let folder = changed_tinytales(|folder| edit(folder, "chat_template.jinja", |_| template.as_bytes().to_vec()));
    let server = Server::start(&["--model", folder.path().to_str().unwrap(), "--max-num-seqs", "2"]);
    let ask = |text: &str| {
        let body = format!(r#"{{"messages": [{{"role": "user", "content": "{text}"}}], "max_tokens": 2}}"#);
        server.ask("POST", "/v1/chat/completions", &body)
    };
    assert!(ask("loop").starts_with("HTTP/1.1 400 "), "{}", ask("loop"));
    assert!(ask("hello").starts_with("HTTP/1.1 200 "), "{}", ask("hello"));
}
