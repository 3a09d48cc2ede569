//! Station 4: damped block-Fisher curvature of every checkpoint's rows.

use std::collections::BTreeMap;

use ascribe_core::{Column, Digest, FeatureReader as _, Progress};
use ascribe_methods::block_fisher::{Covariance, Factors};
use ascribe_store::{FactorData, FactorFile};

use super::context::{Checkpoint, Context};
use super::damping::{DAMPING_FILE, DampingCurves};
use super::features::{self, open_train};
use super::stamps::Stamps;
use crate::error::EngineError;
use crate::recipe::DampingRule;

/// Factor file of a checkpoint, relative to the run folder.
pub fn factor_file(checkpoint: &str) -> String {
    format!("factors/{checkpoint}.safetensors")
}

/// Damping of a checkpoint's factors: the last one has its own.
pub fn damping_rel(context: &Context, checkpoint: &Checkpoint) -> f64 {
    if checkpoint.name == context.last().name {
        context.attribution.damping_rel
    } else {
        context.attribution.trajectory_damping_rel
    }
}

/// Fits and writes the factors of every checkpoint, unless they are there.
///
/// # Errors
/// From the stores, the method (a block that cannot be factored is named), the disk.
pub fn run(context: &Context, stamps: &mut Stamps, progress: &dyn Progress) -> Result<(), EngineError> {
    let key = key(context)?;
    if stamps.is_done(&context.out, "fit", key) {
        return Ok(());
    }
    std::fs::create_dir_all(context.out.join("factors")).map_err(|e| EngineError::io(&context.out, e))?;
    let mut paths = Vec::new();
    let curves = match context.attribution.damping {
        DampingRule::Fixed => None,
        DampingRule::HeldOutLikelihood => {
            let curves = DampingCurves::compute(context, progress)?;
            curves.write(context)?;
            paths.push(DAMPING_FILE.to_owned());
            Some(curves)
        }
    };
    for checkpoint in &context.checkpoints {
        let store = open_train(context, &checkpoint.name)?;
        let covariance = Covariance::fit(&store, progress)?;
        let mut file = FactorFile::new("block_fisher", store.spec().hash());
        let factors = match &curves {
            None => {
                let damping = damping_rel(context, checkpoint);
                file.metadata = BTreeMap::from([("damping_rel".to_owned(), damping.to_string())]);
                covariance.cholesky(damping)?
            }
            Some(curves) => {
                let chosen = curves.chosen(&checkpoint.name);
                file.metadata = described(curves, &store.spec().columns, &chosen);
                covariance.cholesky_each(&chosen)?
            }
        };
        let tensors = factors.to_parts().into_iter().map(|(name, lower)| (name, FactorData::F64(lower.into_dyn())));
        file.tensors = tensors.collect();
        let path = factor_file(&checkpoint.name);
        file.write(&context.out.join(&path))?;
        paths.push(path);
    }
    stamps.finish(&context.out, "fit", key, &paths)
}

/// Metadata of a factor file whose damping was chosen: the criterion, and every module's number.
fn described(curves: &DampingCurves, columns: &[Column], chosen: &[f64]) -> BTreeMap<String, String> {
    let of = |(column, rel): (&Column, &f64)| (format!("damping_rel.{}", column.name), rel.to_string());
    let criterion = ("damping_criterion".to_owned(), curves.criterion.clone());
    columns.iter().zip(chosen).map(of).chain([criterion]).collect()
}

fn key(context: &Context) -> Result<Digest, EngineError> {
    let a = &context.attribution;
    if a.damping == DampingRule::HeldOutLikelihood {
        return Ok(Digest::of_json(&("fit", features::digest(context)?, a.damping, a.seed))?);
    }
    Ok(Digest::of_json(&("fit", features::digest(context)?, a.damping_rel, a.trajectory_damping_rel))?)
}

/// Reads the factors of a checkpoint back.
///
/// # Errors
/// A file that is missing, changed or of another spec.
pub fn read(context: &Context, checkpoint: &Checkpoint) -> Result<Factors, EngineError> {
    let spec = open_train(context, &checkpoint.name)?.spec().clone();
    let path = context.out.join(factor_file(&checkpoint.name));
    let file = FactorFile::read(&path, Some(spec.hash()))?;
    let part = |column: &Column| {
        let tensor = file.tensors.get(&column.name).and_then(FactorData::as_f64).cloned();
        tensor.and_then(|t| t.into_dimensionality().ok()).ok_or_else(|| EngineError::Content {
            path: path.clone(),
            expected: format!("an f64 matrix `{}`", column.name),
            found: "none".into(),
        })
    };
    let parts = spec.columns.iter().map(part).collect::<Result<Vec<_>, _>>()?;
    Ok(Factors::from_parts(spec.columns.clone(), parts)?)
}
