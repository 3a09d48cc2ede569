//! Integers of 128 bits as PostgreSQL sends a `NUMERIC`: digits of base 10,000, the largest first.

use std::error::Error as StdError;

use postgres::types::private::BytesMut;
use postgres::types::{FromSql, Type};

/// Base of the digits.
const BASE: u128 = 10_000;

/// What a column of that type held.
pub(crate) struct Numeric(pub(crate) u128);

/// Writes number of digits, weight of the first, sign, decimals, digits: each 16 bits, big-endian.
pub(crate) fn write(value: u128, out: &mut BytesMut) {
    let mut digits = Vec::new();
    let mut rest = value;
    while rest > 0 {
        digits.push((rest % BASE) as u16);
        rest /= BASE;
    }
    // Ten digits at most, so no count is cut off.
    let n_digits = digits.len() as u16;
    for word in [n_digits, n_digits.saturating_sub(1), 0, 0].into_iter().chain(digits.into_iter().rev()) {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

fn read(bytes: &[u8]) -> Option<u128> {
    let words: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    let (&[n_digits, weight, sign, _], digits) = words.split_first_chunk::<4>()?;
    let weight = i16::from_be_bytes(weight.to_be_bytes());
    if sign != 0 || digits.len() != usize::from(n_digits) {
        return None;
    }
    let mut value = 0u128;
    // Zeros at the end are not sent; digits past the point are none of an integer.
    for place in 0..=weight {
        let digit = digits.get(usize::from(place.unsigned_abs())).copied().unwrap_or(0);
        value = value.checked_mul(BASE)?.checked_add(digit.into())?;
    }
    let whole = usize::try_from(i32::from(weight) + 1).unwrap_or(0);
    digits.iter().skip(whole).all(|digit| *digit == 0).then_some(value)
}

impl<'a> FromSql<'a> for Numeric {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        read(raw).map(Self).ok_or_else(|| "expected an integer between 0 and 2^128 - 1".into())
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::NUMERIC
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(value: u128) -> Vec<u16> {
        let mut out = BytesMut::new();
        write(value, &mut out);
        out.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect()
    }

    #[test]
    fn as_the_server_writes_them() {
        assert_eq!(words(0), [0, 0, 0, 0]);
        assert_eq!(words(12_345), [2, 1, 0, 0, 1, 2345]);
        // The server leaves zeros at the end away.
        let bytes: Vec<u8> = [1u16, 1, 0, 0, 7].into_iter().flat_map(u16::to_be_bytes).collect();
        assert_eq!(read(&bytes), Some(70_000));
        for bad in [&[1u16, 0, 0x4000, 0, 7][..], &[2, 0, 0, 1, 7, 5], &[2, 0, 0, 0, 7], &[1, 9, 0, 0, 9999], &[1, 0]] {
            let bytes: Vec<u8> = bad.iter().copied().flat_map(u16::to_be_bytes).collect();
            assert_eq!(read(&bytes), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_amount_comes_back(value: u128) {
            let mut out = BytesMut::new();
            write(value, &mut out);
            prop_assert_eq!(read(&out), Some(value));
        }
    }
}
