//! A device that is lost, in a process of its own.

use super::{ACCUMULATE, Accumulate, kernel, runtime, upload_f32};
use refrain_device::{DeviceError, DeviceMemory, DevicePtr, Runtime, Stream};
use std::process::Command;
use std::sync::Arc;

pub(crate) const TRAP: &str = "
struct TrapArgs { const f32* x; f32* out; f32 factor; u32 count; };
KX_KERNEL(accumulate, TrapArgs, 256) { if (args.count == 256) asm volatile(\"trap;\"); }";

/// Runs one of the ignored tests below in another process.
fn in_another_process(test: &str) {
    if runtime().is_none() {
        return;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn an_address_that_is_nobodys_loses_the_device() {
    in_another_process("errors::child_illegal_address");
}

#[test]
fn a_trap_loses_the_device() {
    in_another_process("errors::child_trap");
}

#[test]
#[ignore = "loses the device: another test runs it in a process of its own"]
fn child_illegal_address() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let x = upload_f32(&runtime, &stream, &[1.0; 256]);
    let function = kernel(&runtime, ACCUMULATE, "accumulate", 0);
    let mut launch = Accumulate::new(function, &x, &x, 1.0, 256);
    launch.arguments[8..16].copy_from_slice(&DevicePtr(0x10).0.to_le_bytes());
    launch.enqueue(&runtime, stream.id(), false).unwrap();
    let code = lost(&runtime, &stream);
    assert_eq!(code, 700);
    // What was made can still be dropped without a panic.
    drop((x, stream));
}

#[test]
#[ignore = "loses the device: another test runs it in a process of its own"]
fn child_trap() {
    let Some(runtime) = runtime() else { return };
    let stream = Stream::new(&runtime).unwrap();
    let x = upload_f32(&runtime, &stream, &[1.0; 256]);
    let function = kernel(&runtime, TRAP, "accumulate", 0);
    Accumulate::new(function, &x, &x, 1.0, 256).enqueue(&runtime, stream.id(), false).unwrap();
    let code = lost(&runtime, &stream);
    assert!([715, 719].contains(&code), "{code}");
}

/// The code with which the device is lost; every later call says so too.
fn lost(runtime: &Arc<dyn Runtime>, stream: &Stream) -> i64 {
    let error = stream.synchronize().unwrap_err();
    eprintln!("{error}");
    let DeviceError::Lost { device, code, .. } = error else { panic!("{error:?}") };
    assert_eq!(device, "cuda:0");
    let later = DeviceMemory::new(runtime, 1 << 20, "a test").err();
    assert!(matches!(later, Some(DeviceError::Lost { .. })), "{later:?}");
    assert!(matches!(stream.synchronize(), Err(DeviceError::Lost { .. })));
    code
}
