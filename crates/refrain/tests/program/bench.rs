use refrain_testkit::{Golden, checkpoint, target_dir};
use serde_json::{Map, Value};

use super::{Server, output_of, refrain, run, text};

/// Runs a benchmark and gives what it wrote to its file.
fn report(arguments: &[&str]) -> Map<String, Value> {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("report.json");
    let output = refrain(arguments).arg("--output-json").arg(&file).output().expect("the program starts");
    output_of(&output);
    let json = std::fs::read_to_string(&file).expect("a report");
    serde_json::from_str(&json).expect("a JSON object")
}

/// Keys and types of a report; the values differ from run to run.
fn shape(report: &Map<String, Value>) -> String {
    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    report.iter().map(|(key, value)| format!("{key}: {}\n", kind(value))).collect()
}

fn number(report: &Map<String, Value>, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("{key} is {}", report[key]))
}

#[test]
fn latency_has_the_keys_of_vllm() {
    let report = report(&[
        "bench",
        "latency",
        "--input-len",
        "20",
        "--output-len",
        "8",
        "--batch-size",
        "2",
        "--num-iters",
        "3",
        "--num-iters-warmup",
        "1",
        "--skip-bandwidth",
        "--quiet",
    ]);
    insta::assert_snapshot!(shape(&report));
    assert_eq!(report["latencies"].as_array().map(Vec::len), Some(3));
    assert_eq!(
        report["percentiles"].as_object().map(|map| map.keys().map(String::as_str).collect::<Vec<_>>().join(" ")),
        Some("10 25 50 75 90 99".to_owned())
    );
    for key in ["avg_latency", "prefill_tokens_per_second", "decode_tokens_per_second", "peak_memory_bytes"] {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    // Every weight of the embedded model in BF16, and in F32 what is no matrix.
    assert!((22e6..23e6).contains(&number(&report, "decode_weight_bytes")));
    assert!(number(&report, "start_to_first_token") >= number(&report, "load_seconds"));
}

#[test]
fn throughput_has_the_keys_of_vllm() {
    let report = report(&[
        "bench",
        "throughput",
        "--num-prompts",
        "6",
        "--random-input-len",
        "30",
        "--random-output-len",
        "5",
        "--quiet",
    ]);
    insta::assert_snapshot!(shape(&report));
    assert_eq!(number(&report, "num_requests"), 6.0);
    assert_eq!(number(&report, "total_num_tokens"), 6.0 * 35.0);
    let rate = number(&report, "total_num_tokens") / number(&report, "elapsed_time");
    assert!((number(&report, "tokens_per_second") / rate - 1.0).abs() < 1e-6);
}

#[test]
fn serve_has_the_keys_of_vllm_and_counts_right() {
    let server = Server::start(&["--max-num-seqs", "4", "--max-model-len", "1K"]);
    for (backend, vocabulary) in [("openai", vec![]), ("openai", vec!["--vocab-size", "200"]), ("openai-chat", vec![])]
    {
        let flags = [
            "bench",
            "serve",
            "--base-url",
            &server.url,
            "--backend",
            backend,
            "--num-prompts",
            "5",
            "--input-len",
            "24",
            "--output-len",
            "7",
            "--max-concurrency",
            "3",
            "--request-rate",
            "200",
            "--num-warmups",
            "1",
            "--goodput",
            "ttft:60000",
            "--metadata",
            "machine=test",
            "--temperature",
            "0",
        ];
        let report = report(&[&flags[..], &vocabulary].concat());
        if backend == "openai" && vocabulary.is_empty() {
            insta::assert_snapshot!("serve", shape(&report));
        }
        assert_eq!(number(&report, "completed"), 5.0);
        assert_eq!(number(&report, "failed"), 0.0);
        assert_eq!(number(&report, "total_output_tokens"), 35.0, "{report:?}");
        if backend == "openai" {
            assert_eq!(number(&report, "total_input_tokens"), 5.0 * 24.0);
        }
        assert!(number(&report, "max_concurrent_requests") <= 3.0);
        assert!((number(&report, "request_goodput") / number(&report, "request_throughput") - 1.0).abs() < 1e-9);
        assert!(number(&report, "mean_ttft_ms") <= number(&report, "mean_e2el_ms"));
        assert_eq!(report["machine"], "test");
    }
    // A mistake in the options is one message, not five failed requests.
    let output = run(&["bench", "serve", "--base-url", &server.url, "--num-prompts", "5", "--input-len", "2000"]);
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("status 400") && message.contains("1024"), "{message}");
}

#[test]
fn lengths_beyond_the_context_are_refused_before_they_are_run() {
    for command in ["latency", "throughput"] {
        let output = run(&["bench", command, "--input-len", "9000", "--quiet"]);
        assert_eq!(output.status.code(), Some(1));
        let message = text(&output.stderr);
        assert!(message.contains("--input-len") && message.contains("8192"), "{message}");
    }
}

/// The table on the embedded model, whose engine runs steps in one way only or in several: every mode is measured or
/// refused with its reason.
#[test]
fn table_is_written_as_json_markdown_and_html() {
    let folder = tempfile::tempdir().expect("a folder");
    let files = folder.path().join("new/table");
    let arguments = ["bench", "table", "--device", "cpu", "--lengths", "40,8", "--output-len", "4", "--rounds", "2"];
    let more = ["--modes", "eager,graph,measured", "--bandwidth", "40G", "--flops", "1T", "--quiet", "--output-dir"];
    let output = output_of(&refrain(&arguments).args(more).arg(&files).output().expect("the program starts"));
    let read = |name: &str| std::fs::read_to_string(files.join(name)).expect("a report");
    assert_eq!(output, read("table.md"));
    assert!(read("table.html").contains("tinytales: modes side by side"));
    let report: Value = serde_json::from_str(&read("table.json")).expect("JSON");
    let lengths = report["lengths"].as_array().expect("lengths");
    assert_eq!(lengths.iter().map(|length| length["input_len"].as_u64()).collect::<Vec<_>>(), [Some(8), Some(40)]);
    let refused = report["not_applicable"].as_array().expect("refusals");
    for length in lengths {
        let modes = length["modes"].as_array().expect("modes");
        assert_eq!(modes.len() + refused.len(), 3);
        assert_eq!(modes[0]["mode"], "eager");
        for key in
            ["ttft_seconds", "itl_seconds", "total_seconds", "prefill_roofline_percent", "decode_roofline_percent"]
        {
            assert!(modes[0][key].as_f64().expect(key) > 0.0, "{key}");
        }
        // One step for the prompt and one for each of the other tokens, twice.
        let steps = modes[0]["steps"].as_array().expect("steps").iter().filter_map(|count| count["steps"].as_u64());
        assert_eq!(steps.sum::<u64>(), 2 * 4);
    }
    let why = "a CPU has no launches to save";
    assert!(refused.iter().any(|refused| refused["mode"] == "graph" && refused["why"] == why), "{refused:?}");
    assert_eq!(report["runs"].as_array().map(Vec::len), Some(2 * 2 * (3 - refused.len())));

    let too_long = run(&["bench", "table", "--device", "cpu", "--lengths", "1M", "--quiet"]);
    assert!(text(&too_long.stderr).contains("the longest that fits is"), "{}", text(&too_long.stderr));
}

#[test]
fn modes_of_a_table_are_those_that_the_device_has() {
    let table = ["--device", "cpu", "--lengths", "8", "--output-len", "2", "--rounds", "1", "--warmup-rounds", "0"];
    let machine = ["--bandwidth", "40G", "--flops", "1T", "--policy-budget", "0.1"];
    let arguments = [&["bench", "table"], &table[..], &machine].concat();
    // Nobody asked for the default ones, which is why --strict has nothing against others in their place.
    let report = report(&[&arguments[..], &["--strict"]].concat());
    let modes = report["lengths"][0]["modes"].as_array().expect("modes").iter();
    let modes: Vec<_> = modes.map(|mode| mode["mode"].as_str().unwrap()).collect();
    assert_eq!(modes, ["eager", "compiled", "measured"]);
    let output = run(&[&arguments[..], &["--strict", "--modes", "eager,graph"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("--strict: --modes graph can't be had: a CPU has no launches to save"), "{message}");
}

/// Every mode on the simulated GPU, which counts what is reserved: nothing is, once it is ready.
#[test]
fn a_table_of_a_gpu_shows_that_nothing_is_reserved_after_the_start() {
    let Some(folder) = checkpoint(&Golden::load("micro-0-f32")) else { return };
    let (folder, cache) = (folder.display().to_string(), target_dir().join("test-kernels").display().to_string());
    let model = ["bench", "table", &folder, "--skip-tokenizer-init", "--device", "sim", "--dtype", "float32"];
    let limits = ["--max-model-len", "128", "--max-num-batched-tokens", "128", "--num-gpu-blocks-override", "16"];
    let start = ["--kernel-cache-dir", &cache, "--policy-budget", "0.1"];
    let runs = ["--lengths", "40", "--output-len", "3", "--rounds", "1"];
    let report = report(&[&model[..], &limits, &start, &runs].concat());
    let memory = &report["memory"];
    assert!(memory["ready_bytes"].as_u64() > Some(1 << 20), "{memory}");
    assert_eq!(memory["ready_bytes"], memory["end_bytes"]);
    assert!(memory["ready_bytes"].as_u64() <= memory["planned_bytes"].as_u64(), "{memory}");
    let modes = report["lengths"][0]["modes"].as_array().expect("modes").iter();
    assert_eq!(
        modes.map(|mode| mode["mode"].as_str().unwrap()).collect::<Vec<_>>(),
        ["eager", "graph+compile", "measured"]
    );
}

/// Processes of their own, one with an empty cache and one with a full one after a warm-up.
#[test]
fn startup_has_the_keys_of_vllm() {
    let report = report(&[
        "bench",
        "startup",
        "--device",
        "cpu",
        "--num-iters-cold",
        "1",
        "--num-iters-warmup",
        "0",
        "--num-iters-warm",
        "2",
        "--max-model-len",
        "64",
        "--max-num-seqs",
        "1",
    ]);
    assert_eq!(report["cold_startup_times"].as_array().map(Vec::len), Some(1));
    assert_eq!(report["warm_startup_times"].as_array().map(Vec::len), Some(2));
    for kind in ["cold", "warm"] {
        let startup = number(&report, &format!("avg_{kind}_startup_time"));
        assert!(startup > 0.0 && number(&report, &format!("avg_{kind}_first_token_time")) >= startup);
        // A CPU compiles nothing.
        assert_eq!(number(&report, &format!("avg_{kind}_compilation_time")), 0.0);
        let phases = report[&format!("{kind}_phases")].as_object().expect("phases").values();
        let together: f64 = phases.filter_map(Value::as_f64).sum();
        assert!(together > 0.0 && together <= startup * 1.5 + 0.1, "{together} of {startup}");
    }
    assert_eq!(report["model_id"], "tinytales");
    let nothing = run(&["bench", "startup", "--num-iters-cold", "0", "--num-iters-warm", "0"]);
    assert!(text(&nothing.stderr).contains("at least one start"), "{}", text(&nothing.stderr));
}
