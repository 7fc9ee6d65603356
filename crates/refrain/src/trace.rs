//! Traces of steps as Chrome trace files, which Perfetto and chrome://tracing show.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use refrain_device::{Lane, Span, Trace};
use serde_json::json;

/// Steps that are traced when nobody says which.
pub const DEFAULT_STEPS: Range<u64> = 0..64;

/// Most steps of a trace: every op of every step is kept in memory until the last one has ended.
pub const MOST_STEPS: u64 = 10_000;

/// What is to be traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceRequest {
    /// Where the trace is written.
    pub file: PathBuf,
    /// Numbers of the steps, from 0.
    pub steps: Range<u64>,
}

/// A trace that writes its file when the last of its steps has ended, or when the engine goes away.
///
/// # Errors
/// When the file can't be made, which is known before anything is traced.
pub fn trace(request: &TraceRequest) -> std::io::Result<Arc<Trace>> {
    let name = request.file.display().to_string();
    let mut writer = BufWriter::new(File::create(&request.file)?);
    Ok(Trace::new(request.steps.clone(), move |spans| match write(&spans, &mut writer).and_then(|()| writer.flush()) {
        Ok(()) => tracing::info!("a trace of {} spans is in {name}", spans.len()),
        Err(error) => tracing::error!("the trace can't be written to {name}: {error}"),
    }))
}

/// Writes spans in the trace event format: complete events, `"ph": "X"`, in microseconds.
///
/// # Errors
/// Those of the writer.
pub fn write(spans: &[Span], to: &mut impl Write) -> std::io::Result<()> {
    let lanes = [(Lane::Host, "host"), (Lane::Device, "device")];
    write!(to, "{{\"displayTimeUnit\": \"ms\", \"traceEvents\": [")?;
    for (index, (lane, name)) in lanes.into_iter().enumerate() {
        let event = json!({
            "ph": "M", "pid": 1, "tid": thread(lane), "name": "thread_name", "args": { "name": name },
        });
        write!(to, "{}\n{event}", if index == 0 { "" } else { "," })?;
    }
    for span in spans {
        let mut arguments = json!({ "step": span.step });
        if !span.detail.is_empty() {
            arguments["way"] = json!(span.detail);
        }
        let microseconds = |time: std::time::Duration| time.as_nanos() as f64 / 1e3;
        let event = json!({
            "ph": "X", "pid": 1, "tid": thread(span.lane), "name": span.name,
            "ts": microseconds(span.start), "dur": microseconds(span.length), "args": arguments,
        });
        write!(to, ",\n{event}")?;
    }
    writeln!(to, "\n]}}")
}

fn thread(lane: Lane) -> u32 {
    match lane {
        Lane::Host => 1,
        Lane::Device => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn spans_become_complete_events_in_microseconds() {
        let span = |lane, name: &'static str, start, length, detail: &str| Span {
            lane,
            name: name.into(),
            step: 3,
            start: Duration::from_nanos(start),
            length: Duration::from_nanos(length),
            detail: detail.to_owned(),
        };
        let spans = [
            span(Lane::Host, "plan \"it\"", 1500, 250, ""),
            span(Lane::Device, "step 3", 2000, 4000, "graph(decode, 1)"),
        ];
        let mut text = Vec::new();
        write(&spans, &mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let events = json["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 4);
        assert_eq!(
            (&events[2]["name"], &events[2]["ts"], &events[2]["dur"]),
            (&json!("plan \"it\""), &json!(1.5), &json!(0.25))
        );
        assert_eq!(events[3]["args"], json!({ "step": 3, "way": "graph(decode, 1)" }));
        assert_ne!(events[2]["tid"], events[3]["tid"]);
        let names: Vec<_> = events[..2].iter().map(|event| event["args"]["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["host", "device"]);
    }

    #[test]
    fn an_empty_trace_is_json_too() {
        let mut text = Vec::new();
        write(&[], &mut text).unwrap();
        serde_json::from_slice::<serde_json::Value>(&text).unwrap();
    }
}
