//! Every way to compute the prompts of a golden: in one piece, in odd pieces, token by token, all in one step.

use crate::drive::{Part, Runner, bits};
use crate::{Difference, Golden};

/// Whether the same prompt must give the same bits whatever it is computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariance {
    /// Cuts at multiples of 64 positions and other sequences in the step change nothing.
    Exact,
    /// Products are done by a library that chooses its algorithm by the number of rows: within the gate only.
    Gate,
}

/// Where prompts are cut in pieces of odd sizes, up to 1500 tokens.
fn odd_cuts() -> Vec<usize> {
    let sizes = [1, 37, 27, 5, 130, 63, 65, 201, 3, 64];
    let ends = sizes.iter().cycle().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    ends.take_while(|&end| end < 1500).collect()
}

/// Runs every prompt of the golden in each way and checks it.
///
/// # Panics
/// When a way is outside the gate, or not invariant.
pub fn check_all_ways(
    golden: &Golden,
    runner: &mut Runner,
    gate: fn(&Difference) -> Result<(), String>,
    invariance: Invariance,
) {
    let [mut whole, mut odd, mut aligned, mut together, mut token_by_token] = [(); 5].map(|()| Difference::default());
    let mut one_piece = Vec::new();
    for (sequence, prompt) in golden.prompts.iter().enumerate() {
        let compare = |difference: &mut Difference, rows: &[Vec<f32>]| {
            assert_eq!(rows.len(), prompt.positions.len());
            for (row, (tokens, logprobs)) in rows.iter().zip(prompt.tokens.iter().zip(&prompt.logprobs)) {
                difference.add(row, tokens, logprobs);
            }
        };
        let rows = runner.prefill(sequence, &prompt.ids, &[], &prompt.positions);
        compare(&mut whole, &rows);
        compare(&mut odd, &runner.prefill(sequence, &prompt.ids, &odd_cuts(), &prompt.positions));
        let cuts = [64, 192, 256, 512, 1024, 1472];
        let cut = runner.prefill(sequence, &prompt.ids, &cuts, &prompt.positions);
        compare(&mut aligned, &cut);
        if invariance == Invariance::Exact {
            let length = prompt.ids.len();
            assert!(bits(&cut) == bits(&rows), "{length} tokens: cuts at multiples of 64 changed the result");
        }
        one_piece.push(rows);
    }
    let prompts = golden.prompts.iter().enumerate();
    let parts: Vec<Part<'_>> = prompts
        .map(|(sequence, prompt)| Part {
            sequence,
            ids: &prompt.ids,
            positions: 0..prompt.ids.len(),
            scan: true,
            wanted: &prompt.positions,
        })
        .collect();
    let mut rows: Vec<Vec<Vec<f32>>> = vec![Vec::new(); parts.len()];
    runner.step(&parts, |index, _, logits| rows[index].push(logits.to_vec()));
    for (index, (rows, alone)) in rows.iter().zip(&one_piece).enumerate() {
        let prompt = &golden.prompts[index];
        for (row, (tokens, logprobs)) in rows.iter().zip(prompt.tokens.iter().zip(&prompt.logprobs)) {
            together.add(row, tokens, logprobs);
        }
        if invariance == Invariance::Exact {
            assert!(bits(rows) == bits(alone), "prompt {index} gives something else in a batch");
        }
    }

    // The recurrence, all prompts side by side: the batch shrinks as the short ones end.
    let longest = golden.prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap();
    for position in 0..longest {
        let prompts = golden.prompts.iter().enumerate().filter(|(_, prompt)| position < prompt.ids.len());
        let parts: Vec<Part<'_>> = prompts
            .map(|(sequence, prompt)| Part {
                sequence,
                ids: &prompt.ids,
                positions: position..position + 1,
                scan: false,
                wanted: &prompt.positions,
            })
            .collect();
        runner.step(&parts, |index, position, logits| {
            let prompt = &golden.prompts[parts[index].sequence];
            let row = prompt.positions.binary_search(&position).unwrap();
            token_by_token.add(logits, &prompt.tokens[row], &prompt.logprobs[row]);
        });
    }
    let ways = [
        ("one piece", whole),
        ("odd pieces", odd),
        ("aligned pieces", aligned),
        ("all at once", together),
        ("token by token", token_by_token),
    ];
    for (way, difference) in ways {
        println!("{} {way}: {difference}", golden.name);
        gate(&difference).unwrap_or_else(|error| panic!("{}, {way}: {error}", golden.name));
    }
}
