//! Dead code elimination.

use super::Pass;
use super::operands::{states_mut, views_mut, weights_mut};
use crate::columns::Columns;
use crate::{Op, Program, StateId, TensorId, WeightId};

/// Removes the ops whose results nobody reads and that update no state, then the tensors, weights and states that are
/// left without an op.
#[derive(Clone, Copy, Debug)]
pub struct RemoveDeadCode;

impl Pass for RemoveDeadCode {
    fn name(&self) -> &'static str {
        "remove-dead-code"
    }

    fn run(&self, program: &mut Program) -> usize {
        let before = program.nodes.len();
        let mut needed = Columns::new(program.tensors.len());
        needed.insert(program.logits);
        let mut live: Vec<bool> = program.nodes.iter().rev().map(|node| is_live(&node.op, &mut needed)).collect();
        live.reverse();
        let mut live = live.into_iter();
        program.nodes.retain(|_| live.next() == Some(true));
        drop_unused(program);
        before - program.nodes.len()
    }

    fn looks_for(&self) -> &'static str {
        "op whose result nobody reads"
    }
}

/// Whether an op is needed, given the columns that later ops need, which then become the columns needed before it.
fn is_live(op: &Op, needed: &mut Columns) -> bool {
    let writes = op.writes();
    let live = op.updates_state() || writes.iter().any(|view| needed.intersect(*view));
    if live {
        writes.into_iter().chain(op.staged()).for_each(|view| needed.remove(view));
        op.reads().into_iter().for_each(|view| needed.insert(view));
    }
    live
}

/// Drops the definitions that no op names and renumbers the others.
fn drop_unused(program: &mut Program) {
    let mut tensors = vec![false; program.tensors.len()];
    let mut weights = vec![false; program.weights.len()];
    let mut states = vec![false; program.states.len()];
    tensors[program.logits.tensor.0] = true;
    for node in &program.nodes {
        node.op.views().into_iter().for_each(|view| tensors[view.tensor.0] = true);
        node.op.weights().into_iter().for_each(|weight| weights[weight.0] = true);
        node.op.states().into_iter().for_each(|state| states[state.0] = true);
    }
    let tensors = keep(&mut program.tensors, &tensors);
    let weights = keep(&mut program.weights, &weights);
    let states = keep(&mut program.states, &states);
    program.logits.tensor = TensorId(tensors[program.logits.tensor.0]);
    for node in &mut program.nodes {
        views_mut(&mut node.op).into_iter().for_each(|view| view.tensor = TensorId(tensors[view.tensor.0]));
        weights_mut(&mut node.op).into_iter().for_each(|weight| *weight = WeightId(weights[weight.0]));
        states_mut(&mut node.op).into_iter().for_each(|state| *state = StateId(states[state.0]));
    }
}

/// Keeps the used definitions and gives the new index of each old one.
fn keep<T>(definitions: &mut Vec<T>, used: &[bool]) -> Vec<usize> {
    let mut uses = used.iter();
    definitions.retain(|_| uses.next() == Some(&true));
    let new_index = |count: &mut usize, &used: &bool| {
        let index = *count;
        *count += usize::from(used);
        Some(index)
    };
    used.iter().scan(0, new_index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{BF16, any_config, any_program, execute, separate};
    use crate::{Node, Rows, TensorDef, View};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_live_never_changes(program in any_program(), tokens in 1_usize..4) {
            let before = execute(&program, &separate(&program, tokens, 1), tokens, 1);
            let after = super::super::run(program.clone(), &[&RemoveDeadCode]).unwrap();
            prop_assert_eq!(execute(&after, &separate(&after, tokens, 1), tokens, 1), before);
            // Nothing dead is left: a second run finds nothing, and taking any op out would change the outcome.
            prop_assert_eq!(RemoveDeadCode.run(&mut after.clone()), 0);
            for index in 0..after.nodes.len() {
                let mut less = after.clone();
                less.nodes.remove(index);
                let outcome = execute(&less, &separate(&less, tokens, 1), tokens, 1);
                prop_assert_ne!(&outcome, &execute(&after, &separate(&after, tokens, 1), tokens, 1));
            }
        }

        #[test]
        fn built_programs_have_nothing_dead(config in any_config()) {
            let program = Program::build(&config, &BF16).unwrap();
            let mut after = program.clone();
            prop_assert_eq!(RemoveDeadCode.run(&mut after), 0);
            prop_assert_eq!(after, program);
        }
    }

    #[test]
    fn a_dead_chain_goes_with_its_definitions() {
        let program = Program::build(&crate::testing::tinytales(), &BF16).unwrap();
        let mut padded = program.clone();
        let width = 256;
        let mut dead = Vec::new();
        for name in ["dead.0", "dead.1"] {
            let definition =
                TensorDef { name: name.to_owned(), rows: Rows::Tokens, width, ..program.tensors[0].clone() };
            padded.tensors.push(definition);
            dead.push(View { tensor: TensorId(padded.tensors.len() - 1), column: 0, width });
        }
        let x = View { tensor: TensorId(0), column: 0, width };
        let mut weight = program.weights[1].clone();
        weight.name = "dead.norm".to_owned();
        padded.weights.insert(0, weight);
        for node in &mut padded.nodes {
            weights_mut(&mut node.op).into_iter().for_each(|weight| weight.0 += 1);
        }
        let norm = Op::RmsNorm { x, weight: WeightId(0), eps: 1e-6, out: dead[0] };
        padded.nodes.insert(1, Node { layer: None, op: norm });
        padded.nodes.insert(2, Node { layer: None, op: Op::Add { a: dead[0], b: x, out: dead[1] } });
        padded.validate().unwrap();
        assert_ne!(padded, program);
        assert_eq!(RemoveDeadCode.run(&mut padded), 2);
        assert_eq!(padded, program);
    }
}
