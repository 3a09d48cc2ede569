//! Streamed products against rows that are formed whole; bytes under other company; what is refused.

use super::*;
use crate::source::LayerCapture;
use ascribe_core::NoProgress;
use ndarray::arr2;

/// Two layers by hand; example `e` has `e % 3 + 1` positions in the first.
struct Toy {
    layers: Vec<Layer>,
    n: usize,
    bad: Option<u32>,
}

fn toy(n: usize, shapes: &[(usize, usize)]) -> Toy {
    let layer = |(i, &(n_out, n_in)): (usize, &(usize, usize))| Layer { name: format!("fc{i}"), n_out, n_in };
    Toy { layers: shapes.iter().enumerate().map(layer).collect(), n, bad: None }
}

impl CaptureSource for Toy {
    fn layers(&self) -> &[Layer] {
        &self.layers
    }

    fn len(&self) -> usize {
        self.n
    }

    fn capture(&self, examples: &[u32], _: Labels, out: &mut Captured) -> Result<(), MethodError> {
        *out = Captured { losses: vec![1.0; examples.len()], ..Captured::default() };
        for (l, layer) in self.layers.iter().enumerate() {
            let mut starts = vec![0];
            let (mut x, mut delta) = (Vec::new(), Vec::new());
            for &e in examples {
                for t in 0..if l == 0 { e % 3 + 1 } else { 1 } {
                    let mut stream = ascribe_linalg::Stream::new(u64::from(e * 8 + t), &layer.name);
                    x.extend((0..layer.n_in).map(|_| stream.normal() as f32));
                    delta.extend((0..layer.n_out).map(|_| stream.normal() as f32));
                    if self.bad == Some(e) && l == 1 {
                        let first = delta.len() - layer.n_out;
                        delta[first] = f32::NAN;
                    }
                }
                starts.push(x.len() / layer.n_in);
            }
            let rows = *starts.last().unwrap();
            let x = Array2::from_shape_vec((rows, layer.n_in), x).unwrap();
            let delta = Array2::from_shape_vec((rows, layer.n_out), delta).unwrap();
            out.layers.push(LayerCapture { x, delta });
            out.starts.push(starts);
        }
        Ok(())
    }
}

fn vectors(r: usize, p: usize) -> Array2<f32> {
    let mut stream = ascribe_linalg::Stream::new(5, "vectors");
    Array2::from_shape_fn((r, p), |_| stream.normal() as f32)
}

#[test]
fn a_gradient_by_hand() {
    let captured = Captured {
        starts: vec![vec![0, 2]],
        layers: vec![LayerCapture {
            x: arr2(&[[1.0, 2.0, 1.0], [3.0, 4.0, 1.0]]),
            delta: arr2(&[[1.0, -1.0], [0.5, 2.0]]),
        }],
        losses: vec![0.0],
    };
    let mut g = [0.0; 6];
    gradient(&captured, 0, 0, 0..2, &mut g);
    assert_eq!(g, [2.5, 4.0, 1.5, 5.0, 6.0, 1.0]);
    gradient(&captured, 0, 0, 1..2, &mut g[..3]);
    assert_eq!(g[..3], [5.0, 6.0, 1.0]);
}

#[test]
fn scores_norms_and_self_scores_are_those_of_the_rows() {
    // The first layer takes three blocks.
    let source = toy(300, &[(5, 2000), (3, 7)]);
    let v = vectors(4, 10_021);
    let rows = gradients(&source, &(0..300).collect::<Vec<_>>(), Labels::Given).unwrap();
    let scores = score(&source, v.view(), Labels::Given, &NoProgress).unwrap();
    let norms = square_norms(&source, Labels::Given, &NoProgress).unwrap();
    let twice = |g: ArrayView2<'_, f32>| Ok(g.mapv(|v| 2.0 * v));
    let own = self_scores(&source, Labels::Given, &twice, &NoProgress).unwrap();
    for i in 0..300 {
        let g = rows.row(i);
        let length = ascribe_linalg::sum::dot(g.as_slice().unwrap(), g.as_slice().unwrap());
        // The layer of one position has ‖x‖²‖δ‖², without the rounding of a formed gradient's numbers.
        assert!((norms[i] - length).abs() <= 1e-6 * length);
        assert!((own[i] - 2.0 * length).abs() <= 1e-12 * length);
        for r in 0..4 {
            let exact = ascribe_linalg::sum::dot(g.as_slice().unwrap(), v.row(r).as_slice().unwrap());
            // Chains of BLOCK additions with random signs: √BLOCK·eps of the lengths' product, ten times over.
            let bound = 10.0 * 64.0 * f64::from(f32::EPSILON) * length.sqrt();
            assert!((f64::from(scores[(r, i)]) - exact).abs() <= bound, "{r},{i}");
        }
    }
}

/// The source's second layer alone: one position per example.
struct Single(Toy);

impl CaptureSource for Single {
    fn layers(&self) -> &[Layer] {
        &self.0.layers[1..]
    }

    fn len(&self) -> usize {
        self.0.n
    }

    fn capture(&self, examples: &[u32], labels: Labels, out: &mut Captured) -> Result<(), MethodError> {
        self.0.capture(examples, labels, out)?;
        out.layers.remove(0);
        out.starts.remove(0);
        Ok(())
    }
}

#[test]
fn pairs_are_the_products_of_formed_gradients() {
    let (queries, mut train) = (Single(toy(7, &[(1, 1), (9, 60)])), Single(toy(301, &[(1, 1), (9, 60)])));
    let vectors = gradients(&queries, &(0..7).collect::<Vec<_>>(), Labels::Given).unwrap();
    let formed = score(&train, vectors.view(), Labels::Given, &NoProgress).unwrap();
    let pairs = pair_scores(&queries, &train, Labels::Given, &NoProgress).unwrap().unwrap();
    let top = formed.iter().fold(0f32, |top, v| top.max(v.abs()));
    let off = (&pairs - &formed).iter().fold(0f32, |top, v| top.max(v.abs()));
    assert!(top > 1.0 && off <= 1e-5 * top, "{off} of {top}");
    let own = square_norms(&queries, Labels::Given, &NoProgress).unwrap();
    for (q, own) in own.iter().enumerate() {
        // The first seven training examples are the queries.
        assert!((f64::from(pairs[(q, q)]) - own).abs() <= 1e-5 * own);
    }
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let one = Single(toy(1, &[(1, 1), (9, 60)]));
        let again = pool.install(|| pair_scores(&one, &train, Labels::Given, &NoProgress)).unwrap().unwrap();
        assert_eq!(again.row(0), pairs.row(0), "bytes do not depend on company or threads");
    }
    let several = toy(20, &[(1, 1), (9, 60)]);
    assert!(pair_scores(&several, &several, Labels::Given, &NoProgress).unwrap().is_none());
    assert!(pair_scores(&queries, &several, Labels::Given, &NoProgress).is_err(), "other layers");
    let none = Single(toy(0, &[(1, 1), (9, 60)]));
    assert_eq!(pair_scores(&queries, &none, Labels::Given, &NoProgress).unwrap().unwrap().dim(), (7, 0));
    train.0.bad = Some(13);
    let text = pair_scores(&queries, &train, Labels::Given, &NoProgress).unwrap_err().to_string();
    assert!(text.contains("13") && text.contains("fc1"), "{text}");
    let text = pair_scores(&train, &queries, Labels::Given, &NoProgress).unwrap_err().to_string();
    assert!(text.contains("query 13") && text.contains("fc1"), "{text}");
}

#[test]
fn company_and_threads_leave_the_bytes_alone() {
    let source = toy(201, &[(9, 600), (17, 10)]);
    let v = vectors(37, 5570);
    let all = score(&source, v.view(), Labels::Given, &NoProgress).unwrap();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let again = pool.install(|| score(&source, v.view(), Labels::Given, &NoProgress)).unwrap();
        assert_eq!(all, again);
    }
    for r in [0, 17, 36] {
        let one = score(&source, v.slice(s![r..=r, ..]), Labels::Given, &NoProgress).unwrap();
        assert_eq!(all.row(r), one.row(0));
    }
    let few = gradients(&source, &[7, 3], Labels::Given).unwrap();
    let rows = gradients(&source, &(0..201).collect::<Vec<_>>(), Labels::Given).unwrap();
    assert_eq!((few.row(0), few.row(1)), (rows.row(7), rows.row(3)));
}

#[test]
fn bad_input_is_named() {
    let mut source = toy(20, &[(2, 3), (3, 4)]);
    let message = |e: MethodError| e.to_string();
    let v = vectors(2, 17);
    assert!(message(score(&source, v.view(), Labels::Given, &NoProgress).unwrap_err()).contains("18"));
    assert!(gradients(&source, &[20], Labels::Given).is_err());
    let mut v = vectors(2, 18);
    v[(1, 7)] = f32::INFINITY;
    let text = message(score(&source, v.view(), Labels::Given, &NoProgress).unwrap_err());
    assert!(text.contains("query 1") && text.contains("fc1"), "{text}");
    source.bad = Some(13);
    let v = vectors(2, 18);
    for error in [
        score(&source, v.view(), Labels::Given, &NoProgress).map(|_| ()).unwrap_err(),
        gradients(&source, &[13], Labels::Given).map(|_| ()).unwrap_err(),
    ] {
        let text = message(error);
        assert!(text.contains("13") && text.contains("fc1"), "{text}");
    }
    assert!(square_norms(&source, Labels::Given, &NoProgress).unwrap_err().to_string().contains("13"));
    let empty = toy(0, &[(2, 3)]);
    assert_eq!(score(&empty, vectors(2, 6).view(), Labels::Given, &NoProgress).unwrap().dim(), (2, 0));
}

#[test]
fn sketched_rows_are_formed_gradients_through_the_table() {
    let check = |source: &dyn CaptureSource| {
        let ids: Vec<u32> = (0..source.len() as u32).collect();
        let formed = gradients(source, &ids, Labels::Given).unwrap();
        let table: Vec<(u32, f32)> =
            (0..formed.ncols() as u32).map(|p| (p * 7 % 11, if p % 3 == 0 { -1.0 } else { 1.0 })).collect();
        let rows = sketched(source, Labels::Given, &table, 11).unwrap();
        let mut expected = Array2::<f32>::zeros((ids.len(), 11));
        for (mut to, row) in expected.rows_mut().into_iter().zip(formed.rows()) {
            row.iter().zip(&table).for_each(|(&v, &(place, sign))| to[place as usize] += v * sign);
        }
        assert!(expected.iter().any(|v| v.abs() > 1.0));
        assert_eq!(rows, expected, "the same additions in the same order");
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(alone.install(|| sketched(source, Labels::Given, &table, 11)).unwrap(), rows);
        let text = sketched(source, Labels::Given, &table, 10).unwrap_err().to_string();
        assert!(text.contains("below 10"), "{text}");
        assert!(sketched(source, Labels::Given, &table[1..], 11).is_err());
    };
    check(&Single(toy(203, &[(1, 1), (9, 60)])));
    check(&toy(20, &[(4, 5), (9, 60)]));
    let mut broken = Single(toy(20, &[(1, 1), (9, 60)]));
    broken.0.bad = Some(13);
    let table = vec![(0, 1.0); dim(broken.layers())];
    let text = sketched(&broken, Labels::Given, &table, 1).unwrap_err().to_string();
    assert!(text.contains("13") && text.contains("fc1"), "{text}");
    let none = Single(toy(0, &[(1, 1), (9, 60)]));
    assert_eq!(sketched(&none, Labels::Given, &table, 1).unwrap().dim(), (0, 1));
}
