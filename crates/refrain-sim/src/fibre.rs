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
pub(crate) use aarch64::{prepare, rendezvous, switch};
pub(crate) use stacks::Stacks;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) use ucontext::{prepare, rendezvous, switch};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{prepare, rendezvous, switch};

use std::ffi::c_void;

/// A suspended fibre; null where there is none.
pub(crate) type Suspended = *mut c_void;

/// What a fibre runs; it never returns.
pub(crate) type Entry = unsafe extern "C" fn(*mut c_void) -> !;

/// Who goes on, and with which value as the result of what suspended it. Fits two registers.
#[repr(C)]
pub(crate) struct Resume {
    pub to: Suspended,
    pub value: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fibre that is asked by the test and answers with what it got before.
    struct Talk {
        main: Suspended,
        fibre: Suspended,
        ask: unsafe fn(*mut Talk, f64) -> u32,
        heard: Vec<(f64, u32)>,
    }

    unsafe extern "C" fn answer(talk: *mut c_void) -> ! {
        let talk = talk.cast::<Talk>();
        let mut own = 1.0f64;
        loop {
            // SAFETY: the test keeps it alive, and only one of the two runs at a time.
            unsafe {
                let value = ((*talk).ask)(talk, own);
                (*talk).heard.push((own, value));
            }
            // A value that lives in a register across the switch.
            own = own * 2.0 + 0.5;
        }
    }

    /// What `answer` calls through the rendezvous: suspends it and resumes the test.
    unsafe extern "C" fn hand_over(talk: *mut Talk, a: u64, b: u64, c: u64, d: u64, own: Suspended) -> Resume {
        assert_eq!([a, b, c, d], [1, 2, 3, 4]);
        // SAFETY: as above.
        unsafe {
            (*talk).fibre = own;
            Resume { to: (*talk).main, value: 0 }
        }
    }

    rendezvous!(meet, hand_over);

    unsafe fn ask_by_assembly(talk: *mut Talk, _own: f64) -> u32 {
        type Meet = unsafe extern "C" fn(*mut Talk, u64, u64, u64, u64) -> u32;
        // SAFETY: this is how kernels call it.
        unsafe { std::mem::transmute::<*const (), Meet>(meet as *const ())(talk, 1, 2, 3, 4) }
    }

    unsafe fn ask_by_library(talk: *mut Talk, _own: f64) -> u32 {
        // SAFETY: as above.
        unsafe { ucontext::suspend(|own| hand_over(talk, 1, 2, 3, 4, own)) }
    }

    type Prepare = unsafe fn(*mut u8, usize, Entry, *mut c_void) -> Suspended;
    type Switch = unsafe extern "C" fn(*mut Suspended, Suspended, u32);

    fn talk(prepare: Prepare, switch: Switch, ask: unsafe fn(*mut Talk, f64) -> u32) {
        let mut stacks = Stacks::new();
        let stack = stacks.take().unwrap();
        let none = std::ptr::null_mut();
        let mut talk = Talk { main: none, fibre: none, ask, heard: Vec::new() };
        let data = &raw mut talk;
        let mut outside = 0.25f64;
        // SAFETY: the stack is fresh, and the fibre is never resumed after it.
        unsafe {
            (*data).fibre = prepare(stacks.top(stack), stacks.bytes(), answer, data.cast());
            for value in [0, 7, 8, 9] {
                switch(&raw mut (*data).main, (*data).fibre, value);
                outside *= 3.0;
            }
        }
        assert_eq!(talk.heard, [(1.0, 7), (2.5, 8), (5.5, 9)]);
        assert_eq!(outside, 0.25 * 81.0);
    }

    #[test]
    fn a_fibre_goes_on_where_it_stopped() {
        talk(prepare, switch, ask_by_assembly);
    }

    #[test]
    fn so_it_does_on_a_processor_without_assembly_of_ours() {
        talk(ucontext::prepare, ucontext::switch, ask_by_library);
    }
}
