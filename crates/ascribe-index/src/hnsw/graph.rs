//! One graph as bytes: what is searched, and what is kept in a file. Built by `hnsw_rs`, walked by [`super::walk`].
//!
//! ```text
//! sections, each from a multiple of 64 bytes on, little-endian
//!   codes    int8 [n, ⌈dim⌉64]   round(x / scale), x of length 1, zeros behind the last number
//!   base     u32  [n, degree]    neighbours on the lowest layer, nearest first, filled up with 2³² − 1
//!   scale    f32  [n]
//!   norm     f32  [n]            of the row as stored
//!   id       u64  [n]            example, dataset in the high half
//!   row      u32  [n]            row of the store when the index was built, ascending
//!   start    u32  [n]            where the node's higher layers begin in `upper`, in blocks; 2³² − 1 if it has none
//!   level    u8   [n]            highest layer of the node
//!   upper    u32  [blocks, degree / 2]  neighbours on layers 1, 2, …, filled up likewise
//! ```
//!
//! Why not the library's own memory: there a neighbour is three pointers away from its numbers (shared pointer to an edge,
//! to a point, to a vector of its own), behind a lock, and every visit clones a shared pointer into a hash map. Here it is
//! one multiplication away, its codes take a quarter of the bytes, and all of a list's codes are asked for at once.
//! Measured by `ascribe bench search` and written down in `benches/BARS.md`.

use ascribe_linalg::scan::Codes;
use ascribe_store::mmap::Map;
use serde::{Deserialize, Serialize};

/// Not a node.
pub const NONE: u32 = u32::MAX;
/// Sections begin at multiples of this.
const ALIGN: usize = 64;
/// More nodes than this do not fit a walk's entries ([`super::walk`]): 2³¹ − 1.
pub const NODES_MAX: usize = i32::MAX as usize;
/// Layers above the lowest; the library has 16.
pub const LEVELS_MAX: u8 = 32;

/// Sizes of a graph: everything that its bytes do not say themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Nodes.
    pub n_nodes: usize,
    /// Numbers of a point.
    pub point_dim: usize,
    /// Places for neighbours on the lowest layer; half of them on the others. Even.
    pub degree: usize,
    /// Blocks of the higher layers.
    pub n_upper: usize,
    /// Node that a search enters by.
    pub entry: u32,
}

/// Where each section lies.
#[derive(Clone, Copy, Debug)]
struct Places {
    starts: [usize; 9],
    len: usize,
}

impl Shape {
    /// Bytes of a point's codes.
    pub const fn code_bytes(&self) -> usize {
        self.point_dim.next_multiple_of(ALIGN)
    }

    /// Bytes of each section; none if they do not fit a machine word.
    fn sizes(&self) -> Option<[usize; 9]> {
        let n = self.n_nodes;
        let codes = n.checked_mul(self.point_dim.checked_next_multiple_of(ALIGN)?)?;
        let base = n.checked_mul(self.degree)?.checked_mul(4)?;
        let upper = self.n_upper.checked_mul(self.degree / 2)?.checked_mul(4)?;
        let words = n.checked_mul(4)?;
        Some([codes, base, words, words, n.checked_mul(8)?, words, words, n, upper])
    }

    fn places(&self) -> Option<Places> {
        let (mut starts, mut at) = ([0; 9], 0usize);
        for (start, size) in starts.iter_mut().zip(self.sizes()?) {
            *start = at;
            at = at.checked_add(size)?.checked_next_multiple_of(ALIGN)?;
        }
        Some(Places { starts, len: at })
    }
}

/// The bytes: in memory or in a mapped file.
enum Bytes {
    /// From `start` on, which lies on a cache line.
    Owned {
        memory: Vec<u8>,
        start: usize,
    },
    Mapped(Map),
}

/// A graph.
pub struct Graph {
    shape: Shape,
    places: Places,
    bytes: Bytes,
}

/// What is known of a node before the graph is laid out.
pub struct Node<'a> {
    /// Its point, of length 1 (or all zeros).
    pub point: &'a [f32],
    /// Norm of its row.
    pub norm: f32,
    /// Its example, as a word.
    pub id: u64,
    /// Its row in the store.
    pub row: u32,
    /// Its neighbours, layer by layer from the lowest on, nearest first.
    pub layers: Vec<Vec<u32>>,
}

impl Graph {
    /// Lays nodes out. `entry` is a node of the highest layer.
    ///
    /// # Panics
    /// If there are none, or too many.
    pub fn lay(point_dim: usize, degree: usize, entry: u32, nodes: &[Node<'_>]) -> Self {
        assert!(!nodes.is_empty() && nodes.len() <= NODES_MAX, "a graph has nodes, and numbers for them");
        let n_upper = nodes.iter().map(|node| node.layers.len().saturating_sub(1)).sum();
        let shape = Shape { n_nodes: nodes.len(), point_dim, degree: degree.next_multiple_of(2), n_upper, entry };
        let places = shape.places().expect("a graph in memory fits it");
        let mut memory = vec![0u8; places.len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        let body = &mut memory[start..start + places.len];
        let mut block = 0u32;
        for (i, node) in nodes.iter().enumerate() {
            let codes = &mut body[places.starts[0] + i * shape.code_bytes()..][..shape.code_bytes()];
            let scale = put(codes, node.point);
            let mut write = |section: usize, width: usize, at: usize, bytes: &[u8]| {
                body[places.starts[section] + at * width..][..width].copy_from_slice(bytes);
            };
            write(2, 4, i, &scale.to_le_bytes());
            write(3, 4, i, &node.norm.to_le_bytes());
            write(4, 8, i, &node.id.to_le_bytes());
            let levels = node.layers.len().saturating_sub(1);
            write(5, 4, i, &node.row.to_le_bytes());
            write(6, 4, i, &if levels == 0 { NONE } else { block }.to_le_bytes());
            write(7, 1, i, &[levels as u8]);
            let lists = node.layers.iter().enumerate();
            for (layer, list) in lists {
                let (section, places_of, row) = match layer {
                    0 => (1, shape.degree, i),
                    _ => (8, shape.degree / 2, block as usize + layer - 1),
                };
                for place in 0..places_of {
                    let neighbour = list.get(place).copied().unwrap_or(NONE);
                    write(section, 4, row * places_of + place, &neighbour.to_le_bytes());
                }
            }
            if node.layers.is_empty() {
                (0..shape.degree).for_each(|place| write(1, 4, i * shape.degree + place, &NONE.to_le_bytes()));
            }
            block += levels as u32;
        }
        Self { shape, places, bytes: Bytes::Owned { memory, start } }
    }

    /// A graph in a mapped file, looked at whole: after this a walk stays within it.
    ///
    /// # Errors
    /// What was expected, and what was found instead.
    pub fn from_map(shape: Shape, map: Map) -> Result<Self, (&'static str, String)> {
        let places = shape.places().ok_or(("a shape of a graph", format!("{shape:?}")))?;
        if shape.n_nodes == 0 || shape.n_nodes > NODES_MAX || !shape.degree.is_multiple_of(2) || shape.point_dim == 0 {
            return Err(("a shape of a graph", format!("{shape:?}")));
        }
        if map.len() != places.len {
            return Err(("as many bytes as the shape says", format!("{} and {}", places.len, map.len())));
        }
        let graph = Self { shape, places, bytes: Bytes::Mapped(map) };
        graph.check()?;
        Ok(graph)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let Shape { n_nodes, degree, n_upper, entry, .. } = self.shape;
        if entry as usize >= n_nodes {
            return Err(("an entry among the nodes", entry.to_string()));
        }
        if !self.bytes().as_ptr().addr().is_multiple_of(8) {
            return Err(("a map on a whole word", "another".to_owned()));
        }
        let bad = |what, node: usize| Err((what, format!("node {node}")));
        let mut block = 0usize;
        for node in 0..n_nodes {
            let (level, start) = (self.level(node as u32), self.starts()[node]);
            let expected = if level == 0 { NONE } else { u32::try_from(block).unwrap_or(NONE) };
            if level > LEVELS_MAX || start != expected {
                return bad("layers of nodes one after the other", node);
            }
            block += usize::from(level);
            if !(self.scales()[node].is_finite() && self.scales()[node] >= 0.0) {
                return bad("a finite scale", node);
            }
            if !(self.norms()[node].is_finite() && self.norms()[node] >= 0.0) {
                return bad("a finite norm", node);
            }
        }
        if block != n_upper {
            return Err(("blocks of the higher layers", format!("{n_upper}, and {block} of the nodes")));
        }
        for node in 0..n_nodes as u32 {
            for layer in 0..=self.level(node) {
                let list = self.neighbours(node, layer);
                let ok = list.iter().all(|&other| (other as usize) < n_nodes && self.level(other) >= layer);
                if !ok || list.len() > degree {
                    return bad("neighbours that are nodes of the layer", node as usize);
                }
            }
        }
        Ok(())
    }

    /// Sizes.
    pub const fn shape(&self) -> &Shape {
        &self.shape
    }

    /// All bytes, as a file has them.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Owned { memory, start } => &memory[*start..*start + self.places.len],
            Bytes::Mapped(map) => map,
        }
    }

    fn section(&self, i: usize, len: usize) -> &[u8] {
        &self.bytes()[self.places.starts[i]..][..len]
    }

    fn words<T: bytemuck::Pod>(&self, i: usize, n: usize) -> &[T] {
        bytemuck::cast_slice(self.section(i, n * size_of::<T>()))
    }

    /// Codes of all points.
    pub fn codes(&self) -> Codes<'_> {
        let len = self.shape.code_bytes();
        Codes::new(self.section(0, self.shape.n_nodes * len), len)
    }

    /// Scales of the codes.
    pub fn scales(&self) -> &[f32] {
        self.words(2, self.shape.n_nodes)
    }

    /// Norms of the rows.
    pub fn norms(&self) -> &[f32] {
        self.words(3, self.shape.n_nodes)
    }

    /// Examples of the rows, as words.
    pub fn ids(&self) -> &[u64] {
        self.words(4, self.shape.n_nodes)
    }

    /// Rows of the store, as they were when the index was built.
    pub fn rows(&self) -> &[u32] {
        self.words(5, self.shape.n_nodes)
    }

    fn starts(&self) -> &[u32] {
        self.words(6, self.shape.n_nodes)
    }

    /// Highest layer of a node.
    pub fn level(&self, node: u32) -> u8 {
        self.section(7, self.shape.n_nodes)[node as usize]
    }

    /// Neighbours of a node on a layer that it has.
    pub fn neighbours(&self, node: u32, layer: u8) -> &[u32] {
        let (half, node) = (self.shape.degree / 2, node as usize);
        let all = match layer {
            0 => &self.words::<u32>(1, self.shape.n_nodes * self.shape.degree)[node * self.shape.degree..]
                [..self.shape.degree],
            _ => {
                let block = self.starts()[node] as usize + usize::from(layer) - 1;
                &self.words::<u32>(8, self.shape.n_upper * half)[block * half..][..half]
            }
        };
        let n = all.iter().position(|&other| other == NONE).unwrap_or(all.len());
        &all[..n]
    }
}

/// Writes a point's codes; returns their scale.
pub fn put(codes: &mut [u8], point: &[f32]) -> f32 {
    let scale = point.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    for (code, &x) in codes.iter_mut().zip(point) {
        *code = if scale > 0.0 { (x / scale).round().clamp(-127.0, 127.0) as i8 as u8 } else { 0 };
    }
    scale
}
