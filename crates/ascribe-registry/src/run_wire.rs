//! The run record as in-toto Statement v1 with a SLSA provenance v1 predicate. File types only, never a rule.
//!
//! | record | where it stands |
//! |---|---|
//! | subjects | `subject[] {name, digest.sha256}` |
//! | recipe, seed, steps, epochs | `predicate.buildDefinition.externalParameters` |
//! | base model | `predicate.buildDefinition.externalParameters.baseModel` |
//! | licence log, checkpoint, commit | `predicate.buildDefinition.internalParameters` |
//! | datasets | `predicate.buildDefinition.resolvedDependencies[] {name, uri, digest.rfc6962-sha256, annotations}` |
//! | run id, start, end | `predicate.runDetails.metadata` |
//! | the finished model as a whole | `predicate.runDetails.byproducts[] {name: model, digest.sha256}` |
//!
//! A run that was trained by somebody else's program has the builder `urn:ascribe:recorder`, and names that program beside
//! our version: we state what we were told, and what we saw of the files.
//!
//! Seeds are decimal strings: they use all 64 bits. Times are RFC 3339 in UTC, whole seconds.

use std::path::Path;

use ascribe_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::error::RegistryError;
use crate::licence::LicenceDigest;
use crate::log::LogHead;
use crate::run::{DatasetUse, RunDetail, RunRecord, Subject};
use crate::wire;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
const BUILD_TYPE: &str = "urn:ascribe:training-run:v1";
const BUILDER_ID: &str = "urn:ascribe:trainer";
const RECORDER_ID: &str = "urn:ascribe:recorder";
const MODEL_BYPRODUCT: &str = "model";

/// The whole file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Statement {
    #[serde(rename = "_type")]
    statement_type: String,
    subject: Vec<WireSubject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireSubject {
    name: String,
    digest: Sha256,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sha256 {
    sha256: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Predicate {
    build_definition: BuildDefinition,
    run_details: RunDetails,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BuildDefinition {
    build_type: String,
    external_parameters: ExternalParameters,
    internal_parameters: InternalParameters,
    resolved_dependencies: Vec<Dependency>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExternalParameters {
    recipe: Sha256,
    #[serde(with = "wire::decimal")]
    seed: u64,
    steps: u64,
    epochs: String,
    #[serde(rename = "baseModel", default, skip_serializing_if = "Option::is_none")]
    base_model: Option<Sha256>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct InternalParameters {
    licence_log: LogHead,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code_commit: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_checkpoint: Option<String>,
    /// Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_time_stamp: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Dependency {
    name: String,
    uri: String,
    digest: ContentRoot,
    annotations: Annotations,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContentRoot {
    #[serde(rename = "rfc6962-sha256")]
    root: Digest,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Annotations {
    licence_digest: LicenceDigest,
    log_index: u64,
    records_used: u64,
    epochs: String,
    #[serde(with = "wire::decimal")]
    sampling_seed: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    filter_sha256: Option<Digest>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RunDetails {
    builder: Builder,
    metadata: Metadata,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    byproducts: Vec<WireSubject>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Builder {
    id: String,
    version: BuilderVersion,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BuilderVersion {
    ascribe: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trainer: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Metadata {
    invocation_id: String,
    started_on: String,
    finished_on: String,
}

impl Statement {
    /// The file form of a record. Fails only for a time that RFC 3339 cannot write (after the year 9999).
    pub(crate) fn from_record(path: &Path, record: &RunRecord) -> Result<Self, RegistryError> {
        let subject =
            |subject: &Subject| WireSubject { name: subject.name.clone(), digest: Sha256 { sha256: subject.sha256 } };
        let build_definition = BuildDefinition {
            build_type: BUILD_TYPE.to_owned(),
            external_parameters: ExternalParameters {
                recipe: Sha256 { sha256: record.recipe_sha256 },
                seed: record.seed,
                steps: record.steps,
                epochs: record.epochs.clone(),
                base_model: record.detail.base_model_sha256.map(|sha256| Sha256 { sha256 }),
            },
            internal_parameters: InternalParameters {
                licence_log: record.licence_log,
                code_commit: record.detail.code_commit.clone(),
                start_checkpoint: record.detail.start_checkpoint.clone(),
                start_time_stamp: record.detail.start_time_stamp.as_ref().map(|token| STANDARD.encode(token)),
            },
            resolved_dependencies: record.datasets.iter().map(Dependency::from_use).collect(),
        };
        let metadata = Metadata {
            invocation_id: record.invocation_id.clone(),
            started_on: format_time(path, "startedOn", record.started_unix_s)?,
            finished_on: format_time(path, "finishedOn", record.finished_unix_s)?,
        };
        let trainer = record.detail.trainer.clone();
        let id = if trainer.is_some() { RECORDER_ID } else { BUILDER_ID }.to_owned();
        let version = BuilderVersion { ascribe: record.builder_version.clone(), trainer };
        let model = |sha256: Digest| WireSubject { name: MODEL_BYPRODUCT.to_owned(), digest: Sha256 { sha256 } };
        let byproducts = record.detail.output_model_sha256.map(model).into_iter().collect();
        let run_details = RunDetails { builder: Builder { id, version }, metadata, byproducts };
        Ok(Self {
            statement_type: STATEMENT_TYPE.to_owned(),
            subject: record.subjects.iter().map(subject).collect(),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: Predicate { build_definition, run_details },
        })
    }

    /// The record that a file holds.
    pub(crate) fn into_record(self, path: &Path) -> Result<RunRecord, RegistryError> {
        let Predicate { build_definition: build, run_details: details } = self.predicate;
        let trainer = details.builder.version.trainer;
        let builder_id = if trainer.is_some() { RECORDER_ID } else { BUILDER_ID };
        let constants = [
            ("_type", STATEMENT_TYPE, &self.statement_type),
            ("predicateType", PREDICATE_TYPE, &self.predicate_type),
            ("buildType", BUILD_TYPE, &build.build_type),
            ("builder.id", builder_id, &details.builder.id),
        ];
        for (field, expected, found) in constants {
            if expected != found {
                return Err(RegistryError::field(path, field, expected, found));
            }
        }
        let output_model_sha256 = match details.byproducts.as_slice() {
            [] => None,
            [model] if model.name == MODEL_BYPRODUCT => Some(model.digest.sha256),
            others => return Err(RegistryError::field(path, "byproducts", "the model alone", others.len())),
        };
        let token = |text: String| {
            STANDARD.decode(&text).map_err(|_| RegistryError::field(path, "startTimeStamp", "base64", text))
        };
        let detail = RunDetail {
            trainer,
            code_commit: build.internal_parameters.code_commit,
            base_model_sha256: build.external_parameters.base_model.map(|model| model.sha256),
            output_model_sha256,
            start_checkpoint: build.internal_parameters.start_checkpoint,
            start_time_stamp: build.internal_parameters.start_time_stamp.map(token).transpose()?,
        };
        let subject = |subject: WireSubject| Subject { name: subject.name, sha256: subject.digest.sha256 };
        Ok(RunRecord {
            invocation_id: details.metadata.invocation_id,
            builder_version: details.builder.version.ascribe,
            started_unix_s: parse_time(path, "startedOn", &details.metadata.started_on)?,
            finished_unix_s: parse_time(path, "finishedOn", &details.metadata.finished_on)?,
            recipe_sha256: build.external_parameters.recipe.sha256,
            seed: build.external_parameters.seed,
            steps: build.external_parameters.steps,
            epochs: build.external_parameters.epochs,
            subjects: self.subject.into_iter().map(subject).collect(),
            datasets: build.resolved_dependencies.into_iter().map(Dependency::into_use).collect(),
            licence_log: build.internal_parameters.licence_log,
            detail,
        })
    }
}

impl Dependency {
    fn from_use(used: &DatasetUse) -> Self {
        Self {
            name: used.name.clone(),
            uri: used.uuid.clone(),
            digest: ContentRoot { root: used.content_root },
            annotations: Annotations {
                licence_digest: used.licence_digest,
                log_index: used.log_index,
                records_used: used.records_used,
                epochs: used.epochs.clone(),
                sampling_seed: used.sampling_seed,
                filter_sha256: used.filter_sha256,
            },
        }
    }

    fn into_use(self) -> DatasetUse {
        DatasetUse {
            name: self.name,
            uuid: self.uri,
            content_root: self.digest.root,
            licence_digest: self.annotations.licence_digest,
            log_index: self.annotations.log_index,
            records_used: self.annotations.records_used,
            epochs: self.annotations.epochs,
            sampling_seed: self.annotations.sampling_seed,
            filter_sha256: self.annotations.filter_sha256,
        }
    }
}

fn format_time(path: &Path, field: &str, unix_s: u64) -> Result<String, RegistryError> {
    let written = i64::try_from(unix_s)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(&Rfc3339).ok());
    written.ok_or_else(|| RegistryError::field(path, field, "a moment before the year 10000", format!("{unix_s} s")))
}

/// Unix seconds of an RFC 3339 moment in whole seconds; `None` for anything else.
pub fn parse_moment(text: &str) -> Option<u64> {
    let moment = OffsetDateTime::parse(text, &Rfc3339).ok().filter(|moment| moment.nanosecond() == 0);
    moment.and_then(|moment| u64::try_from(moment.unix_timestamp()).ok())
}

fn parse_time(path: &Path, field: &str, text: &str) -> Result<u64, RegistryError> {
    parse_moment(text)
        .ok_or_else(|| RegistryError::field(path, field, "an RFC 3339 moment in whole seconds", format!("{text:?}")))
}
