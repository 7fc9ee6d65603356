//! Flags of `refrain device`.

use clap::{Args, ValueEnum};
use refrain_gpu::check::Scale;

use super::engine::DeviceArgs;

/// Flags of `refrain device`.
#[derive(Args, Clone, Debug)]
pub struct DeviceCommandArgs {
    /// Which devices; all with `auto`.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// Don't measure anything, only list
    #[arg(long)]
    pub no_measure: bool,

    /// Compare every kernel with double precision on fresh random inputs, on each GPU that is listed; it is an error if
    /// one is wrong or can't be checked
    #[arg(long)]
    pub check: bool,

    /// Operands of the check: ragged (small, of all odd sizes) or model (those of a 4B model, timed) [default: ragged]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "SHAPES", requires = "check")]
    pub shapes: Option<ShapesArg>,

    /// Check only kernels whose name or case contains this
    #[arg(long, value_name = "TEXT", requires = "check")]
    pub only: Option<String>,

    /// Seed of the check's random inputs [default: from the clock]
    #[arg(long, value_name = "SEED", requires = "check")]
    pub check_seed: Option<u64>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// `--shapes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShapesArg {
    /// Small and odd
    Ragged,
    /// Those of a 4B model
    Model,
}

impl From<ShapesArg> for Scale {
    fn from(shapes: ShapesArg) -> Scale {
        match shapes {
            ShapesArg::Ragged => Scale::Ragged,
            ShapesArg::Model => Scale::Model,
        }
    }
}
