//! A vCPU's thread: it enters the guest, and answers what the guest asks of devices.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use process::jail::{self, Thread};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::gate::Gate;
use crate::kvm::bus::Bus;
use crate::kvm::request::{Request, Requests};

/// The devices that a vCPU reaches.
pub(in crate::kvm) struct Buses {
    /// Ports.
    pub(in crate::kvm) ports: Bus,
    /// Device memory.
    pub(in crate::kvm) memory: Bus,
}

/// A vCPU with its thread.
pub(in crate::kvm) struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    kick: Arc<Kick>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Start the thread; it waits at the gate.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn start(
        index: u32,
        fd: VcpuFd,
        gate: Arc<Gate>,
        buses: Arc<Buses>,
        requests: Requests,
    ) -> io::Result<Self> {
        install_handler()?;
        let kick = Arc::new(Kick::new(&fd)?);
        let fd = Arc::new(Mutex::new(fd));
        let runner = Runner {
            index,
            fd: fd.clone(),
            kick: kick.clone(),
            gate,
            buses,
            requests,
        };
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || runner.live())?;
        Ok(Vcpu {
            fd,
            kick,
            thread: Some(thread),
        })
    }

    /// Make the vCPU leave the guest, if it is there.
    pub(in crate::kvm) fn kick(&self) {
        self.kick.set(1);
        if let Some(thread) = &self.thread {
            // A thread that has ended needs no signal.
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// The vCPU itself. Waits while it is in the guest: close the gate before.
    pub(in crate::kvm) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait for the thread's end. The gate must be at its end.
    pub(in crate::kvm) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Runner {
    index: u32,
    fd: Arc<Mutex<VcpuFd>>,
    kick: Arc<Kick>,
    gate: Arc<Gate>,
    buses: Arc<Buses>,
    requests: Requests,
}

impl Runner {
    fn live(self) {
        if let Err(error) = jail::narrow(Thread::Vcpu) {
            return self
                .requests
                .ask(Request::Fail(format!("vCPU {}: {error}", self.index)));
        }
        while self.gate.enter() {
            let inside = Inside(&self);
            let mut fd = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
            self.run(&mut fd);
            drop(fd);
            drop(inside);
        }
    }

    /// Run the guest until the gate closes.
    fn run(&self, fd: &mut VcpuFd) {
        loop {
            // First the kick, then the gate: whoever closes the gate does it the other way round.
            self.kick.set(0);
            if !self.gate.is_open() {
                return;
            }
            let exit = match fd.run() {
                Ok(exit) => exit,
                // A kick, or a vCPU that has left its wait for a start-up message.
                Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => continue,
                Err(error) => return self.fail(fd, &format!("KVM_RUN: {error}")),
            };
            match exit {
                VcpuExit::IoIn(port, data) => self.buses.ports.read(port.into(), data),
                VcpuExit::IoOut(port, data) => self.buses.ports.write(port.into(), data),
                VcpuExit::MmioRead(address, data) => self.buses.memory.read(address, data),
                VcpuExit::MmioWrite(address, data) => self.buses.memory.write(address, data),
                VcpuExit::Intr => {}
                // A triple fault resets a PC.
                VcpuExit::Shutdown => return self.requests.ask(Request::Reset),
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) => {
                    return self.requests.ask(Request::PowerOff);
                }
                VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => {
                    return self.requests.ask(Request::Reset);
                }
                VcpuExit::FailEntry(reason, _) => {
                    let why = format!("the processor refused to enter the guest (reason {reason:#x})");
                    return self.fail(fd, &why);
                }
                VcpuExit::InternalError => {
                    return self.fail(fd, "KVM cannot execute the guest's instruction");
                }
                other => {
                    let why = format!("an unexpected exit: {other:?}");
                    return self.fail(fd, &why);
                }
            }
        }
    }

    fn fail(&self, fd: &VcpuFd, why: &str) {
        let place = fd.get_regs().map_or(0, |regs| regs.rip);
        let why = format!("vCPU {} at {place:#x}: {why}", self.index);
        self.requests.ask(Request::Fail(why));
    }
}

/// Leaves the gate whatever happens, so that a fault in a device cannot make the driver wait for ever.
struct Inside<'a>(&'a Runner);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = format!("vCPU {}: a fault in the monitor", self.0.index);
            self.0.requests.ask(Request::Fail(why));
        }
        self.0.gate.leave();
    }
}

/// The byte that tells KVM to leave `KVM_RUN` at once (`kvm_run.immediate_exit`), reached from any thread.
///
/// Together with a signal it leaves no gap: before the entry KVM looks at the byte, in the guest the signal ends the
/// entry, and between the two KVM looks for pending signals.
pub(in crate::kvm) struct Kick(NonNull<libc::c_void>);

// SAFETY: the pointer leads to a mapping that belongs to this value alone and is accessed by atomics only.
#[allow(unsafe_code)]
unsafe impl Send for Kick {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Kick {}

/// A page of `kvm_run`, which holds the byte.
const PAGE: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

impl Kick {
    /// Of this vCPU.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::kvm) fn new(fd: &VcpuFd) -> io::Result<Self> {
        // SAFETY: `fd` is borrowed for the call; the new mapping of the vCPU's shared page is placed where nothing is.
        #[allow(unsafe_code)]
        let page = unsafe {
            mmap(
                None,
                PAGE,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                BorrowedFd::borrow_raw(fd.as_raw_fd()),
                0,
            )
        }?;
        Ok(Kick(page))
    }

    /// 1: the vCPU leaves the guest, and does not enter it. 0: it may.
    pub(in crate::kvm) fn set(&self, value: u8) {
        const AT: usize = std::mem::offset_of!(kvm_run, immediate_exit);
        const { assert!(AT < PAGE.get()) };
        // SAFETY: the byte lies in the mapped page, and this mapping is accessed here alone.
        #[allow(unsafe_code)]
        let byte = unsafe { AtomicU8::from_ptr(self.0.as_ptr().cast::<u8>().add(AT)) };
        byte.store(value, Ordering::SeqCst);
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nobody can hold a pointer into it any more.
        #[allow(unsafe_code)]
        let _ = unsafe { munmap(self.0, PAGE.get()) };
    }
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// A signal without a handler would end the process; with one it ends `KVM_RUN`.
pub(in crate::kvm) fn install_handler() -> io::Result<()> {
    static ONCE: Once = Once::new();
    static FAILED: Mutex<Option<i32>> = Mutex::new(None);
    ONCE.call_once(|| {
        if let Err(error) = register_signal_handler(SIGRTMIN(), nothing) {
            *FAILED.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.errno());
        }
    });
    match *FAILED.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Ok(()),
    }
}
