//! Projections on the device, and the blocks of a batch's rows that they leave.
//!
//! A block is `(Δ·P_out)ᵀ·(X·P_in)` per sequence. The input side is projected on the way up, so that inputs need not be
//! kept; neither side is ever copied off the device, only the finished rows are.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{DType, Device, Result, Tensor};
use ndarray::{Array2, s};

use super::functions::product;
use crate::decoder::{Module, Norm};
use crate::error::ModelError;

/// One projected block of a row.
#[derive(Clone, Debug)]
pub(crate) struct BlockPlan {
    /// Its columns of the product's output.
    pub columns: Range<usize>,
    /// `[I, k_in]`.
    pub p_in: Array2<f32>,
    /// `[columns, k_out]`.
    pub p_out: Array2<f32>,
    /// First column of the row.
    pub start: usize,
}

/// What is tracked at one product.
#[derive(Clone, Debug, Default)]
pub(crate) struct SitePlan {
    pub blocks: Vec<BlockPlan>,
    /// Columns of the output, and first column of the row.
    pub biases: Vec<(Range<usize>, usize)>,
}

/// All that a row holds, as matrices: what the stage of `features` says to a device.
#[derive(Clone, Debug, Default)]
pub(crate) struct TapPlan {
    pub dim: usize,
    pub sites: Vec<(Module, SitePlan)>,
    /// The table of tokens; a tied output layer has a block at the same place.
    pub embedding: Option<BlockPlan>,
    /// The table of learned positions.
    pub positions: Option<BlockPlan>,
    /// First columns of a norm's gain and bias.
    pub norms: Vec<(Norm, usize, Option<usize>)>,
}

/// A block on the device.
struct Block {
    /// Its columns of the joined projections.
    input: Range<usize>,
    output: Range<usize>,
    start: usize,
}

/// One product's projections side by side.
pub(super) struct Site {
    /// `[I, Σk_in]`; none if only biases are tracked.
    p_in: Option<Tensor>,
    /// `[O, Σk_out]`, zero outside of each block's own columns.
    p_out: Option<Tensor>,
    blocks: Vec<Block>,
    biases: Vec<(Range<usize>, usize)>,
}

/// A table that is read by index.
pub(super) struct Table {
    /// `[I, k_in]`.
    p_in: Tensor,
    /// `[rows, k_out]`, f32.
    p_out: Tensor,
    start: usize,
}

/// The plan on the device.
pub(super) struct Taps {
    dim: usize,
    n_layers: usize,
    sites: Vec<Option<Site>>,
    pub embedding: Option<Table>,
    pub positions: Option<Table>,
    norms: Vec<(Norm, usize, Option<usize>)>,
}

fn upload(matrix: &Array2<f32>, device: &Device, dtype: DType) -> Result<Tensor> {
    let numbers: Vec<f32> = matrix.iter().copied().collect();
    Tensor::from_vec(numbers, matrix.dim(), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
}

impl Taps {
    pub fn new(plan: &TapPlan, n_layers: usize, device: &Device, dtype: DType) -> Result<Self> {
        let mut sites: Vec<Option<Site>> = (0..4 * n_layers + 1).map(|_| None).collect();
        for (module, site) in &plan.sites {
            sites[place(*module, n_layers)] = Some(Site::new(site, device, dtype)?);
        }
        let table = |block: &BlockPlan| -> Result<Table> {
            let p_in = upload(&block.p_in, device, dtype)?;
            Ok(Table { p_in, p_out: upload(&block.p_out, device, DType::F32)?, start: block.start })
        };
        let embedding = plan.embedding.as_ref().map(table).transpose()?;
        let positions = plan.positions.as_ref().map(table).transpose()?;
        Ok(Self { dim: plan.dim, n_layers, sites, embedding, positions, norms: plan.norms.clone() })
    }

    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Operations per position of all projections and outer products.
    pub fn flop(&self) -> f64 {
        let sites = self.sites.iter().flatten().map(|site| {
            let sides = site.p_in.iter().chain(&site.p_out).map(Tensor::elem_count).sum::<usize>();
            sides + site.blocks.iter().map(|block| block.input.len() * block.output.len()).sum::<usize>()
        });
        let tables = self
            .embedding
            .iter()
            .chain(&self.positions)
            .map(|table| table.p_in.elem_count() + table.p_in.dims()[1] * table.p_out.dims()[1]);
        2.0 * sites.chain(tables).sum::<usize>() as f64
    }

    pub fn site(&self, module: Module) -> Option<&Site> {
        self.sites[place(module, self.n_layers)].as_ref()
    }

    /// First columns of the gain and the bias of `norm`.
    pub fn norm(&self, norm: Norm) -> Option<(usize, Option<usize>)> {
        self.norms.iter().find(|(other, ..)| *other == norm).map(|&(_, gain, bias)| (gain, bias))
    }
}

fn place(module: Module, n_layers: usize) -> usize {
    match module {
        Module::Qkv(l) => 4 * l,
        Module::O(l) => 4 * l + 1,
        Module::Up(l) => 4 * l + 2,
        Module::Down(l) => 4 * l + 3,
        Module::Head => 4 * n_layers,
    }
}

impl Site {
    fn new(plan: &SitePlan, device: &Device, dtype: DType) -> Result<Self> {
        let (mut blocks, mut k_in, mut k_out) = (vec![], 0, 0);
        for block in &plan.blocks {
            let input = k_in..k_in + block.p_in.ncols();
            let output = k_out..k_out + block.p_out.ncols();
            (k_in, k_out) = (input.end, output.end);
            blocks.push(Block { input, output, start: block.start });
        }
        let (mut p_in, mut p_out) = (None, None);
        if let Some(first) = plan.blocks.first() {
            let width = plan.blocks.iter().map(|block| block.columns.end).max().unwrap_or(0);
            let (mut all_in, mut all_out) = (Array2::zeros((first.p_in.nrows(), k_in)), Array2::zeros((width, k_out)));
            for (at, block) in blocks.iter().zip(&plan.blocks) {
                all_in.slice_mut(s![.., at.input.clone()]).assign(&block.p_in);
                all_out.slice_mut(s![block.columns.clone(), at.output.clone()]).assign(&block.p_out);
            }
            (p_in, p_out) = (Some(upload(&all_in, device, dtype)?), Some(upload(&all_out, device, dtype)?));
        }
        Ok(Self { p_in, p_out, blocks, biases: plan.biases.clone() })
    }

    /// `[n, I]` → `[n, Σk_in]`, f32; nothing if only biases are tracked.
    pub fn input(&self, x: &Tensor) -> Result<Option<Tensor>> {
        self.p_in.as_ref().map(|p| product(x, p)?.to_dtype(DType::F32)).transpose()
    }

    /// `[n, O]` → `[n, Σk_out]`, f32.
    pub fn output(&self, d: &Tensor) -> Result<Option<Tensor>> {
        let Some(p) = &self.p_out else { return Ok(None) };
        // Blocks of the first modules may not reach the last columns.
        let d = if p.dim(0)? < d.dim(1)? { d.narrow(1, 0, p.dim(0)?)?.contiguous()? } else { d.clone() };
        product(&d, p)?.to_dtype(DType::F32).map(Some)
    }
}

/// The blocks of one batch.
pub(super) struct Collected {
    n_sequences: usize,
    blocks: RefCell<Vec<(usize, Tensor)>>,
}

impl Collected {
    pub fn new(n_sequences: usize) -> Self {
        Self { n_sequences, blocks: RefCell::default() }
    }

    /// Rows of a product, projected on both sides.
    pub fn site(&self, site: &Site, px: Option<&Tensor>, pd: Option<&Tensor>) -> Result<()> {
        let (Some(px), Some(pd)) = (px, pd) else { return Ok(()) };
        for block in &site.blocks {
            let x = px.narrow(1, block.input.start, block.input.len())?;
            let d = pd.narrow(1, block.output.start, block.output.len())?;
            self.outer(block.start, &x, &d)?;
        }
        Ok(())
    }

    /// The biases of a product, from its whole output gradient.
    pub fn biases(&self, site: &Site, d: &Tensor) -> Result<()> {
        for (columns, start) in &site.biases {
            self.sums(*start, &d.narrow(1, columns.start, columns.len())?)?;
        }
        Ok(())
    }

    /// A table that was read at `indices` `[n]`.
    pub fn table(&self, table: &Table, indices: &Tensor, d_x: &Tensor) -> Result<()> {
        let px = product(d_x, &table.p_in)?.to_dtype(DType::F32)?;
        // Projecting a one-hot side picks a row of P_out.
        self.outer(table.start, &px, &table.p_out.index_select(indices, 0)?)
    }

    /// `[n, w]` numbers whose sum over a sequence is the block: gains and biases.
    pub fn sums(&self, start: usize, rows: &Tensor) -> Result<()> {
        let width = rows.dim(1)?;
        let per_sequence = rows.elem_count() / width / self.n_sequences;
        let rows = rows.to_dtype(DType::F32)?.reshape((self.n_sequences, per_sequence, width))?;
        self.blocks.borrow_mut().push((start, rows.sum(1)?));
        Ok(())
    }

    /// `Σ_t d_t x_tᵀ` per sequence, `[n, k_out]` and `[n, k_in]` → `[B, k_out·k_in]`.
    fn outer(&self, start: usize, x: &Tensor, d: &Tensor) -> Result<()> {
        let b = self.n_sequences;
        let (n, k_in) = x.dims2()?;
        let k_out = d.dims2()?.1;
        let x = x.reshape((b, n / b, k_in))?.contiguous()?;
        let d = d.reshape((b, n / b, k_out))?.transpose(1, 2)?.contiguous()?;
        self.blocks.borrow_mut().push((start, d.matmul(&x)?.reshape((b, k_out * k_in))?));
        Ok(())
    }

    /// The rows `[B, dim]`, f32, on the device.
    pub fn rows(self, taps: &Taps) -> std::result::Result<Tensor, ModelError> {
        let mut blocks = self.blocks.into_inner();
        blocks.sort_by_key(|(start, _)| *start);
        let mut parts: Vec<Tensor> = vec![];
        let (mut end, mut last) = (0, None);
        for (start, block) in blocks {
            match parts.last_mut() {
                // A tied output layer adds to the embedding.
                Some(part) if last == Some(start) => *part = (&*part + block)?,
                _ if start == end => {
                    (end, last) = (start + block.dim(1)?, Some(start));
                    parts.push(block);
                }
                _ => break,
            }
        }
        if end != taps.dim {
            let (expected, found) = (format!("{} columns", taps.dim), format!("a gap at column {end}"));
            return Err(ModelError::Mismatch { what: "taps that gave a gradient", expected, found });
        }
        Ok(Tensor::cat(&parts, 1)?)
    }
}
