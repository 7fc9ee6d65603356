//! The product on AMX tiles: 32 rows by 2 panels at a time, inputs rounded to bf16, sums in f32.
//!
//! The compiler's intrinsics for AMX are not stable, so this file is written in assembly. A tile is 16 rows of 64
//! bytes; `tdpbf16ps C, A, B` adds to each `C[m][n]` the products of 16 pairs, in ascending order. Rows of A beyond the
//! product's are whatever the workspace holds: they only reach rows of C that are not stored.

use super::{Product, Rounded, Tile, lanes_of};
use crate::matrix::{PANEL, TILE_INPUTS};
use std::arch::asm;
use std::sync::OnceLock;

/// Rows of a tile.
const TILE_ROWS: usize = 16;

/// The configuration that `ldtilecfg` reads: palette 1, eight tiles of 16 rows of 64 bytes.
#[repr(C, align(64))]
struct TileConfiguration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: TileConfiguration = {
    let mut configuration =
        TileConfiguration { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        configuration.bytes_per_row[tile] = 64;
        configuration.rows[tile] = TILE_ROWS as u8;
        tile += 1;
    }
    configuration
};

/// Whether the processor has AMX for BF16 and the system lets this process use it. Asks once; must come before the
/// compute threads start, because the permission is inherited.
pub(crate) fn request_permission() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| {
        let leaf7 = std::arch::x86_64::__cpuid_count(7, 0);
        let (amx_bf16, amx_tile) = (leaf7.edx >> 22 & 1, leaf7.edx >> 24 & 1);
        amx_bf16 == 1 && amx_tile == 1 && permitted_by_system()
    })
}

#[cfg(target_os = "linux")]
fn permitted_by_system() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_ulong = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: the call only widens what the process may use; it fails where the kernel doesn't know it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted_by_system() -> bool {
    false
}

/// Results of one block, `[32][32]`, before they are copied to where they belong.
#[repr(C, align(64))]
struct Sums([f32; 2 * TILE_ROWS * 2 * PANEL]);

/// Bytes between two rows of [`Sums`].
const SUMS_STRIDE: usize = 2 * PANEL * 4;

/// `sums[0..32][0..32] = A B` for 32 rows and 2 panels over `blocks` times 32 inputs.
///
/// # Safety
/// Tiles are configured; `a` is good for 32 rows of `a_stride` bytes, the panels for `blocks` KiB each.
unsafe fn rows32_panels2(a: *const u8, a_stride: usize, panels: [*const u8; 2], blocks: usize, sums: &mut Sums) {
    // SAFETY: reads what the caller promises, writes the whole of `sums`, clobbers the tiles it declares.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm6, [{b0} + {b_stride}*1]",
            "tileloadd tmm7, [{b1} + {b_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{a1} + {a_stride}*1]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a0}, 64", "add {a1}, 64", "add {b0}, 1024", "add {b1}, 1024",
            "dec {blocks}", "jnz 2b",
            "tilestored [{c} + {c_stride}*1], tmm0",
            "tilestored [{c} + {c_stride}*1 + 64], tmm1",
            "tilestored [{c} + {c_stride}*1 + 2048], tmm2",
            "tilestored [{c} + {c_stride}*1 + 2112], tmm3",
            a0 = inout(reg) a => _, a1 = inout(reg) a.add(TILE_ROWS * a_stride) => _,
            b0 = inout(reg) panels[0] => _, b1 = inout(reg) panels[1] => _,
            blocks = inout(reg) blocks => _,
            a_stride = in(reg) a_stride, b_stride = in(reg) 64usize,
            c = in(reg) sums.0.as_mut_ptr(), c_stride = in(reg) SUMS_STRIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// `sums[0..16][0..32] = A B` for 16 rows and 2 panels.
///
/// # Safety
/// As for [`rows32_panels2`], with 16 rows.
unsafe fn rows16_panels2(a: *const u8, a_stride: usize, panels: [*const u8; 2], blocks: usize, sums: &mut Sums) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "tilezero tmm0", "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{a0} + {a_stride}*1]",
            "tileloadd tmm6, [{b0} + {b_stride}*1]",
            "tileloadd tmm7, [{b1} + {b_stride}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a0}, 64", "add {b0}, 1024", "add {b1}, 1024",
            "dec {blocks}", "jnz 2b",
            "tilestored [{c} + {c_stride}*1], tmm0",
            "tilestored [{c} + {c_stride}*1 + 64], tmm1",
            a0 = inout(reg) a => _, b0 = inout(reg) panels[0] => _, b1 = inout(reg) panels[1] => _,
            blocks = inout(reg) blocks => _,
            a_stride = in(reg) a_stride, b_stride = in(reg) 64usize,
            c = in(reg) sums.0.as_mut_ptr(), c_stride = in(reg) SUMS_STRIDE,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Computes one tile of a product.
///
/// # Safety
/// As for [`super::run`]; [`request_permission`] was granted, and nobody else writes this tile.
pub(super) unsafe fn run_tile(product: &Product, tile: &Tile, x: Rounded) {
    let blocks = product.matrix.inputs.div_ceil(TILE_INPUTS);
    let mut sums = Sums([0.0; 2 * TILE_ROWS * 2 * PANEL]);
    // SAFETY: loads the configuration above; the tile state belongs to this thread.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly)) };
    let (end_row, end_panel) = (tile.first_row + tile.rows, tile.first_panel + tile.panels);
    for panel in (tile.first_panel..end_panel).step_by(2) {
        // Without a second panel the first one is computed twice, and the copy is not stored.
        let count = (end_panel - panel).min(2);
        let panels = [product.matrix.panel(panel), product.matrix.panel(panel + count - 1)];
        let mut row = tile.first_row;
        while row < end_row {
            let left = end_row - row;
            let a = x.row(row).cast_const().cast::<u8>();
            // SAFETY: the workspace has whole tiles of rows beyond the last one.
            unsafe {
                if left > TILE_ROWS {
                    rows32_panels2(a, x.stride * 2, panels, blocks, &mut sums);
                } else {
                    rows16_panels2(a, x.stride * 2, panels, blocks, &mut sums);
                }
            }
            let rows = left.min(if left > TILE_ROWS { 2 * TILE_ROWS } else { TILE_ROWS });
            for r in 0..rows {
                for p in 0..count {
                    let from = &sums.0[r * 2 * PANEL + p * PANEL..][..lanes_of(&product.matrix, panel + p)];
                    // SAFETY: these outputs exist in the row.
                    unsafe {
                        let to = product.out_at(row + r, panel + p);
                        std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len());
                    }
                }
            }
            row += rows;
        }
    }
    // SAFETY: gives the tile state back, so that context switches don't carry it.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}
