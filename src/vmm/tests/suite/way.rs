//! Ways to run a machine: in this process now; others can join as functions of the type [`Way`].

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use model::disk::DiskStatus;
use model::machine::StopMode;
use tempfile::TempDir;
use virtio::block::Geometry;
use virtio::fuzzing::RamDisk;
use vmm::kvm::{Boot, Control, CpuModel, Disk, Kernel, Machine, Offer, Spec, State, probe};

use super::guest;

/// Longer than anything here takes, on a busy machine with an emulated processor.
pub const LONG: Duration = Duration::from_secs(100);

/// What this host's KVM offers, if a machine can be had.
pub fn usable() -> Option<&'static Offer> {
    static OFFER: OnceLock<Option<Offer>> = OnceLock::new();
    let offer = OFFER.get_or_init(|| probe().ok().filter(|offer| offer.lacks().is_empty()));
    if offer.is_none() {
        println!("skipped: there is no usable KVM");
    }
    offer.as_ref()
}

/// The guest.
pub fn image() -> File {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        guest::build(
            Path::new(env!("CARGO_MANIFEST_DIR")),
            &folder.path().join("suite"),
        );
        folder
    });
    File::open(folder.path().join("suite")).unwrap()
}

/// A machine for the suite: a disk, one that is read-only, and the entropy device.
#[derive(Debug, Clone)]
pub struct Shape {
    pub command: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub disk_bytes: usize,
}

impl Shape {
    /// A small one with this command.
    pub fn new(command: &str) -> Self {
        Shape {
            command: command.into(),
            vcpus: 1,
            memory_mib: 16,
            disk_bytes: 1 << 20,
        }
    }
}

/// How a machine of this shape is started.
pub type Way = fn(Shape) -> Box<dyn In>;

/// A machine that was started.
pub trait In {
    /// What it has printed.
    fn text(&self) -> String;
    /// It is no more.
    fn ended(&self) -> bool;
    fn resize(&self, disk: &str, bytes: u64);
    fn pause_and_resume(&self);
    fn reset(&self);
    fn stop(&self);
    fn disk(&self, name: &str) -> Option<DiskStatus>;
}

struct Here {
    machine: Machine,
    printed: Arc<Mutex<Vec<u8>>>,
}

/// Bytes of the disk from its end on, for one that grows.
const SPARE: usize = 1 << 20;

fn disk(name: &str, bytes: usize, queues: u16, read_only: bool) -> Disk {
    Disk {
        name: name.into(),
        geometry: Geometry {
            sectors: bytes as u64 / 512,
            read_only,
            queues,
            serial: [b's'; 20],
        },
        storage: Box::new(RamDisk::new(Arc::new(Mutex::new(vec![0; bytes + SPARE]))).unwrap()),
    }
}

/// In this process.
pub fn here(shape: Shape) -> Box<dyn In> {
    let image = image();
    let spec = Spec {
        kvm: None,
        vcpus: shape.vcpus,
        memory_mib: shape.memory_mib,
        huge_pages: false,
        cpu: CpuModel::Host,
        boot: Boot::Kernel(Kernel {
            image,
            initrd: None,
            command_line: shape.command,
        }),
        disks: vec![
            disk("disk", shape.disk_bytes, 4, false),
            disk("other", 1 << 20, 1, true),
        ],
        nics: Vec::new(),
        balloon: false,
        console: None,
        vsock: None,
    };
    let printed = Arc::new(Mutex::new(Vec::new()));
    let there = printed.clone();
    let machine = Machine::new(spec, move |bytes: &[u8]| {
        there.lock().unwrap().extend_from_slice(bytes)
    })
    .unwrap();
    machine.control(Control::Start).unwrap();
    Box::new(Here { machine, printed })
}

impl In for Here {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed.lock().unwrap()).into_owned()
    }

    fn ended(&self) -> bool {
        matches!(self.machine.status().state, State::Ended(_))
    }

    fn resize(&self, disk: &str, bytes: u64) {
        let disk = disk.to_owned();
        self.machine.control(Control::Resize { disk, bytes }).unwrap();
    }

    fn pause_and_resume(&self) {
        // It may have ended meanwhile.
        if self.machine.control(Control::Pause).is_ok() {
            assert!(self.machine.control(Control::Resume).is_ok() || self.ended());
        }
    }

    fn reset(&self) {
        self.machine.control(Control::Reset).unwrap();
    }

    fn stop(&self) {
        self.machine.control(Control::Stop(StopMode::Hard)).unwrap();
    }

    fn disk(&self, name: &str) -> Option<DiskStatus> {
        self.machine.disk(name)
    }
}
