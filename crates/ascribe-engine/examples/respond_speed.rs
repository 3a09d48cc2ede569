//! What one answer takes inside the process, without HTTP: `respond_speed RUN CACHE [rounds]`. Prints one line per question.

#![allow(clippy::print_stdout)] // an example talks

use std::path::Path;
use std::time::Instant;

use ascribe_core::NoProgress;
use ascribe_engine::Home;
use ascribe_engine::respond::{Ask, Filter, Input, Material, Responder};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [run, cache, rest @ ..] = arguments.as_slice() else {
        return Err("respond_speed RUN CACHE [rounds]".into());
    };
    let rounds: usize = rest.first().map_or(Ok(3), |n| n.parse())?;
    let only = rest.get(1);
    let material = Material::open(&Home::find(None)?, Path::new(run), Path::new(cache), &NoProgress)?;
    let responder = Responder::new(&material)?;
    for (method, k) in [
        ("block_fisher", 0),
        ("block_fisher", 10),
        ("calibrated", 0),
        ("calibrated", 10),
        ("trajectory_fisher", 0),
        ("tracin", 0),
        ("embedding", 10),
    ] {
        if only.is_some_and(|only| *only != format!("{method}-{k}")) {
            continue;
        }
        let mut times = Vec::new();
        let mut rescored = Vec::new();
        for example in (0..material.opened.examples).cycle().take(rounds * material.opened.examples) {
            let ask = Ask {
                input: Input::Example(example),
                method: Some(method.into()),
                k,
                min_score: None,
                filter: Filter::default(),
                tokens: false,
                verbatim: false,
            };
            let began = Instant::now();
            let answer = responder.respond(&ask)?;
            times.push(began.elapsed().as_secs_f64() * 1e3);
            rescored.extend(answer.approx.rescored);
        }
        times.sort_by(f64::total_cmp);
        rescored.sort_unstable();
        let at = |p: usize| times[(times.len() - 1) * p / 100];
        println!(
            "{method}, k = {k}: least {:.2}, median {:.2}, p99 {:.2} ms; rows scored again: median {:?}, most {:?}",
            at(0),
            at(50),
            at(99),
            rescored.get(rescored.len() / 2),
            rescored.last()
        );
    }
    Ok(())
}
