//! The one row that says how far this database has come. It changes in the transaction that applies an entry.

use rusqlite::{Connection, OptionalExtension, params};

use crate::command::{Hash, hex, parse_hex};
use crate::error::Error;
use crate::raft::{LogId, Membership};
use crate::schema;

/// How far a database has come.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct State {
    /// The last applied entry of the log.
    pub applied: Option<LogId>,
    /// Who holds state.
    pub membership: Membership,
    /// The index of the last entry that changed the state.
    pub store_index: u64,
    /// The rolling hash of the entries that changed the state.
    pub hash: Hash,
    /// The last schema step.
    pub version: u32,
}

fn damaged(what: impl std::fmt::Display) -> Error {
    Error::Corrupt(format!("the database's state row: {what}"))
}

impl State {
    /// Reads the row; a new database has none.
    pub(crate) fn load(conn: &Connection) -> Result<State, Error> {
        let row = conn
            .query_row(
                "SELECT applied, membership, store_index, entries_hash FROM _allod_state",
                [],
                |row| {
                    Ok((
                        row.get::<_, Option<String>>(0)?,
                        row.get::<_, String>(1)?,
                        row.get::<_, i64>(2)?,
                        row.get::<_, String>(3)?,
                    ))
                },
            )
            .optional()?;
        let version = schema::version(conn)?;
        let Some((applied, membership, store_index, hash)) = row else {
            return Ok(State {
                applied: None,
                membership: Membership::default(),
                store_index: 0,
                hash: [0; 32],
                version,
            });
        };
        Ok(State {
            applied: applied
                .map(|text| serde_json::from_str(&text))
                .transpose()
                .map_err(damaged)?,
            membership: serde_json::from_str(&membership).map_err(damaged)?,
            store_index: u64::try_from(store_index).map_err(damaged)?,
            hash: parse_hex(&hash).ok_or_else(|| damaged("not a hash"))?,
            version,
        })
    }

    /// Writes the row, inside the caller's transaction.
    pub(crate) fn save(&self, conn: &Connection) -> Result<(), Error> {
        let applied = self
            .applied
            .map(|id| serde_json::to_string(&id))
            .transpose()
            .map_err(damaged)?;
        let membership = serde_json::to_string(&self.membership).map_err(damaged)?;
        conn.prepare_cached(
            "INSERT INTO _allod_state (id, applied, membership, store_index, entries_hash) VALUES (1, ?1, ?2, ?3, ?4)
             ON CONFLICT (id) DO UPDATE SET applied = excluded.applied, membership = excluded.membership,
                 store_index = excluded.store_index, entries_hash = excluded.entries_hash",
        )?
        .execute(params![applied, membership, self.store_index as i64, hex(&self.hash)])?;
        Ok(())
    }
}
