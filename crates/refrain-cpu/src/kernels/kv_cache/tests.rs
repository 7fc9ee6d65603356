use super::*;
use crate::kernels::testing::{Matrix, Random};
use crate::simd::SimdLevel;

fn element(cache: &[u8], element: KvElement, index: usize) -> f32 {
    match element {
        KvElement::F32 => f32::from_ne_bytes(cache[4 * index..][..4].try_into().unwrap()),
        KvElement::Bf16 => bf16::from_ne_bytes(cache[2 * index..][..2].try_into().unwrap()).to_f32(),
        KvElement::F16 => f16::from_ne_bytes(cache[2 * index..][..2].try_into().unwrap()).to_f32(),
        KvElement::Fp8(format) => format.decode(cache[index]),
    }
}

fn rounded(element: KvElement, x: f32) -> f32 {
    match element {
        KvElement::F32 => x,
        KvElement::Bf16 => bf16::from_f32(x).to_f32(),
        KvElement::F16 => f16::from_f32(x).to_f32(),
        KvElement::Fp8(_) => unreachable!("rows of FP8 have a test of their own"),
    }
}

#[test]
fn every_token_lands_in_its_place_and_nowhere_else() {
    let segments = [
        Segment { row: 0, len: 1, position: 33, scan: 0, slot: 0, blocks: 0, num_blocks: 3 },
        Segment { row: 1, len: 40, position: 0, scan: 40, slot: 1, blocks: 3, num_blocks: 3 },
        Segment { row: 41, len: 30, position: 11, scan: 30, slot: 2, blocks: 6, num_blocks: 3 },
    ];
    let (rows, blocks) = (71, 10);
    let mut random = Random(1);
    let block_table = random.permutation(blocks)[..9].to_vec();
    for level in SimdLevel::available() {
        for element_type in [KvElement::F32, KvElement::Bf16, KvElement::F16] {
            for (kv_heads, head_dim) in [(1, 32), (3, 40), (2, 80), (1, 256), (2, 17)] {
                let layout = KvLayout { kv_heads, head_dim, element: element_type };
                let mut k = Matrix::random(rows, kv_heads * head_dim, 4.0, &mut random);
                let mut v = Matrix::random(rows, kv_heads * head_dim, 4.0, &mut random);
                let mut cache = vec![0xa5u8; blocks * layout.block_bytes()];
                let untouched = element(&cache, element_type, 0);
                let args = KvAppend {
                    k: k.view(),
                    v: v.view(),
                    cache: Shared(cache.as_mut_ptr()),
                    layout,
                    segments: &segments,
                    block_table: &block_table,
                };
                // SAFETY: the level is available, the step is valid for the cache.
                unsafe {
                    kv_append(level, &args, 20..rows);
                    kv_append(level, &args, 0..20);
                }
                let mut written = 0;
                for segment in &segments {
                    for token in 0..segment.len as usize {
                        let position = segment.position as usize + token;
                        let block = block_table[segment.blocks as usize + position / 16] as usize;
                        for (head, d) in (0..kv_heads).flat_map(|head| (0..head_dim).map(move |d| (head, d))) {
                            let column = head * head_dim + d;
                            let row = segment.row as usize + token;
                            let key = layout.keys(block, head) + d * 16 + position % 16;
                            let value = layout.values(block, head) + position % 16 * padded(head_dim) + d;
                            let what = format!("{level:?} {layout:?} token {token} head {head} column {d}");
                            assert_eq!(
                                element(&cache, element_type, key),
                                rounded(element_type, k.row(row)[column]),
                                "{what}"
                            );
                            assert_eq!(
                                element(&cache, element_type, value),
                                rounded(element_type, v.row(row)[column]),
                                "{what}"
                            );
                        }
                        written += kv_heads * (head_dim + padded(head_dim));
                    }
                }
                let elements = cache.len() / layout.element_bytes();
                let kept = (0..elements).filter(|&i| element(&cache, element_type, i) == untouched).count();
                assert_eq!(kept, elements - written, "{level:?} {layout:?}");
            }
        }
    }
}

/// The codes and the scale of a row.
fn coded(format: Fp8, row: &[f32]) -> (Vec<u8>, u8) {
    let largest = row.iter().filter(|x| !x.is_nan()).fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let scale = format.scale(largest);
    (row.iter().map(|x| format.encode(x * scale_inverse(scale))).collect(), scale)
}

#[test]
fn rows_of_eight_bits_have_scales_of_their_own() {
    let segments = [
        Segment { row: 0, len: 1, position: 33, scan: 0, slot: 0, blocks: 0, num_blocks: 3 },
        Segment { row: 1, len: 40, position: 5, scan: 40, slot: 1, blocks: 3, num_blocks: 3 },
    ];
    let (rows, blocks) = (41, 7);
    let mut random = Random(2);
    let block_table = random.permutation(blocks)[..6].to_vec();
    let levels = SimdLevel::available().into_iter();
    for (level, format) in levels.flat_map(|level| [(level, Fp8::E4m3), (level, Fp8::E5m2)]) {
        for (kv_heads, head_dim) in [(1, 32), (2, 40), (2, 256), (3, 17)] {
            let layout = KvLayout { kv_heads, head_dim, element: KvElement::Fp8(format) };
            // Rows of very different size, one of zeros, and some with what is no number or infinite.
            let random = Matrix::random(2 * rows, kv_heads * head_dim, 1.0, &mut random);
            let make = |first: usize| {
                Matrix::from_fn(rows, kv_heads * head_dim, |row, column| match (row, column) {
                    (3, _) => 0.0,
                    (4, 1) => f32::NAN,
                    (5, 2) => f32::NEG_INFINITY,
                    _ => random.row(first + row)[column] * 10f32.powi(row as i32 % 13 - 6),
                })
            };
            let (mut k, mut v) = (make(0), make(rows));
            let mut cache = vec![0xa5u8; blocks * layout.block_bytes()];
            let args = KvAppend {
                k: k.view(),
                v: v.view(),
                cache: Shared(cache.as_mut_ptr()),
                layout,
                segments: &segments,
                block_table: &block_table,
            };
            // SAFETY: the level is available, the step is valid for the cache.
            unsafe { kv_append(level, &args, 0..rows) };
            let mut expected = vec![0xa5u8; cache.len()];
            for (segment, token) in segments.iter().flat_map(|s| (0..s.len as usize).map(move |token| (s, token))) {
                let (row, position) = (segment.row as usize + token, segment.position as usize + token);
                let block = block_table[segment.blocks as usize + position / 16] as usize;
                for head in 0..kv_heads {
                    let columns = head * head_dim..(head + 1) * head_dim;
                    let scales = layout.scales(block, head) + position % 16;
                    let (codes, scale) = coded(format, &k.row(row)[columns.clone()]);
                    for (d, code) in codes.into_iter().enumerate() {
                        expected[layout.keys(block, head) + d * 16 + position % 16] = code;
                    }
                    expected[scales] = scale;
                    let (codes, scale) = coded(format, &v.row(row)[columns]);
                    let values = layout.values(block, head) + position % 16 * padded(head_dim);
                    expected[values..][..padded(head_dim)].fill(0);
                    expected[values..][..head_dim].copy_from_slice(&codes);
                    expected[scales + 16] = scale;
                }
            }
            let wrong = (0..cache.len()).find(|&at| cache[at] & 0x7f != 0x7f && cache[at] != expected[at]);
            assert_eq!(wrong, None, "{level:?} {layout:?}");
            let nan = |bytes: &[u8]| bytes.iter().filter(|&byte| byte & 0x7f == 0x7f).count();
            assert_eq!(nan(&cache), nan(&expected), "{level:?} {layout:?}");
        }
    }
}
