//! Traces of steps on the CPU and on the simulated GPU: valid JSON, spans nested rightly, every op of every step there.

use indicatif::ProgressBar;
use refrain::cli::compilation::CompilationConfig;
use refrain::load::{DeviceChoice, LoadOptions, ModeRequest, PolicyRequest, load};
use refrain::trace::TraceRequest;
use refrain_engine::{EngineHandle, PolicyMode, Request, SamplingParams};
use refrain_model::Dtype;
use refrain_testkit::{Golden, checkpoint, skip, target_dir};
use serde_json::Value;

const ANSWER: usize = 5;

/// Runs one request on an engine and gives the events of its trace that took time, by lane.
fn events(options: LoadOptions, steps: std::ops::Range<u64>) -> [Vec<Value>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let trace = Some(TraceRequest { file: file.clone(), steps });
    let loaded = load(&LoadOptions { trace, ..options }, &ProgressBar::hidden()).unwrap();
    answer(&loaded.engine);
    drop(loaded);
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let events = json["traceEvents"].as_array().unwrap();
    let lane = |name: &str| {
        let thread = events.iter().find(|event| event["ph"] == "M" && event["args"]["name"] == name).unwrap();
        let own = events.iter().filter(|event| event["ph"] == "X" && event["tid"] == thread["tid"]);
        own.cloned().collect::<Vec<_>>()
    };
    [lane("host"), lane("device")]
}

fn answer(engine: &EngineHandle) {
    let sampling = SamplingParams { max_tokens: ANSWER, ignore_eos: true, ..SamplingParams::default() };
    let request = Request { id: "one".to_owned(), prompt: (1..20).collect(), sampling, priority: 0 };
    let mut stream = engine.submit(request).unwrap();
    while stream.blocking_next().is_some() {}
}

/// When an event begins and ends, in microseconds.
fn times(event: &Value) -> (f64, f64) {
    let start = event["ts"].as_f64().unwrap();
    (start, start + event["dur"].as_f64().unwrap())
}

/// Every event lies inside of those that are open when it begins, but for what is lost to rounding.
fn assert_nested(events: &[Value]) {
    let mut open: Vec<f64> = Vec::new();
    let mut last = f64::NEG_INFINITY;
    for event in events {
        let (start, end) = times(event);
        assert!(start >= last, "{event} is out of order");
        last = start;
        open.retain(|&until| until > start + 0.002);
        assert!(open.iter().all(|&until| end <= until + 0.002), "{event} ends outside of what it began in");
        open.push(end);
    }
}

/// The names of a lane's events, step by step.
fn names(events: &[Value], step: u64) -> Vec<&str> {
    let own = events.iter().filter(|event| event["args"]["step"] == step);
    own.map(|event| event["name"].as_str().unwrap()).collect()
}

fn check([host, device]: &[Vec<Value>; 2], phases: &[&str], steps: std::ops::Range<u64>) {
    assert_nested(host);
    assert_nested(device);
    let numbers =
        |events: &[Value]| events.iter().filter_map(|event| event["args"]["step"].as_u64()).collect::<Vec<_>>();
    assert!([host, device].iter().all(|events| numbers(events).iter().all(|step| steps.contains(step))));
    for step in steps {
        let mut of_host = names(host, step);
        of_host.sort_unstable();
        assert_eq!(of_host, phases, "step {step}");
        let of_device = names(device, step);
        assert_eq!(of_device[0], format!("step {step}"));
        let count = |kind: &str| of_device.iter().filter(|name| name.starts_with(kind)).count();
        assert!(count("rms_norm") > 1 && count("attention") >= 1 && count("gdn_scan") >= 1, "{of_device:?}");
    }
}

#[test]
fn a_cpu_tells_where_the_time_of_its_ops_goes() {
    let steps = 1..3;
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        max_model_len: Some(64),
        max_num_seqs: Some(1),
        max_num_batched_tokens: Some(128),
        ..LoadOptions::default()
    };
    let options = LoadOptions { modes: eager(), ..options };
    check(&events(options, steps.clone()), &["execute", "plan", "results"], steps);
}

/// A micro model on the simulated GPU; `None` where its kernels can't be compiled.
fn sim(modes: ModeRequest, policy: PolicyMode) -> Option<LoadOptions> {
    let folder = checkpoint(&Golden::load("micro-0-f32"))?;
    let mut options = LoadOptions {
        model: Some(folder.display().to_string()),
        skip_tokenizer_init: true,
        dtype: Some(Dtype::F32),
        device: DeviceChoice::Sim,
        max_model_len: Some(64),
        max_num_seqs: Some(1),
        max_num_batched_tokens: Some(128),
        num_gpu_blocks_override: Some(8),
        modes,
        policy: PolicyRequest { mode: Some(policy), budget: None },
        ..LoadOptions::default()
    };
    options.gpu.kernel_cache_dir = Some(target_dir().join("test-kernels"));
    match sim_compiler() {
        Ok(()) => Some(options),
        Err(error) => {
            skip("traces of the simulated GPU", &error);
            None
        }
    }
}

#[test]
fn a_gpu_tells_what_each_op_took() {
    let Some(options) = sim(eager(), PolicyMode::Eager) else { return };
    // More steps than there are: the file is written when the engine goes away.
    let seen = events(options, 0..100);
    let steps = 0..ANSWER as u64;
    check(&seen, &["enqueue", "plan", "results", "wait", "write"], steps);
    let of_device = names(&seen[1], 0);
    assert!(of_device.contains(&"sample"), "{of_device:?}");
}

/// A replayed step is one span of the device, with the choice of tokens behind it; the prompt, for whose length there is
/// no graph, is launched op by op.
#[test]
fn a_gpu_tells_what_a_graph_took() {
    let config = CompilationConfig::parse(r#"{"cudagraph_mode": "FULL_DECODE_ONLY"}"#).unwrap();
    let Some(options) = sim(ModeRequest { configs: vec![config], ..Default::default() }, PolicyMode::Graph) else {
        return;
    };
    let [host, device] = events(options, 0..100);
    assert_nested(&host);
    assert_nested(&device);
    assert!(names(&device, 0).len() > 10, "{:?}", names(&device, 0));
    for step in 1..ANSWER as u64 {
        assert_eq!(names(&device, step), [&format!("step {step}"), "graph", "sample"]);
        let whole = device.iter().find(|event| event["args"]["step"] == step).unwrap();
        assert_eq!(whole["args"]["way"], "compiled+graph(decode, 1)", "{whole}");
    }
}

fn eager() -> ModeRequest {
    ModeRequest { enforce_eager: true, ..Default::default() }
}

/// Whether the simulated GPU's kernels can be compiled here.
fn sim_compiler() -> Result<(), String> {
    let sim = refrain_sim::SimRuntime::new(refrain_sim::SimOptions::default());
    refrain_device::Runtime::compiler(&*sim).map(|_| ()).map_err(|error| error.to_string())
}
