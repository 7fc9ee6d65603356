use super::*;
use values::{DtypeArg, MaxModelLen};

fn parse_line(line: &str) -> Result<(Cli, Origins), String> {
    parse(line.split_whitespace().map(OsString::from)).map_err(|error| error.to_string())
}

fn serve(line: &str) -> ServeArgs {
    let (cli, _) = parse_line(line).unwrap_or_else(|error| panic!("{line}\n{error}"));
    match cli.command {
        Command::Serve(args) => *args,
        command => panic!("{command:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}

#[test]
fn launch_commands_of_vllm_work_as_they_stand() {
    for eager in ["--enforce-eager", ""] {
        let args = serve(&format!(
            "refrain serve --model /models/Qwen3.5-4B --tensor-parallel-size 1 --dtype bfloat16 --max-model-len 32768 \
             --gpu-memory-utilization 0.90 {eager} --max-num-seqs 1 --skip-mm-profiling"
        ));
        assert_eq!(args.engine.model.model.as_deref(), Some("/models/Qwen3.5-4B"));
        assert_eq!(args.engine.model.dtype, Some(DtypeArg::Bfloat16));
        assert_eq!(args.engine.model.max_model_len, Some(MaxModelLen::Tokens(32768)));
        assert_eq!(args.engine.memory.gpu_memory_utilization, Some(0.9));
        assert_eq!(args.engine.scheduler.max_num_seqs, Some(1));
        assert_eq!(args.engine.compile.enforce_eager, !eager.is_empty());
        assert!(args.engine.model.skip_mm_profiling);
    }
}

#[test]
fn short_forms_of_vllm_are_understood() {
    for line in [
        "refrain serve -tp 1 -pp 1 -dp=1 -cc.mode=NONE -cc.cudagraph_mode=none -O0",
        "refrain serve -tp=1 -cc {\"mode\":0,\"cudagraph_mode\":\"NONE\"}",
        "refrain serve --compilation-config.mode=NONE -O 0",
        "refrain serve --dtype half --served-model-name a b --api-key k1 k2 --max-model-len auto",
        "refrain serve --performance-mode balanced --pipeline-parallel-size 1 --data-parallel-size 1",
        "refrain serve -O3 -cc.cudagraph_mode=FULL_AND_PIECEWISE -cc.pass_config.fuse_norm_quant=true --strict",
        "refrain serve --cudagraph-capture-sizes 1 2 4 --max-cudagraph-capture-size 4 --graph-memory-budget 16M",
        "refrain serve --block-size 16 --no-enable-prefix-caching --enable-chunked-prefill --kv-cache-dtype auto",
        "refrain serve --kv-cache-dtype fp8",
        "refrain serve --kv-cache-dtype=fp8_e5m2",
    ] {
        serve(line);
    }
}

#[test]
fn what_is_not_there_yet_says_so() {
    for (flags, word) in [
        ("--device abacus", "must be auto, cpu, cuda"),
        ("--tensor-parallel-size 2", "not available yet"),
        ("--enable-prefix-caching", "not available yet"),
        ("--no-enable-chunked-prefill", "max-num-batched-tokens"),
        ("--block-size 32", "16"),
        ("--kv-cache-dtype fp8_e3m4", "must be auto, bfloat16, float16, float32, fp8, fp8_e4m3 or fp8_e5m2"),
        ("--mamba-ssm-cache-dtype bfloat16", "float32"),
        ("-cc.cudagraph_mode=FUL", "FULL_DECODE_ONLY"),
        ("-cc.mode=1", "no PyTorch here"),
        ("-cc.mode=0 -cc.compile_sizes=[1]", "no effect"),
        ("--compilation-config {\"pass_config\":[]}", "pass_config"),
        ("--compilation-config mode", "JSON"),
        ("-O4", "must be 0, 1, 2 or 3"),
        ("-O2 --enforce-eager", "leave one of them out"),
        ("--cudagraph-capture-sizes 1 0", "the nearest is 1"),
        ("--cudagraph-capture-sizes 1 -cc.cudagraph_capture_sizes=2", "given twice"),
        ("--max-cudagraph-capture-size -4", "the nearest is 1"),
        ("--graph-memory-budget 0", "at least 1"),
        ("--graph-memory-budget -5", "'-5' for '--graph-memory-budget <BYTES>': must be at least 1"),
        ("--policy-budget -1", "'-1' for '--policy-budget <SECONDS>': must be a number of seconds from 0"),
        ("--performance-mode fast", "interactivity"),
        ("--performance-mode interactivity --enforce-eager", "but with --enforce-eager there are none"),
        ("--policy graph --enforce-eager", "but with --enforce-eager there are none"),
        ("--policy compiled -cc.mode=NONE", "but with -cc.mode=NONE there are none"),
        ("--policy eager -cc.mode=VLLM_COMPILE", "--policy eager has no use for -cc.mode=VLLM_COMPILE"),
        ("--policy eager --cudagraph-capture-sizes 1", "because cudagraph_mode is NONE with --policy eager"),
        (
            "--policy eager --policy-budget 2",
            "--policy-budget 2 has no effect, because nothing is measured for --policy eager",
        ),
        ("--enforce-eager --policy-budget 2", "steps can be run in one way only with --enforce-eager"),
        ("--ssl-certfile a.pem", "proxy"),
        ("--speculative-config {}", "not available yet"),
        ("--pipeline-parallel-size 2", "not available yet"),
        ("-dp 2", "not available yet"),
        ("--enable-lora", "not available yet"),
        ("--load-format pt", "safetensors"),
        ("--gpu-memory-utilization 1.5", "at most 1"),
        ("--max-model-len 0", "at least 1"),
        ("--max-model-len 1.5K", "1.5k"),
        ("--max-num-seqs 0", "at least 1"),
        ("--max-num-seqs -5", "'-5' for '--max-num-seqs <SEQUENCES>': must be at least 1"),
        ("--gpu-memory-utilization -1", "'--gpu-memory-utilization <FRACTION>': must be above 0"),
        ("--scheduling-policy random", "fcfs"),
        ("--dtype int8", "bfloat16"),
        ("--max-model-length 5", "--max-model-len"),
        ("--override-generation-config {]", "JSON"),
        ("--port 70000", "65535"),
        ("a --model b", "twice"),
    ] {
        let line = format!("refrain serve {flags}");
        let message = parse_line(&line).map(|_| ()).expect_err(&line);
        assert!(message.contains(word), "{line}\n{message}");
    }
}

#[test]
fn modes_of_a_table_that_the_engine_rules_out_are_contradictions() {
    for (flags, word) in [
        (
            "--modes eager,graph+compile --enforce-eager",
            "--modes graph+compile runs compiled steps, but with --enforce-eager there are none",
        ),
        ("--modes compiled -cc.mode=NONE", "--modes compiled runs compiled steps, but with -cc.mode=NONE"),
        ("--modes graph -cc.cudagraph_mode=NONE", "--modes graph replays graphs, but with -cc.cudagraph_mode=NONE"),
    ] {
        let message = parse_line(&format!("refrain bench table {flags}")).map(|_| ()).expect_err(flags);
        assert!(message.contains(word), "{flags}\n{message}");
    }
    // Nobody asked for the modes of the default.
    parse_line("refrain bench table --enforce-eager").unwrap();
    parse_line("refrain bench table --enforce-eager --modes eager,measured").unwrap();
}

#[test]
fn origins_tell_flags_from_defaults() {
    let (_, origins) = parse_line("refrain serve some/model --max-num-seqs 4 --port 8000").unwrap();
    assert_eq!(origins.of("max_num_seqs"), Origin::Flag);
    assert_eq!(origins.of("port"), Origin::Flag);
    assert_eq!(origins.of("host"), Origin::Default);
    assert_eq!(origins.of("max_model_len"), Origin::Default);
    assert_eq!(origins.resolve("model", Origin::Given), Origin::Flag);
    assert_eq!(origins.resolve("max_num_seqs", Origin::Derived("x".to_owned())), Origin::Derived("x".to_owned()));
}

#[test]
fn allowed_origins_and_keys_may_be_written_as_in_vllm() {
    let args = serve("refrain serve --allowed-origins [\"*\"] --api-key a b");
    assert_eq!(args.server.origins().unwrap(), ["*"]);
    assert_eq!(args.server.api_keys(), ["a", "b"]);
    let args = serve("refrain serve --allowed-origins http://a http://b");
    assert_eq!(args.server.origins().unwrap(), ["http://a", "http://b"]);
    assert!(serve("refrain serve --allowed-origins [1]").server.origins().is_err());
}

#[test]
fn variables_that_mean_nothing_are_named_with_the_nearest_that_does() {
    let names = ["PATH", "REFRAIN_MAX_MODEL_LEN", "REFRAIN_MAX_MODEL_LENGTH", "REFRAIN_LOG"];
    let warnings = unknown_variables(names.map(OsString::from));
    assert_eq!(warnings, ["the variable REFRAIN_MAX_MODEL_LENGTH means nothing; did you mean REFRAIN_MAX_MODEL_LEN?"]);
}

#[test]
fn chat_is_quiet_unless_told_otherwise() {
    let level = |line| parse_line(line).unwrap().0.log_level();
    assert_eq!(level("refrain chat"), LogLevel::Warn);
    assert_eq!(level("refrain chat --log-level info"), LogLevel::Info);
    assert_eq!(level("refrain serve"), LogLevel::Info);
    assert_eq!(level("refrain serve --quiet"), LogLevel::Warn);
}

#[test]
fn help_texts() {
    for path in [
        vec![],
        vec!["serve"],
        vec!["chat"],
        vec!["bench"],
        vec!["bench", "latency"],
        vec!["bench", "throughput"],
        vec!["bench", "serve"],
        vec!["explain"],
        vec!["completions"],
    ] {
        let arguments = ["refrain"].into_iter().chain(path.iter().copied()).chain(["--help"]).map(OsString::from);
        let help = command().term_width(100).try_get_matches_from(arguments).unwrap_err().to_string();
        assert!(help.contains("Example"), "no example in the help of {path:?}");
        insta::assert_snapshot!(format!("help_{}", path.join("_")), help);
    }
}

#[test]
fn absurd_numbers_are_refused_before_anything_is_multiplied() {
    for line in [
        "serve --max-num-batched-tokens 9223372036854775807",
        "serve --max-num-seqs 18446744073709551615",
        "serve --kv-cache-memory-bytes 18446744073709551615",
        "explain --tokens 99999999999",
        "bench throughput --input-len 18446744073709551615",
        "bench throughput --num-prompts 0",
        "bench latency --batch-size 0",
    ] {
        let error = parse_line(&format!("refrain {line}")).unwrap_err();
        assert!(error.contains("must be at "), "{line}: {error}");
    }
}

#[test]
fn flags_that_only_a_server_heeds_are_known() {
    let (cli, _) = parse_line("refrain chat --max-num-queued-reqs 1 --served-model-name z --threads 1").unwrap();
    let Command::Chat(args) = cli.command else { panic!() };
    assert_eq!(args.engine.server_only(), ["--served-model-name", "--max-num-queued-reqs"]);
}
