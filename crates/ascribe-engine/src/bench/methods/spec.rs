//! What can be set from outside on a method of the catalogue: the normalisation, the damping, how many queries it explains.

use ascribe_methods::kron::Damping;
use ascribe_methods::normalise::Normalisation;

use super::Spec;

impl Spec {
    /// The same for as many queries as there are.
    #[must_use]
    pub fn for_all_queries(&self) -> Self {
        let mut spec = self.clone();
        match &mut spec {
            Spec::Explicit { queries, .. }
            | Spec::Cg { queries, .. }
            | Spec::Lissa { queries, .. }
            | Spec::DataInf { queries, .. }
            | Spec::Astra { queries, .. }
            | Spec::Magic { queries } => *queries = usize::MAX,
            Spec::Sum { parts, .. } => parts.iter_mut().for_each(|part| *part = part.for_all_queries()),
            _ => {}
        }
        spec
    }

    /// The same with scores divided by something; `None` for a method that has no such option.
    pub fn normalised(&self, by: Normalisation) -> Option<Self> {
        let mut spec = self.clone();
        match &mut spec {
            Spec::Gradient { normalise }
            | Spec::TracIn { normalise }
            | Spec::Explicit { normalise, .. }
            | Spec::Cg { normalise, .. }
            | Spec::Lissa { normalise, .. }
            | Spec::Arnoldi { normalise, .. }
            | Spec::DataInf { normalise, .. }
            | Spec::Astra { normalise, .. }
            | Spec::Trak { normalise, .. }
            | Spec::Kron { normalise, .. } => *normalise = by,
            // Codes and factors of rows are compared by products alone.
            Spec::Projected(settings) if settings.code.is_none() && settings.factors.is_none() => {
                settings.normalise = by;
            }
            Spec::Grass(settings) => settings.normalise = by,
            _ => return None,
        }
        Some(spec)
    }

    /// The damping as a number in the method's own unit (absolute, or relative to a mean eigenvalue); `None` for a method without.
    pub fn damping(&self) -> Option<f64> {
        match self {
            Spec::Explicit { damping, .. }
            | Spec::Cg { damping, .. }
            | Spec::Lissa { damping, .. }
            | Spec::Arnoldi { damping, .. }
            | Spec::Astra { damping, .. } => Some(*damping),
            Spec::DataInf { ridge, .. } | Spec::Trak { ridge, .. } => Some(*ridge),
            Spec::Kron { damping, .. } => number(damping),
            Spec::Sketch(settings) => number(&settings.damping),
            Spec::Projected(settings) => settings.damping_rel,
            Spec::Stored(settings) => Some(settings.damping_rel),
            Spec::Grass(settings) => settings.damping_rel,
            _ => None,
        }
    }

    /// The same with another damping, in the same unit; `None` for a method without one.
    pub fn damped(&self, value: f64) -> Option<Self> {
        self.damping()?;
        let mut spec = self.clone();
        match &mut spec {
            Spec::Explicit { damping, .. }
            | Spec::Cg { damping, .. }
            | Spec::Lissa { damping, .. }
            | Spec::Arnoldi { damping, .. }
            | Spec::Astra { damping, .. } => *damping = value,
            Spec::DataInf { ridge, .. } | Spec::Trak { ridge, .. } => *ridge = value,
            Spec::Kron { damping, .. } => *damping = again(damping, value),
            Spec::Sketch(settings) => settings.damping = again(&settings.damping, value),
            Spec::Projected(settings) => settings.damping_rel = Some(value),
            Spec::Stored(settings) => settings.damping_rel = value,
            Spec::Grass(settings) => settings.damping_rel = Some(value),
            _ => return None,
        }
        Some(spec)
    }
}

fn number(damping: &Damping) -> Option<f64> {
    match damping {
        Damping::Absolute(value) | Damping::Relative(value) => Some(*value),
        _ => None,
    }
}

fn again(damping: &Damping, value: f64) -> Damping {
    match damping {
        Damping::Absolute(_) => Damping::Absolute(value),
        _ => Damping::Relative(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_set_where_there_are_some() {
        let plain = Spec::Gradient { normalise: Normalisation::None };
        assert_eq!(plain.normalised(Normalisation::Cosine), Some(Spec::Gradient { normalise: Normalisation::Cosine }));
        assert_eq!((Spec::Embedding.normalised(Normalisation::Cosine), plain.damped(0.1)), (None, None));
        let normalise = Normalisation::None;
        let cg = Spec::Cg { damping: 0.1, iterations: 3, queries: 2, preconditioned: false, normalise };
        assert_eq!((cg.damping(), cg.damped(0.5).and_then(|s| s.damping())), (Some(0.1), Some(0.5)));
        let all = Spec::Sum { parts: vec![cg, Spec::Bm25], weights: vec![] }.for_all_queries();
        assert!(matches!(&all, Spec::Sum { parts, .. } if matches!(parts[0], Spec::Cg { queries: usize::MAX, .. })));
    }
}
