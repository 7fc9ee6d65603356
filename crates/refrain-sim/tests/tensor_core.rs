//! The operations of a wave against plain loops: shuffles, `kx_mma_*`, `kx_ldmatrix*`, asynchronous copies.

mod common;

use common::{Random, Sim, all_options};
use half::{bf16, f16};
use refrain_sim::{Order, SimOptions};

fn narrow() -> impl Iterator<Item = SimOptions> {
    all_options().into_iter().filter(|options| options.wave == 32)
}

#[test]
fn shuffles_give_the_value_of_the_other_lane() {
    let text = "
        struct Args { const u32* from; u32* out; };
        KX_KERNEL(shuffles, Args, 160) {
            const u32 t = kx_tid();
            args.out[t] = kx_shuffle(t * 10, args.from[t]);
            args.out[160 + t] = kx_shuffle_xor<1>(t);
            args.out[320 + t] = kx_shuffle_xor<KX_WAVE / 2>(t);
            args.out[480 + t] = (u32)kx_shuffle_xor<2>((f32)t);
        }";
    for options in all_options() {
        let Some(sim) = Sim::new(options.clone()) else { return };
        let kernel = sim.kernel("shuffles", text);
        let mut random = Random(4);
        let from: Vec<u32> = (0..160).map(|_| random.bits() % 1000).collect();
        let (input, out) = (sim.upload(&from), sim.room::<u32>(640));
        sim.launch(&kernel, 1, 160, &[input.base().0, out.base().0]).unwrap();
        let got = sim.read::<u32>(&out);
        for thread in 0..160 {
            let wave = options.wave;
            let lane_of = |lane: u32| thread / wave * wave + lane % wave;
            // With waves of 64 the last one has 32 lanes; the others' values are poison.
            let source = lane_of(from[thread as usize]);
            if source < 160 {
                assert_eq!(got[thread as usize], source * 10);
            }
            assert_eq!(got[160 + thread as usize], thread ^ 1);
            if thread ^ (wave / 2) < 160 {
                assert_eq!(got[320 + thread as usize], thread ^ (wave / 2));
            }
            assert_eq!(got[480 + thread as usize], thread ^ 2);
        }
    }
}

#[test]
fn a_wave_multiplies_matrices() {
    // Fragments by the formulas of the PTX manual, written out for one lane.
    let text = |function: &str| {
        format!(
            "struct Args {{ const u16* a; const u16* b; const f32* c; f32* d; }};
            KX_DEV u32 two(const u16* at, u32 stride) {{ return at[0] | (u32)at[stride] << 16; }}
            KX_KERNEL(multiply, Args, 64) {{
                const u32 lane = kx_tid() % 32, g = lane / 4, t = lane % 4 * 2, o = kx_tid() / 32;
                const u16 *A = args.a + o * 256, *B = args.b + o * 128;
                const u32 a[4] = {{two(A + g * 16 + t, 1), two(A + (g + 8) * 16 + t, 1), two(A + g * 16 + t + 8, 1),
                                   two(A + (g + 8) * 16 + t + 8, 1)}};
                const u32 b[2] = {{two(B + t * 8 + g, 8), two(B + (t + 8) * 8 + g, 8)}};
                f32 d[4];
                for (int i = 0; i < 4; i++) d[i] = args.c[o * 128 + (g + i / 2 * 8) * 8 + t + i % 2];
                {function}(d, a, b);
                for (int i = 0; i < 4; i++) args.d[o * 128 + (g + i / 2 * 8) * 8 + t + i % 2] = d[i];
            }}"
        )
    };
    for options in narrow() {
        for half in [false, true] {
            let Some(sim) = Sim::new(options.clone()) else { return };
            let kernel = sim.kernel("multiply", &text(if half { "kx_mma_f16" } else { "kx_mma_bf16" }));
            let mut random = Random(5);
            // The least f16s are subnormal; they count as well.
            let mut element = |index: usize| {
                let value = random.float() * if index.is_multiple_of(7) { 3e-6 } else { 1.0 };
                if half {
                    (f16::from_f32(value).to_bits(), f16::from_f32(value).to_f64())
                } else {
                    (bf16::from_f32(value).to_bits(), bf16::from_f32(value).to_f64())
                }
            };
            let (a_bits, a): (Vec<u16>, Vec<f64>) = (0..512).map(&mut element).unzip();
            let (b_bits, b): (Vec<u16>, Vec<f64>) = (0..256).map(&mut element).unzip();
            let c: Vec<f32> = (0..256).map(|index| index as f32 / 64.0 - 2.0).collect();
            let (left, right, sums) = (sim.upload(&a_bits), sim.upload(&b_bits), sim.upload(&c));
            let out = sim.room::<f32>(256);
            let arguments = [left.base().0, right.base().0, sums.base().0, out.base().0];
            sim.launch(&kernel, 1, 64, &arguments).unwrap();
            let got = sim.read::<f32>(&out);
            for (index, &value) in got.iter().enumerate() {
                let (o, row, column) = (index / 128, index % 128 / 8, index % 8);
                let product = |k: usize| a[o * 256 + row * 16 + k] * b[o * 128 + k * 8 + column];
                let wanted = f64::from(c[index]) + (0..16).map(product).sum::<f64>();
                assert!((f64::from(value) - wanted).abs() < 2e-6, "{index}: {value} instead of {wanted}");
            }
        }
    }
}

#[test]
fn matrices_are_loaded_as_fragments() {
    let text = "
        struct Args { const u16* in; u32* out; };
        KX_KERNEL(load, Args, 32) {
            KX_SHARED KX_ALIGN(16) u16 rows[32 * 24];
            for (int i = 0; i < 24; i++) rows[kx_tid() * 24 + i] = args.in[kx_tid() * 24 + i];
            kx_sync();
            // Rows of 48 bytes, of which the second 16 are taken; lane 8 j + i names row i of matrix j.
            const u16* row = rows + kx_tid() * 24 + 8;
            u32 d[12];
            kx_ldmatrix4(d, row);
            kx_ldmatrix4_trans(d + 4, row);
            kx_ldmatrix2(d + 8, kx_tid() < 16 ? row : (const u16*)0);
            kx_ldmatrix2_trans(d + 10, kx_tid() < 16 ? row : (const u16*)0);
            // What a lane writes after the load must not reach another lane's load.
            for (int i = 0; i < 24; i++) rows[kx_tid() * 24 + i] = 0;
            for (int i = 0; i < 12; i++) args.out[kx_tid() * 12 + i] = d[i];
        }";
    for options in narrow() {
        let Some(sim) = Sim::new(options) else { return };
        let kernel = sim.kernel("load", text);
        let mut random = Random(6);
        let input: Vec<u16> = (0..32 * 24).map(|_| random.bits() as u16).collect();
        let (from, out) = (sim.upload(&input), sim.room::<u32>(32 * 12));
        sim.launch(&kernel, 1, 32, &[from.base().0, out.base().0]).unwrap();
        let element = |matrix: usize, row: usize, column: usize| u32::from(input[(8 * matrix + row) * 24 + 8 + column]);
        let got = sim.read::<u32>(&out);
        for lane in 0..32 {
            let (group, pair) = (lane / 4, lane % 4 * 2);
            for matrix in 0..4 {
                let plain = element(matrix, group, pair) | element(matrix, group, pair + 1) << 16;
                let transposed = element(matrix, pair, group) | element(matrix, pair + 1, group) << 16;
                assert_eq!(got[lane * 12 + matrix], plain, "lane {lane}, matrix {matrix}");
                assert_eq!(got[lane * 12 + 4 + matrix], transposed, "lane {lane}, matrix {matrix}, transposed");
                if matrix < 2 {
                    assert_eq!(got[lane * 12 + 8 + matrix], plain);
                    assert_eq!(got[lane * 12 + 10 + matrix], transposed);
                }
            }
        }
    }
}

#[test]
fn matrices_that_can_not_be_loaded_are_named() {
    for (address, words) in [
        ("(const void*)args.at", "kx_ldmatrix: address 0x"),
        ("(const void*)args.at", "is not in shared memory"),
        ("rows + kx_tid()", "is not a multiple of 16"),
    ] {
        let Some(sim) = Sim::new(SimOptions::default()) else { return };
        let text = format!(
            "struct Args {{ u32* at; }};
            KX_KERNEL(load, Args, 32) {{
                KX_SHARED KX_ALIGN(16) u32 rows[40];
                rows[kx_tid()] = 0;
                u32 d[4];
                kx_ldmatrix4(d, {address});
                args.at[kx_tid()] = d[0] + rows[kx_tid()];
            }}"
        );
        let kernel = sim.kernel("load", &text);
        let out = sim.room::<u32>(32);
        let error = sim.launch(&kernel, 1, 32, &[out.base().0]).unwrap_err().to_string();
        assert!(error.contains(words), "no {words:?} in: {error}");
    }
}

/// Three groups of copies; `wait` stands before the rows are read. Gives the rows of a wave as it read them.
fn copies(order: Order, wave: u32, wait: &str) -> Option<Vec<u32>> {
    let sim = Sim::new(SimOptions { wave, order, ..SimOptions::default() })?;
    let text = format!(
        "struct Args {{ const u32x4* in; u32* out; }};
        KX_KERNEL(copy, Args, 64) {{
            KX_SHARED KX_ALIGN(16) u32x4 rows[3 * 64];
            for (u32 i = 0; i < 3; i++) {{
                kx_copy_async16(rows + i * 64 + kx_tid(), args.in + i * 64 + kx_tid(), kx_tid() != 7);
                kx_copy_commit();
            }}
            {wait}
            kx_sync();
            for (u32 i = 0; i < 3; i++) args.out[i * 64 + kx_tid()] = rows[i * 64 + 63 - kx_tid()].z;
        }}"
    );
    let kernel = sim.kernel("copy", &text);
    let input: Vec<u32> = (0..3 * 64 * 4).collect();
    let (from, out) = (sim.upload(&input), sim.room::<u32>(3 * 64));
    sim.launch(&kernel, 1, 64, &[from.base().0, out.base().0]).unwrap();
    Some(sim.read::<u32>(&out))
}

#[test]
fn copies_land_when_they_are_waited_for() {
    let poison = refrain_sim::POISON << 16 | refrain_sim::POISON;
    for (wave, order) in [(32, Order::Forward), (32, Order::Reverse), (64, Order::Shuffled(1))] {
        for (wait, landed) in [("", 0), ("kx_copy_wait<2>();", 1), ("kx_copy_wait<1>();", 2), ("kx_copy_wait<0>();", 3)]
        {
            let Some(got) = copies(order, wave, wait) else { return };
            for (index, &value) in got.iter().enumerate() {
                let (group, thread) = (index / 64, 63 - index % 64);
                let copied = if thread == 7 { 0 } else { (group * 64 + thread) as u32 * 4 + 2 };
                let wanted = if group < landed { copied } else { poison };
                assert_eq!(value, wanted, "{wait:?}, group {group}, thread {thread}");
            }
        }
    }
}
