//! Options of a run: divided scores, outside vectors, dampings by evidence; and scores of examples upon themselves.

use ascribe_core::NoProgress;
use ndarray::Array2;

use super::tests::{build, tiny};
use super::*;
use crate::bench::damping;
use crate::bench::methods::{Normalisation, by_table, catalogue, self_influence};
use crate::outside::Outside;

#[test]
fn every_gradient_method_scores_examples_upon_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (_, setting) = tiny(dir.path());
    let Subject::Images(subject) = &setting.subject else { panic!("images") };
    let lab = ImageLab::open(subject, &setting.dir).unwrap();
    let ids = [3, 0, 17];
    let mut direct = Vec::new();
    for method in catalogue(&setting) {
        if method.control() || method.name == "trak_50" {
            continue;
        }
        let own = self_influence(&method, &lab, &ids, &NoProgress).unwrap_or_else(|e| panic!("{}: {e}", method.name));
        assert!(own.values.len() == 3 && own.values.iter().all(|v| v.is_finite()), "{}: {own:?}", method.name);
        if own.by_table {
            continue;
        }
        // The shorter route is the diagonal of the table.
        let table = by_table(&method, &lab, &ids, &NoProgress).unwrap();
        for (a, b) in own.values.iter().zip(&table.values) {
            assert!(*a > 0.0 && (a - b).abs() < 1e-4 * a.abs(), "{}: {a} {b}", method.name);
        }
        direct.push(method.name);
    }
    for name in ["grad_dot", "tracin_cp", "kfac", "ekfac", "ekfac_run", "shampoo_evc"] {
        assert!(direct.iter().any(|d| d == name), "{name} of {direct:?}");
    }
    let first = &catalogue(&setting)[0];
    let error = self_influence(first, &lab, &[24], &NoProgress).unwrap_err().to_string();
    assert!(error.contains("example: expected below 24, found 24"), "{error}");
}

#[test]
fn normalisations_are_options_of_methods() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let run_with = |methods: &[&str], offer: Offer| {
        let methods = methods.iter().map(|m| (*m).to_owned()).collect();
        run(&home, &setting, &RunOptions { methods, offer, ..RunOptions::default() }, &NoProgress)
    };
    let by = |normalise| Offer { normalise: Some(normalise), outside: None };
    let cosines = run_with(&["grad_dot", "ekfac", "logra", "grass"], by(Normalisation::Cosine)).unwrap();
    let names: Vec<&str> = cosines.methods.keys().map(String::as_str).collect();
    assert_eq!(names, ["ekfac@cosine", "grad_dot@cosine", "grass@cosine", "logra@cosine"]);
    assert_eq!(cosines.notes, Vec::<String>::new());
    let named = run_with(&["grad_cos", "ekfac_relatif"], Offer::default()).unwrap();
    assert_eq!(cosines.methods["grad_dot@cosine"].value, named.methods["grad_cos"].value);
    let relatif = run_with(&["ekfac"], by(Normalisation::UnitTrain)).unwrap();
    assert_eq!(relatif.methods["ekfac@unit_train"].value, named.methods["ekfac_relatif"].value);
    let moved = run_with(&["ekfac"], by(Normalisation::RelatIf)).unwrap();
    assert!(moved.notes.is_empty() && moved.methods["ekfac@relat_if"].value.is_some());
    let error = run_with(&["embedding"], by(Normalisation::Cosine)).unwrap_err().to_string();
    assert!(
        error.contains("--normalise: expected methods with that option: grad_dot") && error.contains("embedding"),
        "{error}"
    );
}

/// A cosine is what is divided by both lengths: of every method with a metric, solved for each gradient or not.
#[test]
fn lengths_in_a_methods_metric_fit_together() {
    let dir = tempfile::tempdir().unwrap();
    let (_, setting) = tiny(dir.path());
    let Subject::Images(subject) = &setting.subject else { panic!("images") };
    let lab = ImageLab::open(subject, &setting.dir).unwrap();
    let names = ["cg", "cg_preconditioned", "lissa", "arnoldi", "datainf", "astra", "trak_10", "ekfac", "logra"];
    for name in names {
        let method = crate::bench::methods::find(&setting, name).unwrap();
        let scores = |by| {
            let spec = method.spec.normalised(by).unwrap();
            let scores = crate::bench::methods::Method { spec, ..method.clone() };
            scores.run(&lab as &dyn Lab, &NoProgress).unwrap_or_else(|e| panic!("{name}: {e}")).values
        };
        let raw = scores(Normalisation::None);
        let [query, train] = [Normalisation::UnitQuery, Normalisation::UnitTrain].map(scores);
        let (left, right) = (&scores(Normalisation::Cosine) * &raw, &query * &train);
        let largest = right.iter().fold(0f32, |m, v| m.max(v.abs()));
        let off = (&left - &right).iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest > 0.0 && off <= 1e-4 * largest, "{name}: {off} of {largest}");
        let moved = scores(Normalisation::RelatIf);
        assert!(moved.iter().any(|v| *v != 0.0), "{name}");
        // Every column is divided by one positive number.
        for (raw, moved) in raw.columns().into_iter().zip(moved.columns()) {
            let signs = raw.iter().zip(moved).all(|(a, b)| a * b >= 0.0);
            assert!(signs, "{name}");
        }
    }
}

#[test]
fn outside_vectors_are_a_control() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let (examples, queries) = (dir.path().join("e.npy"), dir.path().join("q.npy"));
    // The class, which the lab knows too.
    let of = |n| Array2::from_shape_fn((n, 2), |(i, j)| if i % 2 == j { 1.0f32 } else { 0.1 * (i % 3) as f32 });
    crate::outside::tests::npy(&examples, &of(24));
    crate::outside::tests::npy(&queries, &of(6));
    let offer = Offer { normalise: None, outside: Some(Outside::Vectors { examples, queries: queries.clone() }) };
    let options = RunOptions { methods: vec!["encoder".into()], offer, ..RunOptions::default() };
    let report = run(&home, &setting, &options, &NoProgress).unwrap();
    let encoder = &report.methods["encoder"];
    assert!(encoder.control && encoder.bytes_per_example == 8.0 && encoder.value.is_some());
    assert_eq!(encoder.figure("class_top1"), Some(1.0));
    crate::outside::tests::npy(&queries, &of(5));
    let error = run(&home, &setting, &options, &NoProgress).unwrap_err().to_string();
    assert!(error.contains("q.npy: expected one vector for every query: 6 rows, found 5 rows"), "{error}");
    let unknown = RunOptions { offer: Offer::default(), ..options };
    assert!(run(&home, &setting, &unknown, &NoProgress).unwrap_err().to_string().contains("found encoder"));
}

#[test]
fn the_first_half_of_the_queries_chooses_and_the_second_judges() {
    let dir = tempfile::tempdir().unwrap();
    let (home, setting) = tiny(dir.path());
    build(&home, &setting);
    let grid = [1e-4, 1e-2, 1.0];
    let report = damping::choose(&home, &setting, &["ekfac".into(), "logra".into()], &grid, &NoProgress).unwrap();
    assert_eq!((report.choosing, report.judging), ([0, 3], [3, 6]));
    let curve = &report.methods["ekfac"];
    assert_eq!(curve.points.iter().map(|p| p.damping).collect::<Vec<_>>(), grid);
    let best = curve.points.iter().filter_map(|p| p.choosing).fold(f64::MIN, f64::max);
    let chosen = curve.points.iter().find(|p| p.damping == curve.chosen).unwrap();
    assert_eq!(chosen.choosing, Some(best));
    assert_eq!(curve.judged.map(|e| e.mean), chosen.judging);
    // A run with that damping reports the same figures of both halves.
    damping::keep(&setting, &report).unwrap();
    let again = Setting::named(&home, "tiny").unwrap();
    let method = methods::find(&again, "ekfac").unwrap();
    assert_eq!(method.spec.damping(), Some(curve.chosen));
    let options = RunOptions { methods: vec!["ekfac".into()], ..RunOptions::default() };
    let judged = run(&home, &again, &options, &NoProgress).unwrap();
    let told = format!("dampings that half of the queries chose (damping.json): ekfac {}", curve.chosen);
    assert_eq!(judged.notes, [told]);
    let figure = |name: &str| judged.methods["ekfac"].figure(name);
    assert_eq!((figure("lds_first_half"), figure("lds_second_half")), (chosen.choosing, chosen.judging));
    // Methods that are chosen later stand beside those of before.
    let later = damping::choose(&home, &setting, &["kfac".into()], &[0.1], &NoProgress).unwrap();
    damping::keep(&setting, &later).unwrap();
    let both = Setting::named(&home, "tiny").unwrap().dampings;
    assert_eq!(both.keys().map(String::as_str).collect::<Vec<_>>(), ["ekfac", "kfac", "logra"]);
    let text = |names: &[&str], grid: &[f64]| {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        damping::choose(&home, &setting, &names, grid, &NoProgress).unwrap_err().to_string()
    };
    assert!(text(&["random"], &[]).contains("a method with a damping, found random"));
    assert!(text(&["nobody"], &[]).contains("a method of tiny, found nobody"));
    assert!(text(&["ekfac"], &[0.0]).contains("--grid: expected positive, finite numbers, found 0"));
    let path = setting.dir.join(damping::DAMPING_FILE);
    files::write_atomic(&path, b"{}").unwrap();
    assert!(Setting::named(&home, "tiny").unwrap_err().to_string().contains("damping.json"));
}
