//! Speed of the passes over one model folder, in tokens per CPU-second of one thread: `passes DIR [LENGTH [COUNT]]`.

use std::path::Path;

use ascribe_linalg::packed::{Precision, isa};
use ascribe_models::bench::{self, Rate};
use ascribe_models::{Decoder, Sequence};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = arguments.next().ok_or("which model folder?")?;
    let mut number = |default| arguments.next().map_or(Ok(default), |n| n.parse::<usize>());
    let (len, count) = (number(128)?, number(32)?);
    let decoder = Decoder::load(Path::new(&dir), "model.safetensors")?;
    let vocabulary = decoder.config().vocab_size as u64;
    let mut stream = ascribe_linalg::Stream::new(1, "passes");
    let mut text = || (0..len).map(|_| (stream.next_u64() % vocabulary) as u32).collect::<Vec<_>>();
    let texts: Vec<Vec<u32>> = (0..count).map(|_| text()).collect();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|text| Sequence::whole(text)).collect();
    let mut out =
        format!("{} parameters, {count} sequences of {len} tokens, {}\n", decoder.config().num_parameters(), isa());
    let mut line = |name: &str, rate: Rate| {
        let (tokens, flop) = (rate.tokens_per_cpu_second, rate.flop_per_token);
        out += &format!("{name:44} {tokens:8.0} tokens per CPU-second, {:5.0} GFLOP/s\n", tokens * flop * 1e-9);
    };
    let (forward, both) = bench::floor(&decoder, &sequences, 5)?;
    line("exact: forward with losses", forward);
    line("exact: forward, backward, full gradients", both);
    for (name, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        for rows in [len, 256, 512, 1024] {
            let (forward, both) = bench::packed(&decoder, precision, &sequences, rows, 5)?;
            line(&format!("{name}, packs of {rows} rows: hidden states"), forward);
            line(&format!("{name}, packs of {rows} rows: forward, backward"), both);
        }
    }
    std::io::Write::write_all(&mut std::io::stdout(), out.as_bytes())?;
    Ok(())
}
