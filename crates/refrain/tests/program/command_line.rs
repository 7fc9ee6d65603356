use super::{output_of, refrain, run, text};

#[test]
fn mistakes_in_the_command_line_end_with_status_2() {
    for (arguments, word) in [
        (vec!["serve", "--max-model-length", "5"], "--max-model-len"),
        (vec!["serve", "--device", "cuda:x"], "number of a device"),
        (vec!["serve", "--kernel-pack-dir", "/no/such/folder"], "there is no such folder"),
        (vec!["chatt"], "chat"),
        (vec!["serve", "--enable-prefix-caching"], "not available yet"),
    ] {
        let output = run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text(&output.stderr).contains(word), "{arguments:?}\n{}", text(&output.stderr));
    }
}

#[test]
fn a_mistake_in_a_variable_names_the_variable() {
    let output = refrain(&["serve"]).env("REFRAIN_PORT", "abc").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(2));
    let message = text(&output.stderr);
    assert!(message.contains("'abc' for '--port") && message.contains("REFRAIN_PORT"), "{message}");
}

#[test]
fn a_variable_that_is_empty_is_not_there() {
    let mut command = refrain(&["explain", "--bandwidth", "10G"]);
    for name in ["REFRAIN_MODEL", "REFRAIN_MAX_MODEL_LEN", "HF_HOME", "HF_HUB_OFFLINE", "HF_TOKEN"] {
        command.env(name, "");
    }
    assert!(output_of(&command.output().expect("the program starts")).contains("tinytales"));
}

#[test]
fn a_model_that_is_not_there_ends_with_status_1_and_one_message() {
    let output = run(&["chat", "./no/such/folder", "--prompt", "x"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.starts_with("error: ") && message.contains("no/such/folder"), "{message}");
    assert_eq!(message.lines().count(), 1, "{message}");
}

#[test]
fn a_gpu_that_is_not_there_is_an_error_with_advice() {
    for (device, library) in [("cuda:99", "cuda"), ("hip:99", "hip")] {
        let output = run(&["chat", "--device", device, "--prompt", "x"]);
        assert_eq!(output.status.code(), Some(1));
        let message = text(&output.stderr);
        assert!(message.starts_with(&format!("error: no {library} device can be used: ")), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn devices_are_listed_with_what_keeps_them_from_use() {
    let output = run(&["device", "--no-measure"]);
    let listed = output_of(&output);
    for device in ["cpu", "cuda", "hip"] {
        assert!(listed.lines().any(|line| line.starts_with(device)), "{listed}");
    }
    let json =
        output_of(&run(&["device", "--device", "sim", "--check", "--only", "embed", "--json", "--check-seed", "1"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let cases = json[0]["check"]["cases"].as_array().expect("cases");
    assert!(!cases.is_empty() && cases.iter().all(|case| case["passes"] == true), "{json}");
    assert_eq!(json[0]["products"], "own kernels: there is no library of products for simulated GPUs");
    let output = run(&["device", "--device", "sim", "--gpu-products", "library"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("the vendor's matrix products can't be used: there is no library"), "{message}");
}

#[test]
fn help_version_and_completions_are_no_failures() {
    assert!(output_of(&run(&["--help"])).contains("Usage: refrain"));
    assert!(output_of(&run(&["--version"])).starts_with("refrain "));
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(output_of(&run(&["completions", shell])).contains("max-model-len"), "{shell}");
    }
}

#[test]
fn settings_are_printed_with_their_origins() {
    let mut command = refrain(&["chat", "--prompt", "Hi", "--max-tokens", "1", "--log-level", "info", "--seed", "3"]);
    command.env("REFRAIN_MAX_MODEL_LEN", "1K").env("REFRAIN_THREADS", "1").env("REFRAIN_MAX_MODEL_LENGTH", "7");
    let output = command.output().expect("the program starts");
    output_of(&output);
    let table = text(&output.stderr);
    for (name, value, origin) in [
        ("model", "tinytales", "default"),
        ("max-model-len", "1024", "environment REFRAIN_MAX_MODEL_LEN"),
        ("threads", "1", "environment REFRAIN_THREADS"),
        ("seed", "3", "flag"),
        ("dtype", "bfloat16", "file *.safetensors"),
        ("generation-config", "temperature=0.7", "file generation_config.json"),
        ("gpu-memory-utilization", "0.9", "default"),
    ] {
        let line = table.lines().find(|line| line.split_whitespace().next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no {name} in\n{table}"));
        assert!(line.contains(value) && line.ends_with(origin), "{line}");
    }
    assert!(table.contains("did you mean REFRAIN_MAX_MODEL_LEN?"), "{table}");
    // The flag goes before the variable.
    let mut command = refrain(&["explain", "--max-model-len", "2K", "--bandwidth", "10G"]);
    output_of(&command.env("REFRAIN_MAX_MODEL_LEN", "far").output().expect("the program starts"));
}

#[test]
fn impossible_settings_are_refused_with_what_fits() {
    for (flags, word) in [
        (vec!["--max-model-len", "100K"], "8192"),
        (vec!["--max-num-seqs", "100", "--max-num-batched-tokens", "100"], "164"),
        (vec!["--kv-cache-memory-bytes", "1000"], "--kv-cache-memory-bytes"),
        (vec!["--override-generation-config", "{\"temprature\": 1}"], "temprature"),
        (vec!["--chat-template", "/no/such/file"], "/no/such/file"),
    ] {
        let output = refrain(&["explain", "--bandwidth", "10G"]).args(&flags).output().expect("the program starts");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{flags:?}\n{message}");
        assert!(message.contains(word), "{flags:?}\n{message}");
    }
}

#[test]
fn explain_tells_what_the_model_is_made_of() {
    let explain = ["explain", "--tokens", "512", "--bandwidth", "40G", "--flops", "1T"];
    let plain = output_of(&run(&explain));
    for word in ["tinytales", "512", "GDN", "memory"] {
        assert!(plain.contains(word), "no {word} in\n{plain}");
    }
    let json = output_of(&refrain(&explain).arg("--json").output().expect("the program starts"));
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["schedule"], "GGGAGGGA");
    assert_eq!(json["ceilings"]["bytes_per_second"], 40e9);
    // A CPU compiles one program; a GPU one for each range of rows.
    assert_eq!(json["passes"][0]["rows"], "1-");
    assert_eq!(json["modes"]["policy"]["value"], "measured");
    let ranges = ["--device", "sim", "-cc.compile_ranges_endpoints=64", "--policy", "graph"];
    let on_gpu = |more: &[&str]| output_of(&refrain(&explain).args(ranges).args(more).output().expect("it starts"));
    let json: serde_json::Value = serde_json::from_str(&on_gpu(&["--json"])).expect("JSON");
    let rows: Vec<_> = json["passes"].as_array().expect("ranges").iter().map(|range| &range["rows"]).collect();
    assert_eq!(rows, ["1-8", "9-64", "65-"]);
    assert_eq!(json["modes"]["policy"]["value"], "graph");
    let table = on_gpu(&[]);
    assert!(table.contains("Passes: places by rows of a step") && table.contains("9-64"), "{table}");
    // Without a library that measures a GPU, all but the roofline is told.
    let plain = output_of(&run(&["explain", "--device", "sim", "--policy", "eager"]));
    assert!(plain.contains("No roofline: what sim can do is measured by a library"), "{plain}");
    let line = |name: &str| plain.lines().find(|line| line.split_whitespace().next() == Some(name)).map(str::trim_end);
    assert!(line("cudagraph-mode").is_some_and(|line| line.ends_with("derived: --policy eager")), "{plain}");
    // What was asked for, and what runs.
    let flags = ["--json", "--device", "cpu", "-cc.cudagraph_mode=FULL", "--policy", "graph"];
    let graphs = refrain(&explain).args(flags).output();
    let json: serde_json::Value = serde_json::from_str(&output_of(&graphs.expect("the program starts"))).expect("JSON");
    assert_eq!(json["modes"]["cudagraph_mode"]["origin"], "flag");
    let value = json["modes"]["cudagraph_mode"]["value"].as_str().expect("a text");
    assert!(value.starts_with("FULL -> NONE: not applicable"), "{value}");
    assert_eq!(json["modes"]["policy"]["value"], "graph, without effect: no graph was recorded");
}
