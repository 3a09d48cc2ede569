//! Projections that are fitted and not drawn: two matrices per module, by name. How they are found lives in methods.

use std::collections::BTreeMap;

use ascribe_core::{Digest, DigestStream};
use ndarray::Array2;

use super::plan::mismatch;
use crate::error::ModelError;

/// The pair of one module; rows are usually orthonormal.
#[derive(Clone, PartialEq, Debug)]
pub struct ModuleBasis {
    /// `[k_in, I]`.
    pub input: Array2<f32>,
    /// `[k_out, O]`.
    pub output: Array2<f32>,
}

/// Pairs by the names of [`GradientStage::columns`](super::GradientStage::columns).
#[derive(Clone, PartialEq, Debug)]
pub struct GivenBases(BTreeMap<String, ModuleBasis>);

impl GivenBases {
    /// Checks the pairs.
    ///
    /// # Errors
    /// [`ModelError::Mismatch`] for an empty matrix or a number that is not finite, with the module's name.
    pub fn new(modules: BTreeMap<String, ModuleBasis>) -> Result<Self, ModelError> {
        for (name, basis) in &modules {
            for side in [&basis.input, &basis.output] {
                if side.is_empty() {
                    return Err(mismatch("given projection", format!("rows for {name}"), format!("{:?}", side.dim())));
                }
                if let Some(found) = side.iter().find(|x| !x.is_finite()) {
                    return Err(mismatch("given projection", format!("finite numbers for {name}"), found.to_string()));
                }
            }
        }
        Ok(Self(modules))
    }

    /// SHA-256 over names, shapes and numbers (f32, little endian), module by module in the order of names.
    pub fn digest(&self) -> Digest {
        let mut stream = DigestStream::default();
        for (name, basis) in &self.0 {
            stream.update(&(name.len() as u64).to_le_bytes());
            stream.update(name.as_bytes());
            for side in [&basis.input, &basis.output] {
                stream.update(&(side.nrows() as u64).to_le_bytes());
                stream.update(&(side.ncols() as u64).to_le_bytes());
                let bytes: Vec<u8> = side.iter().flat_map(|x| x.to_le_bytes()).collect();
                stream.update(&bytes);
            }
        }
        stream.finish()
    }

    /// The pair of a module.
    pub fn get(&self, name: &str) -> Option<&ModuleBasis> {
        self.0.get(name)
    }

    /// All names, for messages.
    pub(super) fn names(&self) -> String {
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::tests::{families, scattered, tokens};
    use crate::{GradientStage, Projection, Sequence, TapConfig};
    use ascribe_linalg::Stream;

    fn bases(stage: &GradientStage<'_>, shapes: &[(usize, usize)], seed: u64) -> GivenBases {
        let mut stream = Stream::new(seed, "bases");
        let mut noise = |k: usize, n: usize| Array2::from_shape_simple_fn((k, n), || stream.normal() as f32);
        let pair = |(column, &(o, i)): (&ascribe_core::Column, &(usize, usize))| {
            (column.name.clone(), ModuleBasis { input: noise(3, i), output: noise(2, o) })
        };
        GivenBases::new(stage.columns().iter().zip(shapes).map(pair).collect()).unwrap()
    }

    /// Rows are the whole gradients put through the matrices, in every family; other matrices are another spec.
    #[test]
    fn rows_are_the_gradient_through_the_given_matrices() {
        for (name, config) in families() {
            let decoder = scattered(config, 4);
            let config = TapConfig::modules(0, 1, &["*.*"]);
            let full = TapConfig { projection: Projection::Full, ..config.clone() };
            let full = GradientStage::new(&decoder, full).unwrap();
            let taps = crate::TappedDecoder::new(&decoder, &["*.*"], crate::Granularity::Module).unwrap();
            let taps = taps.without_biases();
            let shapes: Vec<(usize, usize)> = taps.taps().iter().map(|tap| (tap.n_out, tap.n_in)).collect();
            let given = bases(&full, &shapes, 1);
            let stage = GradientStage::with_bases(&decoder, config.clone(), &given).unwrap();
            let text = tokens(3, 40);
            let row = |stage: &GradientStage<'_>| {
                let mut out = Array2::zeros((1, stage.dim()));
                stage.rows(&[Sequence::whole(&text)], out.view_mut(), None).unwrap();
                out
            };
            let (whole, found) = (row(&full), row(&stage));
            assert_eq!(found.ncols(), 6 * shapes.len());
            let mut at = 0;
            for ((column, &(o, i)), found) in
                full.columns().iter().zip(&shapes).zip(found.as_slice().unwrap().chunks_exact(6))
            {
                let g = whole.slice(ndarray::s![0, at..at + o * i]).to_owned();
                let g = g.into_shape_with_order((o, i)).unwrap();
                at += o * i;
                let basis = given.get(&column.name).unwrap();
                let expected = basis.output.dot(&g).dot(&basis.input.t());
                let size = g.iter().map(|x| x * x).sum::<f32>().sqrt() * 20.0;
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-5 * size, "{name} {}: {a} {b}", column.name);
                }
            }
            let other = GradientStage::with_bases(&decoder, config, &bases(&full, &shapes, 2)).unwrap();
            let corpus = Digest::of(b"corpus");
            assert_ne!(other.spec("final", corpus).hash(), stage.spec("final", corpus).hash());
        }
    }

    #[test]
    fn missing_and_foreign_matrices_are_refused_by_name() {
        let decoder = scattered(families().remove(0).1, 4);
        let config = TapConfig::modules(0, 1, &["*.*"]);
        let full = GradientStage::new(&decoder, TapConfig { projection: Projection::Full, ..config.clone() }).unwrap();
        let refused = |result: Result<GradientStage<'_>, ModelError>| result.unwrap_err().to_string();
        let given = bases(&full, &[(8, 8)], 1);
        let message = refused(GradientStage::with_bases(&decoder, config.clone(), &given));
        assert!(message.contains("matrices for model.layers.0.self_attn.k_proj"), "{message}");
        let given = bases(&full, &[(7, 8)], 1);
        let message = refused(GradientStage::with_bases(&decoder, config.clone(), &given));
        assert!(message.contains("8 outputs of model.layers.0.self_attn.q_proj"), "{message}");
        let alone = TapConfig { projection: Projection::Given { matrices: given.digest() }, ..config };
        assert!(refused(GradientStage::new(&decoder, alone)).contains("with_bases"));
        let mut bad = BTreeMap::from([("a".to_string(), given.0.values().next().unwrap().clone())]);
        bad.get_mut("a").unwrap().input[[0, 0]] = f32::INFINITY;
        assert!(GivenBases::new(bad).unwrap_err().to_string().contains("finite numbers for a"));
    }
}
