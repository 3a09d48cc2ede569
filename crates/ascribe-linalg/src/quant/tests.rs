//! What the codes promise: by hand, by closed forms, against brute force, and with hostile bytes.

use super::*;
use crate::rng::Stream;

fn normals(name: &str, n: usize) -> Vec<f32> {
    let mut stream = Stream::new(21, name);
    (0..n).map(|_| stream.normal() as f32).collect()
}

fn round_trip(codec: &RowCodec, row: &[f32]) -> (Vec<f32>, f64) {
    let (mut bytes, mut back) = (vec![0xAA; codec.len_bytes()], vec![f32::NAN; row.len()]);
    let lost = codec.encode(row, &mut bytes).unwrap();
    codec.check(&bytes).unwrap();
    codec.decode(&bytes, &mut back);
    (back, lost)
}

fn squared(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum()
}

#[test]
fn signs_and_int8_by_hand() {
    // Sign: the mean of |x| is 2, so every number comes back as ±2. What is lost: 1 + 1 + 0 = Σx² − n·mean² = 14 − 12.
    let codec = RowCodec::new(Code::Sign, vec![3], None);
    let (back, lost) = round_trip(&codec, &[1.0, -3.0, 2.0]);
    assert!(back.iter().zip([2.0, -2.0, 2.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{back:?}");
    assert!((lost - 2.0).abs() < 1e-5, "{lost}");
    assert_eq!(codec.len_bytes(), 4 + 1);
    // Int8: the step is 127/127 = 1; halves go away from zero.
    let (back, lost) = round_trip(&RowCodec::new(Code::Int8, vec![4], None), &[127.0, -3.4, 0.0, 2.5]);
    assert_eq!(back, [127.0, -3.0, 0.0, 3.0]);
    assert!((lost - (0.16 + 0.25)).abs() < 1e-5);
}

#[test]
fn bytes_are_what_the_head_says() {
    for (code, bytes) in Code::ALL.into_iter().zip([256, 128, 64, 52, 32]) {
        assert_eq!(RowCodec::new(code, vec![256], None).len_bytes(), 4 + bytes);
        // A group of one number, an empty one, and one that ends inside a byte.
        let codec = RowCodec::new(code, vec![1, 0, 11], Some(3));
        assert_eq!(codec.len_bytes(), 12 + code.len_bytes(1) + code.len_bytes(11));
        round_trip(&codec, &normals("odd", 12));
        assert_eq!(Code::named(code.name()), Some(code));
    }
    assert_eq!(Code::named("three_bit"), None);
}

/// The levels are those of least error: each is the mean of the normal numbers that it stands for (numerical integration).
#[test]
fn levels_are_centroids_of_a_normal() {
    let density = |x: f64| (-0.5 * x * x).exp();
    for (code, lost) in [(Code::Four, 0.0095), (Code::Two, 0.1175), (Code::Ternary, 0.1902), (Code::Sign, 0.3634)] {
        let mut sums = std::collections::BTreeMap::<u32, (f64, f64, f64)>::new();
        let (mut total, mut error) = (0.0, 0.0);
        for step in -80_000..80_000 {
            let x = (f64::from(step) + 0.5) * 1e-4;
            // Encoding one number with scale 1: through a pair whose scale is known would move the levels.
            let digit = code_of(code, x as f32);
            let entry = sums.entry(digit.to_bits()).or_default();
            *entry = (entry.0 + x * density(x), entry.1 + density(x), f64::from(digit));
            total += density(x);
            error += (x - f64::from(digit)).powi(2) * density(x);
        }
        for (mean, weight, level) in sums.into_values() {
            assert!((mean / weight - level).abs() < 2e-4, "{code:?}: {} for {level}", mean / weight);
        }
        assert!((error / total - lost).abs() < 1e-4, "{code:?}: {}", error / total);
    }
}

/// The level nearest to `x` in units of the scale, by decoding all digits with scale 1.
fn code_of(code: Code, x: f32) -> f32 {
    let last_digit = match code {
        Code::Int8 => 255u8,
        Code::Four => 15,
        Code::Two => 3,
        Code::Ternary => 2,
        Code::Sign => 1,
    };
    let level = |digit: u8| {
        let mut out = [0.0f32];
        code.decode(1.0, &[digit], &mut out);
        out[0]
    };
    (0..=last_digit).map(level).min_by(|a, b| (a - x).abs().total_cmp(&(b - x).abs())).unwrap()
}

#[test]
fn what_is_reported_lost_is_lost_and_normal_groups_lose_what_the_table_says() {
    let row = normals("row", 4096);
    let whole: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
    for (code, part) in Code::ALL.into_iter().zip([6e-5, 0.0095, 0.1175, 0.1902, 0.3634]) {
        for rotation in [None, Some(9)] {
            let (back, lost) = round_trip(&RowCodec::new(code, vec![4096], rotation), &row);
            // The rotation and its inverse round in f32: 24 additions deep.
            assert!((squared(&row, &back) - lost).abs() < 1e-5 * whole, "{code:?} {rotation:?}");
            // The relative spread of a mean of 4,096 squares is √(2/4096) = 0.022 for one number; five of these.
            assert!(lost / whole < part * 1.12 + 2e-5, "{code:?} {rotation:?}: {}", lost / whole);
        }
    }
}

#[test]
fn every_digit_is_the_nearest_and_int8_keeps_its_bound() {
    let row = normals("near", 500);
    for code in Code::ALL {
        let mut bytes = vec![0; code.len_bytes(row.len())];
        let scale = code.encode(&row, &mut bytes).scale;
        let mut back = vec![0.0; row.len()];
        code.decode(scale, &bytes, &mut back);
        for (&x, &found) in row.iter().zip(&back) {
            let nearest = scale * code_of(code, x / scale);
            assert!(((x - found).abs() - (x - nearest).abs()).abs() < 1e-5, "{code:?}: {x} {found} {nearest}");
        }
        if code == Code::Int8 {
            let bound = 0.5001 * scale;
            assert!(row.iter().zip(&back).all(|(x, y)| (x - y).abs() <= bound));
        }
    }
}

/// One outlier eats the scale of its group; spread over the group it does no harm.
#[test]
fn a_rotation_saves_a_group_with_an_outlier() {
    let mut row = normals("outlier", 1000);
    row[37] = 200.0;
    let lost = |rotation| round_trip(&RowCodec::new(Code::Four, vec![1000], rotation), &row).1;
    let energy: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
    assert!(lost(Some(1)) < 0.015 * energy && lost(Some(1)) < 0.5 * lost(None), "{} {}", lost(Some(1)), lost(None));
}

#[test]
fn rotations_keep_lengths_and_come_back() {
    for n in [0, 1, 2, 3, 7, 64, 100, 1023] {
        let rotation = Rotation::new(5, "m", n);
        let row = normals("turn", n);
        let mut turned = row.clone();
        rotation.apply(&mut turned);
        let length = |x: &[f32]| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>();
        // Two rounds of log₂ n additions in f32.
        assert!((length(&turned) - length(&row)).abs() <= 1e-5 * length(&row), "{n}");
        rotation.undo(&mut turned);
        assert!(turned.iter().zip(&row).all(|(a, b)| (a - b).abs() < 1e-5), "{n}");
        assert_eq!((rotation.len(), rotation.is_empty()), (n, n == 0));
    }
    // A unit vector of a length that is no power of two reaches every place.
    let mut unit = vec![0.0; 100];
    unit[0] = 1.0;
    Rotation::new(5, "m", 100).apply(&mut unit);
    assert!(unit.iter().filter(|x| **x != 0.0).count() > 90);
    assert_ne!(Rotation::new(1, "m", 8), Rotation::new(2, "m", 8));
}

/// Dot products with exact queries keep their size up to the code's shrinking, and their order.
#[test]
fn dot_products_correlate_as_the_table_says() {
    let query = normals("query", 2048);
    let rows: Vec<Vec<f32>> = (0..400).map(|i| normals(&format!("row {i}"), 2048)).collect();
    let exact: Vec<f64> = rows.iter().map(|row| crate::sum::dot(row, &query)).collect();
    for (code, part) in [(Code::Four, 0.0095), (Code::Two, 0.1175), (Code::Ternary, 0.1902), (Code::Sign, 0.3634)] {
        let codec = RowCodec::new(code, vec![2048], Some(4));
        let coded: Vec<f64> = rows.iter().map(|row| crate::sum::dot(&round_trip(&codec, row).0, &query)).collect();
        let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
        exact.iter().zip(&coded).for_each(|(a, b)| (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b));
        // Correlation √(1 − part); its standard error with 400 rows is below (1 − ρ²)/20.
        let (found, expected) = (ab / (aa * bb).sqrt(), (1.0f64 - part).sqrt());
        assert!((found - expected).abs() < 5.0 * part / 20.0 + 1e-3, "{code:?}: {found} {expected}");
    }
}

#[test]
fn zeros_extremes_and_what_is_not_finite() {
    for code in Code::ALL {
        for rotation in [None, Some(1)] {
            let codec = RowCodec::new(code, vec![3, 2], rotation);
            assert_eq!(round_trip(&codec, &[0.0; 5]), (vec![0.0; 5], 0.0));
            let (back, lost) = round_trip(&codec, &[0.0, 0.0, 0.0, 1.0, -1.0]);
            assert!(back[..3] == [0.0; 3] && lost.is_finite());
            for huge in [f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1)] {
                let (back, _) = round_trip(&RowCodec::new(code, vec![3, 2], None), &[huge, -huge, huge, 0.0, huge]);
                assert!(back.iter().all(|x| !x.is_nan()), "{code:?} {huge}: {back:?}");
            }
            let mut bytes = vec![0; codec.len_bytes()];
            let error = codec.encode(&[0.0, 1.0, f32::NAN, 0.0, 0.0], &mut bytes).unwrap_err();
            assert!(matches!(error, LinalgError::NotFinite { row: 0, col: 2, .. }), "{error}");
        }
    }
}

#[test]
fn hostile_bytes_are_named_and_never_panic() {
    let codec = RowCodec::new(Code::Ternary, vec![7], None);
    let mut bytes = vec![0; codec.len_bytes()];
    codec.encode(&normals("hostile", 7), &mut bytes).unwrap();
    assert!(codec.check(&bytes[1..]).unwrap_err().to_string().contains("expected 6 bytes, found 5"));
    let spoiled = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        bytes
    };
    // 243 = 3⁵ is no five digits; the last byte holds two numbers, so 9 is one digit too many.
    assert!(codec.check(&spoiled(4, 243)).unwrap_err().to_string().contains("group 0, byte 4"));
    assert!(codec.check(&spoiled(5, 9)).is_err() && codec.check(&spoiled(5, 8)).is_ok());
    let mut negative = bytes.clone();
    negative[..4].copy_from_slice(&(-1.0f32).to_le_bytes());
    assert!(codec.check(&negative).is_err());
    assert!(RowCodec::new(Code::Int8, vec![1], None).check(&[0, 0, 0, 0, 128]).is_err());
    let mut stream = Stream::new(3, "noise");
    for code in Code::ALL {
        let codec = RowCodec::new(code, vec![7, 5], Some(2));
        for _ in 0..200 {
            let noise: Vec<u8> = (0..codec.len_bytes()).map(|_| stream.below(256) as u8).collect();
            let mut row = vec![0.0; 12];
            codec.decode(&noise, &mut row);
            let _ = codec.check(&noise);
        }
    }
}

/// Bytes of version 1: what is stored must read the same for ever. Computed a second time by a Python transcription.
#[test]
fn first_bytes_are_pinned() {
    let row = [0.5f32, -1.25, 3.0, -0.125, 0.75, 0.0, -2.0];
    let check = |code, expected: &[u8]| {
        let codec = RowCodec::new(code, vec![7], None);
        let mut bytes = vec![0; codec.len_bytes()];
        codec.encode(&row, &mut bytes).unwrap();
        assert_eq!(bytes[4..], *expected, "{code:?}");
    };
    check(Code::Int8, &[21, 203, 127, 251, 32, 0, 171]);
    check(Code::Four, &[73, 126, 137, 3]);
    check(Code::Two, &[118, 10]);
    check(Code::Ternary, &[127, 1]);
    check(Code::Sign, &[0b0011_0101]);
}
