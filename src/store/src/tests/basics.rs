//! What every caller relies on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use rusqlite::Connection;
use uuid::Uuid;

use super::{STEPS, increment, open, value};
use crate::{Change, Error, Event, Operation, Options, Projection, Step, Store, schema};

#[tokio::test]
async fn a_write_is_read_back_and_survives_a_restart() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    assert_eq!(increment(&store, "a").await?, 1);
    assert_eq!(increment(&store, "a").await?, 2);
    assert_eq!(value(&store, "a").await?, 2);
    let before = store.hashes().await?;
    store.close().await?;

    let store = open(dir.path()).await?;
    assert_eq!(value(&store, "a").await?, 2);
    assert_eq!(store.hashes().await?, before);
    assert_eq!(increment(&store, "a").await?, 3);
    Ok(())
}

#[tokio::test]
async fn an_error_undoes_its_own_write_alone() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let writes = (0..40).map(|i| {
        let store = store.clone();
        async move {
            store
                .write("test", move |conn| {
                    conn.execute("INSERT INTO parent (id, name) VALUES (?1, 'x')", [i])?;
                    if i % 2 == 0 {
                        Ok(i)
                    } else {
                        Err(Error::Other("no".to_owned()))
                    }
                })
                .await
        }
    });
    let results = futures::future::join_all(writes).await;
    for (i, result) in results.into_iter().enumerate() {
        assert_eq!(result.is_ok(), i % 2 == 0, "{i}: {result:?}");
    }
    let ids: Vec<i64> = store
        .read(|conn| {
            let mut select = conn.prepare("SELECT id FROM parent ORDER BY id")?;
            let ids = select
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            Ok::<_, Error>(ids)
        })
        .await?;
    assert_eq!(ids, (0..40).step_by(2).collect::<Vec<i64>>());
    Ok(())
}

#[tokio::test]
async fn a_panic_undoes_its_own_write_alone() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let panicked: Result<(), Error> = store
        .write("test", |conn| {
            conn.execute("INSERT INTO parent (id, name) VALUES (1, 'x')", [])?;
            panic!("a bug in a closure");
        })
        .await;
    assert!(matches!(panicked, Err(Error::Other(_))), "{panicked:?}");
    assert_eq!(increment(&store, "a").await?, 1);
    let left: i64 = store
        .read(|c| Ok::<_, Error>(c.query_row("SELECT count(*) FROM parent", [], |r| r.get(0))?))
        .await?;
    assert_eq!(left, 0);
    Ok(())
}

#[tokio::test]
async fn many_writers_share_entries() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let before = store.status().applied;
    let writers = (0..64).map(|_| {
        let store = store.clone();
        async move {
            for _ in 0..10 {
                increment(&store, "shared").await?;
            }
            Ok::<_, Error>(())
        }
    });
    futures::future::try_join_all(writers).await?;
    assert_eq!(value(&store, "shared").await?, 640);
    let entries = store.status().applied - before;
    assert!(
        entries < 320,
        "640 writes took {entries} entries: they were not grouped"
    );
    Ok(())
}

#[tokio::test]
async fn a_read_sees_one_state() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    increment(&store, "a").await?;
    let (started, begin) = tokio::sync::oneshot::channel();
    let (go, goes) = std::sync::mpsc::channel::<()>();
    let reader = store.clone();
    let read = tokio::spawn(async move {
        reader
            .read(move |conn| {
                let get = || conn.query_row("SELECT value FROM counter", [], |row| row.get::<_, i64>(0));
                let first = get()?;
                started.send(()).unwrap();
                goes.recv().unwrap();
                Ok::<_, Error>((first, get()?))
            })
            .await
    });
    begin.await.unwrap();
    increment(&store, "a").await?;
    assert_eq!(
        value(&store, "a").await?,
        2,
        "a new read sees the acknowledged write"
    );
    go.send(()).unwrap();
    assert_eq!(
        read.await.unwrap()?,
        (1, 1),
        "the old read sees one state throughout"
    );
    Ok(())
}

#[tokio::test]
async fn a_reader_cannot_write() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let result: Result<(), Error> = store
        .read(|conn| Ok(conn.execute_batch("INSERT INTO parent (id, name) VALUES (1, 'x')")?))
        .await;
    assert!(matches!(result, Err(Error::Sqlite(_))), "{result:?}");
    Ok(())
}

#[tokio::test]
async fn a_write_changes_rows_and_nothing_else() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    for sql in [
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL) STRICT",
        "CREATE TEMP TABLE t (id INTEGER)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER g AFTER INSERT ON parent BEGIN DELETE FROM child; END",
        "DROP TABLE child",
        "ALTER TABLE child ADD COLUMN more TEXT",
        "COMMIT",
        "ROLLBACK",
        "SAVEPOINT mine",
        "PRAGMA foreign_keys = OFF",
        "ATTACH ':memory:' AS other",
        "UPDATE _allod_state SET store_index = 0",
        "DELETE FROM _allod_step",
        "VACUUM",
    ] {
        let result: Result<(), Error> = store
            .write("test", move |conn| Ok(conn.execute_batch(sql)?))
            .await;
        assert!(matches!(result, Err(Error::Sqlite(_))), "{sql}: {result:?}");
    }
    assert_eq!(increment(&store, "a").await?, 1, "the store still works");
    Ok(())
}

#[tokio::test]
async fn foreign_keys_hold_and_cascades_are_replicated() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let orphan: Result<usize, Error> = store
        .write("test", |c| {
            Ok(c.execute("INSERT INTO child (id, parent) VALUES (1, 7)", [])?)
        })
        .await;
    assert!(matches!(orphan, Err(Error::Sqlite(_))), "{orphan:?}");
    store
        .write("test", |conn| {
            Ok::<_, Error>(conn.execute_batch(
                "INSERT INTO parent (id, name) VALUES (7, 'x');
                 INSERT INTO child (id, parent) VALUES (1, 7), (2, 7);",
            )?)
        })
        .await?;
    let mut events = store.subscribe();
    store
        .write("test", |conn| {
            Ok::<_, Error>(conn.execute("DELETE FROM parent", [])?)
        })
        .await?;
    let event = events.recv().await.unwrap();
    assert!(event.touches("parent") && event.touches("child"), "{event:?}");
    let left: i64 = store
        .read(|c| Ok::<_, Error>(c.query_row("SELECT count(*) FROM child", [], |r| r.get(0))?))
        .await?;
    assert_eq!(left, 0);
    Ok(())
}

#[tokio::test]
async fn events_name_the_changed_rows_in_order() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let mut events = store.subscribe();
    increment(&store, "a").await?;
    increment(&store, "a").await?;
    store
        .write("test", |c| Ok::<_, Error>(c.execute("DELETE FROM counter", [])?))
        .await?;
    // A write that changes nothing makes no entry.
    store
        .write("test", |c| Ok::<_, Error>(c.execute("DELETE FROM counter", [])?))
        .await?;
    increment(&store, "b").await?;
    let mut last = 0;
    for (operation, key) in [
        (Operation::Insert, "a"),
        (Operation::Update, "a"),
        (Operation::Delete, "a"),
        (Operation::Insert, "b"),
    ] {
        let event = events.recv().await.unwrap();
        assert!(event.index > last);
        last = event.index;
        assert_eq!(
            event.changes,
            [Change {
                table: "counter".into(),
                operation,
                key: vec![key.to_owned().into()]
            }]
        );
    }
    Ok(())
}

/// Counters in memory.
#[derive(Default)]
struct Counters(Mutex<BTreeMap<String, i64>>);

impl Projection for Counters {
    fn load(&self, conn: &Connection) -> Result<(), Error> {
        let mut select = conn.prepare("SELECT name, value FROM counter")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        *self.0.lock().unwrap() = rows.collect::<Result<_, _>>()?;
        Ok(())
    }

    fn apply(&self, conn: &Connection, event: &Event) -> Result<(), Error> {
        if event.touches("counter") {
            self.load(conn)
        } else {
            Ok(())
        }
    }
}

#[tokio::test]
async fn a_projection_has_followed_when_the_write_returns() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let counters = Arc::new(Counters::default());
        let projections: Vec<Arc<dyn Projection>> = vec![counters.clone()];
        let store = Store::open(Options {
            dir: dir.path().to_owned(),
            steps: STEPS,
            projections,
        })
        .await?;
        for i in 0..20 {
            let expected = round * 20 + i;
            assert_eq!(
                counters.0.lock().unwrap().get("a").copied().unwrap_or(0),
                expected
            );
            increment(&store, "a").await?;
        }
        store.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_later_step_adds_a_column_to_a_table_with_rows() -> Result<(), Error> {
    static LONGER: [Step; 3] = [
        STEPS[0],
        STEPS[1],
        Step {
            number: 3,
            name: "a column",
            sql: "ALTER TABLE counter ADD COLUMN note TEXT;",
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    increment(&store, "old").await?;
    store.close().await?;
    for _ in 0..2 {
        let store = Store::open(Options {
            dir: dir.path().to_owned(),
            steps: &LONGER,
            projections: Vec::new(),
        })
        .await?;
        increment(&store, "old").await?;
        store
            .write("test", |conn| {
                Ok::<_, Error>(conn.execute("UPDATE counter SET note = 'new'", [])?)
            })
            .await?;
        let note: Option<String> = store
            .read(|conn| {
                Ok::<_, Error>(
                    conn.query_row("SELECT note FROM counter WHERE name = 'old'", [], |row| {
                        row.get(0)
                    })?,
                )
            })
            .await?;
        assert_eq!(note.as_deref(), Some("new"));
        store.close().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_named_request_is_applied_once() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let id = Uuid::new_v4();
    let once = |store: Store| async move {
        store
            .write_once(id, "test", |c| {
                Ok::<_, Error>(c.execute(
                    "INSERT INTO counter VALUES ('n', 1) ON CONFLICT DO UPDATE SET value = value + 1",
                    [],
                )?)
            })
            .await
    };
    let store = open(dir.path()).await?;
    assert_eq!(once(store.clone()).await?, 1);
    assert!(matches!(once(store.clone()).await, Err(Error::AlreadyApplied(same)) if same == id));
    store.close().await?;
    let store = open(dir.path()).await?;
    assert!(matches!(once(store.clone()).await, Err(Error::AlreadyApplied(_))));
    assert_eq!(value(&store, "n").await?, 1);
    Ok(())
}

#[tokio::test]
async fn a_write_that_is_too_large_is_refused_and_its_neighbours_pass() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    let big = {
        let store = store.clone();
        async move {
            store
                .write("test", |conn| {
                    conn.execute("INSERT INTO parent (id, name) VALUES (1, 'p')", [])?;
                    Ok::<_, Error>(conn.execute(
                        "INSERT INTO child (id, parent, data) VALUES (1, 1, zeroblob(2000000))",
                        [],
                    )?)
                })
                .await
        }
    };
    let small = (0..20).map(|_| increment(&store, "a"));
    let (big, small) = futures::future::join(big, futures::future::join_all(small)).await;
    assert!(matches!(big, Err(Error::TooLarge { .. })), "{big:?}");
    for result in small {
        result?;
    }
    assert_eq!(value(&store, "a").await?, 20);
    Ok(())
}

#[tokio::test]
async fn two_stores_do_not_share_a_directory() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path()).await?;
    assert!(matches!(open(dir.path()).await, Err(Error::InUse(_))));
    Ok(())
}

async fn open_with(dir: &std::path::Path, steps: &'static [Step]) -> Result<Store, Error> {
    Store::open(Options {
        dir: dir.to_owned(),
        steps,
        projections: Vec::new(),
    })
    .await
}

#[tokio::test]
async fn steps_are_added_and_never_changed() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    open_with(dir.path(), &STEPS[..1]).await?.close().await?;
    let store = open_with(dir.path(), STEPS).await?;
    store
        .write("test", |c| {
            Ok::<_, Error>(c.execute("INSERT INTO parent VALUES (1, 'x')", [])?)
        })
        .await?;
    store.close().await?;

    let older = open_with(dir.path(), &STEPS[..1]).await.map(drop);
    assert!(
        matches!(&older, Err(Error::Schema(text)) if text.contains("step 2 (items)")),
        "{older:?}"
    );
    const CHANGED: &[Step] = &[
        Step {
            number: 1,
            name: "counters",
            sql: "CREATE TABLE counter (name TEXT PRIMARY KEY NOT NULL) STRICT;",
        },
        STEPS[1],
    ];
    let changed = open_with(dir.path(), CHANGED).await.map(drop);
    assert!(
        matches!(&changed, Err(Error::Schema(text)) if text.contains("step 1")),
        "{changed:?}"
    );
    assert_eq!(
        increment(&open(dir.path()).await?, "a").await?,
        1,
        "the right release opens it"
    );
    Ok(())
}

#[tokio::test]
async fn steps_with_traps_are_refused() {
    macro_rules! refuse {
        ($sql:expr, $why:expr) => {{
            const STEP: &[Step] = &[Step {
                number: 1,
                name: "trap",
                sql: $sql,
            }];
            let dir = tempfile::tempdir().unwrap();
            match open_with(dir.path(), STEP).await {
                Err(Error::Schema(text)) => assert!(text.contains($why), "{}: {text}", $sql),
                other => panic!("{}: {:?}", $sql, other.map(drop)),
            }
        }};
    }
    refuse!("CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL)", "not STRICT");
    refuse!("CREATE TABLE t (id INTEGER NOT NULL) STRICT", "no primary key");
    refuse!("CREATE TABLE t (id TEXT PRIMARY KEY)", "not NOT NULL");
    refuse!(
        "CREATE TABLE t (a TEXT NOT NULL, b TEXT, PRIMARY KEY (a, b))",
        "column b"
    );
    refuse!(
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL) STRICT",
        "AUTOINCREMENT"
    );
    refuse!(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, d INTEGER AS (id * 2) STORED) STRICT",
        "generated"
    );
    refuse!("CREATE VIRTUAL TABLE t USING fts5(body)", "not authorized");
    refuse!(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL) STRICT;
         CREATE TRIGGER g AFTER INSERT ON t BEGIN DELETE FROM t; END",
        "not authorized"
    );
    refuse!(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL) STRICT; INSERT INTO t VALUES (random())",
        "random"
    );
    refuse!("CREATE TABLE t (", "incomplete input");
}

#[test]
fn a_word_in_a_comment_is_no_trap() {
    let conn = Connection::open_in_memory().unwrap();
    conn.execute_batch(
        "CREATE TABLE t (id INTEGER PRIMARY KEY NOT NULL, -- no AUTOINCREMENT here
             \"AUTOINCREMENT\" TEXT NOT NULL DEFAULT 'AUTOINCREMENT') STRICT",
    )
    .unwrap();
    assert_eq!(schema::check(&conn), Ok(()));
    conn.execute_batch("CREATE TABLE u (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL) STRICT")
        .unwrap();
    assert_eq!(
        schema::check(&conn),
        Err(vec!["table u has AUTOINCREMENT".to_owned()])
    );
}

#[tokio::test]
async fn the_stores_own_tables_obey_its_rules() -> Result<(), Error> {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await?;
    store
        .read(|conn| schema::check(conn).map_err(|faults| Error::Schema(faults.join("; "))))
        .await
}
