//! The default method as a factor file: numbers as tensors, words as metadata. Here never lives: how it was fitted (`calibrate`).

use std::path::Path;

use ascribe_core::Digest;
use ascribe_methods::combine::{
    CALIBRATED_FORMAT_VERSION, CALIBRATION_FORMAT_VERSION, CalibratedMethod, Calibration, ChannelSpec, Conformal,
    HeldOut, Origin,
};
use ascribe_store::{FactorData, FactorFile};
use ndarray::Array1;

use crate::error::EngineError;

/// The fitted default method, relative to the run folder.
pub const CALIBRATED_FILE: &str = "factors/calibrated.safetensors";
/// Kind of its factor file.
pub const CALIBRATED_KIND: &str = "calibrated";

const DATASETS: &str = "held_out_datasets";
const KEY_VERSION: &str = "calibrated_format_version";
const KEY_CHANNELS: &str = "channels";
const KEY_ORIGIN: &str = "origin";
const KEY_RESIDUALS: &str = "n_residuals";

/// Writes the method; `spec` is the digest of the scores that it reads. Same method, same bytes.
///
/// # Errors
/// A method that would not be read back; the disk's.
pub fn write(path: &Path, method: &CalibratedMethod, spec: Digest) -> Result<(), EngineError> {
    method.validate()?;
    let mut file = FactorFile::new(CALIBRATED_KIND, spec);
    let held_out = |h: &HeldOut| vec![h.share_error, h.low, h.high];
    let c = &method.calibration;
    let tensors = [
        ("weights", c.weights.clone()),
        ("temperature", vec![c.temperature]),
        ("held_out_queries", held_out(&method.queries)),
        ("conformal", vec![method.conformal.level, method.conformal.quantile]),
    ];
    let tensor = |(name, values): (&str, Vec<f64>)| (name.to_owned(), FactorData::F64(Array1::from(values).into_dyn()));
    file.tensors = tensors.map(tensor).into();
    if let Some(datasets) = &method.datasets {
        let (name, data) = tensor((DATASETS, held_out(datasets)));
        file.tensors.insert(name, data);
    }
    file.metadata = [
        (KEY_VERSION, CALIBRATED_FORMAT_VERSION.to_string()),
        (KEY_CHANNELS, serde_json::to_string(&c.channels)?),
        (KEY_ORIGIN, serde_json::to_string(&method.origin)?),
        (KEY_RESIDUALS, method.conformal.n_residuals.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| EngineError::io(parent, e))?;
    }
    Ok(file.write(path)?)
}

/// Reads a method; with `expected_spec`, only if it was fitted on those scores.
///
/// # Errors
/// A missing or damaged file, one of another kind or version or of other scores; numbers that no fit gives, by name.
pub fn read(path: &Path, expected_spec: Option<Digest>) -> Result<CalibratedMethod, EngineError> {
    let file = FactorFile::read(path, expected_spec)?;
    let refuse = |expected: String, found: String| EngineError::Content { path: path.to_path_buf(), expected, found };
    if file.kind != CALIBRATED_KIND {
        return Err(refuse(format!("a factor file of kind `{CALIBRATED_KIND}`"), format!("`{}`", file.kind)));
    }
    let word = |key: &str| {
        file.metadata.get(key).ok_or_else(|| refuse(format!("metadata `{key}`"), "none".into())).map(String::as_str)
    };
    if word(KEY_VERSION)? != CALIBRATED_FORMAT_VERSION.to_string() {
        return Err(refuse(format!("{KEY_VERSION} {CALIBRATED_FORMAT_VERSION}"), word(KEY_VERSION)?.to_owned()));
    }
    let numbers = |name: &str, len: Option<usize>| {
        let tensor = file.tensors.get(name).and_then(FactorData::as_f64).filter(|t| t.ndim() == 1);
        let values: Option<Vec<f64>> = tensor.map(|t| t.iter().copied().collect());
        values.filter(|v| len.is_none_or(|len| v.len() == len)).ok_or_else(|| {
            let long = len.map_or_else(String::new, |len| format!(" of {len} numbers"));
            refuse(format!("an f64 vector `{name}`{long}"), "none".into())
        })
    };
    let held_out = |name: &str| {
        let v = numbers(name, Some(3))?;
        Ok::<_, EngineError>(HeldOut { share_error: v[0], low: v[1], high: v[2] })
    };
    let json = |key: &str, error: serde_json::Error| refuse(format!("`{key}` as JSON"), error.to_string());
    let channels: Vec<ChannelSpec> = serde_json::from_str(word(KEY_CHANNELS)?).map_err(|e| json(KEY_CHANNELS, e))?;
    let origin: Origin = serde_json::from_str(word(KEY_ORIGIN)?).map_err(|e| json(KEY_ORIGIN, e))?;
    let residuals = word(KEY_RESIDUALS)?;
    let n_residuals = residuals.parse().map_err(|_| refuse(format!("a number `{KEY_RESIDUALS}`"), residuals.into()))?;
    let conformal = numbers("conformal", Some(2))?;
    let method = CalibratedMethod {
        calibration: Calibration {
            format_version: CALIBRATION_FORMAT_VERSION,
            weights: numbers("weights", Some(channels.len()))?,
            channels,
            temperature: numbers("temperature", Some(1))?[0],
        },
        origin,
        queries: held_out("held_out_queries")?,
        datasets: file.tensors.contains_key(DATASETS).then(|| held_out(DATASETS)).transpose()?,
        conformal: Conformal { level: conformal[0], quantile: conformal[1], n_residuals },
    };
    method.validate()?;
    Ok(method)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_bad_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("factors/calibrated.safetensors");
        let mut method = CalibratedMethod::defaults();
        method.origin = Origin::Bank { digest: "ab".repeat(32), seeds: vec![1, 2, 3], responses: 120 };
        let spec = Digest::of(b"scores");
        write(&path, &method, spec).unwrap();
        assert_eq!(read(&path, Some(spec)).unwrap(), method);
        assert_eq!(read(&path, None).unwrap(), method);
        let other = read(&path, Some(Digest::of(b"other scores"))).unwrap_err().to_string();
        assert!(other.contains("spec"), "{other}");
        // A method that a fit cannot give is not written.
        let mut bad = method.clone();
        bad.calibration.temperature = -1.0;
        assert!(write(&path, &bad, spec).unwrap_err().to_string().contains("temperature"));
        assert_eq!(read(&path, None).unwrap(), method, "the old file stays");
        let spoil = |change: &dyn Fn(&mut FactorFile), message: &str| {
            let mut file = FactorFile::read(&path, None).unwrap();
            change(&mut file);
            let bad = dir.path().join("bad.safetensors");
            file.write(&bad).unwrap();
            let error = read(&bad, None).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("bad.safetensors") || error.contains(message), "{error}");
        };
        let vector = |values: &[f64]| FactorData::F64(Array1::from(values.to_vec()).into_dyn());
        spoil(&|f| f.kind = "block_fisher".into(), "a factor file of kind `calibrated`");
        spoil(&|f| drop(f.metadata.insert(KEY_VERSION.into(), "99".into())), "calibrated_format_version 1");
        spoil(&|f| drop(f.metadata.remove(KEY_ORIGIN)), "metadata `origin`");
        spoil(&|f| drop(f.metadata.insert(KEY_ORIGIN.into(), "{}".into())), "`origin` as JSON");
        spoil(&|f| drop(f.tensors.remove("weights")), "`weights` of 3 numbers");
        spoil(&|f| drop(f.tensors.insert("weights".into(), vector(&[1.0, 1.0, 1.0]))), "sum of channel weights");
        spoil(&|f| drop(f.tensors.insert("held_out_queries".into(), vector(&[2.0, 0.0, 3.0]))), "held-out share error");
        spoil(&|f| drop(f.tensors.insert("conformal".into(), vector(&[0.9]))), "`conformal` of 2 numbers");
    }
}
