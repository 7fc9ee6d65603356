//! The tensor core: `mma.sync.m16n8k16` and `ldmatrix`, with the fragments as in the PTX manual ("Matrix Fragments for
//! mma.m16n8k16 with floating point type", "ldmatrix").

const LANES: usize = 32;
type Operands = [[*mut u32; 3]; 64];

/// Whether this processor has 256-bit registers. The results are the same.
pub(crate) fn wide_registers() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// `d[16, 8] += a[16, 16] b[16, 8]` for the fragments of all lanes. The sum runs over k in order; every product is exact,
/// as those of tensor cores.
///
/// # Safety
/// Each of the 32 lanes gives valid fragments: d of 4 f32, a of 4 words, b of 2 words. `wide` is what
/// [`wide_registers`] said.
pub(super) unsafe fn multiply(lanes: &Operands, bf16: bool, wide: bool) {
    // SAFETY: by contract.
    unsafe {
        match (bf16, wide) {
            #[cfg(target_arch = "x86_64")]
            (true, true) => multiply_wide::<true>(lanes),
            #[cfg(target_arch = "x86_64")]
            (false, true) => multiply_wide::<false>(lanes),
            (true, _) => multiply_any::<true>(lanes),
            (false, _) => multiply_any::<false>(lanes),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_wide<const BF16: bool>(lanes: &Operands) {
    // SAFETY: by contract of `multiply`.
    unsafe { multiply_any::<BF16>(lanes) }
}

#[inline(always)]
unsafe fn multiply_any<const BF16: bool>(lanes: &Operands) {
    let mut a = [[0.0f32; 16]; 16];
    let mut b = [[0.0f32; 8]; 16];
    let mut d = [[0.0f32; 8]; 16];
    for (lane, &[to, left, right]) in lanes.iter().enumerate().take(LANES) {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        // SAFETY: by contract of `multiply`.
        let (own, left, right) =
            unsafe { (to.cast::<[f32; 4]>().read(), left.cast::<[u32; 4]>().read(), right.cast::<[u32; 2]>().read()) };
        for (index, &word) in left.iter().enumerate() {
            let (row, column) = (group + index % 2 * 8, pair + index / 2 * 8);
            [a[row][column], a[row][column + 1]] = halves::<BF16>(word);
        }
        for (index, &word) in right.iter().enumerate() {
            let row = pair + index * 8;
            [b[row][group], b[row + 1][group]] = halves::<BF16>(word);
        }
        for half in 0..2 {
            d[group + 8 * half][pair] = own[2 * half];
            d[group + 8 * half][pair + 1] = own[2 * half + 1];
        }
    }
    for (sums, left) in d.iter_mut().zip(&a) {
        for (&factor, right) in left.iter().zip(&b) {
            for (sum, &value) in sums.iter_mut().zip(right) {
                *sum += factor * value;
            }
        }
    }
    for (lane, &[to, ..]) in lanes.iter().enumerate().take(LANES) {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        let own = [d[group][pair], d[group][pair + 1], d[group + 8][pair], d[group + 8][pair + 1]];
        // SAFETY: by contract of `multiply`.
        unsafe { to.cast::<[f32; 4]>().write(own) };
    }
}

/// The two 16-bit elements of a word, the lower one first.
#[inline(always)]
fn halves<const BF16: bool>(word: u32) -> [f32; 2] {
    if BF16 {
        [f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]
    } else {
        [from_f16(word & 0xffff), from_f16(word >> 16)]
    }
}

#[inline(always)]
fn from_f16(bits: u32) -> f32 {
    let (sign, rest) = ((bits & 0x8000) << 16, bits & 0x7fff);
    let magnitude = if rest >= 0x7c00 {
        0x7f80_0000 | (rest & 0x3ff) << 13
    } else {
        // Moves the exponent from a bias of 15 to one of 127; exact for subnormals too.
        (f32::from_bits(rest << 13) * f32::from_bits((127 + 112) << 23)).to_bits()
    };
    f32::from_bits(sign | magnitude)
}

/// Matrices of 8 rows of 8 16-bit elements. Lane `8 j + i` gives the address of row `i` of matrix `j`; lane `l` gets
/// elements `2 (l % 4)` and the next of row `l / 4`, or, transposed, of column `l / 4`.
///
/// # Safety
/// The first `8 * matrices` lanes give rows of 16 bytes, aligned to them; all 32 give `matrices` words to write to.
pub(super) unsafe fn load(lanes: &Operands, matrices: usize, transposed: bool) {
    for matrix in 0..matrices {
        let mut rows = [[0u16; 8]; 8];
        for (index, row) in rows.iter_mut().enumerate() {
            // SAFETY: by contract.
            *row = unsafe { lanes[8 * matrix + index][1].cast::<[u16; 8]>().read() };
        }
        for (lane, &[to, ..]) in lanes.iter().enumerate().take(LANES) {
            let (group, pair) = (lane / 4, lane % 4 * 2);
            let (low, high) = if transposed {
                (rows[pair][group], rows[pair + 1][group])
            } else {
                (rows[group][pair], rows[group][pair + 1])
            };
            // SAFETY: by contract.
            unsafe { to.add(matrix).write(u32::from(low) | u32::from(high) << 16) };
        }
    }
}
