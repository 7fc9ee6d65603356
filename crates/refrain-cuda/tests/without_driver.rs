//! Where there is no driver, everything is an error that says what to do, and nothing panics.

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
fn a_library_without_the_drivers_functions_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mathematics = ["/lib/x86_64-linux-gnu/libm.so.6", "/usr/lib64/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
    let other = mathematics.iter().find(|path| std::path::Path::new(path).exists()).expect("C's mathematics");
    std::os::unix::fs::symlink(other, folder.path().join("libcuda.so.1")).unwrap();
    let options = CudaOptions { library_dirs: vec![folder.path().to_owned()] };
    for why in reasons(&options).into_iter().flatten() {
        assert!(why.contains("has no cuInit: the driver is too old"), "{why}");
        assert!(why.contains(&folder.path().display().to_string()), "{why}");
    }
}
