//! From an address to the device behind it.

use std::sync::Arc;

use thiserror::Error;

/// Something that answers reads and writes of a guest. Both run on the vCPU's thread that asks, so they must not wait
/// for anything that the guest controls.
///
/// `offset` is relative to the device's first address. `data` is as long as the access is wide, or, for a port and a
/// string instruction (`rep insb`), several times as long: then it is a row of accesses to the same port. A device takes
/// any length.
pub(super) trait BusDevice: Send + Sync {
    /// The guest reads. `data` is all ones when this is called, which is what a bus without a device answers.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices claim the same address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the addresses {start:#x} to {end:#x} are taken, or none")]
pub struct Overlap {
    start: u64,
    end: u64,
}

struct Place {
    start: u64,
    end: u64,
    device: Arc<dyn BusDevice>,
}

/// The ports of a machine, or its device memory. Built once, then only read, so that vCPUs need no lock.
#[derive(Default)]
pub(super) struct Bus {
    /// Sorted by address, without overlaps.
    places: Vec<Place>,
}

impl Bus {
    /// Put a device at `start`, over `size` addresses.
    ///
    /// # Errors
    /// If an address is taken, or there are none.
    pub(super) fn add(&mut self, start: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let overlap = Overlap {
            start,
            end: start.saturating_add(size),
        };
        let end = start
            .checked_add(size)
            .filter(|end| *end > start)
            .ok_or(overlap)?;
        let index = self.places.partition_point(|place| place.end <= start);
        if self.places.get(index).is_some_and(|next| next.start < end) {
            return Err(overlap);
        }
        self.places.insert(index, Place { start, end, device });
        Ok(())
    }

    /// The guest reads. All ones where nothing answers.
    pub(super) fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(place) = self.find(address) {
            place.device.read(address - place.start, data);
        }
    }

    /// The guest writes. Nothing happens where nothing listens.
    pub(super) fn write(&self, address: u64, data: &[u8]) {
        if let Some(place) = self.find(address) {
            place.device.write(address - place.start, data);
        }
    }

    fn find(&self, address: u64) -> Option<&Place> {
        let index = self.places.partition_point(|place| place.end <= address);
        self.places.get(index).filter(|place| place.start <= address)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    struct Echo(u8, Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data[0] = self.0 ^ offset as u8;
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.1.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn an_access_reaches_its_device_and_no_other() {
        let mut bus = Bus::default();
        let one = Arc::new(Echo(0x10, Mutex::default()));
        let two = Arc::new(Echo(0x20, Mutex::default()));
        bus.add(0x70, 2, two.clone()).unwrap();
        bus.add(0x60, 5, one.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x64, &mut data);
        assert_eq!(data, [0x14, 0xff]);
        bus.read(0x65, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        bus.write(0x71, &[3]);
        bus.write(0x72, &[4]);
        assert_eq!(*two.1.lock().unwrap(), [(1, vec![3])]);
        assert!(one.1.lock().unwrap().is_empty());
    }

    proptest! {
        /// Against the plain list: the same devices are taken and found.
        #[test]
        fn places_never_overlap(
            wanted in prop::collection::vec((prop_oneof![0u64..64, u64::MAX - 8..=u64::MAX], 0u64..10), 0..20),
            asked in prop_oneof![0u64..80, u64::MAX - 16..=u64::MAX],
        ) {
            let mut bus = Bus::default();
            let mut plain: Vec<(u64, u64, u8)> = Vec::new();
            for (name, (start, size)) in (0u8..).zip(wanted) {
                let end = start.checked_add(size);
                let free = end.is_some_and(|end| end > start && plain.iter().all(|(s, e, _)| end <= *s || *e <= start));
                let added = bus.add(start, size, Arc::new(Echo(name, Mutex::default())));
                prop_assert_eq!(added.is_ok(), free);
                if free {
                    plain.push((start, start + size, name));
                }
            }
            let mut data = [0];
            bus.read(asked, &mut data);
            let expected = plain.iter().find(|(start, end, _)| (*start..*end).contains(&asked));
            prop_assert_eq!(data[0], expected.map_or(0xff, |(start, _, name)| name ^ (asked - start) as u8));
        }
    }
}
