//! Drives the scheduler with random requests, cancellations and pools, and checks every step against its promises.

use super::*;
use proptest::prelude::*;
use refrain_device::{BLOCK_TOKENS, PoolSizes, SCAN_CHUNK, StepLimits};
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
struct Arrival {
    step: usize,
    priority: i32,
    prompt: usize,
    answer: usize,
    prompt_logits: bool,
    /// Steps after its arrival at which the client goes away.
    cancel_after: Option<usize>,
}

#[derive(Clone, Debug)]
struct World {
    limits: StepLimits,
    pools: PoolSizes,
    arrivals: Vec<Arrival>,
}

fn worlds() -> impl Strategy<Value = World> {
    (1usize..6, 0usize..100, 20usize..400, 0usize..30, 0usize..2, any::<bool>()).prop_flat_map(
        |(max_num_seqs, extra_tokens, max_model_len, extra_blocks, extra_slots, priorities)| {
            let limits = crate::step_limits(max_num_seqs, max_num_seqs + SCAN_CHUNK + extra_tokens, max_model_len);
            let blocks = max_model_len.div_ceil(BLOCK_TOKENS) + extra_blocks;
            let pools = PoolSizes { blocks, slots: max_num_seqs + extra_slots };
            let arrival = (
                0usize..60,
                -2i32..3,
                1..max_model_len,
                1usize..80,
                prop::bool::weighted(0.2),
                prop::option::weighted(0.2, 0usize..40),
            )
                .prop_map(move |(step, priority, prompt, answer, prompt_logits, cancel_after)| Arrival {
                    step,
                    priority: if priorities { priority } else { 0 },
                    prompt,
                    answer: answer.min(max_model_len - prompt),
                    prompt_logits,
                    cancel_after,
                });
            prop::collection::vec(arrival, 1..25).prop_map(move |arrivals| World { limits, pools, arrivals })
        },
    )
}

/// What the test itself keeps about a sequence.
#[derive(Default)]
struct Witness {
    arrival: usize,
    generated: usize,
    computed: usize,
    prompt_rows: Vec<usize>,
}

fn check_budgets(state: &State, plan: &StepPlan, limits: &StepLimits) {
    let tokens: usize = plan.segments.iter().map(|segment| segment.tokens).sum();
    assert!(tokens <= limits.max_tokens && plan.segments.len() <= limits.max_segments);
    assert!(state.running.len() <= limits.max_segments);
    let rows: usize = plan
        .segments
        .iter()
        .map(|segment| {
            let sequence = state.running.iter().find(|sequence| sequence.rank == segment.rank).unwrap();
            sequence.logit_rows(segment.end())
        })
        .sum();
    assert!(rows <= limits.max_logit_rows);
}

fn check_pools(state: &State) {
    let mut blocks: Vec<u32> = state.running.iter().flat_map(|sequence| sequence.blocks.iter().copied()).collect();
    let mut slots: Vec<u32> = state.running.iter().map(|sequence| sequence.slot.unwrap()).collect();
    assert_eq!((blocks.len(), slots.len()), (state.blocks.used(), state.slots.used()));
    for ids in [&mut blocks, &mut slots] {
        ids.sort_unstable();
        let all = ids.len();
        ids.dedup();
        assert_eq!(ids.len(), all, "two sequences hold the same id");
    }
    assert!(state.waiting.values().all(|sequence| sequence.blocks.is_empty() && sequence.slot.is_none()));
    assert!(state.running.is_sorted_by_key(|sequence| sequence.rank));
}

/// Rows that only need their last token are in the step, unless they were preempted or no block is left for them.
fn check_decodes(before: &State, after: &State, plan: &StepPlan) {
    for sequence in before.running.iter().filter(|sequence| sequence.decodes()) {
        let scheduled = plan.segments.iter().any(|segment| segment.rank == sequence.rank);
        let no_block = sequence.blocks_short(sequence.known) > 0 && after.blocks.free() == 0;
        assert!(scheduled || plan.preempted.contains(&sequence.rank) || no_block, "a decode row was left out");
    }
}

fn check_preemption(before: &State, plan: &StepPlan) {
    let kept = before.running.len() - plan.preempted.len();
    assert!(before.running.is_empty() || kept > 0, "the first one in line is never preempted");
    for rank in &plan.preempted {
        assert!(before.running[kept..].iter().any(|sequence| sequence.rank == *rank), "the last in line go first");
        assert!(plan.admitted.is_empty(), "nobody is admitted while somebody is preempted");
    }
    if let Some(first) = before.running.first() {
        assert!(plan.segments.iter().any(|segment| segment.rank == first.rank), "the first one in line computes");
    }
    let waiting: Vec<_> = before.waiting.keys().take(plan.admitted.len()).copied().collect();
    assert_eq!(waiting, plan.admitted, "admission goes in line order");
}

/// Runs a world to its end; gives the number of steps and of preemptions.
fn run(world: &World) -> (usize, usize) {
    let mut state = State::new(world.pools);
    let mut witnesses: BTreeMap<Rank, Witness> = BTreeMap::new();
    let rank_of = |index: usize| Rank { priority: world.arrivals[index].priority, arrival: index as u64 };
    let work: usize = world.arrivals.iter().map(|arrival| arrival.prompt + 2 * arrival.answer).sum();
    let (mut finished, mut preemptions) = (0, 0);
    for step in 0.. {
        // Every step the first in line computes at least one token and is never thrown back while it stays first; a
        // newcomer that goes before it by priority can throw it back once.
        assert!(step <= 60 + work * (1 + world.arrivals.len()), "somebody starves");
        for (index, arrival) in world.arrivals.iter().enumerate() {
            if arrival.step == step {
                state.add(Sequence::new(rank_of(index), arrival.prompt, arrival.prompt_logits));
                witnesses.insert(rank_of(index), Witness { arrival: index, ..Witness::default() });
            }
            if arrival.cancel_after.is_some_and(|after| arrival.step + after == step)
                && witnesses.remove(&rank_of(index)).is_some()
            {
                state.remove(rank_of(index)).expect("it was there");
                finished += 1;
                check_pools(&state);
            }
        }
        if finished == world.arrivals.len() {
            assert_eq!((state.blocks.used(), state.slots.used()), (0, 0));
            assert!(state.waiting.is_empty() && state.running.is_empty());
            return (step, preemptions);
        }
        let plan = plan(&state, &world.limits);
        assert_eq!(plan.segments.is_empty(), witnesses.is_empty(), "a step with nothing to do, or nothing done");
        check_preemption(&state, &plan);
        let before = state.clone();
        state.apply(&plan);
        check_budgets(&state, &plan, &world.limits);
        check_pools(&state);
        check_decodes(&before, &state, &plan);

        preemptions += plan.preempted.len();
        for rank in &plan.preempted {
            witnesses.get_mut(rank).unwrap().computed = 0;
        }
        for segment in &plan.segments {
            let sequence = state.running.iter().find(|sequence| sequence.rank == segment.rank).unwrap();
            let witness = witnesses.get_mut(&segment.rank).unwrap();
            assert_eq!(segment.position, witness.computed, "each position in order, once");
            assert_eq!(segment.scan, segment.end().min(sequence.prompt).saturating_sub(segment.position));
            assert!(segment.end() == sequence.known || segment.end() % SCAN_CHUNK == 0, "cut inside a scan chunk");
            assert_eq!(sequence.blocks.len(), segment.end().div_ceil(BLOCK_TOKENS), "blocks for exactly the tokens");
            witness.prompt_rows.extend(sequence.prompt_rows(segment.end()));
            witness.computed = segment.end();
        }
        for segment in &plan.segments {
            let sequence = state.running_mut(segment.rank).unwrap();
            if !sequence.advance(segment.end()) {
                continue;
            }
            let witness = witnesses.get_mut(&segment.rank).unwrap();
            let arrival = &world.arrivals[witness.arrival];
            witness.generated += 1;
            if witness.generated < arrival.answer {
                continue;
            }
            let wanted = if arrival.prompt_logits { arrival.prompt - 1 } else { 0 };
            assert!(witness.prompt_rows.iter().copied().eq(0..wanted), "prompt logits in order, once");
            witnesses.remove(&segment.rank);
            state.remove(segment.rank).expect("it was there");
            finished += 1;
        }
        check_pools(&state);
    }
    unreachable!()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn every_promise_holds_in_every_world(world in worlds()) {
        run(&world);
    }
}

fn limits(max_num_seqs: usize, tokens: usize) -> StepLimits {
    crate::step_limits(max_num_seqs, tokens, 1024)
}

fn sequence(arrival: u64, prompt: usize) -> Sequence {
    Sequence::new(Rank { priority: 0, arrival }, prompt, false)
}

/// Plans and carries out one step in which every complete sequence gets a token.
fn step(state: &mut State, limits: &StepLimits) -> StepPlan {
    let plan = plan(state, limits);
    state.apply(&plan);
    for segment in &plan.segments {
        state.running_mut(segment.rank).unwrap().advance(segment.end());
    }
    plan
}

fn shape(plan: &StepPlan) -> Vec<(u64, usize, usize)> {
    plan.segments.iter().map(|segment| (segment.rank.arrival, segment.position, segment.tokens)).collect()
}

#[test]
fn who_waits_for_a_token_keeps_its_place_and_is_left_out() {
    let mut state = State::new(PoolSizes { blocks: 100, slots: 4 });
    let limits = limits(4, 200);
    state.add(sequence(0, 16));
    state.add(sequence(1, 10));
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 0, 16), (1, 0, 10)]);
    let first = Rank { priority: 0, arrival: 0 };
    state.running_mut(first).unwrap().waits = true;
    assert_eq!(shape(&step(&mut state, &limits)), [(1, 10, 1)]);
    state.running_mut(first).unwrap().waits = false;
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 16, 1), (1, 11, 1)]);
}

#[test]
fn decode_rows_come_first_and_chunks_end_at_multiples_of_64() {
    let mut state = State::new(PoolSizes { blocks: 100, slots: 4 });
    let limits = limits(4, 200);
    state.add(sequence(0, 10));
    state.add(sequence(1, 300));
    // 190 tokens are left for the second prompt: two whole chunks of 64.
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 0, 10), (1, 0, 128)]);
    state.add(sequence(2, 70));
    // 199 are left: the second prompt goes to its end with 172, and 27 are not enough for a chunk of the third.
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 10, 1), (1, 128, 172)]);
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 11, 1), (1, 300, 1), (2, 0, 70)]);
}

#[test]
fn the_last_in_line_is_preempted_and_recomputed_with_its_own_tokens_unscanned() {
    let mut state = State::new(PoolSizes { blocks: 4, slots: 2 });
    let limits = limits(2, 128);
    state.add(sequence(0, 30));
    state.add(sequence(1, 20));
    step(&mut state, &limits);
    for _ in 0..2 {
        assert_eq!(step(&mut state, &limits).segments.len(), 2);
    }
    // The first one wants its third block at token 33, and takes it from the second.
    let plan = step(&mut state, &limits);
    assert_eq!(shape(&plan), [(0, 32, 1)]);
    assert_eq!(plan.preempted, [Rank { priority: 0, arrival: 1 }]);
    assert_eq!(state.waiting.values().next().unwrap().known, 23);
    state.remove(Rank { priority: 0, arrival: 0 }).unwrap();
    let plan = step(&mut state, &limits);
    assert_eq!(shape(&plan), [(1, 0, 23)]);
    assert_eq!(plan.segments[0].scan, 20);
}

#[test]
fn priorities_order_the_line() {
    let mut state = State::new(PoolSizes { blocks: 100, slots: 1 });
    for (arrival, priority) in [(0, 5), (1, 0), (2, -1)] {
        state.add(Sequence::new(Rank { priority, arrival }, 4, false));
    }
    let plan = plan(&state, &limits(1, 65));
    assert_eq!(plan.admitted, [Rank { priority: -1, arrival: 2 }]);
}

#[test]
fn prompt_logits_are_bounded_by_the_rows_of_a_step() {
    let mut state = State::new(PoolSizes { blocks: 100, slots: 2 });
    state.add(Sequence::new(Rank { priority: 0, arrival: 0 }, 300, true));
    // 66 rows: one chunk of 64, although 512 tokens would go.
    let limits = limits(2, 512);
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 0, 64)]);
    assert_eq!(shape(&step(&mut state, &limits)), [(0, 64, 64)]);
}

#[test]
fn random_worlds_do_preempt() {
    // Guards the property test against becoming vacuous.
    let arrivals = (0..6).map(|_| Arrival {
        step: 0,
        priority: 0,
        prompt: 40,
        answer: 60,
        prompt_logits: false,
        cancel_after: None,
    });
    let world = World {
        limits: crate::step_limits(5, 5 + SCAN_CHUNK, 128),
        pools: PoolSizes { blocks: 16, slots: 5 },
        arrivals: arrivals.collect(),
    };
    let (steps, preemptions) = run(&world);
    assert!(preemptions > 0 && steps > 60, "{steps} steps, {preemptions} preemptions");
}

#[test]
fn admission_leaves_the_blocks_that_running_prompts_still_need() {
    for (blocks, admitted) in [(11, 1), (12, 2)] {
        let mut state = State::new(PoolSizes { blocks, slots: 2 });
        // 8 blocks now and 2 later; then 2 for a prompt of 20 tokens and its first own one.
        state.add(sequence(0, 150));
        state.add(sequence(1, 20));
        let plan = plan(&state, &limits(2, 149));
        assert_eq!(plan.admitted.len(), admitted, "{blocks} blocks");
        assert_eq!(shape(&plan)[0], (0, 0, 128));
    }
}
