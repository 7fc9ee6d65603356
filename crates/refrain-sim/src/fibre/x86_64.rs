//! Switching on x86-64, System V calling convention: rbx, rbp and r12 to r15 are preserved, all vector registers aren't.

use super::{Entry, Suspended};
use std::arch::naked_asm;
use std::ffi::c_void;

/// Suspends the caller into `*save` and goes on with `to`.
///
/// # Safety
/// `to` is from [`prepare`] or from an earlier `save`, not yet resumed, and its stack still exists.
#[unsafe(naked)]
pub(crate) unsafe extern "C" fn switch(save: *mut Suspended, to: Suspended) {
    // The jump instead of a return: the processor predicts returns by calls, and there was none.
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "pop rcx",
        "jmp rcx",
    )
}

/// The first resumption: `entry(data)` on the new stack.
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!("mov rdi, r12", "call r13", "ud2")
}

/// A fibre that will run `entry(data)` on the stack that ends at `top`.
///
/// # Safety
/// The `_bytes` below `top` are writable, and nobody uses them until the fibre is given up.
pub(crate) unsafe fn prepare(top: *mut u8, _bytes: usize, entry: Entry, data: *mut c_void) -> Suspended {
    // In the order in which `switch` takes them: r15, r14, r13, r12, rbx, rbp, where to go.
    let frame = [0, 0, entry as usize, data as usize, 0, 0, start as *const () as usize];
    // SAFETY: the stack is larger than a frame; 64 bytes keep its end 16-byte aligned, as calls want it.
    unsafe {
        let sp = top.cast::<usize>().wrapping_sub(8 + frame.len() + 1).cast::<[usize; 7]>();
        let sp = sp.map_addr(|address| (address & !15) | 8);
        sp.write(frame);
        sp.cast()
    }
}
