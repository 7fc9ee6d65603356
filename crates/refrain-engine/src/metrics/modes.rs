//! How steps were run, and what is known about it: made from the policy's table when somebody looks.

use crate::policy::{Phase, Policy, PolicyEntry, Span};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use refrain_device::{Cell, Replay};
use std::fmt::Error;
use std::sync::{Arc, Mutex, PoisonError};

/// The policy of an engine, as its metrics see it.
#[derive(Clone, Debug)]
pub(super) struct StepModes(pub Arc<Mutex<Policy>>);

#[derive(Clone, Debug, EncodeLabelSet)]
struct Way {
    phase: &'static str,
    mode: &'static str,
    bucket: String,
}

impl Way {
    fn new(phase: Phase, cell: &Cell) -> Way {
        let bucket = if cell.replay == Replay::None { "none".to_owned() } else { cell.rows.to_string() };
        Way { phase: phase.name(), mode: cell.way(), bucket }
    }
}

#[derive(Clone, Debug, EncodeLabelSet)]
struct Place {
    phase: &'static str,
    rows: String,
    context: String,
    mode: &'static str,
    bucket: String,
}

impl Place {
    fn new(entry: &PolicyEntry) -> Place {
        let Way { phase, mode, bucket } = Way::new(entry.alike.phase, &entry.cell);
        let text = |Span { from, to }: Span| if from == to { to.to_string() } else { format!("{from}-{to}") };
        let alike = &entry.alike;
        Place { phase, rows: text(alike.rows), context: text(alike.context), mode, bucket }
    }
}

impl Collector for StepModes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (steps, split, table) = {
            let policy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            (policy.steps(), policy.split_steps(), policy.table())
        };
        let mut counter = |name: &str, help: &str, value: fn(&crate::policy::CellSteps) -> u64| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            steps.iter().try_for_each(|cell| {
                let labels = Way::new(cell.phase, &cell.cell);
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, f64>(&value(cell), None)
            })
        };
        counter("refrain:step_mode", "Steps by what they did and how they were run", |cell| cell.steps)?;
        let help = "Rows that graphs had and the steps had not";
        counter("refrain:step_padding_rows", help, |cell| cell.padding)?;
        let help = "Steps that were run as two, their decoding sequences before the others";
        let split = ConstCounter::new(split);
        split.encode(encoder.encode_descriptor("refrain:steps_split", help, None, split.metric_type())?)?;
        // What is only assumed is left out: the file would be long.
        let measured: Vec<&PolicyEntry> = table.iter().filter(|entry| entry.average.samples > 0).collect();
        let mut gauge = |name: &str, help: &str, value: fn(&PolicyEntry) -> f64| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            measured.iter().try_for_each(|entry| metric.encode_family(&Place::new(entry))?.encode_gauge(&value(entry)))
        };
        gauge("refrain:policy_step_seconds", "Seconds of a step, moving average", |entry| entry.average.seconds)?;
        gauge("refrain:policy_samples", "Measurements behind it", |entry| f64::from(entry.average.samples))?;
        let help = "1 for the cell that is the best for such steps";
        gauge("refrain:policy_present", help, |entry| f64::from(u8::from(entry.present)))
    }
}
