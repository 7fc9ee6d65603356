//! The report as one HTML page that needs nothing beside itself: no scripts, no other files.

use std::fmt::Write;

use super::chart::{Chart, Series, marker};
use super::figures::{Floor, ModeFigures};
use super::grid::escape;
use super::mode::Mode;
use super::report::TableReport;
use super::sections::{crossover, digits, graph_memory, remarks, sections, subtitle};

const STYLE: &str = include_str!("style.css");

impl TableReport {
    /// The report as one HTML page.
    pub fn to_html(&self) -> String {
        let title = escape(&format!("{}: modes side by side", self.facts.model_id));
        let mut page = format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
             <header>\n<h1>{title}</h1>\n<p>{}</p>\n</header>\n",
            escape(&subtitle(self))
        );
        page += &tiles(self);
        page += &legend(self);
        page += "<div class=\"charts\">\n";
        for chart in charts(self) {
            page += &chart.html();
        }
        page += "</div>\n";
        for section in sections(self) {
            page += &section.html();
        }
        page += "<section>\n<h2>Remarks</h2>\n<ul>\n";
        for remark in remarks(self) {
            let _ = writeln!(page, "<li>{}</li>", escape(&remark));
        }
        page + "</ul>\n</section>\n</main>\n</body>\n</html>\n"
    }
}

/// The few figures that are looked for first.
fn tiles(report: &TableReport) -> String {
    let mut tiles = Vec::new();
    // The mode that a user runs, or else the best that was asked for.
    if let Some(summary) = report.summary.last() {
        let name = summary.mode;
        tiles.push((
            format!("{:.3}x to {:.3}x", summary.least_speedup, summary.most_speedup),
            format!("{name} against eager"),
        ));
        if let Some(gain) = summary.weighted_gain_percent {
            tiles.push((format!("{gain:+.1} %"), format!("{name}, weighted gain over the tiers")));
        }
        tiles.push((crossover(summary), format!("{name} beside eager")));
        if let Some(part) = summary.least_against_best_fixed {
            tiles.push((format!("{part:.3}x"), "measured against the best fixed mode, at worst".to_owned()));
        }
    }
    tiles.push((graph_memory(report), "memory of all graphs".to_owned()));
    tiles.push((format!("{} s", digits(report.start_seconds())), "start until requests are taken".to_owned()));
    let tile = |(value, name): (String, String)| {
        format!("<div><strong>{}</strong><span>{}</span></div>\n", escape(&value), escape(&name))
    };
    format!("<div class=\"tiles\">\n{}</div>\n", tiles.into_iter().map(tile).collect::<String>())
}

/// What the lines of all charts mean.
fn legend(report: &TableReport) -> String {
    let floor = report.lengths.iter().any(|length| length.floor.is_some());
    let names = report.modes().into_iter().map(|mode| (mode.name(), class(mode)));
    let names = names.chain(floor.then(|| ("roofline", "floor".to_owned())));
    let entry = |(name, class): (&str, String)| {
        format!(
            "<span><svg viewBox=\"0 0 28 14\" aria-hidden=\"true\"><polyline class=\"line {class}\" points=\"0,7 28,7\"/>\
             <path class=\"point {class}\" d=\"{}\"/></svg>{name}</span>\n",
            marker(&class, 14.0, 7.0)
        )
    };
    format!("<div class=\"legend\">\n{}</div>\n", names.map(entry).collect::<String>())
}

fn class(mode: Mode) -> String {
    mode.name().replace('+', "-")
}

fn charts(report: &TableReport) -> Vec<Chart> {
    let series = |value: &dyn Fn(&ModeFigures) -> Option<f64>| -> Vec<Series> {
        let lines = report.modes().into_iter().map(|mode| Series {
            name: mode.to_string(),
            class: class(mode),
            points: report.of(mode).filter_map(|(length, figures)| Some((length.input_len, value(figures)?))).collect(),
        });
        lines.filter(|series| !series.points.is_empty()).collect()
    };
    let floor = |value: &dyn Fn(&Floor) -> f64| -> Option<Series> {
        let points = report.lengths.iter().filter_map(|length| Some((length.input_len, value(&length.floor?))));
        let points: Vec<(usize, f64)> = points.collect();
        let drawn = !points.is_empty();
        drawn.then(|| Series { name: "roofline".to_owned(), class: "floor".to_owned(), points })
    };
    let with_floor = |mut series: Vec<Series>, floor: Option<Series>| {
        if !series.is_empty() {
            series.extend(floor);
        }
        series
    };
    let against_eager = |title, caption: &str, series: Vec<Series>| Chart {
        title,
        caption: caption.to_owned(),
        unit: "times eager's speed",
        logarithmic: false,
        from_zero: false,
        reference: Some((1.0, "eager")),
        series: series.into_iter().filter(|series| series.class != "eager").collect(),
        marks: Vec::new(),
    };
    let plain = |title, caption: &str, unit, series| Chart {
        title,
        caption: caption.to_owned(),
        unit,
        logarithmic: false,
        from_zero: true,
        reference: None,
        series,
        marks: Vec::new(),
    };
    let crossings = report.summary.iter().flat_map(|summary| {
        let text = format!("{}: {}", summary.mode, crossover(summary));
        summary.crossovers.iter().map(move |found| (found.input_len, text.clone()))
    });
    let milliseconds = "ms";
    let ttft =
        with_floor(series(&|figures| Some(figures.ttft_seconds * 1e3)), floor(&|floor| floor.prefill_seconds * 1e3));
    let itl = with_floor(
        series(&|figures| figures.itl_seconds.map(|itl| itl * 1e3)),
        floor(&|floor| floor.decode_seconds * 1e3),
    );
    vec![
        Chart {
            marks: crossings.collect(),
            ..against_eager(
                "Speed-up of the whole request",
                "Eager's time over the mode's; above 1 is faster. Circles mark where a mode crosses eager.",
                series(&|figures| Some(figures.speedup?.median)),
            )
        },
        plain(
            "Generated tokens per second",
            "Tokens of the answer over the whole time, prefill included.",
            "tok/s",
            series(&|figures| Some(figures.output_tokens_per_second)),
        ),
        Chart {
            logarithmic: true,
            ..plain("Time to the first token, ms", "Both axes are logarithmic; lower is better.", milliseconds, ttft)
        },
        plain("Time between tokens, ms", "Mean over the answer; lower is better.", milliseconds, itl),
        against_eager(
            "Speed-up of prefill",
            "Eager's time to the first token over the mode's.",
            series(&|figures| Some(figures.prefill_speedup?.median)),
        ),
        against_eager(
            "Speed-up of decoding",
            "Eager's time between tokens over the mode's.",
            series(&|figures| Some(figures.decode_speedup?.median)),
        ),
    ]
}
