//! A tape of tensor functions, each with a way back that was written by hand.
//!
//! candle's own autograd computes the gradient of every operand of a product, also of frozen weights, and keeps all of them:
//! half again the work of a pass. Here a function says what it wants, and what a step kept is freed as soon as it is used.

use std::collections::BTreeMap;

use candle_core::{Result, Tensor};

/// A value on the tape.
#[derive(Clone)]
pub(super) struct Node {
    pub value: Tensor,
    /// True if somebody at or below asks for the gradient.
    pub wanted: bool,
    id: usize,
}

type Back<'a> = Box<dyn FnOnce(Tensor) -> Result<Vec<(usize, Tensor)>> + 'a>;

/// The steps of one pass, in order.
#[derive(Default)]
pub(super) struct Tape<'a> {
    steps: Vec<(usize, Back<'a>)>,
    n_nodes: usize,
}

impl<'a> Tape<'a> {
    /// Puts `value` on the tape; `back` turns its gradient into those of the nodes it was made of, and is never called if
    /// nobody wants it.
    pub fn push(
        &mut self,
        value: Tensor,
        wanted: bool,
        back: impl FnOnce(Tensor) -> Result<Vec<(usize, Tensor)>> + 'a,
    ) -> Node {
        let id = self.n_nodes;
        self.n_nodes += 1;
        if wanted {
            self.steps.push((id, Box::new(back)));
        }
        Node { value, wanted, id }
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Node, b: &Node) -> Result<Node> {
        let value = (&a.value + &b.value)?;
        let to: Vec<usize> = [a, b].into_iter().filter(|node| node.wanted).map(Node::id).collect();
        Ok(self.push(value, a.wanted || b.wanted, move |d| Ok(to.into_iter().map(|id| (id, d.clone())).collect())))
    }

    /// Walks back from `node` with its gradient.
    pub fn backward(mut self, node: &Node, gradient: Tensor) -> Result<()> {
        let mut gradients = BTreeMap::from([(node.id, gradient)]);
        while let Some((id, back)) = self.steps.pop() {
            let Some(d) = gradients.remove(&id) else { continue };
            for (to, d) in back(d)? {
                let sum = match gradients.remove(&to) {
                    Some(before) => (before + d)?,
                    None => d,
                };
                gradients.insert(to, sum);
            }
        }
        Ok(())
    }
}

impl Node {
    /// Its name in what a way back returns.
    pub fn id(&self) -> usize {
        self.id
    }
}
