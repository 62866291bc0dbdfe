//! `disk::run` under a real vhost-user frontend.

mod driver;

use std::{
    fs::{File, OpenOptions},
    os::{fd::OwnedFd, unix::fs::FileExt},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::Duration,
};

use disk::crypt::Cipher;
use disk::{EngineKind, ServeError, run_with};
use driver::{
    Done, Driver, Options, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES, control, listen,
};
use model::disk::{DiskKey, DiskRequest, DiskSpec};
use process::control::Client;
use uuid::Uuid;
use virtio::block::feature;
use vm_memory::{Bytes, GuestAddress};

const SIZE: u64 = 8 << 20;

/// A served volume in a directory of its own.
struct Served {
    dir: tempfile::TempDir,
    thread: JoinHandle<Result<(), ServeError>>,
}

fn spec() -> DiskSpec {
    DiskSpec {
        id: Uuid::from_u128(0x1234),
        size: SIZE,
        read_only: false,
        queues: 2,
        direct: true,
        transport: model::disk::DiskTransport::VhostUser,
        key: None,
        limits: model::disk::DiskLimits::default(),
    }
}

fn key() -> DiskKey {
    DiskKey {
        lineage: Uuid::from_u128(7),
        data: [3; 32],
        tweak: [4; 32],
    }
}

impl Served {
    fn new(spec: DiskSpec, engine: EngineKind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        File::create(&volume).unwrap().set_len(spec.size).unwrap();
        Self::over(dir, spec, engine)
    }

    fn over(dir: tempfile::TempDir, spec: DiskSpec, engine: EngineKind) -> Self {
        let file = open(&dir.path().join("volume"));
        let vhost = listen(&dir.path().join("vhost")).unwrap();
        let control = listen(&dir.path().join("control")).unwrap();
        let thread = std::thread::spawn(move || run_with(spec, file, vhost, control, engine));
        Self { dir, thread }
    }

    fn vhost(&self) -> PathBuf {
        self.dir.path().join("vhost")
    }

    fn volume(&self) -> File {
        File::open(self.dir.path().join("volume")).unwrap()
    }

    fn control(&self) -> Client<DiskRequest, model::disk::DiskStatus> {
        control(&self.dir.path().join("control"))
    }

    fn stop(self) {
        self.control().call(&DiskRequest::Stop, &[]).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

fn open(path: &Path) -> OwnedFd {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
        .into()
}

fn ok(done: Done) {
    assert_eq!(done.status, 0, "{done:?}");
}

/// Every kind of request, on both engines, with and without event indices, direct and cached, in the clear and encrypted.
#[test]
fn requests_do_what_the_standard_says() {
    for (engine, event_idx, direct, key) in [
        (EngineKind::Best, true, true, None),
        (EngineKind::Best, false, false, None),
        (EngineKind::Threads, true, true, None),
        (EngineKind::Threads, false, false, None),
        (EngineKind::Best, true, true, Some(key())),
        (EngineKind::Threads, false, false, Some(key())),
    ] {
        let spec = DiskSpec {
            direct,
            key,
            ..spec()
        };
        let served = Served::new(spec, engine);
        let mut driver = Driver::new(
            &served.vhost(),
            Options {
                event_idx,
                ..Options::default()
            },
        );
        assert_ne!(driver.features & feature::FLUSH, 0);
        assert_eq!(driver.config()[..8], (SIZE / 512).to_le_bytes());

        let mut data = vec![0xabu8; 8192];
        ok(driver.request(T_OUT, 8, &mut data));
        ok(driver.request(T_FLUSH, 0, &mut []));
        let mut read = vec![0; 16384];
        let done = driver.request(T_IN, 0, &mut read);
        ok(done);
        assert_eq!(done.written, 16385, "data and status");
        assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..12288].iter().all(|b| *b == 0xab));

        let mut id = [0; 20];
        ok(driver.request(T_GET_ID, 0, &mut id));
        assert_eq!(&id, b"00000000-0000-0000-0");

        let range = |sector: u64, sectors: u32, flags: u32| {
            [
                &sector.to_le_bytes()[..],
                &sectors.to_le_bytes(),
                &flags.to_le_bytes(),
            ]
            .concat()
        };
        ok(driver.request(T_WRITE_ZEROES, 0, &mut range(8, 8, 0)));
        ok(driver.request(T_IN, 0, &mut read));
        assert!(read[..8192].iter().all(|b| *b == 0) && read[8192..12288].iter().all(|b| *b == 0xab));
        ok(driver.request(T_DISCARD, 0, &mut range(16, 8, 0)));
        ok(driver.request(T_IN, 0, &mut read));
        assert!(read.iter().all(|b| *b == 0));

        let mut sector = [1; 512];
        assert_eq!(
            driver.request(T_IN, SIZE / 512, &mut sector).status,
            1,
            "beyond the end"
        );
        assert_eq!(driver.request(77, 0, &mut sector).status, 2, "unknown");

        let status = served.control().call(&DiskRequest::Status, &[]).unwrap();
        assert!(status.connected && status.paused.is_none());
        assert_eq!((status.writes, status.flushes, status.reads), (1, 1, 3));
        assert_eq!((status.written_bytes, status.errors), (8192, 2));
        drop(driver);
        served.stop();
    }
}

/// Addresses that suit no `O_DIRECT`: a boot loader's.
#[test]
fn unaligned_buffers_are_served_under_direct_io() {
    for (engine, key) in [
        (EngineKind::Best, None),
        (EngineKind::Threads, None),
        (EngineKind::Best, Some(key())),
        (EngineKind::Threads, Some(key())),
    ] {
        let cipher = key.as_ref().map(Cipher::new);
        let served = Served::new(DiskSpec { key, ..spec() }, engine);
        let mut driver = Driver::new(&served.vhost(), Options::default());
        let content: Vec<u8> = (0..32768u32).map(|i| (i % 251) as u8).collect();
        served_write(&mut driver, &content);
        // The data descriptor of slot 0 is the second one of the table.
        let slot = driver.free_slot(0).unwrap();
        let odd = driver.data(0, slot).0 + 3;
        driver.submit(0, slot, T_IN, 0, 32768);
        driver.memory.write_obj(odd, GuestAddress(16)).unwrap();
        driver.kick(0, 1);
        ok(driver.next());
        let mut read = vec![0; 32768];
        driver.memory.read_slice(&mut read, GuestAddress(odd)).unwrap();
        assert!(read == content);
        // And back from the same odd place to another sector.
        driver.submit(0, slot, T_OUT, 64, 32768);
        driver.memory.write_obj(odd, GuestAddress(16)).unwrap();
        driver.kick(0, 1);
        ok(driver.next());
        driver.request(T_FLUSH, 0, &mut []);
        let mut bytes = vec![0; 32768];
        served.volume().read_exact_at(&mut bytes, 64 * 512).unwrap();
        assert_eq!(bytes == content, cipher.is_none());
        if let Some(cipher) = cipher {
            cipher.open(64 * 512, &mut bytes);
        }
        assert!(bytes == content);
        drop(driver);
        served.stop();
    }
}

fn served_write(driver: &mut Driver, content: &[u8]) {
    let mut content = content.to_vec();
    ok(driver.request(T_OUT, 0, &mut content));
}

#[test]
fn queues_work_side_by_side_at_full_depth() {
    side_by_side(None);
}

#[test]
fn queues_of_an_encrypted_volume_do_so_too() {
    side_by_side(Some(key()));
}

fn side_by_side(key: Option<DiskKey>) {
    let served = Served::new(DiskSpec { key, ..spec() }, EngineKind::Best);
    let mut driver = Driver::new(
        &served.vhost(),
        Options {
            queues: 2,
            ..Options::default()
        },
    );
    let mut left = 4000;
    let mut seen = [0u32; 2];
    while left > 0 || driver.in_flight() > 0 {
        for ring in 0..2 {
            let mut added = 0;
            while left > 0
                && let Some(slot) = driver.free_slot(ring)
            {
                driver.submit(ring, slot, T_OUT, (left % 1000) * 16, 8192);
                left -= 1;
                added += 1;
            }
            if added > 0 {
                driver.kick(ring, added);
            }
        }
        let done = driver.next();
        ok(done);
        seen[done.ring] += 1;
    }
    assert_eq!(seen[0] + seen[1], 4000);
    assert!(seen.iter().all(|n| *n > 1000), "{seen:?}");
    served.stop();
}

#[test]
fn a_read_only_volume_refuses_writes() {
    let served = Served::new(
        DiskSpec {
            read_only: true,
            ..spec()
        },
        EngineKind::Best,
    );
    let mut driver = Driver::new(&served.vhost(), Options::default());
    assert_ne!(driver.features & feature::RO, 0);
    assert_eq!(driver.request(T_OUT, 0, &mut [7; 512]).status, 1);
    ok(driver.request(T_IN, 0, &mut [7; 512]));
    served.stop();
}

#[test]
fn a_volume_grows_under_its_guest() {
    let served = Served::new(spec(), EngineKind::Best);
    let mut driver = Driver::new(&served.vhost(), Options::default());
    let mut control = served.control();
    let refused = control.call(&DiskRequest::Resize(2 * SIZE), &[]);
    assert!(
        matches!(refused, Err(process::control::Error::Refused(text)) if text.contains("grow its file first"))
    );
    OpenOptions::new()
        .write(true)
        .open(served.dir.path().join("volume"))
        .unwrap()
        .set_len(2 * SIZE)
        .unwrap();
    control.call(&DiskRequest::Resize(2 * SIZE), &[]).unwrap();
    assert_eq!(driver.config()[..8], (2 * SIZE / 512).to_le_bytes());
    ok(driver.request(T_OUT, SIZE / 512, &mut [7; 512]));
    control.call(&DiskRequest::Resize(SIZE), &[]).unwrap_err();
    drop(driver);
    served.stop();
}

/// A guest that pauses, and one whose monitor goes away with requests under way: the next one finds the disk in order.
#[test]
fn frontends_come_and_go() {
    let served = Served::new(spec(), EngineKind::Best);
    for round in 0..20u64 {
        let mut driver = Driver::new(
            &served.vhost(),
            Options {
                inflight: round % 2 == 0,
                ..Options::default()
            },
        );
        for slot in 0..driver::DEPTH {
            driver
                .memory
                .write_slice(&[round as u8; 4096], driver.data(0, slot))
                .unwrap();
            driver.submit(0, slot, T_OUT, slot as u64 * 8, 4096);
        }
        driver.kick(0, driver::DEPTH as u16);
        if round % 3 == 0 {
            // All that was taken is completed before the answer.
            let base = driver.stop_ring(0);
            let mut completed = 0;
            while let Some(done) = driver.poll(0) {
                ok(done);
                completed += 1;
            }
            assert_eq!(completed, base);
        }
        drop(driver);
    }
    let mut driver = Driver::new(&served.vhost(), Options::default());
    ok(driver.request(T_IN, 0, &mut [0; 4096]));
    drop(driver);
    served.stop();
}

/// Guests that break the rules stop their own ring, and the process lives.
#[test]
fn a_hostile_guest_harms_only_itself() {
    let served = Served::new(spec(), EngineKind::Best);
    // Each writes nonsense into guest memory after a well-formed request was queued in slot 0 of ring 0.
    type Attack = fn(&Driver);
    let attacks: [(&str, Attack); 6] = [
        ("data outside memory", |d| {
            d.memory.write_obj(u64::MAX - 4096, GuestAddress(16)).unwrap()
        }),
        ("a chain that loops", |d| {
            d.memory.write_obj(1u16, GuestAddress(16 + 14)).unwrap()
        }),
        ("a head outside the table", |d| {
            d.memory.write_obj(999u16, GuestAddress(0x1004)).unwrap()
        }),
        ("an available index far ahead", |d| {
            d.memory.write_obj(5000u16, GuestAddress(0x1002)).unwrap()
        }),
        ("a length beyond memory", |d| {
            d.memory.write_obj(u32::MAX, GuestAddress(16 + 8)).unwrap()
        }),
        ("a nested indirect table", |d| {
            d.memory.write_obj(16u32, GuestAddress(8)).unwrap();
            d.memory.write_obj(4u16, GuestAddress(12)).unwrap();
            d.memory.write_obj(0u64, GuestAddress(0)).unwrap();
        }),
    ];
    for (name, attack) in attacks {
        let mut driver = Driver::new(
            &served.vhost(),
            Options {
                queues: 2,
                ..Options::default()
            },
        );
        driver.submit(0, 0, T_IN, 0, 4096);
        attack(&driver);
        driver.kick(0, 1);
        // The other ring goes on, and the broken one returns nothing.
        driver.submit(1, 0, T_IN, 0, 4096);
        driver.kick(1, 1);
        let done = driver.next();
        assert_eq!((done.ring, done.status), (1, 0), "{name}");
        assert_eq!(driver.poll(0), None, "{name}");
    }
    served.stop();
}

/// Writers wait while the pool is full, the status says so, and nothing fails when there is space again.
#[test]
fn a_full_pool_makes_writers_wait() {
    let dir = tempfile::tempdir().unwrap();
    let options = disk::pool::PoolOptions {
        path: dir.path().join("pool"),
        file_size: Some(320 << 20),
        preallocate: false,
    };
    let pool = disk::pool::Pool::open_or_create(&options).unwrap();
    let id = Uuid::new_v4();
    pool.create_volume(id, SIZE, None).unwrap();
    let ballast = pool.draft_image(Uuid::new_v4()).unwrap();
    fill(ballast.file());

    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(pool.volume_path(id), home.path().join("volume")).unwrap();
    let served = Served::over(home, spec(), EngineKind::Best);
    let mut driver = Driver::new(&served.vhost(), Options::default());
    let mut control = served.control();
    driver
        .memory
        .write_slice(&[0x77; 65536], driver.data(0, 0))
        .unwrap();
    driver.submit(0, 0, T_OUT, 0, 65536);
    driver.kick(0, 1);
    while control.call(&DiskRequest::Status, &[]).unwrap().paused.is_none() {
        std::thread::yield_now();
    }
    assert_eq!(driver.poll(0), None);
    // Reads go on meanwhile.
    driver.submit(0, 1, T_IN, 64, 512);
    driver.kick(0, 1);
    assert_eq!(driver.next().slot, 1);

    drop(ballast);
    let done = driver.next();
    assert_eq!((done.slot, done.status), (0, 0));
    ok(driver.request(T_FLUSH, 0, &mut []));
    let status = control.call(&DiskRequest::Status, &[]).unwrap();
    assert_eq!((status.paused, status.errors), (None, 0));
    let mut bytes = vec![0; 65536];
    served.volume().read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|b| *b == 0x77));
    drop((driver, control));
    served.stop();
    pool.close().unwrap();
}

fn fill(file: &File) {
    use rustix::fs::{FallocateFlags, fallocate};
    let mut step = 64u64 << 20;
    let mut at = 0;
    while step >= 4096 {
        match fallocate(file, FallocateFlags::empty(), at, step) {
            Ok(()) => at += step,
            Err(_) => step /= 2,
        }
    }
}

/// An idle disk sleeps, with a guest connected and after work was done: it takes no processor time while nobody asks.
#[test]
fn an_idle_disk_sleeps() {
    for engine in [EngineKind::Best, EngineKind::Threads] {
        let served = Served::new(spec(), engine);
        let mut driver = Driver::new(&served.vhost(), Options::default());
        ok(driver.request(T_OUT, 0, &mut [1; 4096]));
        let before = processor_time();
        // Nothing is to come: this lasts its time.
        assert!(
            !driver.wait(Duration::from_millis(250)),
            "no interrupt without a request"
        );
        let spent = processor_time() - before;
        assert!(spent < Duration::from_millis(50), "{spent:?} of 250 ms");
        drop(driver);
        served.stop();
    }
}

/// Of this process: each test has one of its own, and this thread waits.
fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    Duration::from(time)
}
