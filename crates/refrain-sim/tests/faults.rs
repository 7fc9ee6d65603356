//! Kernels that are wrong are told from those that are right.

mod common;

use common::{Sim, all_options};
use refrain_device::DeviceError;
use refrain_sim::{Order, POISON, SimOptions};

fn options(order: Order) -> SimOptions {
    SimOptions { order, ..SimOptions::default() }
}

/// The error of a kernel of 64 threads that is given the address of 1000 bytes; it must have all `words`.
fn fails(body: &str, grid: u32, words: &[&str]) -> Option<DeviceError> {
    let sim = Sim::new(SimOptions::default())?;
    let deep = "static u32 deep(volatile u8* above, u32 n) {
        volatile u8 room[1000];
        room[n % 1000] = above[0];
        return n == 0 ? 0 : deep(room, n - 1) + room[1];
    }";
    let text = format!("struct Args {{ u8* at; }}; {deep} KX_KERNEL(wrong, Args, 64) {{ {body} }}");
    let kernel = sim.kernel("wrong", &text);
    let memory = sim.room::<u8>(1000);
    let error = sim.launch(&kernel, grid, 64, &[memory.base().0]).unwrap_err();
    for word in words.iter().chain(&["launch of wrong (grid [", "64 threads"]) {
        assert!(error.to_string().contains(word), "no {word:?} in: {error}");
    }
    Some(error)
}

#[test]
fn a_missing_barrier_shows_in_another_order() {
    let neighbours = |barrier: &str| {
        format!(
            "struct Args {{ u32* out; }};
            KX_KERNEL(neighbours, Args, 64) {{
                KX_SHARED u32 room[64];
                room[kx_tid()] = kx_tid() + 1;
                {barrier}
                args.out[kx_tid()] = kx_tid() == 0 ? 0 : room[kx_tid() - 1];
            }}"
        )
    };
    let wanted: Vec<u32> = (0..64).collect();
    for order in [Order::Forward, Order::Reverse, Order::Shuffled(3)] {
        for (barrier, right) in [("kx_sync();", true), ("", order == Order::Forward)] {
            let Some(sim) = Sim::new(options(order)) else { return };
            let kernel = sim.kernel("neighbours", &neighbours(barrier));
            let out = sim.room::<u32>(64);
            sim.launch(&kernel, 1, 64, &[out.base().0]).unwrap();
            let got = sim.read::<u32>(&out);
            assert_eq!(got == wanted, right, "{order:?}, barrier {barrier:?}: {got:?}");
            if !right {
                assert!(got.contains(&(POISON << 16 | POISON)), "what was not written yet must be poison: {got:?}");
            }
        }
    }
}

#[test]
fn every_block_begins_with_poisoned_shared_memory() {
    let text = "
        struct Args { u32* out; };
        KX_KERNEL(left_over, Args, 1) {
            KX_SHARED u32 fixed[4];
            KX_DYNAMIC_SHARED(u32, dynamic);
            args.out[2 * kx_block_x()] = fixed[3];
            args.out[2 * kx_block_x() + 1] = dynamic[4];
            fixed[3] = dynamic[4] = 7;
        }";
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel("left_over", text);
    let out = sim.room::<u32>(6);
    sim.launch_with(&kernel, [3, 1, 1], 1, 20, &[out.base().0]).unwrap();
    assert_eq!(sim.read::<u32>(&out), [POISON << 16 | POISON; 6]);
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_an_error_that_counts_them() {
    let Some(error) = fails(
        "if (kx_block_x() == 2 && kx_tid() < 10) return; kx_sync();",
        5,
        &["block [2, 0, 0]", "54 of 64 threads wait at kx_sync", "10 of 64 threads have finished"],
    ) else {
        return;
    };
    assert!(matches!(error, DeviceError::Driver { code: 719, .. }), "{error:?}");
    // One wave at the barrier, a part of the other in a wave's operation.
    fails(
        "if (kx_tid() < 40) kx_sync(); else kx_sync_wave();",
        1,
        &["40 of 64 threads wait at kx_sync", "24 of 32 lanes of wave 1 wait at kx_sync_wave"],
    );
    fails(
        "if (kx_tid() != 5) args.at[kx_tid()] = (u8)kx_shuffle(1u, 0);",
        1,
        &["31 of 32 lanes of wave 0 wait at a shuffle"],
    );
    fails(
        "if (kx_tid() % 2) kx_sync_wave(); else (void)kx_shuffle(1u, 0);",
        1,
        &["thread 1 is at kx_sync_wave", "a shuffle"],
    );
}

#[test]
fn after_a_divergent_barrier_the_device_goes_on() {
    for options in all_options() {
        let Some(sim) = Sim::new(options) else { return };
        let text = "
            struct Args { u32* out; u32 from; u32 gap; };
            KX_KERNEL(from, Args, 128) {
                if (kx_tid() < args.from) return;
                kx_sync();
                args.out[kx_tid()] = kx_tid();
            }";
        let kernel = sim.kernel("from", text);
        let out = sim.room::<u32>(128);
        for _ in 0..3 {
            sim.launch(&kernel, 1, 128, &[out.base().0, 1]).unwrap_err();
            sim.launch(&kernel, 1, 128, &[out.base().0, 0]).unwrap();
            assert!(sim.read::<u32>(&out).into_iter().eq(0..128));
        }
    }
}

#[test]
fn what_lies_outside_of_an_allocation_can_not_be_touched() {
    let cases = [
        ("args.at[1024] = 1;", "24 bytes behind the end of \"test\" (1000 bytes)"),
        ("args.at[0] = args.at[1024 + 4096 - 1];", "4119 bytes behind the end"),
        ("args.at[-4096] = 1;", "bytes before \"test\""),
        ("*(volatile u32*)0 = 1;", "next to null"),
        ("args.at[1001] = 1;", "wrote outside of an allocation"),
        ("args.at[-200] = 1;", "wrote outside of an allocation"),
    ];
    for (body, words) in cases {
        let body = format!("if (kx_block_x() == 1 && kx_tid() == 33) {{ {body} }}");
        let Some(error) = fails(&body, 2, &[words]) else { return };
        assert!(matches!(error, DeviceError::Lost { code: 700, .. }), "{error:?}");
        if !words.starts_with("wrote") {
            assert!(error.to_string().contains("block [1, 0, 0], thread 33"), "{error}");
        }
    }
}

#[test]
fn other_faults_are_named() {
    let cases = [
        ("args.at[1] = (u8)(100 / args.at[0]);", "divided by zero"),
        ("args.at[1] = (u8)deep(args.at, 1000);", "more local variables"),
        ("*(volatile u8*)0x1234567812345678ull = 1;", "no device has"),
        ("KX_DYNAMIC_SHARED(u8, room); room[128] = 1;", "address 0x"),
    ];
    for (body, words) in cases {
        let body = format!("args.at[0] = 0; {body}");
        if fails(&body, 1, &[words, "block [0, 0, 0], thread 0"]).is_none() {
            return;
        }
    }
}

#[test]
fn a_device_with_an_illegal_access_is_lost_and_others_are_not() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let Some(other) = Sim::new(SimOptions::default()) else { return };
    let text = "struct Args { u32* at; }; KX_KERNEL(store, Args, 1) { *args.at = 1; }";
    let (kernel, other_kernel) = (sim.kernel("store", text), other.kernel("store", text));
    let (memory, other_memory) = (sim.room::<u32>(1), other.room::<u32>(1));
    sim.launch(&kernel, 1, 1, &[8]).unwrap_err();
    for error in [
        sim.launch(&kernel, 1, 1, &[memory.base().0]).unwrap_err(),
        sim.stream.synchronize().unwrap_err(),
        sim.runtime.allocate(1, "more").unwrap_err(),
        sim.runtime.memory().unwrap_err(),
    ] {
        assert!(matches!(&error, DeviceError::Lost { text, .. } if text.contains("since launch of store")), "{error}");
    }
    other.launch(&other_kernel, 1, 1, &[other_memory.base().0]).unwrap();
    assert_eq!(other.read::<u32>(&other_memory), [1]);
}

#[test]
fn faults_are_caught_on_any_thread() {
    let Some(sim) = Sim::new(SimOptions::default()) else { return };
    let kernel = sim.kernel("store", "struct Args { u32* at; }; KX_KERNEL(store, Args, 1) { *args.at = 1; }");
    std::thread::scope(|scope| {
        let error = scope.spawn(|| sim.launch(&kernel, 1, 1, &[8]).unwrap_err().to_string()).join().unwrap();
        assert!(error.contains("next to null"), "{error}");
    });
}
