//! The balloon, the console and the sockets, with a real Linux.

use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};

use vmm::kvm::{Console, Vsock};

use super::*;

/// A Linux that tries the devices of this name.
fn trying(what: &str) -> Option<Spec> {
    let mut spec = spec("");
    spec.boot = linux_without_modules(guests::devices(), what)?;
    spec.memory_mib = 56;
    Some(spec)
}

/// Wait until this holds.
fn until(guest: &Guest, what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what}: {}", guest.text());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn memory_that_a_guest_does_without_goes_back_to_the_host() {
    let Some(mut spec) = trying("balloon") else { return };
    spec.memory_mib = 44;
    spec.balloon = true;
    let guest = Guest::new(spec).unwrap();
    let balloon = || guest.machine.balloon().unwrap();
    guest.machine.control(Control::Start).unwrap();
    guest.prints("USED\r\n");
    let used = (guest.machine.resident(), balloon().given_back);

    guest.machine.control(Control::Balloon { mib: 12 }).unwrap();
    until(&guest, "inflating", || balloon().actual_mib == 12);
    guest.prints("INFLATED\r\n");
    let inflated = (guest.machine.resident(), balloon().given_back);
    assert!(inflated.1 - used.1 >= 12 << 20, "{used:?} {inflated:?}");
    // All but 8 MiB of what was free, and so of what is in the balloon, had been used before.
    assert!(inflated.0 + (3 << 20) <= used.0, "{used:?} {inflated:?}");

    // Nobody is told of a change while the machine stands still, and yet it comes.
    guest.machine.control(Control::Pause).unwrap();
    guest.machine.control(Control::Balloon { mib: 0 }).unwrap();
    guest.machine.control(Control::Resume).unwrap();
    until(&guest, "deflating", || balloon().actual_mib == 0);
    guest.prints("DEFLATED\r\n");
    let start = Instant::now();
    guest.prints("USED-AGAIN\r\n");
    println!(
        "used {used:?}, inflated {inflated:?}, again after {:?}",
        start.elapsed()
    );
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
    assert_eq!(guest.machine.resident(), 0, "an ended machine keeps no memory");
}

#[test]
fn free_pages_are_reported() {
    let Some(mut spec) = trying("free") else { return };
    // Smaller blocks than Linux reports by itself, so that they need not make up 128 MiB.
    if let Boot::Kernel(kernel) = &mut spec.boot {
        kernel
            .command_line
            .insert_str(0, "page_reporting.page_reporting_order=5 ");
    }
    spec.balloon = true;
    let guest = Guest::new(spec).unwrap();
    let balloon = || guest.machine.balloon().unwrap();
    guest.machine.control(Control::Start).unwrap();
    guest.prints("USED\r\n");
    let used = guest.machine.resident();
    guest.prints("FREE\r\n");
    // Of 12 MiB, up to an eighth of the guest's memory waits in its processor's own lists, which are not reported.
    until(&guest, "reporting", || {
        guest.machine.resident() + (4 << 20) <= used
    });
    let status = balloon();
    assert_eq!(
        (status.target_mib, status.actual_mib),
        (0, 0),
        "without a balloon"
    );
    assert!(status.given_back >= 4 << 20, "{status:?}");
    println!("{used} bytes, then {}", guest.machine.resident());
    guest.prints("USED-AGAIN\r\n");
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
}

#[test]
fn a_balloon_that_there_cannot_be_is_refused() {
    if usable().is_none() {
        return;
    }
    let guest = Guest::new(spec("no")).unwrap();
    let refused = guest.machine.control(Control::Balloon { mib: 0 });
    assert!(matches!(refused, Err(MachineError::Balloon { mib: 0 })));
    assert_eq!(guest.machine.balloon(), None);
    let guest = Guest::new(Spec {
        balloon: true,
        ..spec("no")
    })
    .unwrap();
    let refused = guest.machine.control(Control::Balloon { mib: 17 });
    assert!(matches!(refused, Err(MachineError::Balloon { mib: 17 })));
    guest.machine.control(Control::Balloon { mib: 16 }).unwrap();
    let refused = Guest::new(Spec {
        balloon: true,
        huge_pages: true,
        ..spec("no")
    });
    assert!(matches!(refused, Err(MachineError::HugeBalloon)));
}

#[test]
fn a_guest_prints_and_reads_on_its_second_console() {
    let Some(mut spec) = trying("console") else { return };
    let printed = Arc::new(Mutex::new(Vec::new()));
    let there = printed.clone();
    spec.console = Some(Console(Box::new(move |bytes: &[u8]| {
        there.lock().unwrap().extend_from_slice(bytes);
    })));
    let guest = Guest::new(spec).unwrap();
    let text = || String::from_utf8_lossy(&printed.lock().unwrap()).into_owned();
    guest.machine.control(Control::Start).unwrap();
    until(&guest, "hvc0", || text().contains("HELLO-FROM-HVC"));
    assert_eq!(guest.machine.type_in(b"knock\n"), 6);
    until(&guest, "knock", || text().contains("HEARD knock"));
    guest.machine.control(Control::Pause).unwrap();
    assert_eq!(guest.machine.type_in(b"knock-knock\n"), 12);
    guest.machine.control(Control::Resume).unwrap();
    until(&guest, "knock-knock", || text().contains("HEARD knock-knock"));
    assert!(!guest.text().contains("HVC"), "each console has its own");
    guest.machine.type_in(b"quit\n");
    assert_eq!(guest.ends(), Ending::PoweredOff);
    assert_eq!(
        guest.machine.type_in(&[0; 5000]),
        4096,
        "a bounded number waits for nobody"
    );
}

/// Read all that there is to come.
fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

#[test]
fn guest_and_host_reach_each_other_by_sockets() {
    let Some(mut spec) = trying("vsock") else { return };
    let folder = tempfile::tempdir().unwrap();
    let door = folder.path().join("door");
    let service = UnixListener::bind(folder.path().join("vsock_1234")).unwrap();
    spec.vsock = Some(Vsock {
        cid: 52,
        listener: Some(UnixListener::bind(&door).unwrap()),
        folder: Some(folder.path().into()),
    });
    let guest = Guest::new(spec).unwrap();
    guest.machine.control(Control::Start).unwrap();
    guest.prints("REFUSED\r\n");

    let (mut stream, _) = service.accept().unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    // The guest's credit is used up before somebody reads; and a pause loses nothing.
    std::thread::sleep(Duration::from_secs(1));
    guest.machine.control(Control::Pause).unwrap();
    guest.machine.control(Control::Resume).unwrap();
    let start = Instant::now();
    let got = rest(&mut stream);
    println!("192 KiB from the guest in {:?}", start.elapsed());
    let wanted = |modulus: usize| -> Vec<u8> { (0..192 << 10).map(|at| (at % modulus) as u8).collect() };
    assert!(got == wanted(251), "{} bytes, or others", got.len());
    stream.write_all(&wanted(241)).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    guest.prints("ECHOED\r\n");
    assert_eq!(rest(&mut stream), b"");

    let ask = |text: &str| {
        let mut stream = UnixStream::connect(&door).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    };
    for nonsense in ["GET / HTTP/1.1\n", "CONNECT 78\n", &"x".repeat(100)] {
        let mut stream = ask(nonsense);
        let mut bytes = Vec::new();
        // What was not read turns the end into a reset.
        let _ = stream.read_to_end(&mut bytes);
        assert_eq!(bytes, b"", "{nonsense}");
    }
    // Who says nothing keeps nobody out.
    let silent: Vec<_> = (0..40).map(|_| ask("CONN")).collect();
    for _ in 0..2 {
        let mut stream = ask("CONNECT 77\nand more");
        let answer = line(&mut stream);
        assert!(answer.starts_with("OK "), "{answer}");
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"and more");
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut bytes[..4]).unwrap();
        assert_eq!(&bytes[..4], b"ping");
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rest(&mut stream), b"", "the guest closes, too");
    }
    drop(silent);
    let mut stream = ask("CONNECT 77\nq");
    assert_eq!(guest.ends(), Ending::PoweredOff);
    assert!(line(&mut stream).starts_with("OK "));
    assert_eq!(
        rest(&mut stream),
        b"",
        "the end of the guest is the end of its connections"
    );
}

#[test]
fn addresses_that_are_not_a_guests_are_refused() {
    if usable().is_none() {
        return;
    }
    for cid in [0, 2, u32::MAX] {
        let vsock = Vsock {
            cid,
            listener: None,
            folder: None,
        };
        let refused = Guest::new(Spec {
            vsock: Some(vsock),
            ..spec("no")
        });
        assert!(matches!(refused, Err(MachineError::Cid(_))), "{cid}");
    }
}
