//! `refrain explain`.

use anyhow::Context;
use refrain::cli::explain::ExplainArgs;
use refrain::load::{Device, MODE_SETTINGS, prepare};
use refrain_device::BLOCK_TOKENS;
use refrain_program::{ExplainOptions, PassConfig, explain};

use super::ceilings::ceilings;
use super::{Invocation, print};

/// Prints what the model is made of, what it needs and what it can cost at best.
pub fn run(args: &ExplainArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let prepared = prepare(&args.engine.load_options())?;
    let (ceilings, ceilings_source) = ceilings(&prepared.device, args.options.bandwidth, args.options.flops)?;
    let options = ExplainOptions {
        model: prepared.model.name.clone(),
        tokens: args.options.tokens,
        block_tokens: BLOCK_TOKENS,
        ceilings,
        ceilings_source,
        passes: prepared.modes.compile_options().map_or_else(PassConfig::none, |compile| compile.passes),
        fuses_any_product: matches!(prepared.device, Device::Cpu(_)),
    };
    let explanation = explain(&prepared.program, &options);
    let mut modes = prepared.settings.among(&MODE_SETTINGS);
    modes.resolve(invocation.origins);
    let text = if args.options.json {
        let mut json = serde_json::to_value(&explanation).context("can't write the explanation")?;
        json["modes"] = modes.to_json().into();
        format!("{json:#}\n")
    } else {
        format!("{explanation}\nModes\n{modes}")
    };
    print(text.as_bytes())
}
