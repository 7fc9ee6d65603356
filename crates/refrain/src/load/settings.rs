//! The resolved settings: what is printed at start and what `/server_info` answers.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::cli::{Origin, Origins};

/// One resolved setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Name of the flag, with underscores.
    pub name: &'static str,
    /// What it came to.
    pub value: String,
    /// Where that came from.
    pub origin: Origin,
}

/// Resolved settings, in the order in which they are printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings(pub Vec<Setting>);

impl Settings {
    /// Adds a setting.
    pub fn push(&mut self, name: &'static str, value: impl fmt::Display, origin: Origin) {
        self.0.push(Setting { name, value: value.to_string(), origin });
    }

    /// Adds a setting that the caller gave, or else its default.
    pub fn push_or<T: fmt::Display>(&mut self, name: &'static str, given: Option<T>, default: impl fmt::Display) {
        match given {
            Some(value) => self.push(name, value, Origin::Given),
            None => self.push(name, default, Origin::Default),
        }
    }

    /// Says of each given setting whether it came from a flag or a variable.
    pub fn resolve(&mut self, origins: &Origins) {
        for setting in &mut self.0 {
            let origin = std::mem::replace(&mut setting.origin, Origin::Default);
            setting.origin = origins.resolve(setting.name, origin);
        }
    }

    /// Says where a setting came from.
    pub fn set_origin(&mut self, name: &str, origin: Origin) {
        if let Some(setting) = self.0.iter_mut().find(|setting| setting.name == name) {
            setting.origin = origin;
        }
    }

    /// The setting of that name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.name == name)
    }

    /// Those of some names.
    pub fn among(&self, names: &[&str]) -> Settings {
        Settings(self.0.iter().filter(|setting| names.contains(&setting.name)).cloned().collect())
    }

    /// Each setting with its value and origin.
    pub fn to_json(&self) -> Map<String, Value> {
        let entry = |setting: &Setting| {
            (setting.name.to_owned(), json!({ "value": setting.value, "origin": setting.origin.to_string() }))
        };
        self.0.iter().map(entry).collect()
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |text: fn(&Setting) -> usize| self.0.iter().map(text).max().unwrap_or(0);
        let names = width(|setting| setting.name.len());
        let values = width(|setting| setting.value.chars().count()).min(48);
        for Setting { name, value, origin } in &self.0 {
            writeln!(f, "  {:<names$}  {value:<values$}  {origin}", name.replace('_', "-"))?;
        }
        Ok(())
    }
}

/// Bytes for people, with three digits.
pub fn human_bytes(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 { 0 } else { 2 - (value.max(1.0).log10() as usize).min(2) };
    format!("{value:.decimals$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "0.98 KiB"), (1 << 20, "1.00 MiB"), (123 << 20, "123 MiB")];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
        assert_eq!(human_bytes((15 << 30) + (1 << 29)), "15.5 GiB");
    }

    #[test]
    fn the_table_lines_up() {
        let mut settings = Settings::default();
        settings.push("max_model_len", 8192, Origin::File("config.json"));
        settings.push("seed", 0, Origin::Default);
        settings.push("host", "127.0.0.1", Origin::Environment("REFRAIN_HOST".to_owned()));
        assert_eq!(
            settings.to_string(),
            "  max-model-len  8192       file config.json\n  seed           0          default\n  host           \
             127.0.0.1  environment REFRAIN_HOST\n"
        );
        assert_eq!(settings.among(&["seed", "port"]).to_string(), "  seed  0  default\n");
        assert_eq!(settings.to_json()["seed"], json!({ "value": "0", "origin": "default" }));
    }
}
