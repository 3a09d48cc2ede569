//! How well rows from bf16 products rank as rows from f32 products do, and what each costs.
//!
//! `cargo run --release -p ascribe-models --example precision -- MODEL TRAIN.json QUERIES.json [PATTERN…]`: a Hugging Face
//! folder with one weights file and two files of token ids, `[[1, 2, …], …]`. Prints tokens per CPU-second of one thread, and Spearman's rank
//! correlation of the scores (dot products and cosines of rows) per query: mean and least. Patterns choose modules (default all but
//! the output layer).

use std::path::Path;

use ascribe_models::{Decoder, GradientStage, Precision, Sequence, TapConfig, bench};
use ndarray::{Array2, ArrayView1};

type Failure = Box<dyn std::error::Error>;

fn ids(path: &str) -> Result<Vec<Vec<u32>>, Failure> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Ranks from 0; ties (none are expected among scores) keep their order.
fn ranks(scores: ArrayView1<'_, f32>) -> Vec<f64> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&i, &j| scores[i].total_cmp(&scores[j]));
    let mut ranks = vec![0.0; scores.len()];
    order.into_iter().enumerate().for_each(|(rank, i)| ranks[i] = rank as f64);
    ranks
}

fn spearman(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f64 {
    let n = a.len() as f64;
    let squares: f64 = ranks(a).iter().zip(ranks(b)).map(|(x, y)| (x - y).powi(2)).sum();
    1.0 - 6.0 * squares / (n * (n * n - 1.0))
}

fn normalized(mut rows: Array2<f32>) -> Array2<f32> {
    for mut row in rows.rows_mut() {
        let norm = row.dot(&row).sqrt().max(f32::MIN_POSITIVE);
        row /= norm;
    }
    rows
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, train, queries, patterns @ ..] = &arguments[..] else {
        return Err("expected MODEL TRAIN.json QUERIES.json [PATTERN…]".into());
    };
    let decoder = Decoder::load(Path::new(model), "model.safetensors")?;
    let (train, queries) = (ids(train)?, ids(queries)?);
    let mut patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let exclude = if patterns.is_empty() { vec!["lm_head".to_string()] } else { vec![] };
    if patterns.is_empty() {
        patterns.push("*");
    }
    let mut text = String::new();
    let mut scores = vec![];
    for precision in [Precision::F32, Precision::Bf16] {
        let config = TapConfig { precision, exclude: exclude.clone(), ..TapConfig::modules(7, 16, &patterns) };
        let stage = GradientStage::new(&decoder, config)?;
        let rows = |texts: &[Vec<u32>]| -> Result<Array2<f32>, Failure> {
            let all: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
            let mut out = Array2::zeros((all.len(), stage.dim()));
            stage.rows(&all, out.view_mut(), None)?;
            Ok(out)
        };
        let some: Vec<Sequence<'_>> = train.iter().take(64).map(|tokens| Sequence::whole(tokens)).collect();
        let rate = bench::gradient_stage(&stage, &decoder, &some, 5)?;
        text += &format!(
            "{precision:?}: {:.0} tokens per CPU-second, {:.0} GFLOP/s, {} modules, {} numbers per row\n",
            rate.tokens_per_cpu_second,
            rate.tokens_per_cpu_second * rate.flop_per_token * 1e-9,
            stage.columns().len(),
            stage.dim()
        );
        let (train, queries) = (rows(&train)?, rows(&queries)?);
        scores.push([queries.dot(&train.t()), normalized(queries).dot(&normalized(train).t())]);
    }
    let [exact, rounded] = &scores[..] else { return Err("two precisions".into()) };
    for (name, (exact, rounded)) in ["dot products", "cosines"].iter().zip(exact.iter().zip(rounded)) {
        let each: Vec<f64> = exact.rows().into_iter().zip(rounded.rows()).map(|(a, b)| spearman(a, b)).collect();
        let (mean, least) = (each.iter().sum::<f64>() / each.len() as f64, each.iter().copied().fold(1.0, f64::min));
        text +=
            &format!("Spearman of {name}, bf16 and f32: mean {mean:.6}, least {least:.6} of {} queries\n", each.len());
    }
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(())
}
