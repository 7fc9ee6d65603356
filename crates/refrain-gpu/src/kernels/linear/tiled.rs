//! `kernels/gemm.cu` and `kernels/gemm_mma.cu`: products of many rows.

use super::{Linear, mma_define};
use crate::{Extent, Kernel, LaunchSpec, StepPointers, Target};

/// How a product of many rows is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// `gemm_mma`: on tensor cores.
    Mma {
        /// Rows and columns of a block's tile.
        shape: [u32; 2],
        /// How many waves share them, rows and columns.
        waves: [u32; 2],
        /// Steps of 32 inputs that shared memory holds.
        stages: u32,
    },
    /// `gemm`: by multiply-adds, 64 by 64.
    Fma,
}

/// Rows and columns of a tile of `gemm`.
const FMA_TILE: u32 = 64;

impl Tile {
    /// The tiles for a product in steps of at most `end` rows, each with the most rows for which it is the best; the last
    /// has no end. With few rows the weights decide, and deep stages keep them coming; with many, large tiles reuse what
    /// was read. The last one is made for `end`, so that a range of rows computes little that no row is there for.
    pub fn choices(linear: &Linear, target: &Target, end: u32) -> Vec<(u32, Tile)> {
        if !linear.suits_mma(target) {
            return vec![(u32::MAX, Tile::Fma)];
        }
        let mut choices: Vec<(u32, Tile)> = [16, 32, 64].map(|rows| (rows, Tile::of(rows))).to_vec();
        choices.retain(|(rows, _)| *rows < end);
        choices.push((u32::MAX, Tile::of(end)));
        choices.retain(|(_, tile)| tile.shared_bytes() <= target.shared_bytes);
        choices.last_mut().expect("16 by 64 fits where there are tensor cores").0 = u32::MAX;
        choices
    }

    /// On tensor cores, for so many rows.
    fn of(rows: u32) -> Tile {
        let (shape, waves, stages) = match rows {
            0..=16 => ([16, 64], [1, 4], 8),
            17..=32 => ([32, 64], [1, 4], 6),
            33..=48 => ([48, 64], [1, 4], 4),
            49..=64 => ([64, 64], [2, 2], 4),
            // As many tiles as of 128 rows, no larger than they must be.
            _ => ([rows.div_ceil(rows.div_ceil(128)).next_multiple_of(32), 128], [2, 2], 4),
        };
        Tile::Mma { shape, waves, stages }
    }

    fn shared_bytes(&self) -> u32 {
        match *self {
            Tile::Mma { shape: [m, n], stages, .. } => stages * (m + n) * 32 * 2,
            Tile::Fma => 0,
        }
    }
}

/// A product by a kernel for many rows.
#[derive(Clone, Copy, Debug)]
pub struct Tiled {
    /// The operands.
    pub linear: Linear,
    /// How it is cut.
    pub tile: Tile,
}

impl Tiled {
    /// One launch.
    pub fn launches(&self, _: &Target, step: &StepPointers) -> Vec<LaunchSpec> {
        let linear = &self.linear;
        let kernel = |source, entry, threads| {
            let kernel = Kernel::new(source, entry, threads).define_type("OUT_T", linear.out.dtype);
            kernel.define("INPUTS", linear.x.width)
        };
        let (kernel, [m, n]) = match self.tile {
            Tile::Mma { shape: [m, n], waves, stages } => {
                let kernel = kernel("gemm_mma.cu", "gemm_mma", 32 * waves[0] * waves[1]);
                let kernel = kernel.define_type("T", linear.dtype).define("MMA", mma_define(linear.dtype));
                let kernel = kernel.define("TILE_M", m).define("TILE_N", n).define("STAGES", stages);
                let kernel = kernel.define("WAVES_M", waves[0]).define("WAVES_N", waves[1]);
                let pair = 2 * linear.out.dtype.bytes() as u64;
                let paired = linear.out.base.0.is_multiple_of(pair) && linear.out.stride.is_multiple_of(2);
                (kernel.define("PAIRED", u32::from(paired)).shared(self.tile.shared_bytes()), [m, n])
            }
            Tile::Fma => {
                let kernel = kernel("gemm.cu", "gemm", 256).define("WIDE", u32::from(linear.is_wide()));
                (kernel.define_type("X_T", linear.x.dtype).define_type("W_T", linear.dtype), [FMA_TILE, FMA_TILE])
            }
        };
        let rows = Extent::Each { count: linear.count, per: m };
        let columns = Extent::Fixed(linear.out.width.div_ceil(n));
        vec![LaunchSpec::on_grid(kernel, [rows, columns, Extent::Fixed(1)], &linear.arguments(step))]
    }
}
