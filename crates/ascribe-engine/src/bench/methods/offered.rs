//! The catalogue as a run sees it: with an option set on all its methods, with an outside encoder.

use ascribe_methods::normalise::Normalisation;

use super::{Method, OutsideSettings, Spec, catalogue};
use crate::bench::setting::Setting;
use crate::error::EngineError;
use crate::outside::Outside;

/// Name of the outside encoder's method.
pub const ENCODER: &str = "encoder";

/// What is set on a run's methods from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Scores are divided by this, of methods that have the option; the others do not run.
    pub normalise: Option<Normalisation>,
    /// Vectors of one more control.
    pub outside: Option<Outside>,
}

/// The option's name, as on the command line.
pub fn word(by: Normalisation) -> &'static str {
    match by {
        Normalisation::None => "none",
        Normalisation::UnitQuery => "unit_query",
        Normalisation::UnitTrain => "unit_train",
        Normalisation::Cosine => "cosine",
        Normalisation::RelatIf => "relat_if",
        Normalisation::Distance => "distance",
    }
}

impl Offer {
    /// Methods of a setting. With a normalisation those that have it, under the name `method@normalisation`.
    ///
    /// # Errors
    /// A method in `asked` that has no such option; an encoder that does not read.
    pub fn methods(&self, setting: &Setting, asked: &[String]) -> Result<Vec<Method>, EngineError> {
        let mut all = catalogue(setting);
        if let Some(from) = &self.outside {
            let settings = OutsideSettings { from: from.clone(), digest: from.digest()? };
            all.push(Method {
                name: ENCODER.into(),
                about: "cosine of an outside encoder's vectors, the examples' mean taken out".into(),
                source: "control".into(),
                spec: Spec::Outside(settings),
            });
        }
        let Some(by) = self.normalise else { return Ok(all) };
        let fitting: Vec<Method> = all
            .iter()
            .filter_map(|m| m.spec.normalised(by).map(|spec| Method { name: self.name(&m.name), spec, ..m.clone() }))
            .collect();
        match asked
            .iter()
            .find(|name| all.iter().any(|m| m.name == **name) && fitting.iter().all(|m| m.name != self.name(name)))
        {
            None => Ok(fitting),
            Some(name) => {
                let names: Vec<&str> =
                    fitting.iter().map(|m| m.name.split_once('@').map_or(m.name.as_str(), |(name, _)| name)).collect();
                let expected = format!("methods with that option: {}", names.join(", "));
                Err(EngineError::Setting { setting: "--normalise", expected, found: name.clone() })
            }
        }
    }

    /// A method's name in this offer.
    pub fn name(&self, method: &str) -> String {
        self.normalise.map_or_else(|| method.to_owned(), |by| format!("{method}@{}", word(by)))
    }
}
