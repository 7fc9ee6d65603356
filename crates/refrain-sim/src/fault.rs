//! Kernels that touch what they must not: the signal ends the block, not the process. Kernels hold no locks and own
//! nothing, so a block can be given up anywhere.

use crate::block::fail;
use crate::memory::Memory;
use crate::worker::{Failure, Worker};
use libc::{c_int, c_void};
use refrain_device::DeviceError;
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::OnceLock;

/// What the processor refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub signal: c_int,
    pub code: c_int,
    pub address: usize,
}

impl Fault {
    /// What happened, in words; `memory` knows what lies around the address.
    pub(crate) fn describe(&self, memory: &Memory) -> String {
        match self.signal {
            libc::SIGFPE => "an integer was divided by zero".to_owned(),
            libc::SIGILL => "an illegal instruction, as __builtin_trap makes it".to_owned(),
            // The processor tells no address then.
            libc::SIGSEGV if self.code == SI_KERNEL && self.address == 0 => {
                "an address that is not aligned to the size of the access, or that no device has".to_owned()
            }
            _ => memory.describe(self.address as u64),
        }
    }
}

/// The kernel found the fault, not the memory management: `SI_KERNEL` of Linux.
const SI_KERNEL: c_int = 0x80;

const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

thread_local! {
    /// The worker whose fibres run on this thread now.
    static RUNNING: Cell<*mut Worker> = const { Cell::new(std::ptr::null_mut()) };
    static ALTERNATE: RefCell<Option<AlternateStack>> = const { RefCell::new(None) };
}

/// Runs `body`, during which faults are the worker's.
pub(crate) fn while_running(worker: *mut Worker, body: impl FnOnce()) {
    RUNNING.set(worker);
    body();
    RUNNING.set(std::ptr::null_mut());
}

/// What handled the signals before: for faults that are not ours.
static EARLIER: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

/// Installs the handler, once for the process.
pub(crate) fn install() {
    EARLIER.get_or_init(|| {
        SIGNALS.map(|signal| {
            // SAFETY: zeros are a valid `sigaction`, and the handler uses nothing that a signal handler may not.
            unsafe {
                let mut action: libc::sigaction = std::mem::zeroed();
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
                action.sa_sigaction = handler as *const () as usize;
                // Not masked inside of the handler, for a fault of a kernel never returns from it.
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigemptyset(&raw mut action.sa_mask);
                let mut earlier: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const action, &raw mut earlier);
                earlier
            }
        })
    });
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let worker = RUNNING.get();
    if worker.is_null() {
        hand_on(signal, info, context);
        return;
    }
    RUNNING.set(std::ptr::null_mut());
    // SAFETY: the signal is one that carries an address. This thread's fibre caused it, so the launching thread waits;
    // leaving the handler by a switch is allowed as leaving it by `longjmp` is.
    unsafe {
        let fault = Fault { signal, code: (*info).si_code, address: (*info).si_addr().addr() };
        fail(worker, Failure::Fault(fault));
    }
}

/// Does what would have happened without this handler.
fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let earlier = EARLIER.get().and_then(|all| SIGNALS.iter().position(|&one| one == signal).map(|at| &all[at]));
    // SAFETY: what was installed is called as it wanted to be, or becomes the handler again and gets the same fault.
    unsafe {
        match earlier {
            Some(action) if action.sa_sigaction != libc::SIG_DFL && action.sa_sigaction != libc::SIG_IGN => {
                if action.sa_flags & libc::SA_SIGINFO == 0 {
                    std::mem::transmute::<usize, extern "C" fn(c_int)>(action.sa_sigaction)(signal);
                } else {
                    type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
                    std::mem::transmute::<usize, Handler>(action.sa_sigaction)(signal, info, context);
                }
            }
            _ => {
                libc::signal(signal, libc::SIG_DFL);
                // A fault happens again by itself; a signal that somebody sent does not.
                if (*info).si_code <= 0 {
                    libc::raise(signal);
                }
            }
        }
    }
}

/// A stack for the handler, for the fault may be that of a full stack.
struct AlternateStack {
    base: *mut c_void,
}

const ALTERNATE_BYTES: usize = 64 << 10;

/// Gives this thread a stack for handlers unless it has one.
pub(crate) fn alternate_stack() -> Result<(), DeviceError> {
    let failed = || DeviceError::OutOfMemory {
        bytes: ALTERNATE_BYTES,
        what: "the stack of signal handlers",
        source: io::Error::last_os_error(),
    };
    ALTERNATE.with_borrow_mut(|own| {
        // SAFETY: a query, then fresh memory that stays until the thread ends.
        unsafe {
            let mut now: libc::stack_t = std::mem::zeroed();
            if libc::sigaltstack(std::ptr::null(), &raw mut now) == 0 && now.ss_flags & libc::SS_DISABLE == 0 {
                return Ok(());
            }
            let base = libc::mmap(
                std::ptr::null_mut(),
                ALTERNATE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(failed());
            }
            let stack = libc::stack_t { ss_sp: base, ss_flags: 0, ss_size: ALTERNATE_BYTES };
            if libc::sigaltstack(&raw const stack, std::ptr::null_mut()) != 0 {
                return Err(failed());
            }
            *own = Some(AlternateStack { base });
        }
        Ok(())
    })
}

impl Drop for AlternateStack {
    fn drop(&mut self) {
        // SAFETY: no handler runs on it while the thread is ending here.
        unsafe {
            let none = libc::stack_t { ss_sp: std::ptr::null_mut(), ss_flags: libc::SS_DISABLE, ss_size: 0 };
            libc::sigaltstack(&raw const none, std::ptr::null_mut());
            libc::munmap(self.base, ALTERNATE_BYTES);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a child process ends that installs the handler and runs `body`.
    fn fate(body: fn()) -> c_int {
        // SAFETY: the child calls nothing that could wait for a lock of another thread.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                install();
                body();
                libc::_exit(7);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            status
        }
    }

    #[test]
    fn faults_outside_of_kernels_end_the_process_as_ever() {
        // SAFETY: a fault, which is what is tested, in a process of its own.
        let status = fate(|| unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(1) });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
        // SAFETY: as above.
        let status = fate(|| unsafe {
            libc::raise(libc::SIGFPE);
        });
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGFPE, "{status:#x}");
        assert_eq!(libc::WEXITSTATUS(fate(|| ())), 7);
    }
}
