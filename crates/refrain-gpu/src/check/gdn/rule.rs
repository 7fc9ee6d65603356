//! Sequences for the gated delta rule, and what it gives for them in double precision.

use crate::check::{Rig, rounded};
use refrain_program::{Dtype, GdnShape};

/// How strongly states decay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Decay {
    /// As in trained models: by 1 % to 50 % a token.
    Mild,
    /// Hardly at all.
    Slow,
    /// Mild, but now and then by e^-50 and more, down to e^-infinity.
    Extreme,
}

/// The tokens of one sequence that take part in some steps.
pub(super) struct Sequence {
    /// Of the first of them.
    pub position: u32,
    pub slot: u32,
    /// `[tokens, key_heads * key_head_dim]`, normalised; `q` scaled too.
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    /// `[tokens, value_heads * value_head_dim]`.
    pub v: Vec<f32>,
    /// `[tokens, value_heads]`.
    pub beta: Vec<f32>,
    pub decay: Vec<f32>,
    /// `[value_heads, value_head_dim, key_head_dim]` before the first token.
    pub state: Vec<f32>,
}

/// Heads that have something in common, as those behind a SiLU have, normalised.
fn unit_heads(rig: &Rig, tokens: usize, width: usize, head_dim: usize, scale: f32, dtype: Dtype) -> Vec<f32> {
    let common = rig.random(width, 0.5, Dtype::F32);
    let mut values = rig.random(tokens * width, 1.0, Dtype::F32);
    for token in values.chunks_exact_mut(width) {
        token.iter_mut().zip(&common).for_each(|(value, common)| *value += common);
    }
    for head in values.chunks_exact_mut(head_dim) {
        let factor = scale / head.iter().map(|x| x * x).sum::<f32>().max(1e-12).sqrt();
        head.iter_mut().for_each(|x| *x = rounded(*x * factor, dtype));
    }
    values
}

impl Sequence {
    pub fn random(rig: &Rig, shape: &GdnShape, dtype: Dtype, decay: Decay, part: (u32, usize, u32)) -> Sequence {
        let (position, tokens, slot) = part;
        let GdnShape { num_key_heads, num_value_heads, key_head_dim, value_head_dim } = *shape;
        let key_width = num_key_heads * key_head_dim;
        let scale = (key_head_dim as f32).powf(-0.5);
        let strength = if decay == Decay::Slow { 0.001 } else { 0.2 };
        let mut decays: Vec<f32> = rig.random(tokens * num_value_heads, 1.0, Dtype::F32);
        decays.iter_mut().for_each(|x| *x = -strength * (1.0 + x.exp()).ln());
        if decay == Decay::Extreme {
            let strong = [-50.0, -1e3, 0.0, -1e30, f32::NEG_INFINITY, -90.0, -20.0];
            for (index, decay) in decays.iter_mut().enumerate().filter(|(index, _)| index % 11 == 4) {
                *decay = strong[index / 11 % strong.len()];
            }
        }
        let logits = rig.random(tokens * num_value_heads, 1.5, Dtype::F32);
        let state = rig.random(num_value_heads * value_head_dim * key_head_dim, 0.2, Dtype::F32);
        Sequence {
            position,
            slot,
            q: unit_heads(rig, tokens, key_width, key_head_dim, scale, dtype),
            k: unit_heads(rig, tokens, key_width, key_head_dim, 1.0, dtype),
            v: rig.random(tokens * num_value_heads * value_head_dim, 1.0, dtype),
            beta: logits.into_iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            decay: decays,
            state,
        }
    }

    /// The outputs of one value head, `[tokens, value_head_dim]`, and its state afterwards, `[value_head_dim,
    /// key_head_dim]`: token by token.
    pub fn reference(&self, shape: &GdnShape, head: usize) -> (Vec<f64>, Vec<f64>) {
        let GdnShape { num_key_heads, num_value_heads, key_head_dim: keys, value_head_dim: values } = *shape;
        let key_head = head / (num_value_heads / num_key_heads);
        let wide = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let mut state = wide(&self.state[head * values * keys..][..values * keys]);
        if self.position == 0 {
            state.fill(0.0);
        }
        let mut out = Vec::new();
        for token in 0..self.beta.len() / num_value_heads {
            let key = (token * num_key_heads + key_head) * keys;
            let (q, k) = (wide(&self.q[key..][..keys]), wide(&self.k[key..][..keys]));
            let v = &self.v[(token * num_value_heads + head) * values..][..values];
            let gate = token * num_value_heads + head;
            let (beta, decay) = (f64::from(self.beta[gate]), f64::from(self.decay[gate]).exp());
            for (row, &v) in state.chunks_exact_mut(keys).zip(v) {
                row.iter_mut().for_each(|s| *s *= decay);
                let known: f64 = row.iter().zip(&k).map(|(s, k)| s * k).sum();
                let delta = beta * (f64::from(v) - known);
                row.iter_mut().zip(&k).for_each(|(s, k)| *s += delta * k);
                out.push(row.iter().zip(&q).map(|(s, q)| s * q).sum());
            }
        }
        (out, state)
    }
}
