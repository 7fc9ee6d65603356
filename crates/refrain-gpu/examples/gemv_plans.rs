//! Times products of one row, in the shapes of a model, with every plan that is worth a try: `gemv_plans DEVICE`, where
//! the device is `cuda:0` or the like. The constants of `GemvPlan::choose` are chosen by what it prints, best first.

use refrain_cuda::{CudaOptions, CudaRuntime};
use refrain_device::{DeviceError, Runtime};
use refrain_gpu::Target;
use refrain_gpu::check::{Rig, plans};
use refrain_hip::{HipOptions, HipRuntime};
use std::sync::Arc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).ok_or("usage: gemv_plans cuda:0 | hip:0")?;
    let runtime = open(&device)?;
    let target = Target::from(runtime.info());
    let rig = Rig::new(runtime, 1, true)?;
    let mut rows = Vec::new();
    for case in plans(&target) {
        let outcome = (case.run)(&rig)?;
        let seconds = outcome.seconds.ok_or("nothing was timed")?;
        let (shape, plan) =
            case.name.split_once(", for ").or(case.name.split_once(", ")).ok_or("a name without a plan")?;
        let verdict = if outcome.passes() { "" } else { "  WRONG" };
        let rate = outcome.bytes as f64 / seconds / 1e12;
        rows.push((shape.to_owned(), seconds, format!("{:8.2} us  {rate:.2} TB/s  {plan}{verdict}", seconds * 1e6)));
    }
    let mut shapes: Vec<String> = rows.iter().map(|(shape, ..)| shape.clone()).collect();
    shapes.dedup();
    for shape in shapes {
        let mut of_shape: Vec<_> = rows.iter().filter(|(name, ..)| *name == shape).collect();
        of_shape.sort_by(|a, b| a.1.total_cmp(&b.1));
        println!("{shape}");
        of_shape.iter().for_each(|(.., line)| println!("{line}"));
    }
    Ok(())
}

fn open(device: &str) -> Result<Arc<dyn Runtime>, DeviceError> {
    let (kind, index) = device.split_once(':').unwrap_or((device, "0"));
    let index = index.parse().expect("the device is a kind and a number, like cuda:0");
    Ok(match kind {
        "hip" => HipRuntime::open(&HipOptions::default(), index)?,
        _ => CudaRuntime::open(index, &CudaOptions::default())?,
    })
}
