#![allow(clippy::print_stdout, reason = "an example prints its table")]
//! What groups of examples do together, against retraining without them: sums of influence, the second-order term on top, and the
//! curvature that is left when a group's own goes with it (arXiv:1911.00418; arXiv:1905.13289), on the random halves of a setting.
//!
//! `cargo run --release -p ascribe-engine --example group_order -- SETTING [K [DAMPING…]]`: rows are K × K random projections per module (16)
//! with their block Fisher matrix, dampings relative to a block's mean eigenvalue (0.01). Prints the LDS of each, mean over queries with its
//! 95 % interval, and of the lead over the sums on the same queries.

use ascribe_core::{Column, ExampleId, NoProgress};
use ascribe_engine::Home;
use ascribe_engine::bench::lab::{self, Quantity, Which};
use ascribe_engine::bench::runners::read_bank;
use ascribe_engine::bench::setting::Setting;
use ascribe_eval::bootstrap_mean;
use ascribe_eval::rank::spearman;
use ascribe_linalg::TwoSided;
use ascribe_methods::block_fisher::{Covariance, precondition, removal_vectors};
use ascribe_methods::projected::{Basis, Projected};
use ascribe_methods::rows::InMemory;
use ascribe_methods::source::{CaptureSource, Labels, Layer};
use ascribe_methods::{MethodError, captured};
use ndarray::{Array2, ArrayView2, Axis, s};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let setting = arguments.first().ok_or("group_order SETTING [K [DAMPING…]]")?;
    let k = arguments.get(1).map_or(Ok(16), |k| k.parse::<usize>())?;
    let mut dampings: Vec<f64> = arguments.iter().skip(2).map(|d| d.parse()).collect::<Result<_, _>>()?;
    if dampings.is_empty() {
        dampings.push(0.01);
    }
    let home = Home::find(None)?;
    let setting = Setting::named(&home, setting)?;
    let bank = read_bank(&setting, "halves")?;
    let lab = lab::open(&home, &setting)?;
    let view = lab.model(Which::Final(0))?;
    let (train, queries) = (view.train(Quantity::Loss)?, view.queries(Quantity::Loss)?);
    let bases: Vec<Basis> = train.layers().iter().map(|l| basis(l, k)).collect();
    let (rows, columns) = rows_of(train.as_ref(), &bases)?;
    let (asked, _) = rows_of(queries.as_ref(), &bases)?;
    println!(
        "{}: {} rows of {} numbers, {} queries, {} halves",
        setting.name,
        rows.nrows(),
        rows.ncols(),
        asked.nrows(),
        bank.kept.nrows()
    );
    let outcomes = bank.mean();
    for damping in dampings {
        let predicted = predictions(rows.view(), &columns, asked.view(), bank.kept.view(), damping)?;
        let by_query: Vec<Vec<Option<f64>>> =
            predicted.iter().map(|table| by_query(table.view(), outcomes.view())).collect();
        for (name, values) in ["sums", "second order", "curvature that is left"].into_iter().zip(&by_query) {
            let lds = bootstrap_mean(values, 1)?;
            let lead: Vec<Option<f64>> = values.iter().zip(&by_query[0]).map(|(a, b)| Some((*a)? - (*b)?)).collect();
            let lead = bootstrap_mean(&lead, 1)?;
            println!(
                "damping {damping}  {name:23} {:.4} [{:.4}, {:.4}]  lead {:+.4} [{:+.4}, {:+.4}]",
                lds.mean, lds.low, lds.high, lead.mean, lead.low, lead.high
            );
        }
    }
    Ok(())
}

fn basis(layer: &Layer, k: usize) -> Basis {
    let found = TwoSided::new(7, &layer.name, layer.n_in, layer.n_out, k, k);
    Basis { input: found.p_in.t().mapv(f64::from), output: found.p_out.t().mapv(f64::from) }
}

/// Projected gradients of all examples, and the columns of each module.
fn rows_of(source: &dyn CaptureSource, bases: &[Basis]) -> Result<(Array2<f32>, Vec<Column>), Failure> {
    let projected = Projected::new(source, bases)?;
    let ids: Vec<u32> = (0..projected.len() as u32).collect();
    let mut start = 0;
    let column = |layer: &Layer| {
        start += layer.len();
        Column { name: layer.name.clone(), start: start - layer.len(), len: layer.len() }
    };
    let columns = projected.layers().iter().map(column).collect();
    Ok((captured::gradients(&projected, &ids, Labels::Given)?, columns))
}

fn reader<'a>(rows: ArrayView2<'a, f32>, columns: &[Column]) -> Result<InMemory<'a>, MethodError> {
    InMemory::new(rows).with_columns(columns.to_vec())
}

/// What leaving out every subset's examples does to a query's loss, `[M, Q]`, three ways.
fn predictions(
    rows: ArrayView2<'_, f32>,
    columns: &[Column],
    queries: ArrayView2<'_, f32>,
    kept: ArrayView2<'_, bool>,
    damping: f64,
) -> Result<[Array2<f64>; 3], Failure> {
    let n = rows.nrows() as f64;
    let covariance = Covariance::fit(&reader(rows, columns)?, &NoProgress)?;
    let factors = covariance.cholesky(damping)?;
    let solved = precondition(&factors, queries)?;
    let plain = queries.mapv(f64::from);
    let mut out = [0; 3].map(|_| Array2::zeros((kept.nrows(), queries.nrows())));
    for (m, kept) in kept.rows().into_iter().enumerate() {
        let gone: Vec<usize> = (0..rows.nrows()).filter(|&i| !kept[i]).collect();
        let removed = rows.select(Axis(0), &gone);
        let sum = removed.mapv(f64::from).sum_axis(Axis(0));
        // To a scale that f32 has room for, and back.
        let largest = sum.iter().fold(f64::MIN_POSITIVE, |m, v| m.max(v.abs()));
        let scaled = sum.mapv(|v| (v / largest) as f32).insert_axis(Axis(0));
        let moved = precondition(&factors, scaled.view())?.row(0).to_owned() * largest;
        // Σ g_i (g_i · H⁻¹G) / n of the examples that go.
        let wide = removed.mapv(f64::from);
        let second = wide.t().dot(&wide.dot(&moved)) / n;
        let ids = (0..gone.len()).map(|i| ExampleId { dataset: 0, idx: i as u32 }).collect();
        let left =
            removal_vectors(&reader(removed.view(), columns)?.with_ids(ids)?, &covariance, damping, 1, &NoProgress)?;
        out[0].row_mut(m).assign(&solved.dot(&sum));
        out[1].row_mut(m).assign(&solved.dot(&(&sum + &second)));
        out[2].row_mut(m).assign(&plain.dot(&left.row(0)));
    }
    Ok(out)
}

/// Spearman over subsets of the predicted rise of the loss with the measured fall of the outcome, per query.
fn by_query(predicted: ArrayView2<'_, f64>, outcomes: ArrayView2<'_, f64>) -> Vec<Option<f64>> {
    let one = |q: usize| {
        let fall: Vec<f64> = outcomes.slice(s![.., q]).iter().map(|v| -v).collect();
        spearman(&predicted.column(q).to_vec(), &fall)
    };
    (0..predicted.ncols()).map(one).collect()
}
