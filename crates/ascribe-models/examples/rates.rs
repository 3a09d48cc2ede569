//! Prints tokens per CPU-second of the passes of a small decoder, beside those of a candle graph of the same model.
//!
//! `cargo run --release -p ascribe-models --example rates [LAYERS]`. Candle spreads its products over all threads unless
//! `RAYON_NUM_THREADS=1` is set; its figures count the calling thread only.

use ascribe_linalg::Stream;
use ascribe_models::graph::GraphKind;
use ascribe_models::{Decoder, DecoderConfig, GradientStage, Sequence, TapConfig, bench};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layers = std::env::args().nth(1).map_or(Ok(3), |text| text.parse())?;
    let decoder = Decoder::init(DecoderConfig::llama(2048, 128, 352, layers, 4, 4, 128), 1)?;
    let mut stream = Stream::new(1, "rates");
    let texts: Vec<Vec<u32>> = (0..64).map(|_| (0..128).map(|_| stream.below(2048)).collect()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|text| Sequence::whole(text)).collect();
    let mut rates = vec![];
    for (name, kind) in [("candle, its own operators", GraphKind::Stock), ("candle, our operators", GraphKind::Fused)] {
        rates.push((name.to_string(), bench::graph_floor(&decoder, kind, &sequences[..16], 3)?));
    }
    let (forward, floor) = bench::floor(&decoder, &sequences, 9)?;
    rates.push(("forward".to_string(), forward));
    rates.push(("forward + backward".to_string(), floor));
    for k in [16, 32] {
        for (name, all) in [("linear layers", false), ("all parameters", true)] {
            let taps = TapConfig { embedding: all, norms: all, ..TapConfig::all(1, k) };
            let stage = GradientStage::new(&decoder, taps)?;
            rates.push((format!("rows, {name}, {k}x{k}"), bench::gradient_stage(&stage, &decoder, &sequences, 9)?));
        }
    }
    let mut text = format!("{} parameters, T = 128\n", decoder.config().num_parameters());
    for (name, rate) in rates {
        let (tokens, flop) = (rate.tokens_per_cpu_second, rate.flop_per_token);
        let relative = tokens / floor.tokens_per_cpu_second;
        text += &format!(
            "{name:28} {tokens:8.0} tokens per CPU-second, {:4.0} GFLOP/s, {relative:.2} of the floor\n",
            tokens * flop * 1e-9
        );
    }
    std::io::Write::write_all(&mut std::io::stdout(), text.as_bytes())?;
    Ok(())
}
