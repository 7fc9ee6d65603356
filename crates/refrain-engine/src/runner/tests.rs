//! The whole engine on a model that notices every mistake of scheduling.

mod ends;
mod hash_model;
mod overlap;

use crate::{
    Engine, EngineConfig, EngineHandle, Event, FinishReason, Phase, Policy, PolicyMode, PositionLogprobs, Request,
    RequestFailure, RequestStream, SamplingParams, SchedulingPolicy, SubmitError,
};
use hash_model::{EOS, FAILS, Gate, HashModel, KILLS, LOSES, NOT_FINITE, PANICS, REFUSED, VOCAB, reference};
use proptest::prelude::*;
use refrain_device::{Cell, PoolSizes, SamplingLimits, Step, Trace};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

fn config(max_num_seqs: usize, blocks: usize) -> EngineConfig {
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + 100,
        max_model_len: 256,
        pools: PoolSizes { blocks, slots: max_num_seqs },
        scheduling_policy: SchedulingPolicy::Fcfs,
        max_num_queued_reqs: None,
        max_num_queued_tokens: None,
        eos_token_ids: vec![EOS],
        vocab_size: VOCAB,
        seed: 1,
    }
}

fn start(config: EngineConfig) -> EngineHandle {
    start_choosing(config, None, 1)
}

/// An engine whose device chooses tokens by itself, in steps that are within these limits, and has so many steps begun.
fn start_choosing(config: EngineConfig, sampling: Option<SamplingLimits>, depth: usize) -> EngineHandle {
    let backend = HashModel::new(config.step_limits(), config.pools, None, sampling, depth);
    Engine::start(Box::new(backend), config).unwrap()
}

/// An engine that takes it for faster to run sequences that decode and prompts in steps of their own.
fn start_splitting(config: EngineConfig, sampling: Option<SamplingLimits>, depth: usize) -> EngineHandle {
    let backend = HashModel::new(config.step_limits(), config.pools, None, sampling, depth);
    let mut policy = Policy::new(PolicyMode::Measured, &[Cell::EAGER], &config.step_limits(), depth);
    for (phase, seconds) in [(Phase::Decode, 1e-9), (Phase::Prefill, 1e-9), (Phase::Mixed, 1e-3)] {
        policy.tell(phase, seconds);
    }
    Engine::start_with(Box::new(backend), config, policy).unwrap()
}

/// An engine that shows each step and executes it when it gets a permit.
fn start_gated(config: EngineConfig) -> (EngineHandle, Receiver<Step>, Sender<()>) {
    start_gated_choosing(config, None, 1)
}

fn start_gated_choosing(
    config: EngineConfig,
    sampling: Option<SamplingLimits>,
    depth: usize,
) -> (EngineHandle, Receiver<Step>, Sender<()>) {
    let (steps, seen) = channel();
    let (permit, permits) = channel();
    let gate = Some(Gate { steps, permits });
    let backend = HashModel::new(config.step_limits(), config.pools, gate, sampling, depth);
    (Engine::start(Box::new(backend), config).unwrap(), seen, permit)
}

/// What a device can choose that can choose all that most tests want.
const LIMITS: SamplingLimits = SamplingLimits { max_adjustments: 10, max_top: 5 };

fn request(prompt: Vec<u32>, sampling: SamplingParams) -> Request {
    Request { id: "test".to_owned(), prompt, sampling, priority: 0 }
}

fn greedy(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = SamplingParams { temperature: 0.0, max_tokens, ignore_eos: true, ..SamplingParams::default() };
    request(prompt, sampling)
}

/// Everything that a client sees.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    logprobs: Vec<PositionLogprobs>,
    prompt_logprobs: Vec<PositionLogprobs>,
    end: Option<Result<FinishReason, RequestFailure>>,
}

fn answer(mut stream: RequestStream) -> Answer {
    let mut answer = Answer::default();
    while let Some(event) = stream.blocking_next() {
        assert!(answer.end.is_none(), "an event after the last");
        match event {
            Event::PromptLogprobs(logprobs) => {
                assert!(answer.tokens.is_empty(), "prompt log-probabilities come before the tokens");
                answer.prompt_logprobs.extend(logprobs);
            }
            Event::Token { token, logprobs, .. } => {
                answer.tokens.push(token);
                answer.logprobs.extend(logprobs);
            }
            Event::Finished { reason, .. } => answer.end = Some(Ok(reason)),
            Event::Failed(failure) => answer.end = Some(Err(failure)),
        }
    }
    answer
}

fn nothing_is_held(engine: &EngineHandle) {
    let load = engine.load();
    let held = (load.running, load.waiting, load.prefill_tokens, load.kv_blocks_used, load.slots_used);
    assert_eq!(held, (0, 0, 0, 0, 0));
}

#[test]
fn every_step_is_counted_by_how_it_was_run() {
    let engine = start(config(2, 40));
    let streams = engine.submit_all(vec![greedy(vec![3; 70], 5), greedy(vec![4; 10], 3)]).unwrap();
    streams.into_iter().for_each(|stream| drop(answer(stream)));
    let (load, modes) = (engine.load(), engine.step_modes());
    assert_eq!(modes.iter().map(|mode| mode.steps).sum::<u64>(), load.steps);
    assert!(modes.iter().any(|mode| mode.phase == Phase::Decode && mode.steps >= 3), "{modes:?}");
    assert!(modes.iter().all(|mode| mode.cell == Cell::EAGER && mode.padding == 0), "{modes:?}");
    engine.set_policy(PolicyMode::Eager);
    assert_eq!(engine.policy(), PolicyMode::Eager);
}

#[test]
fn sequences_that_decode_are_a_step_of_their_own_where_that_is_faster() {
    for (depth, sampling) in [(1, None), (2, Some(LIMITS)), (2, None)] {
        let engine = start_splitting(config(3, 40), sampling, depth);
        let mut first = engine.submit(greedy(vec![3; 70], 100)).unwrap();
        first.blocking_next();
        let others: Vec<_> = (4..7).map(|token| engine.submit(greedy(vec![token; 150], 9)).unwrap()).collect();
        for (stream, token) in others.into_iter().zip(4..) {
            assert_eq!(answer(stream).tokens, greedy_reference(&[token; 150], 9));
        }
        assert_eq!(answer(first).tokens, greedy_reference(&[3; 70], 100)[1..]);
        let mixed = engine.step_modes().into_iter().filter(|mode| mode.phase == Phase::Mixed);
        // Only what has no sequence that decodes, or one that needs a token in flight behind a prompt.
        let mixed: u64 = mixed.map(|mode| mode.steps).sum();
        let split = metrics(&engine).lines().find_map(|line| {
            let (name, value) = line.split_once(' ')?;
            value.parse::<u64>().ok().filter(|_| name.starts_with("refrain:steps_split_total"))
        });
        assert!(split > Some(2) && mixed <= 2, "{split:?} split, {mixed} whole");
        nothing_is_held(&engine);
    }
}

/// Steps of a trace are slower than others, and not all cells alike.
#[test]
fn steps_that_are_traced_teach_the_policy_nothing() {
    for (traced, learns) in [(0..0, true), (0..4, true), (0..1000, false)] {
        let config = config(1, 16);
        let backend = HashModel::new(config.step_limits(), config.pools, None, None, 1);
        let cells = [Cell::EAGER, Cell { compiled: true, ..Cell::EAGER }];
        let mut policy = Policy::new(PolicyMode::Measured, &cells, &config.step_limits(), 1);
        Phase::ALL.into_iter().for_each(|phase| policy.tell(phase, 1e3));
        let before = policy.table();
        let engine = Engine::start_with(Box::new(backend), config, policy).unwrap();
        engine.trace(Trace::new(traced.clone(), |_| {}));
        answer(engine.submit(greedy(vec![1; 10], 20)).unwrap());
        assert_eq!(engine.policy_table() != before, learns, "{traced:?}");
    }
}

fn greedy_reference(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..max_tokens {
        let logits = reference(&tokens, prompt.len());
        let best = (0..VOCAB).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        tokens.push(best as u32);
    }
    tokens.split_off(prompt.len())
}

fn requests() -> impl Strategy<Value = Request> {
    let sampling = (
        prop_oneof![Just(0.0f32), 0.3f32..1.5],
        prop_oneof![Just(1.0f32), 0.3f32..1.0],
        0u32..8,
        prop_oneof![Just(1.0f32), 0.8f32..1.4],
        1usize..60,
        prop::option::of(0usize..4),
        prop::option::weighted(0.3, 0usize..4),
        prop::collection::vec(1u32..40, 0..2),
        prop_oneof![Just(vec![]), Just(vec![vec![3]]), Just(vec![vec![3], vec![5, 7]])],
    );
    (prop::collection::vec(0..LOSES, 1..180), sampling, any::<u64>(), -1i32..2).prop_map(
        |(
            prompt,
            (temperature, top_p, top_k, repetition_penalty, max, logprobs, prompt_logprobs, stops, bad_words),
            seed,
            priority,
        )| {
            let sampling = SamplingParams {
                temperature,
                top_p,
                top_k,
                repetition_penalty,
                frequency_penalty: repetition_penalty - 1.0,
                seed: Some(seed),
                max_tokens: max,
                min_tokens: max / 4,
                stop_token_ids: stops,
                logprobs,
                prompt_logprobs,
                bad_words,
                ..SamplingParams::default()
            };
            Request { priority, ..request(prompt, sampling) }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Random mixes in a pool that holds about two of them, with some clients going away: every answer is, event for
    /// event, that of the same request alone in a large engine. It makes no difference either whether the device chooses
    /// the tokens, also where only some of the steps are within what it can choose, nor whether it has two steps begun, or
    /// runs as two what could be one.
    #[test]
    fn batched_is_alone(
        requests in prop::collection::vec((requests(), prop::option::weighted(0.2, 0usize..10)), 1..14),
        (max_num_seqs, blocks, priority) in (1usize..6, 16usize..30, any::<bool>()),
        limits in prop::option::weighted(0.8, (0usize..100, 2usize..4)),
        depth in 1usize..=2,
        splits: bool,
    ) {
        let policy = if priority { SchedulingPolicy::Priority } else { SchedulingPolicy::Fcfs };
        let limits = limits.map(|(max_adjustments, max_top)| SamplingLimits { max_adjustments, max_top });
        let config = EngineConfig { scheduling_policy: policy, ..config(max_num_seqs, blocks) };
        let engine = if splits { start_splitting(config, limits, depth) } else { start_choosing(config, limits, depth) };
        let streams: Vec<_> = requests.iter().map(|(request, _)| engine.submit(request.clone()).unwrap()).collect();
        let mut answers = Vec::new();
        for (mut stream, (_, leaves_after)) in streams.into_iter().zip(&requests) {
            match leaves_after {
                Some(events) => {
                    (0..*events).for_each(|_| drop(stream.blocking_next()));
                    answers.push(None);
                }
                None => answers.push(Some(answer(stream))),
            }
        }
        engine.shutdown();
        wait_for_end(&engine);
        nothing_is_held(&engine);
        for ((request, _), batched) in requests.into_iter().zip(answers) {
            let Some(batched) = batched else { continue };
            let large = start(EngineConfig { max_num_batched_tokens: 1000, ..self::config(4, 64) });
            let alone = answer(large.submit(request.clone()).unwrap());
            prop_assert!(matches!(batched.end, Some(Ok(_))));
            let wanted = request.sampling.prompt_logprobs.map_or(0, |_| request.prompt.len() - 1);
            prop_assert_eq!(batched.prompt_logprobs.len(), wanted);
            prop_assert_eq!(batched, alone);
        }
    }
}

#[test]
fn the_answer_is_that_of_the_definition_also_after_preemptions() {
    let prompts: Vec<Vec<u32>> = (0..6).map(|i| (0..40 + i).map(|j| (i * 7 + j * 3) % 40 + 1).collect()).collect();
    for depth in [1, 2] {
        let engine = start_choosing(config(4, 17), Some(LIMITS), depth);
        let streams: Vec<_> = prompts.iter().map(|prompt| engine.submit(greedy(prompt.clone(), 90)).unwrap()).collect();
        for (prompt, stream) in prompts.iter().zip(streams) {
            let answer = answer(stream);
            assert_eq!(answer.tokens, greedy_reference(prompt, 90));
            assert_eq!(answer.end, Some(Ok(FinishReason::Length)));
        }
        assert!(engine.load().preemptions > 0, "the pool was meant to be too small");
        nothing_is_held(&engine);
    }
}

#[test]
fn prompt_logprobs_are_those_of_the_definition() {
    let prompt: Vec<u32> = (0..150).map(|i| i % 40 + 1).collect();
    let sampling = SamplingParams { prompt_logprobs: Some(1), max_tokens: 1, ..SamplingParams::default() };
    let answer = answer(start(config(1, 16)).submit(request(prompt.clone(), sampling)).unwrap());
    for (position, got) in answer.prompt_logprobs.iter().enumerate() {
        let logits = reference(&prompt[..=position], prompt.len());
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let want = f64::from(logits[prompt[position + 1] as usize]) - total.ln();
        assert_eq!(got.chosen.token, prompt[position + 1]);
        assert!((f64::from(got.chosen.logprob) - want).abs() < 1e-4, "position {position}");
    }
    assert_eq!(answer.prompt_logprobs.len(), 149);
}

#[test]
fn answers_end_for_each_reason() {
    let engine = start(config(4, 64));
    let prompt = vec![5; 20];
    let free = greedy_reference(&prompt, 200);
    let sampling = SamplingParams { temperature: 0.0, max_tokens: 1000, ..SamplingParams::default() };
    let run = |sampling: SamplingParams| answer(engine.submit(request(prompt.clone(), sampling)).unwrap());

    let place = free.iter().position(|&token| token == EOS).expect("the model does end answers");
    let ended = run(sampling.clone());
    assert_eq!((ended.tokens.as_slice(), ended.end), (&free[..=place], Some(Ok(FinishReason::EndOfSequence))));

    let stopped = run(SamplingParams { stop_token_ids: vec![free[2]], ignore_eos: true, ..sampling.clone() });
    let first = free.iter().position(|&token| token == free[2]).unwrap();
    assert_eq!(stopped.tokens, &free[..=first]);
    assert_eq!(stopped.end, Some(Ok(FinishReason::StopToken(free[2]))));

    // 256 tokens of context, 20 of them prompt.
    let long = run(SamplingParams { ignore_eos: true, ..sampling.clone() });
    assert_eq!((long.tokens.len(), long.end), (236, Some(Ok(FinishReason::Length))));

    let late = run(SamplingParams { min_tokens: place + 5, ..sampling });
    assert!(late.tokens.len() >= place + 5 && !late.tokens[..place + 5].contains(&EOS));
    nothing_is_held(&engine);
}

/// Sequences in a step, by slot.
fn slots(step: &Step) -> Vec<u32> {
    step.segments.iter().map(|segment| segment.slot).collect()
}

#[test]
fn a_dropped_stream_is_out_of_the_next_step() {
    let (engine, steps, permit) = start_gated(config(2, 32));
    let kept = engine.submit(greedy(vec![1; 10], 5)).unwrap();
    let mut dropped = engine.submit(greedy(vec![2; 10], 1000)).unwrap();
    let waiting = engine.submit(greedy(vec![3; 10], 1000)).unwrap();
    // The first step may hold one or two of them, depending on when the thread looked.
    let both = std::iter::repeat_with(|| {
        let step = steps.recv().unwrap();
        if step.segments.len() < 2 {
            permit.send(()).unwrap();
        }
        step
    })
    .find(|step| step.segments.len() == 2);
    assert!(both.is_some());
    permit.send(()).unwrap();
    assert!(dropped.blocking_next().is_some());

    // The next step may be under way already; the one after it must be without the dropped one. The waiting one goes
    // too, so that it doesn't take the place.
    let under_way = steps.recv().unwrap();
    assert_eq!(under_way.segments.len(), 2);
    drop(dropped);
    drop(waiting);
    permit.send(()).unwrap();
    assert_eq!(slots(&steps.recv().unwrap()), [0]);
    let load = engine.load();
    assert_eq!((load.running, load.slots_used, load.kv_blocks_used, load.waiting), (1, 1, 1, 0));
    drop((permit, steps));
    assert_eq!(answer(kept).tokens, greedy_reference(&[1; 10], 5));
    nothing_is_held(&engine);
}

#[test]
fn a_device_failure_or_panic_ends_only_the_requests_of_its_step() {
    let messages = [
        (REFUSED, "invalid step: a test wanted it refused"),
        (FAILS, "invalid step: a test asked for it"),
        (PANICS, "it panicked: a kernel has a bug"),
    ];
    for (trouble, message) in messages {
        // One at a time, so that the others are not in the step that fails.
        let engine = start(config(1, 16));
        let streams: Vec<_> =
            [1, trouble, 2].iter().map(|&token| engine.submit(greedy(vec![token; 70], 20)).unwrap()).collect();
        let answers: Vec<_> = streams.into_iter().map(answer).collect();
        assert_eq!(answers[0].tokens, greedy_reference(&[1; 70], 20));
        assert_eq!(answers[1].end, Some(Err(RequestFailure::Device(message.to_owned()))));
        assert_eq!(answers[2].tokens, greedy_reference(&[2; 70], 20));
        assert!(engine.is_alive() && engine.is_accepting());
        nothing_is_held(&engine);
    }
}

#[test]
fn what_a_device_cannot_choose_fails_as_on_the_host() {
    let contradicting =
        SamplingParams { allowed_token_ids: Some(vec![EOS]), min_tokens: 1, ..SamplingParams::default() };
    for (sampling, depth) in [(None, 1), (Some(LIMITS), 1), (Some(LIMITS), 2)] {
        let engine = start_choosing(config(1, 16), sampling, depth);
        let run = |request| answer(engine.submit(request).unwrap()).end;
        assert_eq!(run(request(vec![1; 30], contradicting.clone())), Some(Err(RequestFailure::NoTokenAllowed)));
        assert_eq!(run(greedy(vec![NOT_FINITE; 30], 20)), Some(Err(RequestFailure::NotFinite)));
        assert_eq!(run(greedy(vec![2; 30], 20)), Some(Ok(FinishReason::Length)));
    }
}

#[test]
fn logits_that_are_not_finite_fail_one_request_of_a_step() {
    let (engine, steps, permit) = start_gated(config(3, 48));
    // Held in its first step, the engine collects the other two and runs them together.
    let streams: Vec<_> =
        [1, NOT_FINITE, 2].iter().map(|&token| engine.submit(greedy(vec![token; 30], 20)).unwrap()).collect();
    steps.recv().unwrap();
    drop((permit, steps));
    let answers: Vec<_> = streams.into_iter().map(answer).collect();
    assert_eq!(answers[1].end, Some(Err(RequestFailure::NotFinite)));
    assert_eq!(answers[0].tokens, greedy_reference(&[1; 30], 20));
    assert_eq!(answers[2].tokens, greedy_reference(&[2; 30], 20));
    nothing_is_held(&engine);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let (engine, steps, permit) = start_gated(EngineConfig { max_num_queued_reqs: Some(2), ..config(1, 16) });
    let running = engine.submit(greedy(vec![1; 30], 5)).unwrap();
    steps.recv().unwrap();
    let first = engine.submit(greedy(vec![2; 60], 5)).unwrap();
    let too_many = vec![greedy(vec![3; 40], 5), greedy(vec![4; 1], 5)];
    let two = engine.submit_all(too_many).unwrap_err();
    assert!(matches!(two, SubmitError::QueueFull { queued: 1, prefill_tokens: 90, .. }), "{two:?}");
    let second = engine.submit(greedy(vec![3; 40], 5)).unwrap();
    match engine.submit(greedy(vec![4; 1], 5)).unwrap_err() {
        SubmitError::QueueFull { queued: 2, prefill_tokens: 130, retry_after } => {
            assert!((1..=60).contains(&retry_after.as_secs()));
        }
        other => panic!("{other:?}"),
    }
    drop((permit, steps));
    for (stream, token, length) in [(running, 1, 30), (first, 2, 60), (second, 3, 40)] {
        assert_eq!(answer(stream).tokens, greedy_reference(&vec![token; length], 5));
    }
    assert!(engine.submit(greedy(vec![4; 1], 5)).is_ok());
}

#[test]
fn prompts_that_are_not_computed_yet_count_whether_they_have_a_slot_or_not() {
    let (engine, steps, permit) = start_gated(EngineConfig { max_num_queued_tokens: Some(100), ..config(4, 48) });
    // Together they are more than the limit, but nothing is before them.
    let pair = vec![greedy(vec![1; 60], 9), greedy(vec![2; 60], 9)];
    let mut streams = engine.submit_all(pair).unwrap();
    let refused = |engine: &EngineHandle| {
        let error = engine.submit(greedy(vec![4; 1], 5)).unwrap_err();
        assert!(matches!(error, SubmitError::QueueFull { queued: 0, prefill_tokens: 120, .. }), "{error:?}");
    };
    refused(&engine);
    // In their first step they count in full.
    steps.recv().unwrap();
    refused(&engine);
    permit.send(()).unwrap();
    steps.recv().unwrap();
    // The first has its first token, and no longer counts.
    streams.push(engine.submit(greedy(vec![3; 200], 9)).unwrap());
    let error = engine.submit(greedy(vec![4; 1], 5)).unwrap_err();
    assert!(matches!(error, SubmitError::QueueFull { queued: 0, prefill_tokens: 260, .. }), "{error:?}");
    drop((permit, steps));
    for (stream, (token, length)) in streams.into_iter().zip([(1, 60), (2, 60), (3, 200)]) {
        assert_eq!(answer(stream).tokens, greedy_reference(&vec![token; length], 9));
    }
    nothing_is_held(&engine);
}

#[test]
fn a_burst_that_finds_free_slots_does_not_fill_the_queue() {
    let (engine, steps, permit) = start_gated(EngineConfig { max_num_queued_reqs: Some(1), ..config(3, 48) });
    // Held in its first step, the engine picks nobody up: the slots of the next two are free all the same.
    let mut streams = vec![engine.submit(greedy(vec![1; 30], 5)).unwrap()];
    steps.recv().unwrap();
    for token in 2..5 {
        streams.push(engine.submit(greedy(vec![token; 30], 5)).unwrap());
    }
    let refused = engine.submit(greedy(vec![5; 30], 5)).unwrap_err();
    assert!(matches!(refused, SubmitError::QueueFull { queued: 1, .. }), "{refused:?}");
    drop((permit, steps));
    for (stream, token) in streams.into_iter().zip(1..) {
        assert_eq!(answer(stream).tokens, greedy_reference(&[token; 30], 5));
    }
}

#[test]
fn bad_requests_are_refused_and_leave_nothing() {
    let engine = start(config(1, 16));
    assert_eq!(engine.submit(greedy(vec![], 5)).unwrap_err(), SubmitError::EmptyPrompt);
    assert!(matches!(
        engine.submit(greedy(vec![1; 256], 5)),
        Err(SubmitError::PromptTooLong { prompt_tokens: 256, .. })
    ));
    assert!(matches!(engine.submit(greedy(vec![50], 5)), Err(SubmitError::TokenOutsideVocabulary { token: 50, .. })));
    assert!(matches!(engine.submit(greedy(vec![1], 0)), Err(SubmitError::InvalidSampling { param: "max_tokens", .. })));
    nothing_is_held(&engine);
}

#[test]
fn an_abort_storm_from_many_threads_leaves_nothing() {
    let engine = start_choosing(config(4, 20), Some(LIMITS), 2);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let engine = engine.clone();
            scope.spawn(move || {
                for round in 0..60u32 {
                    let prompt = vec![thread * 10 + round % 10 + 1; 1 + (round * 37 % 200) as usize];
                    let mut stream = engine.submit(greedy(prompt, 50)).unwrap();
                    // Some leave at once, some while they wait or compute their prompt, some in their answer.
                    (0..round % 4).for_each(|_| drop(stream.blocking_next()));
                }
            });
        }
    });
    let canary = answer(engine.submit(greedy(vec![3; 90], 40)).unwrap());
    assert_eq!(canary.tokens, greedy_reference(&[3; 90], 40));
    nothing_is_held(&engine);
}

fn wait_for_end(engine: &EngineHandle) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), engine.stopped()).await }).unwrap();
    assert!(!engine.is_alive());
}

fn metrics(engine: &EngineHandle) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    engine.metrics().register(&mut registry, "hash");
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[test]
fn metrics_count_what_happened() {
    let (engine, steps, permit) = start_gated(config(2, 32));
    let mut satisfied = engine.submit(greedy(vec![1; 10], 200)).unwrap();
    permit.send(()).unwrap();
    assert!(satisfied.blocking_next().is_some());
    satisfied.finish();
    drop((permit, steps));
    let streams = [3, 4].map(|max| engine.submit(greedy(vec![1; 10], max)).unwrap());
    streams.into_iter().for_each(|stream| drop(answer(stream)));
    engine.shutdown();
    wait_for_end(&engine);
    let text = metrics(&engine);
    for line in [
        "vllm:prompt_tokens_total{model_name=\"hash\"} 30",
        "vllm:request_success_total{model_name=\"hash\",finished_reason=\"length\"} 2",
        "vllm:request_success_total{model_name=\"hash\",finished_reason=\"stop\"} 1",
        "vllm:request_success_total{model_name=\"hash\",finished_reason=\"abort\"} 0",
        "vllm:time_to_first_token_seconds_count{model_name=\"hash\"} 3",
        "vllm:num_requests_running{model_name=\"hash\"} 0",
        "vllm:num_requests_waiting{model_name=\"hash\"} 0",
        "refrain:state_slots_used{model_name=\"hash\"} 0",
        "refrain:state_slots{model_name=\"hash\"} 2",
    ] {
        assert!(text.lines().any(|other| other == line), "{line} is missing in\n{text}");
    }
}
