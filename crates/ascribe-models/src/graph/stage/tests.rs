//! Rows of the device stage against those of the hand-written one, for every family, on the processor.

use ndarray::{Array1, ArrayView2, s};

use super::*;
use crate::decoder::Module;
use crate::features::TapConfig;
use crate::graph::families::{families, noisy};
use crate::graph::{GraphDecoder, GraphKind};

const F32: Placement = Placement { place: Place::Cpu, numbers: Numbers::F32, batch_tokens: 100 };

fn texts() -> Vec<Vec<u32>> {
    [(1, 23), (2, 9), (3, 1), (4, 24), (5, 40), (6, 2), (7, 9)]
        .map(|(seed, len)| crate::decoder::tests::tokens(seed, len))
        .to_vec()
}

fn sequences(texts: &[Vec<u32>]) -> Vec<Sequence<'_>> {
    // The third predicts nothing, the fourth has a prompt.
    texts.iter().enumerate().map(|(i, tokens)| Sequence { tokens, loss_from: if i == 3 { 7 } else { 0 } }).collect()
}

/// Relative distance of two rows.
fn off(a: ndarray::ArrayView1<'_, f32>, b: ndarray::ArrayView1<'_, f32>) -> f64 {
    let square = |x: f32| f64::from(x).powi(2);
    let distance: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    let size: f64 = b.iter().map(|&b| square(b)).sum();
    if size == 0.0 { distance } else { (distance / size).sqrt() }
}

/// Every kind of tap at once.
fn everything(decoder: &Decoder) -> TapConfig {
    let learned = decoder.parameter_layout().positions.is_some();
    TapConfig { biases: true, positions: learned, ..TapConfig::all(7, 5) }
}

/// Largest distances of rows and losses over all sequences.
fn distance(decoder: &Decoder, config: TapConfig, placement: Placement) -> (f64, f64) {
    let texts = texts();
    let sequences = sequences(&texts);
    let stage = GradientStage::new(decoder, config).unwrap();
    let graph = GraphStage::new(decoder, &stage, placement).unwrap();
    let mut expected = Array2::zeros((sequences.len(), stage.dim()));
    let losses = stage.rows(&sequences, expected.view_mut(), None).unwrap();
    let mut rows = Array2::ones((sequences.len(), graph.dim()));
    let other = graph.rows(&sequences, rows.view_mut()).unwrap();
    let of_rows = rows.rows().into_iter().zip(expected.rows()).map(|(a, b)| off(a, b)).fold(0.0, f64::max);
    let of_losses = losses.iter().zip(&other).map(|(a, b)| (a - b).abs() / a.abs().max(1.0)).fold(0.0, f64::max);
    (of_rows, of_losses)
}

#[test]
fn rows_are_those_of_the_hand_written_stage_for_every_family() {
    for (name, config) in families() {
        if config.arch.is_encoder() {
            continue;
        }
        let decoder = noisy(&config, 6);
        for taps in [everything(&decoder), TapConfig::modules(7, 3, &["*"])] {
            let (rows, losses) = distance(&decoder, taps, F32);
            assert!(rows < 1e-5 && losses < 1e-5, "{name}: rows {rows}, losses {losses}");
        }
    }
}

/// The row that a full gradient has, projected by the plan's own matrices.
fn projected(decoder: &Decoder, plan: &TapPlan, flat: &[f32]) -> Array1<f32> {
    let layout = decoder.parameter_layout();
    let mut row = Array1::zeros(plan.dim);
    let mut put = |block: &BlockPlan, gradient: ArrayView2<'_, f32>| {
        // [O, I] → [k_out, k_in]
        let small = block.p_out.t().dot(&gradient.slice(s![block.columns.clone(), ..])).dot(&block.p_in);
        let numbers: Vec<f32> = small.iter().copied().collect();
        row.slice_mut(s![block.start..block.start + numbers.len()]).assign(&Array1::from(numbers));
    };
    for (module, site) in &plan.sites {
        let w = match *module {
            Module::Qkv(l) => &layout.layers[l].qkv,
            Module::O(l) => &layout.layers[l].o,
            Module::Up(l) => &layout.layers[l].up,
            Module::Down(l) => &layout.layers[l].down,
            Module::Head => &layout.head,
        };
        let fan = decoder.fan(*module);
        let gradient = &flat[w.weight.clone()];
        let gradient = if w.transposed {
            ArrayView2::from_shape((fan.input, fan.output), gradient).unwrap().reversed_axes()
        } else {
            ArrayView2::from_shape((fan.output, fan.input), gradient).unwrap()
        };
        site.blocks.iter().for_each(|block| put(block, gradient));
    }
    let d = decoder.config().hidden_size;
    for (block, range) in [(&plan.embedding, Some(&layout.embedding)), (&plan.positions, layout.positions.as_ref())] {
        if let (Some(block), Some(range)) = (block, range) {
            put(block, ArrayView2::from_shape((range.len() / d, d), &flat[range.clone()]).unwrap());
        }
    }
    let mut copy = |start: usize, range: std::ops::Range<usize>| {
        row.slice_mut(s![start..start + range.len()])
            .assign(&ArrayView2::from_shape((1, range.len()), &flat[range]).unwrap().row(0));
    };
    for &(norm, gain, bias) in &plan.norms {
        let place = decoder.norm_layout(norm);
        copy(gain, place.gain.clone());
        bias.into_iter().zip(place.bias.clone()).for_each(|(start, range)| copy(start, range));
    }
    for (module, site) in &plan.sites {
        let bias = match *module {
            Module::Qkv(l) => &layout.layers[l].qkv.bias,
            Module::O(l) => &layout.layers[l].o.bias,
            Module::Up(l) => &layout.layers[l].up.bias,
            Module::Down(l) => &layout.layers[l].down.bias,
            Module::Head => &layout.head.bias,
        };
        for (columns, start) in &site.biases {
            let first = bias.as_ref().expect("a tracked bias exists").start;
            copy(*start, first + columns.start..first + columns.end);
        }
    }
    row
}

#[test]
fn a_rows_company_changes_rounding_only() {
    for (name, config) in families() {
        if config.arch.is_encoder() {
            continue;
        }
        let decoder = noisy(&config, 6);
        let stage = GradientStage::new(&decoder, everything(&decoder)).unwrap();
        let (texts, n) = (texts(), 7);
        let rows = |batch_tokens: usize| {
            let graph = GraphStage::new(&decoder, &stage, Placement { batch_tokens, ..F32 }).unwrap();
            let mut rows = Array2::zeros((n, graph.dim()));
            let losses = graph.rows(&sequences(&texts), rows.view_mut()).unwrap();
            (rows, losses, graph.batches(&sequences(&texts)).len())
        };
        let (alone, losses, n_alone) = rows(1);
        let (together, other, n_together) = rows(1000);
        assert_eq!((n_alone, n_together), (6, 1), "one of seven predicts nothing");
        for i in 0..n {
            let off = off(together.row(i), alone.row(i));
            assert!(off < 1e-5 && (losses[i] - other[i]).abs() <= 1e-5 * losses[i], "{name} {i}: {off}");
        }
    }
}

/// Rounding every activation must not do much more to a row than rounding the weights alone does, which any use of bf16
/// does: how far a tiny random model's row moves then says how well it is conditioned.
#[test]
fn rows_in_bf16_are_as_good_as_weights_in_bf16_allow() {
    let (mut ratios, mut n) = (0.0, 0.0);
    for (name, config) in families() {
        if config.arch.is_encoder() {
            continue;
        }
        let decoder = noisy(&config, 6);
        let rounded = decoder.parameters().iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
        let rounded = Decoder::from_parameters(config, rounded).unwrap();
        let texts = texts();
        let rows = |decoder: &Decoder, numbers: Numbers| {
            let stage = GradientStage::new(decoder, everything(decoder)).unwrap();
            let graph = GraphStage::new(decoder, &stage, Placement { numbers, ..F32 }).unwrap();
            let mut rows = Array2::zeros((texts.len(), graph.dim()));
            graph.rows(&sequences(&texts), rows.view_mut()).unwrap();
            rows
        };
        let worst = |a: &Array2<f32>, b: &Array2<f32>| {
            a.rows().into_iter().zip(b.rows()).map(|(a, b)| off(a, b)).fold(0.0, f64::max)
        };
        let (exact, weights) = (rows(&decoder, Numbers::F32), rows(&rounded, Numbers::F32));
        let (of_weights, of_all) = (worst(&weights, &exact), worst(&rows(&decoder, Numbers::Bf16), &exact));
        assert!(of_all < 10.0 * of_weights, "{name}: {of_all} against {of_weights}");
        ratios += of_all / of_weights;
        n += 1.0;
    }
    assert!(ratios / n < 4.0, "{}", ratios / n);
}

#[derive(Debug)]
enum Refusal {
    Model(ModelError),
    Full,
}

impl From<ModelError> for Refusal {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}

#[test]
fn blocks_stream_in_order_and_stop_at_the_first_error() {
    let decoder = noisy(&families()[0].1, 6);
    let stage = GradientStage::new(&decoder, everything(&decoder)).unwrap();
    let graph = GraphStage::new(&decoder, &stage, F32).unwrap();
    let texts = texts();
    let mut sequences = sequences(&texts);
    let mut whole = Array2::zeros((7, graph.dim()));
    let losses = graph.rows(&sequences, whole.view_mut()).unwrap();
    let mut seen = 0;
    let take = |block: RowBlock| -> Result<(), Refusal> {
        assert_eq!(block.first, seen);
        for (row, loss) in block.rows.rows().into_iter().zip(block.losses) {
            assert!(off(row, whole.row(seen)) < 1e-5 && (loss - losses[seen]).abs() <= 1e-5 * loss);
            seen += 1;
        }
        Ok(())
    };
    graph.stream(&sequences, 3, take).unwrap();
    assert_eq!(seen, 7);

    let mut taken = 0;
    let full = graph.stream(&sequences, 1, |_| {
        taken += 1;
        if taken == 2 { Err(Refusal::Full) } else { Ok(()) }
    });
    assert!(matches!(full, Err(Refusal::Full)) && taken == 2);

    let foreign = [1, 99];
    sequences[5] = Sequence::whole(&foreign);
    let mut firsts = vec![];
    let result = graph.stream(&sequences, 2, |block| -> Result<(), Refusal> {
        firsts.push(block.first);
        Ok(())
    });
    assert!(matches!(result, Err(Refusal::Model(ModelError::Token { .. }))) && firsts == [0, 2]);
}

#[test]
fn what_a_device_does_not_do_is_refused() {
    let decoder = noisy(&families()[0].1, 6);
    let message = |config: TapConfig, placement: Placement| {
        let stage = GradientStage::new(&decoder, config).unwrap();
        GraphStage::new(&decoder, &stage, placement).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let full = TapConfig { projection: crate::features::Projection::Full, ..TapConfig::all(1, 4) };
    assert!(message(full, F32).contains("two-sided projection"));
    let margin = TapConfig { loss: crate::decoder::Loss::Margin, ..TapConfig::all(1, 4) };
    assert!(message(margin, F32).contains("next-token loss"));
    if !candle_core::utils::cuda_is_available() {
        let cuda = Placement { place: Place::Cuda(0), ..F32 };
        assert!(message(TapConfig::all(1, 4), cuda).contains("--features cuda"));
    }
    let stage = GradientStage::new(&decoder, TapConfig::all(1, 4)).unwrap();
    let graph = GraphStage::new(&decoder, &stage, F32).unwrap();
    assert!(graph.rows(&[Sequence::whole(&[1, 2])], Array2::zeros((2, graph.dim())).view_mut()).is_err());
    assert!(graph.rows(&[Sequence::whole(&[])], Array2::zeros((1, graph.dim())).view_mut()).is_err());
}

#[test]
fn rows_are_projections_of_the_gradient_that_candles_autograd_gives_in_f64() {
    for (name, config) in families() {
        if config.arch.is_encoder() {
            continue;
        }
        let decoder = noisy(&config, 6);
        let texts = texts();
        let sequences = sequences(&texts);
        let reference = GraphDecoder::new(&decoder, GraphKind::StockF64).unwrap();
        // Of a tied matrix the full gradient knows only the whole.
        let exclude = if config.tie_word_embeddings {
            vec![decoder.parameter_layout().head.parts[0].name.clone()]
        } else {
            vec![]
        };
        for taps in [everything(&decoder), TapConfig { exclude, ..TapConfig::modules(7, 3, &["*"]) }] {
            let stage = GradientStage::new(&decoder, taps).unwrap();
            let plan = stage.device_plan().unwrap();
            let graph = GraphStage::new(&decoder, &stage, F32).unwrap();
            let mut rows = Array2::ones((sequences.len(), graph.dim()));
            let losses = graph.rows(&sequences, rows.view_mut()).unwrap();
            for ((&sequence, row), loss) in sequences.iter().zip(rows.rows()).zip(losses) {
                if sequence.n_predictions() == 0 {
                    assert!(row.iter().all(|&x| x == 0.0) && loss == 0.0);
                    continue;
                }
                let (expected, flat) = reference.loss_and_gradient(sequence).unwrap();
                let off = off(row, projected(&decoder, &plan, &flat).view());
                assert!(off < 1e-5 && (loss / expected - 1.0).abs() < 1e-5, "{name}: {off}, {loss} {expected}");
            }
        }
    }
}
