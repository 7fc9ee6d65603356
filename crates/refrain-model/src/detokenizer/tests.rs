use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static TINYTALES: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let bytes = crate::embedded::file("tokenizer.json").unwrap();
    Arc::new(Tokenizer::from_bytes(bytes, Path::new("tokenizer.json")).unwrap())
});

/// A tokenizer in the way of SentencePiece: `▁` for a space, bytes as `<0xNN>`, the first space stripped.
static SENTENCEPIECE: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(format!("<0x{byte:02X}>"), byte.into());
    }
    for (i, token) in ["▁Hello", "▁world", "▁", "a", "bc", "é", "</s>"].iter().enumerate() {
        vocab.insert((*token).to_string(), (256 + i).into());
    }
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null,
        "added_tokens": [{"id": 262, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true}],
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []}
    });
    Arc::new(Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap())
});

/// The pieces that the tokens give, the last one from `finish`.
fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip: bool) -> Vec<String> {
    let mut detokenizer = Detokenizer::new(tokenizer.clone(), skip);
    let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push(detokenizer.finish());
    assert_eq!(detokenizer.finish(), "", "finish leaves nothing");
    pieces
}

#[test]
fn a_character_of_several_tokens_comes_whole() {
    let ids = TINYTALES.encode("a🎈é", false).unwrap();
    assert!(ids.len() > 4, "the balloon is not one token: {ids:?}");
    let pieces = pieces(&TINYTALES, &ids, true);
    assert_eq!(pieces.concat(), "a🎈é");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
}

#[test]
fn an_answer_that_stops_inside_a_character_ends_with_one_replacement() {
    let ids = TINYTALES.encode("a🎈", false).unwrap();
    let cut = &ids[..ids.len() - 1];
    let pieces = pieces(&TINYTALES, cut, true);
    assert_eq!(pieces.concat(), "a\u{fffd}");
    assert_eq!(pieces.last().unwrap(), "\u{fffd}");
}

#[test]
fn broken_bytes_become_replacements_as_soon_as_they_are_certain() {
    let byte = |byte: u8| (0..TINYTALES.vocab_size() as u32).find(|&id| TINYTALES.token_bytes(id) == Some(vec![byte]));
    let ids: Vec<u32> = [0xf0, 0x9f, b'a', 0x80, 0xff, 0xc3, 0xa9].map(|b| byte(b).unwrap()).to_vec();
    let pieces = pieces(&TINYTALES, &ids, true);
    assert_eq!(pieces, ["", "", "\u{fffd}a", "\u{fffd}", "\u{fffd}", "", "é", ""]);
}

#[test]
fn special_tokens_are_left_out_if_asked() {
    let end = TINYTALES.token_id("<|im_end|>").unwrap();
    let think = TINYTALES.token_id("<think>").unwrap();
    assert_eq!(pieces(&TINYTALES, &[think, end], true), ["<think>", "", ""]);
    assert_eq!(pieces(&TINYTALES, &[think, end], false), ["<think>", "<|im_end|>", ""]);
}

#[test]
fn ids_outside_the_vocabulary_give_nothing() {
    assert_eq!(pieces(&TINYTALES, &[u32::MAX, 8192], true).concat(), "");
    assert_eq!(TINYTALES.decode(&[u32::MAX, 8192], true), "");
    assert_eq!(pieces(&SENTENCEPIECE, &[300, 256, 300, 257], true).concat(), "Hello world");
}

#[test]
fn the_leading_space_is_stripped_only_once() {
    let ids = [256, 257, 257, 258, 258, 259];
    let pieces = pieces(&SENTENCEPIECE, &ids, true);
    assert_eq!(pieces.concat(), SENTENCEPIECE.decode(&ids, true));
    assert_eq!(pieces[..3], ["Hello", " world", " world"]);
}

#[test]
fn bytes_of_sentencepiece_come_as_whole_characters() {
    let balloon = "🎈".bytes().map(u32::from);
    let ids: Vec<u32> = [256].into_iter().chain(balloon).chain([259]).collect();
    assert_eq!(pieces(&SENTENCEPIECE, &ids, true), ["Hello", "", "", "", "🎈", "a", ""]);
    assert_eq!(pieces(&SENTENCEPIECE, &ids[..3], true).concat(), "Hello\u{fffd}");
}

/// Decoders that look at neighbours, here WordPiece, put a space between words but not before `##`.
#[test]
fn decoders_that_look_at_neighbours_lose_nothing() {
    let json = r###"{"version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "added_tokens": [], "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "turtle": 1, "##s": 2, "walk": 3, ".": 4}}}"###;
    let tokenizer = Arc::new(Tokenizer::from_bytes(json.as_bytes(), Path::new("tokenizer.json")).unwrap());
    let ids = [1, 2, 3, 2, 4, 1];
    assert_eq!(tokenizer.decode(&ids, true), "turtles walks. turtle");
    assert_eq!(pieces(&tokenizer, &ids, true), ["turtle", "s", " walk", "s", ".", " turtle", ""]);
}

proptest! {
    #[test]
    fn pushing_one_by_one_equals_decoding_all(ids in proptest::collection::vec(0u32..8200, 0..60), skip: bool) {
        prop_assert_eq!(pieces(&TINYTALES, &ids, skip).concat(), TINYTALES.decode(&ids, skip));
    }

    /// Single bytes, so that characters begin, break off and become whole in every way.
    #[test]
    fn the_same_for_bytes(ids in proptest::collection::vec(0u32..256, 0..40)) {
        let pieces = pieces(&TINYTALES, &ids, true);
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| TINYTALES.token_bytes(id).unwrap()).collect();
        prop_assert_eq!(pieces.concat(), String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn the_same_for_sentencepiece(words in proptest::collection::vec(
        prop_oneof![Just(vec![256]), Just(vec![257]), Just(vec![258]), Just(vec![259]), Just(vec![261]), Just(vec![262]),
        any::<char>().prop_map(|c| c.to_string().bytes().map(u32::from).collect())], 0..20), skip: bool) {
        let ids = words.concat();
        prop_assert_eq!(SENTENCEPIECE.decode(&ids, skip), SENTENCEPIECE.inner_decode(&ids, skip), "as the crate does");
        prop_assert_eq!(pieces(&SENTENCEPIECE, &ids, skip).concat(), SENTENCEPIECE.decode(&ids, skip));
    }
}
