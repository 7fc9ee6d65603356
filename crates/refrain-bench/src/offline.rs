//! What the benchmarks without a server share: requests straight to the engine, and the time of every token.

use std::time::Instant;

use refrain_engine::{EngineHandle, Event, Request, SamplingParams};
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;

use crate::{BenchError, Sample};

/// What a report says about the engine that was measured.
#[derive(Clone, Debug)]
pub struct EngineFacts {
    /// Name of the model.
    pub model_id: String,
    /// The device and what it computes with.
    pub device: String,
    /// Threads of the backend: as many measure the read bandwidth.
    pub threads: usize,
    /// Bytes of weights that one decode step reads.
    pub decode_weight_bytes: u64,
    /// Seconds from opening the model's files to an engine that takes requests.
    pub load_seconds: f64,
    /// When the process started.
    pub process_start: Instant,
    /// Copied into the JSON report: the memory plan, the settings.
    pub extra: Map<String, Value>,
}

impl EngineFacts {
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut json = Map::new();
        json.insert("device".to_owned(), json!(self.device));
        json.insert("threads".to_owned(), json!(self.threads));
        json.insert("load_seconds".to_owned(), json!(self.load_seconds));
        json.extend(self.extra.clone());
        json
    }
}

/// How one request went.
#[derive(Clone, Debug)]
pub(crate) struct Timeline {
    /// Prompt tokens.
    pub prompt_len: usize,
    /// When each token of the answer came.
    pub tokens: Vec<Instant>,
}

/// A request that generates exactly as many tokens as the sample asks for, chosen as vLLM's benchmarks choose them.
pub(crate) fn request(id: String, sample: Sample, seed: u64) -> Request {
    let sampling = SamplingParams {
        seed: Some(seed),
        max_tokens: sample.output_len,
        ignore_eos: true,
        ..SamplingParams::default()
    };
    Request { id, prompt: sample.prompt, sampling, priority: 0 }
}

/// Submits all requests at once and reads them to their ends; `finished` is told of each. In the order of the requests.
pub(crate) async fn run_all(
    engine: &EngineHandle,
    requests: Vec<Request>,
    finished: impl Fn(),
) -> Result<Vec<Timeline>, BenchError> {
    let mut tasks = JoinSet::new();
    let count = requests.len();
    for (index, request) in requests.into_iter().enumerate() {
        let prompt_len = request.prompt.len();
        let mut tokens = Vec::with_capacity(request.sampling.max_tokens);
        let mut stream = engine.submit(request)?;
        tasks.spawn(async move {
            loop {
                match stream.next().await {
                    Some(Event::Token { at, .. }) => tokens.push(at),
                    Some(Event::PromptLogprobs(_)) => {}
                    Some(Event::Finished { .. }) => return Ok((index, Timeline { prompt_len, tokens })),
                    Some(Event::Failed(failure)) => return Err(BenchError::Failed(failure)),
                    None => return Err(BenchError::EngineGone),
                }
            }
        });
    }
    let mut timelines: Vec<Option<Timeline>> = vec![None; count];
    while let Some(joined) = tasks.join_next().await {
        let (index, timeline) = joined.map_err(|_| BenchError::EngineGone)??;
        timelines[index] = Some(timeline);
        finished();
    }
    timelines.into_iter().collect::<Option<_>>().ok_or(BenchError::EngineGone)
}

/// Where the time of a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Phases {
    /// From the start to the last first token.
    pub prefill_seconds: f64,
    /// From there to the last token.
    pub decode_seconds: f64,
    /// Prompt tokens of all requests.
    pub prompt_tokens: usize,
    /// Tokens that came in the decode phase.
    pub decode_tokens: usize,
}

impl Phases {
    /// Splits a run that began at `start`. The border is the moment at which every request had its first token; tokens
    /// that some requests had before it are no part of the decode phase.
    pub fn of(start: Instant, timelines: &[Timeline]) -> Self {
        let border = timelines.iter().filter_map(|timeline| timeline.tokens.first()).max().copied().unwrap_or(start);
        let end = timelines.iter().filter_map(|timeline| timeline.tokens.last()).max().copied().unwrap_or(border);
        Self {
            prefill_seconds: border.duration_since(start).as_secs_f64(),
            decode_seconds: end.duration_since(border).as_secs_f64(),
            prompt_tokens: timelines.iter().map(|timeline| timeline.prompt_len).sum(),
            decode_tokens: timelines.iter().flat_map(|timeline| &timeline.tokens).filter(|&&at| at > border).count(),
        }
    }

    pub fn prefill_rate(&self) -> f64 {
        rate(self.prompt_tokens, self.prefill_seconds)
    }

    pub fn decode_rate(&self) -> f64 {
        rate(self.decode_tokens, self.decode_seconds)
    }
}

pub(crate) fn rate(count: usize, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn phases_are_split_where_every_request_has_its_first_token() {
        let start = Instant::now();
        let at = |times: &[u64]| Timeline {
            prompt_len: 100,
            tokens: times.iter().map(|&time| start + Duration::from_secs(time)).collect(),
        };
        let phases = Phases::of(start, &[at(&[1, 3, 4, 5]), at(&[2, 4, 6])]);
        assert_eq!(phases, Phases { prefill_seconds: 2.0, decode_seconds: 4.0, prompt_tokens: 200, decode_tokens: 5 });
        assert_eq!(phases.prefill_rate(), 100.0);
        assert_eq!(phases.decode_rate(), 1.25);
        // One token each: no decode phase, and no division by zero.
        assert_eq!(Phases::of(start, &[at(&[1])]).decode_rate(), 0.0);
    }
}
