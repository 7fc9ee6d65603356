//! One request of the serving benchmark: its body, and what came back when.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::client::Client;
use crate::{BenchError, Sample};

/// Which endpoint the requests go to, by vLLM's names of the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions`, with prompts as token ids.
    Completions,
    /// `/v1/chat/completions`, with the text of the token ids as the user's message.
    Chat,
}

impl Api {
    /// Name of the backend.
    pub fn name(self) -> &'static str {
        match self {
            Api::Completions => "openai",
            Api::Chat => "openai-chat",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
        }
    }
}

/// What all requests of a benchmark have in common.
#[derive(Clone, Debug)]
pub(super) struct RequestTemplate {
    pub api: Api,
    pub model: String,
    pub ignore_eos: bool,
    /// More members of the body; they replace those of the same name.
    pub extra_body: Map<String, Value>,
}

impl RequestTemplate {
    /// The request for a sample; a chat's message is made by the server's detokenizer.
    pub async fn request(&self, client: &Client, sample: Sample) -> Result<Prepared, BenchError> {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model));
        let prompt_len = sample.prompt.len();
        match self.api {
            Api::Completions => {
                body.insert("prompt".to_owned(), json!(sample.prompt));
                body.insert("max_tokens".to_owned(), json!(sample.output_len));
            }
            Api::Chat => {
                let request = json!({ "model": self.model, "tokens": sample.prompt });
                let text = client.post("/detokenize", &request).await?["prompt"].take();
                body.insert("messages".to_owned(), json!([{ "role": "user", "content": text }]));
                body.insert("max_completion_tokens".to_owned(), json!(sample.output_len));
            }
        }
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({ "include_usage": true }));
        if self.ignore_eos {
            body.insert("ignore_eos".to_owned(), json!(true));
        }
        body.extend(self.extra_body.clone());
        Ok(Prepared { path: self.api.path(), body: Value::Object(body), prompt_len })
    }
}

/// A request that is ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    path: &'static str,
    body: Value,
    prompt_len: usize,
}

/// What came of a request. Times are in seconds.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Prompt tokens, by the server's count where it gives one.
    pub prompt_len: usize,
    /// Generated tokens, by the server's count.
    pub output_len: usize,
    /// When it was sent, from the start of the benchmark.
    pub start_time: f64,
    /// How long it waited for a place under the concurrency limit before that.
    pub queue_time: f64,
    /// From sending to the first piece of the answer.
    pub ttft: f64,
    /// Between one piece of the answer and the next.
    pub itls: Vec<f64>,
    /// From sending to the last piece of the answer.
    pub latency: f64,
    /// The answer.
    pub text: String,
    /// Why it failed, if it did.
    pub error: Option<BenchError>,
}

impl Prepared {
    /// Sends it and reads the answer to its end.
    pub async fn send(&self, client: &Client, benchmark_start: Instant, queue_time: Duration) -> Outcome {
        let start = Instant::now();
        let mut outcome = Outcome {
            prompt_len: self.prompt_len,
            start_time: start.duration_since(benchmark_start).as_secs_f64(),
            queue_time: queue_time.as_secs_f64(),
            ..Outcome::default()
        };
        if let Err(error) = self.receive(client, start, &mut outcome).await {
            outcome.error = Some(error);
        }
        outcome
    }

    async fn receive(&self, client: &Client, start: Instant, outcome: &mut Outcome) -> Result<(), BenchError> {
        let wrong = |why: String| BenchError::Answer { url: client.url(self.path), why };
        let mut events = client.post_for_events(self.path, &self.body).await?;
        let mut previous = start;
        let mut pieces = 0usize;
        let mut usage = Value::Null;
        while let Some(data) = events.next().await? {
            if data == "[DONE]" {
                break;
            }
            let now = Instant::now();
            let mut event: Value = serde_json::from_str(&data).map_err(|error| wrong(format!("not JSON: {error}")))?;
            if let Some(message) = event["error"]["message"].as_str() {
                return Err(wrong(message.to_owned()));
            }
            if event["usage"].is_object() {
                usage = event["usage"].take();
            }
            let Some(choice) = event["choices"].get(0) else { continue };
            let text = text_of(choice);
            let ends = choice["finish_reason"].is_string();
            // Events without text, such as the role at the start of a chat, stand for no token. A last one does when
            // there was none before: the answer was nothing but an end-of-sequence token.
            if !text.is_empty() || (ends && pieces == 0) {
                let waited = now.duration_since(previous).as_secs_f64();
                if pieces == 0 {
                    outcome.ttft = waited;
                } else {
                    outcome.itls.push(waited);
                }
                previous = now;
                pieces += 1;
                outcome.text.push_str(text);
            }
            outcome.latency = now.duration_since(start).as_secs_f64();
        }
        let count = |name: &str| usage[name].as_u64().map(|count| count as usize);
        outcome.prompt_len = count("prompt_tokens").unwrap_or(outcome.prompt_len);
        outcome.output_len = count("completion_tokens").unwrap_or(pieces);
        if pieces == 0 {
            return Err(wrong("the stream ended without a single piece of an answer".to_owned()));
        }
        Ok(())
    }
}

/// The text of a choice of either endpoint, thoughts included.
fn text_of(choice: &Value) -> &str {
    let delta = &choice["delta"];
    let places = [&choice["text"], &delta["content"], &delta["reasoning_content"], &delta["reasoning"]];
    places.into_iter().find_map(|place| place.as_str().filter(|text| !text.is_empty())).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_found_wherever_an_endpoint_puts_it() {
        let cases = [
            (json!({ "text": "a" }), "a"),
            (json!({ "delta": { "role": "assistant", "content": "" } }), ""),
            (json!({ "delta": { "content": "a" } }), "a"),
            (json!({ "delta": { "content": null, "reasoning_content": "b" } }), "b"),
            (json!({ "delta": {} }), ""),
            (json!({}), ""),
        ];
        for (choice, text) in cases {
            assert_eq!(text_of(&choice), text, "{choice}");
        }
    }
}
