//! Kernels at the shapes of the shipped model, each beside its naive twin.

use ascribe_benches::{SHAPES, decoder, normal, sequences};
use ascribe_linalg::{Threads, gemm, sum};
use ascribe_models::{GradientStage, Sequence, TapConfig};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use ndarray::Array2;

fn main() {
    divan::main();
}

fn names() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

fn shape(name: &str) -> [usize; 3] {
    SHAPES.iter().find(|(n, _)| *n == name).map_or([0; 3], |(_, shape)| *shape)
}

/// Items are operations: items per second is flop/s.
#[divan::bench(args = names())]
fn product(bencher: Bencher<'_, '_>, name: &str) {
    let [m, k, n] = shape(name);
    let (a, b) = (normal("a", m, k), normal("b", n, k));
    let mut c = Array2::zeros((m, n));
    bencher
        .counter(ItemsCount::new(2 * m * k * n))
        .bench_local(|| gemm(1.0, a.view(), b.t(), 0.0, black_box(c.view_mut()), Threads::One));
}

/// The naive twin of `product`: three loops.
#[divan::bench(args = names(), sample_count = 10)]
fn product_naive(bencher: Bencher<'_, '_>, name: &str) {
    let [m, k, n] = shape(name);
    let (a, b) = (normal("a", m, k), normal("b", n, k));
    let mut c = Array2::<f32>::zeros((m, n));
    bencher.counter(ItemsCount::new(2 * m * k * n)).bench_local(|| {
        for ((i, j), out) in black_box(&mut c).indexed_iter_mut() {
            *out = (0..k).map(|l| a[(i, l)] * b[(j, l)]).sum();
        }
    });
}

/// The fixed-order f64 inner product that scores end with; items are numbers.
#[divan::bench(args = [128, 4224])]
fn dot_in_fixed_order(bencher: Bencher<'_, '_>, dim: usize) {
    let (a, b) = (normal("a", 1, dim).into_raw_vec_and_offset().0, normal("b", 1, dim).into_raw_vec_and_offset().0);
    bencher.counter(ItemsCount::new(dim)).bench_local(|| black_box(sum::dot(black_box(&a), black_box(&b))));
}

/// Projected gradient rows; items are tokens. One thread of the pool per core.
#[divan::bench(args = [16, 32], sample_count = 10)]
fn gradient_rows(bencher: Bencher<'_, '_>, k: usize) {
    let (decoder, tokens) = (decoder(), sequences(64));
    let sequences: Vec<Sequence<'_>> = tokens.iter().map(|t| Sequence::whole(t)).collect();
    let stage = GradientStage::new(&decoder, TapConfig::all(7, k)).expect("all taps fit the shape");
    let mut out = Array2::zeros((sequences.len(), stage.dim()));
    bencher.counter(ItemsCount::new(64 * 128usize)).bench_local(|| {
        stage.rows(&sequences, black_box(out.view_mut()), None).expect("tokens are within the vocabulary")
    });
}

/// The floor beside `gradient_rows`: full gradient sums, what training does.
#[divan::bench(sample_count = 10)]
fn full_gradient_sum(bencher: Bencher<'_, '_>) {
    let (decoder, tokens) = (decoder(), sequences(64));
    let sequences: Vec<Sequence<'_>> = tokens.iter().map(|t| Sequence::whole(t)).collect();
    bencher
        .counter(ItemsCount::new(64 * 128usize))
        .bench_local(|| black_box(decoder.gradient_sum(&sequences).expect("tokens are within the vocabulary")));
}
