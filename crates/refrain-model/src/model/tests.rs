use std::fs;
use std::path::Path;

use serde_json::json;

use super::*;
use crate::ChatInput;
use crate::test_support::{TINY_CONFIG, tiny_tensors, write_safetensors};

/// A folder with a config and weights, nothing else.
fn bare_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), TINY_CONFIG).unwrap();
    write_safetensors(&folder.path().join("model.safetensors"), &tiny_tensors("model.", "BF16"));
    folder
}

fn open(folder: &Path) -> Result<Model, ModelError> {
    Model::open(&ModelSource::Folder(folder.into()))
}

/// Renders `[{"role": "user", "content": "hi"}]`.
fn prompt(model: &Model) -> String {
    let (messages, kwargs) = (json!([{ "role": "user", "content": "hi" }]), Map::new());
    let input = ChatInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &kwargs,
    };
    model.template.as_ref().unwrap().render(&input).unwrap()
}

#[test]
fn the_embedded_model_opens() {
    let model = Model::open(&ModelSource::Embedded).unwrap();
    assert_eq!((model.name.as_str(), &model.source), ("tinytales", &ModelSource::Embedded));
    assert_eq!(model.eos_token_ids(), [8183, 8185]);
    assert_eq!((model.generation.temperature, model.generation.top_k), (Some(0.7), Some(20)));
    assert_eq!(model.special_tokens.eos.as_deref(), Some("<|im_end|>"));
    assert_eq!(model.special_tokens.bos, None);
    assert_eq!(prompt(&model), "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    let tokenizer = model.tokenizer.unwrap();
    assert_eq!(tokenizer.vocab_size(), model.config.vocab_size);
}

#[test]
fn only_config_and_weights_are_needed() {
    let folder = bare_folder();
    let model = open(folder.path()).unwrap();
    assert!(model.tokenizer.is_none() && model.template.is_none());
    assert_eq!(model.generation, GenerationConfig::default());
    assert_eq!(model.name, folder.path().to_str().unwrap());
    assert_eq!(model.eos_token_ids(), [3]);
}

#[test]
fn the_template_file_comes_before_that_of_the_tokenizer_config() {
    let folder = bare_folder();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }} one"}"#);
    assert_eq!(prompt(&open(folder.path()).unwrap()), "<s> one");
    let named =
        json!({ "chat_template": [{ "name": "tool_use", "template": "a" }, { "name": "default", "template": "b" }] });
    write("tokenizer_config.json", &named.to_string());
    assert_eq!(prompt(&open(folder.path()).unwrap()), "b");
    write("chat_template.jinja", "from the file");
    assert_eq!(prompt(&open(folder.path()).unwrap()), "from the file");
}

#[test]
fn eos_ids_of_both_files_count() {
    let folder = bare_folder();
    fs::write(folder.path().join("generation_config.json"), r#"{"eos_token_id": [7, 3], "top_k": 5}"#).unwrap();
    let model = open(folder.path()).unwrap();
    assert_eq!((model.eos_token_ids(), model.generation.top_k), (vec![3, 7], Some(5)));
}

/// Each broken file is named.
#[test]
fn what_is_wrong_is_named() {
    let mut messages = Vec::new();
    for (name, content) in [
        ("config.json", &b"{"[..]),
        ("config.json", b"{\"architectures\": [\"MambaForCausalLM\"]}"),
        ("config.json", b"{\"model_type\": \"\xff\"}"),
        ("generation_config.json", b"[]"),
        ("generation_config.json", b"{\"eos_token_id\": 16}"),
        ("generation_config.json", b"{\"temperature\": -1}"),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b"\xfe"),
        ("tokenizer_config.json", b"7"),
        ("tokenizer_config.json", b"{\"chat_template\": 7}"),
        ("tokenizer_config.json", b"{\"chat_template\": [{\"name\": \"rag\", \"template\": \"\"}]}"),
        ("tokenizer_config.json", b"{\"chat_template\": \"{% if %}\"}"),
        ("tokenizer_config.json", b"{\"bos_token\": 7}"),
        ("tokenizer_config.json", b"{\"bos_token\": {}}"),
        ("chat_template.jinja", b"{{ "),
        ("chat_template.jinja", b"ok \xc3"),
        ("model.safetensors", b"not a safetensors file"),
    ] {
        let folder = bare_folder();
        fs::write(folder.path().join(name), content).unwrap();
        let error = open(folder.path()).expect_err(name).to_string();
        messages.push(error.replace(folder.path().to_str().unwrap(), "FOLDER"));
    }
    for name in ["config.json", "model.safetensors"] {
        let folder = bare_folder();
        fs::remove_file(folder.path().join(name)).unwrap();
        let error = open(folder.path()).expect_err(name).to_string();
        messages.push(error.replace(folder.path().to_str().unwrap(), "FOLDER"));
    }
    messages.push(open(Path::new("no/such/folder")).unwrap_err().to_string());
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_folder_where_a_file_should_be_is_an_error() {
    let folder = bare_folder();
    fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
    assert!(matches!(open(folder.path()), Err(ModelError::Io { action: "read", .. })));
}
