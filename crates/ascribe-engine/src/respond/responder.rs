//! Answering.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ascribe_core::{Digest, FeatureReader as _};
use ascribe_index::{CertifiedIndex, Effort, Filter as Rows, Hit, HnswIndex, VectorIndex as _};
use ascribe_methods::aggregate::{Aggregate, to_datasets};
use ascribe_methods::combine::CalibratedMethod;
use ascribe_methods::group::intervals::{ShareErrors, Verdict, Z95};
use ascribe_models::GradientStage;
use ascribe_store::FeatureStore;
use ndarray::{Array2, ArrayView1, ArrayView2};

use super::answer::{Answer, Approx, Ask, Input, RespondError};
use super::channels::{Kind, Solved};
use super::material::Material;
use super::rows::Tokenised;
use super::{BLOCK_FISHER, CALIBRATED, EMBEDDING};
use crate::error::EngineError;
use crate::walk::calibrate::{Tables, channels_of};
use crate::walk::intervals::ShareInterval;

/// Most records that an answer shows.
pub const MAX_K: usize = 1_000;
/// Pauses of a waiting thread between two looks for work: a microsecond or two.
const SPINS: usize = 32;
/// Recall@10 that approximate look-ups aim at.
const RECALL: f64 = 0.99;

/// Answers from loaded material. May be used by several threads at once.
pub struct Responder<'m> {
    pub(super) material: &'m Material,
    pub(super) stages: Vec<GradientStage<'m>>,
    certified: CertifiedIndex<'m>,
    hidden: HnswIndex<'m, FeatureStore>,
    in_flight: AtomicUsize,
}

/// A question that is being answered.
struct InFlight<'r> {
    count: &'r AtomicUsize,
    is_alone: bool,
}

impl<'r> InFlight<'r> {
    fn begin(count: &'r AtomicUsize) -> Self {
        Self { count, is_alone: count.fetch_add(1, Ordering::Relaxed) == 0 }
    }
}

/// Runs `work` on the pool, with another of its threads that waits awake and takes what there is to take.
///
/// A response that is alone is a chain of short parallel parts with long serial ones between them. A core that went to sleep takes about
/// as long to wake as such a part takes to be done (0.05 to 0.2 ms on a virtual machine), so that two cores were slower than one. As soon
/// as another question comes in the thread goes back to sleep when it has nothing to do.
fn awake<T: Send>(in_flight: &AtomicUsize, work: impl FnOnce() -> T + Send) -> T {
    /// Also when the work panics.
    struct End<'d>(&'d AtomicBool);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    let done = AtomicBool::new(false);
    rayon::scope(|_| {
        let this = rayon::current_thread_index();
        let wait = || {
            // On the worker's own thread, below its work, this would never end.
            while rayon::current_thread_index() != this
                && !done.load(Ordering::Acquire)
                && in_flight.load(Ordering::Relaxed) < 2
            {
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    (0..SPINS).for_each(|_| std::hint::spin_loop());
                }
            }
        };
        let work = || {
            let _end = End(&done);
            work()
        };
        rayon::join(work, wait).0
    })
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Scores and shares before records are looked up.
struct Decided {
    scores: Vec<f64>,
    shares: Vec<ShareInterval>,
    coverage: f64,
    verdict: Option<Verdict>,
    spec: Digest,
}

impl<'m> Responder<'m> {
    /// Prepares projectors and indexes.
    ///
    /// # Errors
    /// What the stages and indexes refuse.
    pub fn new(material: &'m Material) -> Result<Self, EngineError> {
        let taps = || crate::walk::features::taps_of(&material.context.attribution);
        let stage = |part: &'m super::material::Part| Ok(GradientStage::new(&part.decoder, taps())?);
        let scanned = material.turned.as_ref().map_or(material.companion.as_ref(), |turned| Some(&turned.store));
        Ok(Self {
            material,
            stages: material.checkpoints.iter().map(stage).collect::<Result<_, EngineError>>()?,
            certified: CertifiedIndex::new(&material.rows, scanned)?,
            hidden: HnswIndex::open(&material.hidden_store, &material.hidden_dir)?,
            in_flight: AtomicUsize::new(0),
        })
    }

    /// What stands behind the answers.
    pub fn material(&self) -> &'m Material {
        self.material
    }

    /// Answers one question. The answer depends on the question and the material alone.
    ///
    /// # Errors
    /// [`RespondError::Refused`] naming the field of the question; faults of the walk.
    pub fn respond(&self, ask: &Ask) -> Result<Answer, RespondError> {
        let this = InFlight::begin(&self.in_flight);
        // A pass alone is one thread's work, and so are vectors.
        let is_one_pass = ask.k == 0 && ask.method.as_deref() == Some(BLOCK_FISHER);
        let is_text = matches!(ask.input, Input::Text { .. } | Input::Example(_));
        match this.is_alone && is_text && !is_one_pass {
            true => awake(&self.in_flight, || self.decide(ask)),
            false => self.decide(ask),
        }
    }

    fn decide(&self, ask: &Ask) -> Result<Answer, RespondError> {
        if ask.k > MAX_K {
            return Err(RespondError::refuse("k", format!("at most {MAX_K}"), ask.k));
        }
        let allowed = self.material.catalog.allowed(&ask.filter)?;
        match (&ask.input, ask.method.as_deref()) {
            (Input::Features(row), None | Some(BLOCK_FISHER)) => self.by_row(ask, row, allowed),
            (Input::Embedding(vector), None | Some(EMBEDDING)) => self.by_embedding(ask, vector, None, allowed),
            (Input::Features(_), Some(other)) => {
                Err(RespondError::refuse("method", "block_fisher for features", other))
            }
            (Input::Embedding(_), Some(other)) => {
                Err(RespondError::refuse("method", "embedding for an embedding", other))
            }
            (_, method) => self.by_text(ask, method.unwrap_or(CALIBRATED), allowed),
        }
    }

    fn by_text(&self, ask: &Ask, method: &str, allowed: Vec<bool>) -> Result<Answer, RespondError> {
        let m = self.material;
        if !m.opened.methods.iter().any(|known| known == method) {
            return Err(RespondError::refuse("method", format!("one of {}", m.opened.methods.join(", ")), method));
        }
        let response = Tokenised::new(m, &ask.input)?;
        if method == EMBEDDING {
            let vector = self.hidden(&response)?;
            return self.by_embedding(ask, &vector.row(0).to_vec(), Some(&response), allowed);
        }
        let decided;
        let solved: Option<Solved>;
        if method == BLOCK_FISHER {
            let row = self.row(m.checkpoints.len() - 1, &response)?;
            decided = self.raw(method, self.folded(row.row(0)))?;
            solved = self.solved(row.view(), ask)?;
        } else {
            let named = self.named(method)?;
            let kinds: Vec<&Kind> = match &named {
                Some(named) => vec![named],
                None => m.channels.iter().map(|(_, kind)| kind).collect(),
            };
            // Records are looked up by the last gradient, solved; controls need no gradient: they are scored beside the passes.
            let (gradients, controls) = rayon::join(
                || self.gradients(&kinds, &response, ask.k > 0, named.is_none()),
                || self.controls(&kinds, &response),
            );
            let (gradients, mut controls) = (gradients?, controls?);
            let mut tables: Tables = Vec::with_capacity(kinds.len());
            for (at, kind) in kinds.iter().enumerate() {
                let table = match (kind, controls.remove(&at)) {
                    (Kind::Gradient(channel), _) => self.influence(at, channel, &gradients)?,
                    (_, control) => control.expect("every other channel is a control"),
                };
                tables.push((m.channels.get(at).map_or_else(String::new, |(name, _)| name.clone()), table));
            }
            decided = match named {
                Some(_) => self.raw(method, tables.remove(0).1)?,
                None => self.calibrated(&tables, &self.variances(&tables, &gradients)?)?,
            };
            solved = gradients.solved(m.checkpoints.len() - 1).cloned();
        }
        let (found, approx) = self.nearest(solved.as_ref(), ask, &allowed)?;
        let mut answer = self.answer(method, decided, approx, found, ask, allowed)?;
        self.attach(&mut answer, ask, Some(&response))?;
        Ok(answer)
    }

    /// The channel of a method that is one; none for the calibrated combination.
    fn named(&self, method: &str) -> Result<Option<Kind>, RespondError> {
        if method == CALIBRATED {
            return Ok(None);
        }
        let gradient = crate::walk::channels::gradient(&self.material.context, method)?;
        Ok(Some(Kind::of(method, gradient)?))
    }

    /// The row under the curvature at the last checkpoint, for the search of records; nothing where none is asked for.
    fn solved(&self, row: ArrayView2<'_, f32>, ask: &Ask) -> Result<Option<Solved>, RespondError> {
        (ask.k > 0).then(|| Solved::of(&self.material.last().factors, row)).transpose()
    }

    fn by_row(&self, ask: &Ask, row: &[f32], allowed: Vec<bool>) -> Result<Answer, RespondError> {
        let m = self.material;
        check_vector("features", row, m.opened.dim)?;
        if ask.tokens || ask.verbatim {
            return Err(RespondError::refuse("tokens", "a text, for tokens or verbatim runs", "features"));
        }
        let row = Array2::from_shape_vec((1, row.len()), row.to_vec()).expect("one row of as many numbers");
        let decided = self.raw(BLOCK_FISHER, self.folded(row.row(0)))?;
        let (found, approx) = self.nearest(self.solved(row.view(), ask)?.as_ref(), ask, &allowed)?;
        self.answer(BLOCK_FISHER, decided, approx, found, ask, allowed)
    }

    fn by_embedding(
        &self,
        ask: &Ask,
        vector: &[f32],
        response: Option<&Tokenised>,
        allowed: Vec<bool>,
    ) -> Result<Answer, RespondError> {
        let m = self.material;
        check_vector("embedding", vector, m.opened.embedding_dim)?;
        if response.is_none() && (ask.tokens || ask.verbatim) {
            return Err(RespondError::refuse("tokens", "a text, for tokens or verbatim runs", "an embedding"));
        }
        let query = ArrayView1::from(vector);
        let scores = m.hidden.score(query.insert_axis(ndarray::Axis(0)))?;
        let scores = to_datasets(scores.view(), &m.ids, m.catalog.datasets.len(), Aggregate::Mean)?;
        let (shares, coverage) = match &m.embedding_alone {
            Some(single) => {
                let tables: Tables = vec![(EMBEDDING.to_owned(), scores.clone())];
                let row = single.calibration.predict(&channels_of(&tables))?.row(0).to_vec();
                // How far such shares were off on held-out responses is known; what they owe to chance is not, so they pay nobody.
                let share = |share: f64| {
                    let (low, high) = single.conformal.interval(share);
                    ShareInterval { share, std_error: 0.0, low, high }
                };
                (row.into_iter().map(share).collect(), single.coverage)
            }
            None => (Vec::new(), 0.0),
        };
        let spec = Digest::of_json(&(EMBEDDING, m.hidden_store.spec().hash())).map_err(EngineError::from)?;
        let decided = Decided { scores: scores.row(0).to_vec(), shares, coverage, verdict: None, spec };
        let curve = self.hidden.effort_for(RECALL);
        let effort = curve.unwrap_or(Effort::new(256));
        let recall = self.hidden.curve().points.iter().rev().find(|p| p.ef <= effort.ef).map_or(0.0, |p| p.recall);
        let k = ask.k.min(m.hidden_store.n_rows() as usize);
        let hits = self.hidden.search_filtered(query.insert_axis(ndarray::Axis(0)), k, effort, &rows_of(&allowed))?;
        let approx = Approx { mode: "ann", recall, rescored: None };
        let hits = hits.into_iter().next().unwrap_or_default();
        let mut answer = self.answer(EMBEDDING, decided, approx, hits, ask, allowed)?;
        self.attach(&mut answer, ask, response)?;
        Ok(answer)
    }

    /// The examples of largest influence at the last checkpoint, and the proof that none is missing.
    fn nearest(
        &self,
        solved: Option<&Solved>,
        ask: &Ask,
        allowed: &[bool],
    ) -> Result<(Vec<Hit>, Approx), RespondError> {
        let k = ask.k.min(self.material.rows.n_rows() as usize);
        let Some(Solved { whitened, solved }) = solved.filter(|_| k > 0) else {
            return Ok((Vec::new(), Approx { mode: "certified", recall: 1.0, rescored: Some(0) }));
        };
        // Order and ratios are those of any multiple: numbers that f32 cannot hold are brought to where it can.
        let largest = solved.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        let unit = if (1e-30..1e30).contains(&largest) || largest == 0.0 { 1.0 } else { largest };
        let query = solved.mapv(|v| (v / unit) as f32);
        let filter = rows_of(allowed);
        let (mut hits, certificate) = match &self.material.turned {
            None => self.certified.search_certified(query.view(), k, &filter)?,
            Some(turned) => match turned.query(whitened, unit) {
                Some(p) => self.certified.search_turned(query.view(), p.view(), turned.slack, k, &filter)?,
                // Nothing proves which rows are best but every row.
                None => CertifiedIndex::new(&self.material.rows, None)?.search_certified(query.view(), k, &filter)?,
            },
        };
        hits.iter_mut().flatten().for_each(|hit| hit.score *= unit);
        let rescored = certificate.rescored.first().copied();
        Ok((hits.into_iter().next().unwrap_or_default(), Approx { mode: "certified", recall: 1.0, rescored }))
    }

    /// Shares of the default method with their intervals, as `walk::intervals` makes them.
    fn calibrated(&self, tables: &Tables, variances: &BTreeMap<String, Array2<f64>>) -> Result<Decided, RespondError> {
        let m = self.material;
        let shares = m.method.calibration.predict(&channels_of(tables))?.row(0).to_owned();
        let zeros = Array2::zeros((1, shares.len()));
        let total = variances.values().fold(zeros, |sum: Array2<f64>, v| sum + v);
        let std_errors = total.mapv(f64::sqrt).row(0).to_owned();
        let intervals = hull(&m.method, shares.view(), std_errors.view());
        let errors = ShareErrors { shares, std_errors };
        let verdict = Verdict::of(Some(&errors), m.context.attribution.noise_threshold)?;
        // The scores that people see beside the shares are those of the first channel, which is influence where there is any.
        let scores = tables.first().map_or_else(Vec::new, |(_, table)| table.row(0).to_vec());
        let spec = Digest::of_json(&(CALIBRATED, m.method_spec, m.opened.spec_hash)).map_err(EngineError::from)?;
        Ok(Decided { scores, shares: intervals, coverage: m.method.coverage(), verdict: Some(verdict), spec })
    }

    /// Scores of one method as they are: no bank says which shares follow from them, so there are none.
    fn raw(&self, method: &str, scores: Array2<f64>) -> Result<Decided, RespondError> {
        let m = self.material;
        let spec = Digest::of_json(&(method, m.opened.spec_hash, m.method_spec)).map_err(EngineError::from)?;
        let scores = scores.row(0).to_vec();
        let positive: f64 = scores.iter().map(|s| s.max(0.0)).sum();
        // Proportional to influence, negatives clipped; an interval that holds everything says that nothing was measured.
        let share = |s: &f64| {
            let share = if positive > 0.0 { s.max(0.0) / positive } else { 0.0 };
            ShareInterval { share, std_error: 1.0, low: 0.0, high: 1.0 }
        };
        let shares = scores.iter().map(share).collect();
        let verdict = Some(Verdict::of(None, m.context.attribution.noise_threshold)?);
        Ok(Decided { scores, shares, coverage: 0.0, verdict, spec })
    }

    fn answer(
        &self,
        method: &str,
        decided: Decided,
        approx: Approx,
        hits: Vec<Hit>,
        ask: &Ask,
        allowed: Vec<bool>,
    ) -> Result<Answer, RespondError> {
        let above = |hit: &Hit| ask.min_score.is_none_or(|least| hit.score >= least);
        let hits = hits.iter().filter(|hit| above(hit)).map(|hit| self.found(hit)).collect();
        Ok(Answer {
            method: method.to_owned(),
            spec: decided.spec,
            scores: decided.scores,
            shares: decided.shares,
            allowed,
            coverage: decided.coverage,
            verdict: decided.verdict,
            hits,
            approx,
            n_tokens: 0,
            tokens: None,
            verbatim: None,
        })
    }

    /// Tokens and verbatim runs, if asked for.
    fn attach(&self, answer: &mut Answer, ask: &Ask, response: Option<&Tokenised>) -> Result<(), RespondError> {
        let Some(response) = response else { return Ok(()) };
        answer.n_tokens = response.n_completion();
        if ask.tokens {
            answer.tokens = Some(self.token_influence(response, &answer.shares)?);
        }
        if ask.verbatim {
            answer.verbatim = Some(self.verbatim_runs(response)?);
        }
        Ok(())
    }
}

/// The hull of the calibrated interval and the one of what was drawn by chance.
fn hull(method: &CalibratedMethod, shares: ArrayView1<'_, f64>, std_errors: ArrayView1<'_, f64>) -> Vec<ShareInterval> {
    let one = |(&share, &std_error): (&f64, &f64)| {
        let (low, high) = method.conformal.interval(share);
        let (below, above) = (share - Z95 * std_error, share + Z95 * std_error);
        ShareInterval { share, std_error, low: low.min(below).max(0.0), high: high.max(above).min(1.0) }
    };
    shares.iter().zip(std_errors).map(one).collect()
}

/// Rows of the datasets that are let through.
pub(super) fn rows_of(allowed: &[bool]) -> Rows {
    match allowed.iter().all(|a| *a) {
        true => Rows::default(),
        false => Rows::datasets((0..).zip(allowed).filter(|(_, a)| **a).map(|(k, _)| k)),
    }
}

/// A vector of the right length without NaN.
pub(super) fn check_vector(field: &'static str, vector: &[f32], dim: usize) -> Result<(), RespondError> {
    if vector.len() != dim {
        return Err(RespondError::refuse(field, format!("{dim} numbers"), vector.len()));
    }
    match vector.iter().position(|x| !x.is_finite()) {
        Some(at) => Err(RespondError::refuse(field, "finite numbers", format!("{} at {at}", vector[at]))),
        None => Ok(()),
    }
}
