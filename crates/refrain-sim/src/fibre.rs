//! Fibres: stacks, and going from one to another. A switch saves what a called function must preserve, and costs about
//! as much as a call.

#[cfg(target_arch = "aarch64")]
mod aarch64;
mod stacks;
#[cfg(any(test, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod ucontext;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{prepare, switch};
pub(crate) use stacks::Stacks;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) use ucontext::{prepare, switch};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{prepare, switch};

use std::ffi::c_void;

/// A suspended fibre; null where there is none.
pub(crate) type Suspended = *mut c_void;

/// What a fibre runs; it never returns.
pub(crate) type Entry = unsafe extern "C" fn(*mut c_void) -> !;

#[cfg(test)]
mod tests {
    use super::*;

    type Prepare = unsafe fn(*mut u8, usize, Entry, *mut c_void) -> Suspended;
    type Switch = unsafe fn(*mut Suspended, Suspended);

    struct Ping {
        main: Suspended,
        fibre: Suspended,
        switch: Switch,
        seen: Vec<f64>,
    }

    unsafe extern "C" fn ping(data: *mut c_void) -> ! {
        let ping = data.cast::<Ping>();
        let mut value = 1.0f64;
        loop {
            // SAFETY: the test keeps it alive, and only one of the two runs at a time.
            unsafe {
                (*ping).seen.push(value);
                ((*ping).switch)(&raw mut (*ping).fibre, (*ping).main);
            }
            // A value that lives in a register across the switch.
            value = value * 2.0 + 0.5;
        }
    }

    fn back_and_forth(prepare: Prepare, switch: Switch) {
        let mut stacks = Stacks::new();
        let stack = stacks.take().unwrap();
        let mut ping = Ping { main: std::ptr::null_mut(), fibre: std::ptr::null_mut(), switch, seen: Vec::new() };
        let data = &raw mut ping;
        let mut outside = 0.25f64;
        // SAFETY: the stack is fresh, and the fibre is never resumed after it.
        unsafe {
            (*data).fibre = prepare(stacks.top(stack), stacks.bytes(), ping_entry(), data.cast());
            for _ in 0..4 {
                switch(&raw mut (*data).main, (*data).fibre);
                outside *= 3.0;
            }
        }
        assert_eq!(ping.seen, [1.0, 2.5, 5.5, 11.5]);
        assert_eq!(outside, 0.25 * 81.0);
    }

    fn ping_entry() -> Entry {
        ping
    }

    #[test]
    fn a_fibre_goes_on_where_it_stopped() {
        back_and_forth(prepare, |save, to| {
            // SAFETY: as `switch`.
            unsafe { switch(save, to) }
        });
    }

    #[test]
    fn so_it_does_on_a_processor_without_assembly_of_ours() {
        back_and_forth(ucontext::prepare, ucontext::switch);
    }
}
