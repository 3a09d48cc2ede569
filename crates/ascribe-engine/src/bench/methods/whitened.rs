//! LoRIF of matrices that are whitened from both sides, in few bits: what `ascribe features --factors` keeps, held to retraining.

use ascribe_core::Progress;
use ascribe_methods::coded::{CodedRows, Coding, Groups, whiten_queries};
use ascribe_methods::dot;
use ascribe_methods::lorif::{BothSides, Expanded, Layout};
use ascribe_methods::rows::InMemory;
use ndarray::{Array2, s};
use serde_json::json;

use super::rows::{RowSettings, Rows, factorable, named};
use super::{Timed, clocked};
use crate::error::EngineError;

/// Scores of the best factors of `rank` of every whitened row, coded with one scale per row, with whitened queries. `fit` and `score`
/// are the CPU-seconds that were spent before.
pub(super) fn whitened(
    train: &Rows,
    queries: &Rows,
    rank: usize,
    settings: &RowSettings,
    (mut fit, mut score): (f64, f64),
    progress: &dyn Progress,
) -> Result<Timed, EngineError> {
    let shapes = factorable(train, rank);
    let (reader, damping_rel) = (train.reader()?, settings.damping_rel.unwrap_or(1e-2));
    let by = clocked(&mut fit, || Ok(BothSides::fit(&reader, &shapes, damping_rel, progress)?))?;
    let layout = Layout::new(&by.stored_columns(rank), &shapes, rank)?;
    let mut stored = clocked(&mut fit, || Ok(by.factor(train.values.view(), rank)?))?;
    let sizes = clocked(&mut fit, || Ok(to_one_size(&mut stored, &layout)))?;
    let reader = InMemory::new(stored.view()).with_columns(by.stored_columns(rank))?;
    let code = settings.code.as_deref().unwrap_or("four_bit");
    let coding = Coding { code: named(code)?, groups: Groups::Row, rotation: None };
    let coded = clocked(&mut fit, || Ok(CodedRows::encode(&reader, coding, None, progress)?))?;
    let values = clocked(&mut score, || {
        let mut asked = whiten_queries(&by, queries.values.view())?;
        for (module, size) in layout.modules().iter().zip(&sizes) {
            let to = &module.dense;
            asked.slice_mut(s![.., to.start..to.start + to.len]).mapv_inplace(|x| x * size);
        }
        Ok(dot::score(&Expanded::new(&coded, &layout)?, asked.view(), None, progress)?.values)
    })?;
    let mut timed = Timed::new(values, fit, score);
    timed.bytes = coded.bytes_per_example() as f64;
    timed.settings = json!({ "rank": rank, "lost": coded.lost() });
    Ok(timed)
}

/// Divides each half of each module's factors by its root mean square over all rows, since a row has one scale for its codes. Returns
/// what products are to be multiplied by, module by module.
fn to_one_size(rows: &mut Array2<f32>, layout: &Layout) -> Vec<f64> {
    let mut size_of = |start: usize, end: usize| {
        let mut part = rows.slice_mut(s![.., start..end]);
        let square = part.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / part.len().max(1) as f64;
        let size = if square > 0.0 { square.sqrt() } else { 1.0 };
        part.mapv_inplace(|x| (f64::from(x) / size) as f32);
        size
    };
    let module = |module: &ascribe_methods::lorif::Module| {
        let (start, end) = (module.stored.start, module.stored.start + module.stored.len);
        let middle = module.shape.map_or(end, |[o, _]| start + o * layout.rank());
        size_of(start, middle) * size_of(middle, end)
    };
    layout.modules().iter().map(module).collect()
}
