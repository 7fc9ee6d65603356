//! The tables of the report, the same in Markdown and HTML.

use super::crossover::SAME_SPEED;
use super::figures::{ModeFigures, Speedup};
use super::grid::Align::{Left, Right};
use super::grid::Grid;
use super::mode::Mode;
use super::report::{Ceilings, DeviceMemoryUse, ModeSummary, TableReport};

/// What is written where there is nothing to tell.
const NOTHING: &str = "-";

/// All tables, in the order in which they are read.
pub(super) fn sections(report: &TableReport) -> Vec<Grid> {
    let all = [in_short(report), times(report), phases(report), ways(report), tiers(report), start(report)];
    all.into_iter().filter(|grid| !grid.rows.is_empty()).collect()
}

/// What was measured, in one line.
pub(super) fn subtitle(report: &TableReport) -> String {
    let batch = match report.sizes.batch_size {
        1 => "one request".to_owned(),
        requests => format!("{requests} requests side by side"),
    };
    format!(
        "{}. Medians of {} after {} of warm-up; {batch}, {} generated tokens each. Refrain {}, {}.",
        report.facts.device,
        rounds(report.rounds),
        rounds(report.warmup_rounds),
        report.sizes.output_len,
        report.facts.version,
        report.facts.date
    )
}

fn rounds(count: usize) -> String {
    if count == 1 { "one round".to_owned() } else { format!("{count} rounds") }
}

/// Sentences below the tables: what can't be had, and what the figures mean.
pub(super) fn remarks(report: &TableReport) -> Vec<String> {
    let mut remarks: Vec<String> = report
        .not_applicable
        .iter()
        .map(|refused| format!("{}: not applicable, {}", refused.mode, refused.why))
        .collect();
    remarks.extend(report.notes.iter().cloned());
    remarks.push(match &report.facts.ceilings {
        Ceilings::Known { bytes_per_second, flops_per_second, source } => format!(
            "Roofline: {:.1} GB/s and {:.2} TFLOP/s ({source}). Prefill is one step with all prompts, decoding one token \
             of each request in the middle of its answer; every weight and state goes through memory once.",
            bytes_per_second / 1e9,
            flops_per_second / 1e12
        ),
        Ceilings::Unknown { why } => format!("Roofline: not applicable, {why}"),
    });
    remarks.push(
        "TTFT is the time from submission until every request has its first token; ITL the mean time from one token to \
         the next after that; speed-ups are taken round by round against eager. A difference of up to 1 % counts as none \
         where modes cross."
            .to_owned(),
    );
    remarks
}

fn in_short(report: &TableReport) -> Grid {
    let row = |summary: &ModeSummary| {
        vec![
            summary.mode.to_string(),
            format!("{:.3}", summary.least_speedup),
            format!("{:.3}", summary.most_speedup),
            summary.weighted_gain_percent.map_or(NOTHING.to_owned(), |gain| format!("{gain:+.1} %")),
            crossover(summary),
            summary.least_against_best_fixed.map_or(NOTHING.to_owned(), |part| format!("{part:.3}")),
        ]
    };
    Grid {
        title: "Against eager".to_owned(),
        columns: vec![
            ("mode", Left),
            ("least speed-up", Right),
            ("most speed-up", Right),
            ("weighted gain", Right),
            ("crossover", Left),
            ("least of best fixed mode", Right),
        ],
        rows: report.summary.iter().map(row).collect(),
        grouped: 0,
    }
}

/// Where a mode passes eager, in words.
pub(super) fn crossover(summary: &ModeSummary) -> String {
    if summary.crossovers.is_empty() {
        return match summary.least_speedup >= 1.0 - SAME_SPEED {
            true => "never slower".to_owned(),
            false => "never faster".to_owned(),
        };
    }
    let each = summary.crossovers.iter().map(|found| {
        let direction = if found.faster_above { "faster" } else { "slower" };
        format!("{direction} above {:.0} tokens", found.input_len)
    });
    each.collect::<Vec<_>>().join(", ")
}

fn by_length(report: &TableReport, row: impl Fn(&ModeFigures) -> Vec<Vec<String>>) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for length in &report.lengths {
        for figures in &length.modes {
            for cells in row(figures) {
                rows.push([vec![length.input_len.to_string(), figures.mode.to_string()], cells].concat());
            }
        }
    }
    rows
}

fn times(report: &TableReport) -> Grid {
    let row = |figures: &ModeFigures| {
        vec![vec![
            digits(figures.ttft_seconds * 1e3),
            digits(figures.prefill_tokens_per_second),
            figures.itl_seconds.map_or(NOTHING.to_owned(), |itl| digits(itl * 1e3)),
            digits(figures.total_seconds),
            digits(figures.output_tokens_per_second),
            speedup(figures, figures.speedup.as_ref()),
            match figures.speedup {
                Some(Speedup { low, high, .. }) if figures.mode != Mode::Eager => format!("{low:.3}-{high:.3}"),
                _ => NOTHING.to_owned(),
            },
        ]]
    };
    Grid {
        title: "Times".to_owned(),
        columns: vec![
            ("input", Right),
            ("mode", Left),
            ("TTFT ms", Right),
            ("prefill tok/s", Right),
            ("ITL ms", Right),
            ("total s", Right),
            ("output tok/s", Right),
            ("speed-up", Right),
            ("over the rounds", Right),
        ],
        rows: by_length(report, row),
        grouped: 1,
    }
}

fn phases(report: &TableReport) -> Grid {
    let percent = |part: Option<f64>| part.map_or(NOTHING.to_owned(), |part| format!("{part:.1}"));
    let row = |figures: &ModeFigures| {
        vec![vec![
            speedup(figures, figures.prefill_speedup.as_ref()),
            speedup(figures, figures.decode_speedup.as_ref()),
            percent(figures.prefill_roofline_percent),
            percent(figures.decode_roofline_percent),
            percent(Some(figures.padding_percent)),
        ]]
    };
    Grid {
        title: "Prefill and decode apart".to_owned(),
        columns: vec![
            ("input", Right),
            ("mode", Left),
            ("prefill speed-up", Right),
            ("decode speed-up", Right),
            ("prefill, % of roofline", Right),
            ("decode, % of roofline", Right),
            ("padding, % of rows", Right),
        ],
        rows: by_length(report, row),
        grouped: 1,
    }
}

fn ways(report: &TableReport) -> Grid {
    let row = |figures: &ModeFigures| {
        let cells = figures.steps.iter().map(|count| {
            vec![count.phase.clone(), count.cell.clone(), count.steps.to_string(), count.padding_rows.to_string()]
        });
        cells.collect()
    };
    Grid {
        title: "How steps were run".to_owned(),
        columns: vec![
            ("input", Right),
            ("mode", Left),
            ("steps", Left),
            ("run as", Left),
            ("number", Right),
            ("padding rows", Right),
        ],
        rows: by_length(report, row),
        grouped: 2,
    }
}

fn tiers(report: &TableReport) -> Grid {
    let rows = report.summary.iter().flat_map(|summary| {
        summary.tiers.iter().map(|tier| {
            vec![
                summary.mode.to_string(),
                tier.tier.to_owned(),
                format!("{} %", tier.weight_percent),
                tier.speedup.map_or("not measured".to_owned(), |speedup| format!("{speedup:.3}")),
                format!("{:.0} %", tier.measured_percent),
            ]
        })
    });
    Grid {
        title: "Tiers of input lengths".to_owned(),
        columns: vec![
            ("mode", Left),
            ("tier", Left),
            ("weight", Right),
            ("speed-up", Right),
            ("part of it measured", Right),
        ],
        rows: rows.collect(),
        grouped: 1,
    }
}

fn start(report: &TableReport) -> Grid {
    let mut rows: Vec<Vec<String>> =
        report.facts.start.iter().map(|phase| vec![phase.name.to_owned(), format!("{:.3} s", phase.seconds)]).collect();
    rows.push(vec!["together".to_owned(), format!("{:.3} s", report.start_seconds())]);
    rows.push(vec!["memory of all graphs".to_owned(), graph_memory(report)]);
    if let Some(DeviceMemoryUse { planned_bytes, ready_bytes, end_bytes }) = report.facts.memory {
        let uses = [
            ("device memory, planned", planned_bytes as i64),
            ("in use when ready, as the driver reports", ready_bytes as i64),
            ("taken from then on to the end", end_bytes as i64 - ready_bytes as i64),
        ];
        rows.extend(uses.map(|(what, bytes)| vec![what.to_owned(), mebibytes(bytes)]));
    }
    Grid {
        title: "Start and graph memory".to_owned(),
        columns: vec![("what", Left), ("how much", Right)],
        rows,
        grouped: 0,
    }
}

/// Memory of all graphs, for people.
pub(super) fn graph_memory(report: &TableReport) -> String {
    report.facts.graph_memory_bytes.map_or("no graphs".to_owned(), |bytes| mebibytes(bytes as i64))
}

fn mebibytes(bytes: i64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1048576.0)
}

fn speedup(figures: &ModeFigures, speedup: Option<&Speedup>) -> String {
    match speedup {
        _ if figures.mode == Mode::Eager => "1".to_owned(),
        Some(speedup) => format!("{:.3}", speedup.median),
        None => NOTHING.to_owned(),
    }
}

/// A positive number with four digits that count, but no more than three behind the point.
pub(super) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        value if value >= 999.95 => 0,
        value if value >= 99.995 => 1,
        value if value >= 9.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn numbers_have_as_many_digits_as_count() {
        let cases = [
            (12345.6, "12346"),
            (999.96, "1000"),
            (123.45, "123.5"),
            (12.345, "12.35"),
            (1.2345, "1.234"),
            (0.0, "0.000"),
        ];
        for (value, text) in cases {
            assert_eq!(digits(value), text, "{value}");
        }
    }
}
