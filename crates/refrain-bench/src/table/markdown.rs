//! The report as Markdown.

use super::report::TableReport;
use super::sections::{remarks, sections, subtitle};

impl TableReport {
    /// The report as Markdown, which reads well on a terminal too.
    pub fn to_markdown(&self) -> String {
        let mut text = format!("# {}: modes side by side\n\n{}\n", self.facts.model_id, subtitle(self));
        for section in sections(self) {
            text.push('\n');
            text += &section.markdown();
        }
        text.push('\n');
        for remark in remarks(self) {
            text += &format!("- {remark}\n");
        }
        text
    }
}
