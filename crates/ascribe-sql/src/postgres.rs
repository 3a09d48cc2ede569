//! PostgreSQL, a server. The connection is not encrypted: addresses beyond this machine must say `sslmode=disable`.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use postgres::binary_copy::BinaryCopyInWriter;
use postgres::config::{Host, SslMode};
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator as _;
use postgres::types::private::BytesMut;
use postgres::types::{IsNull, ToSql, Type};
use postgres::{Client, Config, NoTls, Statement};

use crate::dialect::Engine;
use crate::driver::{Driver, EachRow};
use crate::error::SqlError;
use crate::numeric::{self, Numeric};
use crate::value::{Row, Value};

/// How long a server may take to answer a connection.
const CONNECT_WAIT: Duration = Duration::from_secs(10);

pub(crate) struct Postgres {
    client: Client,
    statements: HashMap<String, Statement>,
}

impl Postgres {
    pub(crate) fn open(url: &str) -> Result<Self, SqlError> {
        let mut config: Config =
            url.parse().map_err(|_| SqlError::Address { found: without_password(url), plain: false })?;
        let says_plain = url.contains("sslmode=disable");
        if !says_plain && !config.get_hosts().iter().all(is_here) {
            return Err(SqlError::Address { found: without_password(url), plain: true });
        }
        config.ssl_mode(SslMode::Disable).connect_timeout(CONNECT_WAIT).application_name("ascribe");
        let client = config
            .connect(NoTls)
            .map_err(|error| SqlError::Open { address: without_password(url), reason: with_sources(&error) })?;
        Ok(Self { client, statements: HashMap::new() })
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement, SqlError> {
        if let Some(statement) = self.statements.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(&Engine::Postgres.spell(sql)).map_err(|error| refusal(&error, sql))?;
        self.statements.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }
}

impl Driver for Postgres {
    fn execute(&mut self, sql: &str, params: &[Value]) -> Result<u64, SqlError> {
        let statement = self.prepare(sql)?;
        self.client.execute(&statement, &bound(params)).map_err(|error| refusal(&error, sql))
    }

    fn query_each(&mut self, sql: &str, params: &[Value], each: &mut EachRow<'_>) -> Result<(), SqlError> {
        let statement = self.prepare(sql)?;
        let refuse = |error: postgres::Error| refusal(&error, sql);
        let mut rows = self.client.query_raw(&statement, params).map_err(refuse)?;
        while let Some(row) = rows.next().map_err(refuse)? {
            let values: Result<Vec<Value>, SqlError> = (0..row.len()).map(|i| from_postgres(&row, i)).collect();
            each(Row(values?))?;
        }
        Ok(())
    }

    fn run_raw(&mut self, sql: &str) -> Result<(), SqlError> {
        self.client.batch_execute(sql).map_err(|error| refusal(&error, sql))
    }

    fn begin(&mut self) -> Result<(), SqlError> {
        self.run_raw("BEGIN ISOLATION LEVEL SERIALIZABLE")
    }

    fn insert_many(
        &mut self,
        table: &str,
        columns: &[&str],
        rows: &mut dyn Iterator<Item = Vec<Value>>,
    ) -> Result<u64, SqlError> {
        let names = columns.join(", ");
        let like = self.prepare(&format!("SELECT {names} FROM {table} LIMIT 0"))?;
        let types: Vec<Type> = like.columns().iter().map(|column| column.type_().clone()).collect();
        let sql = format!("COPY {table} ({names}) FROM STDIN BINARY");
        let refuse = |error: postgres::Error| refusal(&error, &sql);
        let mut writer = BinaryCopyInWriter::new(self.client.copy_in(&sql).map_err(refuse)?, &types);
        for row in rows {
            writer.write(&bound(&row)).map_err(refuse)?;
        }
        writer.finish().map_err(refuse)
    }
}

/// True for a socket or an address of this machine.
fn is_here(host: &Host) -> bool {
    match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            let loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
            name == "localhost" || loopback || *name == Ipv4Addr::LOCALHOST.to_string()
        }
    }
}

/// An address as it may be shown.
pub(crate) fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(an address in another form)".to_owned() };
    let rest = rest.split('?').next().unwrap_or_default();
    let shown = match rest.rsplit_once('@') {
        Some((login, host)) => format!("{}@{host}", login.split(':').next().unwrap_or_default()),
        None => rest.to_owned(),
    };
    format!("{scheme}://{shown}")
}

impl ToSql for Value {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match (self, ty) {
            (Self::Null, _) => Ok(IsNull::Yes),
            (Self::Int(value), &Type::INT4) => i32::try_from(*value)?.to_sql(ty, out),
            (Self::Int(value), &Type::INT8) => value.to_sql(ty, out),
            (Self::Text(value), &Type::TEXT | &Type::VARCHAR) => value.to_sql(ty, out),
            (Self::Bytes(value), &Type::BYTEA) => value.to_sql(ty, out),
            (Self::Amount(value), &Type::NUMERIC) => {
                numeric::write(*value, out);
                Ok(IsNull::No)
            }
            (value, ty) => Err(format!("expected a value of type {ty}, found {}", value.kind()).into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        // Which type goes with which value is checked value by value, above.
        true
    }

    postgres::types::to_sql_checked!();
}

fn bound(params: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    params.iter().map(|param| param as &(dyn ToSql + Sync)).collect()
}

fn from_postgres(row: &postgres::Row, column: usize) -> Result<Value, SqlError> {
    let ty = row.columns()[column].type_();
    let value = match *ty {
        Type::INT8 => row.try_get::<_, Option<i64>>(column).map(Value::from),
        Type::INT4 => row.try_get::<_, Option<i32>>(column).map(|value| value.map(i64::from).into()),
        Type::BOOL => row.try_get::<_, Option<bool>>(column).map(Value::from),
        Type::TEXT | Type::VARCHAR => row.try_get::<_, Option<String>>(column).map(Value::from),
        Type::BYTEA => row.try_get::<_, Option<Vec<u8>>>(column).map(Value::from),
        Type::NUMERIC => {
            row.try_get::<_, Option<Numeric>>(column).map(|value| value.map(|Numeric(value)| value).into())
        }
        _ => {
            let found = format!("{ty} (hint: cast it, as in CAST(sum(n) AS BIGINT))");
            return Err(SqlError::Column { column, expected: "BIGINT, TEXT, BYTEA or NUMERIC", found });
        }
    };
    value.map_err(|error| SqlError::Column { column, expected: "a value of its type", found: error.to_string() })
}

/// The server's own words, which the driver keeps as a source of its error.
fn with_sources(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

fn refusal(error: &postgres::Error, sql: &str) -> SqlError {
    let (engine, reason) = (Engine::Postgres, with_sources(error));
    match error.code() {
        // A table or an extension that another program made first is one more name that exists already.
        Some(code)
            if [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT].contains(code) =>
        {
            SqlError::Duplicate { engine, reason }
        }
        Some(code) if code.code().starts_with("23") => SqlError::Constraint { engine, reason },
        Some(code) if [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code) => {
            SqlError::Conflict { engine, reason }
        }
        _ => SqlError::Statement { engine, reason, statement: sql.to_owned() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(without_password("postgres://me:secret@db:5432/x?password=secret"), "postgres://me@db:5432/x");
        assert_eq!(without_password("host=db password=secret"), "(an address in another form)");
    }

    #[test]
    fn bytes_cross_a_network_only_when_somebody_said_so() {
        let Err(error) = Postgres::open("postgres://me:secret@db.example/x") else { panic!("it was opened") };
        let message = error.to_string();
        assert!(message.contains("sslmode=disable") && !message.contains("secret"), "{message}");
    }
}
