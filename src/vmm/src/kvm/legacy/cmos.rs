//! The clock with its memory (Motorola MC146818, the PC's CMOS): it shows the host's time in UTC and keeps what a guest
//! writes into its memory. It gives no interrupts; a guest has better timers.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::kvm::bus::BusDevice;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};

/// Ports: index and data.
pub(in crate::kvm) const PORTS: u64 = 2;
/// Bytes of memory, the clock's registers among them.
const SIZE: usize = 128;
/// The layout of the saved state.
const VERSION: u32 = 1;
/// Where the century is, by the FADT's word.
pub(in crate::kvm) const CENTURY: u8 = 0x32;
/// Register B: 24 hours.
const HOURS_24: u8 = 1 << 1;
/// Register B: binary rather than decimal digits.
const BINARY: u8 = 1 << 2;
/// Register D: the battery is well.
const VALID: u8 = 1 << 7;

#[derive(Clone)]
struct Registers {
    index: u8,
    memory: [u8; SIZE],
}

#[derive(Serialize, Deserialize)]
struct State {
    index: u8,
    memory: Vec<u8>,
}

/// The clock.
pub(in crate::kvm) struct Cmos {
    registers: Mutex<Registers>,
    initial: Registers,
}

impl Cmos {
    /// For a machine with so many bytes of memory below and above 4 GiB.
    pub(in crate::kvm) fn new(low: u64, high: u64) -> Self {
        let mut memory = [0; SIZE];
        // What firmware reads of the memory's size: KiB from 1 MiB to 64 MiB, 64 KiB units from 16 MiB on, and above 4 GiB.
        let kib = u16::try_from(low.saturating_sub(1 << 20) >> 10).unwrap_or(u16::MAX);
        let units = u16::try_from(low.saturating_sub(16 << 20) >> 16).unwrap_or(u16::MAX);
        memory[0x30..0x32].copy_from_slice(&kib.to_le_bytes());
        memory[0x17..0x19].copy_from_slice(&kib.to_le_bytes());
        memory[0x34..0x36].copy_from_slice(&units.to_le_bytes());
        memory[0x5b..0x5e].copy_from_slice(&(high >> 16).to_le_bytes()[..3]);
        // Base memory: 640 KiB.
        memory[0x15..0x17].copy_from_slice(&640u16.to_le_bytes());
        memory[0xa] = 0x26;
        memory[0xb] = HOURS_24;
        memory[0xd] = VALID;
        let initial = Registers { index: 0, memory };
        Cmos {
            registers: Mutex::new(initial.clone()),
            initial,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A civil time in UTC.
#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u8,
    day: u8,
    /// 1: Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

/// From seconds since 1970 (Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`).
fn civil(seconds: u64) -> Civil {
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    Civil {
        year: era * 400 + year_of_era + u64::from(month <= 2),
        month: month as u8,
        day: (of_year - (153 * shifted_month + 2) / 5 + 1) as u8,
        weekday: ((days + 4) % 7 + 1) as u8,
        hour: (rest / 3600) as u8,
        minute: (rest / 60 % 60) as u8,
        second: (rest % 60) as u8,
    }
}

impl Registers {
    fn get(&self, seconds: u64) -> u8 {
        let now = civil(seconds);
        let control = self.memory[0xb];
        let digits = |value: u8| {
            if control & BINARY != 0 {
                value
            } else {
                ((value / 10) << 4) | (value % 10)
            }
        };
        match self.index {
            0x0 => digits(now.second),
            0x2 => digits(now.minute),
            0x4 if control & HOURS_24 != 0 => digits(now.hour),
            // Twelve hours, with the afternoon in the highest bit.
            0x4 => digits((now.hour + 11) % 12 + 1) | if now.hour >= 12 { 0x80 } else { 0 },
            0x6 => digits(now.weekday),
            0x7 => digits(now.day),
            0x8 => digits(now.month),
            0x9 => digits((now.year % 100) as u8),
            CENTURY => digits((now.year / 100 % 100) as u8),
            // Register A: never in the middle of an update. Register C: no interrupt.
            0xa => self.memory[0xa] & 0x7f,
            0xc => 0,
            0xd => VALID,
            index => self.memory[usize::from(index) % SIZE],
        }
    }
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.lock();
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        // The index port cannot be read.
        if offset == 1 {
            data.fill_with(|| registers.get(seconds));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(value) = data.last() else { return };
        let mut registers = self.lock();
        match offset {
            // The highest bit masks the NMI, of which there is none.
            0 => registers.index = value & 0x7f,
            _ => {
                let index = usize::from(registers.index) % SIZE;
                registers.memory[index] = *value;
            }
        }
    }
}

impl Lifecycle for Cmos {
    fn name(&self) -> &str {
        "cmos"
    }

    fn reset(&self) {
        *self.lock() = self.initial.clone();
    }

    fn save(&self) -> Result<Saved, StateError> {
        let registers = self.lock();
        let state = State {
            index: registers.index,
            memory: registers.memory.to_vec(),
        };
        Saved::new(VERSION, &state)
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.read(VERSION)?;
        let memory = <[u8; SIZE]>::try_from(state.memory)
            .map_err(|memory| StateError::Malformed(format!("{} bytes of memory", memory.len())))?;
        *self.lock() = Registers {
            index: state.index & 0x7f,
            memory,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_days_are_right() {
        for (seconds, expected) in [
            (0, (1970, 1, 1, 5, 0, 0, 0)),
            (951_782_399, (2000, 2, 28, 2, 23, 59, 59)),
            (951_782_400, (2000, 2, 29, 3, 0, 0, 0)),
            (4_107_542_400, (2100, 3, 1, 2, 0, 0, 0)),
            (1_795_248_000, (2026, 11, 21, 7, 8, 0, 0)),
        ] {
            let Civil {
                year,
                month,
                day,
                weekday,
                hour,
                minute,
                second,
            } = civil(seconds);
            assert_eq!((year, month, day, weekday, hour, minute, second), expected);
        }
    }

    #[test]
    fn hours_have_three_forms() {
        let mut registers = Cmos::new(0, 0).lock().clone();
        registers.index = 4;
        let at = |hour: u64| hour * 3600;
        assert_eq!(registers.get(at(23)), 0x23);
        registers.memory[0xb] = HOURS_24 | BINARY;
        assert_eq!(registers.get(at(23)), 23);
        registers.memory[0xb] = 0;
        assert_eq!(
            [0, 11, 12, 23].map(|h| registers.get(at(h))),
            [0x12, 0x11, 0x92, 0x91]
        );
    }

    #[test]
    fn memory_survives_a_save_and_not_a_reset() {
        let cmos = Cmos::new(128 << 20, 0);
        cmos.write(0, &[0x80 | 0x40]);
        cmos.write(1, &[0x77]);
        let saved = cmos.save().unwrap();
        cmos.reset();
        let mut data = [0xff];
        cmos.write(0, &[0x40]);
        cmos.read(1, &mut data);
        assert_eq!(data, [0]);
        cmos.restore(&saved).unwrap();
        cmos.read(1, &mut data);
        assert_eq!(data, [0x77]);
        let mut short = saved;
        short.state["memory"] = vec![0u8; 127].into();
        cmos.restore(&short).unwrap_err();
    }

    proptest! {
        /// Whatever a guest writes and reads, and at whatever time: nothing panics.
        #[test]
        fn any_access_is_harmless(
            accesses in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..40),
            seconds in any::<u64>().prop_map(|s| s >> 8),
        ) {
            let cmos = Cmos::new(u64::MAX, u64::MAX);
            for (offset, mut data) in accesses {
                cmos.write(offset % 2, &data);
                cmos.read(offset, &mut data);
                cmos.lock().get(seconds);
            }
        }
    }
}
