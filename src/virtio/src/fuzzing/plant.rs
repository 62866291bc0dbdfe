//! Descriptors in a guest's memory.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::Input;
use crate::memory::Memory;

/// Write up to 16 descriptors to the table at `table`, by the input. Most are plausible: addresses below 64 KiB, short
/// lengths, links within the table.
pub fn plant(input: &mut Input<'_>, memory: &Memory, table: u64) {
    let kinds = input.u8();
    for _ in 0..=kinds & 15 {
        let index = u64::from(input.u8());
        let descriptor = if kinds & 0x80 != 0 {
            Descriptor::new(
                input.number(),
                input.number() as u32,
                input.u8().into(),
                input.number() as u16,
            )
        } else {
            Descriptor::new(
                input.u16().into(),
                u32::from(input.u8()) << (kinds >> 4 & 7),
                (input.u8() & 7).into(),
                input.u8().into(),
            )
        };
        // A table that is not in memory is the guest's loss.
        let _ = memory.write_obj(descriptor, GuestAddress(table.wrapping_add(index * 16)));
    }
}
