//! Tests of tapped decoders: captured rows against full gradients, finite differences along directions, invariance.

use ndarray::{Array2, s};

use super::*;
use crate::DecoderConfig;
use crate::decoder::tests::{encoder_config, families, scattered, tiny_config, tokens};
use crate::decoder::{Loss, Sequence};

/// `Σ_t δ_t x_tᵀ` of every example, flat.
fn gradients(tapped: &TappedDecoder<'_>, capture: &Capture) -> Vec<Vec<f64>> {
    let gradient = |e: usize| {
        let mut flat = vec![0.0f64; tapped.dim()];
        for (tap, rows) in tapped.taps().iter().zip(&capture.taps) {
            let flat = &mut flat[tap.range()];
            for t in rows.starts[e]..rows.starts[e + 1] {
                let (x, delta) = (&rows.x[t * tap.n_in..][..tap.n_in], &rows.delta[t * tap.n_out..][..tap.n_out]);
                for (o, &d) in delta.iter().enumerate() {
                    for (i, &x) in x.iter().enumerate() {
                        flat[o * tap.n_in + i] += f64::from(d) * f64::from(x);
                    }
                }
            }
        }
        flat
    };
    (0..capture.losses.len()).map(gradient).collect()
}

/// The tracked part of the full gradient of a sequence, by the other route (exact products, own sink).
fn full_gradient(tapped: &TappedDecoder<'_>, sequence: Sequence<'_>) -> Vec<f32> {
    let decoder = tapped.decoder();
    let flat = decoder.gradient_sum(&[sequence]).unwrap();
    let gradient = Decoder::from_parameters(decoder.config().clone(), flat).unwrap();
    TappedDecoder::new(&gradient, &["*"], Granularity::Module).unwrap().parameters()
}

fn norm(v: impl Iterator<Item = f64>) -> f64 {
    v.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn captured_rows_multiply_to_the_gradient_of_every_family() {
    for (name, config) in families() {
        let decoder = scattered(DecoderConfig { initializer_range: 0.3, ..config }, 4);
        let tapped = TappedDecoder::new(&decoder, &["*"], Granularity::Module).unwrap();
        let texts: Vec<Vec<u32>> = [70, 1, 9, 33].iter().map(|&len| tokens(len, len as usize)).collect();
        let sequences: Vec<Sequence<'_>> =
            texts.iter().zip([3, 0, 4, 40]).map(|(tokens, loss_from)| Sequence { tokens, loss_from }).collect();
        let examples: Vec<Example<'_>> = sequences.iter().map(|&s| Example::numbered(s, 0)).collect();
        let mut capture = Capture::default();
        tapped.capture(&examples, Loss::NextToken, &mut capture).unwrap();
        let losses = decoder.losses(&sequences).unwrap();
        for ((found, &sequence), (a, b)) in
            gradients(&tapped, &capture).iter().zip(&sequences).zip(capture.losses.iter().zip(losses))
        {
            assert!((a - b).abs() <= 2e-5 * b, "{name}: {a} {b}");
            let exact = full_gradient(&tapped, sequence);
            let off = norm(found.iter().zip(&exact).map(|(a, &b)| a - f64::from(b)));
            let size = norm(exact.iter().map(|&x| f64::from(x)));
            assert!(off <= 2e-5 * size, "{name}: {off} of {size}");
        }
        // One prediction from 0, a token alone, and nothing left to predict: no rows.
        assert_eq!(capture.taps[0].starts, [0, 69, 69, 77, 77], "{name}");
    }
}

#[test]
fn fused_modules_are_the_modules_side_by_side_and_company_changes_no_bit() {
    let decoder = scattered(tiny_config(), 4);
    let single = TappedDecoder::new(&decoder, &["*"], Granularity::Module).unwrap();
    let fused = TappedDecoder::new(&decoder, &["*"], Granularity::Fused).unwrap();
    assert_eq!(single.parameters(), fused.parameters());
    assert_eq!((single.taps().len(), fused.taps().len(), single.dim()), (14, 8, fused.dim()));
    let texts: Vec<Vec<u32>> = (0..20u64).map(|i| tokens(i, 2 + 5 * i as usize % 79)).collect();
    let examples: Vec<Example<'_>> =
        texts.iter().enumerate().map(|(i, t)| Example::numbered(Sequence::whole(t), i as u64)).collect();
    for loss in [Loss::NextToken, Loss::Margin, Loss::Sampled { seed: 3 }] {
        let (mut all, mut one) = (Capture::default(), Capture::default());
        fused.capture(&examples, loss, &mut all).unwrap();
        for (e, example) in examples.iter().enumerate() {
            fused.capture(std::slice::from_ref(example), loss, &mut one).unwrap();
            assert_eq!(one.losses[0].to_bits(), all.losses[e].to_bits());
            for ((tap, all), one) in fused.taps().iter().zip(&all.taps).zip(&one.taps) {
                let rows = all.starts[e]..all.starts[e + 1];
                assert_eq!(one.x, all.x[rows.start * tap.n_in..rows.end * tap.n_in]);
                assert_eq!(one.delta, all.delta[rows.start * tap.n_out..rows.end * tap.n_out]);
            }
        }
    }
}

#[test]
fn weights_come_back_and_patterns_and_encoders_are_refused_by_name() {
    for (name, config) in families() {
        let decoder = scattered(config, 4);
        let tapped = TappedDecoder::new(&decoder, &["*"], Granularity::Module).unwrap();
        let flat = tapped.parameters();
        assert_eq!(flat.len(), tapped.dim());
        assert_eq!(tapped.with_parameters(&flat).unwrap().parameters(), decoder.parameters(), "{name}");
        let zero = tapped.with_parameters(&vec![0.0; flat.len()]).unwrap();
        assert!(TappedDecoder::new(&zero, &["*"], Granularity::Fused).unwrap().parameters().iter().all(|&x| x == 0.0));
        assert!(tapped.with_parameters(&flat[1..]).is_err());
    }
    let decoder = scattered(tiny_config(), 4);
    let refused =
        |patterns: &[&str]| TappedDecoder::new(&decoder, patterns, Granularity::Module).unwrap_err().to_string();
    assert!(refused(&["*.nothing"]).contains("*.nothing"));
    assert!(refused(&["lm_head"]).contains("at least one tracked module"), "tied");
    let encoder = scattered(encoder_config(), 4);
    let message = TappedDecoder::new(&encoder, &["*"], Granularity::Module).unwrap_err().to_string();
    assert!(message.contains("encoder"), "{message}");
    let tapped = TappedDecoder::new(&decoder, &["*.q_proj"], Granularity::Module).unwrap();
    assert_eq!(tapped.taps().len(), 2);
    let spans = [0..2, 2..4];
    let example = Example { spans: &spans, ..Example::whole(&[1, 2, 3, 4]) };
    assert!(tapped.capture(&[example], Loss::NextToken, &mut Capture::default()).is_err());
}

/// A random direction.
fn direction(dim: usize, seed: u64) -> Vec<f32> {
    let mut stream = ascribe_linalg::Stream::new(seed, "direction");
    (0..dim).map(|_| stream.normal() as f32).collect()
}

/// `[R, P]`.
fn directions(tapped: &TappedDecoder<'_>, n: u64) -> Array2<f32> {
    let rows: Vec<f32> = (0..n).flat_map(|seed| direction(tapped.dim(), seed)).collect();
    Array2::from_shape_vec((n as usize, tapped.dim()), rows).unwrap()
}

/// Forward mode against fourth-order differences of every token's loss, and against the gradient, in every family.
#[test]
fn token_tangents_are_differences_of_token_losses_and_add_up_to_the_gradient() {
    for (name, config) in families() {
        let decoder = scattered(DecoderConfig { initializer_range: 0.4, ..config }, 4);
        let tapped = TappedDecoder::new(&decoder, &["*"], Granularity::Module).unwrap();
        let text = tokens(2, 70);
        let sequence = Sequence { tokens: &text, loss_from: 3 };
        let v = directions(&tapped, 2);
        let found = &tapped.token_tangents(&[Example::numbered(sequence, 0)], Loss::NextToken, v.view()).unwrap()[0];
        assert_eq!(found.dim(), (2, 67));
        let theta = tapped.parameters();
        for r in 0..2 {
            let gradient = full_gradient(&tapped, sequence);
            let along: f64 = gradient.iter().zip(v.row(r)).map(|(&g, &v)| f64::from(g) * f64::from(v)).sum();
            let total: f64 = found.row(r).iter().map(|&x| f64::from(x)).sum();
            let size = norm(gradient.iter().map(|&g| f64::from(g))) * (tapped.dim() as f64).sqrt();
            assert!((total - along).abs() < 1e-5 * size, "{name}: {total} {along} {size}");
            let moved = |h: f32| -> Vec<f64> {
                let moved: Vec<f32> = theta.iter().zip(v.row(r)).map(|(t, v)| t + h * v).collect();
                let losses = tapped.with_parameters(&moved).unwrap().token_nll(&text).unwrap();
                losses[2..].iter().map(|&x| f64::from(x)).collect()
            };
            // Small steps suffer from rounding, large ones from truncation: per token the best of four.
            let quotients: Vec<Vec<f64>> = [4e-3f32, 2e-3, 1e-3, 5e-4]
                .iter()
                .map(|&h| {
                    let at = [moved(h), moved(-h), moved(2.0 * h), moved(-2.0 * h)];
                    let of = |i: usize| (8.0 * (at[0][i] - at[1][i]) - (at[2][i] - at[3][i])) / (12.0 * f64::from(h));
                    (0..67).map(of).collect()
                })
                .collect();
            let scale = norm(found.row(r).iter().map(|&x| f64::from(x))) / 67f64.sqrt();
            for t in 0..67 {
                let x = f64::from(found[[r, t]]);
                let error = quotients.iter().map(|q| (q[t] - x).abs()).fold(f64::INFINITY, f64::min);
                assert!(error < 2e-3 * scale + 2e-3, "{name} {t}: {error} of {x}, {scale}");
            }
        }
    }
}

/// `⟨u, Jv⟩ = ⟨Jᵀu, v⟩`, and the columns of J are those of which Gauss–Newton is made, in every family.
#[test]
fn products_with_the_jacobian_are_adjoint_and_make_the_curvature() {
    for (name, config) in families() {
        let decoder = scattered(DecoderConfig { initializer_range: 0.4, ..config }, 4);
        let tapped = TappedDecoder::new(&decoder, &["*"], Granularity::Fused).unwrap();
        let texts = [tokens(2, 9), tokens(3, 5)];
        let example = |t: usize| Example::numbered(Sequence { tokens: &texts[t], loss_from: 3 }, 0);
        let v = directions(&tapped, 3);
        let (mut expected, mut size) = (vec![vec![0.0f64; tapped.dim()]; 3], 0.0f64);
        for (e, text) in texts.iter().enumerate() {
            let pushed = tapped.push_forward(&example(e), v.view()).unwrap();
            let (n, width) = (pushed.dim().1, pushed.dim().2);
            let logits = decoder.logits(text).unwrap();
            for (r, expected) in expected.iter_mut().enumerate() {
                // (diag p − ppᵀ)Jv in plain f64.
                let mut weighted = Array2::<f32>::zeros((n, width));
                for t in 0..n {
                    let row: Vec<f64> = logits.row(t + 2).iter().map(|&x| f64::from(x).exp()).collect();
                    let total: f64 = row.iter().sum();
                    let mean: f64 = (0..width).map(|j| row[j] / total * f64::from(pushed[[r, t, j]])).sum();
                    for j in 0..width {
                        weighted[[t, j]] = (row[j] / total * (f64::from(pushed[[r, t, j]]) - mean)) as f32;
                    }
                }
                let pulled = tapped.pull_back(&example(e), weighted.view()).unwrap();
                let left: f64 =
                    pushed.slice(s![r, .., ..]).iter().zip(&weighted).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                let right: f64 = pulled.iter().zip(v.row(r)).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                assert!(left > 0.0 && (left - right).abs() < 1e-4 * left, "{name}: {left} {right}");
                expected.iter_mut().zip(&pulled).for_each(|(sum, &x)| *sum += f64::from(x));
                size = size.max(norm(expected.iter().copied()));
            }
        }
        let found = tapped.gauss_newton(&[example(0), example(1)], v.view()).unwrap();
        for (found, expected) in found.rows().into_iter().zip(&expected) {
            let off = norm(found.iter().zip(expected).map(|(a, b)| a - b));
            assert!(off < 1e-5 * size, "{name}: {off} of {size}");
        }
        // Symmetric: ⟨v₀, Hv₁⟩ = ⟨v₁, Hv₀⟩.
        let product =
            |a: usize, b: usize| -> f64 { v.row(a).iter().zip(found.row(b)).map(|(&v, &h)| f64::from(v) * h).sum() };
        let scale = (product(0, 0) * product(1, 1)).sqrt();
        assert!((product(0, 1) - product(1, 0)).abs() < 1e-4 * scale, "{name}");
    }
}

/// Neither the company of an example nor that of a direction changes a bit, nor do threads.
#[test]
fn walks_do_not_feel_their_company() {
    let decoder = scattered(families().pop().unwrap().1, 4);
    let tapped = TappedDecoder::new(&decoder, &["*"], Granularity::Module).unwrap();
    let texts: Vec<Vec<u32>> = (0..19u64).map(|i| tokens(i, 1 + 7 * i as usize % 79)).collect();
    let examples: Vec<Example<'_>> =
        texts.iter().enumerate().map(|(i, t)| Example::numbered(Sequence::whole(t), i as u64)).collect();
    let v = directions(&tapped, 11);
    let all = tapped.token_tangents(&examples, Loss::NextToken, v.view()).unwrap();
    for (example, all) in examples.iter().zip(&all) {
        let one =
            tapped.token_tangents(std::slice::from_ref(example), Loss::NextToken, v.slice(s![9..10, ..])).unwrap();
        assert_eq!(one[0].row(0), all.row(9));
    }
    let product = |threads: usize, rows: std::ops::Range<usize>| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| tapped.gauss_newton(&examples, v.slice(s![rows, ..])).unwrap())
    };
    let many = product(3, 0..11);
    assert_eq!(product(1, 9..10).row(0), many.row(9));
    let mut bad = v.clone();
    bad[[3, 7]] = f32::NAN;
    let message = tapped.gauss_newton(&examples, bad.view()).unwrap_err().to_string();
    assert!(message.contains("row 3, column 7"), "{message}");
    assert!(tapped.token_tangents(&examples, Loss::NextToken, v.slice(s![.., 1..])).is_err());
    assert!(tapped.pull_back(&examples[2], Array2::zeros((1, 13)).view()).is_err());
    let nothing = tapped.token_tangents(&examples, Loss::NextToken, v.slice(s![..0, ..])).unwrap();
    assert_eq!(nothing[3].dim(), (0, 21));
}

/// An output layer of its own is tracked like any module, alone too.
#[test]
fn an_untied_output_layer_moves_too() {
    let config = DecoderConfig { tie_word_embeddings: false, ..tiny_config() };
    let decoder = scattered(config, 4);
    let tapped = TappedDecoder::new(&decoder, &["lm_head"], Granularity::Module).unwrap();
    let text = tokens(2, 30);
    let example = Example::whole(&text);
    let v = directions(&tapped, 1);
    // Logits are linear in this matrix: J v is the hidden states times V.
    let pushed = tapped.push_forward(&example, v.view()).unwrap();
    let hidden = decoder.hidden_states(&text).unwrap();
    let matrix = v.clone().into_shape_with_order((13, 8)).unwrap();
    let expected = hidden.slice(s![..29, ..]).dot(&matrix.t());
    for (a, b) in pushed.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{a} {b}");
    }
    let product = tapped.gauss_newton(&[example], v.view()).unwrap();
    let along: f64 = product.iter().zip(&v).map(|(&h, &v)| h * f64::from(v)).sum();
    assert!(along > 0.0);
}
