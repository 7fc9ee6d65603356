use super::*;
use crate::kernels::testing::{Matrix, Random, assert_close, sigmoid};
use crate::simd::SimdLevel;

const WIDTHS: [usize; 10] = [1, 15, 16, 17, 40, 64, 80, 96, 129, 1000];

fn mean_square(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64
}

#[test]
fn rms_norm_is_zero_centred() {
    let mut random = Random(1);
    for (level, width) in SimdLevel::available().into_iter().flat_map(|level| WIDTHS.map(|width| (level, width))) {
        let mut x = Matrix::random(5, width, 3.0, &mut random);
        let mut out = Matrix::new(5, width);
        let weight = random.floats(width, 1.0);
        let args = RmsNorm { x: x.view(), weight: &weight, eps: 1e-6, out: out.view() };
        // SAFETY: the level is available, the rows have `width` floats.
        unsafe { rms_norm(level, &args, 1..4) };
        assert!(out.row(0).iter().chain(out.row(4)).all(|&y| y == 0.0), "rows outside the range are left alone");
        for row in 1..4 {
            let x = x.row64(row);
            let factor = 1.0 / (mean_square(&x) + 1e-6).sqrt();
            let expected: Vec<f64> = x.iter().zip(&weight).map(|(x, &w)| x * factor * (1.0 + f64::from(w))).collect();
            assert_close(out.row(row), &expected, 1e-6, &format!("{level:?} width {width}"));
        }
        let kept = out.bits();
        let args = RmsNorm { out: args.x, ..args };
        // SAFETY: as above.
        unsafe { rms_norm(level, &args, 1..4) };
        assert_eq!(x.part(1, 3).bits(), kept[width..4 * width], "in place");
    }
}

#[test]
fn l2_norm_is_by_head() {
    let mut random = Random(2);
    for (level, head_dim) in SimdLevel::available().into_iter().flat_map(|level| WIDTHS.map(|width| (level, width))) {
        let heads = 3;
        let mut x = Matrix::random(4, heads * head_dim, 2.0, &mut random);
        let mut out = Matrix::new(4, heads * head_dim);
        let args = L2Norm { x: x.view(), heads, head_dim, scaled: 2, scale: 0.25, eps: 1e-6, out: out.view() };
        // SAFETY: the level is available, the rows have `heads * head_dim` floats.
        unsafe { l2_norm(level, &args, 0..4) };
        out.bits();
        for row in 0..4 {
            for (head, (x, out)) in x.row64(row).chunks(head_dim).zip(out.row(row).chunks(head_dim)).enumerate() {
                let scale = if head < 2 { 0.25 } else { 1.0 };
                let factor = scale / (mean_square(x) * head_dim as f64 + 1e-6).sqrt();
                let expected: Vec<f64> = x.iter().map(|x| x * factor).collect();
                assert_close(out, &expected, 1e-6, &format!("{level:?} head size {head_dim}"));
            }
        }
    }
}

#[test]
fn gated_rms_norm_has_a_plain_weight_and_gates_last() {
    let mut random = Random(3);
    for (level, head_dim) in SimdLevel::available().into_iter().flat_map(|level| WIDTHS.map(|width| (level, width))) {
        let heads = 3;
        let mut x = Matrix::random(3, heads * head_dim, 2.0, &mut random);
        let mut gate = Matrix::random(3, heads * head_dim, 9.0, &mut random);
        let mut out = Matrix::new(3, heads * head_dim);
        let weight = random.floats(head_dim, 1.5);
        let args = GatedRmsNorm { x: x.view(), gate: gate.view(), weight: &weight, heads, eps: 1e-6, out: out.view() };
        // SAFETY: the level is available, the rows have `heads * head_dim` floats.
        unsafe { gated_rms_norm(level, &args, 0..3) };
        out.bits();
        for row in 0..3 {
            let (x, gate) = (x.row64(row), gate.row64(row));
            for head in 0..heads {
                let range = head * head_dim..(head + 1) * head_dim;
                let factor = 1.0 / (mean_square(&x[range.clone()]) + 1e-6).sqrt();
                let expected: Vec<f64> = range
                    .clone()
                    .map(|i| x[i] * factor * f64::from(weight[i % head_dim]) * gate[i] * sigmoid(gate[i]))
                    .collect();
                assert_close(&out.row(row)[range], &expected, 2e-6, &format!("{level:?} head size {head_dim}"));
            }
        }
    }
}

#[test]
fn rope_turns_pairs_after_the_norm() {
    let mut random = Random(4);
    let shapes = [(256, 64), (40, 40), (40, 10), (64, 34), (32, 2), (128, 0), (17, 16)];
    for (level, (head_dim, rotary_dim)) in
        SimdLevel::available().into_iter().flat_map(|level| shapes.map(|shape| (level, shape)))
    {
        let (heads, half, theta) = (3, rotary_dim / 2, 1e4);
        let rope_rows = [7u32, 0, 1500];
        let mut rope = vec![0.0; 1501 * rotary_dim];
        fill_rope(0..1501, rotary_dim, theta, &mut rope);
        let mut x = Matrix::random(3, heads * head_dim, 2.0, &mut random);
        let mut out = Matrix::new(3, heads * head_dim);
        let weight = random.floats(head_dim, 1.0);
        let args = QkNormRope {
            x: x.view(),
            weight: &weight,
            heads,
            rotary_dim,
            eps: 1e-6,
            rope: &rope,
            rope_rows: &rope_rows,
            out: out.view(),
        };
        // SAFETY: the level is available, the rows have `heads * head_dim` floats.
        unsafe { qk_norm_rope(level, &args, 0..3) };
        for (row, &position) in rope_rows.iter().enumerate() {
            for (x, out) in x.row64(row).chunks(head_dim).zip(out.row(row).chunks(head_dim)) {
                let factor = 1.0 / (mean_square(x) + 1e-6).sqrt();
                let y: Vec<f64> = x.iter().zip(&weight).map(|(x, &w)| x * factor * (1.0 + f64::from(w))).collect();
                let mut expected = y.clone();
                for i in 0..half {
                    let angle = f64::from(position) / f64::from(theta).powf(2.0 * i as f64 / rotary_dim as f64);
                    expected[i] = y[i] * angle.cos() - y[i + half] * angle.sin();
                    expected[i + half] = y[i + half] * angle.cos() + y[i] * angle.sin();
                }
                // The angle itself is an f32: at 1500 it is right to about 1e-4.
                let tolerance = if position > 100 { 4e-4 } else { 4e-6 };
                assert_close(out, &expected, tolerance, &format!("{level:?} {head_dim}/{rotary_dim} at {position}"));
            }
        }
        let kept = out.bits();
        let args = QkNormRope { out: args.x, ..args };
        // SAFETY: as above.
        unsafe { qk_norm_rope(level, &args, 0..3) };
        assert_eq!(x.bits(), kept, "in place");
    }
}

#[test]
fn rope_rows_don_t_depend_on_the_range() {
    let mut whole = vec![0.0; 100 * 6];
    fill_rope(0..100, 6, 1e7, &mut whole);
    let mut part = vec![0.0; 10 * 6];
    fill_rope(50..60, 6, 1e7, &mut part);
    assert_eq!(part, whole[50 * 6..60 * 6]);
    assert_eq!(whole[..6], [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
}
