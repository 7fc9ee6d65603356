//! Switching by the C library, which also saves the signal mask and so makes a system call each time: for processors
//! that have no assembly here.

use super::{Entry, Resume, Suspended};
use std::cell::Cell;
use std::ffi::c_void;
use std::mem::MaybeUninit;

thread_local! {
    /// The value for the fibre that is being resumed.
    static VALUE: Cell<u32> = const { Cell::new(0) };
}

/// The bytes at the end of a stack that hold its first context.
#[repr(C, align(16))]
struct First {
    context: MaybeUninit<libc::ucontext_t>,
    entry: Entry,
    data: *mut c_void,
}

/// Suspends the caller into `*save` and lets `to` go on with `value` as the result of what suspended it.
///
/// # Safety
/// `to` is from [`prepare`] or was saved and not yet resumed, and its stack still exists.
pub(crate) unsafe extern "C" fn switch(save: *mut Suspended, to: Suspended, value: u32) {
    // The context of a suspended fibre lies in this frame, on the fibre's own stack.
    let mut own = MaybeUninit::<libc::ucontext_t>::uninit();
    VALUE.set(value);
    // SAFETY: both contexts are whole: `own` is filled in by the call, `to` by contract.
    unsafe {
        save.write(own.as_mut_ptr().cast());
        libc::swapcontext(own.as_mut_ptr(), to.cast::<libc::ucontext_t>());
    }
}

/// Suspends the calling fibre, gives it to `inner`, and resumes whom that chose.
///
/// # Safety
/// As [`switch`], for the fibre that `inner` gives.
pub(crate) unsafe fn suspend(inner: impl FnOnce(Suspended) -> Resume) -> u32 {
    let mut own = MaybeUninit::<libc::ucontext_t>::uninit();
    let resume = inner(own.as_mut_ptr().cast());
    VALUE.set(resume.value);
    if resume.to.cast() != own.as_mut_ptr() {
        // SAFETY: by contract; `own` is filled in before anybody can resume it.
        unsafe { libc::swapcontext(own.as_mut_ptr(), resume.to.cast::<libc::ucontext_t>()) };
    }
    VALUE.get()
}

/// `rendezvous!(name, inner)`: a function for kernels to call, of a worker and up to four more integers or pointers. It
/// suspends the calling fibre, gives it to `inner` behind the arguments, and resumes whom `inner` chose.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
macro_rules! rendezvous {
    ($(#[$meta:meta])* $name:ident, $inner:path) => {
        $(#[$meta])*
        pub(crate) unsafe extern "C" fn $name(worker: *mut std::ffi::c_void, a: u64, b: u64, c: u64, d: u64) -> u32 {
            // SAFETY: by the contract of whoever calls kernels.
            unsafe { crate::fibre::ucontext::suspend(|own| $inner(worker.cast(), a, b, c, d, own)) }
        }
    };
}
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(crate) use rendezvous;

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
