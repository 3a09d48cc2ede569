//! Croissant 1.1: what the dataset is, which files hold it, how its records are read; terms as an ODRL offer in `usageInfo`.
//!
//! A dataset that nobody has licensed yet is described too, without an offer: its `license` is what the contributor stated, and
//! description and `ascribe:licenceState` say that nobody has signed it.

use std::path::{Component, Path, PathBuf};

use ascribe_core::Digest;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{NAMESPACE, day, licence_page};
use crate::content::RECORDS_FILE;
use crate::error::RegistryError;
use crate::files;
use crate::licence::LicenceMessage;
use crate::manifest::Manifest;
use crate::reference::Reference;
use crate::registry::Dataset;
use crate::source::{Fields, SourceFormat};

/// The keys of the official context of Croissant 1.1 (a validator warns when one is missing), and three name spaces.
fn context() -> Value {
    json!({
        "@language": "en", "@vocab": "https://schema.org/", "arrayShape": "cr:arrayShape", "citeAs": "cr:citeAs",
        "column": "cr:column", "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn",
        "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
        "data": { "@id": "cr:data", "@type": "@json" }, "dataType": { "@id": "cr:dataType", "@type": "@vocab" },
        "dct": "http://purl.org/dc/terms/", "description": { "@container": "@language" },
        "equivalentProperty": "cr:equivalentProperty", "examples": { "@id": "cr:examples", "@type": "@json" },
        "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject",
        "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isArray": "cr:isArray",
        "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
        "name": { "@container": "@language" }, "parentField": "cr:parentField", "path": "cr:path",
        "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
        "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
        "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
        "odrl": "http://www.w3.org/ns/odrl/2/", "prov": "http://www.w3.org/ns/prov#", "ascribe": NAMESPACE,
    })
}

/// One file of the distribution.
struct File {
    id: String,
    content_url: String,
    sha256: Digest,
    encoding: &'static str,
}

/// The Croissant description of a licensed dataset, as it would lie in `out_dir` (paths to the records are relative to it).
///
/// Cost: reads and hashes the record files once.
///
/// # Errors
/// A record file that cannot be read.
pub fn export(dataset: &Dataset, log_index: Option<u64>, out_dir: &Path) -> Result<Value, RegistryError> {
    let message = dataset.licence.message();
    let mut described = describe(&dataset.dir, &dataset.manifest, message.valid_from, out_dir)?;
    described["description"] = summary(&dataset.manifest, "").into();
    described["usageInfo"] = offer(dataset, &message, log_index);
    Ok(described)
}

/// The same of a dataset that nobody has licensed: no offer, and it says so. `added_unix_s` is when it was registered.
///
/// # Errors
/// As [`export`].
pub fn export_unlicensed(
    dir: &Path,
    manifest: &Manifest,
    added_unix_s: u64,
    out_dir: &Path,
) -> Result<Value, RegistryError> {
    let mut described = describe(dir, manifest, added_unix_s, out_dir)?;
    let note = " No signed licence: the contributor has stated the terms named under license, nobody has signed them, and \
                nothing is offered.";
    described["description"] = summary(manifest, note).into();
    described["ascribe:licenceState"] = "unsigned".into();
    Ok(described)
}

fn describe(dir: &Path, manifest: &Manifest, published_unix_s: u64, out_dir: &Path) -> Result<Value, RegistryError> {
    let (files, fields, format) = distribution(dir, out_dir)?;
    let file_objects: Vec<Value> = files
        .iter()
        .map(|file| {
            json!({
                "@type": "cr:FileObject", "@id": file.id, "name": file.id, "contentUrl": file.content_url,
                "encodingFormat": file.encoding, "sha256": file.sha256.to_string(),
            })
        })
        .collect();
    let record_sets: Vec<Value> = if format == SourceFormat::Text || format == SourceFormat::Arrow {
        Vec::new()
    } else {
        files.iter().enumerate().map(|(i, file)| record_set(i, file, &fields)).collect()
    };
    Ok(json!({
        "@context": context(),
        "@type": "sc:Dataset",
        "@id": manifest.uuid,
        "name": manifest.name,
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "identifier": manifest.uuid,
        "url": manifest.uuid,
        "license": licence_page(&manifest.licence),
        "creator": { "@type": "sc:Organization", "name": manifest.owner },
        "citeAs": format!("{}: {} ({})", manifest.owner, manifest.title, manifest.uuid),
        "datePublished": day(published_unix_s),
        "version": "1.0.0",
        "inLanguage": manifest.language,
        "isLiveDataset": false,
        "prov:wasAttributedTo": { "@type": "prov:Agent", "prov:label": manifest.owner },
        "distribution": file_objects,
        "recordSet": record_sets,
    }))
}

fn summary(manifest: &Manifest, note: &str) -> String {
    let notes = if manifest.notes.is_empty() { String::new() } else { format!(" {}", manifest.notes) };
    format!(
        "{}. {} records, {} bytes, RFC 6962 content root {}. Taken from {} {} {}.{notes}{note}",
        manifest.title,
        manifest.record_count,
        manifest.len_bytes,
        manifest.content_root,
        manifest.source.registry,
        manifest.source.package,
        manifest.source.version
    )
}

/// The signed terms as an ODRL offer: permitted uses with the duty to pay the payees, prohibited uses.
fn offer(dataset: &Dataset, message: &LicenceMessage<String>, log_index: Option<u64>) -> Value {
    let action = |token: &String| json!({ "@id": format!("{NAMESPACE}{token}") });
    // A plain value: a reference back to the dataset would be a cycle, which mlcroissant does not survive.
    let target = json!(message.dataset);
    let payees: Vec<Value> = message
        .payees
        .iter()
        .map(|payee| json!({ "ascribe:account": payee.account, "ascribe:sharePpm": payee.share_ppm }))
        .collect();
    let duty = json!({ "@type": "odrl:Duty", "odrl:action": { "@id": "odrl:compensate" }, "ascribe:payee": payees });
    let permissions: Vec<Value> = message
        .permits
        .iter()
        .map(|token| {
            json!({ "@type": "odrl:Permission", "odrl:target": target, "odrl:action": action(token), "odrl:duty": duty })
        })
        .collect();
    let prohibitions: Vec<Value> = message
        .prohibits
        .iter()
        .map(|token| json!({ "@type": "odrl:Prohibition", "odrl:target": target, "odrl:action": action(token) }))
        .collect();
    json!({
        "@type": "odrl:Offer",
        "@id": format!("urn:ascribe:licence:{}", dataset.licence.digest()),
        "odrl:assigner": { "@id": message.licensor },
        "odrl:permission": permissions,
        "odrl:prohibition": prohibitions,
        "ascribe:kind": dataset.licence.kind(),
        "ascribe:digest": dataset.licence.digest().to_string(),
        "ascribe:contentRoot": message.content_root.to_string(),
        "ascribe:termsSha256": message.terms_sha256.to_string(),
        "ascribe:validFrom": message.valid_from.to_string(),
        "ascribe:validUntil": message.valid_until.to_string(),
        "ascribe:logIndex": log_index.map(|index| index.to_string()),
        "ascribe:revokedFrom": dataset.revocation.as_ref().map(|revoked| revoked.message.effective_from.to_string()),
    })
}

/// The files that hold the records, and their columns.
fn distribution(dir: &Path, out_dir: &Path) -> Result<(Vec<File>, Fields, SourceFormat), RegistryError> {
    let (paths, fields, format) = match Reference::read(dir)? {
        None => (vec![dir.join(RECORDS_FILE)], Fields::default(), SourceFormat::Jsonl),
        Some(reference) => (reference.paths(), reference.fields().clone(), reference.format()),
    };
    let encoding = match format {
        SourceFormat::Jsonl => "application/jsonlines",
        SourceFormat::Csv => "text/csv",
        SourceFormat::Parquet => "application/x-parquet",
        SourceFormat::Arrow => "application/vnd.apache.arrow.file",
        SourceFormat::Text => "text/plain",
    };
    let mut files = Vec::with_capacity(paths.len());
    for (i, path) in paths.iter().enumerate() {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let id = if paths.len() == 1 { name } else { format!("{i:05}-{name}") };
        files.push(File { id, content_url: relative(out_dir, path)?, sha256: sha256_of(path)?, encoding });
    }
    Ok((files, fields, format))
}

fn record_set(i: usize, file: &File, fields: &Fields) -> Value {
    let name = if i == 0 { "records".to_owned() } else { format!("records-{i}") };
    let field = |column: &str, role: &str, description: &str| {
        json!({
            "@type": "cr:Field", "@id": format!("{name}/{role}"), "name": format!("{name}/{role}"),
            "description": description, "dataType": "sc:Text",
            "source": { "fileObject": { "@id": file.id }, "extract": { "column": column } },
        })
    };
    json!({
        "@type": "cr:RecordSet", "@id": name, "name": name,
        "description": "The registered records, in the order that the content root pins.",
        "key": { "@id": format!("{name}/id") },
        "field": [
            field(&fields.id, "id", "Id, unique within the dataset."),
            field(&fields.text, "text", "Text."),
        ],
    })
}

/// SHA-256 of a file, streamed.
fn sha256_of(path: &Path) -> Result<Digest, RegistryError> {
    let mut file = files::open(path, RECORDS_FILE)?;
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).map_err(RegistryError::io(path, "reading"))?;
    Ok(Digest(hash.finalize().into()))
}

/// `path` as seen from `dir`, with `/`.
fn relative(dir: &Path, path: &Path) -> Result<String, RegistryError> {
    let whole = |path: &Path| path.canonicalize().map_err(RegistryError::io(path, "finding"));
    let (dir, path) = (whole(dir)?, whole(path)?);
    let (from, to): (Vec<Component<'_>>, Vec<Component<'_>>) =
        (dir.components().collect(), path.components().collect());
    let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
    let mut relative = PathBuf::new();
    (shared..from.len()).for_each(|_| relative.push(".."));
    to[shared..].iter().for_each(|part| relative.push(part));
    Ok(relative.to_string_lossy().into_owned())
}
