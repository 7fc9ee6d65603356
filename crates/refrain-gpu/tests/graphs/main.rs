//! Steps that are replayed give what steps give that are launched, whatever the recording has room for beside them, and
//! recording fails in no way that a server would not survive.

mod fixture;

use fixture::{Pair, graphs, load, load_compiled, open, sim};
use refrain_device::{Backend, Cell, GraphMode, Part, Replay, Runtime, Segment, Step};
use refrain_gpu::{DEFAULT_GRAPH_MEMORY_BUDGET, GpuBackend, GraphOptions, Target, footprint};
use refrain_program::CompileOptions;
use refrain_sim::{SimOptions, SimRuntime};

/// Prompts in one piece and in two, single tokens of batches that change, both together, and rows whose logits nobody
/// wants. Gives the ways in which they were replayed.
fn serve(pair: &mut Pair, on_device: bool) -> Vec<String> {
    let steps: [&[(usize, usize, bool)]; 11] = [
        &[(0, 128, true)],
        &[(1, 64, false)],
        &[(1, 64, true)],
        &[(0, 1, true), (2, 40, true)],
        &[(0, 1, true), (1, 1, true), (2, 1, true)],
        &[(1, 1, true)],
        &[(2, 1, true), (0, 1, true)],
        &[(3, 70, true), (0, 1, true), (4, 20, false)],
        &[(0, 1, true), (1, 1, false), (2, 1, true), (3, 1, true)],
        &[(4, 45, true), (3, 1, true)],
        &[(4, 1, true), (0, 1, true), (3, 1, true), (2, 1, true)],
    ];
    steps.iter().map(|parts| pair.step(parts, on_device).to_string()).collect()
}

fn check(mode: GraphMode, wave: u32, on_device: bool) -> Option<Vec<String>> {
    check_compiled(mode, wave, on_device, None)
}

fn check_compiled(mode: GraphMode, wave: u32, on_device: bool, compile: Option<CompileOptions>) -> Option<Vec<String>> {
    let prepared = open()?;
    let runtime = SimRuntime::new(sim(wave));
    let backend = load_compiled(&prepared, &runtime, graphs(mode), compile)?.unwrap();
    assert!(backend.graphs().unwrap().refused.is_empty(), "{:?}", backend.graphs());
    let mut pair = Pair::new(&prepared, wave, backend)?;
    let before = runtime.counters();
    let ways = serve(&mut pair, on_device);
    let after = runtime.counters();
    assert_eq!(after.allocations, before.allocations, "nothing is allocated once the first step can come");
    assert!(after.graph_launches > before.graph_launches);
    Some(ways)
}

#[test]
fn whole_steps_are_replayed_on_waves_of_32() {
    let Some(ways) = check(GraphMode::Full, 32, false) else { return };
    let expected = [
        "graph(prefill, 128)",
        "graph(prefill, 64)",
        "graph(prefill, 64)",
        "eager",
        "graph(decode, 4)",
        "graph(decode, 1)",
        "graph(decode, 4)",
        "eager",
        "graph(decode, 4)",
        "eager",
        "graph(decode, 4)",
    ];
    assert_eq!(ways, expected);
}

#[test]
fn whole_steps_are_replayed_on_waves_of_64_and_tokens_chosen_behind_them() {
    let Some(ways) = check(GraphMode::FullAndPiecewise, 64, true) else { return };
    assert_eq!([&ways[0], &ways[3], &ways[7]], ["graph(prefill, 128)", "piecewise(any, 64)", "piecewise(any, 128)"]);
    assert_eq!([&ways[4], &ways[5]], ["graph(decode, 4)", "graph(decode, 1)"]);
}

#[test]
fn steps_are_replayed_around_what_depends_on_their_pieces() {
    let Some(ways) = check(GraphMode::Piecewise, 32, false) else { return };
    let rows = [128, 64, 64, 64, 4, 1, 4, 128, 4, 64, 4];
    assert_eq!(ways, rows.map(|rows| format!("piecewise(any, {rows})")));
}

#[test]
fn compiled_programs_are_replayed_and_launched_for_their_ranges_of_rows() {
    // Whole decode steps of four rows have another program than those of one, and others are launched. The ranges have
    // kernels of their own.
    let compile = CompileOptions { endpoints: vec![1, 3, 8, 40, 64], ..CompileOptions::default() };
    let Some(ways) = check_compiled(GraphMode::FullDecodeOnly, 32, true, Some(compile)) else { return };
    assert!(ways[..4].iter().all(|way| way == "compiled"), "{ways:?}");
    assert_eq!([&ways[4], &ways[5]], ["compiled+graph(decode, 4)", "compiled+graph(decode, 1)"]);
}

#[test]
fn only_decode_is_recorded_where_only_that_is_wanted() {
    let Some(prepared) = open() else { return };
    let Some(backend) = load(&prepared, &SimRuntime::new(sim(32)), graphs(GraphMode::FullDecodeOnly)) else { return };
    assert_eq!(names(&backend.unwrap()), ["eager", "graph(decode, 4)", "graph(decode, 1)"]);
}

fn names(backend: &GpuBackend) -> Vec<String> {
    backend.cells().iter().map(|cell| cell.to_string()).collect()
}

#[test]
fn the_memory_of_graphs_is_counted_and_what_goes_beyond_the_budget_is_refused() {
    let Some(prepared) = open() else { return };
    let runtime = SimRuntime::new(sim(32));
    let Some(backend) = load(&prepared, &runtime, graphs(GraphMode::Full)) else { return };
    let backend = backend.unwrap();
    let report = backend.graphs().unwrap();
    assert_eq!(report.recorded.len(), 4);
    assert_eq!(report.bytes, report.nodes() * SimOptions::default().graph_node_bytes);
    assert_eq!(report.bytes, report.recorded.iter().map(|cell| cell.bytes).sum::<usize>());
    let budget_bytes = report.recorded[2].bytes + report.recorded[3].bytes;
    drop(backend);
    let memory = runtime.memory().unwrap();
    assert_eq!(memory.free, memory.total, "graphs give their memory back");

    // Room for two cells: those for small steps, which gain most.
    let options = GraphOptions { budget_bytes, ..graphs(GraphMode::Full) };
    let backend = load(&prepared, &SimRuntime::new(sim(32)), options.clone()).unwrap().unwrap();
    assert_eq!(names(&backend), ["eager", "graph(decode, 4)", "graph(decode, 1)"]);
    let report = backend.graphs().unwrap();
    assert_eq!(report.bytes, budget_bytes);
    let refused: Vec<String> = report.refused.iter().map(|refused| refused.cell.to_string()).collect();
    assert_eq!(refused, ["graph(prefill, 128)", "graph(prefill, 64)"]);
    assert!(report.refused[0].why.contains("--graph-memory-budget"), "{:?}", report.refused);
    assert!(report.refused.iter().all(|refused| refused.over_budget), "{:?}", report.refused);

    let strict = GraphOptions { strict: true, ..options };
    let error = load(&prepared, &SimRuntime::new(sim(32)), strict).unwrap().err().unwrap().to_string();
    assert!(error.contains("graph(prefill, 128)") && error.contains("1 others"), "{error}");
}

#[test]
fn the_plan_of_the_memory_is_kept_with_graphs_and_compiled_programs() {
    let Some(prepared) = open() else { return };
    let runtime = SimRuntime::new(sim(32));
    let (graphs, compile) = (graphs(GraphMode::FullAndPiecewise), Some(CompileOptions::default()));
    let target = Target::from(runtime.info());
    let plan = footprint(&prepared.program, compile.as_ref(), &prepared.limits, &target);
    let states = prepared.pools.blocks * plan.kv_block + prepared.pools.slots * plan.gdn_slot;
    let planned = plan.weights + plan.activations + plan.workspace + graphs.reserved_bytes() + states;
    let Some(backend) = load_compiled(&prepared, &runtime, graphs, compile) else { return };
    let backend = backend.unwrap();
    let memory = runtime.memory().unwrap();
    let in_use = memory.total - memory.free;
    let left = DEFAULT_GRAPH_MEMORY_BUDGET - backend.graphs().unwrap().bytes;
    assert!(in_use <= planned, "{in_use} of {planned}");
    assert!(
        planned - in_use - left < 1 << 16,
        "nothing but the budget of graphs is planned too large: {in_use} of {planned}"
    );
}

#[test]
fn nodes_that_take_more_than_was_thought_are_refused_once_that_is_seen() {
    let Some(prepared) = open() else { return };
    // Each graph takes more than 8 MiB, which nobody knows before the first is there.
    let runtime = SimRuntime::new(SimOptions { graph_node_bytes: 256 << 10, ..sim(32) });
    let options = GraphOptions { budget_bytes: 40 << 20, ..graphs(GraphMode::Full) };
    let Some(backend) = load(&prepared, &runtime, options) else { return };
    let backend = backend.unwrap();
    let report = backend.graphs().unwrap();
    assert!(!report.refused.is_empty() && report.bytes <= 40 << 20, "{report:?}");
    assert_eq!(report.recorded.len() + report.refused.len(), 4);
    let mut pair = Pair::new(&prepared, 32, backend).unwrap();
    assert!(serve(&mut pair, false).contains(&"eager".to_owned()));
}

#[test]
fn a_recording_that_the_driver_refuses_costs_its_cell_and_no_other() {
    let Some(prepared) = open() else { return };
    let runtime = SimRuntime::new(sim(32));
    runtime.fail_capture(2);
    let Some(backend) = load(&prepared, &runtime, graphs(GraphMode::Full)) else { return };
    let backend = backend.unwrap();
    let report = backend.graphs().unwrap();
    assert_eq!(report.refused.len(), 1);
    assert_eq!(report.refused[0].cell.to_string(), "graph(decode, 4)");
    assert!(report.refused[0].why.contains("a failure that a test asked for"), "{}", report.refused[0].why);
    assert!(!report.refused[0].over_budget);
    let mut pair = Pair::new(&prepared, 32, backend).unwrap();
    assert_eq!(serve(&mut pair, false)[4..6], ["eager", "graph(decode, 1)"]);

    let runtime = SimRuntime::new(sim(32));
    runtime.fail_capture(0);
    let strict = GraphOptions { strict: true, ..graphs(GraphMode::Full) };
    let error = load(&prepared, &runtime, strict).unwrap().err().unwrap().to_string();
    assert!(error.contains("graph(prefill, 128) can't be recorded: "), "{error}");
    let memory = runtime.memory().unwrap();
    assert_eq!(memory.free, memory.total);
}

#[test]
fn steps_are_refused_in_cells_that_are_not_theirs() {
    let Some(prepared) = open() else { return };
    let Some(backend) = load(&prepared, &SimRuntime::new(sim(32)), graphs(GraphMode::Full)) else { return };
    let mut backend = backend.unwrap();
    let step = Step {
        tokens: vec![1, 2],
        segments: vec![Segment { row: 0, len: 2, position: 0, scan: 2, slot: 0, blocks: 0, num_blocks: 1 }],
        block_table: vec![0],
        ..Step::default()
    };
    let decode = Cell { compiled: false, replay: Replay::Full, part: Part::Decode, rows: 4 };
    let cases = [(decode, "for other steps"), (Cell { rows: 8, ..decode }, "there is no graph(decode, 8)")];
    for (cell, words) in cases {
        let error = backend.begin(&step, cell).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    backend.begin(&step, Cell::EAGER).unwrap();
    backend.finish().unwrap();
}
