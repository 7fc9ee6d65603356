//! Reports for people: labels on the left, values on the right, headings between.

use std::fmt;

/// A report of two columns.
#[derive(Debug)]
pub(crate) struct Table {
    lines: Vec<Line>,
}

#[derive(Debug)]
enum Line {
    Heading(String),
    Row(String, String),
}

const WIDTH: usize = 44;

impl Table {
    pub fn new(title: impl Into<String>) -> Self {
        Self { lines: vec![Line::Heading(title.into())] }
    }

    pub fn heading(&mut self, text: impl Into<String>) {
        self.lines.push(Line::Heading(text.into()));
    }

    pub fn row(&mut self, label: impl Into<String>, value: impl Into<String>) {
        self.lines.push(Line::Row(label.into(), value.into()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Heading(text) => writeln!(f, "\n{text}\n{}", "-".repeat(text.chars().count()))?,
                Line::Row(label, value) => writeln!(f, "{label:<WIDTH$} {value}")?,
            }
        }
        Ok(())
    }
}
