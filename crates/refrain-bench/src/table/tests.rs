use super::*;
use serde_json::{Map, json};

/// The first experiment's own figures, with a policy and graphs beside it that could have been there.
pub(super) fn report() -> TableReport {
    let seed = [(1024, 13.3, 6.3), (4096, 18.5, 13.0), (8192, 26.7, 23.1), (16384, 56.8, 57.9), (24576, 98.3, 109.0)];
    let sizes = Sizes { batch_size: 1, output_len: 128 };
    let mut runs = Vec::new();
    for round in 0..2 {
        for (input_len, eager, graph) in seed {
            let prefill = input_len as f64 * 3e-3;
            for (mode, total) in
                [(Mode::Eager, eager), (Mode::GraphCompile, graph), (Mode::Measured, f64::min(eager, graph))]
            {
                let total_seconds = total * (1.0 + 0.001 * f64::from(round) * (mode as u8 as f64));
                let ttft_seconds = prefill.min(total_seconds / 2.0);
                let graphs = mode == Mode::GraphCompile || (mode == Mode::Measured && graph < eager);
                let cell = if graphs { "compiled+graph(decode, 2)" } else { "eager" };
                let padding_rows = if graphs { 127 } else { 0 };
                let count = |phase: &str, cell: &str, steps, padding_rows| StepCount {
                    phase: phase.to_owned(),
                    cell: cell.to_owned(),
                    steps,
                    padding_rows,
                };
                runs.push(Run {
                    mode,
                    input_len,
                    round: round as usize,
                    ttft_seconds,
                    itl_seconds: Some((total_seconds - ttft_seconds) / 127.0),
                    total_seconds,
                    steps: vec![
                        count("prefill", "eager", input_len as u64 / 1024, 0),
                        count("decode", cell, 127, padding_rows),
                    ],
                });
            }
        }
    }
    let mut extra = Map::new();
    extra.insert("settings".to_owned(), json!({ "seed": { "value": "0", "origin": "default" } }));
    let facts = TableFacts {
        model_id: "Qwen3.5-4B <test>".to_owned(),
        device: "hip: Z100 (gfx906)".to_owned(),
        version: "0.1.0".to_owned(),
        date: "2026-11-25".to_owned(),
        ceilings: Ceilings::Known { bytes_per_second: 800e9, flops_per_second: 20e12, source: "measured".to_owned() },
        graph_memory_bytes: Some(48 << 20),
        memory: Some(DeviceMemoryUse { planned_bytes: 14 << 30, ready_bytes: 13 << 30, end_bytes: 13 << 30 }),
        start: vec![
            StartPhase { name: "open", seconds: 0.25 },
            StartPhase { name: "kernels", seconds: 2.0 },
            StartPhase { name: "weights", seconds: 3.5 },
        ],
        extra,
    };
    let refused = vec![RefusedMode { mode: Mode::Compiled, why: "it was not loaded".to_owned() }];
    let measurement = Measurement { sizes, rounds: 2, warmup_rounds: 1, refused, runs };
    let floor = |input_len: usize| {
        Some(Floor { prefill_seconds: input_len as f64 * 4e-4, decode_seconds: 0.0105 + input_len as f64 * 4e-8 })
    };
    TableReport::new(facts, vec!["Made of figures that were published.".to_owned()], measurement, &floor)
}

#[test]
fn markdown() {
    insta::assert_snapshot!(report().to_markdown());
}

#[test]
fn json() {
    let mut json = serde_json::to_value(report()).unwrap();
    let runs = json["runs"].as_array_mut().unwrap();
    assert_eq!(runs.len(), 2 * 5 * 3);
    runs.truncate(1);
    json["lengths"].as_array_mut().unwrap().truncate(1);
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn what_was_not_measured_has_no_summary() {
    let report = report();
    let runs: Vec<Run> = report.runs.iter().filter(|run| run.mode == Mode::Measured).cloned().collect();
    let measurement = Measurement { sizes: report.sizes, rounds: 2, warmup_rounds: 0, refused: Vec::new(), runs };
    let alone = TableReport::new(report.facts.clone(), Vec::new(), measurement, &|_| None);
    assert!(alone.summary.is_empty());
    assert_eq!(alone.modes(), [Mode::Measured]);
    assert!(!alone.to_markdown().contains("Against eager"));
}

/// A page that stands alone: every tag is closed, nothing is fetched, nothing runs.
#[test]
fn html_needs_nothing_beside_itself() {
    let html = report().to_html();
    for forbidden in ["<script", "http:", "https:", "src=", "@import", "url(", "NaN", "<test>"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    for tag in
        ["main", "section", "table", "tbody", "tr", "td", "th", "figure", "svg", "div", "span", "ul", "li", "style"]
    {
        let opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
        assert!(opened > 0, "{tag}");
    }
    assert!(html.contains("graph+compile: slower above"));
}
