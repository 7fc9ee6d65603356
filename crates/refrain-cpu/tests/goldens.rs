//! The backend against Hugging Face transformers: see `docs/goldens.md`.

mod common;

use common::{Part, Runner, Settings, bits};
use refrain_cpu::Isa;
use refrain_testkit::{Difference, Golden, checkpoint};

/// Where prompts are cut in pieces of odd sizes, up to 1500 tokens.
fn odd_cuts() -> Vec<usize> {
    let sizes = [1, 37, 27, 5, 130, 63, 65, 201, 3, 64];
    let ends = sizes.iter().cycle().scan(0, |end, size| {
        *end += size;
        Some(*end)
    });
    ends.take_while(|&end| end < 1500).collect()
}

/// Runs every prompt of the golden in one piece, in pieces, and token by token, and checks each way.
fn check(golden: &Golden, settings: Settings, gate: fn(&Difference) -> Result<(), String>) {
    let Some(folder) = checkpoint(golden) else { return };
    let mut runner = Runner::load(&folder, 2048, settings);
    let [mut whole, mut odd, mut token_by_token] = [(); 3].map(|()| Difference::default());
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
        let aligned = [64, 192, 256, 512, 1024, 1472];
        let cut = runner.prefill(sequence, &prompt.ids, &aligned, &prompt.positions);
        assert!(bits(&cut) == bits(&rows), "{} tokens: cuts at multiples of 64 changed the result", prompt.ids.len());
        one_piece.push(rows);
    }
    all_at_once(&mut runner, golden, &one_piece);

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
    for (way, difference) in [("one piece", whole), ("odd pieces", odd), ("token by token", token_by_token)] {
        println!("{} {way}: {difference}", golden.name);
        gate(&difference).unwrap_or_else(|error| panic!("{} {settings:?}, {way}: {error}", golden.name));
    }
}

/// All prompts in one step give the very bits that each gave alone.
fn all_at_once(runner: &mut Runner, golden: &Golden, alone: &[Vec<Vec<f32>>]) {
    let parts: Vec<Part<'_>> = golden
        .prompts
        .iter()
        .enumerate()
        .map(|(sequence, prompt)| Part {
            sequence,
            ids: &prompt.ids,
            positions: 0..prompt.ids.len(),
            scan: true,
            wanted: &prompt.positions,
        })
        .collect();
    let mut together: Vec<Vec<Vec<f32>>> = vec![Vec::new(); parts.len()];
    runner.step(&parts, |index, _, logits| together[index].push(logits.to_vec()));
    for (index, (together, alone)) in together.iter().zip(alone).enumerate() {
        assert!(bits(together) == bits(alone), "prompt {index} gives something else in a batch");
    }
}

fn in_f32(name: &str) {
    check(&Golden::load(name), Settings::f32(), Difference::check_f32);
}

/// The matrices of a checkpoint that is stored in f32 are converted, hence its reference's too.
fn in_bf16(name: &str) {
    let golden = if name.ends_with("-f32") { Golden::load_rounded(name) } else { Golden::load(name) };
    check(&golden, Settings::bf16(), Difference::check_bf16);
}

macro_rules! goldens {
    ($gate:ident: $($test:ident $name:literal,)*) => {
        mod $gate {
            $(#[test] fn $test() { super::$gate($name); })*
            pub const NAMES: &[&str] = &[$($name),*];
        }
    };
}

goldens! { in_f32:
    tinytales "tinytales",
    tiny_0_f32 "tiny-0-f32",
    tiny_0_bf16 "tiny-0-bf16",
    tiny_1_f32 "tiny-1-f32",
    tiny_1_bf16 "tiny-1-bf16",
    tiny_2_f32 "tiny-2-f32",
    tiny_2_bf16 "tiny-2-bf16",
    micro_0_f32 "micro-0-f32",
    micro_0_bf16 "micro-0-bf16",
    micro_1_f32 "micro-1-f32",
    micro_1_bf16 "micro-1-bf16",
    micro_2_f32 "micro-2-f32",
    micro_2_bf16 "micro-2-bf16",
    micro_3_f16 "micro-3-f16",
    odd_1_f32 "odd-1-f32",
    odd_1_bf16 "odd-1-bf16",
    dense_4_bf16 "dense-4-bf16",
    gdn_6_f32 "gdn-6-f32",
}

goldens! { in_bf16:
    tinytales "tinytales",
    tiny_0_f32 "tiny-0-f32",
    tiny_0_bf16 "tiny-0-bf16",
    tiny_1_f32 "tiny-1-f32",
    tiny_1_bf16 "tiny-1-bf16",
    tiny_2_f32 "tiny-2-f32",
    tiny_2_bf16 "tiny-2-bf16",
    micro_0_f32 "micro-0-f32",
    micro_0_bf16 "micro-0-bf16",
    micro_1_f32 "micro-1-f32",
    micro_1_bf16 "micro-1-bf16",
    micro_2_f32 "micro-2-f32",
    micro_2_bf16 "micro-2-bf16",
    odd_1_bf16 "odd-1-bf16",
    dense_4_bf16 "dense-4-bf16",
}

#[test]
fn every_golden_is_tested() {
    let mut tested: Vec<String> = in_f32::NAMES.iter().map(|&name| name.to_owned()).collect();
    let mut made = Golden::names();
    tested.sort();
    made.sort();
    assert_eq!(tested, made);
    let bf16 = made.iter().filter(|name| name.ends_with("-bf16"));
    assert!(
        bf16.into_iter().all(|name| in_bf16::NAMES.contains(&name.as_str())),
        "one stored in bf16 has no BF16 test"
    );
}

/// Processors with less than this one's instructions must be right too. Plain Rust is slow, so without long prompts.
#[test]
fn every_instruction_set_passes() {
    for (name, longest) in [("tiny-0-bf16", 65), ("odd-1-f32", 200), ("odd-1-bf16", 200)] {
        let mut golden = Golden::load(name);
        golden.prompts.retain(|prompt| prompt.ids.len() <= longest);
        for isa in Isa::available() {
            let isa = Some(isa);
            check(&golden, Settings { isa, ..Settings::f32() }, Difference::check_f32);
            if name.ends_with("-bf16") {
                check(&golden, Settings { isa, ..Settings::bf16() }, Difference::check_bf16);
            }
        }
    }
}

/// The number of threads changes who computes what, not what is computed.
#[test]
fn threads_do_not_change_a_bit() {
    let golden = Golden::load("tiny-1-bf16");
    let Some(folder) = checkpoint(&golden) else { return };
    let prompt = golden.prompts.last().unwrap();
    for settings in [Settings::f32(), Settings::bf16()] {
        let logits = [1, 2, 3].map(|threads| {
            let mut runner = Runner::load(&folder, 2048, Settings { threads, ..settings });
            let prefill = runner.prefill(0, &prompt.ids, &[], &prompt.positions);
            let mut decode = Vec::new();
            for position in 0..200 {
                let positions = position..position + 1;
                let part = Part { sequence: 1, ids: &prompt.ids, positions, scan: false, wanted: &[position] };
                runner.step(&[part], |_, _, logits| decode.push(logits.to_vec()));
            }
            (bits(&prefill), bits(&decode))
        });
        assert!(logits[0] == logits[1] && logits[0] == logits[2], "{settings:?}");
    }
}
