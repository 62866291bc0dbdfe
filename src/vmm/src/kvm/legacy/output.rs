//! Where a console's output goes: a bounded buffer, and a thread that empties it at a bounded rate.
//!
//! A guest that prints faster than [`crate::console::RATE`] waits, as it does on a real line. It waits in short
//! naps and only while the gate is open, so that it can be paused and stopped at any time.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::console::{Bucket, Log};
use crate::kvm::cpu::gate::Gate;

/// Bytes that wait for the thread.
const BUFFER: usize = 64 << 10;
/// How long the guest's vCPU waits before it looks again.
const NAP: Duration = Duration::from_millis(5);
/// How long the thread lets bytes gather, once it has written some.
const GATHER: Duration = Duration::from_millis(1);

/// Takes the bytes that a guest prints.
pub trait Sink: Send + 'static {
    /// Take all of these.
    ///
    /// # Errors
    /// If they are lost. The guest runs on without its log.
    fn take(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Sink for Log {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes)
    }
}

impl Sink for Box<dyn Sink> {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).take(bytes)
    }
}

impl<F: FnMut(&[u8]) + Send + 'static> Sink for F {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self(bytes);
        Ok(())
    }
}

#[derive(Default)]
struct Inner {
    bytes: VecDeque<u8>,
    ending: bool,
}

struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A queue of bytes is whole at any time.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buffer's thread. When dropped, it writes what is left and ends.
pub(in crate::kvm) struct Output {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// An end of the buffer for those who come again when there is no room.
pub(in crate::kvm) struct Inlet(Arc<Shared>);

impl Inlet {
    /// How many bytes have room. Nobody else is to print meanwhile.
    pub(in crate::kvm) fn room(&self) -> usize {
        BUFFER.saturating_sub(self.0.lock().bytes.len())
    }

    /// Print these, for which there is room.
    pub(in crate::kvm) fn put(&self, bytes: &[u8]) {
        self.0.lock().bytes.extend(bytes);
        self.0.changed.notify_one();
    }
}

/// The serial line's end of the buffer.
pub(in crate::kvm) struct Printer {
    inlet: Inlet,
    gate: Arc<Gate>,
}

impl Output {
    /// Into this sink, by a thread of this name.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(in crate::kvm) fn start(name: &'static str, mut sink: impl Sink) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        let there = shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || empty(name, &there, &mut sink))?;
        Ok(Output {
            shared,
            thread: Some(thread),
        })
    }

    /// Without a thread: whoever fuzzes takes out what is printed, with [`Output::take_out`].
    #[cfg(any(test, feature = "fuzzing"))]
    pub(in crate::kvm) fn idle() -> Self {
        Output {
            shared: Arc::new(Shared {
                inner: Mutex::default(),
                changed: Condvar::new(),
            }),
            thread: None,
        }
    }

    /// How much was printed since the last time; there is room again.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(in crate::kvm) fn take_out(&self) -> usize {
        std::mem::take(&mut self.shared.lock().bytes).len()
    }

    /// An end for the serial line.
    pub(in crate::kvm) fn printer(&self, gate: Arc<Gate>) -> Printer {
        Printer {
            inlet: self.inlet(),
            gate,
        }
    }

    /// An end for one that does not wait.
    pub(in crate::kvm) fn inlet(&self) -> Inlet {
        Inlet(self.shared.clone())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn empty(name: &str, shared: &Shared, sink: &mut impl Sink) {
    let mut bucket = Bucket::new(Instant::now());
    let mut failed = false;
    let mut batch = Vec::new();
    loop {
        let mut inner = shared.lock();
        while inner.bytes.is_empty() && !inner.ending {
            inner = shared.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        if inner.bytes.is_empty() {
            return;
        }
        // What is left at the end is bounded by the buffer, and the guest prints no more.
        let ending = inner.ending;
        let allowed = if ending {
            Ok(u64::MAX)
        } else {
            bucket.allowance(Instant::now())
        };
        let allowed = match allowed {
            Ok(allowed) => usize::try_from(allowed)
                .unwrap_or(usize::MAX)
                .min(inner.bytes.len()),
            Err(later) => {
                drop(shared.changed.wait_timeout(inner, later));
                continue;
            }
        };
        batch.clear();
        batch.extend(inner.bytes.drain(..allowed));
        drop(inner);
        bucket.take(batch.len() as u64);
        if let Err(error) = sink.take(&batch)
            && !std::mem::replace(&mut failed, true)
        {
            tracing::warn!(%error, name, "a console's log cannot be written");
        }
        if !ending {
            std::thread::sleep(GATHER);
        }
    }
}

impl Write for Printer {
    /// Takes all bytes, or, when the gate has closed while they waited for room, drops them: the line loses what is sent
    /// while nobody listens.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut inner = self.inlet.0.lock();
            if inner.bytes.len() + bytes.len() <= BUFFER {
                inner.bytes.extend(bytes);
                drop(inner);
                self.inlet.0.changed.notify_one();
                return Ok(bytes.len());
            }
            drop(inner);
            if !self.gate.is_open() {
                return Ok(bytes.len());
            }
            self.gate.nap(NAP);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::{BURST, RATE};

    #[test]
    fn what_was_printed_arrives_and_no_faster_than_the_line() {
        let gate = Arc::new(Gate::new());
        gate.open();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let there = taken.clone();
        let output = Output::start("serial", move |bytes: &[u8]| {
            there.lock().unwrap().extend_from_slice(bytes)
        })
        .unwrap();
        let mut printer = output.printer(gate.clone());
        let start = Instant::now();
        let wanted: Vec<u8> = (0..BURST + RATE / 4).map(|i| (i % 251) as u8).collect();
        for piece in wanted.chunks(100) {
            printer.write_all(piece).unwrap();
        }
        let passed = taken.lock().unwrap().len() as u64;
        let allowed = BURST + RATE * (start.elapsed().as_millis() as u64 + 1) / 1000;
        assert!(passed <= allowed, "{passed} of {allowed}");
        // What the thread has taken from the buffer may be on its way to the sink.
        let until = Instant::now() + Duration::from_secs(20);
        while taken.lock().unwrap().len() + BUFFER < wanted.len() {
            assert!(Instant::now() < until, "{passed} of {}", wanted.len());
            std::thread::yield_now();
        }
        drop(output);
        assert_eq!(*taken.lock().unwrap(), wanted);
    }

    #[test]
    fn a_closed_gate_ends_the_wait() {
        let gate = Arc::new(Gate::new());
        gate.open();
        // A sink that never returns while the test runs.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let output = Output::start("serial", move |_: &[u8]| {
            let _ = held.recv();
        })
        .unwrap();
        let mut printer = output.printer(gate.clone());
        let writer = std::thread::spawn(move || {
            for _ in 0..BUFFER / 512 + 2 {
                printer.write_all(&[b'x'; 1024]).unwrap();
            }
        });
        std::thread::sleep(Duration::from_millis(30));
        assert!(!writer.is_finished(), "the buffer is bounded");
        gate.close(|| ());
        writer.join().unwrap();
        drop(hold);
    }
}
