//! What a caller asks of the engine, and what comes back: token ids in, token ids out. Text is the server's business.

use std::collections::BTreeMap;
use std::time::Instant;

/// A request for one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Name of the request, for logs; need not be unique.
    pub id: String,
    /// Prompt, at least one token, every id below the vocabulary size.
    pub prompt: Vec<u32>,
    /// How to choose the answer's tokens.
    pub sampling: SamplingParams,
    /// With the `priority` policy, smaller goes first.
    pub priority: i32,
}

/// How the tokens of an answer are chosen. Names, ranges and defaults are vLLM's.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; otherwise the logits are divided by it. `[0, 1000]`.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probabilities reach it. `(0, 1]`.
    pub top_p: f32,
    /// Keeps that many of the best tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps tokens at least this fraction as probable as the best one. `[0, 1]`.
    pub min_p: f32,
    /// Subtracted from the logits of tokens that the answer already has. `[-2, 2]`.
    pub presence_penalty: f32,
    /// Subtracted for each time the answer already has the token. `[-2, 2]`.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens that prompt or answer already have. `> 0`, 1 is off.
    pub repetition_penalty: f32,
    /// Seed of this request's random numbers; without one the engine draws one.
    pub seed: Option<u64>,
    /// Most tokens to generate, at least 1. The context limit caps it.
    pub max_tokens: usize,
    /// Before this many tokens no end-of-sequence and no stop token is chosen.
    pub min_tokens: usize,
    /// Token ids that end the answer, the model's end-of-sequence ids not among them.
    pub stop_token_ids: Vec<u32>,
    /// Don't end at the model's end-of-sequence ids.
    pub ignore_eos: bool,
    /// Added to the logits of some tokens, each in `[-100, 100]`.
    pub logit_bias: BTreeMap<u32, f32>,
    /// When given, only these tokens can be chosen; not empty.
    pub allowed_token_ids: Option<Vec<u32>>,
    /// Sequences of tokens that the answer must not contain.
    pub bad_words: Vec<Vec<u32>>,
    /// Give the log-probability of each chosen token and of this many best ones.
    pub logprobs: Option<usize>,
    /// The same for each prompt token but the first.
    pub prompt_logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: None,
            max_tokens: 16,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logit_bias: BTreeMap::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// The log-probability of one token at some position, of the raw logits: before penalties, bias and temperature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// 1 for the most probable token.
    pub rank: u32,
}

/// Log-probabilities at one position.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionLogprobs {
    /// Of the token that stands there.
    pub chosen: TokenLogprob,
    /// Of the best tokens, best first, as many as were asked for.
    pub top: Vec<TokenLogprob>,
}

/// Why an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-sequence token, which was sent as the last token.
    EndOfSequence,
    /// One of `stop_token_ids`, which was sent as the last token.
    StopToken(u32),
    /// `max_tokens` or the context limit.
    Length,
}

/// What the engine sends for a request, in order: `PromptLogprobs` if asked for, tokens, then one of `Finished` and
/// `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// For each prompt token after the first, in one piece or several, always in order.
    PromptLogprobs(Vec<PositionLogprobs>),
    /// The next token of the answer.
    Token {
        /// Its id.
        token: u32,
        /// Present if asked for.
        logprobs: Option<PositionLogprobs>,
        /// When the step that gave it had ended: whoever receives it may be late.
        at: Instant,
    },
    /// The answer is complete.
    Finished {
        /// Why it ended.
        reason: FinishReason,
        /// Prompt tokens that were taken from a cache instead of computed.
        cached_tokens: usize,
    },
    /// The request could not be finished.
    Failed(RequestFailure),
}

/// Why a request failed after it had been accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The device failed in a step that this request took part in.
    #[error("the device failed: {0}")]
    Device(String),
    /// The logits of the model were not finite, so no token could be chosen.
    #[error("the model gave logits that are not finite numbers")]
    NotFinite,
    /// `allowed_token_ids`, `bad_words`, `min_tokens` and `logit_bias` together forbid every token.
    #[error("the request's allowed_token_ids, bad_words, min_tokens and logit_bias together leave no token to choose")]
    NoTokenAllowed,
    /// The engine thread ended by a bug.
    #[error("the engine stopped unexpectedly")]
    EngineDied,
    /// The engine was told to stop before the answer was complete.
    #[error("the engine is shutting down")]
    ShuttingDown,
}
