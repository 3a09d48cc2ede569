//! What stands beside a question's body: settings of the query, shape and type of binary numbers. They are read and checked whatever
//! the body is, and before it.

use ascribe_engine::respond::Opened;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Query};
use axum::http::HeaderMap;
use axum::http::request::Parts;

use crate::params::{DATASETS, DTYPE, K, KIND, LICENCES, METHOD, MIN_SCORE, OWNERS, RECEIPT, SHAPE, only};
use crate::problem::Problem;
use crate::wire::{AttributionRequest, MAX_FILTER, MAX_K, WireFilter};

/// What the rows of a binary body are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Mean hidden states.
    #[default]
    Embedding,
    /// Projected gradients.
    Features,
}

impl Rows {
    /// Names, in the order of the variants.
    pub(crate) const NAMES: [&'static str; 2] = ["embedding", "features"];

    /// Numbers of a row.
    pub(crate) fn length(self, opened: &Opened) -> usize {
        match self {
            Self::Embedding => opened.embedding_dim,
            Self::Features => opened.dim,
        }
    }
}

/// Types of numbers, with their bytes.
pub(crate) const DTYPES: [(&str, usize); 2] = [("f32", 4), ("f16", 2)];

/// What a request says beside its body.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    kind: Rows,
    method: Option<String>,
    k: Option<usize>,
    min_score: Option<f64>,
    filter: WireFilter,
    receipt: bool,
    /// Rows, where they are said, and numbers of each.
    shape: Option<(Option<usize>, usize)>,
    /// Bytes of a number.
    width: Option<usize>,
}

/// The pairs of a query, percent-decoded.
#[derive(Debug)]
pub struct Pairs(pub(crate) Vec<(String, String)>);

impl<S: Send + Sync> FromRequestParts<S> for Pairs {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let pairs: Result<Query<Vec<(String, String)>>, QueryRejection> = Query::from_request_parts(parts, state).await;
        match pairs {
            Ok(Query(pairs)) => Ok(Self(pairs)),
            Err(error) => Err(Problem::malformed(format!("query: expected name=value pairs, found another: {error}"))),
        }
    }
}

impl Settings {
    /// Reads and checks them.
    ///
    /// # Errors
    /// 422 naming the setting or header.
    pub(crate) fn of(headers: &HeaderMap, Pairs(pairs): &Pairs) -> Result<Self, Problem> {
        only(&[&KIND, &METHOD, &K, &MIN_SCORE, &DATASETS, &OWNERS, &LICENCES, &RECEIPT], pairs)?;
        let kind = match KIND.setting(pairs)? {
            None => Rows::default(),
            Some("embedding") => Rows::Embedding,
            Some("features") => Rows::Features,
            Some(other) => return Err(KIND.refuse("embedding or features", &format!("{other:?}"))),
        };
        let k = K.setting(pairs)?.map(|k| k.parse().map_err(|_| K.refuse("a whole number from 0", &format!("{k:?}"))));
        let least = MIN_SCORE.setting(pairs)?;
        let least = least.map(|x| x.parse().map_err(|_| MIN_SCORE.refuse("a number", &format!("{x:?}"))));
        let receipt = match RECEIPT.setting(pairs)? {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(RECEIPT.refuse("true or false", &format!("{other:?}"))),
        };
        let width = DTYPE.text(headers)?.map(|name| {
            let known = DTYPES.iter().find(|(known, _)| *known == name).map(|(_, width)| *width);
            known.ok_or_else(|| DTYPE.refuse("f32 or f16", &format!("{name:?}")))
        });
        Ok(Self {
            kind,
            method: METHOD.setting(pairs)?.map(str::to_owned),
            k: k.transpose()?,
            min_score: least.transpose()?,
            filter: WireFilter {
                datasets: DATASETS.settings(pairs),
                owners: OWNERS.settings(pairs),
                licences: LICENCES.settings(pairs),
            },
            receipt,
            shape: SHAPE.text(headers)?.map(shape).transpose()?,
            width: width.transpose()?,
        })
    }

    /// Checks all of it against what is served, whether a question will use it or not; a shape, where questions come one by one, against
    /// one row.
    ///
    /// # Errors
    /// 404 for a method that is not there; 422 naming the setting or header.
    pub(crate) fn check(&self, opened: &Opened, takes_many: bool) -> Result<(), Problem> {
        if let Some(method) = self.method.as_ref().filter(|m| !opened.methods.contains(m)) {
            let expected = opened.methods.join(", ");
            return Err(Problem::not_found(format!("method: expected one of {expected}, found {method:?}")));
        }
        if let Some(k) = self.k.filter(|k| *k > MAX_K) {
            return Err(K.refuse(&format!("at most {MAX_K}"), &k.to_string()));
        }
        if let Some(x) = self.min_score.filter(|x| !x.is_finite()) {
            return Err(MIN_SCORE.refuse("a finite number", &x.to_string()));
        }
        let WireFilter { datasets, owners, licences } = &self.filter;
        for (param, names) in [(&DATASETS, datasets), (&OWNERS, owners), (&LICENCES, licences)] {
            if names.len() > MAX_FILTER {
                return Err(param.refuse(&format!("at most {MAX_FILTER} names"), &names.len().to_string()));
            }
        }
        let Some((n, dim)) = self.shape else { return Ok(()) };
        let n = n.unwrap_or(1);
        if dim != opened.embedding_dim && dim != opened.dim {
            let expected = format!("{} or {} numbers a row", opened.embedding_dim, opened.dim);
            return Err(SHAPE.refuse(&expected, &dim.to_string()));
        }
        match n {
            0 => Err(SHAPE.refuse("at least one row", "none")),
            1 => Ok(()),
            _ if takes_many => Ok(()),
            n => Err(SHAPE.refuse("one row", &format!("{n}; hint: :batch takes more"))),
        }
    }

    /// What the query says holds where the question leaves it out; a receipt is made if either asks for one.
    pub(crate) fn fill(&self, mut request: AttributionRequest) -> AttributionRequest {
        request.method = request.method.or_else(|| self.method.clone());
        request.k = request.k.or(self.k);
        request.min_score = request.min_score.or(self.min_score);
        let ours = &self.filter;
        let WireFilter { datasets, owners, licences } = &mut request.filter;
        for (theirs, ours) in [(datasets, &ours.datasets), (owners, &ours.owners), (licences, &ours.licences)] {
            if theirs.is_empty() {
                theirs.clone_from(ours);
            }
        }
        request.receipt |= self.receipt;
        request
    }

    /// The questions of a binary body, one a row.
    ///
    /// # Errors
    /// A body of another length than the shape says.
    pub(crate) fn questions(&self, opened: &Opened, bytes: &[u8]) -> Result<Vec<AttributionRequest>, Problem> {
        let rows = self.numbers(self.kind.length(opened), bytes)?;
        let question = |row| {
            let empty = AttributionRequest::default();
            self.fill(match self.kind {
                Rows::Embedding => AttributionRequest { embedding: Some(row), ..empty },
                Rows::Features => AttributionRequest { features: Some(row), ..empty },
            })
        };
        Ok(rows.into_iter().map(question).collect())
    }

    /// Rows of little-endian numbers; of `served` numbers each where no shape says otherwise.
    fn numbers(&self, served: usize, bytes: &[u8]) -> Result<Vec<Vec<f32>>, Problem> {
        let width = self.width.unwrap_or(DTYPES[0].1);
        let (n, dim) = match self.shape {
            Some((n, dim)) => (n.unwrap_or(1), dim),
            None => (bytes.len() / (served * width).max(1), served),
        };
        let expected = n.checked_mul(dim).and_then(|n| n.checked_mul(width)).filter(|n| *n > 0);
        if expected != Some(bytes.len()) {
            let found = bytes.len();
            return Err(Problem::invalid(match (self.shape, expected) {
                (None, _) => format!(
                    "body: expected rows of {} bytes, {dim} numbers each, found {found}; hint: x-shape says another length",
                    served * width
                ),
                (_, Some(expected)) => format!("body: expected {expected} bytes for {n} × {dim}, found {found}"),
                (_, None) => format!("body: expected a positive number of bytes for {n} × {dim}, found {found}"),
            }));
        }
        let number = |b: &[u8]| match b {
            [a, b] => half::f16::from_le_bytes([*a, *b]).to_f32(),
            b => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        };
        Ok(bytes.chunks_exact(dim * width).map(|row| row.chunks_exact(width).map(number).collect()).collect())
    }
}

/// `D` or `N,D`.
fn shape(text: &str) -> Result<(Option<usize>, usize), Problem> {
    let is_plain = |t: &str| t.bytes().all(|b| b.is_ascii_digit()) && (t == "0" || !t.starts_with('0'));
    let number = |t: &str| is_plain(t).then(|| t.parse().ok()).flatten();
    let parts: Option<Vec<usize>> = text.split(',').map(number).collect();
    match parts.as_deref() {
        Some([dim]) => Ok((None, *dim)),
        Some([n, dim]) => Ok((Some(*n), *dim)),
        _ => Err(SHAPE.refuse("D or N,D", &format!("{text:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn settings(headers: &[(&'static str, &'static str)], query: &[(&str, &str)]) -> Result<Settings, Problem> {
        let headers = headers
            .iter()
            .map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)))
            .collect::<HeaderMap>();
        let pairs = query.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        Settings::of(&headers, &Pairs(pairs))
    }

    #[test]
    fn numbers_come_back_in_both_widths() {
        let read = |headers: &[(&'static str, &'static str)], served, bytes: &[u8]| {
            settings(headers, &[]).unwrap().numbers(served, bytes).unwrap()
        };
        let bytes: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read(&[("x-shape", "2")], 9, &bytes), [[1.5, -2.0]]);
        assert_eq!(read(&[("x-shape", "2,1")], 9, &bytes), [[1.5], [-2.0]]);
        // Without a shape: as many rows of the served length as there are.
        assert_eq!(read(&[], 2, &bytes), [[1.5, -2.0]]);
        assert_eq!(read(&[], 1, &bytes), [[1.5], [-2.0]]);
        let halves: Vec<u8> = [half::f16::from_f32(0.5)].iter().flat_map(|x| x.to_le_bytes()).collect();
        assert_eq!(read(&[("x-shape", "1"), ("x-dtype", "f16")], 9, &halves), [[0.5]]);
    }

    #[test]
    fn shapes_that_lie_are_refused() {
        let detail = |headers: &[(&'static str, &'static str)], n: usize| {
            settings(headers, &[]).and_then(|s| s.numbers(3, &vec![0; n])).unwrap_err().detail
        };
        assert!(detail(&[], 4).contains("rows of 12 bytes") && detail(&[], 0).contains("found 0"));
        assert!(detail(&[("x-shape", "2,3")], 4).contains("expected 24 bytes"));
        assert!(detail(&[("x-shape", "18446744073709551615,8")], 8).contains("a positive number"));
        assert!(detail(&[("x-shape", "0,8")], 0).contains("a positive number"));
        for shape in ["", ",", "+4", "04", " 4", "2, 4", "-4", "1,2,3", "4.0", "99999999999999999999"] {
            assert!(detail(&[("x-shape", shape)], 4).contains("x-shape"), "{shape}");
        }
        assert!(detail(&[("x-shape", "1"), ("x-dtype", "f64")], 8).contains("x-dtype"));
    }

    #[test]
    fn the_query_fills_what_a_question_leaves_out() {
        let beside = settings(&[], &[("method", "embedding"), ("k", "7"), ("receipt", "true")]).unwrap();
        let filled = beside.fill(AttributionRequest::default());
        assert_eq!((filled.method.as_deref(), filled.k, filled.receipt), (Some("embedding"), Some(7), true));
        let said = AttributionRequest { method: Some("tracin".into()), k: Some(2), ..AttributionRequest::default() };
        let filled = beside.fill(said);
        assert_eq!((filled.method.as_deref(), filled.k), (Some("tracin"), Some(2)));
        let filters = [("owners", "Bo"), ("datasets", "a"), ("owners", "Cy"), ("min_score", "-1e-3")];
        let beside = settings(&[], &filters).unwrap();
        let own = WireFilter { datasets: vec!["b".into()], ..WireFilter::default() };
        let filled = beside.fill(AttributionRequest { filter: own, ..AttributionRequest::default() });
        assert_eq!(
            (filled.filter.owners, filled.filter.datasets),
            (vec!["Bo".into(), "Cy".into()], vec!["b".to_owned()])
        );
        assert_eq!((filled.filter.licences.len(), filled.min_score), (0, Some(-1e-3)));
        for (name, value) in
            [("min_score", "low"), ("k", "-1"), ("k", "1.5"), ("receipt", "yes"), ("kind", "text"), ("colour", "red")]
        {
            let detail = settings(&[], &[(name, value)]).unwrap_err().detail;
            assert!(detail.contains(name) && detail.contains(value), "{detail}");
        }
    }
}
