//! The common configuration (virtio 1.2 §4.1.4.3) and the rules of initialisation (§3.1): a pure state machine.

use serde::{Deserialize, Serialize};
use virtio::feature::VERSION_1;

/// Device status (§2.1): the driver knows how to drive the device, and has set all up.
pub(in crate::kvm) const DRIVER_OK: u8 = 4;
/// Device status: the features are agreed upon.
pub(in crate::kvm) const FEATURES_OK: u8 = 8;
/// Device status: the driver broke a rule.
pub(in crate::kvm) const NEEDS_RESET: u8 = 64;
/// No vector (§4.1.5.1.2).
pub(in crate::kvm) const NO_VECTOR: u16 = 0xffff;

/// What a write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kvm) enum Effect {
    /// Nothing beyond the register.
    None,
    /// The driver is ready: serve.
    Start,
    /// The driver resets the device.
    Reset,
}

/// A queue, as the driver has set it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kvm) struct Queue {
    /// The most descriptors.
    pub(in crate::kvm) max: u16,
    pub(in crate::kvm) size: u16,
    pub(in crate::kvm) vector: u16,
    pub(in crate::kvm) enabled: bool,
    pub(in crate::kvm) descriptors: u64,
    pub(in crate::kvm) driver: u64,
    pub(in crate::kvm) device: u64,
    /// The index of the next available chain, while the device stands still.
    pub(in crate::kvm) next: u16,
    /// Chains that the device has taken and not returned, while it stands still.
    pub(in crate::kvm) taken: Vec<u16>,
}

impl Queue {
    fn new(max: u16) -> Self {
        Queue {
            max,
            size: max,
            vector: NO_VECTOR,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
            next: 0,
            taken: Vec::new(),
        }
    }
}

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::kvm) struct Registers {
    offered: u64,
    vectors: u16,
    device_select: u32,
    driver_select: u32,
    pub(in crate::kvm) accepted: u64,
    pub(in crate::kvm) config_vector: u16,
    pub(in crate::kvm) status: u8,
    /// Counts changes of the device's configuration.
    pub(in crate::kvm) generation: u8,
    select: u16,
    pub(in crate::kvm) queues: Vec<Queue>,
}

impl Registers {
    /// Of a device with these features and queues, and a function with so many vectors.
    pub(in crate::kvm) fn new(offered: u64, queues: &[u16], vectors: u16) -> Self {
        Registers {
            offered,
            vectors,
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            select: 0,
            queues: queues.iter().map(|max| Queue::new(*max)).collect(),
        }
    }

    /// As after the making (§2.4), with these features.
    pub(in crate::kvm) fn reset(&mut self, offered: u64) {
        let sizes: Vec<u16> = self.queues.iter().map(|queue| queue.max).collect();
        *self = Registers::new(offered, &sizes, self.vectors);
    }

    /// Take on a saved state that [is like](Registers::is_like) this one. What is offered is what there is here: more than there, or
    /// less of what the driver did without.
    pub(in crate::kvm) fn restore(&mut self, other: Registers) {
        *self = Registers {
            offered: self.offered,
            ..other
        };
    }

    /// Whether a saved state is one that a driver of this device could have made.
    pub(in crate::kvm) fn is_like(&self, other: &Registers) -> bool {
        let shape =
            |registers: &Registers| -> Vec<u16> { registers.queues.iter().map(|queue| queue.max).collect() };
        let sound = |queue: &Queue| {
            let sized = queue.size.is_power_of_two() && queue.size <= queue.max;
            let taken = &queue.taken;
            sized && taken.len() <= usize::from(queue.size) && taken.iter().all(|head| *head < queue.size)
        };
        // Before the driver has said that these are all, any bits may stand there.
        let agreed = if other.status & FEATURES_OK == 0 {
            other.status & DRIVER_OK == 0
        } else {
            other.accepted & !self.offered == 0 && other.accepted & VERSION_1 != 0
        };
        (self.vectors, shape(self)) == (other.vectors, shape(other))
            && agreed
            && other.queues.iter().all(sound)
    }

    /// Half of 64 feature bits; none beyond.
    fn half(bits: u64, select: u32) -> u32 {
        match select {
            0 => bits as u32,
            1 => (bits >> 32) as u32,
            _ => 0,
        }
    }

    /// Read a register of `length` bytes at this offset. Wrong offsets and lengths read as zero. (A queue that there is not
    /// has size 0, §4.1.4.3.1.)
    pub(in crate::kvm) fn read(&self, offset: u64, length: usize) -> u64 {
        let queue = self.queues.get(usize::from(self.select));
        let half = |value: fn(&Queue) -> u64, upper: bool| {
            queue.map_or(0, |queue| {
                if upper {
                    value(queue) >> 32
                } else {
                    value(queue) & 0xffff_ffff
                }
            })
        };
        match (offset, length) {
            (0, 4) => self.device_select.into(),
            (4, 4) => Self::half(self.offered, self.device_select).into(),
            (8, 4) => self.driver_select.into(),
            (12, 4) => Self::half(self.accepted, self.driver_select).into(),
            (16, 2) => self.config_vector.into(),
            (18, 2) => self.queues.len() as u64,
            (20, 1) => self.status.into(),
            (21, 1) => self.generation.into(),
            (22, 2) => self.select.into(),
            (24, 2) => queue.map_or(0, |queue| queue.size.into()),
            (26, 2) => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            (28, 2) => queue.map_or(0, |queue| queue.enabled.into()),
            // Each queue's doorbell is at its own number.
            (30, 2) => queue.map_or(0, |_| self.select.into()),
            (32 | 36, 4) => half(|queue| queue.descriptors, offset == 36),
            (40 | 44, 4) => half(|queue| queue.driver, offset == 44),
            (48 | 52, 4) => half(|queue| queue.device, offset == 52),
            _ => 0,
        }
    }

    /// Write likewise. Wrong offsets and lengths, registers that cannot be written, and what comes too late, change
    /// nothing.
    pub(in crate::kvm) fn write(&mut self, offset: u64, length: usize, value: u64) -> Effect {
        let word = value as u32;
        let short = value as u16;
        let vector = if short < self.vectors { short } else { NO_VECTOR };
        match (offset, length) {
            (0, 4) => self.device_select = word,
            (8, 4) => self.driver_select = word,
            (12, 4) if self.status & FEATURES_OK == 0 && self.driver_select < 2 => {
                let shift = 32 * self.driver_select;
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(word) << shift;
            }
            (16, 2) => self.config_vector = vector,
            (20, 1) => return self.write_status(value as u8),
            (22, 2) => self.select = short,
            _ => self.write_queue(offset, length, word, vector),
        }
        Effect::None
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        let before = self.status;
        // Bits are only added (§2.1.1).
        let mut added = value & !before & !NEEDS_RESET;
        if self.accepted & !self.offered != 0 || self.accepted & VERSION_1 == 0 {
            added &= !FEATURES_OK;
        }
        if (before | added) & FEATURES_OK == 0 {
            added &= !DRIVER_OK;
        }
        self.status |= added;
        if added & DRIVER_OK != 0 {
            Effect::Start
        } else {
            Effect::None
        }
    }

    fn write_queue(&mut self, offset: u64, length: usize, word: u32, vector: u16) {
        let Some(queue) = self.queues.get_mut(usize::from(self.select)) else {
            return;
        };
        if queue.enabled {
            return;
        }
        let size = word as u16;
        let put = |place: &mut u64, upper: bool| {
            let (kept, shift) = if upper {
                (0xffff_ffff, 32)
            } else {
                (0xffff_ffff << 32, 0)
            };
            *place = *place & kept | u64::from(word) << shift;
        };
        match (offset, length) {
            (24, 2) if size.is_power_of_two() && size <= queue.max => queue.size = size,
            (26, 2) => queue.vector = vector,
            (28, 2) if word == 1 && self.status & DRIVER_OK == 0 => queue.enabled = true,
            (32 | 36, 4) => put(&mut queue.descriptors, offset == 36),
            (40 | 44, 4) => put(&mut queue.driver, offset == 44),
            (48 | 52, 4) => put(&mut queue.device, offset == 52),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn registers() -> Registers {
        Registers::new(VERSION_1 | 5, &[64, 256], 3)
    }

    #[test]
    fn features_that_were_not_offered_are_not_agreed_upon() {
        for (low, high, agreed) in [
            (5, 1, true),
            (1, 1, true),
            (2, 1, false),
            (5, 0, false),
            (5, 3, false),
        ] {
            let mut registers = registers();
            for (select, half) in [(0, low), (1, high), (2, 7)] {
                registers.write(8, 4, select);
                registers.write(12, 4, half);
            }
            registers.write(20, 1, 11);
            assert_eq!(registers.read(20, 1) & 8 != 0, agreed, "{low} {high}");
            assert_eq!(registers.write(20, 1, 15) == Effect::Start, agreed);
            assert_eq!(registers.write(20, 1, 15), Effect::None, "not twice");
            assert_eq!(registers.write(20, 1, 0), Effect::Reset);
        }
    }

    #[test]
    fn a_queue_is_set_up_once() {
        let mut registers = registers();
        registers.write(22, 2, 1);
        assert_eq!((registers.read(24, 2), registers.read(30, 2)), (256, 1));
        for (wrong, right) in [(0, 256), (3, 256), (512, 256), (128, 128)] {
            registers.write(24, 2, wrong);
            assert_eq!(registers.read(24, 2), right);
        }
        registers.write(26, 2, 3);
        assert_eq!(registers.read(26, 2), 0xffff);
        registers.write(26, 2, 2);
        registers.write(32, 4, 0x1000);
        registers.write(36, 4, 1);
        registers.write(28, 2, 1);
        registers.write(32, 4, 0x2000);
        registers.write(26, 2, 0);
        let queue = &registers.queues[1];
        assert_eq!(
            (queue.descriptors, queue.vector, queue.enabled),
            (0x1_0000_1000, 2, true)
        );
        registers.write(22, 2, 2);
        assert_eq!(registers.read(24, 2), 0, "there are but two");
        registers.reset(VERSION_1 | 5);
        assert_eq!(registers, super::tests::registers());
    }

    #[test]
    fn a_state_is_restored_where_its_features_are_offered() {
        let mut unsure = registers();
        for (select, half) in [(0, 4), (1, 1)] {
            unsure.write(8, 4, select);
            unsure.write(12, 4, half);
        }
        let mut agreed = unsure.clone();
        agreed.write(20, 1, 15);
        for (offered, alike) in [
            (VERSION_1 | 5, true),
            (VERSION_1 | 12, true),
            (VERSION_1 | 1, false),
        ] {
            let mut here = Registers::new(offered, &[64, 256], 3);
            assert!(here.is_like(&unsure), "{offered:x}");
            assert_eq!(here.is_like(&agreed), alike, "{offered:x}");
            here.restore(agreed.clone());
            assert_eq!((here.offered, here.accepted), (offered, VERSION_1 | 4));
        }
        let torn = Registers {
            status: DRIVER_OK,
            ..agreed
        };
        assert!(!registers().is_like(&torn));
    }

    proptest! {
        /// Whatever is written, the state is one that could be restored.
        #[test]
        fn any_write_keeps_the_rules(writes in prop::collection::vec((0u64..64, prop::sample::select(vec![1usize, 2, 4, 8]), any::<u64>()), 0..60)) {
            let mut registers = registers();
            for (offset, length, value) in writes {
                if registers.write(offset, length, value) == Effect::Start {
                    prop_assert_eq!(registers.status & (DRIVER_OK | FEATURES_OK), DRIVER_OK | FEATURES_OK);
                    prop_assert_eq!(registers.accepted & !registers.offered, 0);
                }
                registers.read(offset, length);
                prop_assert!(super::tests::registers().is_like(&registers));
                for queue in &registers.queues {
                    prop_assert!(queue.size.is_power_of_two() && queue.size <= queue.max);
                    prop_assert!(queue.vector < 3 || queue.vector == NO_VECTOR);
                }
            }
        }
    }
}
