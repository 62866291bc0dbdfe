//! What serves a volume: our owner, as a thread of this program, and a peer.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use disk::ServeError;
use disk::pool::Pool;
use model::disk::{DiskKey, DiskRequest, DiskSpec, DiskTransport};
use uuid::Uuid;

use super::driver::control;

const PATIENCE: Duration = Duration::from_secs(10);

/// `allod disk`'s body.
pub(super) struct Owner {
    thread: JoinHandle<Result<(), ServeError>>,
    socket: PathBuf,
    control: PathBuf,
}

impl Owner {
    pub(super) fn start(pool: &Pool, folder: &Path, volume: Uuid, key: Option<DiskKey>) -> Result<Self> {
        let (socket, control) = (folder.join("vhost"), folder.join("control"));
        for path in [&socket, &control] {
            if super::exists(path) {
                fs::remove_file(path)?;
            }
        }
        let size = pool.volume_size(volume)?.context("the volume")?;
        let spec = DiskSpec {
            id: volume,
            size,
            read_only: false,
            queues: 1,
            direct: true,
            transport: DiskTransport::VhostUser,
            key,
            limits: model::disk::DiskLimits::default(),
        };
        let file = OwnedFd::from(pool.open_volume(volume, false, true)?);
        let guest = OwnedFd::from(UnixListener::bind(&socket)?);
        let daemon = OwnedFd::from(process::control::bind(&control)?);
        let thread = std::thread::Builder::new()
            .name("owner".into())
            .spawn(move || disk::run(spec, file, guest, daemon))?;
        Ok(Owner {
            thread,
            socket,
            control,
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn stop(self) -> Result<()> {
        control(&self.control)
            .call(&DiskRequest::Stop, &[])
            .map_err(|error| anyhow!("{error}"))?;
        let ended = self.thread.join();
        Ok(ended.map_err(|_| anyhow!("the owner panicked"))??)
    }
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `qemu-storage-daemon` over the same file.
pub(super) fn storage_daemon(
    folder: &Path,
    file: &Path,
    run: impl FnOnce(&Path) -> Result<f64>,
) -> Result<f64> {
    let socket = folder.join("peer");
    if super::exists(&socket) {
        fs::remove_file(&socket)?;
    }
    let block = format!(
        "driver=file,node-name=disk,filename={},aio=io_uring,cache.direct=on,discard=unmap",
        file.display()
    );
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on",
        socket.display()
    );
    let child = Command::new("qemu-storage-daemon")
        .args(["--blockdev", &block, "--export", &export])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start qemu-storage-daemon")?;
    let mut child = Running(child);
    let start = Instant::now();
    while !super::exists(&socket) {
        if let Some(status) = child.0.try_wait()? {
            bail!("qemu-storage-daemon ended with {status}");
        }
        if start.elapsed() > PATIENCE {
            bail!("qemu-storage-daemon does not listen");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    run(&socket)
}
