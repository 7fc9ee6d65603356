//! `refrain explain`.

use refrain::cli::explain::ExplainArgs;
use refrain::load::prepare;

use super::print;

/// Prints what the model is made of.
pub fn run(args: &ExplainArgs) -> anyhow::Result<()> {
    let prepared = prepare(&args.engine.load_options())?;
    print(prepared.program.to_string().as_bytes())
}
