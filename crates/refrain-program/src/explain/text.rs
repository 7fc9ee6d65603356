//! An explanation as text, at most 100 columns wide for any usual model.

use super::{Explanation, Memory, Section};
use crate::Estimate;
use std::fmt;

/// Kinds of ops that take less than this part of a step are summed up in one line.
const SMALL_SHARE: f64 = 0.005;

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.schedule.len();
        let gdn = self.schedule.matches('G').count();
        let attention = self.schedule.matches('A').count();
        writeln!(f, "{}", self.model)?;
        writeln!(f, "  parameters  {}, vocabulary {}", parameters(self.parameters), self.vocab_size)?;
        writeln!(f, "  layers      {layers}: {gdn} GDN (G), {attention} full attention (A)")?;
        writeln!(f, "  schedule    {}", self.schedule)?;
        writeln!(f, "\nOps, for T tokens of which S want logits")?;
        for section in &self.sections {
            section.fmt(f)?;
        }
        self.memory.fmt(f)?;
        match &self.ceilings {
            Some(ceilings) => {
                let (bandwidth, compute) = (significant(ceilings.bytes_per_second / 1e9), ceilings.flops_per_second);
                writeln!(f, "\nRoofline at {bandwidth} GB/s and {}FLOP/s ({})", scaled(compute), self.ceilings_source)?;
                writeln!(f, "  floor: weights and states once through memory, or all FLOPs, whichever takes longer")?;
                writeln!(f, "  op by op: one op after another, activations through memory as well")?;
            }
            None => writeln!(f, "\nNo roofline: {}", self.ceilings_source)?,
        }
        let tokens = self.memory.tokens;
        if let Some(prefill) = &self.prefill {
            writeln!(f, "\n  Prefill of {tokens} tokens in one step")?;
            estimate(prefill, tokens, f)?;
        }
        if let Some(decode) = &self.decode {
            writeln!(f, "\n  Decode of one token at a context of {tokens}")?;
            estimate(decode, 1, f)?;
        }
        writeln!(f, "\nCompiled: the same work in fewer ops")?;
        self.compiled.iter().try_for_each(|steps| steps.fmt(f))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layers.as_slice() {
            [] => writeln!(f, "\n{}", self.title)?,
            [layer] => writeln!(f, "\nLayer {layer}: {}", self.title)?,
            layers => writeln!(f, "\nLayers {}: {}", ranges(layers), self.title)?,
        }
        self.ops.iter().try_for_each(|op| writeln!(f, "  {op}"))
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tokens = self.tokens;
        writeln!(f, "\nMemory")?;
        let mut row = |what: &str, size: usize, note: String| writeln!(f, "  {what:<20} {:>10}   {note}", bytes(size));
        let note = format!("matrices {}, vectors f32", self.matrix_dtypes);
        row("weights", self.weight_bytes, note)?;
        let unshared = bytes(self.unshared_activation_bytes);
        row("activations", self.activation_bytes, format!("for {tokens} tokens in a step; all tensors: {unshared}"))?;
        let kv = (bytes(self.kv_block_bytes), bytes(self.kv_token_bytes * tokens));
        let note = format!("per token; {} per block of {}; {} for {tokens} tokens", kv.0, self.block_tokens, kv.1);
        row("keys and values", self.kv_token_bytes, note)?;
        let note = match self.kv_token_bytes {
            0 => "per sequence".to_owned(),
            token => format!("per sequence, as much as {} tokens of keys and values", self.gdn_slot_bytes / token),
        };
        row("GDN states", self.gdn_slot_bytes, note)?;

        let fullest = &self.fullest;
        let layer = fullest.layer.map_or(String::new(), |layer| format!(" of layer {layer}"));
        let live = bytes(fullest.bytes);
        writeln!(f, "\n  Fullest moment: op {}, {}{layer}, {live} live", fullest.op, fullest.kind)?;
        writeln!(f, "  {:<20} {:>10}   {:>14}   shape", "tensor", "size", "offset")?;
        for tensor in &fullest.tensors {
            let size = bytes(tensor.bytes);
            writeln!(f, "  {:<20} {size:>10}   {:>14}   {}", tensor.name, tensor.offset, tensor.shape)?;
        }
        Ok(())
    }
}

fn estimate(estimate: &Estimate, tokens: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let rate = |seconds: f64| significant(tokens as f64 / seconds);
    let (floor, total) = (estimate.floor_seconds, estimate.seconds);
    let (bound, cost) = (estimate.bound, &estimate.cost);
    writeln!(f, "    floor       {:>9} {:>9} tokens/s   bound by {bound}", seconds(floor), rate(floor))?;
    writeln!(f, "    op by op    {:>9} {:>9} tokens/s", seconds(total), rate(total))?;
    writeln!(f)?;
    let titles = ["weights", "activations", "states", "FLOPs", "time", "share"];
    writeln!(
        f,
        "    {:<20} {:>5} {:>10} {:>11} {:>10} {:>8} {:>9} {:>6}  bound",
        "op", "count", titles[0], titles[1], titles[2], titles[3], titles[4], titles[5]
    )?;
    let mut line = |name: &str, count: usize, cost: &crate::Cost, time: f64, bound: &str| {
        let (weights, activations, states) = (cost.weight_bytes, cost.activation_bytes, cost.state_bytes);
        let share = format!("{:.1}%", 100.0 * time / total);
        let cells =
            [weights, activations, states].map(|size| if size == 0 { "-".into() } else { bytes(size as usize) });
        let flops = if cost.flops == 0 { "-".into() } else { scaled(cost.flops as f64) };
        let text = format!(
            "    {name:<20} {count:>5} {:>10} {:>11} {:>10} {flops:>8} {:>9} {share:>6}  {bound}",
            cells[0],
            cells[1],
            cells[2],
            seconds(time)
        );
        writeln!(f, "{}", text.trim_end())
    };
    let (large, small): (Vec<_>, Vec<_>) = estimate.ops.iter().partition(|op| op.seconds >= SMALL_SHARE * total);
    for op in &large {
        line(&op.name, op.count, &op.cost, op.seconds, &op.bound.to_string())?;
    }
    if !small.is_empty() {
        let cost = small.iter().map(|op| op.cost).sum();
        let count = small.iter().map(|op| op.count).sum();
        let name = format!("{} other kinds", small.len());
        line(&name, count, &cost, small.iter().map(|op| op.seconds).sum(), "")?;
    }
    line("all", estimate.ops.iter().map(|op| op.count).sum(), cost, total, "")
}

/// `0-2, 4-6, 9`; of many runs the first three, because the schedule tells the rest.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    let mut runs: Vec<String> = runs.collect();
    if runs.len() > 4 {
        runs.truncate(3);
        runs.push(format!("... ({} layers)", numbers.len()));
    }
    runs.join(", ")
}

/// Three significant digits, or all digits before the point.
fn significant(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// A number with a unit of `units`, each `base` times the one before.
fn in_units(value: f64, base: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut index = 0;
    while value >= base && index + 1 < units.len() {
        value /= base;
        index += 1;
    }
    match index {
        0 => format!("{value:.0} {}", units[0]).trim_end().to_owned(),
        _ => format!("{} {}", significant(value), units[index]),
    }
}

/// `4.21 B`, in billions as models are named.
fn parameters(value: usize) -> String {
    in_units(value as f64, 1000.0, &["", "K", "M", "B", "T"])
}

/// `1.50 G`.
fn scaled(value: f64) -> String {
    in_units(value, 1000.0, &["", "k", "M", "G", "T", "P"])
}

/// `12.0 KiB`.
pub(super) fn bytes(value: usize) -> String {
    in_units(value as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"])
}

/// `2.85 ms`.
pub(super) fn seconds(value: f64) -> String {
    match value {
        value if value >= 1.0 => format!("{} s", significant(value)),
        value if value >= 1e-3 => format!("{} ms", significant(value * 1e3)),
        value => format!("{} µs", significant(value * 1e6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            [0, 1023, 1024, 12 * 1024, 18_874_368].map(bytes),
            ["0 B", "1023 B", "1.00 KiB", "12.0 KiB", "18.0 MiB"]
        );
        assert_eq!([0.0, 999.0, 1e3, 752_393_024.0, 8.4e12].map(scaled), ["0", "999", "1.00 k", "752 M", "8.40 T"]);
        assert_eq!([2.0, 0.0123, 4.5e-6].map(seconds), ["2.00 s", "12.3 ms", "4.50 µs"]);
        assert_eq!([9.999, 99.99, 1234.5].map(significant), ["10.0", "100", "1234"]);
    }

    #[test]
    fn runs_of_layers_are_folded() {
        assert_eq!(ranges(&[0, 1, 2, 4, 5, 6, 9]), "0-2, 4-6, 9");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[1, 3, 5, 7]), "1, 3, 5, 7");
        assert_eq!(ranges(&[1, 3, 5, 7, 8, 10]), "1, 3, 5, ... (6 layers)");
    }
}
