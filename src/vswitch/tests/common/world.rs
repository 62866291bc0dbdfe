//! Network namespaces in the place of guests, plugged into a running switch.
#![allow(unsafe_code)] // One ioctl.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use model::net::{SwitchRequest, SwitchStatus, Tables, TapTarget};
use nix::sched::{CloneFlags, setns};
use process::control::Client;

static COUNT: AtomicU32 = AtomicU32::new(0);

nix::ioctl_write_ptr_bad!(tun_set_iff, 0x4004_54ca, libc::ifreq);

/// Runs a program and returns what it said; it must succeed.
pub fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", said(&output));
    said(&output)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A network namespace with one TAP, `eth0`.
#[derive(Debug)]
pub struct Guest {
    /// The namespace's name.
    pub name: String,
    /// The TAP's other end.
    pub tap: OwnedFd,
}

impl Guest {
    /// Makes a namespace. `mac`: of its interface.
    pub fn new(mac: model::net::MacAddr) -> Self {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("allod-{}-{number}", std::process::id());
        sh(&format!("ip netns add {name}"));
        let tap = tap(&format!("at{}x{number}", std::process::id()));
        let device = format!("at{}x{number}", std::process::id());
        sh(&format!(
            "ip link set {device} netns {name} && ip -n {name} link set {device} name eth0 address {mac} \
             && ip -n {name} link set lo up && ip -n {name} link set eth0 up"
        ));
        Self { name, tap }
    }

    /// With this address, and a default route through `via`.
    pub fn addressed(mac: model::net::MacAddr, address: &str, via: Option<&str>) -> Self {
        let guest = Self::new(mac);
        guest.sh(&format!("ip addr add {address} dev eth0"));
        if let Some(via) = via {
            guest.sh(&format!("ip route add default via {via}"));
        }
        guest
    }

    /// Runs a shell line inside.
    pub fn try_sh(&self, line: &str) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.name, "sh", "-c", line])
            .output()
            .unwrap()
    }

    /// Runs a shell line inside that must succeed.
    pub fn sh(&self, line: &str) -> String {
        let output = self.try_sh(line);
        assert!(
            output.status.success(),
            "{}: {line}: {}",
            self.name,
            said(&output)
        );
        said(&output)
    }

    /// Runs code on a thread inside.
    pub fn spawn<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            code()
        })
    }

    /// Runs code inside and waits for it.
    pub fn run<T: Send + 'static>(&self, code: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(code).join().unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Servers of a test that failed half-way; nobody else is in this namespace.
        if let Ok(inside) = Command::new("ip").args(["netns", "pids", &self.name]).output() {
            for pid in said(&inside)
                .split_whitespace()
                .filter_map(|pid| pid.parse().ok())
            {
                if pid != std::process::id() as i32 {
                    let _ = nix::sys::signal::kill(
                        nix::unistd::Pid::from_raw(pid),
                        nix::sys::signal::Signal::SIGKILL,
                    );
                }
            }
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

fn tap(name: &str) -> OwnedFd {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the kernel reads an ifreq.
    unsafe { tun_set_iff(file.as_raw_fd(), &request) }.unwrap();
    file.into()
}

/// A running switch with its control connection.
pub struct World {
    client: Client<SwitchRequest, Option<SwitchStatus>>,
    thread: Option<JoinHandle<()>>,
    /// Its folder.
    pub folder: tempfile::TempDir,
}

impl World {
    /// Starts a switch with these tables.
    pub fn start(tables: &Tables) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || vswitch::run(listener.into()).unwrap());
        let client = Client::connect(&path, Duration::from_secs(20)).unwrap();
        let mut world = Self {
            client,
            thread: Some(thread),
            folder,
        };
        world.apply(tables);
        world
    }

    /// New tables.
    pub fn apply(&mut self, tables: &Tables) {
        assert_eq!(
            self.client
                .call(&SwitchRequest::Apply(tables.clone()), &[])
                .unwrap(),
            None
        );
    }

    /// Plugs a namespace in.
    pub fn plug(&mut self, target: TapTarget, guest: &Guest) {
        self.client
            .call(&SwitchRequest::AddTap { target }, &[guest.tap.as_fd()])
            .unwrap();
    }

    /// Plugs a vhost-user socket in.
    pub fn plug_vhost(&mut self, port: uuid::Uuid, listener: &UnixListener) {
        self.client
            .call(&SwitchRequest::AddVhostUser { port }, &[listener.as_fd()])
            .unwrap();
    }

    /// Takes the control connection away and makes a new one, as a new daemon does.
    pub fn reconnect(&mut self) {
        self.client = Client::connect(&self.folder.path().join("control"), Duration::from_secs(20)).unwrap();
    }

    /// The switch's state.
    pub fn status(&mut self) -> SwitchStatus {
        self.client.call(&SwitchRequest::Status, &[]).unwrap().unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.client.call(&SwitchRequest::Stop, &[]);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the switch panicked");
        }
    }
}
