//! Kernels that are right give the same results at both widths and in every order.

mod common;

use common::{Random, Sim, all_options};

const ADD: &str = "
    struct AddArgs { const f32* a; const f32* b; f32* out; u32 count; u32 gap; };
    KX_KERNEL(add, AddArgs, 96) {
        const u32 at = kx_block_x() * 96 + kx_tid();
        if (at < args.count) args.out[at] = args.a[at] + args.b[at];
    }";

#[test]
fn vectors_are_added() {
    for options in all_options() {
        let Some(sim) = Sim::new(options) else { return };
        let kernel = sim.kernel("add", ADD);
        let mut random = Random(1);
        let count = 1000;
        let a: Vec<f32> = (0..count).map(|_| random.float()).collect();
        let b: Vec<f32> = (0..count).map(|_| random.float()).collect();
        let (left, right, out) = (sim.upload(&a), sim.upload(&b), sim.room::<f32>(count));
        let arguments = [left.base().0, right.base().0, out.base().0, count as u64];
        sim.launch(&kernel, 11, 96, &arguments).unwrap();
        let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(sim.read::<f32>(&out), wanted);
    }
}

#[test]
fn sums_over_a_block_are_the_same_in_every_order() {
    let text = "
        struct SumArgs { const f32* x; f32* out; u32 count; u32 gap; };
        KX_KERNEL(sum, SumArgs, 256) {
            KX_SHARED f32 room[256 / KX_WAVE];
            f32 own = 0.0f;
            for (u32 i = kx_tid(); i < args.count; i += 256) own += args.x[kx_block_x() * args.count + i];
            own = kx_block_sum<256>(own, room);
            if (kx_tid() == 0) args.out[kx_block_x()] = own;
        }";
    let mut results = Vec::new();
    for options in all_options() {
        let Some(sim) = Sim::new(options) else { return };
        let kernel = sim.kernel("sum", text);
        let (rows, width) = (5, 1000);
        let mut random = Random(2);
        let x: Vec<f32> = (0..rows * width).map(|_| random.float()).collect();
        let (input, out) = (sim.upload(&x), sim.room::<f32>(rows));
        sim.launch(&kernel, rows as u32, 256, &[input.base().0, out.base().0, width as u64]).unwrap();
        let sums = sim.read::<f32>(&out);
        for (row, sum) in x.chunks(width).zip(&sums) {
            let wanted: f64 = row.iter().map(|&x| f64::from(x)).sum();
            assert!((wanted - f64::from(*sum)).abs() < 1e-3, "{sum} instead of {wanted}");
        }
        results.push(sums);
    }
    assert!(results[..4].iter().all(|sums| *sums == results[0]), "waves of 32 depend on the order");
    assert!(results[4..].iter().all(|sums| *sums == results[4]), "waves of 64 depend on the order");
}
