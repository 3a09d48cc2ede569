//! The gradient stage on a device: the rows of [`GradientStage`], from batches, on a GPU or on the processor.
//!
//! Same families, same projections, same columns; another arithmetic: sequences of similar length are padded to one length
//! and walk together, sums follow the device's kernels. So a row agrees with the one of [`GradientStage`] to rounding and is
//! not the same bytes, and its last bits may depend on its batch. What is paid is computed by [`GradientStage`].
//!
//! **Not run on a GPU yet.** This code is tested on the processor, in f32 and in bf16; with the feature `cuda` it was
//! type-checked (CUDA 13.0, candle's kernels compiled for compute capability 9.0), neither linked nor run. `benches/gpu/run.sh`
//! compares and measures where there is a device.

mod attention;
mod functions;
mod pass;
mod tape;
mod taps;

use std::sync::mpsc::sync_channel;

use candle_core::{DType, Device};
use ndarray::{Array2, ArrayViewMut2};

use crate::decoder::{Decoder, Sequence};
use crate::error::ModelError;
use crate::features::GradientStage;
pub(super) use functions::product;
use pass::{Batch, Model};
use taps::Taps;
pub(crate) use taps::{BlockPlan, SitePlan, TapPlan};

/// Blocks of rows that may wait for the one who takes them.
const WAITING_BLOCKS: usize = 2;

/// Where a pass runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The processor.
    Cpu,
    /// The CUDA device of this number; only in builds with the feature `cuda`.
    Cuda(usize),
}

/// In which numbers a pass computes. Sums, losses, norms' statistics and rows are f32 in both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Numbers {
    /// f32 throughout.
    F32,
    /// Weights and activations in bf16.
    Bf16,
}

/// How a pass runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placement {
    /// Where.
    pub place: Place,
    /// In which numbers.
    pub numbers: Numbers,
    /// Positions per batch, padding included. A sequence that is longer runs alone.
    pub batch_tokens: usize,
}

/// Rows in the order of the sequences.
#[derive(Clone, Debug)]
pub struct RowBlock {
    /// Index of the first sequence.
    pub first: usize,
    /// `[n, dim]`.
    pub rows: Array2<f32>,
    /// Summed losses in nats.
    pub losses: Vec<f64>,
}

/// Turns sequences into projected gradient rows on a device.
pub struct GraphStage<'m> {
    decoder: &'m Decoder,
    model: Model<'m>,
    taps: Taps,
    batch_tokens: usize,
}

fn device(place: Place) -> Result<Device, ModelError> {
    match place {
        Place::Cpu => Ok(Device::Cpu),
        Place::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(ModelError::Mismatch {
            what: "device",
            expected: "the processor (this build has no CUDA; build with `--features cuda`)".into(),
            found: format!("{place:?}"),
        }),
        Place::Cuda(ordinal) => Ok(Device::new_cuda(ordinal)?),
    }
}

/// Device and number type of a placement.
pub(super) fn target(placement: Placement) -> Result<(Device, DType), ModelError> {
    let dtype = match placement.numbers {
        Numbers::F32 => DType::F32,
        Numbers::Bf16 => DType::BF16,
    };
    Ok((device(placement.place)?, dtype))
}

impl<'m> GraphStage<'m> {
    /// Copies the weights of `decoder` and the projectors of `stage` to the device.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] if the build has no such device, or if `stage` asks for more than two-sided projections of
    /// next-token losses; [`ModelError::Graph`] if the device has no room.
    pub fn new(decoder: &'m Decoder, stage: &GradientStage<'_>, placement: Placement) -> Result<Self, ModelError> {
        let (device, dtype) = target(placement)?;
        let plan = stage.device_plan()?;
        let taps = Taps::new(&plan, decoder.config().num_hidden_layers, &device, dtype)?;
        let model = Model::new(decoder, device, dtype)?;
        Ok(Self { decoder, model, taps, batch_tokens: placement.batch_tokens.max(1) })
    }

    /// Numbers per row.
    pub fn dim(&self) -> usize {
        self.taps.dim()
    }

    /// Fills `out` `[n, dim]` with the rows of `sequences`, as [`GradientStage::rows`] does, and returns the summed losses
    /// in nats.
    ///
    /// Cost per position: `4` operations per parameter of a linear layer, the products of attention over the padded length,
    /// the projections. Memory: what the layers keep for the way back, see [`GraphStage::activation_bytes`].
    ///
    /// # Errors
    /// [`ModelError::Length`], [`ModelError::Token`]; [`ModelError::Mismatch`] if `out` has another size;
    /// [`ModelError::Diverged`] if a row is not finite; [`ModelError::Graph`] if the device fails or is full.
    pub fn rows(&self, sequences: &[Sequence<'_>], mut out: ArrayViewMut2<'_, f32>) -> Result<Vec<f64>, ModelError> {
        self.decoder.check(sequences)?;
        if out.dim() != (sequences.len(), self.dim()) {
            let expected = format!("{:?}", (sequences.len(), self.dim()));
            let found = format!("{:?}", out.dim());
            return Err(ModelError::Mismatch { what: "shape of the gradient rows", expected, found });
        }
        out.fill(0.0);
        let mut losses = vec![0.0; sequences.len()];
        for batch in self.batches(sequences) {
            let members: Vec<Sequence<'_>> = batch.iter().map(|&i| sequences[i]).collect();
            let n_positions = self.decoder.config().max_position_embeddings;
            let input = Batch::new(&members, n_positions, &self.model.device)?;
            let (rows, batch_losses) = self.model.rows(&input, &self.taps)?;
            let numbers = rows.flatten_all()?.to_vec1::<f32>()?;
            for ((&i, row), loss) in batch.iter().zip(numbers.chunks_exact(self.dim())).zip(batch_losses) {
                let found = row.iter().map(|&x| f64::from(x)).sum::<f64>() + loss;
                if !found.is_finite() {
                    return Err(ModelError::Diverged { step: 0, what: "projected gradient", found });
                }
                out.row_mut(i).iter_mut().zip(row).for_each(|(out, &x)| *out = x);
                losses[i] = loss;
            }
        }
        Ok(losses)
    }

    /// Indices of sequences that run together: by falling length, as many as fit, those without a loss left out.
    fn batches(&self, sequences: &[Sequence<'_>]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..sequences.len()).filter(|&i| sequences[i].n_predictions() > 0).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(sequences[i].tokens.len()), i));
        let mut batches: Vec<Vec<usize>> = vec![];
        for i in order {
            match batches.last_mut() {
                Some(batch)
                    if (batch.len() + 1) * pass::padded(sequences[batch[0]].tokens.len()) <= self.batch_tokens =>
                {
                    batch.push(i);
                }
                _ => batches.push(vec![i]),
            }
        }
        batches
    }

    /// Computes the rows of `sequences` in blocks of `block_len` and hands them to `take`, in order, on the calling thread;
    /// the device goes on with up to two blocks while `take` writes. Stops at the first error of either side.
    ///
    /// # Errors
    /// What [`GraphStage::rows`] and `take` refuse.
    pub fn stream<E: From<ModelError>>(
        &self,
        sequences: &[Sequence<'_>],
        block_len: usize,
        mut take: impl FnMut(RowBlock) -> Result<(), E>,
    ) -> Result<(), E> {
        let block_len = block_len.max(1);
        let (sender, receiver) = sync_channel::<Result<RowBlock, ModelError>>(WAITING_BLOCKS);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for (i, sequences) in sequences.chunks(block_len).enumerate() {
                    let mut rows = Array2::zeros((sequences.len(), self.dim()));
                    let block = self.rows(sequences, rows.view_mut()).map(|losses| RowBlock {
                        first: i * block_len,
                        rows,
                        losses,
                    });
                    let failed = block.is_err();
                    // Nobody listens any more if taking failed.
                    if sender.send(block).is_err() || failed {
                        return;
                    }
                }
            });
            for block in receiver {
                take(block?)?;
            }
            Ok(())
        })
    }

    /// Operations per position that the projections take.
    pub(super) fn projection_flop(&self) -> f64 {
        self.taps.flop()
    }

    /// Bytes that a batch of `n_sequences` sequences of `t` positions keeps for the way back, in numbers of
    /// `bytes_per_number`: per layer and position the residual stream twice, queries, keys, values and the attended rows, the
    /// feed-forward layer's width twice, and per head the row of attention. Working memory of the widest layer comes on top.
    pub fn activation_bytes(&self, n_sequences: usize, t: usize, bytes_per_number: usize) -> usize {
        let config = self.decoder.config();
        let feed_forward = if config.arch.gated { 2 } else { 1 } * config.intermediate_size;
        let rows = 2 * config.hidden_size + 2 * config.qkv_width() + config.query_width() + feed_forward;
        let per_position = rows + config.num_attention_heads * pass::padded(t);
        config.num_hidden_layers * n_sequences * pass::padded(t) * per_position * bytes_per_number
    }
}

#[cfg(test)]
mod tests;
