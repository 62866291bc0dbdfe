//! The firmware's image in the guest: below 4 GiB, where a processor begins, and its end once more below 1 MiB, where a PC's
//! programs call it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, MmapRegion, VolatileMemory};

use super::Firmware;
use crate::kvm::boot::BootError;
use crate::kvm::layout::{FIRMWARE, HIGH_MEMORY, KERNEL};
use crate::kvm::memory::Ram;

/// Bytes of the end that is below 1 MiB, too: the E and F segments.
const SHADOW: u64 = 128 << 10;
/// The least that firmware may be: one segment of real mode.
const MIN: u64 = 64 << 10;
/// The most.
const MAX: u64 = HIGH_MEMORY - FIRMWARE;
/// KVM maps whole pages.
const PAGE: u64 = 4 << 10;

/// The image, and its place in the guest. KVM reads the mapping as long as the machine lives.
pub(in crate::kvm) struct Rom {
    file: File,
    mapping: MmapRegion,
    size: u64,
}

impl Rom {
    /// Room for this firmware; [`Rom::load`] fills it.
    ///
    /// # Errors
    /// If the image is too small, too large, or cannot be looked at.
    pub(in crate::kvm) fn new(firmware: Firmware) -> Result<Self, BootError> {
        let size = size(&firmware.image)?;
        if !(MIN..=MAX).contains(&size) || !size.is_multiple_of(PAGE) {
            return Err(BootError::FirmwareSize(size));
        }
        let mapping = MmapRegion::new(size as usize).map_err(|error| BootError::Read {
            what: "the firmware",
            source: std::io::Error::other(error),
        })?;
        Ok(Rom {
            file: firmware.image,
            mapping,
            size,
        })
    }

    /// For KVM: guest physical address, size in bytes and host virtual address.
    pub(in crate::kvm) fn slot(&self) -> (u64, u64, u64) {
        (HIGH_MEMORY - self.size, self.size, self.mapping.as_ptr() as u64)
    }

    /// Read the image anew, to both places. No vCPU may run.
    ///
    /// # Errors
    /// If the image cannot be read, or is another size by now.
    pub(in crate::kvm) fn load(&self, ram: &Ram) -> Result<(), BootError> {
        let now = size(&self.file)?;
        if now != self.size {
            return Err(BootError::FirmwareSize(now));
        }
        let mut image = vec![0; self.size as usize];
        self.file.read_exact_at(&mut image, 0).map_err(reading)?;
        self.mapping.as_volatile_slice().copy_from(&image);
        let shadow = &image[(self.size - SHADOW.min(self.size)) as usize..];
        let at = GuestAddress(KERNEL - shadow.len() as u64);
        ram.memory().write_slice(shadow, at)?;
        Ok(())
    }
}

fn reading(source: std::io::Error) -> BootError {
    BootError::Read {
        what: "the firmware",
        source,
    }
}

fn size(image: &File) -> Result<u64, BootError> {
    Ok(image.metadata().map_err(reading)?.len())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn rom(size: u64) -> Result<Rom, BootError> {
        let image = tempfile::tempfile().unwrap();
        image.set_len(size).unwrap();
        Rom::new(Firmware {
            image,
            id: Uuid::nil(),
        })
    }

    #[test]
    fn only_whole_pages_of_a_sensible_number_are_firmware() {
        for size in [MIN, 128 << 10, 256 << 10, 1_966_080, 3_653_632, MAX] {
            let (start, length, _) = rom(size).unwrap().slot();
            assert_eq!((start + length, length), (1 << 32, size));
        }
        for size in [0, 1, MIN - PAGE, MIN + 1, MAX + PAGE, 1 << 40] {
            assert!(
                matches!(rom(size), Err(BootError::FirmwareSize(found)) if found == size),
                "{size}"
            );
        }
    }

    #[test]
    fn the_image_is_in_both_places_after_every_load() {
        let ram = Ram::new(2, false).unwrap();
        for size in [MIN, 256 << 10] {
            let rom = rom(size).unwrap();
            for value in [1u8, 2] {
                let mut image = vec![value; size as usize];
                image[size as usize - 1] = 0xea;
                rom.file.write_all_at(&image, 0).unwrap();
                ram.clear().unwrap();
                rom.load(&ram).unwrap();
                let mut high = vec![0; size as usize];
                rom.mapping.as_volatile_slice().copy_to(&mut high);
                assert_eq!(high, image);
                let shadow = size.min(SHADOW) as usize;
                let mut low = vec![0; SHADOW as usize + 16];
                ram.memory()
                    .read_slice(&mut low, GuestAddress(KERNEL - SHADOW))
                    .unwrap();
                let mut expected = vec![0; SHADOW as usize - shadow];
                expected.extend(&image[image.len() - shadow..]);
                expected.extend([0; 16]);
                assert!(low == expected, "{size}");
            }
            rom.file.set_len(size - PAGE).unwrap();
            rom.load(&ram).unwrap_err();
        }
    }
}
