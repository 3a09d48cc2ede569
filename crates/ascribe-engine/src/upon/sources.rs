//! Where self-influence comes from: a run's stores, any store, the methods of a bench setting.

use std::collections::BTreeMap;
use std::path::Path;

use ascribe_core::{Digest, ExampleId, FeatureReader as _, Progress, RecordId};
use ascribe_index::refuse_factors;
use ascribe_methods::block_fisher::{Covariance, self_influence as through};
use ascribe_methods::rows;
use ascribe_store::FeatureStore;

use super::{Collection, Measured};
use crate::bench::contest::Contestant as _;
use crate::bench::lab::{self, Lab};
use crate::bench::methods::{Method, catalogue, self_influence};
use crate::bench::report::cpu_of;
use crate::bench::setting::Setting;
use crate::error::EngineError;
use crate::home::Home;
use crate::walk::Context;
use crate::walk::features::{self, open_train};
use crate::walk::fit;

/// A run: plain gradients and block Fisher, last checkpoint and all.
pub(super) fn of_run(home: &Home, model: &str, out: &Path, progress: &dyn Progress) -> Result<Collection, EngineError> {
    let context = Context::open(home, model, out, progress)?;
    let first = context.out.join(features::train_dir(&context.last().name));
    if !first.exists() {
        let hint = context.out.display();
        return Err(EngineError::Content {
            path: first,
            expected: "rows of a run and their curvature".into(),
            found: format!("none; hint: ascribe features --out {hint}, then ascribe fit --out {hint}"),
        });
    }
    let n = context.corpus.examples.len();
    let (mut tracin, mut trajectory) = (vec![0.0; n], vec![0.0; n]);
    let (mut dot, mut fisher) = (Vec::new(), Vec::new());
    let (mut plain_cpu, mut curved_cpu) = (0.0, 0.0);
    for checkpoint in &context.checkpoints {
        let store = open_train(&context, &checkpoint.name)?;
        let (lengths, cpu) = cpu_of(|| rows::square_norms(&store, progress));
        dot = lengths?;
        plain_cpu += cpu;
        let factors = fit::read(&context, checkpoint)?;
        let (own, cpu) = cpu_of(|| through(&store, &factors, progress));
        fisher = own?;
        curved_cpu += cpu;
        let add = |to: &mut Vec<f64>, part: &[f64]| {
            to.iter_mut().zip(part).for_each(|(to, v)| *to += checkpoint.weight * v);
        };
        add(&mut tracin, &dot);
        add(&mut trajectory, &fisher);
    }
    let parts = context.checkpoints.len() as f64;
    let measured = |method: &str, about: &str, cpu_seconds, values| Measured {
        method: method.into(),
        about: about.into(),
        cpu_seconds,
        values,
    };
    Ok(Collection {
        of: format!("{n} training examples of {} in {}", context.model_name, context.out.display()),
        ids: context.corpus.examples.iter().map(|e| e.id).collect(),
        datasets: context.corpus.datasets.iter().map(|d| d.name.clone()).collect(),
        records: main_records(&context),
        spec: features::digest(&context)?,
        methods: vec![
            measured("grad_dot", "squared length of the projected gradient, last checkpoint", plain_cpu / parts, dot),
            measured("tracin_cp", "the same, summed over checkpoints with their learning rates", plain_cpu, tracin),
            measured("block_fisher", "block-Fisher influence upon itself, last checkpoint", curved_cpu / parts, fisher),
            measured("trajectory_fisher", "the same, summed over checkpoints", curved_cpu, trajectory),
        ],
        notes: Vec::new(),
    })
}

/// The record that fills most of each example, with the name that its owner gave it.
fn main_records(context: &Context) -> BTreeMap<ExampleId, (RecordId, String)> {
    let main = |e: &ascribe_corpus::Example| {
        let longest = e.spans.iter().rev().max_by_key(|s| s.token_end - s.token_start)?;
        Some((e.id, (longest.record, context.corpus.record(longest.record).id.clone())))
    };
    context.corpus.examples.iter().filter_map(main).collect()
}

/// Rows of a store: lengths, and influence through their own block Fisher matrix.
pub(super) fn of_store(dir: &Path, damping_rel: f64, progress: &dyn Progress) -> Result<Collection, EngineError> {
    let store = FeatureStore::open(dir, None)?;
    refuse_factors(store.spec())?;
    let mut ids = Vec::new();
    for block in 0..store.n_blocks() {
        ids.extend_from_slice(&store.block(block)?.ids);
    }
    let (lengths, plain_cpu) = cpu_of(|| rows::square_norms(&store, progress));
    let (own, curved_cpu) = cpu_of(|| -> Result<Vec<f64>, EngineError> {
        let factors = Covariance::fit(&store, progress)?.cholesky(damping_rel)?;
        Ok(through(&store, &factors, progress)?)
    });
    let n_datasets = ids.iter().map(|id| id.dataset + 1).max().unwrap_or(0);
    let about =
        format!("influence through the rows' block Fisher matrix, damping {damping_rel} of its mean eigenvalue");
    Ok(Collection {
        of: format!("{} rows of {}", ids.len(), dir.display()),
        datasets: (0..n_datasets).map(|k| k.to_string()).collect(),
        records: BTreeMap::new(),
        spec: store.spec().hash(),
        methods: vec![
            Measured {
                method: "grad_dot".into(),
                about: "squared length of the row".into(),
                cpu_seconds: plain_cpu,
                values: lengths?,
            },
            Measured { method: "block_fisher".into(), about, cpu_seconds: curved_cpu, values: own? },
        ],
        ids,
        notes: Vec::new(),
    })
}

/// Methods of a bench setting, each over the same evenly spread examples.
pub(super) fn of_setting(
    home: &Home,
    name: &str,
    names: &[String],
    examples: Option<usize>,
    progress: &dyn Progress,
) -> Result<Collection, EngineError> {
    let setting = Setting::named(home, name)?;
    let methods: Vec<Method> = catalogue(&setting);
    if let Some(unknown) = names.iter().find(|name| methods.iter().all(|m| m.name != **name)) {
        let known: Vec<&str> = methods.iter().map(|m| m.name.as_str()).collect();
        let expected = format!("some of {}", known.join(", "));
        return Err(EngineError::Setting { setting: "--methods", expected, found: unknown.clone() });
    }
    let chosen = |m: &&Method| if names.is_empty() { !m.control() } else { names.contains(&m.name) };
    let lab = lab::open(home, &setting)?;
    let all = lab.n_examples();
    let n = examples.unwrap_or(all).min(all);
    if n == 0 {
        let expected = format!("1 to {all}");
        return Err(EngineError::Setting { setting: "--examples", expected, found: "0".into() });
    }
    let asked: Vec<u32> = (0..n).map(|i| (i * all / n) as u32).collect();
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    for method in methods.iter().filter(chosen) {
        match self_influence(method, lab.as_ref(), &asked, progress) {
            Ok(own) => found.push(Measured {
                method: method.name.clone(),
                about: method.about.clone(),
                cpu_seconds: own.cpu_seconds,
                values: own.values,
            }),
            Err(EngineError::Stopped) => return Err(EngineError::Stopped),
            // Of one method alone its reason is the answer.
            Err(error) if names.len() == 1 => return Err(error),
            Err(error) => notes.push(format!("{}: {error}", method.name)),
        }
    }
    let (datasets, of) = groups(lab.as_ref());
    Ok(Collection {
        of: format!("{n} of {all} training examples of {name}"),
        ids: asked.iter().map(|&i| ExampleId { dataset: of[i as usize], idx: i }).collect(),
        datasets,
        records: BTreeMap::new(),
        spec: Digest::of_json(&(lab.digest(), &asked))?,
        methods: found,
        notes,
    })
}

/// What examples are grouped by: datasets, or classes.
fn groups(lab: &dyn Lab) -> (Vec<String>, Vec<u32>) {
    let of = match (lab.labels(), lab.datasets()) {
        (Some((labels, _)), _) => labels.to_vec(),
        (None, Some(datasets)) => datasets,
        (None, None) => vec![0; lab.n_examples()],
    };
    let word = if lab.labels().is_some() { "class" } else { "dataset" };
    let n = of.iter().max().map_or(0, |&k| k + 1);
    let names = match lab.decoder() {
        Some(decoder) => decoder.data.corpus.datasets.iter().map(|d| d.name.clone()).collect(),
        None => (0..n).map(|k| format!("{word} {k}")).collect(),
    };
    (names, of)
}
