//! The whole engine against reference answers, and batches against the same requests alone.

use indicatif::ProgressBar;
use refrain::load::{LoadOptions, Loaded, load};
use refrain_engine::{EngineHandle, Event, FinishReason, Request, RequestStream, SamplingParams};
use refrain_model::Dtype;
use refrain_testkit::{Eval, random_checkpoint, tinytales_evals};
use std::time::Instant;

fn start(options: LoadOptions) -> Loaded {
    load(&options, &ProgressBar::hidden()).unwrap()
}

fn submit(engine: &EngineHandle, prompt: Vec<u32>, sampling: SamplingParams) -> RequestStream {
    engine.submit(Request { id: "test".to_owned(), prompt, sampling, priority: 0 }).unwrap()
}

/// The answer of a request, the end token not among it.
fn answer(mut stream: RequestStream) -> Vec<u32> {
    let mut tokens = Vec::new();
    loop {
        match stream.blocking_next().expect("a last event") {
            Event::Token { token, .. } => tokens.push(token),
            Event::PromptLogprobs(_) => {}
            Event::Finished { reason, .. } => {
                if reason == FinishReason::EndOfSequence {
                    tokens.pop();
                }
                return tokens;
            }
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

fn greedy(max_tokens: usize) -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens, ..SamplingParams::default() }
}

/// Share of the reference answers that the embedded model reproduces token for token, all requests at once.
fn reproduced(dtype: Dtype, evals: &[Eval]) -> f64 {
    let loaded = start(LoadOptions { dtype: Some(dtype), max_num_seqs: Some(16), ..LoadOptions::default() });
    let tokenizer = loaded.model.tokenizer.clone().unwrap();
    let streams: Vec<RequestStream> = evals
        .iter()
        .map(|eval| {
            let prompt = tokenizer.encode(&eval.prompt, false).unwrap();
            assert_eq!(prompt.len(), eval.prompt_tokens, "{}", eval.prompt);
            submit(&loaded.engine, prompt, greedy(48))
        })
        .collect();
    let mut same = 0;
    for (stream, eval) in streams.into_iter().zip(evals) {
        let found = answer(stream);
        same += usize::from(found == eval.reference_ids);
        if found != eval.reference_ids {
            let text = tokenizer.decode(&found, false);
            println!("{} (margin {}): {text:?} instead of {:?}", eval.kind, eval.min_margin, eval.reference);
        }
    }
    println!("{dtype}: {same} of {} reproduced", evals.len());
    same as f64 / evals.len() as f64
}

#[test]
fn reference_answers_are_reproduced_in_f32() {
    let evals = tinytales_evals();
    assert_eq!(evals.len(), 240);
    assert!(reproduced(Dtype::F32, &evals) >= 0.99);
}

#[test]
fn reference_answers_with_a_margin_are_reproduced_in_bf16() {
    let mut evals = tinytales_evals();
    evals.retain(|eval| eval.min_margin >= 0.1);
    assert!(evals.len() > 150);
    assert!(reproduced(Dtype::Bf16, &evals) >= 0.97);
}

/// Requests of all kinds: short and long, greedy and sampled, with everything that depends on earlier tokens.
fn mixture(vocab_size: usize, longest: usize) -> Vec<(Vec<u32>, SamplingParams)> {
    let lengths = [1, 7, 63, 64, 65, 100, 128, 190, 250, longest];
    let ids = |length: usize, from: usize| (0..length).map(|i| ((from + i * i * 31) % vocab_size) as u32).collect();
    let sampled = |seed| SamplingParams { temperature: 1.0, seed: Some(seed), ignore_eos: true, ..greedy(40) };
    let kinds = [
        SamplingParams { ignore_eos: true, ..greedy(40) },
        sampled(1),
        SamplingParams { top_p: 0.9, top_k: 50, min_p: 0.02, ..sampled(2) },
        SamplingParams { presence_penalty: 1.0, frequency_penalty: 0.5, repetition_penalty: 1.2, ..sampled(3) },
        SamplingParams { logprobs: Some(3), ..sampled(4) },
    ];
    let mut requests = Vec::new();
    for (index, &length) in lengths.iter().enumerate() {
        for (offset, kind) in kinds.iter().enumerate().filter(|(offset, _)| (index + offset) % 2 == 0) {
            requests.push((ids(length, index + 17 * offset), kind.clone()));
        }
    }
    requests
}

/// Everything that a request gives, bit for bit; all tokens as if chosen at the same time.
fn events(mut stream: RequestStream, time: Instant) -> Vec<Event> {
    let mut events: Vec<Event> = std::iter::from_fn(|| stream.blocking_next()).collect();
    for event in &mut events {
        if let Event::Token { at, .. } = event {
            *at = time;
        }
    }
    events
}

/// Each request alone, then all at once, with room for all and with so little room that some are preempted.
fn batched_is_alone(model: Option<String>, dtype: Dtype) {
    let options = LoadOptions {
        skip_tokenizer_init: model.is_some(),
        model,
        dtype: Some(dtype),
        max_model_len: Some(512),
        max_num_seqs: Some(32),
        ..LoadOptions::default()
    };
    let roomy = start(LoadOptions { max_num_batched_tokens: Some(1024), ..options.clone() });
    let requests = mixture(roomy.program.vocab_size, 470);
    let time = Instant::now();
    let alone: Vec<Vec<Event>> = requests
        .iter()
        .map(|(prompt, sampling)| events(submit(&roomy.engine, prompt.clone(), sampling.clone()), time))
        .collect();
    for (answer, (prompt, _)) in alone.iter().zip(&requests) {
        let last = answer.last().unwrap();
        assert!(matches!(last, Event::Finished { .. }), "{} prompt tokens: {last:?}", prompt.len());
        assert_eq!(answer.iter().filter(|event| matches!(event, Event::Token { .. })).count(), 40);
    }
    let cramped = start(LoadOptions { max_num_batched_tokens: Some(96), num_gpu_blocks_override: Some(40), ..options });
    for loaded in [&roomy, &cramped] {
        let streams: Vec<RequestStream> = requests
            .iter()
            .map(|(prompt, sampling)| submit(&loaded.engine, prompt.clone(), sampling.clone()))
            .collect();
        for ((stream, alone), (prompt, sampling)) in streams.into_iter().zip(&alone).zip(&requests) {
            assert!(events(stream, time) == *alone, "{} prompt tokens, {sampling:?}", prompt.len());
        }
        let load = loaded.engine.load();
        assert_eq!((load.running, load.waiting, load.kv_blocks_used, load.slots_used), (0, 0, 0, 0), "{load:?}");
    }
    assert_eq!(roomy.engine.load().preemptions, 0);
    assert!(cramped.engine.load().preemptions > 0, "the pool was not small enough to test preemption");
}

#[test]
fn batched_is_alone_on_tinytales_in_bf16() {
    batched_is_alone(None, Dtype::Bf16);
}

#[test]
fn batched_is_alone_on_tinytales_in_f32() {
    batched_is_alone(None, Dtype::F32);
}

#[test]
fn batched_is_alone_on_random_weights() {
    for (name, dtype) in [("tiny-0-bf16", Dtype::Bf16), ("micro-1-f32", Dtype::F32)] {
        let Some(folder) = random_checkpoint(name) else { return };
        batched_is_alone(Some(folder.to_str().unwrap().to_owned()), dtype);
    }
}
