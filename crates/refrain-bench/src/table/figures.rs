//! From single runs to the figures of one mode at one input length: medians over the rounds.

use serde::Serialize;

use super::mode::{Mode, StepCount, sum};
use crate::offline::rate;
use crate::statistics::median;

/// One batch of requests: submitted together, read to their ends.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Run {
    /// How its steps were run.
    pub mode: Mode,
    /// Prompt tokens of each request.
    pub input_len: usize,
    /// The round, from 0.
    pub round: usize,
    /// From submission until every request had its first token.
    pub ttft_seconds: f64,
    /// Mean time from one token to the next after that; `None` for answers of one token.
    pub itl_seconds: Option<f64>,
    /// From submission to the last token.
    pub total_seconds: f64,
    /// In which ways its steps were run.
    pub steps: Vec<StepCount>,
}

/// The least time in which a machine can do it: every weight and state once through memory, or all arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// All prompts of a batch in one step.
    pub prefill_seconds: f64,
    /// One token for every request of the batch, in the middle of the answer.
    pub decode_seconds: f64,
}

/// How a mode compares with another: the first's time over the second's, round by round.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Speedup {
    /// Median over the rounds.
    pub median: f64,
    /// The worst round.
    pub low: f64,
    /// The best round.
    pub high: f64,
}

/// What a mode reached at one input length. Medians over the rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModeFigures {
    /// The mode.
    pub mode: Mode,
    /// From submission until every request had its first token.
    pub ttft_seconds: f64,
    /// Prompt tokens of the batch over that time.
    pub prefill_tokens_per_second: f64,
    /// Mean time from one token to the next; `None` for answers of one token.
    pub itl_seconds: Option<f64>,
    /// From submission to the last token.
    pub total_seconds: f64,
    /// Generated tokens of the batch over that time.
    pub output_tokens_per_second: f64,
    /// Eager's total time over this mode's; `None` unless eager was measured beside it.
    pub speedup: Option<Speedup>,
    /// The same of the time to the first token.
    pub prefill_speedup: Option<Speedup>,
    /// The same of the time between tokens.
    pub decode_speedup: Option<Speedup>,
    /// The median total of the best other mode, [`Mode::Measured`] aside, over this mode's.
    pub against_best_fixed: Option<f64>,
    /// Part of the roofline that prefill reaches, in percent, where the ceilings are known.
    pub prefill_roofline_percent: Option<f64>,
    /// Part of the roofline that decoding reaches, in percent.
    pub decode_roofline_percent: Option<f64>,
    /// In which ways steps were run, over all rounds.
    pub steps: Vec<StepCount>,
    /// Rows that graphs computed and nobody wanted, in percent of all rows that were computed.
    pub padding_percent: f64,
}

/// Sizes that all runs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Requests of a batch.
    pub batch_size: usize,
    /// Tokens that each generates.
    pub output_len: usize,
}

/// The figures of every mode at one input length, in the order of [`Mode::ALL`]. `runs` are those of that length.
pub fn figures(input_len: usize, runs: &[Run], sizes: Sizes, floor: Option<Floor>) -> Vec<ModeFigures> {
    let of = |mode: Mode| runs.iter().filter(move |run| run.mode == mode);
    let total = |mode: Mode| median(&of(mode).map(|run| run.total_seconds).collect::<Vec<_>>());
    let measured: Vec<Mode> = Mode::ALL.into_iter().filter(|&mode| of(mode).next().is_some()).collect();
    let fixed = measured.iter().filter(|&&mode| mode != Mode::Measured);
    let best_fixed = fixed.map(|&mode| total(mode)).min_by(f64::total_cmp);
    let one = |&mode: &Mode| {
        let runs: Vec<&Run> = of(mode).collect();
        let middle = |value: &dyn Fn(&Run) -> f64| median(&runs.iter().map(|run| value(run)).collect::<Vec<_>>());
        let against_eager = |value: &dyn Fn(&Run) -> Option<f64>| {
            let pairs = runs.iter().filter_map(|run| {
                let eager = of(Mode::Eager).find(|eager| eager.round == run.round)?;
                Some(value(eager)? / value(run)?)
            });
            spread(&pairs.collect::<Vec<_>>())
        };
        let ttft_seconds = middle(&|run| run.ttft_seconds);
        let total_seconds = middle(&|run| run.total_seconds);
        let decodes = runs.iter().all(|run| run.itl_seconds.is_some());
        let itl_seconds = decodes.then(|| middle(&|run| run.itl_seconds.unwrap_or_default()));
        let steps = sum(runs.iter().flat_map(|run| run.steps.clone()));
        let percent = |floor: f64, time: f64| 100.0 * floor / time;
        ModeFigures {
            mode,
            ttft_seconds,
            prefill_tokens_per_second: rate(sizes.batch_size * input_len, ttft_seconds),
            itl_seconds,
            total_seconds,
            output_tokens_per_second: rate(sizes.batch_size * sizes.output_len, total_seconds),
            speedup: against_eager(&|run| Some(run.total_seconds)),
            prefill_speedup: against_eager(&|run| Some(run.ttft_seconds)),
            decode_speedup: against_eager(&|run| run.itl_seconds),
            against_best_fixed: best_fixed.filter(|_| mode == Mode::Measured).map(|best| best / total_seconds),
            prefill_roofline_percent: floor.map(|floor| percent(floor.prefill_seconds, ttft_seconds)),
            decode_roofline_percent: floor.zip(itl_seconds).map(|(floor, itl)| percent(floor.decode_seconds, itl)),
            padding_percent: padding_percent(&steps, runs.len() * sizes.batch_size * rows(input_len, sizes)),
            steps,
        }
    };
    measured.iter().map(one).collect()
}

/// Rows that one request needs: its prompt, and every token of its answer but the last.
fn rows(input_len: usize, sizes: Sizes) -> usize {
    input_len + sizes.output_len - 1
}

fn padding_percent(steps: &[StepCount], wanted: usize) -> f64 {
    let padding = steps.iter().map(|count| count.padding_rows).sum::<u64>() as f64;
    100.0 * padding / (padding + wanted as f64)
}

fn spread(values: &[f64]) -> Option<Speedup> {
    let low = values.iter().copied().min_by(f64::total_cmp)?;
    let high = values.iter().copied().max_by(f64::total_cmp)?;
    Some(Speedup { median: median(values), low, high })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mode: Mode, round: usize, ttft: f64, total: f64) -> Run {
        let steps = match mode {
            Mode::Eager => Vec::new(),
            _ => vec![StepCount {
                phase: "decode".to_owned(),
                cell: "graph(decode, 8)".to_owned(),
                steps: 4,
                padding_rows: 28,
            }],
        };
        let itl_seconds = Some((total - ttft) / 4.0);
        Run { mode, input_len: 100, round, ttft_seconds: ttft, itl_seconds, total_seconds: total, steps }
    }

    const SIZES: Sizes = Sizes { batch_size: 2, output_len: 5 };

    /// The machine becomes slower from round to round: what is paired within a round does not see it.
    #[test]
    fn drift_does_not_change_a_speedup() {
        let runs: Vec<Run> = (0..3)
            .flat_map(|round| {
                let slow = f64::from(1 << round);
                [run(Mode::Eager, round, 1.0 * slow, 3.0 * slow), run(Mode::Graph, round, 1.0 * slow, 2.0 * slow)]
            })
            .collect();
        let all = figures(100, &runs, SIZES, None);
        assert_eq!(all.iter().map(|figures| figures.mode).collect::<Vec<_>>(), [Mode::Eager, Mode::Graph]);
        let graph = &all[1];
        assert_eq!(graph.speedup, Some(Speedup { median: 1.5, low: 1.5, high: 1.5 }));
        assert_eq!(graph.prefill_speedup.unwrap().median, 1.0);
        assert_eq!(graph.decode_speedup.unwrap().median, 2.0);
        assert_eq!((graph.ttft_seconds, graph.total_seconds, graph.itl_seconds), (2.0, 4.0, Some(0.5)));
        assert_eq!(graph.prefill_tokens_per_second, 100.0);
        assert_eq!(graph.output_tokens_per_second, 2.5);
        assert_eq!(graph.against_best_fixed, None);
        assert_eq!((graph.steps[0].steps, graph.steps[0].padding_rows), (12, 84));
        // Three runs of two requests of 100 + 4 rows.
        assert_eq!(graph.padding_percent, 100.0 * 84.0 / (84.0 + 624.0));
    }

    #[test]
    fn the_policy_is_held_against_the_best_fixed_mode() {
        let runs = [
            run(Mode::Eager, 0, 1.0, 3.0),
            run(Mode::Graph, 0, 1.0, 2.0),
            run(Mode::Measured, 0, 1.0, 2.5),
            run(Mode::Compiled, 0, 1.0, 4.0),
        ];
        let floor = Floor { prefill_seconds: 0.25, decode_seconds: 0.15 };
        let all = figures(100, &runs, SIZES, Some(floor));
        let measured = all.iter().find(|figures| figures.mode == Mode::Measured).unwrap();
        assert_eq!(measured.against_best_fixed, Some(0.8));
        assert_eq!(measured.prefill_roofline_percent, Some(25.0));
        assert_eq!(measured.decode_roofline_percent, Some(40.0));
    }

    #[test]
    fn without_eager_or_a_second_token_there_is_nothing_to_divide() {
        let alone = Run { itl_seconds: None, ..run(Mode::Graph, 0, 1.0, 1.0) };
        let floor = Floor { prefill_seconds: 0.5, decode_seconds: 0.5 };
        let all = figures(100, &[alone], Sizes { batch_size: 1, output_len: 1 }, Some(floor));
        assert_eq!((all[0].speedup, all[0].itl_seconds, all[0].decode_roofline_percent), (None, None, None));
        assert_eq!(all[0].prefill_roofline_percent, Some(50.0));
    }
}
