//! What all fusing passes share: finding neighbours by their data, and replacing ops where that is safe.

use crate::columns::Columns;
use crate::{Node, Op, Program, View};

/// Ops that can become one, if that is safe.
pub(super) struct Candidate {
    /// Indices of the ops, ascending.
    pub nodes: Vec<usize>,
    /// What replaces them: its parts are those ops.
    pub fused: Op,
}

/// Lets `find` look at every op, by its index, for a candidate that contains it, and replaces those that are safe.
/// Gives the number of places.
pub(super) fn fuse(program: &mut Program, find: impl Fn(&Program, usize) -> Option<Candidate>) -> usize {
    let (mut places, mut at) = (0, 0);
    while at < program.nodes.len() {
        let found = find(program, at).and_then(|candidate| Some((place(program, &candidate)?, candidate)));
        let Some((index, Candidate { nodes, fused })) = found else {
            at += 1;
            continue;
        };
        program.nodes[index] = Node { layer: program.nodes[index].layer, op: fused };
        for &other in nodes.iter().rev().filter(|other| **other != index) {
            program.nodes.remove(other);
        }
        // The fused op may be part of the next candidate.
        at -= nodes.iter().filter(|other| **other < at).count();
        places += 1;
    }
    places
}

/// The index at which the candidate can stand instead of its ops: that of the last or of the first of them. None when
/// the program would change.
fn place(program: &Program, candidate: &Candidate) -> Option<usize> {
    let Candidate { nodes, fused } = candidate;
    let (first, last) = (*nodes.first()?, *nodes.last()?);
    let op = |index: usize| &program.nodes[index].op;
    let others = || (first..=last).filter(|index| !nodes.contains(index));
    // The ops between the candidate's run before it, or all of them after it.
    let all_sink = nodes.iter().all(|&node| others().all(|other| other < node || independent(op(node), op(other))));
    let all_rise = nodes.iter().all(|&node| others().all(|other| other > node || independent(op(other), op(node))));
    let safe = fused.clash().is_none()
        && keeps_order(&nodes.iter().map(|&index| op(index)).collect::<Vec<_>>(), &fused.parts())
        && fused.staged().into_iter().all(|view| is_dead(program, nodes, view));
    match (safe, all_sink, all_rise) {
        (true, true, _) => Some(last),
        (true, false, true) => Some(first),
        _ => None,
    }
}

/// Whether `parts` are the ops, in an order that changes nothing.
fn keeps_order(ops: &[&Op], parts: &[Op]) -> bool {
    let originals: Vec<Op> = ops.iter().flat_map(|op| op.parts()).collect();
    let position = |part: &Op| originals.iter().position(|original| same(original, part));
    let positions: Option<Vec<usize>> = parts.iter().map(position).collect();
    let Some(positions) = positions.filter(|positions| positions.len() == originals.len()) else { return false };
    positions.iter().enumerate().all(|(index, &later)| {
        let swapped = |&&earlier: &&usize| earlier >= later;
        positions[..index]
            .iter()
            .filter(swapped)
            .all(|&earlier| earlier != later && independent(&originals[earlier], &originals[later]))
    })
}

/// Whether two ops are the same; sums are in either order.
fn same(a: &Op, b: &Op) -> bool {
    match (a, b) {
        (Op::Add { a, b, out }, &Op::Add { a: first, b: second, out: to }) => {
            *out == to && ((*a, *b) == (first, second) || (*a, *b) == (second, first))
        }
        _ => a == b,
    }
}

/// Whether two ops can be exchanged: neither changes what the other reads or writes.
fn independent(a: &Op, b: &Op) -> bool {
    let results = |op: &Op| [op.writes(), op.staged()].concat();
    let apart = |results: &[View], others: &[View]| {
        results.iter().all(|result| others.iter().all(|other| !result.overlaps(*other)))
    };
    let states_apart =
        !(a.updates_state() || b.updates_state()) || a.states().iter().all(|state| !b.states().contains(state));
    states_apart && apart(&results(a), &b.views()) && apart(&results(b), &a.views())
}

/// Whether nobody but the ops `nodes` reads what a view holds when the first of them has run.
fn is_dead(program: &Program, nodes: &[usize], view: View) -> bool {
    let mut left = Columns::new(program.tensors.len());
    left.insert(view);
    for index in (nodes[0] + 1..program.nodes.len()).filter(|index| !nodes.contains(index)) {
        let op = &program.nodes[index].op;
        if op.reads().into_iter().any(|read| left.intersect(read)) {
            return false;
        }
        op.writes().into_iter().chain(op.staged()).for_each(|written| left.remove(written));
    }
    !left.intersect(program.logits)
}

/// The first op after `index` that has to do with any column of a view.
pub(super) fn next_use(program: &Program, index: usize, view: View) -> Option<usize> {
    let later = index + 1..program.nodes.len();
    later.into_iter().find(|&later| program.nodes[later].op.views().iter().any(|used| used.overlaps(view)))
}

/// The last op before `index` that has changed any column of a view.
pub(super) fn last_change(program: &Program, index: usize, view: View) -> Option<usize> {
    let changes = |op: &Op| op.writes().into_iter().chain(op.staged()).any(|changed| changed.overlaps(view));
    (0..index).rev().find(|&earlier| changes(&program.nodes[earlier].op))
}

/// Two ops, the first of which gives the second its input.
pub(super) fn pair(first: usize, second: usize, fused: Op) -> Option<Candidate> {
    Some(Candidate { nodes: vec![first, second], fused })
}
