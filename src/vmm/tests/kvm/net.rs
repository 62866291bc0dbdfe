//! A real Linux's network, over a backend that comes late, is replaced, and dies.

#[path = "../backend/mod.rs"]
mod backend;

use std::path::PathBuf;

use model::net::MacAddr;
use tempfile::TempDir;
use vmm::kvm::{Nic, NicStatus};

use self::backend::{Backend, offer};
use super::*;

const GUEST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 5];
const GUEST: [u8; 4] = [10, 0, 0, 5];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST: [u8; 4] = [10, 0, 0, 1];
/// Feature bits of what the switch does with packets (virtio 1.2 §5.1.3): checksums, TCP segmentation, merged buffers.
const SWITCH: u64 = 0x9983;
/// EtherType, IP header, UDP header.
const ARP: [u8; 2] = [8, 6];
const PAYLOAD: usize = 14 + 20 + 8;

/// The network on the other side: it answers who 10.0.0.1 is, and keeps what comes in datagrams.
struct Net {
    folder: TempDir,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Net {
    fn new() -> Self {
        Net {
            folder: tempfile::tempdir().unwrap(),
            heard: Arc::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("net-0")
    }

    fn backend(&self, rings: u16) -> Backend {
        let heard = self.heard.clone();
        Backend::start(&self.path(), offer(SWITCH, rings), move |frame| {
            if frame.len() >= 42 && frame[12..14] == ARP && frame[38..42] == HOST {
                return vec![arp_reply(frame)];
            }
            if frame.len() > PAYLOAD && frame[23] == 17 && frame[30..34] == HOST {
                let length = usize::from(u16::from_be_bytes([frame[38], frame[39]]));
                heard.lock().unwrap().push(frame[PAYLOAD..34 + length].to_vec());
            }
            Vec::new()
        })
    }

    fn hears(&self, guest: &Guest, what: &[u8]) {
        let start = Instant::now();
        while !self.has_heard(what) {
            assert!(start.elapsed() < LONG, "{:?} {:?}", guest.text(), status(guest));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn has_heard(&self, what: &[u8]) -> bool {
        self.heard.lock().unwrap().iter().any(|one| one == what)
    }

    /// A datagram that comes back; sent again where there was nobody yet to take it.
    fn ask(&self, guest: &Guest, backend: &Backend, what: &str) {
        self.heard.lock().unwrap().clear();
        let start = Instant::now();
        for second in 0.. {
            backend.send(datagram(what.as_bytes()));
            while start.elapsed().as_secs() <= second {
                if self.has_heard(what.as_bytes()) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            assert!(start.elapsed() < LONG, "{:?} {:?}", guest.text(), status(guest));
        }
    }
}

fn arp_reply(request: &[u8]) -> Vec<u8> {
    let mut reply = [&GUEST_MAC[..], &HOST_MAC, &request[12..20], &[0, 2]].concat();
    reply.extend(HOST_MAC);
    reply.extend(HOST);
    reply.extend(&request[22..32]);
    reply
}

/// From port 7 to port 7.
fn datagram(payload: &[u8]) -> Vec<u8> {
    let length = |more: usize| ((payload.len() + more) as u16).to_be_bytes();
    let [a, b] = length(28);
    let mut ip = vec![0x45, 0, a, b, 0, 0, 0x40, 0, 64, 17, 0, 0];
    ip.extend([HOST, GUEST].concat());
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    let [a, b] = length(8);
    // No checksum, as IPv4 allows.
    let udp = [0, 7, 0, 7, a, b, 0, 0];
    [&GUEST_MAC[..], &HOST_MAC, &[8, 0], &ip, &udp, payload].concat()
}

fn status(guest: &Guest) -> NicStatus {
    guest.machine.nic("net0").unwrap()
}

#[test]
fn linux_exchanges_packets_over_the_deaths_of_its_backend() {
    let Some(boot) = linux_without_modules(guests::network(), "") else {
        return;
    };
    let net = Net::new();
    let mut spec = spec("");
    spec.memory_mib = 128;
    spec.boot = boot;
    spec.nics.push(Nic {
        name: "net0".into(),
        mac: MacAddr(GUEST_MAC),
        mtu: 1442,
        queue_pairs: 2,
        connect: Nic::at(net.path()),
    });
    let guest = Guest::new(spec).unwrap();
    guest.machine.control(Control::Start).unwrap();
    // Nobody listens when it boots.
    guest.prints("eth0 02:00:00:00:00:05 mtu 1442");
    guest.prints("link down");
    assert!(!status(&guest).connected);
    let mut backend = net.backend(4);
    guest.prints("link up");
    net.hears(&guest, b"hello");
    let links = || guest.text().matches("link").count();
    let before = links();

    let start = Instant::now();
    for number in 0..20 {
        net.ask(&guest, &backend, &format!("question {number}"));
    }
    println!("20 questions in {:?}", start.elapsed());
    // Killed while the guest sends, with what it holds, and after a silence; away for a moment, and back.
    for number in 0..3u64 {
        match number {
            0 => {}
            1 => backend.hold(),
            _ => backend.be_deaf(),
        }
        std::thread::sleep(Duration::from_millis(500));
        drop(backend);
        let start = Instant::now();
        std::thread::sleep(Duration::from_millis(150 + number * 300));
        net.heard.lock().unwrap().clear();
        backend = net.backend(4);
        let back = Instant::now();
        net.hears(&guest, b"hello");
        println!(
            "away for {:?}, heard again after {:?}",
            back - start,
            back.elapsed()
        );
        net.ask(&guest, &backend, "are you there?");
    }
    assert!(backend.seen().running == [0, 1].into(), "{:?}", backend.seen());
    net.ask(&guest, &backend, "pairs 2");
    guest.prints("pairs 2 of 2");
    assert!(backend.seen().running == (0..4).collect(), "{:?}", backend.seen());
    net.ask(&guest, &backend, "two");

    guest.machine.control(Control::Pause).unwrap();
    assert!(backend.seen().running.is_empty());
    drop(backend);
    backend = net.backend(4);
    guest.machine.control(Control::Resume).unwrap();
    net.ask(&guest, &backend, "awake?");
    assert!(backend.seen().running == (0..4).collect(), "{:?}", backend.seen());
    assert_eq!(
        links(),
        before,
        "the guest has seen nothing of it: {:?}",
        guest.text()
    );

    // Nobody waits for one that is deaf for long.
    backend.be_deaf();
    let start = Instant::now();
    guest.machine.control(Control::Reset).unwrap();
    println!("reset after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(10));
    drop(backend);
    backend = net.backend(4);
    net.heard.lock().unwrap().clear();
    net.hears(&guest, b"hello");
    net.ask(&guest, &backend, "again");
    assert!(backend.seen().running == [0, 1].into(), "{:?}", backend.seen());
    backend.send(datagram(b"off"));
    assert_eq!(guest.ends(), Ending::PoweredOff);
    assert!(!guest.text().contains("failed"), "{:?}", guest.text());
}
