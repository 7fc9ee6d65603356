use super::*;
use refrain_program::PassConfig;

fn error(text: &str) -> String {
    CompilationConfig::parse(text).map(|_| ()).expect_err(text)
}

fn parsed(texts: &[&str]) -> CompilationConfig {
    let all: Vec<_> = texts.iter().map(|text| CompilationConfig::parse(text).expect(text)).collect();
    CompilationConfig::merge(&all).expect("nothing is said twice")
}

#[test]
fn names_and_numbers_of_vllm_and_our_short_names_are_understood() {
    for (text, mode) in [
        (r#"{"mode": 3}"#, CompilationMode::VllmCompile),
        (r#"{"mode": "VLLM_COMPILE"}"#, CompilationMode::VllmCompile),
        (r#"{"level": 3}"#, CompilationMode::VllmCompile),
        ("3", CompilationMode::VllmCompile),
        (".mode=compile", CompilationMode::VllmCompile),
        (".mode=vllm_compile", CompilationMode::VllmCompile),
        (".mode=0", CompilationMode::None),
        (".mode=NONE", CompilationMode::None),
        (".mode=eager", CompilationMode::None),
    ] {
        assert_eq!(parsed(&[text]).mode, Some(mode), "{text}");
    }
    for (text, mode) in [
        (".cudagraph_mode=full_decode_only", GraphMode::FullDecodeOnly),
        (r#"{"cudagraph_mode": "FULL_AND_PIECEWISE"}"#, GraphMode::FullAndPiecewise),
        (r#"{"cudagraph_mode": 2}"#, GraphMode::Full),
    ] {
        assert_eq!(parsed(&[text]).cudagraph_mode, Some(mode), "{text}");
    }
    assert_eq!(parsed(&[r#"{"mode": null, "cudagraph_mode": null, "backend": ""}"#]), CompilationConfig::default());
}

#[test]
fn json_and_single_keys_come_together() {
    let config = parsed(&[
        r#"{"mode": 3, "cudagraph_capture_sizes": [4, 1, 2, 1], "pass_config": {"fuse_silu_mul": false}}"#,
        ".pass_config.enable_qk_norm_rope_fusion=true",
        ".prefill_capture_sizes=64,128",
        ".mode=VLLM_COMPILE",
    ]);
    let sizes = config.cudagraph_capture_sizes.as_ref().unwrap();
    assert_eq!((&sizes.sizes[..], sizes.note.as_deref()), (&[1, 2, 4][..], Some("sorted, 1 was given twice")));
    assert_eq!(config.prefill_capture_sizes.as_ref().unwrap(), &Sizes { sizes: vec![64, 128], note: None });
    assert_eq!(config.passes, BTreeMap::from([("fuse_silu_mul", false), ("fuse_qk_norm_rope_append", true)]));
    assert_eq!(config.given(), ["mode", "cudagraph_capture_sizes", "prefill_capture_sizes", "pass_config"]);
}

#[test]
fn what_is_said_twice_must_be_the_same() {
    let both = |first, second| {
        let all = [first, second].map(|text| CompilationConfig::parse(text).unwrap());
        CompilationConfig::merge(&all).map(|_| ())
    };
    assert_eq!(both(".mode=3", ".mode=compile"), Ok(()));
    assert!(both(".mode=3", ".mode=0").unwrap_err().starts_with("mode: it is given twice"));
    assert!(error(r#"{"mode": 3, "level": 0}"#).contains("twice"));
    for (text, key) in [
        (r#"{"mode": "NONE", "mode": "VLLM_COMPILE"}"#, "mode: "),
        (r#"{"pass_config": {"fuse_silu_mul": true, "fuse_silu_mul": true}}"#, "fuse_silu_mul: "),
        (r#".pass_config={"fuse_silu_mul": true, "fuse_silu_mul": false}"#, "fuse_silu_mul: "),
        (
            r#"{"pass_config": {"fuse_qk_norm_rope_append": true, "enable_qk_norm_rope_fusion": false}}"#,
            "pass_config.enable_qk_norm_rope_fusion: ",
        ),
    ] {
        let message = error(text);
        assert!(message.starts_with(&format!("{key}it is given twice")), "{text}\n{message}");
    }
    let passes = both(".pass_config.fuse_silu_mul=true", r#"{"pass_config": {"fuse_silu_mul": false}}"#);
    assert!(passes.unwrap_err().starts_with("fuse_silu_mul"));
}

#[test]
fn errors_name_the_key_and_what_would_be_right() {
    let texts = [
        "mode",
        "[]",
        ".mode",
        ".mode=2",
        ".mode=STOCK_TORCH_COMPILE",
        ".mode=fast",
        ".cudagraph_mode=FULL_PREFILL",
        ".cudagraph_capture_sizes=[1,0]",
        ".cudagraph_capture_sizes=[-3]",
        ".cudagraph_capture_sizes=4,x",
        ".cudagraph_capture_sizes=[]",
        ".cudagraph_capture_sizes=true",
        ".prefill_capture_sizes=[99999999999]",
        ".max_cudagraph_capture_size=1.5",
        ".max_cudagraph_capture_size=NaN",
        ".cudagraph_mod=FULL",
        ".foo=1",
        ".fast_moe_cold_starts=true",
        ".pass_config=[]",
        ".pass_config.fuse_silu=true",
        ".pass_config.x=true",
        ".pass_config.fuse_silu_mul=yes",
        ".pass_config.fuse_allreduce_rms=true",
        r#"{"backend": "inductor"}"#,
        r#"{"cache_dir": "/tmp"}"#,
        r#"{"use_inductor_graph_partition": true}"#,
    ];
    let messages: Vec<String> = texts.iter().map(|text| format!("{text}\n    {}", error(text))).collect();
    insta::assert_snapshot!(messages.join("\n"));
}

#[test]
fn every_pass_has_its_switch() {
    let ours: Vec<&str> = PASSES.iter().filter(|key| key.other.is_none()).map(|key| key.name).collect();
    let passes: Vec<&str> = PassConfig::default().switches().into_iter().map(|(name, _)| name).collect();
    assert_eq!(ours, passes);
}

#[test]
fn keys_without_effect_say_why_unless_they_ask_for_what_is_done() {
    for (keys, prefix) in [(KEYS, ""), (PASSES, "pass_config.")] {
        for key in keys {
            let Some(Other { why, harmless }) = key.other else { continue };
            let message = error(&format!(".{prefix}{}=\"something\"", key.name));
            assert_eq!(message, format!("{prefix}{}: {why}", key.name));
            for value in harmless {
                parsed(&[&format!(".{prefix}{}={value}", key.name)]);
            }
        }
    }
}
