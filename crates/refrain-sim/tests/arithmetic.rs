//! The functions of the dialect on the simulated GPU against double precision, and roundings bit by bit.

mod common;

use common::{Random, Sim};
use half::f16;
use refrain_sim::SimOptions;

#[test]
fn halves_are_converted_exactly() {
    let text = "
        struct Args { const f32* values; u16* halves; f32* back; u32 count; u32 gap; };
        KX_KERNEL(convert, Args, 256) {
            const u32 i = kx_block_x() * 256 + kx_tid();
            if (i < 65536) args.back[i] = kx_f16_to_f32((u16)i);
            if (i < args.count) args.halves[i] = kx_f32_to_f16(args.values[i]);
        }";
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel("convert", text);
    // Every half, the middle between each and the next, that middle's neighbours, and anything.
    let mut values = Vec::new();
    for bits in 0..0x7c00u16 {
        let (low, high) = (f16::from_bits(bits).to_f64(), f16::from_bits(bits + 1).to_f64());
        let middle = if high.is_finite() { ((low + high) / 2.0) as f32 } else { 65_520.0 };
        for value in [low as f32, middle, middle.next_up(), middle.next_down()] {
            values.extend([value, -value]);
        }
    }
    let mut random = Random(7);
    values.extend((0..100_000).map(|_| f32::from_bits(random.bits() << 1 ^ random.bits())));
    values.extend([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, f32::MIN_POSITIVE, f32::from_bits(1)]);
    let (input, out, back) = (sim.upload(&values), sim.room::<u16>(values.len()), sim.room::<f32>(65_536));
    let blocks = values.len().max(65_536).div_ceil(256) as u32;
    let arguments = [input.base().0, out.base().0, back.base().0, values.len() as u64];
    sim.launch(&kernel, blocks, 256, &arguments).unwrap();
    for (bits, value) in sim.read::<f32>(&back).into_iter().enumerate() {
        let wanted = f16::from_bits(bits as u16).to_f32();
        let same = if wanted.is_nan() { value.is_nan() } else { wanted.to_bits() == value.to_bits() };
        assert!(same, "{bits:#06x}: {value} instead of {wanted}");
    }
    for (value, bits) in values.iter().zip(sim.read::<u16>(&out)) {
        let (got, wanted) = (f16::from_bits(bits), f16::from_f32(*value));
        let same = if value.is_nan() { got.is_nan() } else { got.to_bits() == wanted.to_bits() };
        assert!(same, "{value:e}: {got:?} instead of {wanted:?}");
    }
}

#[test]
fn functions_are_as_exact_as_their_library_s() {
    let text = "
        struct Args { const f32* x; f32* out; };
        KX_KERNEL(functions, Args, 256) {
            const u32 i = kx_block_x() * 256 + kx_tid();
            const f32 x = args.x[i], positive = x < 0.0f ? -x : x;
            f32* out = args.out + i * 9;
            out[0] = kx_exp2(x), out[1] = kx_log2(positive), out[2] = kx_rsqrt(positive), out[3] = kx_sqrt(positive);
            out[4] = kx_rcp(x), out[5] = kx_sin(x), out[6] = kx_cos(x), out[7] = kx_pow(positive, 0.7f);
            out[8] = kx_fma(x, x, -1.0f);
        }";
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel("functions", text);
    let mut random = Random(8);
    let x: Vec<f32> = (0..2048).map(|_| random.float() * 20.0).collect();
    let (input, out) = (sim.upload(&x), sim.room::<f32>(2048 * 9));
    sim.launch(&kernel, 8, 256, &[input.base().0, out.base().0]).unwrap();
    for (x, got) in x.iter().zip(sim.read::<f32>(&out).as_chunks::<9>().0) {
        let (x, p) = (f64::from(*x), f64::from(x.abs()));
        let wanted = [
            x.exp2(),
            p.log2(),
            1.0 / p.sqrt(),
            p.sqrt(),
            1.0 / x,
            x.sin(),
            x.cos(),
            p.powf(f64::from(0.7f32)),
            x * x - 1.0,
        ];
        for (index, (&got, wanted)) in got.iter().zip(wanted).enumerate() {
            let error = (f64::from(got) - wanted).abs() / wanted.abs().max(1e-3);
            assert!(error < 3e-7, "function {index} of {x}: {got} instead of {wanted}");
        }
    }
}

#[test]
fn the_larger_of_a_number_and_nan_is_the_number() {
    let text = "
        struct Args { const f32* x; f32* out; };
        KX_KERNEL(extremes, Args, 4) {
            const f32 a = args.x[kx_tid() % 2], b = args.x[kx_tid() / 2];
            args.out[kx_tid()] = kx_max(a, b);
            args.out[4 + kx_tid()] = kx_min(a, b);
        }";
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel("extremes", text);
    for (x, wanted) in
        [([f32::NAN, 2.0], [2.0, 2.0]), ([1.0, 2.0], [2.0, 1.0]), ([f32::INFINITY, -3.0], [f32::INFINITY, -3.0])]
    {
        let (input, out) = (sim.upload(&x), sim.room::<f32>(8));
        sim.launch(&kernel, 1, 4, &[input.base().0, out.base().0]).unwrap();
        let got = sim.read::<f32>(&out);
        assert_eq!([got[1], got[2]], [wanted[0]; 2], "kx_max of {x:?}");
        assert_eq!([got[5], got[6]], [wanted[1]; 2], "kx_min of {x:?}");
        assert_eq!([got[3], got[7]], [x[1]; 2]);
        assert_eq!([got[0].is_nan(), got[4].is_nan()], [x[0].is_nan(); 2]);
    }
}
