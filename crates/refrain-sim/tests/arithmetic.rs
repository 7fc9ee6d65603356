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

/// The number of a code of eight bits, by the paper: (arXiv 2209.05433).
fn number(code: u8, mantissa_bits: i32, bias: i32) -> f64 {
    let (exponent, mantissa) = (i32::from(code & 0x7f) >> mantissa_bits, i32::from(code) & ((1 << mantissa_bits) - 1));
    let part = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    match (mantissa_bits, exponent, mantissa) {
        (3, 15, 7) | (2, 31, 1..) => f64::NAN,
        (2, 31, 0) => sign * f64::INFINITY,
        (_, 0, _) => sign * part * 2f64.powi(1 - bias),
        _ => sign * (1.0 + part) * 2f64.powi(exponent - bias),
    }
}

#[test]
fn eight_bits_are_converted_exactly_and_rounded_to_the_nearest_even() {
    let text = "
        #include \"kx_fp8.h\"
        struct Args { const f32* values; u32* codes; f32* back; u32* halves; u32 count; u32 gap; };
        KX_KERNEL(convert, Args, 256) {
            const u32 i = kx_block_x() * 256 + kx_tid();
            if (i < 65536) {
                kx_fp8_floats(args.back + 2 * i, i, TYPE());
                args.halves[i] = kx_fp8_halves(i, TYPE());
            }
            if (i < args.count) args.codes[i] = kx_fp8_pair(args.values[2 * i], args.values[2 * i + 1], TYPE());
        }";
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    for (name, mantissa_bits, bias, largest) in [("e4m3", 3, 7, 0x7e), ("e5m2", 2, 15, 0x7b)] {
        let kernel = sim.kernel("convert", &text.replace("TYPE", name));
        let number = |code| number(code, mantissa_bits, bias);
        // Every number that has a code, the middle between it and the next with its neighbours, and what is too large.
        let mut cases = Vec::new();
        for code in 0..largest {
            let middle = ((number(code) + number(code + 1)) / 2.0) as f32;
            let even = code + code % 2;
            let of_code = number(code) as f32;
            cases.extend([(of_code, code), (middle.next_down(), code), (middle, even), (middle.next_up(), code + 1)]);
        }
        let most = number(largest) as f32;
        cases.extend([most, most.next_up(), 1.5 * most, f32::MAX, f32::INFINITY].map(|value| (value, largest)));
        cases.extend([(1e-30, 0), (f32::from_bits(1), 0)]);
        cases.extend(cases.clone().into_iter().map(|(value, code)| (-value, code | 0x80)));
        if cases.len() % 2 == 1 {
            cases.push((1.0, largest / 2));
        }
        let values: Vec<f32> = cases.iter().map(|case| case.0).chain([f32::NAN, -f32::NAN]).collect();
        let count = values.len() / 2;
        let (input, codes) = (sim.upload(&values), sim.room::<u32>(count));
        let (back, halves) = (sim.room::<f32>(2 * 65_536), sim.room::<u32>(65_536));
        let arguments = [input.base().0, codes.base().0, back.base().0, halves.base().0, count as u64];
        sim.launch(&kernel, 256, 256, &arguments).unwrap();
        let same = |got: f32, code: u8| {
            let wanted = number(code) as f32;
            got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan()
        };
        let (back, halves) = (sim.read::<f32>(&back), sim.read::<u32>(&halves));
        for pair in 0..65_536 {
            let halves = [halves[pair] as u16, (halves[pair] >> 16) as u16].map(|bits| f16::from_bits(bits).to_f32());
            for (i, code) in [pair as u8, (pair >> 8) as u8].into_iter().enumerate() {
                assert!(same(back[2 * pair + i], code), "{name} {code:#x}: {}", back[2 * pair + i]);
                assert!(same(halves[i], code), "{name} {code:#x}: {}", halves[i]);
            }
        }
        let codes: Vec<u8> = sim.read::<u32>(&codes).iter().flat_map(|pair| [*pair as u8, (pair >> 8) as u8]).collect();
        for ((value, wanted), code) in cases.iter().zip(&codes) {
            assert_eq!(code, wanted, "{name}: the code of {value}");
        }
        assert!(codes[cases.len()..].iter().all(|&code| number(code).is_nan()), "{name}: NaN is lost");
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
