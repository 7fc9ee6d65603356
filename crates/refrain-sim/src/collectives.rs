//! What the lanes of a wave do together, and asynchronous copies.

use crate::block::{fail, resume_next, stand_back, suspend};
use crate::fibre::{Resume, Suspended, rendezvous};
use crate::worker::{Failure, Operation, Wave, Worker};

mod matrix;

pub(crate) use matrix::wide_registers;

/// Lets the running thread, which is noted as suspended, wait until all lanes of its wave have come to the same
/// operation. The last one carries out `work` for all, before any goes on.
///
/// # Safety
/// A fibre of the worker calls it.
#[inline(always)]
unsafe fn meet(worker: *mut Worker, operation: Operation, work: impl FnOnce(*mut Wave)) -> Resume {
    // SAFETY: no other fibre of the worker runs, see block.rs.
    unsafe {
        let wave = (*worker).wave;
        if (*wave).arrived == 0 {
            (*wave).operation = operation;
        } else if (*wave).operation != operation {
            let first = (*wave).operation;
            fail(worker, Failure::Mixed { first, second: operation });
        }
        (*wave).arrived += 1;
        stand_back(wave);
        if (*wave).runnable == 0 && (*wave).arrived == (*wave).all.count_ones() {
            work(wave);
            (*wave).arrived = 0;
            (*wave).runnable = (*wave).all;
            (*wave).room ^= 1;
        }
        resume_next(worker)
    }
}

rendezvous!(
    /// `kx_sync_wave`.
    sync_wave,
    wait_for_wave
);

unsafe extern "C" fn wait_for_wave(worker: *mut Worker, _: u64, _: u64, _: u64, _: u64, own: Suspended) -> Resume {
    // SAFETY: called by a fibre of this worker.
    unsafe {
        suspend(worker, own);
        meet(worker, Operation::Sync, |_| ())
    }
}

rendezvous!(
    /// `kx_shuffle`; the lane counts modulo the wave, as on GPUs.
    shuffle,
    exchange
);

unsafe extern "C" fn exchange(worker: *mut Worker, value: u64, from: u64, _: u64, _: u64, own: Suspended) -> Resume {
    // SAFETY: called by a fibre of this worker. Nobody writes this room before all lanes have met again.
    unsafe {
        let (wave, thread) = ((*worker).wave, (*worker).thread);
        let room = (&raw mut (*wave).exchange).cast::<u32>().add((*wave).room * 64);
        room.add((*thread).lane as usize).write(value as u32);
        (*thread).suspended = own;
        (*thread).result = room.add((from as u32 & ((*worker).width - 1)) as usize);
        meet(worker, Operation::Shuffle, |_| ())
    }
}

rendezvous!(
    /// `kx_mma_bf16` and `kx_mma_f16`.
    mma,
    multiply
);

unsafe extern "C" fn multiply(worker: *mut Worker, d: u64, a: u64, b: u64, bf16: u64, own: Suspended) -> Resume {
    // SAFETY: called by a fibre of this worker; the arrays of lanes that wait are on their stacks.
    unsafe {
        suspend(worker, own);
        hand_in(worker, [d as *mut u32, a as *mut u32, b as *mut u32]);
        let bf16 = bf16 as u32 == 1;
        let operation = if bf16 { Operation::MmaBf16 } else { Operation::MmaF16 };
        meet(worker, operation, |wave| matrix::multiply(&(*wave).operands, bf16, (*worker).wide_registers))
    }
}

rendezvous!(
    /// `kx_ldmatrix2`, `kx_ldmatrix4` and the transposed ones.
    ldmatrix,
    load_matrix
);

unsafe extern "C" fn load_matrix(
    worker: *mut Worker,
    d: u64,
    row: u64,
    matrices: u64,
    transposed: u64,
    own: Suspended,
) -> Resume {
    let (matrices, transposed) = (matrices as u32, transposed as u32 == 1);
    // SAFETY: called by a fibre of this worker; the arrays of lanes that wait are on their stacks.
    unsafe {
        if (*(*worker).thread).lane < 8 * matrices {
            shared_address(worker, "kx_ldmatrix", row as usize);
        }
        suspend(worker, own);
        hand_in(worker, [d as *mut u32, row as *mut u32, std::ptr::null_mut()]);
        let operation = Operation::LoadMatrix(matrices, transposed);
        meet(worker, operation, |wave| matrix::load(&(*wave).operands, matrices as usize, transposed))
    }
}

/// Puts the running thread's operands where the last lane finds them.
#[inline(always)]
unsafe fn hand_in(worker: *mut Worker, operands: [*mut u32; 3]) {
    // SAFETY: a lane is below the number of places.
    unsafe {
        let places = (&raw mut (*(*worker).wave).operands).cast::<[*mut u32; 3]>();
        places.add((*(*worker).thread).lane as usize).write(operands);
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
pub(crate) unsafe extern "C" fn copy_async(worker: *mut Worker, to: *mut u8, from: *const u8) {
    // SAFETY: called by a fibre of this worker; the target was checked.
    unsafe {
        shared_address(worker, "kx_copy_async16", to.addr());
        if !from.addr().is_multiple_of(16) {
            let why = "is not a multiple of 16";
            fail(worker, Failure::Address { operation: "kx_copy_async16", why, address: from.addr() });
        }
        crate::mapping::poison(to, 16);
        (*worker).copies_used = true;
        (*own_copies(worker)).pending.push((to.cast(), from.cast()));
    }
}

/// `kx_copy_commit`.
pub(crate) unsafe extern "C" fn copy_commit(worker: *mut Worker) {
    // SAFETY: called by a fibre of this worker.
    unsafe {
        let copies = own_copies(worker);
        (*worker).copies_used = true;
        let end = (*copies).pending.len();
        (*copies).groups.push(end);
    }
}

/// `kx_copy_wait`: all but the last `pending` groups land.
pub(crate) unsafe extern "C" fn copy_wait(worker: *mut Worker, pending: u32) {
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
