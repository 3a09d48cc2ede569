//! Whole numbers as JSON has them: `3.0` and `3e0` are the integer 3 to JSON Schema, and to clients whose language has one kind of number.

use std::fmt;

use serde::de::{Deserializer, Error, Unexpected, Visitor};

/// Largest number below which every whole number is a double.
const DOUBLES: f64 = 9_007_199_254_740_992.0;

struct Whole;

impl<'de> Visitor<'de> for Whole {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a whole number from 0")
    }

    fn visit_u64<E: Error>(self, n: u64) -> Result<Self::Value, E> {
        Ok(Some(n))
    }

    fn visit_f64<E: Error>(self, x: f64) -> Result<Self::Value, E> {
        if x.fract() == 0.0 && (0.0..=DOUBLES).contains(&x) {
            return Ok(Some(x as u64));
        }
        Err(E::invalid_value(Unexpected::Float(x), &self))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

/// A number, or null.
pub(super) fn or_null<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<Option<T>, D::Error> {
    let fits = |n| T::try_from(n).map_err(|_| D::Error::invalid_value(Unexpected::Unsigned(n), &"a smaller number"));
    from.deserialize_any(Whole)?.map(fits).transpose()
}

#[cfg(test)]
mod tests {
    use crate::wire::AttributionRequest;

    #[test]
    fn a_fraction_of_nothing_is_whole() {
        let read = |text: &str| serde_json::from_str::<AttributionRequest>(text);
        let request = read(r#"{"example": 3.0, "k": 2e1}"#).unwrap();
        assert_eq!((request.example, request.k), (Some(3), Some(20)));
        let request = read(r#"{"example": null, "completion": "a", "k": 7}"#).unwrap();
        assert_eq!((request.example, request.k), (None, Some(7)));
        for wrong in ["1.5", "-1", "-1.0", "1e300", "\"3\"", "true", "[3]"] {
            let refused = read(&format!(r#"{{"completion": "a", "k": {wrong}}}"#)).unwrap_err().to_string();
            assert!(refused.contains("whole number"), "{wrong}: {refused}");
        }
        assert!(read(r#"{"example": 4294967296}"#).unwrap_err().to_string().contains("4294967296"));
    }
}
