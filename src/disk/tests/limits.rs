//! Limits of volumes, measured by a guest's driver, by NBD's client, and while everything changes.

mod driver;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use disk::ServeError;
use driver::{DEPTH, Driver, Options, T_FLUSH, T_IN, T_OUT, control, listen};
use model::disk::{DiskLimits, DiskRequest, DiskSpec, DiskStatus, DiskTransport, Rate};
use process::control::Client;
use uuid::Uuid;

const SIZE: u64 = 8 << 20;
const WINDOW: Duration = Duration::from_secs(10);

struct Served {
    dir: tempfile::TempDir,
    thread: JoinHandle<Result<(), ServeError>>,
}

impl Served {
    fn new(limits: DiskLimits, transport: DiskTransport) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(dir.path().join("volume"))
            .unwrap();
        file.set_len(SIZE).unwrap();
        let spec = DiskSpec {
            id: Uuid::from_u128(9),
            size: SIZE,
            read_only: false,
            queues: 2,
            direct: false,
            transport,
            limits,
            key: None,
        };
        let socket = listen(&dir.path().join("socket")).unwrap();
        let control = listen(&dir.path().join("control")).unwrap();
        let thread = std::thread::spawn(move || disk::run(spec, OwnedFd::from(file), socket, control));
        Self { dir, thread }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn control(&self) -> Client<DiskRequest, DiskStatus> {
        control(&self.dir.path().join("control"))
    }

    fn status(&self) -> DiskStatus {
        self.control().call(&DiskRequest::Status, &[]).unwrap()
    }

    fn stop(self) {
        self.control().call(&DiskRequest::Stop, &[]).unwrap();
        self.thread.join().unwrap().unwrap();
    }
}

fn total_iops(rate: u64) -> DiskLimits {
    DiskLimits {
        total_iops: Some(Rate::steady(rate)),
        ..DiskLimits::default()
    }
}

/// What a guest asks for, over and over.
#[derive(Debug, Clone, Copy)]
struct Load {
    kind: u32,
    bytes: u32,
    depth: usize,
}

const READS: Load = Load {
    kind: T_IN,
    bytes: 4096,
    depth: 32,
};
const WRITES: Load = Load { kind: T_OUT, ..READS };

/// Requests that end within this time.
fn drive(driver: &mut Driver, load: Load, time: Duration) -> u64 {
    let start = Instant::now();
    let mut ended = 0;
    while let Some(left) = time.checked_sub(start.elapsed()) {
        let mut added = 0;
        while driver.in_flight() < load.depth {
            let slot = driver.free_slot(0).unwrap();
            driver.submit(0, slot, load.kind, slot as u64 * 128, load.bytes);
            added += 1;
        }
        driver.kick(0, added);
        driver.wait(left.min(Duration::from_millis(100)));
        while let Some(done) = driver.poll(0) {
            assert_eq!(done.status, 0);
            ended += 1;
        }
    }
    ended
}

fn within(measured: f64, right: f64, what: &str) {
    println!(
        "{what}: {measured:.0} of {right:.0}, {:+.2} %",
        (measured / right - 1.0) * 100.0
    );
    assert!(
        (0.95 * right..=1.05 * right).contains(&measured),
        "{what}: {measured} of {right}"
    );
}

/// From the first moment on, at once on volumes of their own: each gets what its limits say, within 5 % over ten seconds.
#[test]
fn limits_are_kept_within_five_percent_over_ten_seconds() {
    let bytes = |rate| Some(Rate::steady(rate));
    let large = Load {
        bytes: 65536,
        ..WRITES
    };
    let cases = [
        ("200 IOPS", total_iops(200), READS, 200),
        ("1500 IOPS", total_iops(1500), WRITES, 1500),
        (
            "2000 IOPS, one at a time",
            total_iops(2000),
            Load { depth: 1, ..READS },
            2000,
        ),
        (
            "500 writes",
            DiskLimits {
                write_iops: Some(Rate::steady(500)),
                ..total_iops(2000)
            },
            WRITES,
            500,
        ),
        (
            "5 MB/s",
            DiskLimits {
                total_bytes: bytes(5_000_000),
                ..DiskLimits::default()
            },
            large,
            5_000_000,
        ),
        (
            "20 MB/s read",
            DiskLimits {
                read_bytes: bytes(20_000_000),
                ..DiskLimits::default()
            },
            Load { kind: T_IN, ..large },
            20_000_000,
        ),
    ];
    let measured = cases.map(|(what, limits, load, right)| {
        std::thread::spawn(move || {
            let served = Served::new(limits, DiskTransport::VhostUser);
            let mut driver = Driver::new(&served.socket(), Options::default());
            let ended = drive(&mut driver, load, WINDOW);
            assert_eq!(served.status().limits, limits);
            drop(driver);
            served.stop();
            let each = if right > 10_000 { u64::from(load.bytes) } else { 1 };
            (what, ended * each, right)
        })
    });
    for thread in measured {
        let (what, measured, right) = thread.join().unwrap();
        within(measured as f64, right as f64 * WINDOW.as_secs_f64(), what);
    }
}

/// Higher, lower, none, and again, while requests wait.
#[test]
fn limits_change_under_way() {
    let served = Served::new(total_iops(1), DiskTransport::VhostUser);
    let mut driver = Driver::new(&served.socket(), Options::default());
    let mut control = served.control();
    let time = Duration::from_secs(5);
    assert!(drive(&mut driver, READS, Duration::from_millis(500)) <= 2);
    for rate in [2000, 300, 1000] {
        let status = control
            .call(&DiskRequest::SetLimits(total_iops(rate)), &[])
            .unwrap();
        assert_eq!(status.limits, total_iops(rate));
        let ended = drive(&mut driver, READS, time);
        within(
            ended as f64,
            rate as f64 * time.as_secs_f64(),
            &format!("{rate} IOPS"),
        );
    }
    assert!(served.status().waiting > 0);
    // More than could be had a moment ago.
    control
        .call(&DiskRequest::SetLimits(DiskLimits::default()), &[])
        .unwrap();
    let ended = drive(&mut driver, READS, Duration::from_secs(1));
    assert!(ended > 1500, "{ended}");
    assert_eq!(served.status().waiting, 0);
    drop(driver);
    served.stop();
}

/// What waits for its turn holds up nothing: no pause, no resumption, no monitor's end, no flush, no stop.
#[test]
fn nobody_waits_for_what_waits() {
    let served = Served::new(total_iops(1), DiskTransport::VhostUser);
    let mut driver = Driver::new(&served.socket(), Options::default());
    let start = Instant::now();
    let submit = |driver: &mut Driver| {
        for slot in 0..DEPTH - 1 {
            driver.submit(0, slot, T_OUT, slot as u64 * 8, 4096);
        }
        driver.kick(0, DEPTH as u16 - 1);
    };
    submit(&mut driver);
    while served.status().waiting < DEPTH as u64 - 4 {
        std::thread::yield_now();
    }
    // A flush passes.
    driver.submit(0, DEPTH - 1, T_FLUSH, 0, 0);
    driver.kick(0, 1);
    while driver.next().slot != DEPTH - 1 {}
    // A pause leaves them to the record of requests in flight, a resumption begins them again.
    driver.stop_ring(0);
    driver.stop_ring(1);
    assert_eq!(served.status().waiting, 0);
    assert!(driver.in_flight() > DEPTH - 6);
    let resume = driver.reconnect();
    resume.unwrap();
    while served.status().waiting < DEPTH as u64 - 6 {
        std::thread::yield_now();
    }
    // With another limit all of them are carried out, each once.
    served
        .control()
        .call(&DiskRequest::SetLimits(total_iops(1_000_000)), &[])
        .unwrap();
    while driver.in_flight() > 0 {
        assert_eq!(driver.next().status, 0);
    }
    // A monitor that goes away takes what waits with it.
    served
        .control()
        .call(&DiskRequest::SetLimits(total_iops(1)), &[])
        .unwrap();
    submit(&mut driver);
    while served.status().waiting < DEPTH as u64 - 4 {
        std::thread::yield_now();
    }
    drop(driver);
    let mut next = Driver::new(&served.socket(), Options::default());
    submit(&mut next);
    while served.status().waiting < DEPTH as u64 - 4 {
        std::thread::yield_now();
    }
    served.stop();
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

/// A frontend without the record gets its answers before its ring stops, in the time that they need.
#[test]
fn without_a_record_a_pause_takes_as_long_as_the_limits_need() {
    let served = Served::new(total_iops(20), DiskTransport::VhostUser);
    let options = Options {
        inflight: false,
        ..Options::default()
    };
    let mut driver = Driver::new(&served.socket(), options);
    for slot in 0..DEPTH {
        driver.submit(0, slot, T_OUT, slot as u64 * 8, 4096);
    }
    driver.kick(0, DEPTH as u16);
    let start = Instant::now();
    assert_eq!(driver.next().status, 0);
    driver.stop_ring(0);
    while let Some(done) = driver.poll(0) {
        assert_eq!(done.status, 0);
    }
    assert_eq!(driver.in_flight(), 0);
    let needed = Duration::from_secs(1) * (DEPTH as u32) / 20;
    assert!(
        start.elapsed() < needed + Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    drop(driver);
    served.stop();
}

/// What waits takes no processor time.
#[test]
fn a_disk_whose_requests_wait_sleeps() {
    let served = Served::new(total_iops(2), DiskTransport::VhostUser);
    let mut driver = Driver::new(&served.socket(), Options::default());
    drive(&mut driver, READS, Duration::from_millis(100));
    let time = || {
        let spent = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
        Duration::from(spent)
    };
    let before = time();
    std::thread::sleep(Duration::from_secs(2));
    let spent = time() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?} of 2 s");
    drop(driver);
    served.stop();
}

/// An NBD client that has one request under way.
struct Nbd(UnixStream);

impl Nbd {
    fn new(served: &Served) -> Nbd {
        let mut stream = UnixStream::connect(served.socket()).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
        stream.read_exact(&mut [0; 10]).unwrap();
        Nbd(stream)
    }

    /// A read of this many bytes; false if it was not answered.
    fn read(&mut self, bytes: u32) -> bool {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0, 0, 0]);
        request.extend(7u64.to_be_bytes());
        request.extend(0u64.to_be_bytes());
        request.extend(bytes.to_be_bytes());
        let mut reply = vec![0; 16 + bytes as usize];
        self.0.write_all(&request).is_ok() && self.0.read_exact(&mut reply).is_ok() && reply[4..8] == [0; 4]
    }

    fn drive(&mut self, bytes: u32, time: Duration) -> u64 {
        let start = Instant::now();
        let mut ended = 0;
        while start.elapsed() < time {
            assert!(self.read(bytes));
            ended += 1;
        }
        ended
    }
}

#[test]
fn nbd_keeps_the_same_limits() {
    let served = Served::new(total_iops(1000), DiskTransport::Nbd);
    let mut client = Nbd::new(&served);
    let ended = client.drive(4096, WINDOW);
    within(ended as f64, 10_000.0, "1000 IOPS by NBD");
    let limits = DiskLimits {
        read_bytes: Some(Rate::steady(10_000_000)),
        ..DiskLimits::default()
    };
    served
        .control()
        .call(&DiskRequest::SetLimits(limits), &[])
        .unwrap();
    let ended = client.drive(65536, WINDOW);
    within(ended as f64 * 65536.0, 100e6, "10 MB/s by NBD");
    // One that waits for very long is freed by another limit, and by the owner's end.
    let slow = DiskRequest::SetLimits(DiskLimits {
        read_bytes: Some(Rate::steady(1)),
        ..DiskLimits::default()
    });
    served.control().call(&slow, &[]).unwrap();
    let start = Instant::now();
    let second = std::thread::spawn(move || {
        assert!(client.read(4096) && client.read(4096));
        client
    });
    let waits = |served: &Served| {
        while served.status().waiting == 0 {
            std::thread::yield_now();
        }
    };
    waits(&served);
    let none = DiskRequest::SetLimits(DiskLimits::default());
    served.control().call(&none, &[]).unwrap();
    let mut client = second.join().unwrap();
    served.control().call(&slow, &[]).unwrap();
    assert!(client.read(4096));
    let second = std::thread::spawn(move || client.read(4096));
    waits(&served);
    served.stop();
    assert!(!second.join().unwrap(), "it is for the next owner");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
