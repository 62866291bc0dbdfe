//! A file as a disk of the embedded monitor, read and written at once: the simplest backend that keeps the rules.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use model::disk::DiskSpec;
use rustix::event::{EventfdFlags, eventfd};
use virtio::block::{BlockBackend, Completion, Geometry, Operation, Outcome, SECTOR};
use virtio::chain::Buffer;
use virtio::memory::Memory;
use vm_memory::Bytes;
use vmm::kvm::Storage;

struct Plain {
    file: File,
    /// Readable while something has ended.
    event: OwnedFd,
    ended: Vec<Completion>,
}

/// As the monitor's child wants it.
pub fn open(spec: &DiskSpec, file: OwnedFd) -> Result<(Geometry, Box<dyn Storage>), String> {
    let geometry = Geometry {
        sectors: spec.size / SECTOR,
        read_only: spec.read_only,
        queues: spec.queues,
        serial: [b'x'; 20],
    };
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).map_err(|e| e.to_string())?;
    let plain = Plain {
        file: file.into(),
        event,
        ended: Vec::new(),
    };
    Ok((geometry, Box::new(plain)))
}

impl Plain {
    fn carry_out(&self, operation: Operation, buffers: &[Buffer], memory: &Memory) -> std::io::Result<()> {
        match operation {
            Operation::Read { offset } | Operation::Write { offset } => {
                let mut at = offset;
                for buffer in buffers {
                    let mut bytes = vec![0; buffer.len as usize];
                    if matches!(operation, Operation::Read { .. }) {
                        self.file.read_exact_at(&mut bytes, at)?;
                        memory
                            .write_slice(&bytes, buffer.addr)
                            .map_err(std::io::Error::other)?;
                    } else {
                        memory
                            .read_slice(&mut bytes, buffer.addr)
                            .map_err(std::io::Error::other)?;
                        self.file.write_all_at(&bytes, at)?;
                    }
                    at += u64::from(buffer.len);
                }
                Ok(())
            }
            Operation::Flush => self.file.sync_data(),
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                self.file.write_all_at(&vec![0; len as usize], offset)
            }
        }
    }
}

impl AsFd for Plain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl BlockBackend for Plain {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        _: bool,
    ) {
        let outcome = match self.carry_out(operation, buffers, memory) {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        };
        self.ended.push(Completion { token, outcome });
    }

    fn kick(&mut self) {
        if !self.ended.is_empty() {
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.ended);
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
    }

    fn wait(&mut self) {}
}
