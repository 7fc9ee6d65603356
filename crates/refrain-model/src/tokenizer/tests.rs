use std::fs;

use super::*;

fn tinytales() -> Tokenizer {
    let bytes = crate::embedded::file("tokenizer.json").unwrap();
    Tokenizer::from_bytes(bytes, Path::new("tokenizer.json")).unwrap()
}

#[test]
fn text_survives_the_round_trip() {
    let tokenizer = tinytales();
    for text in ["", "Once upon a time", " two  spaces\n\n", "naïve café 日本語 🎈👩‍👩‍👧", "\0\u{7f}\t", "<not a token>"]
    {
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids, false), text);
        assert_eq!(tokenizer.inner_decode(&ids, false), text);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
        assert_eq!(bytes, text.as_bytes());
    }
}

#[test]
fn special_tokens_are_known() {
    let tokenizer = tinytales();
    let ids = tokenizer.encode("<|im_start|>user\nHi<|im_end|>", false).unwrap();
    assert_eq!((ids[0], *ids.last().unwrap()), (8184, 8185));
    assert_eq!(tokenizer.decode(&ids, true), "user\nHi");
    assert_eq!(tokenizer.decode(&ids, false), "<|im_start|>user\nHi<|im_end|>");
    assert!(tokenizer.is_special(8185) && !tokenizer.is_special(8186) && !tokenizer.is_special(0));
    assert_eq!(tokenizer.token_string(8186).as_deref(), Some("<think>"));
    assert_eq!(tokenizer.token_id("<think>"), Some(8186));
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_string(8192)), (8192, None));
}

#[test]
fn every_id_has_bytes_and_a_name() {
    let tokenizer = tinytales();
    for id in 0..tokenizer.vocab_size() as u32 {
        let name = tokenizer.token_string(id).unwrap();
        assert_eq!(tokenizer.token_id(&name), Some(id));
        assert!(!tokenizer.token_bytes(id).unwrap().is_empty());
    }
}

#[test]
fn settings_for_training_do_not_cut_or_pad_prompts() {
    let json = String::from_utf8(crate::embedded::file("tokenizer.json").unwrap().to_vec()).unwrap();
    let truncation =
        r#""truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}"#;
    let padding = r#""padding": {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"}"#;
    let changed = json.replacen("\"truncation\": null", truncation, 1).replacen("\"padding\": null", padding, 1);
    assert_ne!(json, changed);
    let tokenizer = Tokenizer::from_bytes(changed.as_bytes(), Path::new("tokenizer.json")).unwrap();
    let text = "Once upon a time there was a turtle.";
    assert_eq!(tokenizer.encode(text, true).unwrap(), tinytales().encode(text, true).unwrap());
}

#[test]
fn a_file_that_is_no_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    assert!(Tokenizer::from_file(&file).unwrap_err().to_string().contains("no such file"));
    for content in [&b""[..], b"{}", b"{\"model\": 1}", b"\xff\xfe", b"[]"] {
        fs::write(&file, content).unwrap();
        let error = Tokenizer::from_file(&file).unwrap_err();
        assert!(error.to_string().starts_with(file.to_str().unwrap()), "{error}");
    }
}

#[test]
fn long_runs_are_encoded_or_refused_but_do_not_hang() {
    let tokenizer = tinytales();
    for text in [" ".repeat(200_000), "a".repeat(50_000), "\n ".repeat(50_000), "\u{301}".repeat(10_000)] {
        if let Ok(ids) = tokenizer.encode(&text, false) {
            assert_eq!(tokenizer.decode(&ids, false), text);
        }
    }
}
