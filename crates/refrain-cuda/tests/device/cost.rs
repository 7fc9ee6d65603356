//! What a launch costs the host. Figures, not a test: `--ignored --nocapture cost::` prints them.

use super::{ACCUMULATE, Accumulate, kernel, runtime, upload_f32};
use refrain_device::{Runtime, Stream};
use std::sync::Arc;
use std::time::Instant;

const LAUNCHES: usize = 500;
const ROUNDS: usize = 40;

/// Host microseconds of one launch and microseconds until all are done, for each launch, at best.
fn time(runtime: &Arc<dyn Runtime>, stream: &Stream, mut enqueue: impl FnMut(&Arc<dyn Runtime>)) -> (f64, f64) {
    let mut best = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        stream.synchronize().unwrap();
        let start = Instant::now();
        enqueue(runtime);
        let host = start.elapsed().as_secs_f64();
        stream.synchronize().unwrap();
        let all = start.elapsed().as_secs_f64();
        best = (best.0.min(host), best.1.min(all));
    }
    let each = 1e6 / LAUNCHES as f64;
    (best.0 * each, best.1 * each)
}

#[test]
#[ignore = "prints figures of the machine"]
fn launches() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    let x = upload_f32(&runtime, &stream, &[1.0; 256]);
    let out = upload_f32(&runtime, &stream, &[1.0; 256]);
    let small = Accumulate::new(function, &x, &out, 0.5, 256);
    eprintln!("us per launch of a kernel of one block, {LAUNCHES} in a row, best of {ROUNDS}: host, until done");
    for overlap in [false, true] {
        let enqueue = |runtime: &Arc<dyn Runtime>| {
            for _ in 0..LAUNCHES {
                small.enqueue(runtime, stream.id(), overlap).unwrap();
            }
        };
        let (host, all) = time(&runtime, &stream, enqueue);
        eprintln!("eager, overlap {overlap}: {host:.2} {all:.2}");
        runtime.begin_capture(stream.id()).unwrap();
        enqueue(&runtime);
        let graph = runtime.end_capture(stream.id()).unwrap();
        // SAFETY: the memory stays until the stream has passed.
        let (host, all) = time(&runtime, &stream, |runtime| unsafe {
            runtime.launch_graph(graph, stream.id()).unwrap();
        });
        eprintln!("graph, overlap {overlap}: {host:.3} {all:.2}");
        runtime.destroy_graph(graph);
    }
}
