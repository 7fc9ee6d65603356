//! Line charts over the input length, as SVG that takes its colours from the page.

use std::fmt::Write;

use super::grid::escape;
use super::scale::Scale;
use super::sections::digits;

/// A chart.
pub(super) struct Chart {
    /// What it shows.
    pub title: &'static str,
    /// How it is read.
    pub caption: String,
    /// Unit of the values.
    pub unit: &'static str,
    /// Whether the values have a logarithmic axis.
    pub logarithmic: bool,
    /// Whether a straight axis begins at 0.
    pub from_zero: bool,
    /// A value with a line of its own, and its name.
    pub reference: Option<(f64, &'static str)>,
    /// What is drawn.
    pub series: Vec<Series>,
    /// Input lengths that are marked on the reference line, with what is said of them.
    pub marks: Vec<(f64, String)>,
}

/// A line.
pub(super) struct Series {
    /// Its name.
    pub name: String,
    /// Class of its elements: the page gives each a colour.
    pub class: String,
    /// Input length and value, by ascending length.
    pub points: Vec<(usize, f64)>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 300.0;
/// Room for the labels.
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 44.0;

impl Chart {
    /// A figure with its caption; nothing when there is nothing to draw.
    pub fn html(&self) -> String {
        let lens: Vec<usize> = self.lengths();
        if lens.is_empty() {
            return String::new();
        }
        let values = self.series.iter().flat_map(|series| series.points.iter().map(|&(_, value)| value));
        let ends = self.reference.map(|(value, _)| value).into_iter().chain(self.from_zero.then_some(0.0));
        let y = if self.logarithmic { Scale::logarithmic(values) } else { Scale::straight(values.chain(ends)) };
        let frame = Frame { x: Scale::logarithmic(lens.iter().map(|&len| len as f64)), y };

        let label = format!("{}: {}", self.title, self.caption);
        let mut svg =
            format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">\n", escape(&label));
        self.axes(&frame, &lens, &mut svg);
        for series in &self.series {
            line(series, &frame, self.unit, &mut svg);
        }
        if let Some((value, _)) = self.reference {
            for (len, text) in &self.marks {
                let (x, y) = (frame.x(*len), frame.y(value));
                let _ = writeln!(
                    svg,
                    "<circle class=\"mark\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\"><title>{}</title></circle>",
                    escape(text)
                );
            }
        }
        let caption = escape(&self.caption);
        let title = escape(self.title);
        format!("<figure>\n<h3>{title}</h3>\n{svg}</svg>\n<figcaption>{caption}</figcaption>\n</figure>\n")
    }

    fn lengths(&self) -> Vec<usize> {
        let points = self.series.iter().flat_map(|series| series.points.iter().map(|&(len, _)| len));
        let mut lens: Vec<usize> = points.collect();
        lens.sort_unstable();
        lens.dedup();
        lens
    }

    fn axes(&self, frame: &Frame, lens: &[usize], svg: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for mark in frame.y.marks() {
            let y = frame.y(mark);
            let _ = writeln!(svg, "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>");
            let (x, y) = (LEFT - 7.0, y + 4.5);
            let _ = writeln!(svg, "<text class=\"value\" x=\"{x}\" y=\"{y:.1}\">{}</text>", short(mark));
        }
        if let Some((value, name)) = self.reference {
            let y = frame.y(value);
            let _ =
                writeln!(svg, "<line class=\"reference\" x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{right}\" y2=\"{y:.1}\"/>");
            let (x, y) = (LEFT + 6.0, y - 6.0);
            let _ = writeln!(svg, "<text class=\"note\" x=\"{x}\" y=\"{y:.1}\">{name}</text>");
        }
        let mut free = f64::NEG_INFINITY;
        for &len in lens {
            let x = frame.x(len as f64);
            let (from, to) = (bottom, bottom + 5.0);
            let _ = writeln!(svg, "<line class=\"tick\" x1=\"{x:.1}\" y1=\"{from}\" x2=\"{x:.1}\" y2=\"{to}\"/>");
            let text = tokens(len);
            let half = text.len() as f64 * 4.2;
            // A label that would run into the one before it is left out; its tick stays.
            if x - half > free {
                let y = bottom + 19.0;
                let _ = writeln!(svg, "<text class=\"length\" x=\"{x:.1}\" y=\"{y}\">{text}</text>");
                free = x + half;
            }
        }
        let _ = writeln!(svg, "<line class=\"axis\" x1=\"{LEFT}\" y1=\"{bottom}\" x2=\"{right}\" y2=\"{bottom}\"/>");
        let (middle, y) = ((LEFT + right) / 2.0, HEIGHT - 6.0);
        let _ = writeln!(svg, "<text class=\"length muted\" x=\"{middle}\" y=\"{y}\">input tokens</text>");
    }
}

/// Where values are drawn.
struct Frame {
    x: Scale,
    y: Scale,
}

impl Frame {
    fn x(&self, len: f64) -> f64 {
        LEFT + self.x.place(len) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.place(value) * (HEIGHT - TOP - BOTTOM)
    }
}

fn line(series: &Series, frame: &Frame, unit: &str, svg: &mut String) {
    let class = &series.class;
    let places: Vec<(f64, f64)> =
        series.points.iter().map(|&(len, value)| (frame.x(len as f64), frame.y(value))).collect();
    let points: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline class=\"line {class}\" points=\"{}\"/>", points.join(" "));
    for (&(len, value), (x, y)) in series.points.iter().zip(places) {
        let text = format!("{}, {len} tokens: {} {unit}", series.name, digits(value));
        let shape = marker(class, x, y);
        let _ = writeln!(svg, "<path class=\"point {class}\" d=\"{shape}\"><title>{}</title></path>", escape(&text));
    }
}

/// The shape of a series' points, so that colours are not all that tells them apart.
pub(super) fn marker(class: &str, x: f64, y: f64) -> String {
    match class {
        "eager" => format!("M{:.1} {:.1}h7v7h-7z", x - 3.5, y - 3.5),
        "compiled" => format!("M{x:.1} {:.1}l4.6 8h-9.2z", y - 5.3),
        "graph" => format!("M{x:.1} {:.1}l4.6 -8h-9.2z", y + 5.3),
        "graph-compile" => format!("M{x:.1} {:.1}l5 5l-5 5l-5 -5z", y - 5.0),
        "floor" => String::new(),
        _ => format!("M{:.1} {y:.1}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z", x - 4.0),
    }
}

/// A number of tokens: `24576` is `24k`, `1000` is itself.
fn tokens(len: usize) -> String {
    if len >= 1024 && len.is_multiple_of(1024) { format!("{}k", len / 1024) } else { len.to_string() }
}

/// The value of a mark, without digits that say nothing.
fn short(value: f64) -> String {
    let text = match value.abs() {
        value if value >= 1e6 => return format!("{}M", short_digits(value / 1e6)),
        value if value >= 1e4 => return format!("{}k", short_digits(value / 1e3)),
        _ => short_digits(value),
    };
    if text == "-0" { "0".to_owned() } else { text }
}

fn short_digits(value: f64) -> String {
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(usize, f64)>) -> Chart {
        Chart {
            title: "Speed-up",
            caption: "higher is better & faster".to_owned(),
            unit: "x",
            logarithmic: false,
            from_zero: false,
            reference: Some((1.0, "eager")),
            series: vec![Series { name: "graph".to_owned(), class: "graph".to_owned(), points }],
            marks: vec![(1500.0, "slower above <1500>".to_owned())],
        }
    }

    /// Every place that is drawn, and that is no label, lies inside the frame.
    #[test]
    fn points_lie_inside_the_frame() {
        let html = chart(vec![(1024, 1.7), (2048, 0.9), (4096, 0.8)]).html();
        let points = html.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let places: Vec<f64> = points.split([' ', ',']).map(|number| number.parse().unwrap()).collect();
        assert_eq!(places.len(), 6);
        for place in places.as_chunks::<2>().0 {
            assert!(
                (LEFT..=WIDTH - RIGHT).contains(&place[0]) && (TOP..=HEIGHT - BOTTOM).contains(&place[1]),
                "{place:?}"
            );
        }
        assert!(html.contains("slower above &lt;1500&gt;") && html.contains("better &amp; faster"));
        assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
    }

    #[test]
    fn nothing_is_drawn_of_nothing_and_one_length_is_enough() {
        assert_eq!(chart(Vec::new()).html(), "");
        let one = chart(vec![(1024, 1.0)]).html();
        assert!(one.contains("<svg") && !one.contains("NaN"), "{one}");
    }

    #[test]
    fn labels_are_short() {
        let cases = [(0.0, "0"), (0.2 + 0.1, "0.3"), (1500.0, "1500"), (20000.0, "20k"), (2.5e6, "2.5M")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
        assert_eq!([tokens(1000), tokens(24576), tokens(512)], ["1000", "24k", "512"]);
    }
}
