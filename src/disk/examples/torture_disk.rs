//! Kills `allod disk` with -9 at queue depth 32 under verified writes, again and again, and looks for one wrong block.
//!
//! ```text
//! torture_disk [--kills N] [--seed N] [--dir DIR] [--cached] [--threads] [--encrypted] [--limited] [--forgetful] [--flip]
//! ```
//! The program is guest, monitor and supervisor in one: it drives a volume over vhost-user, kills the backend (itself, executed
//! again) at random moments, starts the next one, and resumes as QEMU does. Each block carries its number, a sequence number and a
//! checksum. What is held:
//!
//! - every request is completed exactly once (a second completion is one that nobody waits for);
//! - a read returns the block's last completed write, whole;
//! - at the end the file on disk holds exactly what was acknowledged.
//!
//! `--limited` lets most requests wait for their turn in the backend's limits.
//! `--forgetful` leaves out the inflight record, `--flip` changes one bit of the file before it is compared; both must find fault: they
//! show that the torture can.

#[path = "../tests/driver/mod.rs"]
mod driver;

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{fs::FileExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use disk::EngineKind;
use disk::crypt::Cipher;
use driver::{Done, Driver, Options, T_FLUSH, T_IN, T_OUT, listen};
use model::disk::{DiskKey, DiskLimits, DiskSpec, Rate};
use uuid::Uuid;
use vm_memory::Bytes;

const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
const DEPTH: usize = 32;
const QUEUES: u16 = 2;
/// The descriptors that a backend is started with.
const FILE: i32 = 3;
const VHOST: i32 = 4;
const CONTROL: i32 = 5;

#[derive(Debug, Clone)]
struct Arguments {
    kills: u32,
    seed: u64,
    dir: PathBuf,
    cached: bool,
    threads: bool,
    encrypted: bool,
    limited: bool,
    forgetful: bool,
    flip: bool,
}

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mut arguments = Arguments {
        kills: 200,
        seed: std::process::id().into(),
        dir: std::env::temp_dir(),
        cached: false,
        threads: false,
        encrypted: false,
        limited: false,
        forgetful: false,
        flip: false,
    };
    let mut backend = false;
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|w| w.parse().ok()).expect("a number");
        match word.as_str() {
            "--kills" => arguments.kills = number() as u32,
            "--seed" => arguments.seed = number(),
            "--dir" => arguments.dir = words.next().expect("a directory").into(),
            "--cached" => arguments.cached = true,
            "--threads" => arguments.threads = true,
            "--encrypted" => arguments.encrypted = true,
            "--limited" => arguments.limited = true,
            "--forgetful" => arguments.forgetful = true,
            "--flip" => arguments.flip = true,
            "--backend" => backend = true,
            other => panic!("unknown argument {other}"),
        }
    }
    if backend {
        serve(&arguments)
    } else {
        torture(&arguments)
    }
}

fn spec(arguments: &Arguments) -> DiskSpec {
    DiskSpec {
        id: Uuid::from_u128(7),
        size: BLOCKS * BLOCK as u64,
        read_only: false,
        queues: QUEUES,
        direct: !arguments.cached,
        transport: model::disk::DiskTransport::VhostUser,
        key: arguments.encrypted.then(key),
        limits: DiskLimits {
            // What passes before any waits is little, in a life of a few milliseconds too.
            total_iops: arguments.limited.then_some(Rate::steady(100)),
            ..DiskLimits::default()
        },
    }
}

fn key() -> DiskKey {
    DiskKey {
        lineage: Uuid::from_u128(8),
        data: [0x5a; 32],
        tweak: [0xa5; 32],
    }
}

/// The backend's life.
fn serve(arguments: &Arguments) -> ExitCode {
    // SAFETY: the supervisor put these descriptors there for us, and nobody else in this process uses them.
    #[allow(unsafe_code)]
    let [file, vhost, control] = [FILE, VHOST, CONTROL].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    let engine = if arguments.threads {
        EngineKind::Threads
    } else {
        EngineKind::Best
    };
    match disk::run_with(spec(arguments), file, vhost, control, engine) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("backend: {error}");
            ExitCode::FAILURE
        }
    }
}

fn torture(arguments: &Arguments) -> ExitCode {
    let start = Instant::now();
    let dir = tempfile::tempdir_in(&arguments.dir).expect("a directory");
    let path = dir.path().join("volume");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .expect("a volume");
    file.set_len(spec(arguments).size).expect("a volume");
    let supervisor = Supervisor {
        arguments: arguments.clone(),
        descriptors: [
            file.into(),
            listen(&dir.path().join("vhost")).expect("a socket"),
            listen(&dir.path().join("control")).expect("a socket"),
        ],
    };
    let mut random = Random(arguments.seed | 1);
    let mut backend = supervisor.start();
    let mut guest = Guest::new(&dir.path().join("vhost"), !arguments.forgetful);
    let mut wrong = 0;
    for kill in 0..arguments.kills {
        // From "not even negotiated" to "busy for a while".
        let life = Duration::from_micros(random.below(8000));
        let end = Instant::now() + life;
        while Instant::now() < end && wrong == 0 {
            guest.fill(&mut random);
            wrong += guest.drain(end.saturating_duration_since(Instant::now()));
        }
        backend.end();
        backend = supervisor.start();
        if kill % 8 == 7 {
            // Some die while they take over.
            std::thread::sleep(Duration::from_micros(random.below(6000)));
            backend.end();
            backend = supervisor.start();
        }
        guest.carried += guest.driver.in_flight() as u64;
        guest.driver.reconnect().expect("resuming");
        if wrong > 0 {
            break;
        }
    }
    wrong += guest.finish();
    backend.end();
    if arguments.flip {
        flip(&path, &mut random);
    }
    let cipher = arguments.encrypted.then(|| Cipher::new(&key()));
    wrong += guest.compare(&path, cipher.as_ref());
    println!(
        "torture disk{}: {} kills at depth {DEPTH}, {} writes, {} reads, {} flushes, {} in flight at a death, {wrong} blocks wrong, seed {}, {:.1} s",
        if arguments.encrypted { ", encrypted" } else { "" },
        arguments.kills,
        guest.writes,
        guest.reads,
        guest.flushes,
        guest.carried,
        arguments.seed,
        start.elapsed().as_secs_f64()
    );
    if wrong == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// One bit of the file is another.
fn flip(path: &Path, random: &mut Random) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .expect("the volume");
    // In the part that is written most.
    let at = random.below(64 * BLOCK as u64);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the volume");
    byte[0] ^= 1 << random.below(8);
    file.write_all_at(&byte, at).expect("the volume");
}

struct Supervisor {
    arguments: Arguments,
    descriptors: [OwnedFd; 3],
}

impl Supervisor {
    fn start(&self) -> Backend {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--backend").stdin(Stdio::null());
        if self.arguments.cached {
            command.arg("--cached");
        }
        if self.arguments.threads {
            command.arg("--threads");
        }
        if self.arguments.encrypted {
            command.arg("--encrypted");
        }
        if self.arguments.limited {
            command.arg("--limited");
        }
        let from: Vec<i32> = self.descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let place = move || {
            // Out of the way first, so that no source is overwritten before it was copied.
            for (fd, high) in from.iter().zip(100..) {
                duplicate(*fd, high)?;
            }
            for (fd, high) in (FILE..).zip(100..100 + from.len() as i32) {
                duplicate(high, fd)?;
            }
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: between fork and exec only dup2, fcntl and prctl are called, which are async-signal-safe.
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(place);
        }
        Backend(command.spawn().expect("starting the backend"))
    }
}

/// A running backend; it does not outlive us.
struct Backend(Child);

impl Backend {
    fn end(&mut self) {
        self.0
            .kill()
            .and_then(|()| self.0.wait())
            .expect("killing the backend");
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn duplicate(from: i32, to: i32) -> std::io::Result<()> {
    // SAFETY: descriptors are plain numbers here, in a process that is about to execute another program.
    #[allow(unsafe_code)]
    unsafe {
        if libc::dup2(from, to) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        if to < 100 && libc::fcntl(to, libc::F_SETFD, 0) < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// xorshift64*: the same seed gives the same requests.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Request {
    Write { block: u64, sequence: u64 },
    Read { block: u64 },
    Flush,
}

struct Guest {
    driver: Driver,
    /// By block: the sequence number that was acknowledged last.
    acknowledged: Vec<u64>,
    /// Blocks with a request under way: never two at once, so that there is one right answer.
    locked: Vec<bool>,
    under_way: Vec<Vec<Option<Request>>>,
    sequence: u64,
    writes: u64,
    reads: u64,
    flushes: u64,
    carried: u64,
}

impl Guest {
    fn new(path: &Path, inflight: bool) -> Self {
        Self {
            driver: Driver::new(
                path,
                Options {
                    queues: QUEUES,
                    inflight,
                    ..Options::default()
                },
            ),
            acknowledged: vec![0; BLOCKS as usize],
            locked: vec![false; BLOCKS as usize],
            under_way: vec![vec![None; driver::DEPTH]; usize::from(QUEUES)],
            sequence: 0,
            writes: 0,
            reads: 0,
            flushes: 0,
            carried: 0,
        }
    }

    /// Keeps the queue full.
    fn fill(&mut self, random: &mut Random) {
        let mut added = [0; QUEUES as usize];
        while self.driver.in_flight() < DEPTH {
            let ring = random.below(QUEUES.into()) as usize;
            let Some(slot) = self.driver.free_slot(ring) else {
                continue;
            };
            // A small range is hot, so that blocks are rewritten often.
            let range = if random.below(2) == 0 { 64 } else { BLOCKS };
            let block = random.below(range);
            let request = match random.below(20) {
                0 => Request::Flush,
                _ if self.locked[block as usize] => continue,
                1..=6 => Request::Read { block },
                _ => {
                    self.sequence += 1;
                    Request::Write {
                        block,
                        sequence: self.sequence,
                    }
                }
            };
            self.submit(ring, slot, request);
            added[ring] += 1;
        }
        for (ring, count) in added.into_iter().enumerate() {
            if count > 0 {
                self.driver.kick(ring, count);
            }
        }
    }

    fn submit(&mut self, ring: usize, slot: usize, request: Request) {
        let at = self.driver.data(ring, slot);
        let sector = |block: u64| block * (BLOCK as u64 / 512);
        match request {
            Request::Write { block, sequence } => {
                self.locked[block as usize] = true;
                self.driver
                    .memory
                    .write_slice(&content(block, sequence), at)
                    .expect("guest memory");
                self.driver.submit(ring, slot, T_OUT, sector(block), BLOCK as u32);
            }
            Request::Read { block } => {
                self.locked[block as usize] = true;
                self.driver
                    .memory
                    .write_slice(&[0xee; BLOCK], at)
                    .expect("guest memory");
                self.driver.submit(ring, slot, T_IN, sector(block), BLOCK as u32);
            }
            Request::Flush => self.driver.submit(ring, slot, T_FLUSH, 0, 0),
        }
        self.under_way[ring][slot] = Some(request);
    }

    /// Takes what was completed, waiting a little if that is nothing; returns how many blocks were wrong.
    fn drain(&mut self, patience: Duration) -> u32 {
        let mut wrong = 0;
        for round in 0..2 {
            let mut any = false;
            for ring in 0..usize::from(QUEUES) {
                while let Some(done) = self.driver.poll(ring) {
                    wrong += u32::from(!self.completed(done));
                    any = true;
                }
            }
            if any || round == 1 {
                break;
            }
            self.driver.wait(patience);
        }
        wrong
    }

    fn completed(&mut self, done: Done) -> bool {
        let request = self.under_way[done.ring][done.slot].take();
        if done.status != 0 {
            eprintln!("a request failed with status {}", done.status);
            return false;
        }
        match request {
            Some(Request::Write { block, sequence }) => {
                self.writes += 1;
                self.acknowledged[block as usize] = sequence;
                self.locked[block as usize] = false;
                // What a device still reads after it said that it is done would become visible.
                let at = self.driver.data(done.ring, done.slot);
                self.driver
                    .memory
                    .write_slice(&[0xdd; BLOCK], at)
                    .expect("guest memory");
                true
            }
            Some(Request::Read { block }) => {
                self.reads += 1;
                self.locked[block as usize] = false;
                let mut bytes = [0; BLOCK];
                let at = self.driver.data(done.ring, done.slot);
                self.driver
                    .memory
                    .read_slice(&mut bytes, at)
                    .expect("guest memory");
                self.check(block, &bytes, "read")
            }
            Some(Request::Flush) => {
                self.flushes += 1;
                true
            }
            None => {
                eprintln!("slot {} of ring {} was completed twice", done.slot, done.ring);
                false
            }
        }
    }

    fn check(&self, block: u64, bytes: &[u8], where_: &str) -> bool {
        let sequence = self.acknowledged[block as usize];
        let right = content(block, sequence);
        if bytes == right {
            return true;
        }
        let found = u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]));
        eprintln!("{where_}: block {block} holds sequence {found}, not {sequence}");
        false
    }

    /// Waits for everything that is still under way.
    fn finish(&mut self) -> u32 {
        let mut wrong = 0;
        while self.driver.in_flight() > 0 {
            let done = self.driver.next();
            wrong += u32::from(!self.completed(done));
        }
        wrong
    }

    /// Compares the file with what was acknowledged.
    fn compare(&self, path: &Path, cipher: Option<&Cipher>) -> u32 {
        let file = File::open(path).expect("the volume");
        let mut bytes = [0; BLOCK];
        (0..BLOCKS)
            .filter(|block| {
                file.read_exact_at(&mut bytes, block * BLOCK as u64)
                    .expect("the volume");
                if let Some(cipher) = cipher {
                    cipher.open(block * BLOCK as u64, &mut bytes);
                }
                !self.check(*block, &bytes, "file")
            })
            .count() as u32
    }
}

/// Number, sequence, noise, checksum. Sequence 0 is a block that was never written.
fn content(block: u64, sequence: u64) -> Vec<u8> {
    if sequence == 0 {
        return vec![0; BLOCK];
    }
    let mut state = Random((block << 32 | sequence) | 1);
    let mut bytes = Vec::with_capacity(BLOCK);
    bytes.extend(block.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    while bytes.len() < BLOCK - 8 {
        bytes.extend(state.below(u64::MAX).to_le_bytes());
    }
    let sum = bytes
        .iter()
        .fold(0u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
    bytes.extend(sum.to_le_bytes());
    bytes
}
