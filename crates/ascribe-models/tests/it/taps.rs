//! Rows of modules under Hugging Face names, against hooks in PyTorch (the script stands beside the fixtures).

use ascribe_models::{Decoder, Example, GradientStage, Loss, Projection, TapConfig};
use ndarray::Array2;
use safetensors::SafeTensors;

use super::{f32s, fixture, worst};

/// One model: every module's rows of every kind, to 10⁻⁴ of the largest number (f32 against f64).
fn check(folder: &str, n_modules: usize) {
    let decoder = Decoder::load(&fixture(folder), "model.safetensors").unwrap();
    let bytes = std::fs::read(fixture(folder).join("taps.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let numbers = |key: &str| serde_json::from_str::<Vec<usize>>(&metadata[key]).unwrap();
    let texts: Vec<Vec<u32>> = serde_json::from_str(&metadata["texts"]).unwrap();
    let loss_from = metadata["loss_from"].parse().unwrap();
    let examples: Vec<Example<'_>> = texts.iter().map(|t| Example { loss_from, ..Example::whole(t) }).collect();
    let (k, sjlt, masked) = (numbers("k"), numbers("sjlt"), numbers("masked"));
    let base = TapConfig { k_out: k[1], ..TapConfig::modules(metadata["seed"].parse().unwrap(), k[0], &["*"]) };
    let [keep_in, keep_out, dim, nnz] = masked[..] else { panic!("four numbers of a mask") };
    let kinds = [
        ("two_sided", base.clone()),
        ("margin", TapConfig { loss: Loss::Margin, ..base.clone() }),
        ("sjlt", TapConfig { projection: Projection::Sparse { dim: sjlt[0], nnz: sjlt[1] }, ..base.clone() }),
        ("masked", TapConfig { projection: Projection::MaskedSparse { keep_in, keep_out, dim, nnz }, ..base }),
    ];
    for (kind, config) in kinds {
        let stage = GradientStage::new(&decoder, config).unwrap();
        let mut rows = Array2::zeros((texts.len(), stage.dim()));
        stage.rows_of(&examples, rows.view_mut()).unwrap();
        assert_eq!(stage.columns().len(), n_modules, "{folder}");
        for column in stage.columns() {
            let ours = rows.slice(ndarray::s![.., column.start..column.start + column.len]);
            let ours: Vec<f32> = ours.iter().copied().collect();
            let off = worst(&ours, &f32s(&file, &format!("{kind}.{}", column.name)));
            assert!(off < 1e-4, "{folder} {kind} {}: {off}", column.name);
        }
    }
}

#[test]
fn hooks_in_pytorch_give_the_same_rows() {
    // Conv1D modules and a tied output layer; grouped heads, untied; windows, soft caps and norms on both sides.
    check("gpt2", 9);
    check("gqa-untied", 15);
    check("gemma2-window", 15);
}
