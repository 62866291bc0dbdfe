//! A volume served by NBD, judged by QEMU's own client, and by clients that mean no good.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use model::disk::{DiskKey, DiskRequest, DiskSpec, DiskStatus, DiskTransport};
use process::control::Client;
use proptest::prelude::*;
use uuid::Uuid;

const SIZE: u64 = 8 << 20;

struct Served {
    dir: tempfile::TempDir,
    server: Option<std::thread::JoinHandle<Result<(), disk::ServeError>>>,
}

impl Served {
    fn new(read_only: bool) -> Served {
        Served::with(read_only, None)
    }

    fn with(read_only: bool, key: Option<DiskKey>) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(dir.path().join("volume"))
            .unwrap();
        file.set_len(SIZE).unwrap();
        let spec = DiskSpec {
            id: Uuid::from_u128(5),
            size: SIZE,
            read_only,
            queues: 1,
            direct: false,
            transport: DiskTransport::Nbd,
            key,
            limits: model::disk::DiskLimits::default(),
        };
        let socket = UnixListener::bind(dir.path().join("nbd")).unwrap();
        let control = process::control::bind(&dir.path().join("control")).unwrap();
        let server = std::thread::spawn(move || {
            disk::run(spec, file.into(), OwnedFd::from(socket), OwnedFd::from(control))
        });
        Served {
            dir,
            server: Some(server),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("nbd")
    }

    /// Runs commands of `qemu-io`; its output if all went well, else what it said.
    fn qemu_io(&self, commands: &[&str], read_only: bool) -> Result<String, String> {
        let mut io = Command::new("qemu-io");
        io.args(["-f", "raw"]);
        if read_only {
            io.arg("-r");
        }
        for command in commands {
            io.args(["-c", command]);
        }
        io.arg(format!("nbd+unix:///?socket={}", self.socket().display()));
        let output = io.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        let failed = !output.status.success() || text.contains("failed") || text.contains("error");
        if failed { Err(text) } else { Ok(text) }
    }

    fn call(&self, request: DiskRequest) -> Result<DiskStatus, String> {
        let mut client = Client::<DiskRequest, DiskStatus>::connect(
            &self.dir.path().join("control"),
            Duration::from_secs(10),
        )
        .map_err(|e| e.to_string())?;
        client.call(&request, &[]).map_err(|e| e.to_string())
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.call(DiskRequest::Stop).unwrap();
        self.server.take().unwrap().join().unwrap().unwrap();
    }
}

#[test]
fn qemus_client_reads_what_it_wrote() {
    client_reads_what_it_wrote(&Served::new(false));
}

#[test]
fn qemus_client_reads_what_it_wrote_encrypted() {
    let key = DiskKey {
        lineage: Uuid::from_u128(7),
        data: [3; 32],
        tweak: [4; 32],
    };
    let served = Served::with(false, Some(key));
    client_reads_what_it_wrote(&served);
    let bytes = std::fs::read(served.dir.path().join("volume")).unwrap();
    assert!(
        !bytes.windows(64).any(|part| part == [0x22; 64]),
        "the file shows it"
    );
}

fn client_reads_what_it_wrote(served: &Served) {
    served
        .qemu_io(
            &[
                "write -P 0x11 0 1M",
                "write -f -P 0x22 1048000 2M",
                "flush",
                "read -P 0x11 0 1048000",
                "read -P 0x22 1048000 2M",
                "read -P 0 4M 4M",
                "write -z 64k 64k",
                "write -z -u 256k 64k",
                "discard 512k 128k",
                "read -P 0 64k 64k",
                "read -P 0 256k 64k",
                "read -P 0 512k 128k",
                "read -P 0x11 128k 128k",
            ],
            false,
        )
        .unwrap();
    // A client of its own sees the same.
    served.qemu_io(&["read -P 0x22 1048000 2M"], true).unwrap();
    let status = served.call(DiskRequest::Status).unwrap();
    assert!(
        status.writes >= 2 && status.reads >= 4 && status.flushes >= 1,
        "{status:?}"
    );
    assert!(status.written_bytes >= 3 << 20, "{status:?}");
}

#[test]
fn a_read_only_volume_is_not_written() {
    let served = Served::new(true);
    served.qemu_io(&["read -P 0 0 1M"], true).unwrap();
    served.qemu_io(&["write -P 1 0 512"], false).unwrap_err();
    // A client that does not care about the flag is refused all the same.
    let mut stream = negotiated(&served);
    stream.write_all(&request(1, 0, 0, 4)).unwrap();
    stream.write_all(b"evil").unwrap();
    assert_eq!(answer(&mut stream), 1, "EPERM");
    assert!(
        std::fs::read(served.dir.path().join("volume"))
            .unwrap()
            .iter()
            .all(|b| *b == 0)
    );
}

#[test]
fn requests_beyond_the_end_are_refused_and_the_next_is_served() {
    let served = Served::new(false);
    let mut stream = negotiated(&served);
    for (kind, offset, length, code) in [
        (0, SIZE, 1, 22),
        (0, SIZE - 1, 2, 22),
        (0, u64::MAX, u32::MAX, 22),
        (4, SIZE - 1, 2, 28),
        (6, 0, u32::MAX, 28),
        (9, 0, 0, 22),
        (3, 0, 0, 0),
    ] {
        stream.write_all(&request(kind, 0, offset, length)).unwrap();
        assert_eq!(answer(&mut stream), code, "{kind} {offset} {length}");
    }
}

fn request(kind: u16, flags: u16, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(7u64.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// A connection after `NBD_OPT_EXPORT_NAME`.
fn negotiated(served: &Served) -> UnixStream {
    let mut stream = UnixStream::connect(served.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&3u32.to_be_bytes()).unwrap();
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn answer(stream: &mut UnixStream) -> u32 {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[8..], 7u64.to_be_bytes());
    u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a client says, the next one is served.
    #[test]
    fn a_client_of_any_words_does_no_harm(words in proptest::collection::vec(any::<u8>(), 0..200), late in any::<bool>()) {
        let served = Served::new(false);
        let mut stream = if late { negotiated(&served) } else { UnixStream::connect(served.socket()).unwrap() };
        // It may hang up in the middle.
        let _ = stream.write_all(&words);
        drop(stream);
        let mut next = negotiated(&served);
        next.write_all(&request(0, 0, 0, 512)).unwrap();
        prop_assert_eq!(answer(&mut next), 0);
    }
}
