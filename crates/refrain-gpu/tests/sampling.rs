//! The backend on the simulated GPU chooses what its own logits say.

mod support;

use refrain_device::{Adjustment, Backend, RowSampling, Segment, Step, StepOutput};

fn best(logits: &[f32]) -> u32 {
    (0..logits.len()).fold(0, |best, token| if logits[token] > logits[best] { token } else { best }) as u32
}

#[test]
fn a_step_gives_logits_or_tokens_by_turns() {
    let Some((mut backend, vocab_size, _)) = support::load("sampling on the simulated GPU") else { return };
    assert!(backend.sampling().is_some());

    let tokens: Vec<u32> = (0..20).map(|token| token * 7 % vocab_size as u32).collect();
    let plain = Step {
        segments: vec![Segment { row: 0, len: 20, position: 0, scan: 20, slot: 0, blocks: 0, num_blocks: 2 }],
        block_table: vec![3, 1],
        logit_rows: vec![5, 18, 19],
        tokens,
        ..Step::default()
    };
    let logits = backend.execute(&plain).unwrap().into_logits().to_vec();
    let rows: Vec<&[f32]> = logits.chunks(vocab_size).collect();
    let forbidden = best(rows[2]);
    let mut step = plain.clone();
    step.sampling = vec![
        RowSampling { given: Some(9), logprobs: Some(2), ..RowSampling::default() },
        RowSampling { top_p: 1.0, ..RowSampling::default() },
        RowSampling { top_p: 0.9, temperature: 0.7, top_k: 1, adjustments: 0..1, ..RowSampling::default() },
    ];
    step.adjustments = vec![Adjustment { token: forbidden, forbidden: true, ..Adjustment::default() }];
    for _ in 0..2 {
        let StepOutput::Chosen(chosen) = backend.execute(&step).unwrap() else { panic!("tokens were wanted") };
        let mut without = rows[2].to_vec();
        without[forbidden as usize] = f32::NEG_INFINITY;
        let tokens: Vec<u32> = chosen.rows.iter().map(|row| row.unwrap().token).collect();
        assert_eq!(tokens, [9, best(rows[1]), best(&without)]);
        let total = rows[0].iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln();
        assert!((f64::from(chosen.rows[0].unwrap().logprob) - (f64::from(rows[0][9]) - total)).abs() < 1e-4);
        assert_eq!((chosen.top_of(0)[0].token, chosen.top_of(0).len(), chosen.top.len()), (best(rows[0]), 2, 2));
    }
    assert_eq!(backend.execute(&plain).unwrap().into_logits(), logits);
}
