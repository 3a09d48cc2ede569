//! Vectors as octets instead of JSON.

use crate::client::{Call, escaped};

const OCTETS: &str = "application/octet-stream";

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Embedding,
    Features,
}

/// Rows of numbers that are asked about, one question each, with what holds for all of them. They go over the wire as little-endian f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<'a> {
    kind: Kind,
    width: usize,
    numbers: &'a [f32],
    method: Option<String>,
    k: Option<usize>,
    receipt: bool,
}

impl<'a> Rows<'a> {
    /// Mean hidden states, `[N, width]` row by row; `width` is [`crate::Index::embedding_dim`]. The server refuses numbers that fill
    /// no whole number of rows.
    pub fn embeddings(numbers: &'a [f32], width: usize) -> Self {
        Self { kind: Kind::Embedding, width, numbers, method: None, k: None, receipt: false }
    }

    /// Projected gradient rows, `[N, width]` row by row; `width` is [`crate::Index::dim`].
    pub fn features(numbers: &'a [f32], width: usize) -> Self {
        Self { kind: Kind::Features, ..Self::embeddings(numbers, width) }
    }

    /// Asks for signed receipts.
    #[must_use]
    pub fn with_receipt(self) -> Self {
        Self { receipt: true, ..self }
    }

    /// Asks for so many records each.
    #[must_use]
    pub fn with_k(self, k: usize) -> Self {
        Self { k: Some(k), ..self }
    }

    /// Asks for a method by name.
    #[must_use]
    pub fn with_method(self, method: impl Into<String>) -> Self {
        Self { method: Some(method.into()), ..self }
    }

    pub(crate) fn call(&self, path: &str) -> Call {
        let kind = match self.kind {
            Kind::Embedding => "embedding",
            Kind::Features => "features",
        };
        let method = self.method.as_ref().map(|method| format!("&method={}", escaped(method)));
        let k = self.k.map(|k| format!("&k={k}"));
        let receipt = self.receipt.then(|| "&receipt=true".to_owned());
        let settings: String = [method, k, receipt].into_iter().flatten().collect();
        let n = self.numbers.len() / self.width.max(1);
        let body = self.numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut call = Call::of(format!("{path}?kind={kind}{settings}"), body, OCTETS);
        call.headers.push(("x-shape", format!("{n},{}", self.width)));
        call
    }
}
