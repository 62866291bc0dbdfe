//! The console device: a second line, whose output is bounded and slowed as the serial line's is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use virtio::console::{
    self, CONFIG_SIZE, DEVICE_ID, MAX_INPUT, Outlet, Progress, QUEUE_SIZE, QUEUES, RECEIVE, TRANSMIT,
};

use super::worker::{Floor, Post, Service};
use super::{Device, Left, Session, StartError};
use crate::kvm::legacy::output::{Inlet, Sink};
use crate::kvm::lifecycle::StateError;

/// How long output for which there is no room waits before it is tried again.
const NAP: Duration = Duration::from_millis(5);

/// Where a machine's second console prints. (`hvc0` in Linux.)
pub struct Console(pub Box<dyn Sink>);

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

/// The device.
pub(in crate::kvm) struct ConsoleDevice(Post<Server>);

struct Server {
    console: console::Console,
    outlet: Inlet,
    /// There was no room.
    full: bool,
}

#[derive(Serialize, Deserialize)]
struct State {
    input: Vec<u8>,
    printed: u32,
}

impl Outlet for Inlet {
    fn room(&self) -> usize {
        Inlet::room(self)
    }

    fn put(&mut self, bytes: &[u8]) {
        Inlet::put(self, bytes);
    }
}

impl ConsoleDevice {
    /// That prints here.
    pub(in crate::kvm) fn new(outlet: Inlet) -> Self {
        ConsoleDevice(Post::new(
            "console",
            Server {
                console: console::Console::default(),
                outlet,
                full: false,
            },
        ))
    }

    /// Type these. How many of them had room.
    pub(in crate::kvm) fn type_in(&self, bytes: &[u8]) -> usize {
        self.0.call(|server, floor| {
            if let Some(floor) = floor {
                floor.mark(RECEIVE);
            }
            server.console.type_in(bytes)
        })
    }
}

impl Service for Server {
    fn begin(&mut self, floor: &mut Floor) {
        let taken = std::mem::take(&mut floor.taken);
        for (index, (ring, heads)) in floor.rings.iter_mut().zip(&taken).enumerate() {
            let sound = match heads[..] {
                [] => true,
                [head] if index == TRANSMIT => self.console.take_up(ring, &floor.memory, head).is_ok(),
                // Not of our leaving.
                _ => false,
            };
            if !sound {
                ring.break_ring();
            }
        }
    }

    fn serve(&mut self, floor: &mut Floor, index: usize) -> bool {
        let memory = floor.memory.clone();
        let ring = &mut floor.rings[index];
        let more = if index == TRANSMIT {
            let progress = self.console.transmit(ring, &memory, &mut self.outlet);
            self.full = matches!(progress, Ok(Progress::Full));
            progress.map(|progress| progress == Progress::More)
        } else {
            self.console.receive(ring, &memory)
        };
        more.unwrap_or_else(|error| {
            tracing::debug!(%error, "the guest's console");
            false
        })
    }

    fn rest(&mut self, floor: &mut Floor) -> Option<Duration> {
        if !self.full {
            return None;
        }
        if self.outlet.room() > 0 {
            self.full = false;
            floor.mark(TRANSMIT);
        }
        Some(NAP)
    }

    fn finish(&mut self, _: &mut Floor) -> Vec<Vec<u16>> {
        self.full = false;
        vec![Vec::new(), self.console.leave().into_iter().collect()]
    }
}

impl Device for ConsoleDevice {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    /// Simple communication controllers, others.
    fn class(&self) -> u32 {
        0x07_8000
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.into()]
    }

    fn config(&self) -> Vec<u8> {
        vec![0; CONFIG_SIZE]
    }

    fn start(&self, session: Session) -> Result<(), StartError> {
        self.0.start(session)
    }

    fn stop(&self) -> Vec<Left> {
        self.0.stop()
    }

    fn reset(&self) {
        self.0.call(|server, _| server.console.reset());
    }

    fn save(&self) -> Value {
        let (input, printed) = self.0.call(|server, _| server.console.state());
        serde_json::json!(State { input, printed })
    }

    fn restore(&self, state: &Value) -> Result<(), StateError> {
        let state = State::deserialize(state).map_err(|error| StateError::Malformed(error.to_string()))?;
        let sound = self
            .0
            .call(|server, _| server.console.set_state(&state.input, state.printed));
        if sound {
            Ok(())
        } else {
            Err(StateError::Malformed(format!(
                "{} bytes typed, of at most {MAX_INPUT}",
                state.input.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use virtio::memory::Memory;
    use virtio::vring::{Placement, RingAddresses};
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::kvm::event::descriptor;
    use crate::kvm::legacy::output::Output;
    use crate::kvm::virtio::{Alarm, SessionQueue};

    /// A session of a driver that uses the transmitting ring alone, which was left so.
    fn session(memory: &Arc<Memory>, left: Option<&Left>) -> Session {
        let event = || {
            File::from(
                descriptor(&EventFd::new(EFD_NONBLOCK).unwrap())
                    .try_clone_to_owned()
                    .unwrap(),
            )
        };
        let placement = Placement {
            size: 64,
            at: RingAddresses {
                descriptors: 0x1000,
                available: 0x2000,
                used: 0x3000,
            },
            event_idx: false,
            next: left.map_or(0, |left| left.next),
        };
        let queue = |placement, taken| SessionQueue {
            max: QUEUE_SIZE,
            placement,
            kick: event(),
            call: Some(event()),
            taken,
        };
        let taken = left.map(|left| left.taken.clone()).unwrap_or_default();
        Session {
            memory: memory.clone(),
            queues: vec![queue(None, Vec::new()), queue(Some(placement), taken)],
            features: 0,
            alarm: Alarm {
                raised: Arc::default(),
                interrupt: None,
            },
        }
    }

    #[test]
    fn output_waits_for_room_and_survives_stops_whole_and_once() {
        const LENGTH: u32 = 250 << 10;
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let wanted: Vec<u8> = (0..LENGTH).map(|at| (at % 251) as u8).collect();
        memory.write_slice(&wanted, GuestAddress(0x4000)).unwrap();
        memory
            .write_obj([0x4000u64, LENGTH.into()], GuestAddress(0x1000))
            .unwrap();
        memory.write_obj(1u16, GuestAddress(0x2002)).unwrap();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let there = taken.clone();
        // Slower than the device: its buffer is full most of the time.
        let output = Output::start("console", move |bytes: &[u8]| {
            there.lock().unwrap().extend_from_slice(bytes);
            std::thread::sleep(Duration::from_millis(20));
        })
        .unwrap();
        let mut console = ConsoleDevice::new(output.inlet());
        let mut left: Option<Left> = None;
        let start = Instant::now();
        let mut cuts = 0;
        while memory.read_obj::<u16>(GuestAddress(0x3002)).unwrap() == 0 {
            assert!(start.elapsed() < Duration::from_secs(60));
            console.start(session(&memory, left.as_ref())).unwrap();
            std::thread::sleep(Duration::from_millis(15));
            left = console.stop().pop();
            cuts += usize::from(left.as_ref().is_some_and(|left| left.taken == [0]));
            // Another machine goes on.
            let saved = console.save();
            console = ConsoleDevice::new(output.inlet());
            console.restore(&saved).unwrap();
        }
        assert!(cuts > 0, "it was never stopped within the chain");
        drop(output);
        assert!(*taken.lock().unwrap() == wanted);
    }

    #[test]
    fn what_was_typed_survives_a_save_and_not_a_reset() {
        let output = Output::start("console", |_: &[u8]| ()).unwrap();
        let console = ConsoleDevice::new(output.inlet());
        assert_eq!(console.type_in(b"knock"), 5);
        assert_eq!(console.type_in(&[0; MAX_INPUT]), MAX_INPUT - 5);
        let saved = console.save();
        let other = ConsoleDevice::new(output.inlet());
        other.restore(&saved).unwrap();
        assert_eq!(other.save(), saved);
        assert_eq!(other.type_in(b"x"), 0);
        let mut long = saved.clone();
        long["input"] = vec![0u8; MAX_INPUT + 1].into();
        for wrong in [
            long,
            Value::Null,
            serde_json::json!({"input": [256], "printed": 0}),
        ] {
            other.restore(&wrong).unwrap_err();
            assert_eq!(other.save(), saved, "a refused state leaves the device as it is");
        }
        other.reset();
        assert_eq!(other.type_in(b"x"), 1);
    }
}
