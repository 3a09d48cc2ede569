//! Columns of an Arrow batch as rows: finds them by name, casts what can be cast, refuses nulls.

use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, Int32Type, Schema, UInt64Type};

use super::{Label, Resolve, Revenues, RowBatch, ScoreRows};
use crate::error::StoreError;

const QUERY: &[&str] = &["query_id", "query", "response_id", "response"];
const DATASET: &[&str] = &["dataset_id", "dataset"];
const SCORE: &[&str] = &["score", "influence", "value"];
const OPTIONAL: [&str; 3] = ["level", "method", "revenue"];

/// Where the columns stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Columns {
    pub query: usize,
    pub dataset: usize,
    pub score: usize,
    pub level: Option<usize>,
    pub method: Option<usize>,
    pub revenue: Option<usize>,
}

impl Columns {
    /// Finds them by name, upper or lower case.
    pub fn find(path: &Path, schema: &Schema) -> Result<Self, StoreError> {
        let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Self::of_names(path, &names)
    }

    pub fn of_names(path: &Path, names: &[&str]) -> Result<Self, StoreError> {
        for known in [QUERY, DATASET, SCORE, &OPTIONAL].into_iter().flatten() {
            let called = |(_, found): &(usize, &&str)| found.trim().eq_ignore_ascii_case(known);
            let mut places = names.iter().enumerate().filter(called).map(|(place, _)| place + 1);
            if let (Some(first), Some(second)) = (places.next(), places.next()) {
                let found =
                    format!("`{known}` twice, as columns {first} and {second}; hint: rename or drop one of them");
                return Err(StoreError::malformed(path, "columns", "each name once", found));
            }
        }
        let place = |accepted: &[&str]| {
            accepted.iter().find_map(|name| names.iter().position(|found| found.trim().eq_ignore_ascii_case(name)))
        };
        let must = |what: &'static str, accepted: &[&str]| {
            let missing = || {
                StoreError::malformed(path, what, format!("a column named {}", accepted.join(" or ")), names.join(", "))
            };
            place(accepted).ok_or_else(missing)
        };
        Ok(Self {
            query: must("column of the response", QUERY)?,
            dataset: must("column of the dataset", DATASET)?,
            score: must("column of the score", SCORE)?,
            level: place(&["level"]),
            method: place(&["method"]),
            revenue: place(&["revenue"]),
        })
    }

    /// All places, ascending.
    pub fn indices(&self) -> impl Iterator<Item = usize> + use<> {
        let optional = self.level.into_iter().chain(self.method).chain(self.revenue);
        let mut all: Vec<usize> = [self.query, self.dataset, self.score].into_iter().chain(optional).collect();
        all.sort_unstable();
        all.into_iter()
    }
}

/// A column of ids.
enum Ids {
    Numbers(ArrayRef),
    /// Texts with, for a dictionary, the place of each row's text.
    Texts(StringArray, Option<Vec<i32>>),
}

pub(super) fn decode(
    source: &ScoreRows,
    columns: &Columns,
    batch: &RecordBatch,
    first_row: u64,
    resolve: &Resolve<'_>,
    out: &mut RowBatch,
) -> Result<(), StoreError> {
    let decoder = Decoder { source, first_row };
    let kept = decoder.kept(columns, batch)?;
    let is_kept = |row: usize| kept.as_ref().is_none_or(|kept| kept[row]);
    let n_rows = batch.num_rows();
    decoder.expect_no_nulls("response", batch.column(columns.query))?;
    decoder.expect_no_nulls("dataset", batch.column(columns.dataset))?;
    decoder.expect_no_nulls("score", batch.column(columns.score))?;
    let scores = decoder.cast("score", batch.column(columns.score), &DataType::Float64)?;
    let scores = scores.as_primitive::<Float64Type>().values();
    match decoder.ids("response", batch.column(columns.query))? {
        Ids::Numbers(numbers) => {
            let numbers = numbers.as_primitive::<UInt64Type>().values();
            out.queries.extend((0..n_rows).filter(|row| is_kept(*row)).map(|row| numbers[row]));
        }
        Ids::Texts(texts, None) => {
            for row in (0..n_rows).filter(|row| is_kept(*row)) {
                out.queries.push(source.query_number(texts.value(row))?);
            }
        }
        Ids::Texts(texts, Some(keys)) => {
            // Texts that no kept row names get no number.
            let mut numbers = vec![None; texts.len()];
            for row in (0..n_rows).filter(|row| is_kept(*row)) {
                let key = keys[row] as usize;
                let number = match numbers[key] {
                    Some(number) => number,
                    None => *numbers[key].insert(source.query_number(texts.value(key))?),
                };
                out.queries.push(number);
            }
        }
    }
    match decoder.ids("dataset", batch.column(columns.dataset))? {
        Ids::Numbers(numbers) => {
            let numbers = numbers.as_primitive::<UInt64Type>().values();
            out.datasets.extend((0..n_rows).filter(|r| is_kept(*r)).map(|row| resolve(Label::Number(numbers[row]))));
        }
        Ids::Texts(texts, None) => {
            out.datasets.extend((0..n_rows).filter(|r| is_kept(*r)).map(|row| resolve(Label::Text(texts.value(row)))));
        }
        Ids::Texts(texts, Some(keys)) => {
            let mut ordinals = vec![None; texts.len()];
            for row in (0..n_rows).filter(|row| is_kept(*row)) {
                let key = keys[row] as usize;
                out.datasets.push(*ordinals[key].get_or_insert_with(|| resolve(Label::Text(texts.value(key)))));
            }
        }
    }
    if let Some(revenue) = columns.revenue {
        let rows: Vec<usize> = (0..n_rows).filter(|row| is_kept(*row)).collect();
        out.revenues = decoder.revenues(batch.column(revenue), &rows)?;
    }
    for row in (0..n_rows).filter(|row| is_kept(*row)) {
        let score = scores[row];
        if !score.is_finite() {
            return Err(decoder.malformed("score", row, "a finite number", score));
        }
        out.scores.push(score);
    }
    Ok(())
}

struct Decoder<'a> {
    source: &'a ScoreRows,
    first_row: u64,
}

impl Decoder<'_> {
    fn malformed(&self, what: &'static str, row: usize, expected: &str, found: impl std::fmt::Display) -> StoreError {
        let row = self.first_row + row as u64;
        StoreError::malformed(&self.source.path, what, expected, format!("{found} in row {row} of its part"))
    }

    fn expect_no_nulls(&self, what: &'static str, column: &ArrayRef) -> Result<(), StoreError> {
        match (0..column.len()).find(|row| column.is_null(*row)) {
            Some(row) if column.null_count() > 0 => Err(self.malformed(what, row, "a value", "null")),
            _ => Ok(()),
        }
    }

    fn cast(&self, what: &'static str, column: &ArrayRef, to: &DataType) -> Result<ArrayRef, StoreError> {
        let strict = CastOptions { safe: false, ..CastOptions::default() };
        let is_number = column.data_type().is_numeric()
            && !matches!(column.data_type(), DataType::Decimal128(..) | DataType::Decimal256(..));
        if *to != DataType::Utf8 && !is_number {
            return Err(self.malformed(what, 0, "numbers", column.data_type()));
        }
        cast_with_options(column, to, &strict).map_err(|error| self.malformed(what, 0, &format!("{to}"), error))
    }

    fn ids(&self, what: &'static str, column: &ArrayRef) -> Result<Ids, StoreError> {
        match column.data_type() {
            kind if kind.is_integer() => Ok(Ids::Numbers(self.cast(what, column, &DataType::UInt64)?)),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
                Ok(Ids::Texts(self.cast(what, column, &DataType::Utf8)?.as_string::<i32>().clone(), None))
            }
            DataType::Dictionary(_, values)
                if matches!(**values, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) =>
            {
                let to = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
                let strict = CastOptions { safe: false, ..CastOptions::default() };
                let cast = cast_with_options(column, &to, &strict)
                    .map_err(|e| self.malformed(what, 0, "a dictionary of texts", e))?;
                let dictionary = cast.as_dictionary::<Int32Type>();
                let texts = dictionary.values().as_string::<i32>().clone();
                let keys = dictionary.keys().values().to_vec();
                if let Some(row) = keys
                    .iter()
                    .position(|key| usize::try_from(*key).map_or(true, |key| key >= texts.len() || texts.is_null(key)))
                {
                    return Err(self.malformed(what, row, "a key of the dictionary", keys[row]));
                }
                Ok(Ids::Texts(texts, Some(keys)))
            }
            other => Err(self.malformed(what, 0, "integers or texts", other)),
        }
    }

    /// The revenue column's values at `rows`.
    fn revenues(&self, column: &ArrayRef, rows: &[usize]) -> Result<Revenues, StoreError> {
        self.expect_no_nulls("revenue", column)?;
        let (texts, keys) = match self.ids("revenue", column)? {
            Ids::Numbers(numbers) => {
                let numbers = numbers.as_primitive::<UInt64Type>().values();
                return Ok(Revenues::Integers(rows.iter().map(|row| numbers[*row]).collect()));
            }
            Ids::Texts(texts, keys) => (texts, keys),
        };
        let text = |row: &usize| {
            let text = texts.value(keys.as_ref().map_or(*row, |keys| keys[*row] as usize));
            if text.is_empty() { Err(self.malformed("revenue", *row, "an amount", "an empty text")) } else { Ok(text) }
        };
        Ok(Revenues::Texts(rows.iter().map(|row| text(row).map(str::to_owned)).collect::<Result<_, _>>()?))
    }

    /// Which rows count; `None` when all do.
    fn kept(&self, columns: &Columns, batch: &RecordBatch) -> Result<Option<Vec<bool>>, StoreError> {
        if columns.level.is_none() && columns.method.is_none() {
            return Ok(None);
        }
        let mut kept = vec![true; batch.num_rows()];
        if let Some(level) = columns.level {
            self.filter("level", batch.column(level), &mut kept, |text| Ok(text == "dataset"))?;
        }
        if let Some(method) = columns.method {
            self.filter("method", batch.column(method), &mut kept, |text| self.source.takes_method(text))?;
        }
        Ok(Some(kept))
    }

    fn filter(
        &self,
        what: &'static str,
        column: &ArrayRef,
        kept: &mut [bool],
        takes: impl Fn(&str) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        self.expect_no_nulls(what, column)?;
        let (texts, keys) = match self.ids(what, column)? {
            Ids::Texts(texts, keys) => (texts, keys),
            Ids::Numbers(_) => return Err(self.malformed(what, 0, "texts", column.data_type())),
        };
        let mut known: Vec<Option<bool>> = vec![None; texts.len()];
        for (row, kept) in kept.iter_mut().enumerate().filter(|(_, kept)| **kept) {
            let at = keys.as_ref().map_or(row, |keys| keys[row] as usize);
            let takes = match known[at] {
                Some(takes) => takes,
                None => *known[at].insert(takes(texts.value(at))?),
            };
            *kept = takes;
        }
        Ok(())
    }
}
