//! One system call of the monitor's, by the process or a thread that is locked further in. Whether it succeeds interests nobody, but
//! whether it may be made.

use std::os::unix::net::UnixDatagram;

use nix::sys::memfd::{MFdFlags, memfd_create};
use process::child::Start;
use process::jail::{Thread, narrow};

/// The child's whole life.
pub fn run(start: Start) -> Result<(), String> {
    let (who, what): (String, String) = start.spec().map_err(|e| e.to_string())?;
    let daemon = start.ready().map_err(|e| e.to_string())?;
    let said = match who.as_str() {
        "vcpu" => on_a_thread(Thread::Vcpu, what),
        "device" => on_a_thread(Thread::Device, what),
        _ => attempt(&what),
    };
    daemon.send(&said, &[]).map_err(|e| e.to_string())
}

fn on_a_thread(thread: Thread, what: String) -> String {
    let tried = std::thread::spawn(move || match narrow(thread) {
        Ok(()) => attempt(&what),
        Err(error) => error.to_string(),
    });
    tried.join().unwrap_or_else(|_| "it panicked".into())
}

fn attempt(what: &str) -> String {
    match what {
        "socket" => drop(UnixDatagram::unbound()),
        "internet" => drop(std::net::UdpSocket::bind("127.0.0.1:0")),
        "thread" => drop(
            std::thread::Builder::new()
                .spawn(|| ())
                .map(std::thread::JoinHandle::join),
        ),
        "memfd" => drop(memfd_create(c"x", MFdFlags::empty())),
        _ => {
            if let Some(number) = what.strip_prefix("kvm ") {
                let number = u64::from_str_radix(number, 16).unwrap_or(0);
                // SAFETY: standard input is no KVM: it answers with an error, and touches no memory.
                #[allow(unsafe_code)]
                unsafe {
                    libc::ioctl(0, 0xae00 | number, 0);
                }
            }
        }
    }
    "ran".into()
}
