//! Switching on AArch64, AAPCS64: x19 to x30 and the lower halves of v8 to v15 are preserved.
//!
//! A suspended fibre is a stack pointer to those; x30 is where it goes on. It is jumped to, not returned to, see
//! `x86_64.rs`.

use super::{Entry, Suspended};
use std::arch::naked_asm;
use std::ffi::c_void;

/// Suspends the caller into `*save` and lets `to` go on with `value` as the result of what suspended it.
///
/// # Safety
/// `to` is from [`prepare`] or was saved and not yet resumed, and its stack still exists.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut Suspended, to: Suspended, value: u32) {
    naked_asm!(
        "sub sp, sp, #160",
        "stp x19, x20, [sp, #0]",
        "stp x21, x22, [sp, #16]",
        "stp x23, x24, [sp, #32]",
        "stp x25, x26, [sp, #48]",
        "stp x27, x28, [sp, #64]",
        "stp x29, x30, [sp, #80]",
        "stp d8, d9, [sp, #96]",
        "stp d10, d11, [sp, #112]",
        "stp d12, d13, [sp, #128]",
        "stp d14, d15, [sp, #144]",
        "mov x9, sp",
        "str x9, [x0]",
        "mov sp, x1",
        "mov w0, w2",
        "ldp x19, x20, [sp, #0]",
        "ldp x21, x22, [sp, #16]",
        "ldp x23, x24, [sp, #32]",
        "ldp x25, x26, [sp, #48]",
        "ldp x27, x28, [sp, #64]",
        "ldp x29, x30, [sp, #80]",
        "ldp d8, d9, [sp, #96]",
        "ldp d10, d11, [sp, #112]",
        "ldp d12, d13, [sp, #128]",
        "ldp d14, d15, [sp, #144]",
        "add sp, sp, #160",
        "br x30",
    )
}

/// `rendezvous!(name, inner)`: a function for kernels to call, of a worker and up to four more integers or pointers. It
/// suspends the calling fibre, gives it to `inner` behind the arguments, and resumes whom `inner` chose.
macro_rules! rendezvous {
    ($(#[$meta:meta])* $name:ident, $inner:path) => {
        $(#[$meta])*
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                "sub sp, sp, #160",
                "stp x19, x20, [sp, #0]",
                "stp x21, x22, [sp, #16]",
                "stp x23, x24, [sp, #32]",
                "stp x25, x26, [sp, #48]",
                "stp x27, x28, [sp, #64]",
                "stp x29, x30, [sp, #80]",
                "stp d8, d9, [sp, #96]",
                "stp d10, d11, [sp, #112]",
                "stp d12, d13, [sp, #128]",
                "stp d14, d15, [sp, #144]",
                "mov x5, sp",
                "bl {inner}",
                "mov sp, x0",
                "mov w0, w1",
                "ldp x19, x20, [sp, #0]",
                "ldp x21, x22, [sp, #16]",
                "ldp x23, x24, [sp, #32]",
                "ldp x25, x26, [sp, #48]",
                "ldp x27, x28, [sp, #64]",
                "ldp x29, x30, [sp, #80]",
                "ldp d8, d9, [sp, #96]",
                "ldp d10, d11, [sp, #112]",
                "ldp d12, d13, [sp, #128]",
                "ldp d14, d15, [sp, #144]",
                "add sp, sp, #160",
                "br x30",
                inner = sym $inner,
            )
        }
    };
}
pub(crate) use rendezvous;

/// The first resumption: `entry(data)` on the new stack.
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!("mov x0, x19", "blr x20", "brk #1")
}

/// A fibre that will run `entry(data)` on the stack that ends at `top`.
///
/// # Safety
/// The `_bytes` below `top` are writable, and nobody uses them until the fibre is given up.
pub(crate) unsafe fn prepare(top: *mut u8, _bytes: usize, entry: Entry, data: *mut c_void) -> Suspended {
    let mut frame = [0usize; 20];
    frame[0] = data as usize; // x19
    frame[1] = entry as usize; // x20
    frame[11] = start as *const () as usize; // x30
    let sp = top.map_addr(|address| (address & !15) - size_of_val(&frame)).cast::<[usize; 20]>();
    // SAFETY: the stack is larger than a frame; the stack pointer stays a multiple of 16.
    unsafe { sp.write(frame) };
    sp.cast()
}
