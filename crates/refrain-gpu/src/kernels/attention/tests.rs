//! How the work is divided, on the devices that matter.

use super::*;
use crate::kernel::Extent;

fn device(arch: &str, wave: u32, processors: u32, shared_kib: u32) -> Target {
    Target { arch: arch.to_owned(), wave, mma: wave == 32, processors, shared_bytes: shared_kib << 10 }
}

fn op(dtype: Dtype, (num_heads, num_kv_heads, head_dim): (usize, usize, usize)) -> Attention {
    let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale: 1.0 };
    let width = (num_heads * head_dim) as u32;
    let rows = Rows { base: DevicePtr(0), stride: width, width, dtype };
    Attention {
        q: rows,
        cache: DevicePtr(0),
        dtype: dtype.into(),
        shape,
        workspace: DevicePtr(0),
        gate: None,
        out: rows,
    }
}

fn define<'a>(spec: &'a LaunchSpec, name: &str) -> &'a str {
    let found = spec.kernel.defines.iter().find(|(known, _)| *known == name);
    &found.unwrap_or_else(|| panic!("{} has no {name}", spec.kernel.entry)).1
}

#[test]
fn an_h100_takes_whole_pieces_of_two_heads_on_tensor_cores() {
    let target = device("sm_90a", 32, 132, 227);
    let [prefill, decode] = &op(Dtype::Bf16, (16, 4, 256)).launches(&target, &StepPointers::default())[..] else {
        panic!("two launches");
    };
    assert_eq!(prefill.kernel.entry, "attention_prefill_mma");
    assert_eq!((define(prefill, "QUERIES"), define(prefill, "KEY_BLOCKS")), ("2", "4"));
    assert_eq!(prefill.grid[0], Extent::Fixed(8));
    assert_eq!(prefill.kernel.shared_bytes, (128 + 256) * 264 * 2);
    // 64 parts for each of 4 key and value heads: 256 blocks, of 264 that the device holds.
    assert_eq!(decode.kernel.entry, "attention_decode_mma");
    assert_eq!((define(decode, "QUERIES"), define(decode, "SPLITS")), ("4", "64"));
    assert_eq!(decode.grid[0], Extent::Fixed(264));
}

#[test]
fn smaller_shared_memory_takes_smaller_tiles() {
    for (shared_kib, queries, blocks) in [(163, "2", "2"), (99, "1", "2"), (96, "1", "1"), (66, "1", "1")] {
        let target = device("sm_80", 32, 108, shared_kib);
        let spec = op(Dtype::F16, (16, 4, 256)).prefill(&target, &StepPointers::default());
        assert_eq!((define(&spec, "QUERIES"), define(&spec, "KEY_BLOCKS")), (queries, blocks), "{shared_kib} KiB");
        assert!(spec.kernel.shared_bytes <= shared_kib << 10);
    }
}

#[test]
fn what_tensor_cores_dont_take_goes_the_scalar_way() {
    let hopper = device("sm_90a", 32, 132, 227);
    let gfx906 = device("gfx906", 64, 60, 64);
    let mut mixed = op(Dtype::Bf16, (4, 2, 64));
    mixed.dtype = Dtype::F16.into();
    let cases = [
        (op(Dtype::F32, (16, 4, 256)), &hopper),
        (op(Dtype::Bf16, (2, 1, 40)), &hopper),
        (mixed, &hopper),
        (op(Dtype::F16, (16, 4, 256)), &gfx906),
        (op(Dtype::F32, (16, 4, 256)), &gfx906),
    ];
    for (op, target) in cases {
        let spec = op.prefill(target, &StepPointers::default());
        assert_eq!(spec.kernel.entry, "attention_prefill");
        assert!(spec.kernel.shared_bytes <= target.shared_bytes);
        let number = |name: &str| define(&spec, name).parse::<u32>().expect("a number");
        assert_eq!(spec.grid[2], Extent::Fixed(64 / number("ROWS")));
        // Every lane of a row has a key.
        assert!(number("KEYS") * number("ROWS") >= spec.kernel.threads);
        let spec = op.decode(target, &StepPointers::default());
        assert_eq!(spec.kernel.entry, "attention_decode");
    }
}

#[test]
fn queries_of_a_block_divide_the_group() {
    let target = device("sm_90a", 32, 132, 227);
    for (heads, kv_heads, queries) in
        [(16, 4, "4"), (24, 4, "6"), (16, 1, "8"), (12, 1, "6"), (7, 1, "7"), (11, 1, "1")]
    {
        let spec = op(Dtype::Bf16, (heads, kv_heads, 64)).decode(&target, &StepPointers::default());
        assert_eq!(define(&spec, "QUERIES"), queries, "{heads} heads on {kv_heads}");
    }
}

#[test]
fn the_workspace_has_a_record_for_every_sequence_and_unit() {
    let target = device("sm_90a", 32, 132, 227);
    let shape = op(Dtype::Bf16, (16, 4, 256)).shape;
    let limits = StepLimits { max_tokens: 8192, max_segments: 32, max_logit_rows: 32, max_model_len: 32_768 };
    let record = 64 * 4 * (256 * 4 + 8) + 16;
    assert_eq!(Attention::workspace_bytes(&limits, &shape, Dtype::Bf16, &target), 32 * 4 * record);
}

#[test]
fn impossible_shapes_are_told() {
    let shape = |head_dim| AttentionShape { num_heads: 2, num_kv_heads: 1, head_dim, scale: 1.0 };
    assert_eq!(unsupported(&shape(256)), None);
    for head_dim in [0, 12, 264] {
        let why = unsupported(&shape(head_dim)).expect("it is refused");
        assert!(why.contains(&head_dim.to_string()), "{why}");
    }
}
