//! Tests of the whole room.

mod basics;
mod cluster;
mod crash;
mod full;
pub(crate) mod sim;
mod suite;

use std::path::Path;

use crate::{Error, Options, Step, Store};

pub(crate) const STEPS: &[Step] = &[
    Step {
        number: 1,
        name: "counters",
        sql: "CREATE TABLE counter (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT;",
    },
    Step {
        number: 2,
        name: "items",
        sql: "CREATE TABLE parent (id INTEGER PRIMARY KEY NOT NULL, name TEXT NOT NULL) STRICT;
              CREATE TABLE child (
                  id INTEGER PRIMARY KEY NOT NULL,
                  parent INTEGER NOT NULL REFERENCES parent (id) ON DELETE CASCADE,
                  data BLOB
              ) STRICT;",
    },
];

pub(crate) async fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(Options {
        dir: dir.to_owned(),
        steps: STEPS,
        projections: Vec::new(),
    })
    .await
}

/// Adds one to a counter; the new value.
pub(crate) async fn increment(store: &Store, name: &str) -> Result<i64, Error> {
    let name = name.to_owned();
    store
        .write("test", move |conn| {
            Ok(conn.query_row(
                "INSERT INTO counter (name, value) VALUES (?1, 1)
                 ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
                [&name],
                |row| row.get(0),
            )?)
        })
        .await
}

pub(crate) async fn value(store: &Store, name: &str) -> Result<i64, Error> {
    let name = name.to_owned();
    store
        .read(move |conn| {
            Ok(conn.query_row(
                "SELECT COALESCE(SUM(value), 0) FROM counter WHERE name = ?1",
                [&name],
                |r| r.get(0),
            )?)
        })
        .await
}
