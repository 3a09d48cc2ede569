//! What the default method's gradient channels would have been with a little less: one projected column less, one checkpoint
//! less. And what their sums leave out: the second-order additivity residual. `calibrate` makes intervals of it.

use std::collections::BTreeMap;

use ascribe_core::{Column, Digest, FeatureReader as _, Progress};
use ascribe_methods::block_fisher::{Factors, Preconditioner, precondition};
use ascribe_methods::depth::Kind;
use ascribe_methods::dot;
use ascribe_methods::group::additivity;
use ascribe_methods::group::intervals::{ColumnReplicates, MatrixShape, column_replicates};
use ascribe_store::{FactorData, FactorFile};
use ndarray::{Array2, Array3, ArrayViewMut2, Axis};

use super::channels::{self, GradientChannel};
use super::context::Context;
use super::features::{self, open_train};
use super::fit;
use super::stamps::Stamps;
use crate::error::EngineError;

/// Replicates, relative to the run folder.
pub const REPLICATES_FILE: &str = "factors/replicates.safetensors";
const KIND: &str = "replicates";
const ADDITIVITY: &str = "additivity";

/// Sources of variance that have replicates, in the order of reports.
pub const SOURCES: [&str; 3] = ["projection_outputs", "projection_inputs", "checkpoints"];

/// Per channel and source: `[R][Q, K]`, each with one part left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replicates {
    /// By channel, then by source. A channel without an entry is not drawn by chance.
    pub channels: BTreeMap<String, BTreeMap<String, Vec<Array2<f64>>>>,
    /// `[Q]`: second-order part that sums of the last checkpoint's dataset scores leave out, relative to their size.
    pub additivity: Vec<f64>,
}

/// Computes and writes the replicates of the default's channels, unless they are there.
///
/// # Errors
/// From stores, factors, methods, the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<(), EngineError> {
    let names = channels::names(context)?;
    let key = Digest::of_json(&("noise", features::digest(context)?, stamps.outputs_digest(&["fit"]), &names))?;
    if stamps.is_done(&context.out, "noise", key) {
        return Ok(());
    }
    progress.start("noise", names.len() as u64 + 1, "channels");
    let mut found = Replicates::default();
    for name in names {
        if let Some(channel) = channels::gradient(context, &name)? {
            found.channels.insert(name, of_channel(context, &channel)?);
        }
        progress.advance(1);
    }
    found.additivity = residuals(context, progress)?;
    found.write(context)?;
    progress.finish(&format!("{} channels with replicates", found.channels.len()));
    stamps.finish(&context.out, "noise", key, &[REPLICATES_FILE.to_owned()])
}

/// Curvature of the identity: what plain inner products are.
pub(crate) struct Plain(pub(crate) Vec<Column>);

impl Preconditioner for Plain {
    fn columns(&self) -> &[Column] {
        &self.0
    }

    fn solve(&self, _: usize, _: ArrayViewMut2<'_, f64>) {}

    fn whiten(&self, _: usize, _: ArrayViewMut2<'_, f64>) {}
}

/// Which modules are projected matrices: as many numbers as both sides' columns, and no gain of a norm.
pub(crate) fn shapes(context: &Context, columns: &[Column]) -> Vec<MatrixShape> {
    let (k_out, k_in) = (context.attribution.k_out, context.attribution.k_in);
    columns
        .iter()
        .map(|c| (c.len == k_out * k_in && Kind::of(&c.name) != Kind::Norm).then_some((k_out, k_in)))
        .collect()
}

fn of_channel(context: &Context, channel: &GradientChannel) -> Result<BTreeMap<String, Vec<Array2<f64>>>, EngineError> {
    let mut columns_left_out: Option<ColumnReplicates> = None;
    let mut parts = BTreeMap::new();
    for &c in &channel.checkpoints {
        let checkpoint = &context.checkpoints[c];
        let store = open_train(context, &checkpoint.name)?;
        let spec = store.spec();
        let rows = channel.queries(context, c, &spec.columns)?;
        let by: Box<dyn Preconditioner> = match channel.curved {
            true => Box::new(fit::read(context, checkpoint)?),
            false => Box::new(Plain(spec.columns.clone())),
        };
        let (sums, weight) = (store.dataset_sums()?.sums(), channel.weight(context, c));
        let part = dot::dataset_scores(precondition(by.as_ref(), rows.view())?.view(), sums.view())? * weight;
        let found = column_replicates(by.as_ref(), &shapes(context, &spec.columns), rows.view(), sums.view())?;
        match &mut columns_left_out {
            None => columns_left_out = Some(found.scaled(weight)),
            Some(total) => total.add(&found, weight)?,
        }
        parts.insert(c, part);
    }
    let mut out: BTreeMap<String, Vec<Array2<f64>>> = BTreeMap::new();
    if let Some(found) = columns_left_out {
        out.insert(SOURCES[0].to_owned(), found.outputs);
        out.insert(SOURCES[1].to_owned(), found.inputs);
    }
    // One replicate per checkpoint of the run, so that channels leave out the same one. A single one cannot go: there is nothing
    // that its channel could be compared with, and a deviation of 0 would say that there was.
    if parts.len() > 1 {
        let whole = parts.values().skip(1).fold(parts[&channel.checkpoints[0]].clone(), |sum, part| sum + part);
        let without = |c: usize| parts.get(&c).map_or_else(|| whole.clone(), |part| &whole - part);
        out.insert(SOURCES[2].to_owned(), (0..context.checkpoints.len()).map(without).collect());
    }
    // Leaving out is linear in the sums, and so is what takes a dataset's place.
    for tables in out.values_mut() {
        for table in tables {
            *table = channel.placed(context, std::mem::take(table))?;
        }
    }
    Ok(out)
}

/// Per response what a sum of block-Fisher scores leaves out at the last checkpoint; 0 where there are no scores.
fn residuals(context: &Context, progress: &dyn Progress) -> Result<Vec<f64>, EngineError> {
    let last = context.last();
    let store = open_train(context, &last.name)?;
    let factors: Factors = fit::read(context, last)?;
    let checkpoints = vec![context.checkpoints.len() - 1];
    let whole = GradientChannel { curved: true, checkpoints, modules: None, exchange: false };
    let rows = whole.queries(context, context.checkpoints.len() - 1, &store.spec().columns)?;
    let solved = precondition(&factors, rows.view())?;
    let sums = store.dataset_sums()?.sums();
    // Sums are larger than rows: to one scale first, so that f32 has room.
    let largest = sums.iter().fold(0.0f64, |m, v| m.max(v.abs())).max(f64::MIN_POSITIVE);
    let solved_sums = precondition(&factors, sums.mapv(|v| (v / largest) as f32).view())?;
    let both = ndarray::concatenate(Axis(0), &[solved.view(), solved_sums.view()]).expect("both have a row's columns");
    let scored = dot::score(&store, both.view(), None, progress)?;
    let (queries, datasets) = scored.values.view().split_at(Axis(0), solved.nrows());
    let pairs = additivity::second_order(queries, (datasets.mapv(f64::from) * largest).view(), &scored.examples)?;
    let scores = dot::dataset_scores(solved.view(), sums.view())?;
    let found = additivity::residuals(&pairs, scores.view())?;
    Ok(found.into_iter().map(|r| r.unwrap_or(0.0)).collect())
}

impl Replicates {
    fn write(&self, context: &Context) -> Result<(), EngineError> {
        let mut file = FactorFile::new(KIND, open_train(context, &context.last().name)?.spec().hash());
        for (channel, sources) in &self.channels {
            for (source, tables) in sources {
                let views: Vec<_> = tables.iter().map(|t| t.view()).collect();
                let stacked: Array3<f64> = ndarray::stack(Axis(0), &views).expect("replicates have one shape");
                file.tensors.insert(format!("{channel}:{source}"), FactorData::F64(stacked.into_dyn()));
            }
        }
        let residuals = ndarray::Array1::from(self.additivity.clone()).into_dyn();
        file.tensors.insert(ADDITIVITY.to_owned(), FactorData::F64(residuals));
        Ok(file.write(&context.out.join(REPLICATES_FILE))?)
    }

    /// Reads what the station wrote.
    ///
    /// # Errors
    /// A missing or damaged file, one of other rows.
    pub fn read(context: &Context) -> Result<Self, EngineError> {
        let path = context.out.join(REPLICATES_FILE);
        let file = FactorFile::read(&path, Some(open_train(context, &context.last().name)?.spec().hash()))?;
        let refuse = |name: &str| EngineError::Content {
            path: path.clone(),
            expected: "replicates as `channel:source`, [R, Q, K] in f64".into(),
            found: name.to_owned(),
        };
        let mut out = Self::default();
        for (name, data) in &file.tensors {
            let tensor = data.as_f64().ok_or_else(|| refuse(name))?;
            if name == ADDITIVITY {
                out.additivity = tensor.iter().copied().collect();
                continue;
            }
            let (channel, source) = name.rsplit_once(':').ok_or_else(|| refuse(name))?;
            let tables: Array3<f64> = tensor.clone().into_dimensionality().map_err(|_| refuse(name))?;
            let tables = tables.outer_iter().map(|t| t.to_owned()).collect();
            out.channels.entry(channel.to_owned()).or_default().insert(source.to_owned(), tables);
        }
        if out.additivity.len() != context.corpus.queries.len() {
            return Err(refuse(ADDITIVITY));
        }
        Ok(out)
    }
}
