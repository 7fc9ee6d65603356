use std::fs;

use super::*;
use crate::test_support::{TINY_CONFIG, TestTensor, tiny_tensors, write_index, write_safetensors, write_shards};

fn config() -> ModelConfig {
    ModelConfig::from_json(TINY_CONFIG).unwrap()
}

/// The checkpoint of one file with these tensors.
fn open(tensors: &[TestTensor]) -> Result<Checkpoint, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    write_safetensors(&folder.path().join(SINGLE_FILE), tensors);
    Checkpoint::open(folder.path())
}

/// The error's text without the name of the temporary folder.
fn message(folder: &Path, error: &ModelError) -> String {
    error.to_string().replace(folder.to_str().unwrap(), "FOLDER")
}

#[test]
fn both_prefixes_one_file_or_shards_give_the_same_tensors() {
    let mut all = Vec::new();
    for prefix in ["model.", "model.language_model."] {
        for each in [None, Some(5)] {
            let folder = tempfile::tempdir().unwrap();
            let tensors = tiny_tensors(prefix, "BF16");
            match each {
                None => write_safetensors(&folder.path().join(SINGLE_FILE), &tensors),
                Some(each) => write_shards(folder.path(), &tensors, each),
            }
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            checkpoint.validate(&config()).unwrap();
            let found: Vec<_> = checkpoint.tensors().map(|(n, t)| (n.to_string(), t.dtype, t.shape.to_vec())).collect();
            all.push(found);
            for (name, view) in checkpoint.tensors() {
                let stored = prefix.len() + name.len();
                assert!(view.data.iter().enumerate().all(|(i, &byte)| byte == (i + stored) as u8), "{name}");
                checkpoint.release(name);
                assert_eq!(checkpoint.tensor(name).unwrap().data, view.data);
            }
            assert_eq!(checkpoint.skipped(), &Skipped::default());
        }
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
    assert!(all[0].iter().any(|(name, _, shape)| name == "layers.0.linear_attn.conv1d.weight" && shape == &[16, 1, 4]));
}

#[test]
fn every_float_type_is_taken_and_the_widest_is_known() {
    for (dtype, expected) in [("BF16", Dtype::Bf16), ("F16", Dtype::F16), ("F32", Dtype::F32)] {
        let mut tensors = tiny_tensors("model.", dtype);
        let checkpoint = open(&tensors).unwrap();
        checkpoint.validate(&config()).unwrap();
        assert_eq!(checkpoint.widest_matrix_dtype(), expected, "A_log in F32 does not count");
        let bytes: usize = checkpoint.tensors().map(|(_, view)| view.data.len()).sum();
        assert_eq!(checkpoint.total_bytes(), bytes as u64);
        // The small GDN tensors may have the type of the rest.
        tensors.iter_mut().for_each(|tensor| tensor.1 = dtype);
        open(&tensors).unwrap().validate(&config()).unwrap();
        // One matrix that is wider.
        tensors[0].1 = "F32";
        assert_eq!(open(&tensors).unwrap().widest_matrix_dtype(), Dtype::F32);
    }
}

#[test]
fn vision_and_mtp_are_left_alone_whatever_their_type() {
    let mut tensors = tiny_tensors("model.language_model.", "BF16");
    tensors.push(("model.visual.patch_embed.proj.weight".into(), "F8_E4M3", vec![3, 5]));
    tensors.push(("visual.pos_embed.weight".into(), "F32", vec![2]));
    tensors.push(("mtp.fc.weight".into(), "BF16", vec![8, 16]));
    tensors.push(("model.language_model.layers.0.mlp.adapter".into(), "U8", vec![7]));
    let checkpoint = open(&tensors).unwrap();
    let expected = Skipped {
        vision_tensors: 2,
        vision_bytes: 15 + 8,
        mtp_tensors: 1,
        mtp_bytes: 256,
        duplicates: vec![],
        unknown: vec!["model.language_model.layers.0.mlp.adapter".into()],
    };
    assert_eq!(checkpoint.skipped(), &expected);
    checkpoint.validate(&config()).unwrap();
    assert!(checkpoint.tensor("fc.weight").is_none());
}

#[test]
fn a_tied_head_may_be_there_and_an_untied_one_must() {
    let mut untied = config();
    untied.tie_word_embeddings = false;
    let mut tensors = tiny_tensors("model.", "F32");
    let without = open(&tensors).unwrap();
    without.validate(&config()).unwrap();
    let expected = WeightProblem { tensor: "lm_head.weight".into(), expected: vec![16, 8], found: None };
    match without.validate(&untied) {
        Err(ModelError::Weights { problems, .. }) => assert_eq!(problems, [expected]),
        other => panic!("{other:?}"),
    }
    tensors.push(("lm_head.weight".into(), "F32", vec![16, 8]));
    let with = open(&tensors).unwrap();
    with.validate(&config()).unwrap();
    with.validate(&untied).unwrap();
}

#[test]
fn tensors_that_do_not_fit_the_config_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = tiny_tensors("model.", "BF16");
    tensors.retain(|(name, _, _)| !name.contains("layers.2."));
    for (name, _, shape) in &mut tensors {
        match name.as_str() {
            "model.embed_tokens.weight" => *shape = vec![15, 8],
            "model.layers.0.linear_attn.conv1d.weight" => *shape = vec![16, 4],
            _ => {}
        }
    }
    write_safetensors(&folder.path().join(SINGLE_FILE), &tensors);
    let error = Checkpoint::open(folder.path()).unwrap().validate(&config()).unwrap_err();
    match &error {
        ModelError::Weights { problems, .. } => assert_eq!(problems.len(), 2 + 14),
        other => panic!("{other:?}"),
    }
    insta::assert_snapshot!(message(folder.path(), &error));
}

#[test]
fn a_weight_of_an_unsupported_type_is_named() {
    let mut tensors = tiny_tensors("model.", "BF16");
    tensors[3].1 = "F8_E4M3";
    let error = open(&tensors).unwrap_err().to_string();
    assert!(error.ends_with("type F8_E4M3 is not supported; supported: BF16, F16, F32"), "{error}");
    assert!(error.contains(&format!("tensor `{}`", tensors[3].0)), "{error}");
}

#[test]
fn two_tensors_for_one_name_are_an_error() {
    let mut tensors = tiny_tensors("model.", "BF16");
    tensors.push(("model.language_model.norm.weight".into(), "BF16", vec![8]));
    let error = open(&tensors).unwrap_err().to_string();
    assert!(error.contains("`model.language_model.norm.weight`: is a second tensor for `norm.weight`"), "{error}");
}

/// What an index that lies gives.
fn index_error(change: impl FnOnce(&Path, &mut BTreeMap<String, String>)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let tensors = tiny_tensors("model.", "BF16");
    write_shards(folder.path(), &tensors, 10);
    let index = fs::read_to_string(folder.path().join(INDEX_FILE)).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    let mut weight_map = serde_json::from_value(index["weight_map"].clone()).unwrap();
    change(folder.path(), &mut weight_map);
    write_index(folder.path(), &weight_map);
    let checkpoint = Checkpoint::open(folder.path());
    let error = checkpoint.and_then(|checkpoint| checkpoint.validate(&config())).unwrap_err();
    message(folder.path(), &error)
}

#[test]
fn an_index_that_lies_is_answered_with_the_tensor_or_shard() {
    let mut messages = vec![
        index_error(|folder, _| fs::remove_file(folder.join("model-00001.safetensors")).unwrap()),
        index_error(|_, map| {
            map.insert("model.norm.weight".into(), "model-00000.safetensors".into());
        }),
        index_error(|_, map| {
            map.insert("model.ghost".into(), "model-00000.safetensors".into());
        }),
        index_error(|_, map| {
            map.remove("model.norm.weight");
        }),
    ];
    for shard in ["../model-00000.safetensors", "/etc/passwd", "a/../../b", "", ".", "a\0b"] {
        messages.push(index_error(|_, map| {
            map.insert("model.norm.weight".into(), shard.into());
        }));
    }
    messages.push(index_error(|_, map| map.clear()));
    messages.push(index_error(|folder, _| {
        let file = folder.join("model-00000.safetensors");
        let bytes = fs::read(&file).unwrap();
        fs::write(&file, &bytes[..bytes.len() - 1]).unwrap();
    }));
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn a_tensor_that_the_index_has_twice_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write_shards(folder.path(), &tiny_tensors("model.", "BF16"), 10);
    let file = folder.path().join(INDEX_FILE);
    let index = fs::read_to_string(&file).unwrap();
    for shard in ["model-00000.safetensors", "model-00001.safetensors"] {
        let entry = format!(r#""weight_map":{{"model.norm.weight":"{shard}","#);
        fs::write(&file, index.replace(r#""weight_map":{"#, &entry)).unwrap();
        let error = message(folder.path(), &Checkpoint::open(folder.path()).unwrap_err());
        let start = format!("FOLDER/{INDEX_FILE}: tensor `model.norm.weight`: is given twice, in \"{shard}\" and in ");
        assert!(error.starts_with(&start), "{error}");
    }
}

#[test]
fn a_tensor_in_two_shards_is_no_unknown_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut tensors = tiny_tensors("model.", "BF16");
    let each = tensors.len();
    tensors.push(tensors[0].clone());
    // The index that is written names the last shard of each.
    write_shards(folder.path(), &tensors, each);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    checkpoint.validate(&config()).unwrap();
    let expected = Skipped { duplicates: vec![tensors[0].0.clone()], ..Skipped::default() };
    assert_eq!(checkpoint.skipped(), &expected);
}

#[test]
fn an_index_of_another_form_is_an_error() {
    for index in ["", "[]", "{}", r#"{"weight_map": []}"#, r#"{"weight_map": {"a": 1}}"#] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(INDEX_FILE), index).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(INDEX_FILE), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(INDEX_FILE), b"{\"weight_map\": \"\xff\"}").unwrap();
    assert!(matches!(Checkpoint::open(folder.path()), Err(ModelError::Utf8 { offset: 16, .. })));
}

#[test]
fn an_empty_or_absent_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().to_path_buf(), folder.path().join("none")] {
        let error = Checkpoint::open(&path).unwrap_err();
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
        assert!(matches!(error, ModelError::Missing { .. }));
    }
}

#[test]
fn the_embedded_model_is_whole() {
    let files = ModelFiles::Embedded;
    let config = ModelConfig::from_json(&files.needed_text("config.json").unwrap()).unwrap();
    let checkpoint = Checkpoint::read(&files).unwrap();
    checkpoint.validate(&config).unwrap();
    assert_eq!(checkpoint.skipped(), &Skipped::default());
    assert_eq!(checkpoint.widest_matrix_dtype(), Dtype::Bf16);
    assert_eq!(checkpoint.tensor("layers.0.linear_attn.A_log").unwrap().dtype, Dtype::F32);
    assert_eq!(checkpoint.total_bytes() / 1_000_000, 22);
    checkpoint.release("norm.weight");
}
