//! The first serial line: a 16550.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState};
use vmm_sys_util::eventfd::EventFd;

use super::output::Printer;
use crate::kvm::bus::BusDevice;
use crate::kvm::lifecycle::{Lifecycle, Saved, StateError};

/// Ports of the line.
pub(in crate::kvm) const PORTS: u64 = 8;
/// The layout of the saved state.
const VERSION: u32 = 1;
/// Bytes that a line holds at most: the FIFO of a 16550A is 16 bytes, the one here 64.
const FIFO: usize = 64;

/// An interrupt that is raised by an eventfd.
pub(in crate::kvm) struct Line(pub(in crate::kvm) EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        match self.0.write(1) {
            // A full counter is an interrupt that is yet to be taken.
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }
}

/// The line.
pub(in crate::kvm) struct Serial(Mutex<Option<Uart<Line, NoEvents, Printer>>>);

/// What a guest can tell of the line.
#[derive(Serialize, Deserialize)]
struct State {
    baud_divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    received: Vec<u8>,
}

impl Serial {
    /// A line that prints here and interrupts there.
    pub(in crate::kvm) fn new(line: Line, printer: Printer) -> Self {
        Serial(Mutex::new(Some(Uart::new(line, printer))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Uart<Line, NoEvents, Printer>>> {
        // Registers are bytes: any mixture of old and new ones is one that a guest could have made.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn replace(&self, state: &SerialState) -> Result<(), StateError> {
        let mut place = self.lock();
        let Some(old) = place.take() else {
            return Err(StateError::Os("the line is gone".into()));
        };
        let line = old
            .interrupt_evt()
            .0
            .try_clone()
            .map_err(|error| StateError::Os(error.to_string()));
        let line = match line {
            Ok(line) => Line(line),
            Err(error) => {
                *place = Some(old);
                return Err(error);
            }
        };
        let new = Uart::from_state(state, line, NoEvents, old.into_writer())
            .map_err(|error| StateError::Malformed(format!("{error:?}")))?;
        *place = Some(new);
        Ok(())
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (Some(uart), Ok(offset)) = (&mut *self.lock(), u8::try_from(offset)) {
            data.fill_with(|| uart.read(offset));
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Some(uart), Ok(offset)) = (&mut *self.lock(), u8::try_from(offset)) {
            for byte in data {
                // An eventfd of ours takes every signal, and the output every byte.
                let _ = uart.write(offset, *byte);
            }
        }
    }
}

impl Lifecycle for Serial {
    fn name(&self) -> &str {
        "serial"
    }

    fn reset(&self) {
        if let Err(error) = self.replace(&SerialState::default()) {
            tracing::warn!(%error, "the serial line keeps its registers over a reset");
        }
    }

    fn save(&self) -> Result<Saved, StateError> {
        let uart = self.lock();
        let state = uart.as_ref().map(Uart::state).unwrap_or_default();
        Saved::new(
            VERSION,
            &State {
                baud_divisor: [state.baud_divisor_low, state.baud_divisor_high],
                interrupt_enable: state.interrupt_enable,
                interrupt_identification: state.interrupt_identification,
                line_control: state.line_control,
                line_status: state.line_status,
                modem_control: state.modem_control,
                modem_status: state.modem_status,
                scratch: state.scratch,
                received: state.in_buffer,
            },
        )
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let state: State = saved.read(VERSION)?;
        if state.received.len() > FIFO {
            return Err(StateError::Malformed(format!(
                "{} bytes received, of at most {FIFO}",
                state.received.len()
            )));
        }
        self.replace(&SerialState {
            baud_divisor_low: state.baud_divisor[0],
            baud_divisor_high: state.baud_divisor[1],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::kvm::cpu::gate::Gate;
    use crate::kvm::legacy::output::Output;

    fn line() -> (Output, Serial) {
        let output = Output::start("serial", |_: &[u8]| ()).unwrap();
        let printer = output.printer(Arc::new(Gate::new()));
        (
            output,
            Serial::new(Line(EventFd::new(EFD_NONBLOCK).unwrap()), printer),
        )
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn registers_survive_a_save_and_not_a_reset() {
        let (_output, serial) = line();
        serial.write(7, &[0x5a]);
        serial.write(4, &[0x1b]);
        serial.write(0, b"echo");
        let saved = serial.save().unwrap();
        let (_other_output, other) = line();
        other.restore(&saved).unwrap();
        assert_eq!(read(&other, 7), 0x5a);
        assert_eq!(std::array::from_fn(|_| read(&other, 0)), *b"echo");
        assert_eq!(serial.save().unwrap(), saved, "saving changes nothing");
        serial.reset();
        assert_eq!((read(&serial, 7), read(&serial, 5) & 1), (0, 0));
        let newer = Saved {
            version: 2,
            ..saved.clone()
        };
        assert!(matches!(serial.restore(&newer), Err(StateError::Version(2))));
        let mut long = saved;
        long.state["received"] = vec![0u8; 65].into();
        serial.restore(&long).unwrap_err();
        assert_eq!(read(&serial, 5), 0x60, "a refused state leaves the line as it is");
    }

    #[test]
    fn ports_beyond_the_line_are_harmless() {
        let (_output, serial) = line();
        serial.write(u64::MAX, &[1]);
        serial.write(8, &[1; 4096]);
        serial.read(256, &mut [0; 8]);
        serial.read(5, &mut []);
    }
}
