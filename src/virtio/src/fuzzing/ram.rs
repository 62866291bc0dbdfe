//! A block device's bytes in memory, for tests.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::Bytes;

use crate::block::{BlockBackend, Completion, Operation, Outcome};
use crate::chain::Buffer;
use crate::memory::Memory;

/// A backend over a vector, which others may share. Its descriptor can be read while something has ended.
#[derive(Debug)]
pub struct RamDisk {
    bytes: Arc<Mutex<Vec<u8>>>,
    event: EventFd,
    ended: Vec<Completion>,
    /// What was submitted since the last kick: its end comes with the kick.
    begun: Vec<Completion>,
    /// If not zero: ends come in another order, some of them late, and some operations fail.
    chaos: u64,
}

impl RamDisk {
    /// Of these bytes.
    ///
    /// # Errors
    /// If there is no eventfd left.
    pub fn new(bytes: Arc<Mutex<Vec<u8>>>) -> nix::Result<Self> {
        Ok(RamDisk {
            bytes,
            event: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            ended: Vec::new(),
            begun: Vec::new(),
            chaos: 0,
        })
    }

    /// From now on ends come in another order, some of them late, and some operations fail, by this seed; 0: no longer.
    pub fn set_chaos(&mut self, seed: u64) {
        self.chaos = seed;
    }

    /// The next random number, if there is chaos.
    fn chance(&mut self) -> Option<u64> {
        if self.chaos == 0 {
            return None;
        }
        self.chaos ^= self.chaos << 13;
        self.chaos ^= self.chaos >> 7;
        self.chaos ^= self.chaos << 17;
        Some(self.chaos >> 8)
    }

    fn carry_out(&self, operation: Operation, buffers: &[Buffer], memory: &Memory) -> Outcome {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = |offset: u64, length: u64| {
            let start = usize::try_from(offset).unwrap_or(usize::MAX);
            start..start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX))
        };
        let mut each = |offset: u64, copy: &mut dyn FnMut(&mut [u8], &Buffer) -> bool| {
            let mut at = offset;
            for buffer in buffers {
                let range = piece(at, buffer.len.into());
                // `parse` has promised that it is there; a backend without it is what a test shall find.
                let Some(place) = bytes.get_mut(range) else {
                    panic!("{operation:?} reaches beyond the device")
                };
                if !copy(place, buffer) {
                    return Outcome::Failed(nix::errno::Errno::EFAULT as i32);
                }
                at += u64::from(buffer.len);
            }
            Outcome::Done
        };
        match operation {
            Operation::Read { offset } => each(offset, &mut |place, buffer| {
                memory.write_slice(place, buffer.addr).is_ok()
            }),
            Operation::Write { offset } => each(offset, &mut |place, buffer| {
                memory.read_slice(place, buffer.addr).is_ok()
            }),
            Operation::Flush => Outcome::Done,
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                let Some(place) = bytes.get_mut(piece(offset, len)) else {
                    panic!("{operation:?} reaches beyond the device")
                };
                place.fill(0);
                Outcome::Done
            }
        }
    }
}

impl AsFd for RamDisk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl BlockBackend for RamDisk {
    fn submit(
        &mut self,
        token: u32,
        operation: Operation,
        buffers: &[Buffer],
        memory: &Arc<Memory>,
        _: bool,
    ) {
        let outcome = match self.chance().map(|chance| chance % 16) {
            Some(0) => Outcome::Failed(nix::errno::Errno::EIO as i32),
            Some(1) => Outcome::Full,
            _ => self.carry_out(operation, buffers, memory),
        };
        self.begun.push(Completion { token, outcome });
    }

    fn kick(&mut self) {
        self.ended.append(&mut self.begun);
        if !self.ended.is_empty() {
            // A full counter is readable, which is what it shall be.
            let _ = self.event.write(1);
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let mut late = Vec::new();
        if let Some(chance) = self.chance() {
            let count = self.ended.len();
            if count > 0 {
                self.ended.rotate_left(chance as usize % count);
                late = self.ended.split_off(chance as usize / 64 % (count + 1));
            }
        }
        done.append(&mut self.ended);
        self.ended = late;
        if self.ended.is_empty() {
            // Empty is what it shall be.
            let _ = self.event.read();
        }
    }

    /// Something has always ended; with chaos, reaping it takes several attempts.
    fn wait(&mut self) {
        self.kick();
    }
}
