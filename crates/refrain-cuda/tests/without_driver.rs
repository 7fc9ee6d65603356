//! Where there is no driver, or one that can't be used, everything is an error that says what to do, and nothing panics.

mod common;

use common::fake_driver;
use refrain_cuda::{CudaOptions, CudaRuntime, devices};
use refrain_device::DeviceError;

/// Why no device can be used with these options, or nothing where the machine has a driver.
fn reasons(options: &CudaOptions) -> Option<[String; 2]> {
    let errors = [devices(options).err(), CudaRuntime::open(0, options).err()];
    if errors.iter().any(Option::is_none) {
        eprintln!("this machine has an NVIDIA driver: nothing to see here");
        return None;
    }
    Some(errors.map(|error| match error {
        Some(DeviceError::Unavailable { device: "cuda", why }) => why,
        other => panic!("{other:?}"),
    }))
}

#[test]
fn a_machine_without_a_driver_says_what_was_looked_for_and_what_to_do() {
    for why in reasons(&CudaOptions::default()).into_iter().flatten() {
        assert!(why.contains("libcuda.so.1") && why.contains("install NVIDIA's driver"), "{why}");
    }
}

#[test]
fn a_driver_that_lacks_a_function_is_too_old() {
    let folder = fake_driver(&["-DFAKE_OLD"]);
    let options = CudaOptions { library_dirs: vec![folder.path().to_owned()] };
    for why in reasons(&options).into_iter().flatten() {
        assert!(why.contains("has no cuGraphExecUpdate_v2: the driver is too old"), "{why}");
        assert!(why.contains(&folder.path().display().to_string()), "{why}");
    }
}

#[test]
fn a_driver_that_does_not_start_is_told_with_its_code_and_what_may_help() {
    let cases = [
        ("-DFAKE_INIT=100", "CUDA 13.0", "gave 100 (CUDA_ERROR_NO_DEVICE); nvidia-smi"),
        (
            "-DFAKE_INIT=34",
            "CUDA 13.0",
            "gave 34 (a code that this driver doesn't explain); the library is the toolkit's stub",
        ),
    ];
    for (define, version, reason) in cases {
        let folder = fake_driver(&[define]);
        let options = CudaOptions { library_dirs: vec![folder.path().to_owned()] };
        for why in reasons(&options).into_iter().flatten() {
            assert!(why.contains(version) && why.contains(reason), "{why}");
        }
    }
}
