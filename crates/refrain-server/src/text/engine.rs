//! The engine with text at both ends.

use super::answer::AnswerText;
use super::prompt::{PromptOptions, PromptReader, Template};
use super::stream::{AnswerEnd, AnswerParts};
use super::{
    ChatPrompt, GenerateRequest, PreparedPrompt, Prompt, SamplingDefaults, StopMatcher, TextError, TextStream,
};
use refrain_engine::{EngineHandle, Request, SamplingParams, SchedulingPolicy};
use refrain_model::{ChatTemplate, Detokenizer, Tokenizer};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// How many prompts are rendered and tokenized at the same time: the processors have a model to run.
const PREPARING_AT_ONCE: usize = 2;

/// The engine with text at both ends. Cheap to clone.
#[derive(Clone)]
pub struct TextEngine(Arc<Parts>);

struct Parts {
    engine: EngineHandle,
    tokenizer: Option<Arc<Tokenizer>>,
    template: Option<Template>,
    defaults: SamplingDefaults,
    max_token_bytes: usize,
    preparing: Arc<Semaphore>,
}

/// A request whose prompt and words are tokens.
struct Prepared {
    prompt: PreparedPrompt,
    sampling: SamplingParams,
}

impl TextEngine {
    /// Puts text around a running engine. Without a tokenizer it takes and gives token ids only; without a template
    /// it takes no chats.
    pub fn new(
        engine: EngineHandle,
        tokenizer: Option<Arc<Tokenizer>>,
        template: Option<Arc<ChatTemplate>>,
        defaults: SamplingDefaults,
    ) -> Self {
        let max_token_bytes = tokenizer.as_deref().map_or(1, longest_token);
        let template = template.map(Template::new);
        let preparing = Arc::new(Semaphore::new(PREPARING_AT_ONCE));
        Self(Arc::new(Parts { engine, tokenizer, template, defaults, max_token_bytes, preparing }))
    }

    /// The engine below.
    pub fn engine(&self) -> &EngineHandle {
        &self.0.engine
    }

    /// The tokenizer, if the model has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.0.tokenizer.as_ref()
    }

    /// The bytes that a token stands for; empty for ids that stand for nothing.
    pub fn token_bytes(&self, token: u32) -> Vec<u8> {
        self.0.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_bytes(token)).unwrap_or_default()
    }

    /// Whether chats can be answered.
    pub fn has_template(&self) -> bool {
        self.0.template.is_some()
    }

    /// Most tokens of prompt and answer together.
    pub fn max_model_len(&self) -> usize {
        self.0.engine.config().max_model_len
    }

    /// What a request gets for parameters that it leaves out.
    pub fn defaults(&self) -> &SamplingDefaults {
        &self.0.defaults
    }

    /// Sampling parameters of a request that names none.
    pub fn default_sampling(&self) -> SamplingParams {
        self.0.defaults.params()
    }

    /// Starts to answer a request; the prompt is read on a blocking thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`TextError`] when the request is refused; nothing is running then.
    pub async fn generate(&self, request: GenerateRequest) -> Result<TextStream, TextError> {
        self.generate_all(vec![request]).await
    }

    /// Starts to answer several requests as one stream: the answers to the first come first in the numbering.
    ///
    /// # Errors
    /// [`TextError`] when any of them is refused; nothing is running then.
    pub async fn generate_all(&self, requests: Vec<GenerateRequest>) -> Result<TextStream, TextError> {
        let this = self.clone();
        let (requests, prepared) = self
            .off_thread(move || {
                let prepared = this.0.prepare_all(&requests)?;
                Ok((requests, prepared))
            })
            .await?;
        self.0.submit_all(&requests, prepared)
    }

    /// [`TextEngine::generate`] for threads that run no async code; read the answer with
    /// [`TextStream::blocking_next`].
    ///
    /// # Errors
    /// As [`TextEngine::generate`].
    pub fn generate_blocking(&self, request: GenerateRequest) -> Result<TextStream, TextError> {
        let requests = [request];
        self.0.submit_all(&requests, self.0.prepare_all(&requests)?)
    }

    /// Token ids of a prompt, however long it is.
    ///
    /// # Errors
    /// [`TextError`] when the prompt can't be rendered or tokenized.
    pub async fn tokenize(&self, prompt: Prompt, add_special_tokens: Option<bool>) -> Result<Vec<u32>, TextError> {
        let this = self.clone();
        let options = PromptOptions { add_special_tokens, truncate: None, max_tokens: None, keep_text: false };
        self.off_thread(move || {
            let reader = PromptReader { max_model_len: usize::MAX, ..this.0.reader() };
            match reader.read(&prompt, options) {
                Ok(prepared) => Ok(prepared.ids),
                Err(TextError::EmptyPrompt) => Ok(Vec::new()),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The prompt text that the chat template makes of a conversation.
    ///
    /// # Errors
    /// [`TextError`] when there is no template or it refuses.
    pub fn render(&self, chat: &ChatPrompt) -> Result<String, TextError> {
        self.0.reader().render(chat)
    }

    /// Runs work that may take long on a thread where it holds nobody up.
    pub(crate) async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, TextError> + Send + 'static,
    ) -> Result<T, TextError> {
        let permit = self.0.preparing.clone().acquire_owned().await;
        let permit = permit.map_err(|_| TextError::Internal)?;
        let work = move || {
            // Held by the work itself: it goes on when the client is gone and nobody waits for it any more.
            let _permit = permit;
            work()
        };
        let died = |error| {
            tracing::error!("preparing a prompt failed: {error}");
            TextError::Internal
        };
        tokio::task::spawn_blocking(work).await.map_err(died)?
    }
}

impl Parts {
    fn reader(&self) -> PromptReader<'_> {
        PromptReader {
            tokenizer: self.tokenizer.as_deref(),
            template: self.template.as_ref(),
            max_model_len: self.engine.config().max_model_len,
            max_token_bytes: self.max_token_bytes,
        }
    }

    fn prepare_all(&self, requests: &[GenerateRequest]) -> Result<Vec<Prepared>, TextError> {
        self.check_answers(requests)?;
        requests.iter().map(|request| self.prepare(request)).collect()
    }

    /// Refuses more answers than could ever be held: the engine would call its queue full, which promises that a later
    /// attempt may do better.
    fn check_answers(&self, requests: &[GenerateRequest]) -> Result<(), TextError> {
        let config = self.engine.config();
        let Some(queued) = config.max_num_queued_reqs else { return Ok(()) };
        let limit = config.max_num_seqs.saturating_add(queued);
        let answers = requests.iter().fold(0, |sum: usize, request| sum.saturating_add(request.n));
        if answers > limit { Err(TextError::TooManyAnswers { answers, limit }) } else { Ok(()) }
    }

    fn prepare(&self, request: &GenerateRequest) -> Result<Prepared, TextError> {
        request.validate()?;
        let options = PromptOptions {
            add_special_tokens: request.add_special_tokens,
            truncate: request.truncate_prompt_tokens,
            max_tokens: request.max_tokens,
            keep_text: request.echo,
        };
        if !request.stop.is_empty() && self.tokenizer.is_none() {
            return Err(TextError::NoTokenizer { what: "a stop string" });
        }
        if request.priority != 0 && self.engine.config().scheduling_policy == SchedulingPolicy::Fcfs {
            let message = "priority has no effect with first-come first-served scheduling: start the server with \
                           --scheduling-policy priority";
            return Err(TextError::Invalid { param: "priority", message: message.to_owned() });
        }
        // Before the costly part. The engine checks again, with the final values.
        let config = self.engine.config();
        let mut sampling = request.sampling.clone();
        sampling.max_tokens = request.max_tokens.unwrap_or(config.max_model_len);
        sampling.validate(config.vocab_size, config.max_model_len)?;
        let prompt = self.reader().read(&request.prompt, options)?;
        sampling.max_tokens = self.max_tokens(request.max_tokens, prompt.ids.len())?;
        sampling.bad_words = self.bad_words(&request.bad_words)?;
        Ok(Prepared { prompt, sampling })
    }

    /// How many tokens the answer may have.
    fn max_tokens(&self, wanted: Option<usize>, prompt_tokens: usize) -> Result<usize, TextError> {
        let max_model_len = self.engine.config().max_model_len;
        let room = max_model_len.saturating_sub(prompt_tokens);
        if room == 0 {
            return Err(TextError::PromptTooLong { prompt_tokens, exact: true, max_model_len });
        }
        if let Some(max_tokens) = wanted.filter(|&wanted| wanted > room) {
            return Err(TextError::MaxTokensTooLarge { max_tokens, prompt_tokens, max_model_len });
        }
        Ok(wanted.unwrap_or(room).min(self.defaults.max_new_tokens.unwrap_or(usize::MAX)))
    }

    /// Token sequences that spell the bad words, at the start of a text and behind a space. As vLLM's
    /// `SamplingParams.update_from_tokenizer`.
    fn bad_words(&self, words: &[String]) -> Result<Vec<Vec<u32>>, TextError> {
        if words.is_empty() {
            return Ok(Vec::new());
        }
        let tokenizer = self.tokenizer.as_deref().ok_or(TextError::NoTokenizer { what: "a bad word" })?;
        let encode = |text: &str| tokenizer.encode(text, false).map_err(TextError::Tokenizer);
        let mut sequences = Vec::new();
        for word in words {
            let word = word.trim_start();
            let bare = encode(word)?;
            let spaced = encode(&format!(" {word}"))?;
            // With a space it is another spelling only if the space went into the first token.
            let other = spaced.first() != bare.first() && spaced.len() == bare.len();
            sequences.push(bare);
            if other {
                sequences.push(spaced);
            }
        }
        Ok(sequences)
    }

    /// Submits everything, or nothing.
    fn submit_all(&self, requests: &[GenerateRequest], prepared: Vec<Prepared>) -> Result<TextStream, TextError> {
        let (mut submissions, mut texts) = (Vec::new(), Vec::new());
        for (request, Prepared { prompt, sampling }) in requests.iter().zip(&prepared) {
            let eos = if sampling.ignore_eos { &[][..] } else { &self.engine.config().eos_token_ids };
            let end = Arc::new(AnswerEnd {
                tokens: [eos, &sampling.stop_token_ids].concat(),
                shown: request.include_stop_str_in_output,
                max_tokens: sampling.max_tokens,
            });
            for index in 0..request.n {
                let seed = sampling.seed.map(|seed| seed.wrapping_add(index as u64));
                let id =
                    if request.n == 1 { request.request_id.clone() } else { format!("{}-{index}", request.request_id) };
                submissions.push(Request {
                    id,
                    prompt: prompt.ids.clone(),
                    sampling: SamplingParams { seed, ..sampling.clone() },
                    priority: request.priority,
                });
                texts.push((self.answer_text(request, sampling.min_tokens), end.clone()));
            }
        }
        let streams = self.engine.submit_all(submissions)?;
        let answers = streams.into_iter().zip(texts).map(|(stream, (text, end))| AnswerParts { stream, text, end });
        Ok(TextStream::new(prepared.into_iter().map(|prepared| prepared.prompt).collect(), answers.collect()))
    }

    /// What makes the text of one answer.
    fn answer_text(&self, request: &GenerateRequest, min_tokens: usize) -> AnswerText {
        let start = |tokenizer: &Arc<Tokenizer>| Detokenizer::new(tokenizer.clone(), request.skip_special_tokens);
        let detokenizer = self.tokenizer.as_ref().map(start);
        let stops = StopMatcher::new(&request.stop, request.include_stop_str_in_output);
        AnswerText::new(detokenizer, stops, min_tokens)
    }
}

/// Bytes of the tokenizer's longest token.
fn longest_token(tokenizer: &Tokenizer) -> usize {
    let ids = 0..tokenizer.vocab_size() as u32;
    ids.filter_map(|id| tokenizer.token_bytes(id)).map(|bytes| bytes.len()).max().unwrap_or(1)
}
