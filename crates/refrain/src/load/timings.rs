//! What steps cost in each cell, kept on disk from one start to the next: a JSON file for each device, model and limits.
//!
//! ```text
//! {"sha256": of key and entries, "key": {...}, "entries": [{"phase": "decode", "rows": [1, 1], ...}, ...]}
//! ```
//!
//! The folder is the user's own. A file that is damaged or another's is as good as none: it only saves seconds.

use std::path::Path;

use refrain_device::{Cell, Part, Replay};
use refrain_engine::{Alike, Average, Phase, PolicyEntry, Span};
use refrain_gpu::loader::{CacheError, Digest, PrivateFolder};
use serde_json::{Value, json};

const EXTENSION: &str = "json";

/// Bytes of a file at most, far more than there are kinds of steps.
const MOST_BYTES: u64 = 8 << 20;

/// Bytes of all files: what was used longest ago goes first.
const MOST_BYTES_OF_ALL: u64 = 4 * MOST_BYTES;

/// Seconds of a step that can't be true.
const MOST_SECONDS: f64 = 3600.0;

/// Kept tables of policies.
pub(super) struct Timings(PrivateFolder);

impl Timings {
    /// Those in `folder`, which is made if need be.
    ///
    /// # Errors
    /// [`CacheError`] when it can't be had or others can write to it.
    pub fn open(folder: &Path) -> Result<Timings, CacheError> {
        Ok(Timings(PrivateFolder::open(folder)?))
    }

    /// The table that was kept under a key; `None` when there is none.
    ///
    /// # Errors
    /// A sentence that says why what is there can't be used.
    pub fn get(&self, key: &Value) -> Result<Option<Vec<PolicyEntry>>, String> {
        let name = file_name(key);
        let decoded =
            self.0.read(&name, MOST_BYTES).and_then(|found| found.map(|bytes| decode(key, &bytes)).transpose());
        decoded.map_err(|why| format!("{}: {why}", self.0.path().join(name).display()))
    }

    /// Keeps the measured part of a table.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn put(&self, key: &Value, table: &[PolicyEntry]) -> std::io::Result<()> {
        self.0.write(&file_name(key), encode(key, table).as_bytes())?;
        self.0.trim(EXTENSION, MOST_BYTES_OF_ALL)
    }

    /// Throws away what is kept under a key.
    pub fn remove(&self, key: &Value) {
        // What can't be removed is overwritten, or said to be kept no more.
        let _ = self.0.remove(&file_name(key));
    }
}

fn file_name(key: &Value) -> String {
    format!("{}.{EXTENSION}", Digest::of(key.to_string().as_bytes()))
}

fn checksum(key: &Value, entries: &Value) -> String {
    Digest::of(format!("{key}\n{entries}").as_bytes()).to_string()
}

fn encode(key: &Value, table: &[PolicyEntry]) -> String {
    let span = |span: Span| json!([span.from, span.to]);
    let measured = table.iter().filter(|entry| entry.average.samples > 0);
    let entries = measured.map(|PolicyEntry { alike, cell, average, .. }| {
        json!({
            "phase": alike.phase.name(),
            "rows": span(alike.rows),
            "context": span(alike.context),
            "compiled": cell.compiled,
            "replay": REPLAYS.into_iter().find(|(_, replay)| *replay == cell.replay).map(|(name, _)| name),
            "part": PARTS.into_iter().find(|(_, part)| *part == cell.part).map(|(name, _)| name),
            "graph_rows": cell.rows,
            "nanoseconds": (average.seconds * 1e9).round() as u64,
        })
    });
    let entries = Value::Array(entries.collect());
    json!({ "sha256": checksum(key, &entries), "key": key, "entries": entries }).to_string()
}

const REPLAYS: [(&str, Replay); 3] = [("none", Replay::None), ("piecewise", Replay::Piecewise), ("full", Replay::Full)];
const PARTS: [(&str, Part); 3] = [("any", Part::Any), ("decode", Part::Decode), ("prefill", Part::Prefill)];

fn decode(key: &Value, bytes: &[u8]) -> Result<Vec<PolicyEntry>, String> {
    let file: Value = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file["key"] != *key {
        return Err("it is about something else".to_owned());
    }
    if file["sha256"] != checksum(key, &file["entries"]) {
        return Err("its checksum is wrong".to_owned());
    }
    let entries = file["entries"].as_array().ok_or("it has no entries")?;
    entries.iter().map(|entry| read_entry(entry).ok_or_else(|| format!("{entry} is no entry"))).collect()
}

fn read_entry(entry: &Value) -> Option<PolicyEntry> {
    let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
    let span = |name| Some(Span { from: number(&entry[name][0])?, to: number(&entry[name][1])? });
    let named = |name: &str| entry[name].as_str();
    let seconds = entry["nanoseconds"].as_u64()? as f64 * 1e-9;
    let alike = Alike {
        phase: Phase::ALL.into_iter().find(|phase| Some(phase.name()) == named("phase"))?,
        rows: span("rows")?,
        context: span("context")?,
    };
    let cell = Cell {
        compiled: entry["compiled"].as_bool()?,
        replay: REPLAYS.into_iter().find(|(name, _)| Some(*name) == named("replay"))?.1,
        part: PARTS.into_iter().find(|(name, _)| Some(*name) == named("part"))?.1,
        rows: number(&entry["graph_rows"])?,
    };
    let possible = seconds > 0.0 && seconds < MOST_SECONDS;
    possible.then_some(PolicyEntry { alike, cell, average: Average::calibrated(seconds), present: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn table() -> Vec<PolicyEntry> {
        let span = |from, to| Span { from, to };
        let alike = Alike { phase: Phase::Decode, rows: span(1, 1), context: span(1, 1024) };
        let graph = Cell { compiled: true, replay: Replay::Full, part: Part::Decode, rows: 1 };
        let entry = |cell, seconds| PolicyEntry { alike, cell, average: Average::calibrated(seconds), present: false };
        vec![entry(Cell::EAGER, 0.003), entry(graph, 0.002)]
    }

    #[test]
    fn what_is_kept_is_found_under_its_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let timings = Timings::open(&folder.path().join("timings")).unwrap();
        let key = json!({ "device": "a" });
        assert_eq!(timings.get(&key), Ok(None));
        let assumed = PolicyEntry { average: Average::assumed(0.1), ..table()[0] };
        timings.put(&key, &[table(), vec![assumed]].concat()).unwrap();
        assert_eq!(timings.get(&key), Ok(Some(table())));
        assert_eq!(timings.get(&json!({ "device": "b" })), Ok(None));
        timings.remove(&key);
        assert_eq!(timings.get(&key), Ok(None));
    }

    #[test]
    fn what_was_changed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let timings = Timings::open(folder.path()).unwrap();
        let key = json!({ "device": "a" });
        timings.put(&key, &table()).unwrap();
        let path = folder.path().join(file_name(&key));
        let good = fs::read_to_string(&path).unwrap();
        for (from, to) in
            [("2000000", "1000000"), ("decode", "prefill"), ("\"a\"", "\"b\""), ("sha256", "sha"), ("}", "")]
        {
            fs::write(&path, good.replacen(from, to, 1)).unwrap();
            assert!(timings.get(&key).is_err(), "{from} replaced by {to}");
        }
        // Well signed, but impossible.
        let mut entries = serde_json::from_str::<Value>(&good).unwrap()["entries"].clone();
        entries[0]["nanoseconds"] = json!(0);
        let forged = json!({ "sha256": checksum(&key, &entries), "key": key, "entries": entries }).to_string();
        fs::write(&path, forged).unwrap();
        assert!(timings.get(&key).unwrap_err().contains("is no entry"));
        fs::write(&path, good).unwrap();
        assert_eq!(timings.get(&key), Ok(Some(table())));
    }
}
