//! One block of images and several vectors through the network: values, their tangents along each vector, and adjoints of
//! the tangents on the way back. Sizes, sums over blocks and what the products are for stand outside.
//!
//! Tangents and adjoints of a value lie as `[images, vectors, numbers]`, so a dense layer is one product `[B, I]·[I, R·O]` with
//! the vectors and one `[B·R, I]·[I, O]` with the weights.

use ascribe_linalg::{Threads, gemm};
use ndarray::{ArrayView2, s};

use super::Curvature;
use crate::ops::{matrix, matrix_mut};
use crate::vision::Classifier;
use crate::vision::config::Pooling;
use crate::vision::data::ImageSet;
use crate::vision::layers::LinearLayer;
use crate::vision::loss::Objective;
use crate::vision::network::{Node, Op};
use crate::vision::ops::{Conv, Pool};
use crate::vision::pass::{Rows, Sink, Workspace};

/// Vectors in layer form, layer by layer: `[R, n_out, n_in]` each.
#[derive(Clone, Debug)]
pub(in crate::vision) struct Vectors {
    pub n_vectors: usize,
    pub layers: Vec<Vec<f32>>,
}

impl Vectors {
    /// Takes the rows of `v` `[R, P]` apart.
    pub fn gather(model: &Classifier, v: ArrayView2<'_, f32>) -> Self {
        let mut start = 0;
        let part = |layer: LinearLayer| {
            let columns = start..start + layer.len();
            start = columns.end;
            v.slice(s![.., columns]).iter().copied().collect()
        };
        Self { n_vectors: v.nrows(), layers: model.linear_layers().into_iter().map(part).collect() }
    }

    /// As many zeros.
    pub fn zeros(&self) -> Self {
        let layers = self.layers.iter().map(|layer| vec![0.0; layer.len()]).collect();
        Self { n_vectors: self.n_vectors, layers }
    }

    /// Length of one vector.
    pub fn dim(&self) -> usize {
        self.layers.iter().map(Vec::len).sum::<usize>() / self.n_vectors.max(1)
    }

    /// Adds to rows `[R, P]`.
    pub fn add_to(&self, rows: &mut [f64]) {
        let (dim, mut start) = (self.dim(), 0);
        for layer in &self.layers {
            let len = layer.len() / self.n_vectors;
            for (part, row) in layer.chunks_exact(len).zip(rows.chunks_exact_mut(dim)) {
                row[start..start + len].iter_mut().zip(part).for_each(|(sum, &x)| *sum += f64::from(x));
            }
            start += len;
        }
    }
}

/// The gradients of values are all that is wanted of a pass.
struct Values;

impl Sink for Values {
    fn wants(&self, _: usize) -> bool {
        true
    }
    fn linear(&mut self, _: usize, _: usize, _: Rows<'_>) {}
    fn norm(&mut self, _: usize, _: usize, _: &[f32], _: &[f32]) {}
}

/// Memory of one worker.
pub(in crate::vision) struct Dual<'m> {
    model: &'m Classifier,
    layers: Vec<LinearLayer>,
    capacity: usize,
    n_vectors: usize,
    ws: Workspace,
    /// `[B, R, len]` of every value; the image has none.
    tangents: Vec<Vec<f32>>,
    adjoints: Vec<Vec<f32>>,
    /// Inputs of a layer with the constant of its bias: `[B, n_in]`, or `[n_in, positions]` of one image.
    inputs: Vec<f32>,
    /// `[B, R]`.
    slopes: Vec<f64>,
}

impl<'m> Dual<'m> {
    /// For up to `capacity` images and exactly `n_vectors` vectors.
    pub fn new(model: &'m Classifier, capacity: usize, n_vectors: usize) -> Self {
        let layers = model.linear_layers();
        let mut tangents: Vec<Vec<f32>> =
            model.network.values.iter().map(|len| vec![0.0; capacity * n_vectors * len]).collect();
        tangents[0] = vec![];
        let longest = layers.iter().map(|l| l.n_in * if l.positions == 1 { capacity } else { l.positions }).max();
        Self {
            model,
            capacity,
            n_vectors,
            ws: Workspace::new(model, capacity),
            adjoints: tangents.clone(),
            tangents,
            inputs: vec![0.0; longest.unwrap_or(0).max(1)],
            slopes: vec![0.0; capacity * n_vectors],
            layers,
        }
    }

    /// Goes on with other weights of the same network.
    pub fn look_at(&mut self, model: &'m Classifier) {
        self.model = model;
    }

    /// Images of one call at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tangents of the logits, `[B, R, C]`.
    pub fn tangent(&mut self, set: &ImageSet, ids: &[u32], v: &Vectors) -> &[f32] {
        let model = self.model;
        model.forward(set, ids, &mut self.ws);
        for (i, node) in model.network.nodes.iter().enumerate() {
            self.node_tangent(i, node, ids.len(), v);
        }
        let last = self.tangents.len() - 1;
        &self.tangents[last][..ids.len() * self.n_vectors * model.network.n_classes()]
    }

    fn node_tangent(&mut self, i: usize, node: &Node, n: usize, v: &Vectors) {
        let (model, r) = (self.model, self.n_vectors);
        let sizes = &model.network.values;
        let (x_len, y_len) = (sizes[node.from], sizes[node.to]);
        let (before, after) = self.tangents.split_at_mut(node.to);
        let t_y = &mut after[0][..n * r * y_len];
        if let Op::Relu = node.op {
            return mask(&self.ws.values[node.to][..n * y_len], t_y, y_len, r);
        }
        let t_x = if node.from == 0 { &[][..] } else { &before[node.from][..n * r * x_len] };
        let x = &self.ws.values[node.from][..n * x_len];
        match &node.op {
            Op::Dense { fan_in, fan_out, weight, .. } => {
                let (layer, moved) = at_node(&self.layers, v, i);
                with_constant(x, layer, &mut self.inputs);
                let inputs = matrix(&self.inputs, n, layer.n_in);
                let moved = matrix(moved, r * fan_out, layer.n_in);
                gemm(1.0, inputs, moved.t(), 0.0, matrix_mut(t_y, n, r * fan_out), Threads::One);
                if !t_x.is_empty() {
                    let w = matrix(&model.parameters[weight.clone()], *fan_out, *fan_in);
                    let t_x = matrix(t_x, n * r, *fan_in);
                    gemm(1.0, t_x, w.t(), 1.0, matrix_mut(t_y, n * r, *fan_out), Threads::One);
                }
            }
            Op::Conv { conv, weight, .. } => {
                let (layer, moved) = at_node(&self.layers, v, i);
                let (o, p, t) = (conv.channels_out, conv.patch(), conv.area());
                let w = matrix(&model.parameters[weight.clone()], o, p);
                for (e, (x, t_y)) in x.chunks_exact(x_len).zip(t_y.chunks_exact_mut(r * y_len)).enumerate() {
                    unfold_with_constant(conv, x, layer, &mut self.inputs);
                    let inputs = matrix(&self.inputs, layer.n_in, t);
                    let moved = matrix(moved, r * o, layer.n_in);
                    gemm(1.0, moved, inputs, 0.0, matrix_mut(t_y, r * o, t), Threads::One);
                    let t_x = t_x.get(e * r * x_len..(e + 1) * r * x_len).unwrap_or(&[]);
                    for (t_x, t_y) in t_x.chunks_exact(x_len).zip(t_y.chunks_exact_mut(y_len)) {
                        conv.unfold(t_x, &mut self.ws.patches);
                        gemm(1.0, w, matrix(&self.ws.patches, p, t), 1.0, matrix_mut(t_y, o, t), Threads::One);
                    }
                }
            }
            Op::Norm { area, .. } => scale_channels(&model.frozen(node).scale, *area, t_x, t_y),
            Op::Pool(pool) => each(pool, x, x_len, |e, maxima| {
                let rows = e * r..(e + 1) * r;
                for row in rows {
                    let t_x = &t_x[row * x_len..(row + 1) * x_len];
                    let t_y = &mut t_y[row * y_len..(row + 1) * y_len];
                    match maxima {
                        Some(maxima) => t_y.iter_mut().zip(maxima).for_each(|(t_y, &place)| *t_y = t_x[place]),
                        None => pool.forward(t_x, t_y),
                    }
                }
            }),
            Op::Add { plus } => {
                let sum = t_x.iter().zip(&before[*plus]);
                t_y.iter_mut().zip(sum).for_each(|(t_y, (a, b))| *t_y = a + b);
            }
            Op::Scale(factor) => t_y.iter_mut().zip(t_x).for_each(|(t_y, &t)| *t_y = factor * t),
            Op::Relu => {}
        }
    }

    /// Adds the products of the last [`Self::tangent`]'s images to `out`: `Σ_i w_i·H_i v`, all weights 1 if `None`. Returns
    /// `[B, R]`: the derivative of each image's cross-entropy along each vector, without its weight.
    pub fn adjoint(
        &mut self,
        set: &ImageSet,
        ids: &[u32],
        weights: Option<&[f32]>,
        kind: Curvature,
        v: &Vectors,
        out: &mut Vectors,
    ) -> &[f64] {
        let (model, n) = (self.model, ids.len());
        self.head(set, ids, weights);
        if kind == Curvature::Hessian {
            model.backward(n, &mut self.ws, &mut Values);
        }
        let last = self.adjoints.len() - 1;
        self.adjoints[..last].iter_mut().for_each(|adjoint| adjoint.fill(0.0));
        for (i, node) in model.network.nodes.iter().enumerate().rev() {
            match &node.op {
                Op::Dense { .. } => self.dense_adjoint(i, node, n, kind, v, out),
                Op::Conv { .. } => self.conv_adjoint(i, node, n, kind, v, out),
                _ => self.plain_adjoint(node, n),
            }
        }
        &self.slopes[..n * self.n_vectors]
    }

    /// Adjoints of the logits, `w·(diag p − p pᵀ)ż`, and, for the Hessian's second path, `w·(p − e_y)` in the workspace.
    ///
    /// With `ζ_c = ż_c − ż_y` and `m = Σ_{c≠y} p_c ζ_c` they are `p_c(ζ_c − m)`, where nothing cancels when the model is
    /// sure; `m` is also the derivative of the loss along the vector.
    fn head(&mut self, set: &ImageSet, ids: &[u32], weights: Option<&[f32]>) {
        let (r, c, last) = (self.n_vectors, self.model.network.n_classes(), self.tangents.len() - 1);
        self.model.measure(set, ids, 0, Objective::LOSS, &mut self.ws);
        let mut p = vec![0.0; c];
        for (e, &id) in ids.iter().enumerate() {
            let (class, weight) = (set.labels()[id as usize] as usize, weights.map_or(1.0, |w| f64::from(w[e])));
            let d = &mut self.ws.gradients[last][e * c..(e + 1) * c];
            p.iter_mut().zip(&*d).for_each(|(p, &d)| *p = f64::from(d));
            p[class] += 1.0;
            for row in e * r..(e + 1) * r {
                let moved = &self.tangents[last][row * c..(row + 1) * c];
                let zeta = |j: usize| f64::from(moved[j]) - f64::from(moved[class]);
                let m: f64 = (0..c).filter(|&j| j != class).map(|j| p[j] * zeta(j)).sum();
                let adjoint = &mut self.adjoints[last][row * c..(row + 1) * c];
                adjoint.iter_mut().enumerate().for_each(|(j, a)| *a = (weight * p[j] * (zeta(j) - m)) as f32);
                self.slopes[row] = m;
            }
            d.iter_mut().for_each(|d| *d = (weight * f64::from(*d)) as f32);
        }
    }

    fn dense_adjoint(&mut self, i: usize, node: &Node, n: usize, kind: Curvature, v: &Vectors, out: &mut Vectors) {
        let Op::Dense { fan_in, fan_out, weight, .. } = &node.op else { return };
        let (r, i_len, o) = (self.n_vectors, *fan_in, *fan_out);
        let (layer, moved) = at_node(&self.layers, v, i);
        let out = &mut out.layers[place(&self.layers, i)];
        let (below, above) = self.adjoints.split_at_mut(node.to);
        let u = &above[0][..n * r * o];
        with_constant(&self.ws.values[node.from][..n * i_len], layer, &mut self.inputs);
        let inputs = matrix(&self.inputs, n, layer.n_in);
        gemm(1.0, matrix(u, n, r * o).t(), inputs, 1.0, matrix_mut(out, r * o, layer.n_in), Threads::One);
        if node.from == 0 {
            return;
        }
        let w = matrix(&self.model.parameters[weight.clone()], o, i_len);
        let a_x = &mut below[node.from];
        gemm(1.0, matrix(u, n * r, o), w, 1.0, matrix_mut(a_x, n * r, i_len), Threads::One);
        if kind == Curvature::GaussNewton {
            return;
        }
        // R{δ ⊗ x} also has δ ⊗ ẋ, and R{Wᵀδ} also has Vᵀδ.
        let delta = matrix(&self.ws.gradients[node.to], n, o);
        let t_x = matrix(&self.tangents[node.from], n, r * i_len);
        let mut a_x = matrix_mut(a_x, n, r * i_len);
        let len = layer.len();
        for k in 0..r {
            let columns = k * i_len..(k + 1) * i_len;
            let mut out = matrix_mut(&mut out[k * len..(k + 1) * len], o, layer.n_in);
            let out = out.slice_mut(s![.., ..i_len]);
            gemm(1.0, delta.t(), t_x.slice(s![.., columns.clone()]), 1.0, out, Threads::One);
            let moved = matrix(&moved[k * len..(k + 1) * len], o, layer.n_in);
            let a_x = a_x.slice_mut(s![.., columns]);
            gemm(1.0, delta, moved.slice(s![.., ..i_len]), 1.0, a_x, Threads::One);
        }
    }

    fn conv_adjoint(&mut self, i: usize, node: &Node, n: usize, kind: Curvature, v: &Vectors, out: &mut Vectors) {
        let Op::Conv { conv, weight, .. } = &node.op else { return };
        let sizes = &self.model.network.values;
        let (r, x_len, y_len) = (self.n_vectors, sizes[node.from], sizes[node.to]);
        let (o, p, t) = (conv.channels_out, conv.patch(), conv.area());
        let (layer, moved) = at_node(&self.layers, v, i);
        let (len, n_in) = (layer.len(), layer.n_in);
        let out = &mut out.layers[place(&self.layers, i)];
        let (below, above) = self.adjoints.split_at_mut(node.to);
        let w = matrix(&self.model.parameters[weight.clone()], o, p);
        let Workspace { values, gradients, patches, d_patches, .. } = &mut self.ws;
        for e in 0..n {
            let u = &above[0][e * r * y_len..(e + 1) * r * y_len];
            unfold_with_constant(conv, &values[node.from][e * x_len..(e + 1) * x_len], layer, &mut self.inputs);
            let inputs = matrix(&self.inputs, n_in, t);
            gemm(1.0, matrix(u, r * o, t), inputs.t(), 1.0, matrix_mut(out, r * o, n_in), Threads::One);
            if node.from == 0 {
                continue;
            }
            let delta = matrix(&gradients[node.to][e * y_len..], o, t);
            for k in 0..r {
                let row = e * r + k;
                let u = matrix(&u[k * y_len..], o, t);
                gemm(1.0, w.t(), u, 0.0, matrix_mut(d_patches, p, t), Threads::One);
                if kind == Curvature::Hessian {
                    conv.unfold(&self.tangents[node.from][row * x_len..(row + 1) * x_len], patches);
                    let mut out = matrix_mut(&mut out[k * len..(k + 1) * len], o, n_in);
                    let out = out.slice_mut(s![.., ..p]);
                    gemm(1.0, delta, matrix(patches, p, t).t(), 1.0, out, Threads::One);
                    let moved = matrix(&moved[k * len..(k + 1) * len], o, n_in);
                    let moved = moved.slice(s![.., ..p]);
                    gemm(1.0, moved.t(), delta, 1.0, matrix_mut(d_patches, p, t), Threads::One);
                }
                conv.fold_add(d_patches, &mut below[node.from][row * x_len..(row + 1) * x_len]);
            }
        }
    }

    /// Operators without weights that move: their adjoints are those of linear maps.
    fn plain_adjoint(&mut self, node: &Node, n: usize) {
        let (model, r) = (self.model, self.n_vectors);
        let sizes = &model.network.values;
        let (x_len, y_len) = (sizes[node.from], sizes[node.to]);
        let (below, above) = self.adjoints.split_at_mut(node.to);
        let u = &mut above[0][..n * r * y_len];
        if let Op::Relu = node.op {
            return mask(&self.ws.values[node.to][..n * y_len], u, y_len, r);
        }
        let u = &*u;
        match &node.op {
            Op::Norm { area, .. } => {
                let mut scaled = vec![0.0; u.len()];
                scale_channels(&model.frozen(node).scale, *area, u, &mut scaled);
                below[node.from].iter_mut().zip(scaled).for_each(|(a, u)| *a += u);
            }
            Op::Pool(pool) => {
                let x = &self.ws.values[node.from][..n * x_len];
                let a_x = &mut below[node.from];
                each(pool, x, x_len, |e, maxima| {
                    for row in e * r..(e + 1) * r {
                        let a_x = &mut a_x[row * x_len..(row + 1) * x_len];
                        let u = &u[row * y_len..(row + 1) * y_len];
                        match maxima {
                            Some(maxima) => maxima.iter().zip(u).for_each(|(&place, u)| a_x[place] += u),
                            // A mean's gradient does not look at its input.
                            None => pool.backward(u, u, a_x),
                        }
                    }
                });
            }
            Op::Add { plus } => {
                below[node.from].iter_mut().zip(u).for_each(|(a, u)| *a += u);
                below[*plus].iter_mut().zip(u).for_each(|(a, u)| *a += u);
            }
            Op::Scale(factor) => below[node.from].iter_mut().zip(u).for_each(|(a, u)| *a += factor * u),
            Op::Conv { .. } | Op::Dense { .. } | Op::Relu => {}
        }
    }
}

/// The layer of a node among the layers.
fn place(layers: &[LinearLayer], node: usize) -> usize {
    layers.iter().position(|layer| layer.node == node).expect("every layer with weights is listed")
}

fn at_node<'a>(layers: &'a [LinearLayer], v: &'a Vectors, node: usize) -> (&'a LinearLayer, &'a [f32]) {
    let l = place(layers, node);
    (&layers[l], &v.layers[l])
}

/// `[n, I]` → `[n, n_in]`.
fn with_constant(x: &[f32], layer: &LinearLayer, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(layer.fan_in()).zip(out.chunks_exact_mut(layer.n_in)) {
        out[..x.len()].copy_from_slice(x);
        out[x.len()..].fill(1.0);
    }
}

/// Patches `[I, positions]` with a line of ones for the bias.
fn unfold_with_constant(conv: &Conv, x: &[f32], layer: &LinearLayer, out: &mut [f32]) {
    let t = conv.area();
    conv.unfold(x, out);
    out[layer.fan_in() * t..layer.n_in * t].fill(1.0);
}

/// Zeros where the rectifier's output is zero, for each of `r` rows per image.
fn mask(y: &[f32], moved: &mut [f32], len: usize, r: usize) {
    for (y, moved) in y.chunks_exact(len).zip(moved.chunks_exact_mut(r * len)) {
        for moved in moved.chunks_exact_mut(len) {
            moved.iter_mut().zip(y).for_each(|(m, &y)| *m = if y > 0.0 { *m } else { 0.0 });
        }
    }
}

/// `y ← scale·x` per channel.
fn scale_channels(scale: &[f32], area: usize, x: &[f32], y: &mut [f32]) {
    let planes = x.chunks_exact(area).zip(y.chunks_exact_mut(area));
    for ((x, y), &scale) in planes.zip(scale.iter().cycle()) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = scale * x);
    }
}

/// Calls `work` with every image's places of maxima, nothing for means.
fn each(pool: &Pool, x: &[f32], len: usize, mut work: impl FnMut(usize, Option<&[usize]>)) {
    let mut maxima = Vec::new();
    for (e, x) in x.chunks_exact(len).enumerate() {
        if pool.kind == Pooling::Max {
            pool.maxima(x, &mut maxima);
            work(e, Some(&maxima));
        } else {
            work(e, None);
        }
    }
}
