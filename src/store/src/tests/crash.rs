//! Power cuts: the disk keeps what was synced and any part of the rest; nothing acknowledged may be missing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::sim::{self, Follower, Image, Op, SimDisk, VFS, World};
use super::{STEPS, increment};
use crate::log::LogStore;
use crate::machine::database::Database;
use crate::machine::{Config, Shared, files};
use crate::reader::{Pool, Readers};
use crate::store::Layers;
use crate::{Error, Member, Options, Store};

const CLIENTS: usize = 6;
const WRITES: i64 = 60;
const SEGMENT: usize = 32 << 10;

fn plenty(_: &Path) -> std::io::Result<u64> {
    Ok(1 << 40)
}

fn layers(machine: &sim::Machine) -> Layers {
    Layers {
        disk: Arc::new(SimDisk(machine.clone())),
        segment: SEGMENT,
        keep_entries: 4,
        checkpoint_pages: 60,
        vfs: Some(VFS),
        free: plenty,
    }
}

/// Runs clients, snapshots and restarts against a simulated disk; what happened since the first start ended.
async fn record(dir: &Path, lying: bool) -> Result<(usize, Vec<Op>), Error> {
    let machine = World::from(Image::default());
    {
        let mut world = machine.lock().unwrap();
        world.history = Some(Vec::new());
        world.lying = lying;
    }
    sim::mount(dir, &machine);
    let options = || Options {
        dir: dir.to_owned(),
        steps: STEPS,
        projections: Vec::new(),
    };
    let mut started = None;
    for round in 0..3 {
        let store = Store::open_on(options(), Member::default(), layers(&machine)).await?;
        if started.is_none() {
            // The store does this before it writes CURRENT, which is on a real disk.
            sim::sync_database_folder(&machine);
        }
        started.get_or_insert_with(|| machine.lock().unwrap().history.as_ref().unwrap().len());
        let clients = (0..CLIENTS).map(|client| {
            let (store, machine) = (store.clone(), machine.clone());
            tokio::spawn(async move {
                for i in 0..WRITES / 3 {
                    let value = increment(&store, &client.to_string()).await?;
                    assert_eq!(value, round * (WRITES / 3) + i + 1);
                    sim::acknowledge(&machine, client, value);
                    if client == 0 && i % 10 == 5 {
                        store.snapshot().await?;
                    }
                    if client == 1 && i % 7 == 3 {
                        // Some entries are larger than a sector, a page, and half a segment.
                        let size = [700, 5_000, 20_000][(i % 3) as usize];
                        let id = round * 1000 + i;
                        store
                            .write("test", move |conn| {
                                conn.execute("INSERT INTO parent (id, name) VALUES (?1, 'p')", [id])?;
                                conn.execute(
                                    "INSERT INTO child (id, parent, data) VALUES (?1, ?1, randomblob(?2))",
                                    [id, size],
                                )?;
                                Ok::<_, Error>(())
                            })
                            .await?;
                    }
                }
                Ok::<_, Error>(())
            })
        });
        for client in futures::future::join_all(clients).await {
            client.map_err(|e| Error::Other(e.to_string()))??;
        }
        store.close().await?;
    }
    let history = machine.lock().unwrap().history.take().unwrap();
    Ok((started.unwrap(), history))
}

/// Starts from what a crash left, as the daemon does, and looks for every acknowledged write.
fn recover(dir: &Path, image: Image, acknowledged: &HashMap<usize, i64>) -> Result<(), String> {
    let machine = World::from(image);
    sim::mount(dir, &machine);
    let fail = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    let log = LogStore::open(Arc::new(SimDisk(machine)), SEGMENT, ()).map_err(|e| fail("the log", &e))?;
    let config = Arc::new(Config {
        id: 1,
        dir: dir.to_owned(),
        steps: STEPS,
        projections: Vec::new(),
        checkpoint_pages: 60,
        vfs: Some(VFS),
        free: plenty,
    });
    let path = files::path(dir, 1);
    let shared = Arc::new(Shared {
        readers: Pool::new(Readers::new(path.clone(), Some(VFS))),
        events: tokio::sync::broadcast::channel(1).0,
        applied: 0.into(),
    });
    let mut database = Database::open(config, shared.clone(), None).map_err(|e| fail("the database", &e))?;
    let applied = shared.applied.load(Ordering::Acquire);
    let entries = log
        .entries(applied + 1, u64::MAX)
        .map_err(|e| fail("the log's entries", &e))?;
    if let Some(first) = entries.first()
        && first.log_id.index != applied + 1
    {
        return Err(format!(
            "entry {} is applied and the next one in the log is {}",
            applied, first.log_id.index
        ));
    }
    let (_orders, none) = mpsc::channel();
    database
        .apply_all(&entries, &none)
        .map_err(|e| fail("applying", &e))?;
    shared
        .readers
        .get()
        .read(|conn| {
            let sound: String = conn
                .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
                .map_err(|e| fail("quick_check", &e))?;
            if sound != "ok" {
                return Err(Lost(format!("quick_check: {sound}")));
            }
            for (client, expected) in acknowledged {
                let found: i64 = conn
                    .query_row(
                        "SELECT COALESCE(SUM(value), 0) FROM counter WHERE name = ?1",
                        [client.to_string()],
                        |r| r.get(0),
                    )
                    .map_err(|e| fail("reading", &e))?;
                if found < *expected {
                    return Err(Lost(format!(
                        "client {client} was told {expected} and {found} is there"
                    )));
                }
            }
            Ok(())
        })
        .map_err(|Lost(what)| what)
}

struct Lost(String);

impl From<String> for Lost {
    fn from(what: String) -> Self {
        Lost(what)
    }
}

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Lost(error.to_string())
    }
}

/// Cuts the power at this many moments; the failures.
fn cut(root: &Path, started: usize, history: &[Op], points: usize, seed: u64) -> Vec<String> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut moments: Vec<usize> = (0..points)
        .map(|_| random.random_range(started..=history.len()))
        .collect();
    moments.sort_unstable();
    let workers = 2;
    let (work, queue) = mpsc::sync_channel::<(usize, u64, Image, HashMap<usize, i64>)>(workers);
    let queue = Mutex::new(queue);
    let (failures, done) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (queue, failures, done) = (&queue, &failures, &done);
            scope.spawn(move || {
                let dir = root.join(format!("worker-{worker}"));
                std::fs::create_dir_all(&dir).unwrap();
                files::replace(&dir, "CURRENT", b"1").unwrap();
                loop {
                    let next = queue.lock().unwrap().recv();
                    let Ok((moment, seed, image, acknowledged)) = next else {
                        return;
                    };
                    if let Err(what) = recover(&dir, image, &acknowledged) {
                        failures
                            .lock()
                            .unwrap()
                            .push(format!("operation {moment}, seed {seed}: {what}"));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut follower = Follower::new(history);
        for moment in moments {
            while follower.at < moment {
                follower.step();
            }
            let seed = random.random();
            let image = follower.crash(&mut SmallRng::seed_from_u64(seed));
            work.send((moment, seed, image, follower.acknowledged.clone()))
                .unwrap();
        }
        drop(work);
    });
    assert_eq!(done.into_inner(), points);
    failures.into_inner().unwrap()
}

/// `ALLOD_CRASH_POINTS` and `ALLOD_CRASH_SEED` choose another number of moments, and other ones.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// A quarter of the power cuts, in a history of its own.
fn power_cuts(quarter: u64) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (started, history) = runtime.block_on(record(dir.path(), false)).unwrap();
    let points = (setting("ALLOD_CRASH_POINTS", 10_000) / 4) as usize;
    let seed = 4 * setting("ALLOD_CRASH_SEED", 1) + quarter;
    let failures = cut(dir.path(), started, &history, points, seed);
    assert!(
        failures.is_empty(),
        "{} of {points}: {:#?}",
        failures.len(),
        &failures[..failures.len().min(5)]
    );
}

// Ten thousand power cuts lose no acknowledged write. Four tests, which run side by side.

#[test]
fn power_cuts_lose_nothing_acknowledged_1() {
    power_cuts(0);
}

#[test]
fn power_cuts_lose_nothing_acknowledged_2() {
    power_cuts(1);
}

#[test]
fn power_cuts_lose_nothing_acknowledged_3() {
    power_cuts(2);
}

#[test]
fn power_cuts_lose_nothing_acknowledged_4() {
    power_cuts(3);
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (started, history) = runtime.block_on(record(dir.path(), true)).unwrap();
    let failures = cut(dir.path(), started, &history, 100, 1);
    assert!(
        failures.len() > 50,
        "only {} of 100 power cuts lost something",
        failures.len()
    );
}
