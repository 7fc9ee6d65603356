//! A step begins while the one before it is still in flight.

use super::*;
use crate::Policy;
use refrain_device::{Carried, Segment};
use std::collections::BTreeMap;

/// The next step that begins.
fn next(steps: &Receiver<Step>) -> Step {
    steps.recv_timeout(Duration::from_secs(20)).expect("a step begins")
}

/// Lets all steps go, and gives those that have begun by the time that the engine ends.
fn all_steps(engine: &EngineHandle, steps: &Receiver<Step>, permit: Sender<()>) -> Vec<Step> {
    drop(permit);
    engine.shutdown();
    wait_for_end(engine);
    steps.try_iter().collect()
}

#[test]
fn a_step_begins_behind_the_one_in_flight_and_takes_its_token() {
    let (engine, steps, permit) = start_gated_choosing(config(1, 16), Some(LIMITS), 2);
    let stream = engine.submit(greedy(vec![1; 10], 5)).unwrap();
    assert_eq!(next(&steps).carried, []);
    // Nothing has ended yet.
    let second = next(&steps);
    assert_eq!((second.carried.as_slice(), second.segments[0].position), (&[Carried { row: 0, logit_row: 0 }][..], 10));
    let rest = all_steps(&engine, &steps, permit);
    assert_eq!(answer(stream).tokens, greedy_reference(&[1; 10], 5));
    // That the fifth token is the last one is known without knowing it.
    let positions: Vec<u32> = rest.iter().map(|step| step.segments[0].position).collect();
    assert_eq!(positions, [11, 12, 13]);
    nothing_is_held(&engine);
}

#[test]
fn a_row_behind_the_end_of_an_answer_is_thrown_away() {
    let (engine, steps, permit) = start_gated_choosing(config(2, 32), Some(LIMITS), 2);
    let tokens = greedy_reference(&[1; 10], 9);
    let stop = tokens[3];
    let length = tokens.iter().position(|&token| token == stop).unwrap() + 1;
    let sampling = SamplingParams { temperature: 0.0, stop_token_ids: vec![stop], ..SamplingParams::default() };
    let sampling = SamplingParams { max_tokens: 100, ignore_eos: true, ..sampling };
    let stops = engine.submit(request(vec![1; 10], sampling)).unwrap();
    let goes_on = engine.submit(greedy(vec![2; 12], 20)).unwrap();
    let steps = all_steps(&engine, &steps, permit);
    let stopped = answer(stops);
    assert_eq!((stopped.tokens.as_slice(), stopped.end), (&tokens[..length], Some(Ok(FinishReason::StopToken(stop)))));
    assert_eq!(answer(goes_on).tokens, greedy_reference(&[2; 12], 20));
    // The first in line has slot 0: its prompt, all its tokens but the last, and that one in vain.
    assert_eq!(steps.iter().filter(|step| slots(step).contains(&0)).count(), 1 + length);
    let generated = format!("vllm:generation_tokens_total{{model_name=\"hash\"}} {}", length + 20);
    assert!(metrics(&engine).lines().any(|line| line == generated), "{generated}");
    nothing_is_held(&engine);
}

#[test]
fn only_requests_that_read_their_answer_wait_for_it() {
    let free = SamplingParams {
        max_tokens: 12,
        min_tokens: 4,
        bad_words: vec![vec![7]],
        logit_bias: BTreeMap::from([(9, 2.0)]),
        logprobs: Some(1),
        seed: Some(3),
        ..SamplingParams::default()
    };
    let reading = [
        SamplingParams { presence_penalty: 0.5, ..free.clone() },
        SamplingParams { frequency_penalty: 0.5, ..free.clone() },
        SamplingParams { repetition_penalty: 1.5, ..free.clone() },
        SamplingParams { bad_words: vec![vec![7, 8]], ..free.clone() },
    ];
    let limits = SamplingLimits { max_adjustments: 100, ..LIMITS };
    for (waits, sampling) in std::iter::once((false, free)).chain(reading.map(|sampling| (true, sampling))) {
        let (engine, steps, permit) = start_gated_choosing(config(1, 16), Some(limits), 2);
        let stream = engine.submit(request(vec![1; 10], sampling.clone())).unwrap();
        let steps = all_steps(&engine, &steps, permit);
        assert!(steps.iter().all(|step| step.segments[0].position == 0 || step.carried.is_empty() == waits));
        assert!(steps.len() > 4);
        assert_eq!(answer(stream), answer(start(config(1, 16)).submit(request(vec![1; 10], sampling)).unwrap()));
    }
}

#[test]
fn a_failed_step_spares_those_who_are_only_in_the_one_behind_it() {
    for (trouble, message) in [(FAILS, "a test asked for it"), (PANICS, "a kernel has a bug")] {
        let (engine, steps, permit) = start_gated_choosing(config(3, 48), Some(LIMITS), 2);
        let first = engine.submit(greedy(vec![1; 10], 2)).unwrap();
        next(&steps);
        // Both find the engine held in a step. There is no room for the second of them in the first one's step.
        let fails = engine.submit(greedy(vec![trouble; 84], 20)).unwrap();
        let spared = engine.submit(greedy(vec![2; 40], 20)).unwrap();
        let steps = all_steps(&engine, &steps, permit);
        let behind = steps.iter().find(|step| step.segments.iter().any(|segment| segment.len == 40)).unwrap();
        assert_eq!((behind.carried.len(), behind.segments.len()), (1, 2), "the step behind has a row of both");
        let end = answer(fails).end;
        assert!(matches!(&end, Some(Err(RequestFailure::Device(why))) if why.contains(message)), "{end:?}");
        assert_eq!(answer(first).tokens, greedy_reference(&[1; 10], 2));
        assert_eq!(answer(spared).tokens, greedy_reference(&[2; 40], 20));
        nothing_is_held(&engine);
    }
}

#[test]
fn a_step_that_cannot_begin_fails_after_the_one_before_it_has_ended() {
    let (engine, steps, permit) = start_gated_choosing(config(2, 32), Some(LIMITS), 2);
    let stream = engine.submit(greedy(vec![1; 10], 100)).unwrap();
    next(&steps);
    let refused = engine.submit(greedy(vec![REFUSED; 10], 20)).unwrap();
    drop((permit, steps));
    let (first, second) = (answer(stream), answer(refused));
    // What the steps before have given is there.
    assert!(first.tokens.len() >= 2);
    assert_eq!(first.tokens, greedy_reference(&[1; 10], first.tokens.len()));
    for end in [first.end, second.end] {
        assert!(matches!(&end, Some(Err(RequestFailure::Device(why))) if why.contains("refused")), "{end:?}");
    }
    assert_eq!(second.tokens, []);
    assert_eq!(answer(engine.submit(greedy(vec![3; 10], 5)).unwrap()).tokens, greedy_reference(&[3; 10], 5));
    nothing_is_held(&engine);
}

#[test]
fn a_device_that_is_lost_with_two_steps_in_flight_ends_every_request() {
    let (engine, steps, permit) = start_gated_choosing(config(1, 16), Some(LIMITS), 2);
    let streams = [LOSES, 1].map(|token| engine.submit(greedy(vec![token; 5], 5)).unwrap());
    assert_eq!((next(&steps).carried.len(), next(&steps).carried.len()), (0, 1));
    drop((permit, steps));
    for stream in streams {
        let answer = answer(stream);
        assert!(matches!(&answer.end, Some(Err(RequestFailure::Device(why))) if why.contains("is lost")), "{answer:?}");
        assert_eq!(answer.tokens, []);
    }
    wait_for_end(&engine);
    assert!(engine.is_dead());
    nothing_is_held(&engine);
}

/// An engine whose steps of prompts are expected to take two seconds.
fn start_slow(config: EngineConfig) -> (EngineHandle, Receiver<Step>, Sender<()>) {
    let (steps, seen) = channel();
    let (permit, permits) = channel();
    let limits = config.step_limits();
    let backend = HashModel::new(limits, config.pools, Some(Gate { steps, permits }), Some(LIMITS), 2);
    let mut policy = Policy::new(PolicyMode::Eager, &[Cell::EAGER], &limits, 2);
    let segment = Segment { row: 0, len: 10, position: 0, scan: 10, slot: 0, blocks: 0, num_blocks: 1 };
    policy.begin(&Step { tokens: vec![1; 10], segments: vec![segment], ..Step::default() }.shape(), 0.0);
    policy.finish(2.0);
    (Engine::start_with(Box::new(backend), config, policy).unwrap(), seen, permit)
}

#[test]
fn who_arrives_while_a_step_is_in_flight_is_in_the_next_one() {
    let (engine, steps, permit) = start_slow(config(2, 32));
    let first = engine.submit(greedy(vec![1; 10], 3)).unwrap();
    assert_eq!(slots(&next(&steps)), [0]);
    let second = engine.submit(greedy(vec![2; 10], 3)).unwrap();
    let both = next(&steps);
    assert_eq!((slots(&both), both.carried.len()), (vec![0, 1], 1));
    drop((permit, steps));
    for (stream, token) in [(first, 1), (second, 2)] {
        assert_eq!(answer(stream).tokens, greedy_reference(&[token; 10], 3));
    }
    nothing_is_held(&engine);
}

#[test]
fn an_engine_that_is_stopped_does_not_wait_for_latecomers() {
    let (engine, steps, permit) = start_slow(config(1, 16));
    let stream = engine.submit(greedy(vec![1; 10], 3)).unwrap();
    next(&steps);
    // No step takes a permit any more: neither this one nor the next is waited for.
    engine.stop();
    wait_for_end(&engine);
    assert_eq!(answer(stream).end, Some(Err(RequestFailure::ShuttingDown)));
    assert_eq!(steps.try_iter().count(), 0);
    drop(permit);
    nothing_is_held(&engine);
}

#[test]
fn stop_and_cancel_leave_a_step_in_flight_behind() {
    let (engine, steps, permit) = start_gated_choosing(config(1, 16), Some(LIMITS), 2);
    let dropped = engine.submit(greedy(vec![1; 10], 100)).unwrap();
    next(&steps);
    next(&steps);
    drop(dropped);
    // The next one has the slot and the blocks of the first, of which a row is still in flight.
    let mut stream = engine.submit(greedy(vec![2; 10], 100)).unwrap();
    permit.send(()).unwrap();
    let step = next(&steps);
    assert_eq!((step.segments[0].position, slots(&step), step.block_table.as_slice()), (0, vec![0], &[0][..]));
    (0..2).for_each(|_| permit.send(()).unwrap());
    let first = stream.blocking_next();
    assert!(
        matches!(first, Some(Event::Token { token, .. }) if token == greedy_reference(&[2; 10], 1)[0]),
        "{first:?}"
    );
    engine.stop();
    drop((permit, steps));
    assert_eq!(answer(stream).end, Some(Err(RequestFailure::ShuttingDown)));
    wait_for_end(&engine);
    nothing_is_held(&engine);
}
