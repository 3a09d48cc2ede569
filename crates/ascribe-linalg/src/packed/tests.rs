//! Products against f64 sums, every kernel against its twin, rows against company.

use ndarray::{Array2, ArrayView2, ShapeBuilder};

use super::direct::{Operand, multiply_on, multiply_views};
use super::layout::{rounded, to_bf16};
use super::matrix::PackedMatrix;
use super::route::{Precision, Route};
use super::rows::{RoundedRows, Rows};
use crate::rng::Stream;

const F32_ROUTES: [Route; 3] = [Route::Portable, Route::Avx2, Route::Avx512];

/// The routes with kernels of their own for bf16; the emulated one stands for AMX where there is none.
#[cfg(target_arch = "x86_64")]
const BF16_ROUTES: &[Route] = &[Route::Avx512Bf16, Route::Amx, Route::Emulated];
#[cfg(not(target_arch = "x86_64"))]
const BF16_ROUTES: &[Route] = &[];

/// Shapes that touch every tile height, panel width and edge, and several blocks of k.
const SHAPES: [[usize; 3]; 14] = [
    [1, 1, 1],
    [1, 0, 5],
    [2, 3, 16],
    [5, 7, 17],
    [13, 64, 16],
    [12, 31, 48],
    [29, 33, 50],
    [8, 17, 64],
    [9, 255, 95],
    [25, 257, 33],
    [3, 600, 80],
    [7, 16, 96],
    [31, 20, 112],
    [521, 9, 20],
];

fn noise(name: &str, n: usize) -> Vec<f32> {
    let mut stream = Stream::new(3, name);
    (0..n).map(|_| stream.normal() as f32).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// `a·b + keep·c + bias` on one route, rows of `a` and `c` longer than they need to be.
fn packed(route: Route, precision: Precision, [m, k, n]: [usize; 3], keep: f32, bias: bool) -> Vec<f32> {
    let (a, b) = (noise("a", m * (k + 3)), noise("b", k * n));
    let mut c = noise("c", m * (n + 5));
    let matrix = PackedMatrix::on(route, precision, ArrayView2::from_shape((k, n), &b).unwrap());
    assert_eq!((matrix.k(), matrix.n()), (k, n));
    let mut memory = RoundedRows::new();
    let rows = match precision {
        Precision::F32 => Rows::new(m, k, k + 3, &a),
        Precision::Bf16 => memory.round(route, m, k, k + 3, &a),
    };
    match bias {
        true => matrix.multiply_with_bias(&rows, &noise("bias", n), keep, &mut c, n + 5),
        false => matrix.multiply(&rows, keep, &mut c, n + 5),
    }
    c
}

/// The same in f64, over inputs as the precision sees them, with the size of the terms for the tolerance.
fn exact(precision: Precision, [m, k, n]: [usize; 3], keep: f32, bias: bool) -> Vec<(f64, f64)> {
    let see = |x: f32| f64::from(if precision == Precision::Bf16 { rounded(x) } else { x });
    let (a, b, old, shift) = (noise("a", m * (k + 3)), noise("b", k * n), noise("c", m * (n + 5)), noise("bias", n));
    let mut c: Vec<(f64, f64)> = old.iter().map(|&x| (f64::from(x), 0.0)).collect();
    for i in 0..m {
        for j in 0..n {
            let start =
                f64::from(keep) * f64::from(old[i * (n + 5) + j]) + if bias { f64::from(shift[j]) } else { 0.0 };
            let terms = (0..k).map(|l| see(a[i * (k + 3) + l]) * see(b[l * n + j]));
            let (sum, size) = terms.fold((start, start.abs()), |(sum, size), x| (sum + x, size + x.abs()));
            c[i * (n + 5) + j] = (sum, size);
        }
    }
    c
}

#[test]
fn products_agree_with_f64_sums() {
    let mut routes: Vec<(Route, Precision)> = F32_ROUTES.map(|r| (r, Precision::F32)).to_vec();
    routes.extend(F32_ROUTES.map(|r| (r, Precision::Bf16)));
    routes.extend(BF16_ROUTES.iter().map(|&r| (r, Precision::Bf16)));
    for (route, precision) in routes.into_iter().filter(|(r, _)| r.available()) {
        for shape in SHAPES {
            for (keep, bias) in [(0.0, false), (1.0, true), (0.5, false), (0.0, true)] {
                let got = packed(route, precision, shape, keep, bias);
                for (i, (&got, (sum, size))) in got.iter().zip(exact(precision, shape, keep, bias)).enumerate() {
                    // Forward error of a sum of k + 2 terms: at most (k + 2)·eps of their size, in practice its root.
                    let tolerance = 4.0 * ((shape[1] + 2) as f64).sqrt() * f64::from(f32::EPSILON) * size;
                    assert!(
                        (f64::from(got) - sum).abs() <= tolerance,
                        "{route:?} {precision:?} {shape:?} keep {keep} at {i}: {got} {sum}"
                    );
                }
            }
        }
    }
}

#[test]
fn f32_kernels_give_the_bits_of_the_plain_loops() {
    for shape in SHAPES {
        for (keep, bias) in [(0.0, false), (1.0, true), (0.3, true), (1.0, false)] {
            for precision in [Precision::F32, Precision::Bf16] {
                let plain = bits(&packed(Route::Portable, precision, shape, keep, bias));
                for route in F32_ROUTES.into_iter().filter(|r| r.available()) {
                    assert_eq!(bits(&packed(route, precision, shape, keep, bias)), plain, "{route:?} {shape:?} {keep}");
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_feel_its_company() {
    let (m, k, n) = (67, 300, 112);
    let (a, b) = (noise("a", m * k), noise("b", k * n));
    let mut routes: Vec<(Route, Precision)> = F32_ROUTES.map(|r| (r, Precision::F32)).to_vec();
    routes.extend(BF16_ROUTES.iter().map(|&r| (r, Precision::Bf16)));
    for (route, precision) in routes.into_iter().filter(|(r, _)| r.available()) {
        let matrix = PackedMatrix::on(route, precision, ArrayView2::from_shape((k, n), &b).unwrap());
        let mut memory = RoundedRows::new();
        let mut product = |a: &[f32], c: &mut [f32]| match precision {
            Precision::F32 => matrix.multiply(&Rows::new(a.len() / k, k, k, a), 0.0, c, n),
            Precision::Bf16 => matrix.multiply(&memory.round(route, a.len() / k, k, k, a), 0.0, c, n),
        };
        let mut all = vec![f32::NAN; m * n];
        product(&a, &mut all);
        for split in [1, 2, 5, 12, 13, 40] {
            let mut parts = vec![f32::NAN; m * n];
            for (a, c) in a.chunks(split * k).zip(parts.chunks_mut(split * n)) {
                product(a, c);
            }
            assert_eq!(bits(&all), bits(&parts), "{route:?} in parts of {split}");
        }
    }
}

#[test]
fn direct_products_have_the_same_bits_as_packed_ones() {
    for shape @ [m, k, n] in SHAPES {
        let (a, b) = (noise("a", m * k), noise("b", k * n));
        let a_t: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
        let matrix = PackedMatrix::on(Route::Portable, Precision::F32, ArrayView2::from_shape((k, n), &b).unwrap());
        let mut expected = noise("c", m * n);
        matrix.multiply(&Rows::new(m, k, k, &a), 1.0, &mut expected, n);
        for route in F32_ROUTES.into_iter().filter(|r| r.available()) {
            for operand in [Operand::rows(&a, k), Operand::transposed(&a_t, m)] {
                let mut c = noise("c", m * n);
                multiply_on(route, shape, operand, (&b, n), 1.0, (&mut c, n));
                assert_eq!(bits(&c), bits(&expected), "{route:?} {shape:?}");
            }
        }
    }
}

#[test]
fn views_have_the_same_bits_too() {
    for [m, k, n] in SHAPES {
        let (a, b) = (noise("a", m * k), noise("b", k * (n + 2)));
        let (rows, b_wide) =
            (ArrayView2::from_shape((m, k), &a).unwrap(), ArrayView2::from_shape((k, n + 2), &b).unwrap());
        let columns = Array2::from_shape_fn((m, k).f(), |at| rows[at]);
        let b = b_wide.slice(ndarray::s![.., 1..n + 1]);
        let mut expected = noise("c", m * n);
        PackedMatrix::new(Precision::F32, b).multiply(&Rows::new(m, k, k, &a), 1.0, &mut expected, n);
        for a in [rows, columns.view()] {
            let mut c = Array2::from_shape_vec((m, n), noise("c", m * n)).unwrap();
            multiply_views(a, b, 1.0, c.view_mut());
            assert_eq!(bits(c.as_slice().unwrap()), bits(&expected));
        }
    }
}

#[test]
#[should_panic(expected = "not contiguous")]
fn views_across_rows_are_refused() {
    let (a, b) = (Array2::<f32>::zeros((2, 3)), Array2::<f32>::zeros((4, 3)));
    multiply_views(a.view(), b.t(), 0.0, Array2::zeros((2, 4)).view_mut());
}

#[test]
fn strides_of_the_packed_operand_do_not_matter() {
    let b = noise("b", 20 * 30);
    let rows = Array2::from_shape_vec((20, 30), b.clone()).unwrap();
    let columns = Array2::from_shape_fn((20, 30).f(), |at| rows[at]);
    assert_ne!(rows.strides(), columns.strides());
    let a = noise("a", 4 * 20);
    let product = |b: &Array2<f32>| {
        let mut c = vec![0.0; 4 * 30];
        PackedMatrix::new(Precision::F32, b.view()).multiply(&Rows::new(4, 20, 20, &a), 0.0, &mut c, 30);
        c
    };
    assert_eq!(product(&rows), product(&columns));
}

#[test]
fn rounding_goes_to_even_and_keeps_what_is_not_a_number() {
    for (x, expected) in [(1.0, 0x3f80), (1.003_906_2, 0x3f80), (1.011_718_8, 0x3f82), (-0.0, 0x8000)] {
        assert_eq!(to_bf16(x), expected, "{x}");
    }
    assert_eq!(to_bf16(f32::INFINITY), 0x7f80);
    assert_eq!(to_bf16(f32::MAX), 0x7f80);
    assert!(rounded(f32::NAN).is_nan() && rounded(f32::from_bits(0x7f80_0001)).is_nan());
}

/// The processor's rounding instruction against plain arithmetic.
#[test]
fn rows_are_rounded_alike_everywhere() {
    if !Route::Avx512Bf16.available() {
        return;
    }
    let mut x = noise("x", 70);
    x[3] = 1.003_906_2;
    x[35] = 1.011_718_8;
    x[40] = f32::INFINITY;
    let mut memory = RoundedRows::new();
    let rows = memory.round(Route::Avx512Bf16, 1, 70, 70, &x);
    let super::rows::Words::Pairs(lines) = rows.words else { panic!("this route reads pairs") };
    for (i, &x) in x.iter().enumerate() {
        let word = lines[i / 32].0[i % 32 / 2];
        assert_eq!((word >> (i % 2 * 16)) as u16, to_bf16(x), "{x}");
    }
}

#[test]
#[should_panic(expected = "prepared for another precision")]
fn rows_of_another_precision_are_refused() {
    let matrix = PackedMatrix::new(Precision::Bf16, Array2::zeros((4, 4)).view());
    matrix.multiply(&Rows::new(1, 4, 4, &[0.0; 4]), 0.0, &mut [0.0; 4], 4);
}

#[test]
#[should_panic(expected = "ends behind its slice")]
fn short_results_are_refused() {
    let matrix = PackedMatrix::new(Precision::F32, Array2::zeros((4, 4)).view());
    matrix.multiply(&Rows::new(2, 4, 4, &[0.0; 8]), 0.0, &mut [0.0; 7], 4);
}
