//! `kill -9` under write load: every acknowledged write is there at the next start.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use store::{Error, Options, Step, Store};

const CHILD: &str = "ALLOD_STORE_KILL_CHILD";
const CLIENTS: usize = 8;

const STEPS: &[Step] = &[Step {
    number: 1,
    name: "counters",
    sql: "CREATE TABLE counter (name TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL) STRICT;",
}];

async fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(Options {
        dir: dir.to_owned(),
        steps: STEPS,
        projections: Vec::new(),
    })
    .await
}

/// Writes for ever, and says on standard output what was acknowledged.
async fn child(dir: &Path) -> Result<(), Error> {
    let store = open(dir).await?;
    let clients = (0..CLIENTS).map(|client| {
        let store = store.clone();
        tokio::spawn(async move {
            loop {
                let value: i64 = store
                    .write("test", move |conn| {
                        Ok::<_, Error>(conn.query_row(
                            "INSERT INTO counter (name, value) VALUES (?1, 1)
                             ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
                            [client.to_string()],
                            |row| row.get(0),
                        )?)
                    })
                    .await?;
                // One write call a line, so that no line is torn.
                let line = format!("acknowledged {client} {value}\n");
                std::io::stdout()
                    .write_all(line.as_bytes())
                    .map_err(|e| Error::Other(e.to_string()))?;
                if client == 0 && value % 100 == 50 {
                    store.snapshot().await?;
                }
            }
            #[allow(unreachable_code)]
            Ok::<(), Error>(())
        })
    });
    for client in futures::future::join_all(clients).await {
        client.map_err(|e| Error::Other(e.to_string()))??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_to_kill_9() -> Result<(), Error> {
    if let Some(dir) = std::env::var_os(CHILD) {
        return child(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: HashMap<usize, i64> = HashMap::new();
    for round in 0..10 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "no_acknowledged_write_is_lost_to_kill_9",
                "--exact",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut seen = 0;
        let wanted = 40 + 97 * round;
        for line in lines {
            let line = line.unwrap();
            // The test runner's own words may stand before the first line.
            let Some(at) = line.find("acknowledged ") else {
                continue;
            };
            let mut words = line[at..].split(' ').skip(1);
            let client: usize = words.next().unwrap().parse().unwrap();
            let value: i64 = words.next().unwrap().parse().unwrap();
            acknowledged.insert(client, value);
            seen += 1;
            if seen == wanted {
                process.kill().unwrap();
            }
        }
        let status = process.wait().unwrap();
        assert!(
            seen >= wanted && !status.success(),
            "round {round}: {seen} lines, {status}"
        );

        let store = open(dir.path()).await?;
        let (sound, found): (String, HashMap<String, i64>) = store
            .read(|conn| {
                let sound = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
                let mut select = conn.prepare("SELECT name, value FROM counter")?;
                let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok::<_, Error>((sound, rows.collect::<Result<_, _>>()?))
            })
            .await?;
        assert_eq!(sound, "ok");
        for (client, value) in &acknowledged {
            let found = found.get(&client.to_string()).copied().unwrap_or(0);
            assert!(
                found >= *value,
                "round {round}: client {client} was told {value} and {found} is there"
            );
        }
        store.close().await?;
    }
    Ok(())
}
