//! The promises, each over any engine.

use ascribe_sql::{Migration, SqlError, Value};

use crate::Place;

const SCHEMA: [Migration; 2] = [
    Migration {
        version: 1,
        statements: &["CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT NOT NULL, body BLOB, \
                       CHECK (id >= 0))"],
    },
    Migration {
        version: 2,
        statements: &[
            "CREATE TABLE parts (thing BIGINT NOT NULL REFERENCES things (id), n BIGINT NOT NULL)",
            "CREATE UNIQUE INDEX parts_key ON parts (thing, n)",
        ],
    },
];

fn insert(id: i64, name: &str) -> (&'static str, [Value; 2]) {
    ("INSERT INTO things (id, name) VALUES (?1, ?2)", [id.into(), name.into()])
}

pub fn values_come_back(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let rows: [(i64, &str, Value); 4] = [
        (0, "", Value::Null),
        (i64::MAX, "天 ' \" ; \\ \u{1F600}", vec![0, 255, 39].into()),
        (1, "?1 $1 :a", Value::Bytes(vec![])),
        (2, "a\nb", vec![7; 100_000].into()),
    ];
    for (id, name, body) in &rows {
        let n = db.execute("INSERT INTO things VALUES (?1, ?2, ?3)", &[(*id).into(), (*name).into(), body.clone()]);
        assert_eq!(n.unwrap(), 1);
    }
    for (id, name, body) in &rows {
        // The second place is named before the first: places are numbers, not an order.
        let sql = "SELECT id, name, body FROM things WHERE name = ?2 AND id = ?1";
        let found = db.query(sql, &[(*id).into(), (*name).into()]).unwrap();
        assert_eq!(found.len(), 1, "{id}");
        assert_eq!((found[0].int(0).unwrap(), found[0].text(1).unwrap(), found[0].value(2)), (*id, *name, body));
    }
    assert_eq!(db.query("SELECT count(*) FROM things", &[]).unwrap()[0].int(0).unwrap(), 4);
    assert_eq!(db.execute("DELETE FROM things WHERE id < ?1", &[2.into()]).unwrap(), 2);
}

pub fn amounts_keep_all_digits_and_order(place: &Place) {
    let mut db = place.open();
    let schema = [Migration { version: 1, statements: &["CREATE TABLE sums (n BIGINT PRIMARY KEY, sum AMOUNT)"] }];
    db.migrate("it", &schema).unwrap();
    // Around the borders of 64 bits, of a digit of base 10,000, and of 128 bits.
    let amounts = [0, 1, 9_999, 10_000, 100_000_000, 1 << 63, 1 << 64, 10u128.pow(38), u128::MAX - 1, u128::MAX];
    let rows = (0i64..).zip(amounts).map(|(n, amount)| vec![(-n).into(), amount.into()]);
    db.transaction(|tx| tx.insert_many("sums", &["n", "sum"], rows.clone())).unwrap();
    db.execute("INSERT INTO sums VALUES (1, ?1)", &[Value::Null]).unwrap();
    let found = db.query("SELECT sum FROM sums WHERE sum IS NOT NULL ORDER BY sum", &[]).unwrap();
    let found: Vec<u128> = found.iter().map(|row| row.amount(0).unwrap()).collect();
    assert_eq!(found, amounts);
    let above = db.query("SELECT count(*) FROM sums WHERE sum > ?1", &[(1u128 << 64).into()]).unwrap();
    assert_eq!(above[0].int(0).unwrap(), 3);
}

pub fn a_statement_holds_no_value(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let evil = "x'); DROP TABLE things; --";
    let (sql, values) = insert(1, evil);
    db.execute(sql, &values).unwrap();
    assert_eq!(db.query("SELECT name FROM things", &[]).unwrap()[0].text(0).unwrap(), evil);
}

pub fn migrations_apply_once(place: &Place) {
    let mut db = place.open();
    assert_eq!(db.migrate("it", &SCHEMA[..1]).unwrap(), 1);
    let (sql, values) = insert(1, "kept");
    db.execute(sql, &values).unwrap();
    assert!(db.execute("INSERT INTO parts VALUES (1, 1)", &[]).is_err());
    let mut again = place.open();
    assert_eq!(again.migrate("it", &SCHEMA).unwrap(), 2);
    assert_eq!(again.migrate("it", &SCHEMA).unwrap(), 2);
    again.execute("INSERT INTO parts VALUES (1, 1)", &[]).unwrap();
    // Another owner of tables counts for itself.
    let other = [Migration { version: 1, statements: &["CREATE TABLE others (a TEXT)"] }];
    assert_eq!(again.migrate("other", &other).unwrap(), 1);
}

pub fn programs_that_migrate_at_once_all_find_the_tables(place: &Place) {
    // One component a round, so that each round is a race from nothing.
    for component in ["race_a", "race_b", "race_c", "race_d", "race_e", "race_f"] {
        let table = format!("CREATE TABLE {component} (id BIGINT PRIMARY KEY)");
        let statements: &'static [&'static str] = vec![&*table.leak()].leak();
        let schema = [Migration { version: 1, statements }];
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(place.open().migrate(component, &schema).unwrap(), 1));
            }
        });
    }
}

pub fn a_changed_migration_is_refused(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let changed = [Migration { version: 1, statements: &["CREATE TABLE things (id BIGINT)"] }, SCHEMA[1]];
    let message = db.migrate("it", &changed).unwrap_err().to_string();
    assert!(message.starts_with("schema \"it\", version 1: expected digest "), "{message}");
}

pub fn a_newer_schema_is_refused(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let message = db.migrate("it", &SCHEMA[..1]).unwrap_err().to_string();
    assert_eq!(message, "schema \"it\": expected at most version 1, found 2 (hint: use a newer ascribe)");
}

pub fn a_failed_transaction_changes_nothing(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let error = db.transaction(|tx| {
        let (sql, values) = insert(1, "half");
        tx.execute(sql, &values)?;
        assert_eq!(tx.query("SELECT id FROM things", &[])?.len(), 1);
        tx.execute(sql, &values)
    });
    assert!(matches!(error, Err(SqlError::Duplicate { .. })), "{error:?}");
    assert!(db.query("SELECT id FROM things", &[]).unwrap().is_empty());
    // The connection is good for the next one.
    let (sql, values) = insert(2, "whole");
    db.transaction(|tx| tx.execute(sql, &values)).unwrap();
    assert_eq!(db.query("SELECT id FROM things", &[]).unwrap().len(), 1);
}

pub fn rules_of_the_table_hold(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let (sql, values) = insert(-1, "below");
    assert!(matches!(db.execute(sql, &values), Err(SqlError::Constraint { .. })));
    let orphan = db.execute("INSERT INTO parts VALUES (9, 1)", &[]);
    assert!(matches!(orphan, Err(SqlError::Constraint { .. })), "{orphan:?}");
    let nameless = db.execute("INSERT INTO things (id, name) VALUES (1, ?1)", &[Value::Null]);
    assert!(matches!(nameless, Err(SqlError::Constraint { .. })), "{nameless:?}");
    let unknown = db.execute("INSERT INTO nowhere VALUES (1)", &[]).unwrap_err().to_string();
    assert!(unknown.contains("nowhere") && unknown.ends_with("in: INSERT INTO nowhere VALUES (1)"), "{unknown}");
}

pub fn types_are_strict(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let wrong: [[Value; 2]; 3] =
        [["one".into(), "name".into()], [1.into(), vec![1u8].into()], [vec![1u8].into(), "x".into()]];
    for row in wrong {
        let result = db.execute("INSERT INTO things (id, name) VALUES (?1, ?2)", &row);
        assert!(result.is_err(), "{row:?} was taken");
    }
    assert!(db.query("SELECT id FROM things", &[]).unwrap().is_empty());
}

pub fn bulk_rows_arrive(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let rows = |n: i64| (0..n).map(|i| vec![i.into(), format!("row {i}").into(), Value::Null]);
    let n = db.transaction(|tx| tx.insert_many("things", &["id", "name", "body"], rows(5_000))).unwrap();
    assert_eq!(n, 5_000);
    let sum = db.query("SELECT CAST(sum(id) AS BIGINT), count(*) FROM things", &[]).unwrap();
    assert_eq!((sum[0].int(0).unwrap(), sum[0].int(1).unwrap()), (5_000 * 4_999 / 2, 5_000));
    let bad = db.transaction(|tx| tx.insert_many("things; DROP TABLE things", &["id"], [vec![1.into()]]));
    assert!(matches!(bad, Err(SqlError::Name { .. })));
}

pub fn a_failed_bulk_insert_changes_nothing(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let rows = (0..100).map(|i: i64| vec![(i % 60).into(), "twice".into()]);
    let failed = db.transaction(|tx| tx.insert_many("things", &["id", "name"], rows.clone()));
    assert!(matches!(failed, Err(SqlError::Duplicate { .. })), "{failed:?}");
    assert!(db.query("SELECT id FROM things", &[]).unwrap().is_empty());
}

pub fn writers_do_not_lose_updates(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    db.execute("INSERT INTO things (id, name) VALUES (0, 'count')", &[]).unwrap();
    db.execute("INSERT INTO parts VALUES (0, 0)", &[]).unwrap();
    // Read, add one, write: without a serializable transaction two writers would take the same number.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut db = place.open();
                for _ in 0..25 {
                    db.transaction(|tx| {
                        let n = tx.query("SELECT n FROM parts WHERE thing = 0", &[])?[0].int(0)?;
                        tx.execute("UPDATE parts SET n = ?1 WHERE thing = 0", &[(n + 1).into()])
                    })
                    .unwrap();
                }
            });
        }
    });
    assert_eq!(db.query("SELECT n FROM parts", &[]).unwrap()[0].int(0).unwrap(), 100);
}

pub fn long_results_come_row_by_row(place: &Place) {
    let mut db = place.open();
    db.migrate("it", &SCHEMA).unwrap();
    let rows = (0..20_000i64).map(|i| vec![i.into(), "x".into()]);
    db.transaction(|tx| tx.insert_many("things", &["id", "name"], rows.clone())).unwrap();
    let (mut n, mut last) = (0, -1);
    db.query_each("SELECT id FROM things ORDER BY id", &[], |row| {
        let id = row.int(0)?;
        assert!(id > last);
        (n, last) = (n + 1, id);
        Ok(())
    })
    .unwrap();
    assert_eq!(n, 20_000);
    // An error of the reader ends it, and the connection stays usable.
    let stopped = db.query_each("SELECT name FROM things", &[], |row| row.int(0).map(drop));
    assert!(matches!(stopped, Err(SqlError::Column { column: 0, .. })));
    assert_eq!(db.query("SELECT 1 FROM things WHERE id = 7", &[]).unwrap().len(), 1);
}

pub fn committed_is_durable(place: &Place) {
    {
        let mut db = place.open();
        db.migrate("it", &SCHEMA).unwrap();
        let (sql, values) = insert(1, "stays");
        db.transaction(|tx| tx.execute(sql, &values)).unwrap();
    }
    let mut again = place.open();
    assert_eq!(again.query("SELECT name FROM things", &[]).unwrap()[0].text(0).unwrap(), "stays");
}
