//! Two steps in flight give what they give one after another. The simulated GPU does nothing before it is waited for, so
//! that what the host reads or overwrites too early is wrong.

mod support;

use refrain_device::{Backend, Cell, DeviceError, Replay, Step};
use refrain_gpu::GpuBackend;
use refrain_testkit::{answer_step as step, answer_tokens as tokens, smallest_graph};

const ANSWER: u32 = 6;

fn one_after_another(backend: &mut GpuBackend, vocab_size: usize) -> Vec<[u32; 2]> {
    let mut answer = Vec::new();
    for position in 0..ANSWER {
        let step = step(position, vocab_size, answer.last().copied());
        answer.push(tokens(backend.execute(&step).unwrap()));
    }
    answer
}

#[test]
fn a_step_begun_behind_another_takes_its_tokens() {
    let Some((mut backend, vocab_size, _)) = support::load("two steps in flight") else { return };
    assert_eq!(backend.depth(), 2);
    let expected = one_after_another(&mut backend, vocab_size);
    assert!(expected.windows(2).any(|pair| pair[0] != pair[1]), "the answer says something");

    for replayed in [false, true] {
        backend.begin(&step(0, vocab_size, None), Cell::EAGER).unwrap();
        for position in 1..ANSWER {
            let step = step(position, vocab_size, None);
            let cell = if replayed { smallest_graph(backend.cells(), &step.shape()) } else { Cell::EAGER };
            assert_eq!(replayed, cell.replay == Replay::Full);
            backend.begin(&step, cell).unwrap();
            assert_eq!(tokens(backend.finish().unwrap()), expected[position as usize - 1], "token {position}, {cell}");
        }
        assert_eq!(tokens(backend.finish().unwrap()), *expected.last().unwrap());
    }

    // What the step before has chosen can also be taken when it is finished, and by a step that gives logits.
    let mut alone = step(ANSWER, vocab_size, Some(*expected.last().unwrap()));
    alone.sampling.clear();
    let logits = backend.execute(&alone).unwrap().into_logits().to_vec();
    assert_eq!(one_after_another(&mut backend, vocab_size), expected);
    let carried = Step { carried: step(ANSWER, vocab_size, None).carried, tokens: vec![0, 0], ..alone };
    assert!(backend.execute(&carried).unwrap().into_logits() == logits, "the tokens were carried");
}

#[test]
fn steps_that_cannot_follow_are_refused_and_spoil_nothing() {
    let Some((mut backend, vocab_size, _)) = support::load("steps in a wrong order") else { return };
    let expected = one_after_another(&mut backend, vocab_size);
    let refused = |backend: &mut GpuBackend, step: &Step, why: &str| {
        let error = backend.begin(step, Cell::EAGER).unwrap_err();
        assert!(matches!(error, DeviceError::InvalidStep { .. }) && error.to_string().contains(why), "{error}");
    };
    let prompts = step(0, vocab_size, None);
    let next = step(1, vocab_size, None);
    backend.begin(&prompts, Cell::EAGER).unwrap();
    let mut wrong_row = next.clone();
    wrong_row.carried[1].logit_row = 2;
    refused(&mut backend, &wrong_row, "row 1 is carried from logit row 2, the step before chooses in 2");
    backend.begin(&next, Cell::EAGER).unwrap();
    refused(&mut backend, &step(2, vocab_size, None), "2 steps have begun");
    assert_eq!(tokens(backend.finish().unwrap()), expected[0]);
    assert_eq!(tokens(backend.finish().unwrap()), expected[1]);

    let mut logits = prompts.clone();
    logits.sampling.clear();
    backend.begin(&logits, Cell::EAGER).unwrap();
    refused(&mut backend, &prompts, "the step before gives logits");
    let given = backend.finish().unwrap().into_logits().to_vec();
    refused(&mut backend, &next, "row 0 is carried from logit row 0, the step before chooses in 0");
    assert!(backend.execute(&logits).unwrap().into_logits() == given, "the logits changed");
}

#[test]
fn a_device_that_is_lost_with_two_steps_in_flight_says_so_for_both() {
    let Some((mut backend, vocab_size, runtime)) = support::load("a device that is lost") else { return };
    backend.begin(&step(0, vocab_size, None), Cell::EAGER).unwrap();
    backend.begin(&step(1, vocab_size, None), Cell::EAGER).unwrap();
    // The device hasn't come to either of them yet.
    runtime.lose_device(3);
    for _ in 0..2 {
        let error = backend.finish().map(drop).unwrap_err();
        assert!(error.is_fatal(), "{error}");
    }
    let error = backend.begin(&step(0, vocab_size, None), Cell::EAGER).unwrap_err();
    assert!(error.is_fatal(), "{error}");
}
