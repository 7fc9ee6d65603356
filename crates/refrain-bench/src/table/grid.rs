//! A table of texts, written as Markdown that reads well as it stands, or as HTML.

use std::fmt::Write;

/// How a column stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table: every row has a cell for each column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    /// What it shows.
    pub title: String,
    /// Name and alignment of each column.
    pub columns: Vec<(&'static str, Align)>,
    /// The cells.
    pub rows: Vec<Vec<String>>,
    /// Columns from the left in which a cell that says the same as the one above it is left empty.
    pub grouped: usize,
}

impl Grid {
    /// A table with a heading of level 2.
    pub fn markdown(&self) -> String {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| escape_markdown(&row[column]).chars().count());
            cells.chain([self.columns[column].0.chars().count(), 3]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).zip(&self.columns).map(|((cell, &width), (_, align))| match align {
                Align::Left => format!(" {cell:<width$} |"),
                Align::Right => format!(" {cell:>width$} |"),
            });
            format!("|{}\n", padded.collect::<String>())
        };
        let rule = widths.iter().zip(&self.columns).map(|(&width, (_, align))| match align {
            Align::Left => format!(" {} |", "-".repeat(width)),
            Align::Right => format!(" {}: |", "-".repeat(width - 1)),
        });
        let mut text = format!("## {}\n", self.title);
        text += &line(&self.columns.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
        let _ = writeln!(text, "|{}", rule.collect::<String>());
        for (index, row) in self.rows.iter().enumerate() {
            let cells: Vec<String> = (0..row.len())
                .map(|column| if self.repeats(index, column) { String::new() } else { escape_markdown(&row[column]) })
                .collect();
            text += &line(&cells);
        }
        text
    }

    /// A section with a heading and a table that scrolls sideways where the page is too narrow.
    pub fn html(&self) -> String {
        let class = |align| if align == Align::Right { " class=\"number\"" } else { "" };
        let mut text =
            format!("<section>\n<h2>{}</h2>\n<div class=\"scroll\"><table>\n<thead><tr>", escape(&self.title));
        for &(name, align) in &self.columns {
            let _ = write!(text, "<th scope=\"col\"{}>{}</th>", class(align), escape(name));
        }
        text += "</tr></thead>\n<tbody>\n";
        for (index, row) in self.rows.iter().enumerate() {
            let begins = index > 0 && self.grouped > 0 && !self.repeats(index, 0);
            text += if begins { "<tr class=\"group\">" } else { "<tr>" };
            for (column, cell) in row.iter().enumerate() {
                let cell = if self.repeats(index, column) { String::new() } else { escape(cell) };
                let _ = write!(text, "<td{}>{cell}</td>", class(self.columns[column].1));
            }
            text += "</tr>\n";
        }
        text + "</tbody>\n</table></div>\n</section>\n"
    }

    /// Whether the grouped cells up to this one are those of the row above.
    fn repeats(&self, row: usize, column: usize) -> bool {
        column < self.grouped && row > 0 && self.rows[row][..=column] == self.rows[row - 1][..=column]
    }
}

/// Text as HTML shows it.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Text that ends neither a cell nor a line.
fn escape_markdown(text: &str) -> String {
    text.replace('|', "\\|").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        Grid {
            title: "Fruit & <more>".to_owned(),
            columns: vec![("kind", Align::Left), ("name", Align::Left), ("n", Align::Right)],
            rows: vec![row(["soft", "a|b", "1"]), row(["soft", "fig", "20"]), row(["hard", "fig", "3"])],
            grouped: 1,
        }
    }

    #[test]
    fn markdown_lines_up() {
        let expected = "\
## Fruit & <more>
| kind | name |   n |
| ---- | ---- | --: |
| soft | a\\|b |   1 |
|      | fig  |  20 |
| hard | fig  |   3 |
";
        assert_eq!(grid().markdown(), expected);
    }

    #[test]
    fn html_is_escaped_and_grouped() {
        let html = grid().html();
        assert!(html.contains("<h2>Fruit &amp; &lt;more&gt;</h2>"));
        assert!(html.contains("<tr><td></td><td>fig</td><td class=\"number\">20</td></tr>"), "{html}");
        assert!(html.contains("<tr class=\"group\"><td>hard</td><td>fig</td>"), "{html}");
    }
}
