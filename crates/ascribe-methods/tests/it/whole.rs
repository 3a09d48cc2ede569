//! Operators that have their matrix as a whole.

use ascribe_core::NoProgress;
use ascribe_methods::MethodError;
use ascribe_methods::inverse::{Explicit, ExplicitOptions, InverseCurvature};
use ascribe_methods::source::Operator;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, arr2};

use crate::softmax::Dense;

/// An operator that has its matrix, or says so.
struct Whole(Dense, Array2<f64>);

impl Operator for Whole {
    fn dim(&self) -> usize {
        self.0.dim()
    }

    fn n_examples(&self) -> usize {
        self.0.n_examples()
    }

    fn apply(&self, _: Option<&[u32]>, _: ArrayView2<'_, f32>, _: ArrayViewMut2<'_, f32>) -> Result<(), MethodError> {
        unreachable!("the matrix is there")
    }

    fn whole(&self) -> Result<Option<Array2<f64>>, MethodError> {
        Ok(Some(self.1.clone()))
    }
}

#[test]
fn a_matrix_that_is_there_is_not_formed() {
    let h = arr2(&[[2.0, 1.0], [1.0, 2.0]]);
    let vectors = arr2(&[[8.0f32, 0.0], [0.0, 16.0]]);
    let options = ExplicitOptions { damping: 1.0, ..Default::default() };
    let form = |operator: &dyn Operator| Explicit::form(operator, &options, &NoProgress);
    let formed = form(&Dense::new(h.clone())).unwrap().solve(vectors.view()).unwrap();
    let given = form(&Whole(Dense::new(h.clone()), h.clone())).unwrap().solve(vectors.view()).unwrap();
    assert_eq!(formed, given);
    let refused = |matrix| form(&Whole(Dense::new(h.clone()), matrix)).err().unwrap().to_string();
    assert!(refused(Array2::zeros((3, 3))).contains("whole curvature matrix"));
    assert!(!refused(arr2(&[[2.0, f64::NAN], [1.0, 2.0]])).is_empty());
}
