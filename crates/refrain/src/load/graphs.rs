//! What came of the graphs, as the start-up table and `/server_info` show it.

use std::fmt;

use refrain_device::{GraphMode, GraphReport, RecordedCell, RefusedCell};
use serde_json::{Value, json};

use super::{Settings, human_bytes};
use crate::cli::Origin;

/// Adds how many cells were recorded.
pub(super) fn describe(settings: &mut Settings, report: &GraphReport) {
    if report.mode == GraphMode::None {
        return;
    }
    let text = format!(
        "{} of {} cells recorded, {}, {:.1} s",
        report.recorded.len(),
        report.recorded.len() + report.refused.len(),
        human_bytes(report.bytes),
        report.seconds
    );
    settings.push("graphs", text, Origin::Derived("cudagraph-mode".to_owned()));
}

/// The cells with graphs, and those that are not there, with the reason.
pub(super) fn to_json(report: &GraphReport) -> Value {
    let recorded = |RecordedCell { cell, graphs, nodes, bytes, seconds }: &RecordedCell| {
        let cell = cell.to_string();
        json!({ "cell": cell, "graphs": graphs, "nodes": nodes, "bytes": bytes, "seconds": seconds })
    };
    let refused = |RefusedCell { cell, why, .. }: &RefusedCell| json!({ "cell": cell.to_string(), "why": why });
    json!({
        "mode": report.mode.name(),
        "budget_bytes": report.budget_bytes,
        "bytes": report.bytes,
        "recorded": report.recorded.iter().map(recorded).collect::<Value>(),
        "refused": report.refused.iter().map(refused).collect::<Value>(),
    })
}

/// A line for each cell that is not there.
pub(super) struct Refused<'a>(pub &'a [RefusedCell]);

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.0.is_empty() {
            writeln!(f, "Graphs that could not be had")?;
        }
        let width = self.0.iter().map(|refused| refused.cell.to_string().len()).max().unwrap_or(0);
        self.0.iter().try_for_each(|RefusedCell { cell, why, .. }| writeln!(f, "  {:<width$}  {why}", cell.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_device::{Cell, Part, Replay};

    #[test]
    fn every_refused_cell_is_told_with_its_reason() {
        let cell = |rows| Cell { compiled: true, replay: Replay::Full, part: Part::Decode, rows };
        let refused =
            |(rows, why): (u32, &str)| RefusedCell { cell: cell(rows), why: why.to_owned(), over_budget: false };
        let report = GraphReport {
            mode: GraphMode::Full,
            recorded: vec![RecordedCell { cell: cell(1), graphs: 1, nodes: 9, bytes: 1 << 20, seconds: 0.5 }],
            refused: [(16, "no room"), (8, "the driver said no")].map(refused).into(),
            bytes: 1 << 20,
            seconds: 0.5,
            ..GraphReport::default()
        };
        let mut settings = Settings::default();
        describe(&mut settings, &report);
        assert_eq!(settings.get("graphs").unwrap().value, "1 of 3 cells recorded, 1.00 MiB, 0.5 s");
        assert_eq!(
            Refused(&report.refused).to_string(),
            "Graphs that could not be had\n  compiled+graph(decode, 16)  no room\n  compiled+graph(decode, 8)   the driver \
             said no\n"
        );
        assert_eq!(Refused(&[]).to_string(), "");
        let json = to_json(&report);
        assert_eq!(json["recorded"][0]["cell"], "compiled+graph(decode, 1)");
        assert_eq!(json["refused"][1], json!({ "cell": "compiled+graph(decode, 8)", "why": "the driver said no" }));
    }
}
