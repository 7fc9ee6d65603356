//! The backend against Hugging Face transformers: see `docs/goldens.md`.

use refrain_cpu::{CpuBackend, CpuOptions, Isa, Precision};
use refrain_device::Cell;
use refrain_program::{BuildOptions, CacheDtype, Dtype, Fp8, PassConfig};
use refrain_testkit::{Difference, Golden, Invariance, Part, Prepared, Runner, bits, check_all_ways, checkpoint};
use std::path::Path;

/// How a checkpoint is to be run.
#[derive(Clone, Copy, Debug)]
struct Settings {
    precision: Precision,
    isa: Option<Isa>,
    threads: usize,
    cell: Cell,
    /// The type of keys and values; else that of the arithmetic.
    kv_cache: Option<CacheDtype>,
}

impl Settings {
    fn f32() -> Self {
        Self { precision: Precision::F32, isa: None, threads: 1, cell: Cell::EAGER, kv_cache: None }
    }

    fn bf16() -> Self {
        Self { precision: Precision::Bf16, ..Self::f32() }
    }
}

fn load(folder: &Path, max_tokens: usize, settings: Settings) -> Runner {
    let Prepared { checkpoint, program, limits, pools } = Prepared::open(folder, max_tokens, |stored| {
        let (weights, kv_cache) = match settings.precision {
            Precision::F32 => (stored, Dtype::F32),
            Precision::Bf16 => (Dtype::Bf16, Dtype::Bf16),
        };
        BuildOptions { weights, activations: Dtype::F32, kv_cache: settings.kv_cache.unwrap_or(kv_cache.into()) }
    });
    let passes = settings.cell.compiled.then(PassConfig::default);
    let cpu = CpuOptions { threads: settings.threads, precision: settings.precision, isa: settings.isa, passes };
    let backend = CpuBackend::load(&program, &checkpoint, limits, pools, &cpu).unwrap();
    Runner::new(Box::new(backend), program.vocab_size).in_cell(settings.cell)
}

/// Checks every way to run the prompts of a golden.
fn check(golden: &Golden, settings: Settings, gate: fn(&Difference) -> Result<(), String>) {
    let Some(folder) = checkpoint(golden) else { return };
    println!("{settings:?}");
    check_all_ways(golden, &mut load(&folder, 2048, settings), gate, Invariance::Exact);
}

fn in_f32(name: &str) {
    check(&Golden::load(name), Settings::f32(), Difference::check_f32);
}

/// The matrices of a checkpoint that is stored in f32 are converted, hence its reference's too.
fn in_bf16(name: &str) {
    let golden = if name.ends_with("-f32") { Golden::load_rounded(name) } else { Golden::load(name) };
    check(&golden, Settings::bf16(), Difference::check_bf16);
}

/// Keys and values of eight bits, of either kind with an arithmetic.
fn in_fp8(name: &str) {
    let golden = Golden::load(name);
    let other = if name.ends_with("-f32") { Settings::f32() } else { Settings::bf16() };
    for (settings, format) in [(Settings::f32(), Fp8::E4m3), (other, Fp8::E5m2)] {
        check(&golden, Settings { kv_cache: Some(format.into()), ..settings }, Difference::check_fp8_cache);
    }
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

goldens! { in_fp8:
    tinytales "tinytales",
    tiny_0_bf16 "tiny-0-bf16",
    micro_0_bf16 "micro-0-bf16",
    micro_1_f32 "micro-1-f32",
    odd_1_bf16 "odd-1-bf16",
}

#[test]
fn every_golden_is_tested() {
    let mut tested: Vec<String> = in_f32::NAMES.iter().map(|&name| name.to_owned()).collect();
    let mut made = Golden::names();
    tested.sort();
    made.sort();
    assert_eq!(tested, made);
    assert!(in_fp8::NAMES.iter().all(|&name| made.iter().any(|made| made == name)));
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

/// The compiled program gives the bits of the eager one, which other tests see; that it is right, too, is seen here.
#[test]
fn the_compiled_cell_passes() {
    for name in ["tinytales", "micro-0-bf16", "odd-1-f32", "dense-4-bf16", "gdn-6-f32"] {
        let mut golden = Golden::load(name);
        golden.prompts.retain(|prompt| prompt.ids.len() <= 200);
        let cell = Cell::COMPILED;
        check(&golden, Settings { cell, ..Settings::f32() }, Difference::check_f32);
        if name.ends_with("-bf16") {
            check(&golden, Settings { cell, ..Settings::bf16() }, Difference::check_bf16);
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
            let mut runner = load(&folder, 2048, Settings { threads, ..settings });
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
