//! `cargo xtask`: work on the repository that cargo has no command for.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use refrain_gpu::loader::{DEFAULT_CACHE_BYTES, KernelCache};
use refrain_testkit::{target_dir, workspace_root};
use std::path::PathBuf;
use xtask::architectures::{Compilers, targets};
use xtask::budget::{ARCHITECTURES, Budget, allow, compare, needs, text};
use xtask::compile::compile_all;
use xtask::models::{Model, published};
use xtask::pack::pack;
use xtask::variants::{budgeted, variants};

/// Work on the repository that cargo has no command for
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compile every kernel that the published models need: into packs, for machines without a compiler; or the budget
    /// of registers and shared memory that tests compare with
    Kernels(Kernels),
}

#[derive(Args)]
struct Kernels {
    /// Architectures
    #[arg(long, value_name = "ARCH,...", value_delimiter = ',', required_unless_present = "budget")]
    arch: Vec<String>,
    /// Multiprocessors or compute units of the cards [default: those of the known cards]
    #[arg(long, value_name = "NUMBER,...", value_delimiter = ',')]
    processors: Vec<u32>,
    /// Folder of the packs [default: target/kernels]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Models [default: all]
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',')]
    models: Vec<String>,
    /// Folder of libnvrtc.so [default: where the system has it, else that of the tests' Python]
    #[arg(long, value_name = "DIR")]
    nvrtc: Option<PathBuf>,
    /// Clang with support for AMD GPUs [default: where the system has it, else Debian's as the tests use it]
    #[arg(long, value_name = "PROGRAM")]
    clang: Option<PathBuf>,
    /// Threads [default: one for each processor]
    #[arg(long)]
    jobs: Option<usize>,
    /// List the kernels instead of compiling them
    #[arg(long, conflicts_with = "budget")]
    list: bool,
    /// Write kernels/budget.json anew, with the compilers of the tests
    #[arg(long, conflicts_with_all = ["arch", "processors", "out", "models", "nvrtc", "clang"])]
    budget: bool,
}

fn main() -> Result<()> {
    let Command::Kernels(options) = Cli::parse().command;
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let cache = KernelCache::open(&target_dir().join("kernel-cache"), DEFAULT_CACHE_BYTES)?;
    if options.budget { write_budget(&cache, jobs) } else { packs(&options, &cache, jobs) }
}

fn packs(options: &Kernels, cache: &KernelCache, jobs: usize) -> Result<()> {
    let models = models(&options.models)?;
    let folder = options.out.clone().unwrap_or_else(|| target_dir().join("kernels"));
    for arch in &options.arch {
        let targets = targets(arch, &options.processors)?;
        if options.list {
            variants(&models, &targets)?.iter().for_each(|kernel| println!("{}", xtask::budget::name(kernel)));
            continue;
        }
        let compilers = Compilers { nvrtc: options.nvrtc.clone(), clang: options.clang.clone() };
        // A compiler that was asked for is the one that is used; else any.
        let compilers = match compilers.open(arch) {
            Ok(_) => compilers,
            Err(error) if options.nvrtc.is_some() || options.clang.is_some() => return Err(error),
            Err(error) => Compilers::of_tests().context(error)?,
        };
        let packed = pack(&models, &targets, &folder, &compilers, Some(cache), jobs)?;
        println!("{}: {} kernels by {}", packed.path.display(), packed.kernels, packed.compiler);
    }
    Ok(())
}

/// The published models of these names; of no names all.
fn models(names: &[String]) -> Result<Vec<Model>> {
    let known = published();
    for name in names {
        if !known.iter().any(|model| model.name == name) {
            let known: Vec<&str> = known.iter().map(|model| model.name).collect();
            bail!("no published model is called {name}; there are: {}", known.join(", "));
        }
    }
    let wanted = |model: &Model| names.is_empty() || names.iter().any(|name| name == model.name);
    Ok(known.into_iter().filter(wanted).collect())
}

fn write_budget(cache: &KernelCache, jobs: usize) -> Result<()> {
    let compilers = Compilers::of_tests().context("a budget is made with the compilers of the tests")?;
    let mut budget = Budget::new();
    let mut wrong = Vec::new();
    for arch in ARCHITECTURES {
        let kernels = budgeted(arch)?;
        let compiled = compile_all(&kernels, arch, &compilers, Some(cache), jobs)?;
        wrong.extend(compiled.failed.iter().map(ToString::to_string));
        let needs = needs(&kernels, arch, &compiled)?;
        let allowed = allow(arch, &needs);
        wrong.extend(compare(&allowed, &needs).into_iter().map(|problem| format!("{arch}: {problem}")));
        budget.insert(arch.to_owned(), allowed);
    }
    let path = workspace_root().join("kernels/budget.json");
    std::fs::write(&path, text(&budget)).with_context(|| path.display().to_string())?;
    let kernels: usize = budget.values().map(std::collections::BTreeMap::len).sum();
    println!("{}: {kernels} kernels", path.display());
    if !wrong.is_empty() {
        bail!("the budget is written, but what no budget allows is left:\n{}", wrong.join("\n"));
    }
    Ok(())
}
