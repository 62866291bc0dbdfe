//! Acknowledged writes per second, with 1 and 64 clients, against the disk's own rate of durable appends, turn by turn:
//! `cargo bench -p allod-store --bench writes`.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use store::{Error, Options, Step, Store};

const TURN: Duration = Duration::from_secs(2);
const TURNS: usize = 4;
const IDLE: Duration = Duration::from_secs(20);

const STEPS: &[Step] = &[Step {
    number: 1,
    name: "bench",
    sql: "CREATE TABLE server (id TEXT PRIMARY KEY NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL,
              status TEXT NOT NULL, generation INTEGER NOT NULL) STRICT;
          CREATE INDEX server_project ON server (project);",
}];

/// What a program can do with this disk: 4 KiB into a file that was filled beforehand, then `fdatasync`.
fn fsyncs_per_second(dir: &Path) -> std::io::Result<f64> {
    const SIZE: u64 = 8 << 20;
    let path = dir.join("raw");
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    file.write_all_at(&vec![0; SIZE as usize], 0)?;
    file.sync_all()?;
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < TURN {
        file.write_all_at(&[1; 4096], (count * 4096) % SIZE)?;
        file.sync_data()?;
        count += 1;
    }
    let rate = count as f64 / began.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(rate)
}

/// Seconds of processor time that this process has used.
fn processor_time() -> Result<f64, nix::Error> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

async fn writes_per_second(store: &Store, clients: u64) -> Result<f64, Error> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (store, stop, count) = (store.clone(), stop.clone(), count.clone());
            tokio::spawn(async move {
                let mut number = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    // A small write with a read in it, as most are: look at a quota, insert or change a row.
                    let id = format!("{client:08}-{}", number % 200);
                    store
                        .write("bench", move |conn| {
                            let used: i64 = conn
                                .prepare_cached("SELECT count(*) FROM server WHERE project = ?1")?
                                .query_row([client.to_string()], |row| row.get(0))?;
                            if used > 1000 {
                                return Err(Error::Other("quota".to_owned()));
                            }
                            conn.prepare_cached(
                                "INSERT INTO server VALUES (?1, ?2, 'a server of the bench', 'ACTIVE', 1)
                                 ON CONFLICT (id) DO UPDATE SET generation = generation + 1",
                            )?
                            .execute((&id, client.to_string()))?;
                            Ok::<_, Error>(())
                        })
                        .await?;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                Ok::<_, Error>(())
            })
        })
        .collect();
    tokio::time::sleep(TURN).await;
    let rate = count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.map_err(|e| Error::Other(e.to_string()))??;
    }
    Ok(rate)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo test` runs benches with this flag: nothing to do.
    if std::env::args().any(|argument| argument == "--test" || argument == "--list") {
        return Ok(());
    }
    // On the disk that holds the build, not on /tmp, which may be memory.
    let place = std::env::current_exe()?
        .parent()
        .map(PathBuf::from)
        .unwrap_or_default();
    let dir = tempfile::tempdir_in(place)?;
    let options = Options {
        dir: dir.path().join("state"),
        steps: STEPS,
        projections: Vec::new(),
    };
    let store = Store::open(options).await?;
    for clients in [1, 64] {
        let (mut ours, mut disk) = (0.0, 0.0);
        for _ in 0..TURNS {
            disk += fsyncs_per_second(dir.path())? / TURNS as f64;
            ours += writes_per_second(&store, clients).await? / TURNS as f64;
        }
        println!(
            "bench store_writes_{clients} {ours:.0} writes/s vs fsync {disk:.0} ratio {:.2}",
            ours / disk
        );
    }
    store.close().await?;
    let began = Instant::now();
    let options = Options {
        dir: dir.path().join("state"),
        steps: STEPS,
        projections: Vec::new(),
    };
    let store = Store::open(options).await?;
    println!("bench store_open {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    let (began, used) = (Instant::now(), processor_time()?);
    tokio::time::sleep(IDLE).await;
    let percent = 100.0 * (processor_time()? - used) / began.elapsed().as_secs_f64();
    println!("bench store_idle {percent:.3} % of a core");
    store.close().await?;
    Ok(())
}
