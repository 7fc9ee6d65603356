//! What the operations of simulated threads cost: `cargo run -p refrain-sim --example switches`. Nanoseconds of a thread's
//! part in one operation, at best of a few runs of 1000 blocks of 256 threads.

use refrain_device::{DeviceError, DeviceMemory, FunctionId, KernelSource, Launch, Runtime, Stream};
use refrain_sim::{SimOptions, SimRuntime};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const BLOCKS: u32 = 1000;
const TIMES: u32 = 10;
const RUNS: usize = 10;

/// What each thread does ten times.
const OPERATIONS: [(&str, &str); 5] = [
    ("nothing", ""),
    ("kx_sync", "kx_sync();"),
    ("kx_shuffle_xor", "x += kx_shuffle_xor<1>(x);"),
    ("kx_wave_sum", "x = kx_wave_sum(x);"),
    ("kx_mma_bf16", "kx_mma_bf16(d, a, b);"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let sim = SimRuntime::new(SimOptions::default());
    let runtime: Arc<dyn Runtime> = sim.clone();
    let out = DeviceMemory::new(&runtime, BLOCKS as usize * 256 * 4, "results")?;
    let stream = Stream::new(&runtime)?;
    for (name, operation) in OPERATIONS {
        let function = load(&sim, operation)?;
        let launch = Launch { function, name, grid: [BLOCKS, 1, 1], threads: 256, shared_bytes: 0, overlap: false };
        let before = sim.counters().switches;
        let mut best = f64::MAX;
        for _ in 0..RUNS {
            let from = Instant::now();
            // SAFETY: the argument is the address of a float for each thread.
            unsafe { sim.launch(stream.id(), &launch, &out.base().0.to_ne_bytes())? };
            best = best.min(from.elapsed().as_secs_f64());
        }
        let (calls, runs) = (f64::from(BLOCKS * 256 * TIMES), RUNS as f64);
        let switches = (sim.counters().switches - before) as f64 / runs / calls;
        println!("{name:16} {:7.2} ns, {switches:.2} switches", best * 1e9 / calls);
    }
    Ok(())
}

fn load(sim: &SimRuntime, operation: &str) -> Result<FunctionId, DeviceError> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let header = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name.to_owned(), text)
    };
    let text = format!(
        "#include \"kx.h\"
        struct Args {{ f32* out; }};
        KX_KERNEL(operation, Args, 256) {{
            f32 x = 1.0f, d[4] = {{}};
            const u32 a[4] = {{}}, b[2] = {{}};
            for (int i = 0; i < {TIMES}; i++) {{ {operation} }}
            args.out[kx_block_x() * 256 + kx_tid()] = x + d[0] + (f32)(a[0] + b[0]);
        }}"
    );
    let source = KernelSource {
        name: "operation.cu".to_owned(),
        text,
        headers: vec![header("kx.h"), header("kx_sim.h")],
        defines: Vec::new(),
    };
    let image = sim.compiler()?.compile(&source, &sim.info().arch)?.image;
    sim.function(sim.load_module(&image)?, "operation", 0)
}
