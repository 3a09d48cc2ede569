//! Prints tokens per CPU-second of the passes of a small decoder: `cargo run --release -p ascribe-models --example rates`.

use ascribe_linalg::Stream;
use ascribe_models::{Decoder, DecoderConfig, GradientStage, Sequence, TapConfig, bench};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let layers = std::env::args().nth(1).map_or(Ok(4), |text| text.parse())?;
    let decoder = Decoder::init(DecoderConfig::llama(2048, 128, 384, layers, 4, 4, 128), 1)?;
    let mut stream = Stream::new(1, "rates");
    let texts: Vec<Vec<u32>> = (0..64).map(|_| (0..128).map(|_| stream.below(2048)).collect()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|text| Sequence::whole(text)).collect();
    let (forward, backward) = bench::floor(&decoder, &sequences, 5)?;
    let mut lines = vec![format!("{} parameters", decoder.config().num_parameters())];
    let mut rates = vec![("forward".to_string(), forward), ("forward + backward".to_string(), backward)];
    for k in [16, 32] {
        for (name, all) in [("linear layers", false), ("all parameters", true)] {
            let taps = TapConfig { embedding: all, norms: all, ..TapConfig::all(1, k) };
            let stage = GradientStage::new(&decoder, taps)?;
            rates.push((format!("rows, {name}, {k}x{k}"), bench::gradient_stage(&stage, &decoder, &sequences, 5)?));
        }
    }
    for (name, rate) in rates {
        let gflop = rate.tokens_per_cpu_second * rate.flop_per_token * 1e-9;
        lines.push(format!(
            "{name:28} {:8.0} tokens per CPU-second, {gflop:5.0} GFLOP/s, {:.2} of the floor",
            rate.tokens_per_cpu_second,
            rate.tokens_per_cpu_second / backward.tokens_per_cpu_second
        ));
    }
    std::io::Write::write_all(&mut std::io::stdout(), (lines.join("\n") + "\n").as_bytes())?;
    Ok(())
}
