//! A full disk: a clear error, no loss, and it heals when room is back. (Needs the right to mount.)

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{STEPS, increment, value};
use crate::store::Layers;
use crate::{Error, Member, Options, Store};

/// Runs a test on a small file system of its own, in a mount namespace that ends with its thread.
fn on_a_small_disk<T: Send>(megabytes: usize, test: impl AsyncFnOnce(PathBuf) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNS).expect("the right to unshare mounts");
            let dir = tempfile::tempdir().unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let size = format!("size={megabytes}m");
            mount(
                Some("tmpfs"),
                dir.path(),
                Some("tmpfs"),
                MsFlags::empty(),
                Some(size.as_str()),
            )
            .unwrap();
            // Threads inherit the namespace of the thread that makes them.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let result = runtime.block_on(test(dir.path().to_owned()));
            drop(runtime);
            nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
            result
        };
        scope.spawn(run).join().unwrap()
    })
}

/// Writes until nothing fits any more.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn a_full_disk_is_named_and_heals() {
    on_a_small_disk(64, async |dir| {
        let store = super::open(&dir.join("state")).await?;
        for _ in 0..20 {
            increment(&store, "a").await?;
        }
        fill(&dir.join("filler"));
        let refused = increment(&store, "a").await;
        assert!(
            matches!(&refused, Err(Error::DiskFull { free, .. }) if *free < 1 << 20),
            "{refused:?}"
        );
        assert_eq!(value(&store, "a").await?, 20, "it can be read");
        std::fs::remove_file(dir.join("filler")).unwrap();
        assert_eq!(increment(&store, "a").await?, 21, "it heals by itself");
        store.close().await?;
        assert_eq!(value(&super::open(&dir.join("state")).await?, "a").await?, 21);
        Ok::<_, Error>(())
    })
    .unwrap();
}

/// The worst moment: the entry is in the log and there is no room to apply it.
#[test]
fn an_entry_that_finds_no_room_waits_for_it() {
    on_a_small_disk(64, async |dir| {
        let state = dir.join("state");
        let blind = Layers {
            free: |_| Ok(u64::MAX),
            ..Layers::system(&state)?
        };
        let options = Options {
            dir: state.clone(),
            steps: STEPS,
            projections: Vec::new(),
        };
        let store = Store::open_on(options, Member::default(), blind).await?;
        for _ in 0..20 {
            increment(&store, "a").await?;
        }
        fill(&dir.join("filler"));
        let mut done = 20;
        // SQLite's own file may have a few pages left.
        let failed = loop {
            match increment(&store, "a").await {
                Ok(value) => done = value,
                Err(error) => break error,
            }
            assert!(done < 1000, "a full disk must be noticed");
        };
        assert!(
            matches!(&failed, Error::Unknown(text) if text.contains("full")),
            "{failed:?}"
        );
        let refused = increment(&store, "b").await;
        assert!(matches!(refused, Err(Error::DiskFull { .. })), "{refused:?}");
        assert_eq!(value(&store, "a").await?, done);

        let mut events = store.subscribe();
        std::fs::remove_file(dir.join("filler")).unwrap();
        assert!(events.recv().await.unwrap().touches("counter"));
        assert_eq!(
            value(&store, "a").await?,
            done + 1,
            "the waiting entry was applied"
        );
        assert_eq!(increment(&store, "a").await?, done + 2);
        Ok::<_, Error>(())
    })
    .unwrap();
}
