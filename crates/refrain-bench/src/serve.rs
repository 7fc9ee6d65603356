//! `bench serve`: sends requests to a running server at a chosen rate and concurrency and reports what its users saw.

mod metrics;
mod request;

pub use metrics::{Goodput, MetricName, ServeReport};
use request::RequestTemplate;
pub use request::{Api, Outcome};

use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::{Arrivals, BenchError, RandomWorkload, Vocabulary};

/// What to send, and where.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The server, such as `http://127.0.0.1:8000`.
    pub base_url: String,
    /// Headers of every request.
    pub headers: Vec<(String, String)>,
    /// Endpoint to use.
    pub api: Api,
    /// Model to ask for; the first that the server has when none is named.
    pub model: Option<String>,
    /// Prompts. An empty [`Vocabulary::Ids`] stands for the tokens of a text that the server tokenizes.
    pub workload: RandomWorkload,
    /// When they are sent.
    pub arrivals: Arrivals,
    /// Most requests at the server at a time; `None` is no limit.
    pub max_concurrency: Option<usize>,
    /// Requests before the measured ones.
    pub num_warmups: usize,
    /// Go on after the end-of-sequence token, so that every answer has the length that was asked for.
    pub ignore_eos: bool,
    /// More members of every request body (sampling parameters).
    pub extra_body: Map<String, Value>,
    /// How long to wait for the server to answer `/health`.
    pub ready_timeout: Duration,
    /// Which metrics get percentiles, and which percentiles.
    pub percentile_metrics: Vec<MetricName>,
    /// Percentiles, each in `[0, 100]`.
    pub percentiles: Vec<f64>,
    /// Limits that a request must keep to count as good.
    pub goodput: Vec<Goodput>,
    /// Copied into the report.
    pub label: Option<String>,
    /// Copied into the report.
    pub metadata: Vec<(String, String)>,
}

/// Runs the benchmark. `progress` advances by one with each finished request.
///
/// # Errors
/// [`BenchError`] if the server can't be reached at the start or refuses the first request. Requests that fail later
/// are counted, and named in the report.
pub async fn run(options: &ServeOptions, progress: &ProgressBar) -> Result<ServeReport, BenchError> {
    let client = Client::new(&options.base_url, &options.headers)?;
    wait_until_ready(&client, options.ready_timeout).await?;
    let model = match &options.model {
        Some(model) => model.clone(),
        None => first_model(&client).await?,
    };
    let mut workload = options.workload.clone();
    if workload.vocabulary == Vocabulary::Ids(Vec::new()) {
        workload.vocabulary = Vocabulary::Ids(tokens_of_a_text(&client, &model).await?);
    }
    let template = RequestTemplate {
        api: options.api,
        model: model.clone(),
        ignore_eos: options.ignore_eos,
        extra_body: options.extra_body.clone(),
    };
    let mut requests = Vec::with_capacity(workload.num_prompts);
    for sample in workload.samples() {
        requests.push(template.request(&client, sample).await?);
    }
    let Some(first) = requests.first() else {
        return Err(BenchError::Option { option: "--num-prompts", why: "must be at least 1".to_owned() });
    };
    // One request alone, as vLLM does: a mistake in the options must not look like a thousand failed requests.
    let trial = first.send(&client, Instant::now(), Duration::ZERO).await;
    if let Some(error) = trial.error {
        return Err(error);
    }
    let limit = options.max_concurrency.unwrap_or(Semaphore::MAX_PERMITS).max(1);
    let warmups = vec![first.clone(); options.num_warmups];
    send_all(&client, warmups, &vec![Duration::ZERO; options.num_warmups], limit, &ProgressBar::hidden()).await;
    progress.set_length(requests.len() as u64);
    let times = options.arrivals.times(requests.len());
    let start = Instant::now();
    let outcomes = send_all(&client, requests, &times, limit, progress).await;
    let duration = start.elapsed();
    progress.finish_and_clear();
    Ok(ServeReport::new(options, model, duration, outcomes))
}

/// Sends each request at its time, at most `limit` at once; the outcomes are in the order of the requests.
async fn send_all(
    client: &Client,
    requests: Vec<request::Prepared>,
    times: &[Duration],
    limit: usize,
    progress: &ProgressBar,
) -> Vec<Outcome> {
    let start = Instant::now();
    let permits = Arc::new(Semaphore::new(limit));
    let mut tasks = JoinSet::new();
    let count = requests.len();
    for (index, (request, time)) in requests.into_iter().zip(times.iter().copied()).enumerate() {
        let (client, permits, progress) = (client.clone(), Arc::clone(&permits), progress.clone());
        tasks.spawn(async move {
            tokio::time::sleep_until((start + time).into()).await;
            let arrival = Instant::now();
            // The semaphore is never closed, so this can't fail.
            let permit = permits.acquire_owned().await;
            let outcome = request.send(&client, start, arrival.elapsed()).await;
            drop(permit);
            progress.inc(1);
            (index, outcome)
        });
    }
    let mut outcomes: Vec<Option<Outcome>> = (0..count).map(|_| None).collect();
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok((index, outcome)) => outcomes[index] = Some(outcome),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    outcomes.into_iter().flatten().collect()
}

async fn wait_until_ready(client: &Client, timeout: Duration) -> Result<(), BenchError> {
    let start = Instant::now();
    loop {
        // Any answer will do: servers differ in which of these paths they have and who may ask.
        match client.get("/v1/models").await {
            Err(BenchError::Connection { .. }) if start.elapsed() < timeout => {}
            Err(BenchError::Status { status: 503, .. }) if start.elapsed() < timeout => {}
            Err(error @ BenchError::Connection { .. }) => return Err(error),
            _ => return Ok(()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn first_model(client: &Client) -> Result<String, BenchError> {
    let models = client.get("/v1/models").await?;
    models["data"][0]["id"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| BenchError::Answer { url: client.url("/v1/models"), why: "it lists no model".to_owned() })
}

/// The ids of a text's tokens: valid in any vocabulary, whatever its size.
async fn tokens_of_a_text(client: &Client, model: &str) -> Result<Vec<u32>, BenchError> {
    const TEXT: &str = include_str!("serve/words.txt");
    let body = json!({ "model": model, "prompt": TEXT, "add_special_tokens": false });
    let answer = client.post("/tokenize", &body).await.map_err(|error| match error {
        BenchError::Status { url, status, message } => BenchError::Status {
            url,
            status,
            message: format!("{message} (give --vocab-size to draw prompts without the server's tokenizer)"),
        },
        error => error,
    })?;
    let mut ids: Vec<u32> =
        answer["tokens"].as_array().into_iter().flatten().filter_map(|id| id.as_u64()?.try_into().ok()).collect();
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Err(BenchError::Answer { url: client.url("/tokenize"), why: "it gave no tokens".to_owned() });
    }
    Ok(ids)
}
