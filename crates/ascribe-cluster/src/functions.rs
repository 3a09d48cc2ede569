//! What our SQL calls: `row_scores` reads a row and multiplies, `join_rows` joins scored rows, `exact_sum` adds exactly.
//!
//! | function | arguments | result |
//! |---|---|---|
//! | `row_scores` | store (folder or address), BLAKE3 of its manifest, query file, BLAKE3 of it, shard, row | list of f64, one per query; null for a deleted row |
//! | `join_rows` | `example_id`, list of f64, `k` | a partial answer's bytes (`ascribe_index::shard_job::Partial`) |
//! | `exact_sum` | f64 | f64: the exact sum, rounded once |
//!
//! The aggregates' states are joined exactly, so no partitioning, retry or order of arrival shows in a result.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use ascribe_core::ExampleId;
use ascribe_index::shard_job::{ExactSum, Partial, not_finite, scores_of};
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray as _, BinaryArray, Float64Array, Float64Builder, ListArray, ListBuilder,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt32Type, UInt64Type};
use datafusion::common::{DataFusionError, Result, ScalarValue, exec_datafusion_err, exec_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use ndarray::ArrayView2;

use crate::error::at_shard;
use crate::stores::{self, Opened};

/// Functions of a row.
pub fn scalars() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(ScalarUDF::from(RowScores::default()))]
}

/// Functions of many rows.
pub fn aggregates() -> Vec<Arc<AggregateUDF>> {
    vec![Arc::new(AggregateUDF::from(JoinRows::default())), Arc::new(AggregateUDF::from(ExactSumOf::default()))]
}

fn failed(error: anyhow::Error) -> DataFusionError {
    exec_datafusion_err!("{error:#}")
}

fn scores_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Float64, true)))
}

/// See the head of this file.
#[derive(Debug, PartialEq, Eq, Hash)]
struct RowScores {
    signature: Signature,
}

impl Default for RowScores {
    fn default() -> Self {
        let (text, number) = (DataType::Utf8, DataType::UInt32);
        let types = vec![text.clone(), text.clone(), text.clone(), text, number.clone(), number];
        Self { signature: Signature::exact(types, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for RowScores {
    fn name(&self) -> &str {
        "row_scores"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(scores_type())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let text = |i: usize| match &args.args[i] {
            ColumnarValue::Scalar(ScalarValue::Utf8(Some(text))) => Ok(text.clone()),
            other => exec_err!("row_scores: expected a text as argument {}, found {other:?}", i + 1),
        };
        let opened = stores::store(&text(0)?, &text(1)?).map_err(failed)?;
        let queries = stores::queries(&text(2)?, &text(3)?).map_err(failed)?;
        let dim = opened.dim();
        if queries.ncols() != dim {
            let found = queries.ncols();
            return exec_err!("{}: expected {dim} numbers per query, as the store's rows, found {found}", text(2)?);
        }
        let columns = ColumnarValue::values_to_arrays(&args.args[4..])?;
        let (shards, rows) = (columns[0].as_primitive::<UInt32Type>(), columns[1].as_primitive::<UInt32Type>());
        let mut out = ListBuilder::new(Float64Builder::with_capacity(rows.len() * queries.nrows()));
        let mut at = 0;
        // Rows come shard by shard.
        for run in shards.values().chunk_by(|a, b| a == b) {
            let rows = &rows.values()[at..at + run.len()];
            score_run(&opened, run[0], rows, queries.view(), &mut out)
                .map_err(|error| at_shard(&opened.location, run[0], error))?;
            at += run.len();
        }
        Ok(ColumnarValue::Array(Arc::new(out.finish())))
    }
}

/// Appends the scores of some rows of one shard: a list each, null for a deleted one.
fn score_run(
    opened: &Opened,
    shard: u32,
    rows: &[u32],
    queries: ArrayView2<'_, f32>,
    out: &mut ListBuilder<Float64Builder>,
) -> anyhow::Result<()> {
    let place = *opened.place.get(&shard).context("expected a live shard, found none of this number")?;
    let n_rows = opened.snapshot.entries()[place].rows;
    if let Some(beyond) = rows.iter().find(|&&row| row >= n_rows) {
        bail!("expected a row below {n_rows}, found {beyond}");
    }
    let held = stores::shard(opened, place)?;
    let in_runs = rows.chunk_by(|a, b| a + 1 == *b);
    let view = held.view_of(in_runs.map(|run| run[0] as usize..run[run.len() - 1] as usize + 1))?;
    let live: Vec<usize> = rows.iter().map(|&row| row as usize).filter(|&row| view.is_live(row)).collect();
    let mut at = 0;
    scores_of(&view, &live, queries, |row, scores| {
        while rows[at] as usize != row {
            out.append(false);
            at += 1;
        }
        out.values().append_slice(scores);
        out.append(true);
        at += 1;
    })?;
    for _ in at..rows.len() {
        out.append(false);
    }
    Ok(())
}

/// See the head of this file.
#[derive(Debug, PartialEq, Eq, Hash)]
struct JoinRows {
    signature: Signature,
}

impl Default for JoinRows {
    fn default() -> Self {
        let types = vec![DataType::UInt64, scores_type(), DataType::UInt64];
        Self { signature: Signature::exact(types, Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for JoinRows {
    fn name(&self) -> &str {
        "join_rows"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Binary)
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Joined { partial: None }))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "partial"), DataType::Binary, true))])
    }
}

#[derive(Debug)]
struct Joined {
    partial: Option<Partial>,
}

impl Joined {
    fn bytes(&self) -> ScalarValue {
        ScalarValue::Binary(self.partial.as_ref().map(Partial::to_bytes))
    }
}

impl Accumulator for Joined {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (ids, k) = (values[0].as_primitive::<UInt64Type>(), values[2].as_primitive::<UInt64Type>());
        let scores: &ListArray = values[1].as_list();
        let (all, ends) = (scores.values().as_primitive::<Float64Type>().values(), scores.value_offsets());
        for i in (0..ids.len()).filter(|&i| scores.is_valid(i)) {
            let of_row = &all[ends[i] as usize..ends[i + 1] as usize];
            if let Some(bad) = not_finite(of_row) {
                let found = of_row[bad];
                return exec_err!("join_rows: expected finite scores, found {found} for example {}", ids.value(i));
            }
            let partial = self.partial.get_or_insert_with(|| Partial::new(of_row.len(), k.value(i) as usize));
            partial.push(ExampleId::from_u64(ids.value(i)), of_row);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states: &BinaryArray = states[0].as_binary();
        for state in states.iter().flatten() {
            let theirs = Partial::from_bytes(state, None).map_err(|error| exec_datafusion_err!("{error}"))?;
            match &mut self.partial {
                Some(ours) => ours.merge(theirs),
                None => self.partial = Some(theirs),
            }
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.bytes()])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(self.bytes())
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.partial.as_ref().map_or(0, Partial::size)
    }
}

/// See the head of this file.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ExactSumOf {
    signature: Signature,
}

impl Default for ExactSumOf {
    fn default() -> Self {
        Self { signature: Signature::exact(vec![DataType::Float64], Volatility::Immutable) }
    }
}

impl AggregateUDFImpl for ExactSumOf {
    fn name(&self) -> &str {
        "exact_sum"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, _: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(Added::default()))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "sum"), DataType::Binary, true))])
    }
}

#[derive(Debug, Default)]
struct Added {
    sum: Box<ExactSum>,
}

impl Accumulator for Added {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let values: &Float64Array = values[0].as_primitive();
        for value in values.iter().flatten() {
            if !value.is_finite() {
                return exec_err!("exact_sum: expected finite numbers, found {value}");
            }
            self.sum.add(value);
        }
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let states: &BinaryArray = states[0].as_binary();
        for mut state in states.iter().flatten() {
            let Some(theirs) = ExactSum::read(&mut state) else { return exec_err!("exact_sum: not a state of it") };
            self.sum.merge(&theirs);
        }
        Ok(())
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let mut bytes = Vec::new();
        self.sum.write(&mut bytes);
        Ok(vec![ScalarValue::Binary(Some(bytes))])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64(Some(self.sum.value())))
    }

    fn size(&self) -> usize {
        size_of_val(self) + size_of::<ExactSum>()
    }
}
