//! From the files of a folder to the flat vector of a layout: one safetensors file, or the shards that an index names.
//!
//! All headers are held against the configuration before a number is read; then each file is read once, front to back.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use ascribe_core::Digest;
use safetensors::Dtype;
use serde_json::Value;

use super::names::{Names, Use, looks_like};
use super::shard::{Entry, MAX_HEADER_BYTES, Shard};
use super::{check_finite, decode};
use crate::config::DecoderConfig;
use crate::error::ModelError;
use crate::layout::ParameterLayout;

/// The weights file of a folder that has one.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// The index of a folder that has several.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// More files than this are not believed.
const MAX_SHARDS: usize = 1 << 12;

/// Where a folder keeps its weights.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// This file of the folder, or the shards that it names.
    Safetensors(&'static str),
    /// This file of the folder, which brings its own configuration.
    Gguf(String),
}

/// Finds the weights in `dir`: [`WEIGHTS_FILE`], else [`INDEX_FILE`], else the only `.gguf` file.
pub(crate) fn find(dir: &Path) -> Result<Source, ModelError> {
    for file in [WEIGHTS_FILE, INDEX_FILE] {
        if dir.join(file).exists() {
            return Ok(Source::Safetensors(file));
        }
    }
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(ModelError::io("read", dir))? {
        names.insert(entry.map_err(ModelError::io("read", dir))?.file_name().to_string_lossy().into_owned());
    }
    let ggufs: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
    if let [only] = ggufs[..] {
        return Ok(Source::Gguf(only.clone()));
    }
    let found = if !ggufs.is_empty() {
        format!("{} .gguf files (name the one that is meant)", ggufs.len())
    } else if names.iter().any(|name| name.starts_with("pytorch_model") && name.ends_with(".bin")) {
        "pytorch_model.bin (pickles are not read; `save_pretrained` writes safetensors)".into()
    } else if names.contains("adapter_config.json") {
        "an adapter without its base model".into()
    } else {
        "none of them".into()
    };
    let expected = format!("{WEIGHTS_FILE}, {INDEX_FILE} or one .gguf file");
    Err(ModelError::Format { path: dir.into(), expected, found })
}

/// Reads the flat vector of `layout` from `file` of `dir`, which is a safetensors file or, by its name, an index.
///
/// The digest is the SHA-256 of the file; of shards, that of their SHA-256s one after the other in the order of their
/// names.
pub(crate) fn load(
    dir: &Path,
    file: &str,
    config: &DecoderConfig,
    layout: &ParameterLayout,
) -> Result<(Vec<f32>, Digest), ModelError> {
    let path = dir.join(file);
    let is_index = file.ends_with(".json");
    let shards = if is_index { open_shards(dir, &path)? } else { vec![Shard::open(&path)?] };
    let plan = Plan::new(&shards, &path, config, layout)?;
    // Headers and file lengths agree with the configuration: what is allocated here stands on a disk.
    let mut parameters = vec![0.0f32; layout.len()];
    let mut digests = Vec::with_capacity(shards.len());
    for (shard, uses) in shards.iter().zip(&plan.uses) {
        digests.push(fill(shard, uses, layout, &mut parameters)?);
    }
    for (shard, uses) in shards.iter().zip(&plan.uses) {
        for (entry, _) in shard.entries.iter().zip(uses).filter(|(_, usage)| **usage == Use::TiedHead) {
            check_tied(shard, entry, &parameters[layout.embedding.clone()])?;
        }
    }
    let digest = match digests[..] {
        [only] if !is_index => only,
        _ => Digest::of(&digests.iter().flat_map(|digest| digest.0).collect::<Vec<u8>>()),
    };
    Ok((parameters, digest))
}

/// SHA-256 of a file of any size.
pub(crate) fn digest_of_file(path: &Path) -> Result<Digest, ModelError> {
    use std::io::Read as _;
    let io = |error| ModelError::io("read", path)(error);
    let mut file = std::fs::File::open(path).map_err(io)?;
    let (mut digest, mut chunk) = (ascribe_core::DigestStream::default(), vec![0u8; 1 << 20]);
    loop {
        match file.read(&mut chunk).map_err(io)? {
            0 => return Ok(digest.finish()),
            n => digest.update(&chunk[..n]),
        }
    }
}

/// Opens the shards of an index, in the order of their names. Every tensor must be where the index says, and only there.
fn open_shards(dir: &Path, index: &Path) -> Result<Vec<Shard>, ModelError> {
    let bad = |expected: String, found: String| ModelError::Format { path: index.into(), expected, found };
    let places = read_index(index)?;
    let files: BTreeSet<&str> = places.values().map(String::as_str).collect();
    if files.len() > MAX_SHARDS {
        return Err(bad(format!("at most {MAX_SHARDS} shards"), files.len().to_string()));
    }
    // No file is touched before all of them are known to lie in this folder.
    for file in &files {
        let mut parts = Path::new(file).components();
        let is_plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !is_plain || file.contains(['/', '\\']) || !file.ends_with(".safetensors") {
            let found: String = file.chars().take(120).collect();
            return Err(bad("shards that are .safetensors files of this folder".into(), format!("{found:?}")));
        }
    }
    let mut shards = Vec::with_capacity(files.len());
    let mut seen = BTreeSet::new();
    for file in files {
        let shard = Shard::open(&dir.join(file))?;
        for entry in &shard.entries {
            match places.get(&entry.name) {
                Some(place) if place == file => {}
                Some(place) => {
                    let expected = format!("tensor `{}` in {place} only", entry.name);
                    return Err(bad(expected, format!("one in {file}")));
                }
                None => return Err(bad(format!("an entry for tensor `{}` of {file}", entry.name), "none".into())),
            }
            seen.insert(entry.name.clone());
        }
        shards.push(shard);
    }
    match places.iter().find(|(name, _)| !seen.contains(*name)) {
        Some((name, file)) => Err(bad(format!("tensor `{name}` in {file}"), "no such tensor there".into())),
        None => Ok(shards),
    }
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let bad = |expected: String, found: String| ModelError::Format { path: path.into(), expected, found };
    let size = std::fs::metadata(path).map_err(ModelError::io("read", path))?.len();
    if size > MAX_HEADER_BYTES {
        return Err(bad(format!("at most {MAX_HEADER_BYTES} bytes of JSON"), format!("{size} bytes")));
    }
    let bytes = std::fs::read(path).map_err(ModelError::io("read", path))?;
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|error| bad("a JSON object".into(), error.to_string()))?;
    let expected = || "a `weight_map` from names of tensors to names of files".to_owned();
    let Some(Value::Object(map)) = value.get("weight_map") else { return Err(bad(expected(), "none".into())) };
    if map.is_empty() {
        return Err(bad(expected(), "an empty one".into()));
    }
    let place = |(name, file): (&String, &Value)| match file.as_str() {
        Some(file) => Ok((name.clone(), file.to_owned())),
        None => Err(bad(expected(), file.to_string().chars().take(120).collect())),
    };
    map.iter().map(place).collect()
}

/// What every tensor of every file is for.
struct Plan {
    /// `[shard][entry]`.
    uses: Vec<Vec<Use>>,
}

impl Plan {
    /// Holds the headers against the configuration. `path` is the file that the user named.
    fn new(
        shards: &[Shard],
        path: &Path,
        config: &DecoderConfig,
        layout: &ParameterLayout,
    ) -> Result<Self, ModelError> {
        let family = config.arch.family;
        let names = Names::new(family, layout);
        let uses: Vec<Vec<Use>> =
            shards.iter().map(|shard| shard.entries.iter().map(|entry| names.usage(&entry.name)).collect()).collect();
        let all = || {
            shards.iter().zip(&uses).flat_map(|(shard, uses)| shard.entries.iter().map(move |e| (shard, e)).zip(uses))
        };
        let mut fillers: Vec<Option<(&Shard, &Entry)>> = vec![None; layout.slots().len()];
        for ((shard, entry), usage) in all() {
            let &Use::Slot(slot) = usage else { continue };
            if let Some((_, other)) = fillers[slot].replace((shard, entry)) {
                let expected = format!("one tensor for `{}`", layout.slots()[slot].name);
                let found = format!("`{}` and `{}`", other.name, entry.name);
                return Err(ModelError::Format { path: shard.path.clone(), expected, found });
            }
        }
        for (slot, filler) in layout.slots().iter().zip(fillers) {
            let Some((shard, entry)) = filler else {
                let tensor = slot.name.clone();
                let found = looks_like(family, all().map(|((_, entry), _)| entry.name.as_str()));
                return Err(match found {
                    None => ModelError::MissingTensor { path: path.into(), tensor },
                    Some(found) => {
                        ModelError::ForeignTensors { path: path.into(), tensor, expected: family.name(), found }
                    }
                });
            };
            check_entry(shard, entry, &slot.shape)?;
        }
        let mut extra: Vec<_> = all().filter(|(_, usage)| **usage == Use::Unknown).map(|(place, _)| place).collect();
        extra.sort_by_key(|(_, entry)| &entry.name);
        if let Some((shard, entry)) = extra.first() {
            return Err(ModelError::ExtraTensor { path: shard.path.clone(), tensor: entry.name.clone() });
        }
        let head_shape = &layout.slots()[0].shape;
        for ((shard, entry), _) in all().filter(|(_, usage)| **usage == Use::TiedHead) {
            check_entry(shard, entry, head_shape)?;
        }
        Ok(Self { uses })
    }
}

fn check_entry(shard: &Shard, entry: &Entry, shape: &[usize]) -> Result<(), ModelError> {
    let fail = |expected: String, found: String| {
        Err(ModelError::Tensor { path: shard.path.clone(), tensor: entry.name.clone(), expected, found })
    };
    if entry.shape != shape {
        return fail(format!("shape {shape:?}"), format!("shape {:?}", entry.shape));
    }
    match entry.dtype {
        Dtype::F32 | Dtype::BF16 | Dtype::F16 => Ok(()),
        other => fail("F32, BF16 or F16".into(), format!("{other:?}")),
    }
}

/// Reads a file once, decoding what has a slot. Returns its digest.
fn fill(shard: &Shard, uses: &[Use], layout: &ParameterLayout, parameters: &mut [f32]) -> Result<Digest, ModelError> {
    let mut next = 0;
    let mut current = usize::MAX;
    let digest = shard.read(|e, bytes| {
        let Use::Slot(slot) = uses[e] else { return Ok(()) };
        if e != current {
            (current, next) = (e, layout.slots()[slot].range.start);
        }
        let (entry, n) = (&shard.entries[e], bytes.len() * 8 / shard.entries[e].dtype.bitsize());
        let out = &mut parameters[next..next + n];
        next += n;
        decode(entry.dtype, bytes, out).map_err(|found| ModelError::Tensor {
            path: shard.path.clone(),
            tensor: entry.name.clone(),
            expected: "F32, BF16 or F16".into(),
            found,
        })
    })?;
    for (entry, usage) in shard.entries.iter().zip(uses) {
        if let &Use::Slot(slot) = usage {
            check_finite(&parameters[layout.slots()[slot].range.clone()], &shard.path, &entry.name)?;
        }
    }
    Ok(digest)
}

/// A tied model's own output layer must be its embedding.
fn check_tied(shard: &Shard, entry: &Entry, embedding: &[f32]) -> Result<(), ModelError> {
    let mut next = 0;
    let mut numbers = vec![];
    shard.read_entry(entry, |bytes| {
        numbers.resize(bytes.len() * 8 / entry.dtype.bitsize(), 0.0f32);
        let fail = |found: String| ModelError::Tensor {
            path: shard.path.clone(),
            tensor: entry.name.clone(),
            expected: "the numbers of the embedding, because `tie_word_embeddings` is true".into(),
            found,
        };
        decode(entry.dtype, bytes, &mut numbers).map_err(fail)?;
        match numbers.iter().zip(&embedding[next..]).position(|(a, b)| a != b) {
            Some(i) => Err(fail(format!("{} instead of {} at element {}", numbers[i], embedding[next + i], next + i))),
            None => {
                next += numbers.len();
                Ok(())
            }
        }
    })
}
