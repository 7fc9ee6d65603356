//! Switching by the C library, which also saves the signal mask and so makes a system call each time: for processors
//! that have no assembly here.

use super::{Entry, Suspended};
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// The bytes at the end of a stack that hold its first context.
#[repr(C, align(16))]
struct First {
    context: MaybeUninit<libc::ucontext_t>,
    entry: Entry,
    data: *mut c_void,
}

/// Suspends the caller into `*save` and goes on with `to`.
///
/// # Safety
/// `to` is from [`prepare`] or from an earlier `save`, not yet resumed, and its stack still exists.
pub(crate) unsafe fn switch(save: *mut Suspended, to: Suspended) {
    // The context of a suspended fibre lies in this frame, on the fibre's own stack.
    let mut own = MaybeUninit::<libc::ucontext_t>::uninit();
    // SAFETY: both contexts are whole: `own` is filled in by the call, `to` by contract.
    unsafe {
        save.write(own.as_mut_ptr().cast());
        libc::swapcontext(own.as_mut_ptr(), to.cast::<libc::ucontext_t>());
    }
}

/// `makecontext` hands over ints; the two halves of an address are two of them.
extern "C" fn start(low: u32, high: u32) {
    let first = (u64::from(high) << 32 | u64::from(low)) as *const First;
    // SAFETY: `prepare` wrote it.
    unsafe { ((*first).entry)((*first).data) }
}

/// A fibre that will run `entry(data)` on the stack that ends at `top`.
///
/// # Safety
/// The `bytes` below `top` are writable, and nobody uses them until the fibre is given up.
pub(crate) unsafe fn prepare(top: *mut u8, bytes: usize, entry: Entry, data: *mut c_void) -> Suspended {
    // SAFETY: the stack is larger than the struct; `makecontext` takes any function, its arguments are ints.
    unsafe {
        let first = top.wrapping_sub(size_of::<First>()).map_addr(|address| address & !15).cast::<First>();
        first.write(First { context: MaybeUninit::uninit(), entry, data });
        let context = (*first).context.as_mut_ptr();
        libc::getcontext(context);
        let base = top.wrapping_sub(bytes);
        (*context).uc_stack.ss_sp = base.cast();
        (*context).uc_stack.ss_size = first.addr() - base.addr();
        (*context).uc_link = std::ptr::null_mut();
        let address = first as u64;
        let function = std::mem::transmute::<extern "C" fn(u32, u32), extern "C" fn()>(start);
        libc::makecontext(context, function, 2, address as u32, (address >> 32) as u32);
        context.cast()
    }
}
