//! Switching on x86-64, System V calling convention: rbx, rbp and r12 to r15 are preserved, all vector registers aren't.
//!
//! A suspended fibre is a stack pointer to those six and the address where it goes on. It is jumped to, not returned to:
//! the processor predicts returns by calls, which another fibre made, and jumps by where they went the last times, which
//! for threads that run the same code is right.

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
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "mov eax, edx",
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

/// `rendezvous!(name, inner)`: a function for kernels to call, of a worker and up to four more integers or pointers. It
/// suspends the calling fibre, gives it to `inner` behind the arguments, and resumes whom `inner` chose.
macro_rules! rendezvous {
    ($(#[$meta:meta])* $name:ident, $inner:path) => {
        $(#[$meta])*
        #[unsafe(naked)]
        pub(crate) unsafe extern "C" fn $name() {
            std::arch::naked_asm!(
                "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
                "mov r9, rsp",
                "sub rsp, 8",
                "call {inner}",
                "mov rsp, rax",
                "mov eax, edx",
                "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
                "pop rcx",
                "jmp rcx",
                inner = sym $inner,
            )
        }
    };
}
pub(crate) use rendezvous;

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
    // In the order in which they are taken: r15, r14, r13, r12, rbx, rbp, where to go.
    let frame = [0, 0, entry as usize, data as usize, 0, 0, start as *const () as usize];
    let sp = top.map_addr(|address| ((address - size_of_val(&frame)) & !15) - 8).cast::<[usize; 7]>();
    // SAFETY: the stack is larger than a frame. Once it is taken, 56 bytes on, the stack is aligned as calls want it.
    unsafe { sp.write(frame) };
    sp.cast()
}
