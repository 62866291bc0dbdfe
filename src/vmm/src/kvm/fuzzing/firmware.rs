//! What a guest does with the firmware's configuration device.

use virtio::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::kvm::bus::BusDevice;
use crate::kvm::legacy::fw_cfg::{FwCfg, Items};
use crate::kvm::lifecycle::Lifecycle;

/// Bytes of the guest's memory, from 0 on.
const MEMORY: usize = 1 << 16;
/// Bytes of a step: what, where, how long; and what is written.
const STEP: usize = 24;
const HEAD: usize = 8;
/// Where the two halves of a transfer's address are written.
const HALVES: [u64; 2] = [4, 8];

/// Accesses to its ports, and transfers whose descriptions are in the guest's memory. What the device tells stays as it was,
/// and what it saves can be restored.
///
/// # Panics
/// If not.
pub fn fw_cfg(data: &[u8]) {
    let Ok(memory) = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]) else {
        return;
    };
    let mut items = Items::default();
    items.add_file("etc/file", b"told".to_vec());
    items.add_file("etc/other", vec![0x55; 4096]);
    let device = FwCfg::new(items, memory.clone());
    for step in data.chunks_exact(STEP) {
        let (head, body) = step.split_at(HEAD);
        let (port, length) = (u64::from(head[1]) % 12, usize::from(head[2]) % 17);
        match head[0] % 3 {
            0 => device.write(port, &body[..length.min(body.len())]),
            1 => device.read(port, &mut [0xff; 17][..length]),
            _ => {
                let at = u32::from_be_bytes([0, head[3], head[4], head[5]]);
                // A description that does not fit is one that the device must refuse.
                let _ = memory.write_slice(body, GuestAddress(at.into()));
                device.write(HALVES[0], &u32::from(head[6]).to_be_bytes());
                device.write(HALVES[1], &at.to_be_bytes());
            }
        }
    }
    let saved = device.save().expect("a state");
    device.restore(&saved).expect("its own state");
    device.write(0, &[0x20, 0]);
    let mut told = [0; 4];
    device.read(1, &mut told);
    assert_eq!(told, *b"told");
}
