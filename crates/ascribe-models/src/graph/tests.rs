//! Every operator and every family against finite differences, and the hand-written passes against the graph.

use ascribe_linalg::Stream;
use candle_core::{Device, Result, Tensor, Var};

use super::families::{families, noisy};
use super::*;

fn tokens(seed: u64, len: usize) -> Vec<u32> {
    crate::decoder::tests::tokens(seed, len)
}

fn noise(name: &str, n: usize) -> Vec<f64> {
    let mut stream = Stream::new(8, name);
    (0..n).map(|_| stream.normal()).collect()
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Compares the gradient of `loss` in each of `vars` with fourth-order differences along a random direction, in f64.
fn check_gradients(what: &str, vars: &[(String, Var)], loss: &dyn Fn() -> Result<Tensor>) {
    let gradients = loss().unwrap().backward().unwrap();
    for (name, var) in vars {
        let gradient = f64s(gradients.get(var).unwrap_or_else(|| panic!("{what}: no gradient reached {name}")));
        let start = var.as_tensor().copy().unwrap();
        let direction = noise(name, gradient.len());
        let step = Tensor::from_slice(&direction, var.shape(), &Device::Cpu).unwrap();
        let moved = |h: f64| {
            var.set(&(&start + (&step * h).unwrap()).unwrap()).unwrap();
            loss().unwrap().to_scalar::<f64>().unwrap()
        };
        let h = 2e-5;
        let near = (moved(h) - moved(-h)) / (2.0 * h);
        let far = (moved(2.0 * h) - moved(-2.0 * h)) / (4.0 * h);
        var.set(&start).unwrap();
        let quotient = (4.0 * near - far) / 3.0;
        let exact: f64 = gradient.iter().zip(&direction).map(|(a, b)| a * b).sum();
        let size = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(size > 0.0, "{what}: the gradient of {name} is nothing");
        // Truncation h⁴ times a fifth derivative, and rounding 1e-16/h.
        assert!((quotient - exact).abs() < 1e-7 * (1.0 + size), "{what} {name}: {quotient} {exact} {size}");
    }
}

type Operator = (&'static str, Vec<Vec<usize>>, Box<dyn Fn(&[Var]) -> Result<Tensor>>);

/// Every candle operator of `net`, on operands of the given shapes.
fn operators() -> Vec<Operator> {
    fn op(name: &'static str, shapes: &[&[usize]], f: impl Fn(&[Var]) -> Result<Tensor> + 'static) -> Operator {
        (name, shapes.iter().map(|s| s.to_vec()).collect(), Box::new(f))
    }
    let ids = || Tensor::new(&[2u32, 0, 2, 1], &Device::Cpu);
    let at = || Tensor::new(&[[1u32], [0], [2]], &Device::Cpu);
    let block: &[usize] = &[2, 3, 4];
    vec![
        op("index_select", &[&[3, 5]], move |x| x[0].index_select(&ids()?, 0)),
        op("gather", &[&[3, 4]], move |x| x[0].gather(&at()?, 1)),
        op("matmul", &[&[3, 4], &[4, 5]], |x| x[0].matmul(&x[1])),
        op("matmul, transposed", &[&[3, 4], &[5, 4]], |x| x[0].matmul(&x[1].t()?)),
        op("matmul, batched", &[&[2, 3, 4], &[2, 5, 4]], |x| x[0].matmul(&x[1].transpose(1, 2)?.contiguous()?)),
        op("add", &[block, block], |x| x[0].as_tensor() + x[1].as_tensor()),
        op("sub", &[block, block], |x| x[0].as_tensor() - x[1].as_tensor()),
        op("mul", &[block, block], |x| x[0].as_tensor() * x[1].as_tensor()),
        op("add, with itself", &[block], |x| x[0].as_tensor() + x[0].as_tensor()),
        op("mul, with itself", &[block], |x| x[0].as_tensor() * x[0].as_tensor()),
        op("scalar add", &[block], |x| x[0].as_tensor() + 1.0),
        op("affine", &[block], |x| x[0].affine(-0.7, 0.2)),
        op("broadcast_add", &[block, &[4]], |x| x[0].broadcast_add(&x[1])),
        op("broadcast_sub", &[block, &[2, 3, 1]], |x| x[0].broadcast_sub(&x[1])),
        op("broadcast_mul", &[block, &[4]], |x| x[0].broadcast_mul(&x[1])),
        op("broadcast_mul, in the middle", &[block, &[1, 3, 4]], |x| x[0].broadcast_mul(&x[1])),
        op("broadcast_div", &[block, &[2, 3, 1]], |x| x[0].broadcast_div(&x[1].sqr()?.affine(1.0, 0.5)?)),
        op("sqr", &[block], |x| x[0].sqr()),
        op("sqrt", &[block], |x| x[0].sqr()?.affine(1.0, 0.5)?.sqrt()),
        op("mean_keepdim", &[block], |x| x[0].mean_keepdim(2)),
        op("sum_all", &[block], |x| x[0].sqr()?.sum_all()),
        op("neg", &[block], |x| x[0].neg()),
        op("narrow", &[block], |x| x[0].narrow(2, 1, 2)),
        op("cat", &[&[2, 3, 2], block], |x| Tensor::cat(&[x[0].as_tensor(), x[1].as_tensor(), x[0].as_tensor()], 2)),
        op("reshape", &[block], |x| x[0].reshape((4, 6))),
        op("transpose", &[block], |x| x[0].transpose(0, 1)?.contiguous()),
        op("t", &[&[3, 4]], |x| x[0].t()?.contiguous()),
        op("unsqueeze", &[block], |x| x[0].unsqueeze(1)),
        op("broadcast_as", &[&[2, 1, 4]], |x| x[0].broadcast_as((2, 3, 4))?.contiguous()),
        op("tanh", &[block], |x| x[0].tanh()),
        op("erf", &[block], |x| x[0].erf()),
        op("silu", &[block], |x| x[0].silu()),
        op("relu", &[block], |x| x[0].relu()),
        op("softmax", &[block], |x| candle_nn::ops::softmax(&x[0], 2)),
        op("log_softmax", &[block], |x| candle_nn::ops::log_softmax(&x[0], 1)),
        op("clone", &[block], |x| Ok(x[0].as_tensor().clone())),
    ]
}

#[test]
fn every_operator_of_the_graph_has_the_gradient_that_finite_differences_give() {
    for (name, shapes, apply) in operators() {
        let var = |(i, shape): (usize, &Vec<usize>)| {
            let label = format!("{name} operand {i}");
            let numbers = noise(&label, shape.iter().product());
            (label, Var::from_slice(&numbers, shape.as_slice(), &Device::Cpu).unwrap())
        };
        let vars: Vec<(String, Var)> = shapes.iter().enumerate().map(var).collect();
        let operands: Vec<Var> = vars.iter().map(|(_, var)| var.clone()).collect();
        let out = apply(&operands).unwrap();
        let c = Tensor::from_slice(&noise("weights", out.elem_count()), out.shape(), &Device::Cpu).unwrap();
        check_gradients(name, &vars, &|| (apply(&operands)? * &c)?.sum_all());
    }
}

/// A method that `net` calls on tensors and that the test above does not walk fails here.
#[test]
fn the_graph_uses_no_operator_that_was_not_compared() {
    let known: Vec<&str> = operators().iter().map(|(name, ..)| name.split(',').next().unwrap()).collect();
    // Not operators: Rust's own, ours, and calls that make or look at tensors.
    let harmless = "and_then chain clone cloned collect config contiguous contains dedup dims2 dims3 elem_count \
        embedding expect extend filter flat_map flatten for_each from_slice hidden insert into_iter is_encoder iter len \
        linear map map_or maybe_norm next parameter_layout parameters predicting push slots sort_by_key split sum \
        tables to_dtype to_vec transpose turned unwrap_or values attention feed_forward head layer at";
    let harmless: Vec<&str> = harmless.split_whitespace().collect();
    let source = include_str!("net.rs");
    let mut seen = 0;
    for line in source.lines().map(|line| line.split("//").next().unwrap_or_default()) {
        for (i, _) in line.match_indices('.') {
            let name: String = line[i + 1..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let after = line[i + 1 + name.len()..].chars().next();
            if !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && after == Some('(') {
                let compared = known.contains(&name.as_str());
                seen += usize::from(compared);
                assert!(compared || harmless.contains(&name.as_str()), "`{name}` is not walked: {line}");
            }
        }
        for function in line.split("candle_nn::").skip(1) {
            let name = function.split('(').next().unwrap_or_default().rsplit("::").next().unwrap_or_default();
            assert!(known.contains(&name), "`{name}` is not walked: {line}");
        }
    }
    assert!(seen > 40, "the scan found {seen} operators");
}

/// Logits of one example of each family move with every parameter as the graph's own gradient says.
#[test]
fn every_family_has_the_gradient_that_finite_differences_give() {
    for (name, config) in families() {
        let decoder = noisy(&config, 6);
        let net = Net::new(&decoder, GraphKind::StockF64).unwrap();
        let text = tokens(3, 11);
        let vars: Vec<(String, Var)> = net.vars().map(|(range, var)| (format!("{range:?}"), var.clone())).collect();
        let covered: usize = net.vars().map(|(range, _)| range.len()).sum();
        assert_eq!(covered, decoder.parameter_layout().len(), "{name}: the units are the layout");
        if config.arch.is_encoder() {
            let c = noise("hidden", 11 * config.hidden_size);
            let c = Tensor::from_slice(&c, (11, config.hidden_size), &Device::Cpu).unwrap();
            check_gradients(name, &vars, &|| (net.hidden(&text)? * &c)?.sum_all());
        } else {
            let sequence = Sequence { tokens: &text, loss_from: 3 };
            check_gradients(name, &vars, &|| net.loss(sequence));
        }
    }
}

/// Largest difference over a tensor, relative to the tensor's largest number.
fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let scale = b.iter().fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0.0, |m: f32, (a, b)| m.max((a - b).abs() / scale))
}

#[test]
fn hand_written_passes_agree_with_candles_autograd() {
    for (name, config) in families() {
        let decoder = noisy(&config, 6);
        if config.arch.is_encoder() {
            let texts = [tokens(3, 70), tokens(4, 11), tokens(5, 1)];
            let sequences = texts.each_ref().map(|text| Sequence::whole(text));
            let embedded = decoder.mean_hidden(&sequences).unwrap();
            for kind in [GraphKind::StockF64, GraphKind::Stock] {
                let graph = GraphDecoder::new(&decoder, kind).unwrap();
                for (text, embedded) in texts.iter().zip(embedded.rows()) {
                    let hidden = graph.hidden(text).unwrap();
                    let own = decoder.hidden_states(text).unwrap();
                    assert!(worst(own.as_slice().unwrap(), hidden.as_slice().unwrap()) < 1e-5, "{name} {kind:?}");
                    let mean = hidden.mean_axis(ndarray::Axis(0)).unwrap();
                    let off = worst(embedded.as_slice().unwrap(), mean.as_slice().unwrap());
                    assert!(off < 1e-5, "{name} {kind:?}: {off}");
                }
                assert!(graph.logits(&texts[0]).is_err() && graph.loss_and_gradient(sequences[0]).is_err());
            }
            continue;
        }
        for (len, loss_from) in [(70, 0), (11, 5), (2, 0)] {
            let text = tokens(3, len);
            let sequence = Sequence { tokens: &text, loss_from };
            let logits = decoder.logits(&text).unwrap();
            let loss = decoder.losses(&[sequence]).unwrap()[0];
            let gradient = decoder.gradient_sum(&[sequence]).unwrap();
            let mut reference = vec![];
            for kind in [GraphKind::StockF64, GraphKind::Stock, GraphKind::Fused] {
                let Ok(graph) = GraphDecoder::new(&decoder, kind) else {
                    assert!(kind == GraphKind::Fused && !config.arch.is_plain_llama());
                    continue;
                };
                let other = graph.logits(&text).unwrap();
                let off = worst(logits.as_slice().unwrap(), other.as_slice().unwrap());
                assert!(off < 1e-5, "{name} {kind:?} logits: {off}");
                let (other, flat) = graph.loss_and_gradient(sequence).unwrap();
                assert!((loss / other - 1.0).abs() < 1e-5, "{name} {kind:?}: {loss} {other}");
                if kind == GraphKind::StockF64 {
                    reference = flat.clone();
                }
                for slot in decoder.parameter_layout().slots() {
                    let range = slot.range.clone();
                    let off = worst(&gradient[range.clone()], &flat[range.clone()]);
                    // Where candle's own f32 is further than that from f64, the model is that badly conditioned.
                    let limit = if kind == GraphKind::StockF64 {
                        1e-5
                    } else {
                        1e-5f32.max(2.0 * worst(&flat[range.clone()], &reference[range]))
                    };
                    assert!(off < limit, "{name} {kind:?} {}: {off}", slot.name);
                }
            }
        }
    }
}
