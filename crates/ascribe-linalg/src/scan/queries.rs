//! Queries as the kernels read them: rounded, padded, packed, and what rounding lost.

use ascribe_core::RowType;
use ndarray::ArrayView2;

use crate::packed::{PackedMatrix, Precision, isa_takes_bf16, rounded};

/// Up to so many queries are multiplied row by row from registers; more are worth a matrix product.
pub const FEW: usize = 4;

/// Numbers of a cache line of bytes: codes are padded to it.
pub(super) const LINE: usize = 64;

/// A batch of queries for rows of one type.
#[derive(Clone, Debug)]
pub struct Queries {
    row_type: RowType,
    dim: usize,
    n: usize,
    facts: Vec<Facts>,
    pub(super) form: Form,
}

/// What is known of one query.
#[derive(Clone, Copy, Debug)]
struct Facts {
    scale: f64,
    norm: f64,
    lost: f64,
}

/// The prepared numbers.
#[derive(Clone, Debug)]
pub(super) enum Form {
    /// Codes in the order in which a row's bytes unpack, `len` to a query, and per query their sum; for many queries also as
    /// right-hand tiles.
    Codes { len: usize, codes: Vec<i8>, sums: Vec<i32>, tiles: Vec<i8> },
    /// f32, `len` to a query, zeros behind the last.
    Floats { len: usize, numbers: Vec<f32> },
    /// The right operand of a product.
    Packed(Box<PackedMatrix>),
}

impl Queries {
    /// Prepares `[Q, dim]` queries, which must be finite, for rows of `row_type`.
    ///
    /// Codes are `round(x / s)` with `s = max|x| / 127`; for many bf16 rows queries are rounded to bf16 where the processor
    /// multiplies that. Cost: a few passes over the queries.
    ///
    /// # Panics
    /// If rows of codes are longer than [`super::MAX_CODED_DIM`].
    pub fn new(row_type: RowType, queries: ArrayView2<'_, f32>) -> Self {
        let (n, dim) = queries.dim();
        let coded = matches!(row_type, RowType::Int8 | RowType::Int4);
        assert!(!coded || dim <= super::MAX_CODED_DIM, "rows of codes are too long for sums of 32 bits");
        let (form, facts) = if coded {
            codes(row_type, queries)
        } else if n > FEW {
            let precision =
                if row_type == RowType::Bf16 && isa_takes_bf16() { Precision::Bf16 } else { Precision::F32 };
            let kept = |x: f32| if precision == Precision::Bf16 { rounded(x) } else { x };
            let facts = queries.rows().into_iter().map(|q| Facts::of(q.iter().map(|&x| (x, f64::from(kept(x))))));
            (Form::Packed(Box::new(PackedMatrix::new(precision, queries.t()))), facts.collect())
        } else {
            let len = dim.next_multiple_of(16);
            let mut numbers = vec![0.0; n * len];
            for (query, numbers) in queries.rows().into_iter().zip(numbers.chunks_mut(len.max(1))) {
                query.iter().zip(numbers).for_each(|(&x, number)| *number = x);
            }
            let facts = queries.rows().into_iter().map(|q| Facts::of(q.iter().map(|&x| (x, f64::from(x)))));
            (Form::Floats { len, numbers }, facts.collect())
        };
        Self { row_type, dim, n, facts, form }
    }

    /// Number of queries.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Numbers of a query.
    pub const fn dim(&self) -> usize {
        self.dim
    }

    /// The rows that they are for.
    pub const fn row_type(&self) -> RowType {
        self.row_type
    }

    /// What a product of codes is to be multiplied with, beside the row's scale; 1 for floats and for a query of zeros.
    pub fn scale(&self, query: usize) -> f64 {
        self.facts[query].scale
    }

    /// Euclidean norm.
    pub fn norm(&self, query: usize) -> f64 {
        self.facts[query].norm
    }

    /// Norm of what rounding took away.
    pub fn lost(&self, query: usize) -> f64 {
        self.facts[query].lost
    }

    /// The codes of a query in the order of a row's bytes, and their sum.
    ///
    /// # Panics
    /// If it was prepared for rows of floats.
    pub fn codes(&self, query: usize) -> (&[i8], i32) {
        let Form::Codes { len, codes, sums, .. } = &self.form else { panic!("queries for floats have no codes") };
        (&codes[query * len..(query + 1) * len], sums[query])
    }

    /// True if products stand row by row (many queries), false if query by query.
    pub(super) const fn by_row(&self) -> bool {
        self.n > FEW
    }
}

impl Facts {
    /// From pairs of a number and what it was rounded to.
    fn of(pairs: impl Iterator<Item = (f32, f64)>) -> Self {
        let (mut norm_sq, mut lost_sq) = (0.0, 0.0);
        for (x, rounded) in pairs {
            let x = f64::from(x);
            norm_sq += x * x;
            lost_sq += (x - rounded) * (x - rounded);
        }
        Self { scale: 1.0, norm: norm_sq.sqrt(), lost: lost_sq.sqrt() }
    }
}

fn codes(row_type: RowType, queries: ArrayView2<'_, f32>) -> (Form, Vec<Facts>) {
    let (n, dim) = queries.dim();
    let per_line = if row_type == RowType::Int4 { 2 * LINE } else { LINE };
    let len = dim.next_multiple_of(per_line);
    let (mut codes, mut facts) = (vec![0i8; n * len], Vec::with_capacity(n));
    for (query, line) in queries.rows().into_iter().zip(codes.chunks_mut(len.max(1))) {
        let max = query.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let scale = f64::from(max / 127.0);
        let code = |x: f32| if scale > 0.0 { (f64::from(x) / scale).round().clamp(-127.0, 127.0) } else { 0.0 };
        for (j, &x) in query.iter().enumerate() {
            line[place(row_type, j)] = code(x) as i8;
        }
        let found = Facts::of(query.iter().map(|&x| (x, scale * code(x))));
        facts.push(Facts { scale: if scale > 0.0 { scale } else { 1.0 }, ..found });
    }
    let sums = codes.chunks(len.max(1)).map(|line| line.iter().map(|&c| i32::from(c)).sum()).collect();
    let tiles = if n > FEW { tiles(&codes, n, len) } else { Vec::new() };
    (Form::Codes { len, codes, sums, tiles }, facts)
}

/// Where number `j` of a row stands once its bytes are unpacked. A line of 4-bit codes unpacks into its 64 low halves, then
/// its 64 high ones.
pub(super) const fn place(row_type: RowType, j: usize) -> usize {
    match row_type {
        RowType::Int4 => j / (2 * LINE) * (2 * LINE) + j % 2 * LINE + j % (2 * LINE) / 2,
        _ => j,
    }
}

/// Right-hand tiles: step by step (four numbers of k), all queries beside each other, four bytes each, padded to tiles of
/// 16 queries.
fn tiles(codes: &[i8], n: usize, len: usize) -> Vec<i8> {
    let width = n.next_multiple_of(16);
    let mut tiles = vec![0; width * len];
    for (query, line) in codes.chunks(len.max(1)).enumerate() {
        for (step, four) in line.chunks_exact(4).enumerate() {
            tiles[(step * width + query) * 4..][..4].copy_from_slice(four);
        }
    }
    tiles
}
