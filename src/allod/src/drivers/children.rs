//! What the binary is when it is started as a child: ten lines around a library function each.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use disk::convert::ConvertError;
use model::disk::{ConvertSpec, Converted, DiskSpec};
use process::child::{Main, Start};
use serde::{Deserialize, Serialize};
use virtio::block::Geometry;
use vmm::kvm::Storage;

/// `allod switch`.
pub const SWITCH: &str = "switch";
/// `allod disk`.
pub const DISK: &str = "disk";
/// `allod convert`.
pub const CONVERT: &str = "convert";
/// `allod vmm`: a guest on the embedded monitor.
pub const VMM: &str = vmm::kvm::engine::child::KIND;
/// `allod guest`: QEMU's supervisor.
pub const GUEST: &str = vmm::qemu::KIND;

/// The whole life of a child of this kind; `None` if there is no such kind. To be called first thing in `main`, while
/// the process has one thread, before the command line is parsed.
pub fn child_main(kind: &str) -> Option<ExitCode> {
    let main: Main = match kind {
        SWITCH => switch,
        DISK => disk,
        CONVERT => convert,
        VMM => guest,
        GUEST => vmm::qemu::supervise,
        _ => return None,
    };
    tracing_subscriber::fmt()
        .with_writer(super::log::Bounded::default())
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    end_on_panic();
    Some(process::child::run(main))
}

/// A child that lost a thread is no child to keep: it ends, and the daemon starts another.
fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        print(panic);
        std::process::exit(101);
    }));
}

/// The switch.
pub fn switch(mut start: Start) -> Result<(), String> {
    let control: OwnedFd = start.take("control").map_err(text)?;
    start.ready().map_err(text)?;
    vswitch::run(control).map_err(text)
}

/// The owner of a disk.
pub fn disk(mut start: Start) -> Result<(), String> {
    let spec: DiskSpec = start.spec().map_err(text)?;
    let file: OwnedFd = start.take("file").map_err(text)?;
    let vhost: OwnedFd = start.take("vhost").map_err(text)?;
    let control: OwnedFd = start.take("control").map_err(text)?;
    start.ready().map_err(text)?;
    disk::run(spec, file, vhost, control).map_err(text)
}

/// A guest on the embedded monitor, which owns the guest's disks.
pub fn guest(start: Start) -> Result<(), String> {
    vmm::kvm::engine::child::run(start, open_disk)
}

/// A volume's file as a disk of the embedded monitor.
pub fn open_disk(spec: &DiskSpec, file: OwnedFd) -> Result<(Geometry, Box<dyn Storage>), String> {
    let (geometry, storage) = disk::open(spec, file.into(), disk::EngineKind::Best).map_err(text)?;
    Ok((geometry, Box::new(storage)))
}

/// What a conversion comes to.
#[derive(Debug, Serialize, Deserialize)]
pub enum Conversion {
    /// The image is there.
    Done(Converted),
    /// The uploaded file is at fault.
    BadInput(String),
    /// The pool is full.
    Full(String),
    /// The node is at fault.
    Failed(String),
}

/// The converter of one uploaded file.
pub fn convert(mut start: Start) -> Result<(), String> {
    let spec: ConvertSpec = start.spec().map_err(text)?;
    let source: OwnedFd = start.take("source").map_err(text)?;
    let target: OwnedFd = start.take("target").map_err(text)?;
    let daemon = start.ready().map_err(text)?;
    let conversion = match disk::convert::run(&spec, source, target) {
        Ok(converted) => Conversion::Done(converted),
        Err(error) if error.is_senders_fault() => Conversion::BadInput(error.to_string()),
        Err(error @ ConvertError::Full) => Conversion::Full(error.to_string()),
        Err(error) => Conversion::Failed(error.to_string()),
    };
    daemon.send(&conversion, &[]).map_err(text)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
