//! Tests of the gradient stage: every projection against the full gradient put through the same matrices, sums, invariance,
//! bad input.

use ascribe_linalg::{Sjlt, Stream, TwoSided, factors, sparse};
use ndarray::{Array2, Axis, s};

use super::*;
use crate::config::DecoderConfig;
use crate::decoder::tests::{encoder_config, families, scattered, tiny_config, tokens};
use crate::decoder::{Loss, Module, Norm};

fn untied() -> DecoderConfig {
    DecoderConfig { tie_word_embeddings: false, num_key_value_heads: 2, ..tiny_config() }
}

/// A tiny model of every family, with norms and biases that are not what they are set to.
fn models() -> Vec<Decoder> {
    families().into_iter().map(|(_, config)| scattered(config, 4)).collect()
}

fn texts() -> Vec<Vec<u32>> {
    (0..6).map(|i| tokens(i, [70, 9, 2, 33, 1, 80][i as usize])).collect()
}

fn rows(stage: &GradientStage<'_>, sequences: &[Sequence<'_>]) -> Array2<f32> {
    let mut out = Array2::from_elem((sequences.len(), stage.dim()), f32::NAN);
    stage.rows(sequences, out.view_mut(), None).unwrap();
    out
}

fn rows_of(stage: &GradientStage<'_>, examples: &[Example<'_>]) -> (Array2<f32>, Vec<RowReport>) {
    let n = examples.iter().map(Example::n_rows).sum();
    let mut out = Array2::from_elem((n, stage.dim()), f32::NAN);
    let reports = stage.rows_of(examples, out.view_mut()).unwrap();
    (out, reports)
}

/// The full gradient of the parameter that a column stands for: `[O, I]` for matrices, `[1, width]` for vectors.
fn matrix_of(decoder: &Decoder, name: &str, full: &[f32]) -> Array2<f32> {
    let slot = |name: &str| decoder.layout.slots().iter().find(|slot| slot.name == name);
    let of_slot = |slot: &crate::layout::ParameterSlot| {
        let numbers = full[slot.range.clone()].to_vec();
        let shape = if slot.is_matrix() { (slot.shape[0], slot.shape[1]) } else { (1, slot.shape[0]) };
        let matrix = Array2::from_shape_vec(shape, numbers).unwrap();
        let is_table =
            [&decoder.layout.embedding].into_iter().chain(&decoder.layout.positions).any(|r| *r == slot.range);
        let turned = slot.is_matrix() && decoder.config.arch.conv1d() && !is_table;
        if turned { matrix.reversed_axes() } else { matrix }
    };
    if let Some(slot) = slot(&format!("{name}.weight")).or_else(|| slot(name)) {
        return of_slot(slot);
    }
    let (stem, bias) = name.strip_suffix(".bias").map_or((name, false), |stem| (stem, true));
    let l = || stem.split('.').nth(1).unwrap().parse::<usize>().unwrap();
    let rest = stem.splitn(3, '.').nth(2).unwrap_or(stem);
    let norm = match rest {
        "input_layernorm" => Some(Norm::Attn(l())),
        "q_norm" => Some(Norm::Query(l())),
        "k_norm" => Some(Norm::Key(l())),
        "attn_post_norm" => Some(Norm::AttnPost(l())),
        "post_attention_layernorm" => Some(Norm::Mlp(l())),
        "mlp_post_norm" => Some(Norm::MlpPost(l())),
        "norm" => Some(Norm::Out),
        _ => None,
    };
    if let Some(norm) = norm {
        let name = format!("{}.{}", decoder.norm_layout(norm).name, if bias { "bias" } else { "weight" });
        return of_slot(slot(&name).unwrap());
    }
    let module = match rest {
        "attn.qkv" => Module::Qkv(l()),
        "attn.o" => Module::O(l()),
        "mlp.gate_up" | "mlp.up" => Module::Up(l()),
        "mlp.down" => Module::Down(l()),
        "embed_tokens" => return of_slot(&decoder.layout.slots()[0]),
        "embed_positions" => return of_slot(&decoder.layout.slots()[1]),
        _ => Module::Head,
    };
    let layout = plan::linear_layout(decoder, module);
    let fan = decoder.fan(module);
    if bias {
        return Array2::from_shape_vec((1, fan.output), full[layout.bias.clone().unwrap()].to_vec()).unwrap();
    }
    let numbers = full[layout.weight.clone()].to_vec();
    if layout.transposed {
        return Array2::from_shape_vec((fan.input, fan.output), numbers).unwrap().reversed_axes();
    }
    Array2::from_shape_vec((fan.output, fan.input), numbers).unwrap()
}

/// The projection of `g`, from the definitions alone. Vectors are kept.
fn project(config: &TapConfig, name: &str, g: &Array2<f32>) -> Vec<f32> {
    let (o, i) = g.dim();
    if o == 1 {
        return g.iter().copied().collect();
    }
    let sparse_sum = |dim, nnz, factor, numbers: Vec<f32>| {
        let mut out = vec![0.0; dim];
        Sjlt::new(config.seed, name, dim, nnz).scaled(factor).add(0, &numbers, &mut out);
        out
    };
    match config.projection {
        Projection::TwoSided | Projection::Factored { .. } => {
            let p = TwoSided::new(config.seed, name, i, o, config.k_in, config.k_out);
            p.p_out.t().dot(g).dot(&p.p_in).iter().copied().collect()
        }
        Projection::Full | Projection::Given { .. } => g.iter().copied().collect(),
        Projection::Sparse { dim, .. } if o * i <= dim => g.iter().copied().collect(),
        Projection::Sparse { dim, nnz } => sparse_sum(dim, nnz, 1.0, g.iter().copied().collect()),
        Projection::MaskedSparse { keep_in, keep_out, dim, nnz } => {
            let rows = sparse::mask(config.seed, &format!("{name}/out"), o, keep_out);
            let columns = sparse::mask(config.seed, &format!("{name}/in"), i, keep_in);
            let kept = g.select(Axis(0), &rows).select(Axis(1), &columns);
            let factor = ((o * i) as f32 / kept.len() as f32).sqrt();
            sparse_sum(dim, nnz, factor, kept.iter().copied().collect())
        }
    }
}

/// Rows of the stage against projections of `full` gradients, column by column, to 2·10⁻⁵ of the block's largest number.
#[track_caller]
fn check_route(decoder: &Decoder, stage: &GradientStage<'_>, rows: &Array2<f32>, full: &Array2<f32>) {
    assert_eq!(rows.nrows(), full.nrows());
    for column in stage.expanded_columns() {
        for (row, full) in rows.rows().into_iter().zip(full.rows()) {
            let g = matrix_of(decoder, &column.name, full.as_slice().unwrap());
            let exact = project(stage.config(), &column.name, &g);
            assert_eq!(exact.len(), column.len, "{}", column.name);
            let scale = exact.iter().fold(0.0f32, |m, x| m.max(x.abs())) + 1e-6;
            for (a, b) in row.iter().skip(column.start).zip(&exact) {
                assert!((a - b).abs() < 2e-5 * scale, "{} {:?}: {a} {b}", column.name, stage.config().projection);
            }
        }
    }
}

fn everything(granularity: Granularity, projection: Projection) -> TapConfig {
    TapConfig { k_out: 3, granularity, projection, biases: true, positions: true, ..TapConfig::all(5, 4) }
}

const PROJECTIONS: [Projection; 4] = [
    Projection::TwoSided,
    Projection::Full,
    Projection::Sparse { dim: 50, nnz: 2 },
    Projection::MaskedSparse { keep_in: 5, keep_out: 6, dim: 20, nnz: 1 },
];

/// The second route: full gradients, then the projectors as matrices.
#[test]
fn rows_are_projections_of_the_full_gradient() {
    for decoder in models() {
        for granularity in [Granularity::Fused, Granularity::Module] {
            for projection in PROJECTIONS {
                let stage = GradientStage::new(&decoder, everything(granularity, projection)).unwrap();
                let texts = texts();
                let sequences: Vec<Sequence<'_>> =
                    texts.iter().map(|tokens| Sequence { tokens, loss_from: 2 }).collect();
                let rows = rows(&stage, &sequences);
                check_route(&decoder, &stage, &rows, &decoder.gradients(&sequences).unwrap());
                assert!(rows.row(4).iter().all(|&x| x == 0.0), "one token predicts nothing");
            }
        }
    }
}

/// Every parameter is tracked once: full rows of all kinds together are as long as the gradient itself.
#[test]
fn full_rows_hold_the_whole_gradient() {
    for decoder in models() {
        for granularity in [Granularity::Fused, Granularity::Module] {
            let stage = GradientStage::new(&decoder, everything(granularity, Projection::Full)).unwrap();
            assert_eq!(stage.dim(), decoder.parameter_layout().len());
            assert_eq!(stage.projector_spec(), ProjectorSpec::Identity);
            let text = tokens(3, 20);
            let mut norms = [0.0];
            let mut row = Array2::zeros((1, stage.dim()));
            stage.rows(&[Sequence::whole(&text)], row.view_mut(), Some(&mut norms)).unwrap();
            let exact = decoder.gradient_norms(&[Sequence::whole(&text)]).unwrap()[0];
            assert!((norms[0] / exact - 1.0).abs() < 1e-5);
        }
    }
}

/// Scaled by moments: the full gradient is scaled number by number, then projected.
#[test]
fn normalized_rows_are_projections_of_the_scaled_gradient() {
    for decoder in models() {
        let mut stream = Stream::new(2, "moments");
        let moments: Vec<f32> = (0..decoder.layout.len()).map(|_| stream.uniform() as f32).collect();
        // √(v/(1 − 0.9²)) with the correction by hand.
        let factors: Vec<f32> = moments.iter().map(|v| 1.0 / ((v / 0.19).sqrt() + 1e-2)).collect();
        let normalizer = Normalizer::adam(&decoder, moments, Some((2, 0.9)), 1e-2).unwrap();
        for granularity in [Granularity::Fused, Granularity::Module] {
            for projection in PROJECTIONS {
                let config = everything(granularity, projection);
                let stage = GradientStage::normalized(&decoder, config, &normalizer).unwrap();
                let text = tokens(1, 33);
                let sequences = [Sequence { tokens: &text, loss_from: 4 }];
                let mut full = decoder.gradients(&sequences).unwrap();
                full.row_mut(0).iter_mut().zip(&factors).for_each(|(g, s)| *g *= s);
                check_route(&decoder, &stage, &rows(&stage, &sequences), &full);
                assert!(stage.spec("final", Digest::of(b"")).normalizer.starts_with("adam_v:"));
            }
        }
    }
}

#[test]
fn moments_that_cannot_be_are_refused() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let n = decoder.layout.len();
    let refused =
        |moments: Vec<f32>, step, eps| Normalizer::adam(&decoder, moments, step, eps).unwrap_err().to_string();
    assert!(refused(vec![0.0; n - 1], None, 1e-8).contains("number of second moments"));
    let mut negative = vec![0.0; n];
    negative[5] = -1.0;
    assert!(refused(negative, None, 1e-8).contains("-1 in `model.embed_tokens.weight`"));
    assert!(refused(vec![f32::NAN; n], None, 1e-8).contains("NaN"));
    assert!(refused(vec![0.0; n], None, 0.0).contains("positive"));
    assert!(refused(vec![0.0; n], Some((3, 1.0)), 1e-8).contains("beta2"));
}

/// Moments come from a file under the parameters' names, and a missing one is named.
#[test]
fn moments_are_read_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let path = dir.path().join("state.safetensors");
    let moments: Vec<f32> = (0..decoder.layout.len()).map(|i| i as f32 * 1e-3).collect();
    let tensors = crate::weights::Tensor::of_layout(&decoder.layout, &moments, "adam_v.");
    let bytes = crate::weights::to_bytes(&tensors, ascribe_core::RowType::F32, &Default::default());
    std::fs::write(&path, bytes).unwrap();
    let read = Normalizer::from_file(&decoder, &path, "adam_v.", None, 1e-8).unwrap();
    let given = Normalizer::adam(&decoder, moments, None, 1e-8).unwrap();
    assert_eq!(read.spec_name(), given.spec_name());
    let error = Normalizer::from_file(&decoder, &path, "", None, 1e-8).unwrap_err().to_string();
    assert!(error.contains("`model.embed_tokens.weight` is missing"), "{error}");
}

/// Factored rows are the best approximations of their rank of the two-sided rows, and say how much they drop.
#[test]
fn factored_rows_expand_to_the_best_approximation() {
    let decoder = Decoder::init(untied(), 4).unwrap();
    let base = TapConfig::all(5, 6);
    let dense = GradientStage::new(&decoder, base.clone()).unwrap();
    let texts = texts();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|t| Sequence::whole(t)).collect();
    let whole = rows(&dense, &sequences);
    for rank in [1, 2, 9] {
        let config = TapConfig { projection: Projection::Factored { rank }, ..base.clone() };
        let stage = GradientStage::new(&decoder, config).unwrap();
        let examples: Vec<Example<'_>> = texts.iter().map(|t| Example::whole(t)).collect();
        let (stored, reports) = rows_of(&stage, &examples);
        assert_eq!(stage.dim() < dense.dim(), rank < 3, "factors of rank 9 would be longer than the block");
        let mut back = vec![0.0; dense.dim()];
        for ((stored, whole), report) in stored.rows().into_iter().zip(whole.rows()).zip(reports) {
            stage.expand(stored.as_slice().unwrap(), &mut back);
            let (mut dropped, mut total) = (0.0, 0.0);
            for column in dense.columns() {
                let block = whole.slice(s![column.start..column.start + column.len]);
                let approximation = if column.name.contains("norm") || rank == 9 {
                    block.to_vec()
                } else {
                    let p = column.len / 6;
                    let f = factors(block.to_shape((p, 6)).unwrap().view(), rank).unwrap();
                    f.left.dot(&f.right.t()).iter().map(|&x| x as f32).collect()
                };
                let scale = block.iter().fold(1e-6f32, |m, x| m.max(x.abs()));
                for ((got, expected), whole) in back[column.start..].iter().zip(&approximation).zip(block) {
                    assert!((got - expected).abs() < 1e-5 * scale, "{} {rank}: {got} {expected}", column.name);
                    dropped += f64::from(whole - got).powi(2);
                    total += f64::from(*whole).powi(2);
                }
            }
            let expected = if total > 0.0 { (dropped / total).sqrt() } else { 0.0 };
            assert!((f64::from(report.residual) - expected).abs() < 1e-5, "{rank}: {} {expected}", report.residual);
            assert!((f64::from(report.norm) - total.sqrt()).abs() < 1e-5 * total.sqrt() + 1e-9);
        }
    }
}

/// `E⟨row_i, row_j⟩ = ⟨g_i, g_j⟩` over seeds, for the module on which each projection has most to do.
#[test]
fn dot_products_of_rows_are_unbiased() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let (a, b) = (tokens(1, 20), tokens(2, 25));
    let sequences = [Sequence::whole(&a), Sequence::whole(&b)];
    let dot = |projection, seed, k| {
        let modules = vec!["model.layers.1.mlp.down_proj".to_string()];
        let config = TapConfig { modules, seed, projection, ..TapConfig::modules(seed, k, &[]) };
        let rows = rows(&GradientStage::new(&decoder, config).unwrap(), &sequences);
        f64::from(rows.row(0).dot(&rows.row(1)))
    };
    let exact = dot(Projection::Full, 0, 1);
    for projection in PROJECTIONS.into_iter().filter(|&p| p != Projection::Full) {
        let samples: Vec<f64> = (0..400).map(|seed| dot(projection, seed, 4)).collect();
        let mean = samples.iter().sum::<f64>() / 400.0;
        let variance = samples.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 399.0;
        let error = (variance / 400.0).sqrt();
        assert!((mean - exact).abs() < 5.0 * error, "{projection:?}: {mean} {exact} ± {error}");
        assert!(error < 0.5 * exact.abs().max(1.0), "{projection:?}: the test could not fail");
    }
}

#[test]
fn rows_of_spans_add_up_and_share_nothing_else() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let text = tokens(1, 70);
    let spans = [0..10, 10..11, 11..64, 64..70, 30..30, 68..70];
    let parted = Example { loss_from: 5, spans: &spans, ..Example::whole(&text) };
    let (rows, reports) = rows_of(&stage, &[parted, Example { spans: &[], ..parted }]);
    let counts: Vec<usize> = reports.iter().map(|report| report.n_predictions).collect();
    assert_eq!(counts, [5, 1, 53, 6, 0, 2, 65]);
    assert!(rows.row(4).iter().all(|&x| x == 0.0));
    let sum = rows.slice(s![..4, ..]).sum_axis(Axis(0));
    let whole = rows.row(6);
    let scale = whole.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert!(sum.iter().zip(whole).all(|(a, b)| (a - b).abs() < 1e-5 * scale));
    let losses: f64 = reports[..4].iter().map(|report| report.loss).sum();
    assert!((losses - reports[6].loss).abs() < 1e-4);
    // A span's row is the gradient of its own tokens' loss: the last two tokens are also what `loss_from` would leave.
    let tail = Example { loss_from: 68, ..Example::whole(&text) };
    let (alone, _) = rows_of(&stage, &[tail]);
    assert_eq!(alone.row(0), rows.row(5));
    // Neither the company of spans nor the order in which they come changes a bit.
    let backwards: Vec<_> = spans.iter().rev().cloned().collect();
    let (reversed, _) = rows_of(&stage, &[Example { spans: &backwards, ..parted }]);
    assert_eq!(reversed.slice(s![..;-1, ..]), rows.slice(s![..6, ..]));
}

#[test]
fn rows_of_tokens_add_up() {
    for decoder in models() {
        for projection in PROJECTIONS {
            for granularity in [Granularity::Fused, Granularity::Module] {
                let config = TapConfig { norms: false, ..everything(granularity, projection) };
                let stage = GradientStage::new(&decoder, config).unwrap();
                let text = tokens(1, 40);
                let example = Example { loss_from: 9, ..Example::whole(&text) };
                let mut each = Array2::from_elem((40, stage.dim()), f32::NAN);
                let loss = stage.token_rows(&example, each.view_mut()).unwrap();
                let (whole, reports) = rows_of(&stage, &[example]);
                assert_eq!(loss, reports[0].loss);
                let sum = each.sum_axis(Axis(0));
                let scale = whole.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert!(sum.iter().zip(whole.row(0)).all(|(a, b)| (a - b).abs() < 2e-5 * scale), "{projection:?}");
                assert!(each.row(39).iter().all(|&x| x == 0.0), "nothing is predicted from the last token");
                assert!(each.row(3).iter().any(|&x| x != 0.0), "the prompt's activations were used");
            }
        }
    }
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let mut out = Array2::zeros((3, stage.dim()));
    let error = stage.token_rows(&Example::whole(&[1, 2, 3]), out.view_mut()).unwrap_err().to_string();
    assert!(error.contains("no norms"), "{error}");
}

/// Margin, drawn labels and given targets: gradients against central differences of the reported loss, along the gradient.
#[test]
fn rows_of_every_loss_are_gradients_of_it() {
    let decoder = Decoder::init(DecoderConfig { initializer_range: 0.4, ..tiny_config() }, 4).unwrap();
    let (text, other) = (tokens(2, 30), tokens(3, 30));
    for (loss, targets) in [(Loss::NextToken, None), (Loss::Margin, None), (Loss::NextToken, Some(&other[..]))] {
        let config = TapConfig { loss, ..everything(Granularity::Module, Projection::Full) };
        let example = Example { targets, loss_from: 3, ..Example::whole(&text) };
        let report = |decoder: &Decoder| {
            let stage = GradientStage::new(decoder, config.clone()).unwrap();
            let (rows, reports) = rows_of(&stage, &[example]);
            (rows, reports[0])
        };
        let (row, at) = report(&decoder);
        // One step of `h` along the gradient of each parameter, laid out as the row is.
        let stage = GradientStage::new(&decoder, config.clone()).unwrap();
        let norm = f64::from(at.norm);
        let moved = |h: f64| {
            let mut decoder = decoder.clone();
            let layout = decoder.layout.clone();
            for column in stage.columns() {
                let name = if column.name.ends_with(".bias") {
                    column.name.clone()
                } else {
                    format!("{}.weight", column.name)
                };
                let slot = layout.slots().iter().find(|slot| slot.name == name).unwrap();
                let g = row.slice(s![0, column.start..column.start + column.len]);
                let place = &mut decoder.parameters_mut()[slot.range.clone()];
                place.iter_mut().zip(g).for_each(|(p, g)| *p += (h * f64::from(*g) / norm) as f32);
            }
            report(&decoder).1.loss
        };
        let h = 0.01;
        let slope = (8.0 * (moved(h) - moved(-h)) - (moved(2.0 * h) - moved(-2.0 * h))) / (12.0 * h);
        assert!((slope / norm - 1.0).abs() < 2e-3, "{loss:?}: {slope} {norm}");
    }
}

/// A drawn label is a target like any other: the row equals that of the same labels given.
#[test]
fn drawn_labels_are_targets_and_belong_to_id_and_position() {
    let decoder = Decoder::init(DecoderConfig { initializer_range: 0.4, ..tiny_config() }, 4).unwrap();
    let text = tokens(2, 30);
    let sampled = TapConfig { loss: Loss::Sampled { seed: 9 }, ..TapConfig::all(5, 4) };
    let stage = GradientStage::new(&decoder, sampled.clone()).unwrap();
    let logits = decoder.logits(&text).unwrap();
    let draw = |id: u64| {
        let stream = Stream::new(9, &format!("pseudo-label/{id}"));
        let label = |t: usize| {
            let weights: Vec<f64> = logits.row(t - 1).iter().map(|&z| f64::from(z).exp()).collect();
            let mut left = (stream.at(t as u64) >> 11) as f64 / (1u64 << 53) as f64 * weights.iter().sum::<f64>();
            weights.iter().position(|w| {
                left -= w;
                left < 0.0
            })
        };
        (0..30).map(|t| if t == 0 { 0 } else { label(t).unwrap() as u32 }).collect::<Vec<u32>>()
    };
    let labels = draw(5);
    assert_ne!(labels, draw(6));
    let plain = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let (given, _) = rows_of(&plain, &[Example { targets: Some(&labels), ..Example::whole(&text) }]);
    let (drawn, _) = rows_of(&stage, &[Example::whole(&[1, 2]), Example { id: 5, ..Example::whole(&text) }]);
    assert_eq!(given.row(0), drawn.row(1));
    let later = Example { id: 5, loss_from: 20, ..Example::whole(&text) };
    let (tail, _) = rows_of(&stage, &[later]);
    let (given, _) = rows_of(&plain, &[Example { targets: Some(&labels), ..later }]);
    assert_eq!(tail, given);
}

#[test]
fn batches_order_and_threads_do_not_change_a_bit() {
    let decoder = Decoder::init(DecoderConfig { max_position_embeddings: 600, ..tiny_config() }, 4).unwrap();
    for (i, projection) in PROJECTIONS.into_iter().chain([Projection::Factored { rank: 1 }]).enumerate() {
        let precision = if i % 2 == 0 { Precision::F32 } else { Precision::Bf16 };
        let config = TapConfig { loss: Loss::Margin, precision, ..everything(Granularity::Module, projection) };
        let stage = GradientStage::new(&decoder, config).unwrap();
        // More than one pack, and one text that is longer than a pack.
        let mut texts = texts();
        texts[3] = tokens(3, PACK_ROWS + 20);
        texts[1] = tokens(3, PACK_ROWS - 20);
        let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
        let all = rows(&stage, &sequences);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert_eq!(pool.install(|| rows(&stage, &sequences)), all);
        for (i, sequence) in sequences.iter().enumerate() {
            assert_eq!(rows(&stage, &[*sequence]).row(0), all.row(i));
        }
        let reversed: Vec<Sequence<'_>> = sequences.iter().rev().copied().collect();
        assert_eq!(rows(&stage, &reversed).slice(s![..;-1, ..]), all);
        let mut wide = Array2::zeros((stage.dim(), 6));
        stage.rows(&sequences, wide.view_mut().reversed_axes(), None).unwrap();
        assert_eq!(wide.t(), all);
    }
}

/// Packs hold whole runs of neighbours: as many tokens as fit, one number of rows, every example once.
#[test]
fn packs_part_the_examples() {
    let decoder = Decoder::init(DecoderConfig { max_position_embeddings: 600, ..tiny_config() }, 4).unwrap();
    let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let texts: Vec<Vec<u32>> = [200, 312, 1, 600, 3, 3, 3].iter().map(|&len| tokens(1, len)).collect();
    let mut examples: Vec<Example<'_>> = texts.iter().map(|text| Example::whole(text)).collect();
    let spans = [0..1, 1..3];
    examples[5].spans = &spans;
    let sizes: Vec<usize> = stage.packs(&examples).iter().map(|pack| pack.len()).collect();
    assert_eq!(sizes, [2, 1, 1, 1, 1, 1]);
}

/// bf16 products round, and change nothing else: rows near those of f32, and not the same.
#[test]
fn bf16_rows_are_near_the_f32_rows() {
    for decoder in models() {
        let texts = texts();
        let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
        let of = |precision| {
            let config = TapConfig { precision, ..everything(Granularity::Module, Projection::TwoSided) };
            rows(&GradientStage::new(&decoder, config).unwrap(), &sequences)
        };
        let (exact, rounded) = (of(Precision::F32), of(Precision::Bf16));
        assert_ne!(exact, rounded);
        for (a, b) in exact.rows().into_iter().zip(rounded.rows()) {
            let off = (&a - &b).mapv(|x| x * x).sum().sqrt();
            // Rows of eight numbers do not average roundings out.
            assert!(off <= 0.15 * a.dot(&a).sqrt(), "{off}");
        }
    }
}

#[test]
fn losses_and_norms_come_along() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let stage = GradientStage::new(&decoder, TapConfig::all(5, 16)).unwrap();
    let texts = texts();
    let sequences: Vec<Sequence<'_>> = texts.iter().map(|tokens| Sequence::whole(tokens)).collect();
    let (mut out, mut norms) = (Array2::zeros((6, stage.dim())), vec![0.0; 6]);
    let losses = stage.rows(&sequences, out.view_mut(), Some(&mut norms)).unwrap();
    let expected = decoder.losses(&sequences).unwrap();
    assert!(losses.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-5 * b.abs() + 1e-9));
    for (norm, row) in norms.iter().zip(out.rows()) {
        assert!((norm - row.dot(&row).sqrt()).abs() <= 1e-5 * norm);
    }
}

#[test]
fn patterns_choose_modules_and_blocks_stay_what_they_are() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let all = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let only = TapConfig {
        embedding: false,
        norms: false,
        modules: vec!["layers.1.*".into(), "*.0.mlp.down".into()],
        ..TapConfig::all(5, 4)
    };
    let some = GradientStage::new(&decoder, only.clone()).unwrap();
    let names = |stage: &GradientStage<'_>| stage.columns().iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let expected =
        ["layers.0.mlp.down", "layers.1.attn.qkv", "layers.1.attn.o", "layers.1.mlp.gate_up", "layers.1.mlp.down"];
    assert_eq!(names(&some), expected);
    let text = tokens(1, 40);
    let (a, b) = (rows(&all, &[Sequence::whole(&text)]), rows(&some, &[Sequence::whole(&text)]));
    for column in some.columns() {
        let same = all.columns().iter().find(|c| c.name == column.name).unwrap();
        let part = |m: &Array2<f32>, c: &Column| m.slice(s![0, c.start..c.start + c.len]).to_vec();
        assert_eq!(part(&a, same), part(&b, column), "{}", column.name);
    }
    let refused = |config| GradientStage::new(&decoder, config).unwrap_err().to_string();
    let message = refused(TapConfig { modules: vec!["layers.7.*".into()], ..only.clone() });
    assert!(
        message.contains("layers.7.*") && message.contains("layers.*.mlp.down") && message.contains("0 to 1"),
        "{message}"
    );
    refused(TapConfig { modules: vec![], ..only.clone() });
    let encoder = Decoder::init(encoder_config(), 1).unwrap();
    assert!(GradientStage::new(&encoder, TapConfig::all(5, 4)).unwrap_err().to_string().contains("an encoder"));
    refused(TapConfig { k_in: 0, ..only });
}

#[test]
fn hugging_face_names_include_and_exclude() {
    let decoder = Decoder::init(untied(), 4).unwrap();
    let names = |config: TapConfig| {
        let stage = GradientStage::new(&decoder, config).unwrap();
        stage.columns().iter().map(|c| c.name.clone()).collect::<Vec<_>>()
    };
    let all = names(TapConfig::modules(5, 4, &["*"]));
    assert_eq!(all.len(), 15, "seven per layer and the output layer");
    assert_eq!(all[0], "model.layers.0.self_attn.q_proj");
    assert_eq!(all[14], "lm_head");
    let config = TapConfig {
        exclude: vec!["*.1.*".into(), "lm_head".into()],
        ..TapConfig::modules(5, 4, &["*_proj", "lm_head"])
    };
    assert_eq!(names(config), all[..7]);
    // A tied output layer belongs to the table, if that is tracked.
    let tied = Decoder::init(tiny_config(), 4).unwrap();
    let config = TapConfig { embedding: true, ..TapConfig::modules(5, 4, &["lm_head", "*.0.mlp.down_proj"]) };
    let columns = GradientStage::new(&tied, config).unwrap().columns().to_vec();
    let columns: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(columns, ["model.layers.0.mlp.down_proj", "model.embed_tokens"]);
    let wrong = TapConfig { exclude: vec!["c_attn".into()], ..TapConfig::modules(5, 4, &["*"]) };
    let message = GradientStage::new(&decoder, wrong).unwrap_err().to_string();
    assert!(message.contains("`c_attn`") || message.contains("c_attn"), "{message}");
    assert!(message.contains("model.layers.*.self_attn.q_proj") && message.contains("lm_head"), "{message}");
}

#[test]
fn examples_that_cannot_be_are_refused() {
    let decoder = Decoder::init(tiny_config(), 4).unwrap();
    let stage = GradientStage::new(&decoder, TapConfig::all(5, 4)).unwrap();
    let text = tokens(1, 10);
    let refused = |example: Example<'_>| {
        let mut out = Array2::zeros((example.n_rows(), stage.dim()));
        stage.rows_of(&[example], out.view_mut()).unwrap_err().to_string()
    };
    assert!(refused(Example { targets: Some(&text[..9]), ..Example::whole(&text) }).contains("number of targets"));
    assert!(refused(Example { targets: Some(&[13; 10]), ..Example::whole(&text) }).contains("below 13"));
    let span = 4..11;
    assert!(refused(Example { spans: &[span], ..Example::whole(&text) }).contains("4..11"));
    assert!(refused(Example::whole(&[])).contains("found 0"));
    let mut out = Array2::zeros((2, stage.dim()));
    assert!(stage.rows_of(&[Example::whole(&text)], out.view_mut()).is_err());
}
