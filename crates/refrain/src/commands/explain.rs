//! `refrain explain`.

use anyhow::Context;
use refrain::cli::explain::ExplainArgs;
use refrain::load::{Device, MODE_SETTINGS, Passes, Prepared, prepare};
use refrain_device::{BLOCK_TOKENS, Cell};
use refrain_engine::PolicyMode;
use refrain_program::{ExplainOptions, PassConfig, explain};

use super::ceilings::{ceilings, why_unknown};
use super::{Invocation, print};

/// Prints what the model is made of, what it needs and what it can cost at best.
pub fn run(args: &ExplainArgs, invocation: &Invocation<'_>) -> anyhow::Result<()> {
    let options = args.engine.load_options();
    let policy = options.policy.mode;
    let prepared = prepare(&options)?;
    // Whoever wants to see passes and modes need not know what a GPU can do.
    let (ceilings, ceilings_source) = match why_unknown(&prepared.device, args.options.flops)? {
        Some(why) => (None, why),
        None => {
            let (ceilings, source) = ceilings(&prepared.device, args.options.bandwidth, args.options.flops)?;
            (Some(ceilings), source)
        }
    };
    let compile = prepared.modes.compile_options();
    let options = ExplainOptions {
        model: prepared.model.name.clone(),
        tokens: args.options.tokens,
        block_tokens: BLOCK_TOKENS,
        ceilings,
        ceilings_source,
        passes: compile.as_ref().map_or_else(PassConfig::none, |compile| compile.passes),
        endpoints: compile.map_or_else(Vec::new, |compile| compile.endpoints),
        fuses_any_product: matches!(prepared.device, Device::Cpu(_)),
    };
    let explanation = explain(&prepared.program, &options);
    let passes = Passes::of(&prepared.program, &prepared.device);
    let mut modes = prepared.settings.among(&MODE_SETTINGS);
    modes.push_or("policy", policy.map(|policy| effective(policy, &prepared)), PolicyMode::default());
    modes.resolve(invocation.origins);
    let text = if args.options.json {
        let mut json = serde_json::to_value(&explanation).context("can't write the explanation")?;
        json["passes"] = passes.to_json();
        json["modes"] = modes.to_json().into();
        format!("{json:#}\n")
    } else {
        format!("{explanation}\n{passes}\nModes\n{modes}")
    };
    print(text.as_bytes())
}

/// A policy, and why it makes no difference where that is known: on a GPU it is once graphs have been recorded.
fn effective(policy: PolicyMode, prepared: &Prepared) -> String {
    let compiled = prepared.modes.compile_options().map(|_| Cell { compiled: true, ..Cell::EAGER });
    let cells: Vec<Cell> = [Cell::EAGER].into_iter().chain(compiled).collect();
    match policy.without_effect(&cells) {
        Some(why) if matches!(prepared.device, Device::Cpu(_)) => format!("{policy}, without effect: {why}"),
        _ => policy.to_string(),
    }
}
