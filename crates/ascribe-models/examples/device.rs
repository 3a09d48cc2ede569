//! Rows of a device against rows of the processor, and the device's speed; one JSON object on standard output.
//!
//! `cargo run --release -p ascribe-models --features cuda --example device -- SHAPE PLACE NUMBERS [SEQUENCES [LENGTH [BATCH]]]`
//! with SHAPE `tiny`, `smollm2-135m` or `llama-1b` (random weights), PLACE `cpu` or `cuda`, NUMBERS `f32` or `bf16`,
//! LENGTH tokens per sequence and BATCH tokens per batch. `benches/gpu/run.sh` calls it with what is worth knowing.

use ascribe_linalg::Stream;
use ascribe_models::graph::{GraphStage, Numbers, Place, Placement, device_rate, product_rate};
use ascribe_models::{Decoder, DecoderConfig, GradientStage, Sequence, TapConfig};
use ndarray::Array2;

/// Sequences whose rows are compared with the processor's.
const COMPARED: usize = 4;

type Error = Box<dyn std::error::Error>;

/// The model's configuration, and the side of the square product that shows the device's peak.
fn shape(name: &str) -> Result<(DecoderConfig, usize), Error> {
    match name {
        "tiny" => Ok((DecoderConfig::llama(64, 32, 48, 2, 4, 2, 64), 128)),
        "smollm2-135m" => Ok((DecoderConfig::llama(49_152, 576, 1536, 30, 9, 3, 2048), 8192)),
        "llama-1b" => {
            let llama = DecoderConfig::llama(128_256, 2048, 8192, 16, 32, 8, 2048);
            Ok((DecoderConfig { rope_theta: 500_000.0, ..llama }, 8192))
        }
        _ => Err(format!("no shape `{name}`; there are tiny, smollm2-135m, llama-1b").into()),
    }
}

/// Largest relative distance of two rows, and largest `1 − cosine`.
fn distances(rows: &Array2<f32>, expected: &Array2<f32>) -> (f64, f64) {
    let mut worst = (0.0f64, 0.0f64);
    for (a, b) in rows.rows().into_iter().zip(expected.rows()) {
        let dot = |x: ndarray::ArrayView1<'_, f32>, y: ndarray::ArrayView1<'_, f32>| -> f64 {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
        };
        let difference = &a - &b;
        let distance = (dot(difference.view(), difference.view()) / dot(b, b)).sqrt();
        worst = (worst.0.max(distance), worst.1.max(1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()));
    }
    worst
}

fn main() -> Result<(), Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &'static str| arguments.get(i).map_or(default, String::as_str);
    let (config, side) = shape(argument(0, "tiny"))?;
    let place = match argument(1, "cpu") {
        "cpu" => Place::Cpu,
        "cuda" => Place::Cuda(0),
        other => return Err(format!("no place `{other}`; there are cpu, cuda").into()),
    };
    let numbers = match argument(2, "f32") {
        "f32" => Numbers::F32,
        "bf16" => Numbers::Bf16,
        other => return Err(format!("no numbers `{other}`; there are f32, bf16").into()),
    };
    let (n, length): (usize, usize) = (argument(3, "8").parse()?, argument(4, "32").parse()?);
    let placement = Placement { place, numbers, batch_tokens: argument(5, "128").parse()? };

    let decoder = Decoder::init(config, 1)?;
    let mut stream = Stream::new(1, "device");
    let vocabulary = decoder.config().vocab_size as u32;
    // Lengths differ by up to an eighth, so that batches are padded as they are in life.
    let texts: Vec<Vec<u32>> =
        (0..n).map(|i| (0..length - i * length / 8 / n.max(1)).map(|_| stream.below(vocabulary)).collect()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|text| Sequence::whole(text)).collect();
    let stage = GradientStage::new(&decoder, TapConfig::all(1, 16))?;
    let graph = GraphStage::new(&decoder, &stage, placement)?;

    let compared = &sequences[..COMPARED.min(n)];
    let (mut rows, mut expected) =
        (Array2::zeros((compared.len(), stage.dim())), Array2::zeros((compared.len(), stage.dim())));
    graph.rows(compared, rows.view_mut())?;
    stage.rows(compared, expected.view_mut(), None)?;
    let (distance, angle) = distances(&rows, &expected);
    let peak = product_rate(placement, side, 3)?;
    let rate = device_rate(&graph, &decoder, &sequences, 3)?;
    let report = serde_json::json!({
        "shape": argument(0, "tiny"),
        "place": argument(1, "cpu"),
        "numbers": argument(2, "f32"),
        "parameters": decoder.config().num_parameters(),
        "sequences": n,
        "length": length,
        "batch_tokens": placement.batch_tokens,
        "row_distance": distance,
        "row_one_minus_cosine": angle,
        "tokens_per_second": rate.tokens_per_second,
        "flop_per_token": rate.flop_per_token,
        "product_flop_per_second": peak,
        "share_of_product_peak": rate.tokens_per_second * rate.flop_per_token / peak,
    });
    std::io::Write::write_all(&mut std::io::stdout(), format!("{report}\n").as_bytes())?;
    Ok(())
}
