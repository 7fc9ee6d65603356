use super::*;
use refrain_cpu::{CpuOptions, Precision};
use refrain_device::{Cell, Part, RecordedCell, RefusedCell, Replay};
use refrain_sim::{SimOptions, SimRuntime};

const LIMITS: StepLimits = StepLimits { max_tokens: 256, max_segments: 40, max_logit_rows: 72, max_model_len: 512 };

/// No rule for the ways to run steps.
const ANY: PolicyRequest = PolicyRequest { mode: None, budget: None };

fn rule(mode: PolicyMode) -> PolicyRequest {
    PolicyRequest { mode: Some(mode), budget: None }
}

fn config(texts: &[&str]) -> ModeRequest {
    let configs = texts.iter().map(|text| CompilationConfig::parse(text).unwrap()).collect();
    ModeRequest { configs, ..ModeRequest::default() }
}

fn interactivity(texts: &[&str]) -> ModeRequest {
    ModeRequest { performance_mode: Some(PerformanceMode::Interactivity), ..config(texts) }
}

fn cpu() -> Device {
    Device::Cpu(CpuOptions { threads: 1, precision: Precision::F32, isa: None, passes: None })
}

fn sim() -> Device {
    Device::Gpu(SimRuntime::new(SimOptions::default()), Box::default())
}

fn table(request: &ModeRequest, device: &Device) -> String {
    let modes = request.resolve(ANY).unwrap();
    let graphs = modes.graph_options_for(&LIMITS).unwrap();
    let mut settings = Settings::default();
    modes.describe(&mut settings, device, &LIMITS, &graphs);
    settings.to_string()
}

#[test]
fn levels_are_where_keys_begin() {
    let modes = |level: Option<u8>, texts: &[&str]| {
        let request = ModeRequest { optimization_level: level, ..config(texts) };
        let modes = request.resolve(ANY).unwrap();
        (modes.compile.mode, modes.graphs.mode)
    };
    use CompilationMode::{None, VllmCompile};
    assert_eq!(modes(Option::None, &[]), (VllmCompile, GraphMode::FullAndPiecewise));
    assert_eq!(modes(Some(0), &[]), (None, GraphMode::None));
    assert_eq!(modes(Some(1), &[]), (VllmCompile, GraphMode::Piecewise));
    assert_eq!(modes(Some(2), &[]), (VllmCompile, GraphMode::FullAndPiecewise));
    assert_eq!(modes(Some(3), &[".mode=NONE"]), (None, GraphMode::FullAndPiecewise));
    assert_eq!(modes(Some(0), &[".cudagraph_mode=FULL"]), (None, GraphMode::Full));
}

#[test]
fn contradictions_are_named() {
    let eager = |request: ModeRequest| ModeRequest { enforce_eager: true, ..request };
    let requests = [
        eager(config(&[".cudagraph_mode=FULL"])),
        eager(config(&[".mode=compile"])),
        eager(ModeRequest { optimization_level: Some(2), ..ModeRequest::default() }),
        eager(ModeRequest { graph_memory_budget: Some(1 << 20), ..ModeRequest::default() }),
        eager(config(&[".cudagraph_capture_sizes=[1]"])),
        config(&[".cudagraph_mode=NONE", ".max_cudagraph_capture_size=8"]),
        config(&[".cudagraph_mode=FULL_DECODE_ONLY", ".prefill_capture_sizes=64"]),
        config(&[".mode=NONE", ".pass_config.fuse_silu_mul=true"]),
        config(&[".cudagraph_capture_sizes=1,2,40", ".max_cudagraph_capture_size=42"]),
        config(&[".mode=3", ".mode=0"]),
        config(&[".mode=eager", ".compile_sizes=[1]"]),
        eager(interactivity(&[])),
        interactivity(&[".cudagraph_mode=NONE"]),
        interactivity(&[".cudagraph_capture_sizes=[1]"]),
    ];
    let mut messages: Vec<String> = requests.iter().map(|request| request.resolve(ANY).unwrap_err()).collect();
    let none = config(&[".mode=NONE", ".cudagraph_mode=NONE"]);
    let level = ModeRequest { optimization_level: Some(0), ..ModeRequest::default() };
    for (request, policy) in [
        (&none, PolicyMode::Compiled),
        (&none, PolicyMode::Graph),
        (&none, PolicyMode::Static),
        (&eager(config(&[])), PolicyMode::Static),
        (&eager(config(&[])), PolicyMode::EagerGraph),
        (&level, PolicyMode::Compiled),
        (&config(&[".mode=VLLM_COMPILE", ".cudagraph_mode=FULL"]), PolicyMode::Eager),
        (&config(&[".mode=VLLM_COMPILE"]), PolicyMode::Eager),
        (&config(&[".cudagraph_capture_sizes=1,4"]), PolicyMode::Eager),
        (&config(&[".compile_sizes=1"]), PolicyMode::Eager),
        (&config(&[".cudagraph_mode=FULL"]), PolicyMode::Compiled),
        (&config(&[".prefill_capture_sizes=64"]), PolicyMode::Compiled),
        (&ModeRequest { graph_memory_budget: Some(1 << 20), ..ModeRequest::default() }, PolicyMode::Compiled),
        (&interactivity(&[]), PolicyMode::Compiled),
        (&ModeRequest { optimization_level: Some(2), ..ModeRequest::default() }, PolicyMode::Eager),
    ] {
        messages.push(request.resolve(rule(policy)).unwrap_err());
    }
    let measuring = |mode| PolicyRequest { mode, budget: Some(2.0) };
    for (request, policy) in [
        (&config(&[]), measuring(Some(PolicyMode::Eager))),
        (&eager(config(&[])), measuring(None)),
        (&none, measuring(Some(PolicyMode::Measured))),
    ] {
        messages.push(request.resolve(policy).unwrap_err());
    }
    insta::assert_snapshot!(messages.join("\n"));
    eager(config(&[".cudagraph_mode=NONE", ".mode=0", ".pass_config.fuse_silu_mul=false"])).resolve(ANY).unwrap();
    let fine = [
        (config(&[".mode=NONE"]), PolicyMode::Static),
        (config(&[".cudagraph_mode=NONE"]), PolicyMode::Compiled),
        (eager(config(&[])), PolicyMode::Eager),
        (eager(config(&[])), PolicyMode::Measured),
        (config(&[".mode=NONE", ".cudagraph_mode=NONE"]), PolicyMode::Eager),
        (config(&[".mode=VLLM_COMPILE"]), PolicyMode::Compiled),
    ];
    for (request, policy) in fine {
        request.resolve(rule(policy)).unwrap();
    }
    config(&[".mode=NONE"]).resolve(measuring(None)).unwrap();
}

#[test]
fn nothing_is_made_that_a_fixed_rule_never_runs() {
    let with = |mode| {
        let modes = ModeRequest::default().resolve(rule(mode)).unwrap();
        (modes.compile_options().is_some(), modes.graph_options().mode, modes.graphs.origin, modes.compile.origin)
    };
    let derived = |flag: &str| Origin::Derived(flag.to_owned());
    let eager = derived("--policy eager");
    assert_eq!(with(PolicyMode::Eager), (false, GraphMode::None, eager.clone(), eager));
    let compiled = derived("--policy compiled");
    assert_eq!(with(PolicyMode::Compiled), (true, GraphMode::None, compiled, Origin::Default));
    let all = (true, GraphMode::FullAndPiecewise, Origin::Default, Origin::Default);
    assert_eq!(with(PolicyMode::Graph), all);
    assert_eq!(with(PolicyMode::Static), all);
}

#[test]
fn the_table_says_what_was_asked_for_and_what_runs() {
    let some = config(&[".mode=3", ".cudagraph_capture_sizes=[4,1,1]", ".pass_config.fuse_silu_mul=false"]);
    let requests = [
        (ModeRequest::default(), cpu()),
        (config(&[".cudagraph_mode=FULL", ".compile_ranges_endpoints=[64,16]"]), cpu()),
        (
            ModeRequest {
                graph_memory_budget: Some(1 << 20),
                ..interactivity(&[".prefill_capture_sizes=64", ".max_cudagraph_capture_size=8", ".compile_sizes=1"])
            },
            cpu(),
        ),
        (config(&[".cudagraph_capture_sizes=[4,2]"]), cpu()),
        (ModeRequest { enforce_eager: true, ..ModeRequest::default() }, sim()),
        (ModeRequest::default(), sim()),
        (ModeRequest { strict: true, graph_memory_budget: Some(1 << 20), ..some }, sim()),
        (config(&[".max_cudagraph_capture_size=3"]), sim()),
        (interactivity(&[]), sim()),
    ];
    let tables: Vec<String> = requests.iter().map(|(request, device)| table(request, device)).collect();
    insta::assert_snapshot!(tables.join("\n"));
}

#[test]
fn what_is_to_be_strict_fails_on_a_device_without_it() {
    let strict = |request: ModeRequest| ModeRequest { strict: true, ..request }.resolve(ANY).unwrap();
    let error = strict(config(&[".cudagraph_mode=FULL"])).check_device(&cpu()).unwrap_err().to_string();
    assert!(error.starts_with("--strict: cudagraph_mode FULL can't be had: not applicable"), "{error}");
    let budget = ModeRequest { graph_memory_budget: Some(1 << 20), ..ModeRequest::default() };
    for (request, refused) in [
        (config(&[".compile_sizes=1"]), "compile_sizes 1 can't be had: not applicable: a CPU compiles one program"),
        (
            config(&[".cudagraph_capture_sizes=4,2"]),
            "cudagraph_capture_sizes 2 4 (sorted) can't be had: not applicable",
        ),
        (budget, "graph_memory_budget 1.00 MiB can't be had: not applicable"),
        (interactivity(&[]), "performance_mode interactivity can't be had: not applicable"),
    ] {
        let modes = strict(request);
        let error = modes.check_device(&cpu()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("--strict: {refused}")), "{error}");
        modes.check_device(&sim()).unwrap();
    }
    // Defaults are no demands.
    strict(ModeRequest::default()).check_device(&cpu()).unwrap();
}

#[test]
fn ranges_are_those_that_were_given_and_the_one_of_few_rows() {
    let endpoints =
        |texts: &[&str]| config(texts).resolve(ANY).unwrap().compile_options().map(|options| options.endpoints);
    assert_eq!(endpoints(&[]), Some(vec![8]));
    assert_eq!(endpoints(&[".compile_ranges_endpoints=[256,64]"]), Some(vec![8, 64, 256]));
    assert_eq!(endpoints(&[".compile_sizes=[1,100]"]), Some(vec![1, 8, 99, 100]));
    assert_eq!(endpoints(&[".mode=eager"]), None);
    let check =
        |text: &str| config(&[text]).resolve(ANY).unwrap().check_ranges(&LIMITS).map_err(|error| error.to_string());
    check(".compile_ranges_endpoints=[256]").unwrap();
    for (text, size) in [
        (".compile_ranges_endpoints=[8,16384]", 16384),
        (".compile_sizes=16384", 16384),
        (".compile_ranges_endpoints=1048577", 1_048_577),
    ] {
        let error = check(text).unwrap_err();
        let says = format!("no step has {size} tokens; at most 256 (--max-num-batched-tokens)");
        assert!(error.contains(&says), "{error}");
    }
}

#[test]
fn the_largest_size_is_recorded_as_it_was_given() {
    let sizes = |request: &ModeRequest| {
        let options = request.resolve(ANY).unwrap().graph_options_for(&LIMITS);
        options.map(|options| options.decode_sizes.unwrap()).map_err(|error| error.to_string())
    };
    let most = |most| config(&[&format!(".max_cudagraph_capture_size={most}")]);
    assert_eq!(sizes(&most(5)).unwrap(), [1, 2, 4, 5]);
    assert_eq!(sizes(&most(40)).unwrap(), [1, 2, 4, 8, 16, 24, 32, 40]);
    let error = sizes(&most(42)).unwrap_err();
    assert!(error.starts_with("--max-cudagraph-capture-size: 42 is out of range"), "{error}");
    assert!(error.contains("nearest is 40"), "{error}");
    let error = sizes(&config(&[".cudagraph_capture_sizes=[2000000]"])).unwrap_err();
    assert!(error.contains("cudagraph_capture_sizes: 2000000 ") && error.contains("nearest is 40"), "{error}");
    let dense = ModeRequest { performance_mode: Some(PerformanceMode::Interactivity), ..most(34) };
    assert_eq!(sizes(&dense).unwrap(), (1..=32).chain([34]).collect::<Vec<_>>());
}

#[test]
fn a_budget_in_which_nothing_fits_is_an_error() {
    let cell = Cell { compiled: false, replay: Replay::Full, part: Part::Decode, rows: 1 };
    let refused = RefusedCell { cell, why: "it needs 2 MiB".to_owned(), over_budget: true };
    let report = GraphReport { mode: GraphMode::Full, refused: vec![refused.clone()], ..GraphReport::default() };
    let modes = ModeRequest { graph_memory_budget: Some(1024), ..ModeRequest::default() }.resolve(ANY).unwrap();
    let error = modes.check_report(&report).unwrap_err().to_string();
    assert!(error.starts_with("--graph-memory-budget: 1.00 KiB") && error.contains("it needs 2 MiB"), "{error}");
    // Nobody has asked for that budget, or something did fit.
    ModeRequest::default().resolve(ANY).unwrap().check_report(&report).unwrap();
    let recorded = vec![RecordedCell { cell, graphs: 1, nodes: 9, bytes: 0, seconds: 0.1 }];
    modes.check_report(&GraphReport { recorded, ..report.clone() }).unwrap();
    // The driver refused the smallest, which the budget would have held.
    let driver = RefusedCell { over_budget: false, ..refused.clone() };
    modes.check_report(&GraphReport { refused: vec![refused, driver], ..report }).unwrap();
}

#[test]
fn sizes_are_told_in_few_words() {
    assert_eq!(ranges(&[1, 2, 4, 8, 16, 24, 32, 40, 41]), "1 2 4 8-40 by 8 41");
    assert_eq!(ranges(&[1, 2, 3, 4]), "1-4 by 1");
    assert_eq!(ranges(&[7]), "7");
    assert_eq!(ranges(&[]), "");
}

#[test]
fn a_range_without_products_of_its_own_is_told() {
    let library = Products::Library("cuBLASLt 13.1".to_owned());
    let of = |keys: &[&str], strict, products: &Products| {
        let request = ModeRequest { strict, ..config(keys) };
        request.resolve(ANY).unwrap().check_products(products).map_err(|error| error.to_string())
    };
    let told = of(&[".compile_ranges_endpoints=4,32,64"], false, &library).unwrap().unwrap();
    assert!(
        told.starts_with("compile_ranges_endpoints 32 64: products of more than 8 rows are cuBLASLt 13.1's"),
        "{told}"
    );
    let error = of(&[".compile_ranges_endpoints=32"], true, &library).unwrap_err();
    assert!(error.starts_with("--strict: compile_ranges_endpoints 32: "), "{error}");
    for keys in [".compile_ranges_endpoints=4", ".compile_ranges_endpoints=31,32", ".compile_sizes=100"] {
        let told = of(&[keys], false, &library).unwrap();
        assert_eq!(told.is_some(), keys.contains("31"), "{keys}: {told:?}");
    }
    assert_eq!(of(&[".compile_ranges_endpoints=32"], true, &Products::Own(String::new())), Ok(None));
}
