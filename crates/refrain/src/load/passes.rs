//! What the passes have done to a program, range by range, as the start-up table and `/server_info` show it.

use std::fmt;

use refrain_program::{Applied, CompiledRange, Program, compile_ranges};
use serde_json::{Value, json};

use super::Device;

/// The ranges of a compiled program, ascending; none where nothing is compiled.
#[derive(Clone, Debug, Default)]
pub struct Passes(pub Vec<CompiledRange>);

impl Passes {
    /// What they will do to a program on a device.
    pub fn of(program: &Program, device: &Device) -> Passes {
        Passes(match device {
            Device::Cpu(options) => refrain_cpu::compiled(program, options),
            Device::Gpu(_, settings) => {
                let ranges = settings.compile.iter().flat_map(|options| compile_ranges(program, options));
                ranges.map(|(range, _)| range).collect()
            }
        })
    }

    /// The rows of each range: `1-8`, `9-`.
    fn rows(&self) -> Vec<String> {
        let firsts = std::iter::once(1).chain(self.0.iter().map(|range| range.most_rows.saturating_add(1)));
        let name = |(first, range): (u32, &CompiledRange)| match range.most_rows {
            u32::MAX => format!("{first}-"),
            last if last == first => first.to_string(),
            last => format!("{first}-{last}"),
        };
        firsts.zip(&self.0).map(name).collect()
    }

    /// What each pass has done, by the rows of the steps.
    pub fn to_json(&self) -> Value {
        let range = |(rows, range): (String, &CompiledRange)| json!({ "rows": rows, "passes": range.applied });
        self.rows().into_iter().zip(&self.0).map(range).collect()
    }
}

/// A line for each pass: the places that it has rewritten, by the rows of the steps; then the ops that this saves.
impl fmt::Display for Passes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else { return Ok(()) };
        let columns = |cells: Vec<String>| cells.iter().map(|cell| format!("  {cell:>7}")).collect::<String>();
        writeln!(f, "Passes: places by rows of a step\n  {:<24}{}", "", columns(self.rows()))?;
        for (index, Applied { pass, .. }) in first.applied.iter().enumerate() {
            let own = || self.0.iter().map(|range| &range.applied[index]);
            let places = own().map(|applied| match applied.places {
                0 => "-".to_owned(),
                places => places.to_string(),
            });
            let why = own().find_map(|applied| applied.not_applicable.as_ref());
            let why = why.map_or(String::new(), |why| format!("  {why}"));
            writeln!(f, "  {pass:<24}{}{why}", columns(places.collect()))?;
        }
        let saved = |range: &CompiledRange| range.applied.iter().map(|applied| applied.launches_saved).sum::<usize>();
        let saved = self.0.iter().map(|range| saved(range).to_string()).collect();
        writeln!(f, "  {:<24}{}", "launches saved, at most", columns(saved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use refrain_program::BytesSaved;

    fn applied(pass: &'static str, places: usize, not_applicable: Option<&str>) -> Applied {
        let not_applicable = not_applicable.map(str::to_owned);
        Applied { pass, places, launches_saved: 2 * places, bytes_saved: BytesSaved::default(), not_applicable }
    }

    #[test]
    fn each_range_has_a_column() {
        let few = vec![applied("fuse_a", 18, None), applied("fuse_b", 6, None), applied("fuse_c", 0, Some("no c"))];
        let many = vec![
            applied("fuse_a", 18, None),
            applied("fuse_b", 0, Some("few rows")),
            applied("fuse_c", 0, Some("no c")),
        ];
        let ranges = [(7, few.clone()), (8, few), (u32::MAX, many)];
        let passes = Passes(ranges.map(|(most_rows, applied)| CompiledRange { most_rows, applied }).into());
        insta::assert_snapshot!(passes.to_string());
        assert_eq!(passes.to_json()[1]["rows"], "8");
        assert_eq!(passes.to_json()[2]["passes"][1]["not_applicable"], "few rows");
        assert_eq!(Passes::default().to_string(), "");
    }
}
