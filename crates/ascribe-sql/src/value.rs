//! The five kinds of value that both engines keep alike, and rows of them.

use crate::error::SqlError;

/// A value in a statement or a row. No floating-point numbers: what is money or evidence is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// No value.
    Null,
    /// `BIGINT`.
    Int(i64),
    /// `TEXT`.
    Text(String),
    /// `BLOB`, `BYTEA`.
    Bytes(Vec<u8>),
    /// `AMOUNT`: 16 bytes, big-endian, on SQLite; `NUMERIC(39,0)` on PostgreSQL. Both order as numbers do.
    Amount(u128),
}

impl Value {
    /// Name of its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "no value",
            Self::Int(_) => "an integer",
            Self::Text(_) => "text",
            Self::Bytes(_) => "bytes",
            Self::Amount(_) => "an amount",
        }
    }
}

impl From<u128> for Value {
    fn from(value: u128) -> Self {
        Self::Amount(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Int(value.into())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Int(value.into())
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}

impl<const N: usize> From<[u8; N]> for Value {
    fn from(value: [u8; N]) -> Self {
        Self::Bytes(value.to_vec())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row of a result, columns by position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row(pub Vec<Value>);

impl Row {
    /// The value in `column`.
    ///
    /// # Panics
    /// If the statement selects fewer columns: a fault of the program, not of the data.
    pub fn value(&self, column: usize) -> &Value {
        &self.0[column]
    }

    /// The integer in `column`.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn int(&self, column: usize) -> Result<i64, SqlError> {
        match self.value(column) {
            Value::Int(value) => Ok(*value),
            other => Err(wrong(column, "an integer", other)),
        }
    }

    /// The integer in `column`, which is not negative.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn uint(&self, column: usize) -> Result<u64, SqlError> {
        let value = self.int(column)?;
        u64::try_from(value).map_err(|_| SqlError::Column {
            column,
            expected: "an integer that is not negative",
            found: value.to_string(),
        })
    }

    /// The text in `column`.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn text(&self, column: usize) -> Result<&str, SqlError> {
        match self.value(column) {
            Value::Text(value) => Ok(value),
            other => Err(wrong(column, "text", other)),
        }
    }

    /// The bytes in `column`.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn bytes(&self, column: usize) -> Result<&[u8], SqlError> {
        match self.value(column) {
            Value::Bytes(value) => Ok(value),
            other => Err(wrong(column, "bytes", other)),
        }
    }

    /// Exactly `N` bytes in `column`.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn array<const N: usize>(&self, column: usize) -> Result<[u8; N], SqlError> {
        let bytes = self.bytes(column)?;
        bytes.try_into().map_err(|_| SqlError::Column {
            column,
            expected: "bytes of the right number",
            found: format!("{} bytes, not {N}", bytes.len()),
        })
    }

    /// The amount in `column`.
    ///
    /// # Errors
    /// [`SqlError::Column`].
    pub fn amount(&self, column: usize) -> Result<u128, SqlError> {
        match self.value(column) {
            Value::Amount(value) => Ok(*value),
            // SQLite knows no more than bytes.
            Value::Bytes(_) => self.array(column).map(u128::from_be_bytes),
            other => Err(wrong(column, "an amount", other)),
        }
    }

    /// True when `column` holds no value.
    pub fn is_null(&self, column: usize) -> bool {
        *self.value(column) == Value::Null
    }
}

fn wrong(column: usize, expected: &'static str, found: &Value) -> SqlError {
    SqlError::Column { column, expected, found: found.kind().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_of_another_kind_is_named() {
        let row = Row(vec![Value::Int(-3), Value::Text("a".into()), Value::Null, vec![1, 2].into()]);
        assert_eq!(row.int(0).unwrap(), -3);
        let message = |result: Result<(), SqlError>| result.unwrap_err().to_string();
        assert_eq!(message(row.uint(0).map(drop)), "column 0: expected an integer that is not negative, found -3");
        assert_eq!(message(row.int(1).map(drop)), "column 1: expected an integer, found text");
        assert_eq!(message(row.text(2).map(drop)), "column 2: expected text, found no value");
        assert_eq!(row.array::<2>(3).unwrap(), [1, 2]);
        assert!(row.array::<3>(3).is_err() && row.is_null(2));
        let amounts = Row(vec![u128::MAX.into(), 7u128.to_be_bytes().into()]);
        assert_eq!((amounts.amount(0).unwrap(), amounts.amount(1).unwrap()), (u128::MAX, 7));
        assert!(row.amount(0).is_err() && row.amount(3).is_err());
    }
}
