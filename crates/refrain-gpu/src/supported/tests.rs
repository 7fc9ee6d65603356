use super::*;
use proptest::prelude::*;
use proptest::sample::select;
use refrain_model::ModelConfig;
use refrain_program::{BuildOptions, Dtype};

fn device(arch: &str, wave: u32, processors: u32, shared_kib: u32) -> Target {
    Target { arch: arch.to_owned(), wave, mma: wave == 32, processors, shared_bytes: shared_kib << 10 }
}

fn hopper() -> Target {
    device("sm_90a", 32, 132, 227)
}

const LIMITS: StepLimits = StepLimits { max_tokens: 8192, max_segments: 32, max_logit_rows: 32, max_model_len: 32_768 };

/// The program of a config.json with these fields, one layer of each kind; none where the file itself is refused.
fn program(fields: &[(&str, usize)], dtype: Dtype) -> Option<Program> {
    let mut json = String::from(r#"{"architectures": ["Qwen3_5ForCausalLM"], "num_hidden_layers": 2"#);
    json += r#", "layer_types": ["linear_attention", "full_attention"]"#;
    for (name, value) in fields {
        json += &format!(r#", "{name}": {value}"#);
    }
    let config = ModelConfig::from_json(&(json + "}")).ok()?;
    Program::build(&config, &BuildOptions { weights: dtype, activations: dtype, kv_cache: dtype.into() }).ok()
}

fn refused(fields: &[(&str, usize)], target: &Target, limits: &StepLimits) -> String {
    let program = program(fields, Dtype::Bf16).expect("the file is fine");
    check(&program, target, limits, false).expect_err("no kernel takes it")
}

#[test]
fn the_published_shape_runs_everywhere() {
    let program = program(&[], Dtype::Bf16).expect("all fields have defaults");
    for target in [hopper(), device("sm_80", 32, 108, 163), device("gfx906", 64, 60, 64), device("sim32", 32, 8, 227)] {
        assert_eq!(check(&program, &target, &LIMITS, false), Ok(()), "{}", target.arch);
    }
}

#[test]
fn what_no_kernel_takes_is_told_with_layer_value_and_what_would_be_right() {
    let gfx906 = device("gfx906", 64, 60, 64);
    let huge = StepLimits { max_tokens: 1 << 23, ..LIMITS };
    let texts = [
        refused(&[("head_dim", 320)], &hopper(), &LIMITS),
        refused(&[("head_dim", 20), ("partial_rotary_factor", 1)], &hopper(), &LIMITS),
        refused(&[("linear_key_head_dim", 4096)], &gfx906, &LIMITS),
        refused(&[("vocab_size", 1 << 23)], &gfx906, &LIMITS),
        refused(&[], &hopper(), &huge),
    ];
    insta::assert_snapshot!(texts.join("\n"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever config.json says, and whatever the limits are: an answer, not a panic.
    #[test]
    fn any_configuration_is_answered(
        hidden in select(vec![1, 7, 64, 2560, 1 << 20]),
        intermediate in select(vec![1, 100, 9216, 1 << 20]),
        vocab in select(vec![1, 2, 509, 248_320, 1 << 24]),
        heads in select(vec![(1, 1), (3, 1), (16, 4), (4096, 1), (256, 256)]),
        head_dim in select(vec![1, 8, 12, 40, 64, 80, 128, 256, 264, 4096]),
        gdn_heads in select(vec![(1, 1), (1, 3), (16, 32), (1, 4096), (256, 256)]),
        gdn_dims in (select(vec![1, 24, 48, 128, 160, 4096]), select(vec![1, 40, 64, 128, 4096])),
        taps in select(vec![2, 4, 9, 33, 64]),
        dtype in select(vec![Dtype::Bf16, Dtype::F32]),
        tokens in select(vec![1, 2048, 1 << 32]),
        segments in select(vec![1, 64, 1 << 32]),
        library in any::<bool>(),
    ) {
        let fields = [
            ("hidden_size", hidden),
            ("intermediate_size", intermediate),
            ("vocab_size", vocab),
            ("num_attention_heads", heads.0),
            ("num_key_value_heads", heads.1),
            ("head_dim", head_dim),
            ("partial_rotary_factor", 1),
            ("linear_num_key_heads", gdn_heads.0),
            ("linear_num_value_heads", gdn_heads.1),
            ("linear_key_head_dim", gdn_dims.0),
            ("linear_value_head_dim", gdn_dims.1),
            ("linear_conv_kernel_dim", taps),
        ];
        let Some(program) = program(&fields, dtype) else { return Ok(()) };
        let limits = StepLimits { max_tokens: tokens, max_segments: segments, max_logit_rows: segments, max_model_len: 1 << 30 };
        for target in [hopper(), device("sm_80", 32, 108, 163), device("gfx906", 64, 60, 64)] {
            let answer = check(&program, &target, &limits, library);
            let attention = head_dim <= 256 && head_dim % 8 == 0;
            prop_assert!(attention || answer.is_err());
        }
    }
}
