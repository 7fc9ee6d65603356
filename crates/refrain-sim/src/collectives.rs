//! What the lanes of a wave do together, and asynchronous copies.

use crate::block::{fail, place, wait};
use crate::worker::{Failure, Operation, Wave, Worker};
use std::ffi::c_void;

mod matrix;

pub(crate) use matrix::wide_registers;

/// Suspends the running thread until all lanes of its wave have come to the same operation. The last one carries out
/// `work` for all, before any goes on.
///
/// # Safety
/// A fibre of the worker calls it.
#[inline(always)]
unsafe fn meet(worker: *mut Worker, operation: Operation, work: impl FnOnce(*mut Wave)) {
    // SAFETY: no other fibre of the worker runs, see block.rs.
    unsafe {
        let (wave, bit) = place(worker);
        if (*wave).arrived == 0 {
            (*wave).operation = operation;
        } else if (*wave).operation != operation {
            let first = (*wave).operation;
            fail(worker, Failure::Mixed { first, second: operation });
        }
        (*wave).runnable &= !bit;
        (*wave).arrived |= bit;
        if (*wave).arrived == (*wave).all {
            work(wave);
            (*wave).arrived = 0;
            (*wave).runnable = (*wave).all;
            (*wave).room ^= 1;
        }
        wait(worker);
    }
}

/// The lane of the running thread.
unsafe fn lane(worker: *mut Worker) -> usize {
    // SAFETY: the state belongs to a loaded image.
    unsafe { ((*(*worker).state).tid % (*worker).width) as usize }
}

/// `kx_sync_wave`.
pub(crate) unsafe extern "C" fn sync_wave(worker: *mut c_void) {
    // SAFETY: called by a fibre of this worker.
    unsafe { meet(worker.cast(), Operation::Sync, |_| ()) }
}

/// `kx_shuffle`; the lane counts modulo the wave, as on GPUs.
pub(crate) unsafe extern "C" fn shuffle(worker: *mut c_void, value: u32, from: u32) -> u32 {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker. Nobody writes this room before all lanes have met again.
    unsafe {
        let (wave, _) = place(worker);
        let room = (*wave).room;
        (*wave).exchange[room][lane(worker)] = value;
        let from = (from % (*worker).width) as usize;
        meet(worker, Operation::Shuffle, |_| ());
        (*wave).exchange[room][from]
    }
}

/// `kx_mma_bf16` and `kx_mma_f16`.
pub(crate) unsafe extern "C" fn mma(worker: *mut c_void, d: *mut f32, a: *const u32, b: *const u32, bf16: u32) {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker; the arrays of lanes that wait are on their stacks.
    unsafe {
        let (wave, _) = place(worker);
        (*wave).operands[lane(worker)] = [d.cast(), a.cast_mut(), b.cast_mut()];
        let operation = if bf16 == 1 { Operation::MmaBf16 } else { Operation::MmaF16 };
        meet(worker, operation, |wave| matrix::multiply(&(*wave).operands, bf16 == 1, (*worker).wide_registers));
    }
}

/// `kx_ldmatrix2`, `kx_ldmatrix4` and the transposed ones.
pub(crate) unsafe extern "C" fn ldmatrix(
    worker: *mut c_void,
    d: *mut u32,
    row: *const u8,
    matrices: u32,
    transposed: u32,
) {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker; the arrays of lanes that wait are on their stacks.
    unsafe {
        let (wave, _) = place(worker);
        let lane = lane(worker);
        if lane < 8 * matrices as usize {
            shared_address(worker, "kx_ldmatrix", row.addr());
        }
        (*wave).operands[lane] = [d, row.cast_mut().cast(), std::ptr::null_mut()];
        let operation = Operation::LoadMatrix(matrices, transposed == 1);
        meet(worker, operation, |wave| matrix::load(&(*wave).operands, matrices as usize, transposed == 1));
    }
}

/// Gives the block up unless 16 bytes of shared memory lie at the address, aligned.
unsafe fn shared_address(worker: *mut Worker, operation: &'static str, address: usize) {
    // SAFETY: called by a fibre of this worker.
    unsafe {
        if !(*worker).shared.iter().any(|&(from, to)| from <= address && address + 16 <= to) {
            fail(worker, Failure::Address { operation, why: "is not in shared memory", address });
        }
        if !address.is_multiple_of(16) {
            fail(worker, Failure::Address { operation, why: "is not a multiple of 16", address });
        }
    }
}

/// Asynchronous copies of one thread that have not landed.
#[derive(Default)]
pub(crate) struct Copies {
    /// To and from; from nowhere come zeros.
    pending: Vec<(*mut [u64; 2], *const [u64; 2])>,
    /// Ends of the committed groups in `pending`.
    groups: Vec<usize>,
}

impl Copies {
    pub(crate) fn clear(&mut self) {
        self.pending.clear();
        self.groups.clear();
    }
}

unsafe fn own_copies(worker: *mut Worker) -> *mut Copies {
    // SAFETY: a thread index is below the number of lists.
    unsafe { (*worker).copies.as_mut_ptr().add((*(*worker).state).tid as usize) }
}

/// `kx_copy_async16`. The target holds poison until the copy is waited for.
pub(crate) unsafe extern "C" fn copy_async(worker: *mut c_void, to: *mut u8, from: *const u8) {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker; the target was checked.
    unsafe {
        shared_address(worker, "kx_copy_async16", to.addr());
        if !from.addr().is_multiple_of(16) {
            let why = "is not a multiple of 16";
            fail(worker, Failure::Address { operation: "kx_copy_async16", why, address: from.addr() });
        }
        crate::memory::poison(to, 16);
        (*worker).copies_used = true;
        (*own_copies(worker)).pending.push((to.cast(), from.cast()));
    }
}

/// `kx_copy_commit`.
pub(crate) unsafe extern "C" fn copy_commit(worker: *mut c_void) {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker.
    unsafe {
        let copies = own_copies(worker);
        (*worker).copies_used = true;
        let end = (*copies).pending.len();
        (*copies).groups.push(end);
    }
}

/// `kx_copy_wait`: all but the last `pending` groups land.
pub(crate) unsafe extern "C" fn copy_wait(worker: *mut c_void, pending: u32) {
    let worker = worker.cast::<Worker>();
    // SAFETY: called by a fibre of this worker. A source that doesn't exist faults here, as any other access.
    unsafe {
        let copies = own_copies(worker);
        let landing = (*copies).groups.len().saturating_sub(pending as usize);
        let Some(last) = landing.checked_sub(1) else { return };
        let end = (&(*copies).groups)[last];
        for index in 0..end {
            let (to, from) = (&(*copies).pending)[index];
            to.write(if from.is_null() { [0; 2] } else { from.read() });
        }
        (*copies).pending.drain(..end);
        (*copies).groups.drain(..landing);
        for group in &mut (*copies).groups {
            *group -= end;
        }
    }
}
