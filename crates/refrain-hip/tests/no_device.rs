//! A machine without a device: with no HIP at all, and with Debian's real one.

mod support;

use refrain_device::DeviceError;
use refrain_hip::{HipOptions, HipRuntime, devices};
use refrain_testkit::skip;
use std::path::Path;
use support::debian_hip;

#[test]
fn a_real_hip_without_a_device_fails_cleanly_and_says_what_to_do() {
    if Path::new("/dev/kfd").exists() {
        return skip("HIP without a device", "this machine has one");
    }
    let Some(library) = debian_hip() else { return };
    let options = HipOptions { library: Some(library), ..HipOptions::default() };
    for error in [devices(&options).unwrap_err(), HipRuntime::open(&options, 0).map(drop).unwrap_err()] {
        assert!(matches!(error, DeviceError::Unavailable { device: "hip", .. }), "{error}");
        let text = error.to_string();
        for part in ["HIP 5.2.", "libamdhip64.so.5) finds no GPU", "/dev/kfd does not exist", "kernel driver"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn no_hip_at_all_says_what_was_looked_for() {
    let nowhere = tempfile::tempdir().unwrap();
    let options = HipOptions { toolkit_root: nowhere.path().to_owned(), ..HipOptions::default() };
    match HipRuntime::open(&options, 0).map(drop) {
        Err(DeviceError::Unavailable { device: "hip", why }) => {
            assert!(why.contains("libgalaxyhip.so.5") || why.contains("finds no GPU"), "{why}");
        }
        Err(other) => panic!("{other}"),
        // A machine with a GPU of AMD's and its software.
        Ok(()) => assert!(Path::new("/dev/kfd").exists()),
    }
}
