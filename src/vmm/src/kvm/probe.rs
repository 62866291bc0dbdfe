//! What this host's KVM offers.
//!
//! A capability bit says what the module was built for. Some hosts have KVM without hardware virtualisation behind it,
//! where a bit promises more than a guest gets; so the machine's foundations are tried with a guest of a few
//! instructions, too. [`probe`] takes a few milliseconds.
//!
//! Seen on a software-assisted KVM (`kvm_pvm` on Linux 6.18, 2026-11-21): all of it, but for another TSC rate.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use kvm_bindings::{
    KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::cpu::entry;
use super::cpu::thread::{self, Kick};

/// Guest memory of the trial: 64 KiB.
const SIZE: usize = 16 << 12;
/// Where the boot processor's instructions are.
const BOOT_CODE: u32 = 0x2000;
/// Where the second processor's instructions are: the page that the start-up message names.
const SECOND_CODE: u64 = 0x1000;
/// A page that the guest writes.
const TOUCHED: u32 = 0x5000;
/// The port behind an ioeventfd.
const DOORBELL: u8 = 0xe0;
/// The port that leads to us.
const REPORT: u8 = 0xe1;
/// What the boot processor reports when it is through.
const BOOT_DONE: u8 = 0x42;
/// What the second processor reports.
const SECOND_DONE: u8 = 0x41;
/// How long the second processor has to start.
const PATIENCE: Duration = Duration::from_secs(1);
/// Exits after which a trial is given up.
const MAX_EXITS: usize = 16;

/// What a host's KVM offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The most vCPUs of a machine.
    pub max_vcpus: usize,
    /// The most memory slots of a machine.
    pub max_memory_slots: usize,
    /// Interrupt controllers (PIC, IOAPIC, local APICs) in the kernel.
    pub irqchip: bool,
    /// The 8254 timer in the kernel.
    pub pit: bool,
    /// Message-signalled interrupts by system call.
    pub signal_msi: bool,
    /// Routes from numbers to interrupts, which MSI-X over irqfd needs.
    pub irq_routing: bool,
    /// irqfd with notice of the guest's end-of-interrupt, for level-triggered lines.
    pub irqfd_resample: bool,
    /// ioeventfd that ignores the width of the access.
    pub ioeventfd_any_length: bool,
    /// The guest's paravirtual clock can be set.
    pub adjust_clock: bool,
    /// The guest can be told that it stood still.
    pub kvmclock_ctrl: bool,
    /// The local APIC's timer has a TSC deadline mode.
    pub tsc_deadline: bool,
    /// The guest's TSC can run at another rate than the host's.
    pub tsc_control: bool,
    /// Everything of a vCPU can be read and written: MP state, events, debug registers, XSAVE area, XCRs.
    pub vcpu_state: bool,
    /// Memory that the guest cannot write.
    pub readonly_memory: bool,
    /// Entries of the list of CPUID leaves that a guest may see.
    pub cpuid_entries: usize,
    /// Tried: a guest in protected mode runs and its port writes arrive.
    pub runs: bool,
    /// Tried: a vCPU that is told to leave at once does.
    pub immediate_exit: bool,
    /// Tried: a port write signals an eventfd, without an exit.
    pub ioeventfd: bool,
    /// Tried: an eventfd can be bound to an interrupt.
    pub irqfd: bool,
    /// Tried: a page that the guest wrote is in the dirty log, and one that it did not is not.
    pub dirty_log: bool,
    /// Tried: INIT and start-up messages start a second processor.
    pub starts_processors: bool,
}

impl Offer {
    /// What a machine cannot do without and this KVM lacks.
    pub fn lacks(&self) -> Vec<&'static str> {
        [
            (self.irqchip, "irqchip"),
            (self.irq_routing, "irq routing"),
            (self.runs, "running a guest"),
            (self.immediate_exit, "immediate exit"),
            (self.ioeventfd, "ioeventfd"),
            (self.irqfd, "irqfd"),
        ]
        .into_iter()
        .filter_map(|(there, name)| (!there).then_some(name))
        .collect()
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vcpus {}, memory slots {}, cpuid entries {}",
            self.max_vcpus, self.max_memory_slots, self.cpuid_entries
        )?;
        for (name, there) in [
            ("irqchip", self.irqchip),
            ("pit", self.pit),
            ("signal msi", self.signal_msi),
            ("irq routing", self.irq_routing),
            ("irqfd resample", self.irqfd_resample),
            ("ioeventfd of any length", self.ioeventfd_any_length),
            ("adjust clock", self.adjust_clock),
            ("kvmclock ctrl", self.kvmclock_ctrl),
            ("tsc deadline", self.tsc_deadline),
            ("tsc control", self.tsc_control),
            ("vcpu state", self.vcpu_state),
            ("readonly memory", self.readonly_memory),
            ("tried: runs", self.runs),
            ("tried: immediate exit", self.immediate_exit),
            ("tried: ioeventfd", self.ioeventfd),
            ("tried: irqfd", self.irqfd),
            ("tried: dirty log", self.dirty_log),
            ("tried: starts processors", self.starts_processors),
        ] {
            write!(f, ", {name} {}", if there { "yes" } else { "no" })?;
        }
        Ok(())
    }
}

/// Why there is no KVM to speak of.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// `/dev/kvm` cannot be opened.
    #[error("cannot open /dev/kvm: {0}")]
    Open(kvm_ioctls::Error),
    /// An API version other than 12, which has been the only one since Linux 2.6.22.
    #[error("KVM speaks version {0} of its interface, not {KVM_API_VERSION}")]
    Version(i32),
    /// A basic operation failed.
    #[error("{what}: {source}")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// KVM's answer.
        source: kvm_ioctls::Error,
    },
    /// No memory for the trial.
    #[error("cannot map the trial's memory: {0}")]
    Memory(String),
    /// No thread for the trial.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// No eventfd for the trial.
    #[error("cannot make an eventfd: {0}")]
    EventFd(std::io::Error),
}

fn while_doing(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> ProbeError {
    move |source| ProbeError::Kvm { what, source }
}

/// Whether `/dev/kvm` is there at all. Tests that need it say that they were skipped where it is not.
pub fn present() -> bool {
    Path::new("/dev/kvm").exists()
}

/// Ask, and try.
///
/// # Errors
/// If there is no KVM, or not even a machine without processors can be made.
pub fn probe() -> Result<Offer, ProbeError> {
    let kvm = Kvm::new().map_err(ProbeError::Open)?;
    let version = kvm.get_api_version();
    if u32::try_from(version) != Ok(KVM_API_VERSION) {
        return Err(ProbeError::Version(version));
    }
    let has = |cap| kvm.check_extension(cap);
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(while_doing("cannot read the CPUID leaves"))?;
    let mut offer = Offer {
        max_vcpus: kvm.get_max_vcpus(),
        max_memory_slots: kvm.get_nr_memslots(),
        irqchip: has(Cap::Irqchip),
        pit: has(Cap::Pit2) && has(Cap::PitState2),
        signal_msi: has(Cap::SignalMsi),
        irq_routing: has(Cap::IrqRouting),
        irqfd_resample: has(Cap::IrqfdResample),
        ioeventfd_any_length: has(Cap::IoeventfdNoLength),
        adjust_clock: has(Cap::AdjustClock),
        kvmclock_ctrl: has(Cap::KvmclockCtrl),
        tsc_deadline: has(Cap::TscDeadlineTimer),
        tsc_control: has(Cap::TscControl),
        vcpu_state: [
            Cap::MpState,
            Cap::VcpuEvents,
            Cap::Debugregs,
            Cap::Xsave,
            Cap::Xcrs,
        ]
        .into_iter()
        .all(has),
        readonly_memory: has(Cap::ReadonlyMem),
        cpuid_entries: cpuid.as_slice().len(),
        runs: false,
        immediate_exit: false,
        ioeventfd: false,
        irqfd: false,
        dirty_log: false,
        starts_processors: false,
    };
    if offer.irqchip {
        attempt(&kvm, &mut offer)?;
    }
    Ok(offer)
}

/// Run the trial guest and note what worked.
fn attempt(kvm: &Kvm, offer: &mut Offer) -> Result<(), ProbeError> {
    // Declared first, so that it outlives the machine that uses it.
    let memory = virtio::memory::Memory::from_ranges(&[(GuestAddress(0), SIZE)])
        .map_err(|error| ProbeError::Memory(error.to_string()))?;
    memory
        .write_slice(&boot_code(), GuestAddress(BOOT_CODE.into()))
        .and_then(|()| memory.write_slice(&second_code(), GuestAddress(SECOND_CODE)))
        .map_err(|error| ProbeError::Memory(error.to_string()))?;
    let vm = kvm.create_vm().map_err(while_doing("cannot make a machine"))?;
    vm.create_irq_chip()
        .map_err(while_doing("cannot make interrupt controllers"))?;
    let host = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| ProbeError::Memory(error.to_string()))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: KVM_MEM_LOG_DIRTY_PAGES,
        guest_phys_addr: 0,
        memory_size: SIZE as u64,
        userspace_addr: host as u64,
    };
    // SAFETY: the slot is exactly the mapping of `memory`, which outlives `vm` and is touched by nothing but this function.
    #[allow(unsafe_code)]
    unsafe { vm.set_user_memory_region(slot) }.map_err(while_doing("cannot give the machine memory"))?;

    let doorbell = EventFd::new(EFD_NONBLOCK).map_err(ProbeError::EventFd)?;
    let bound = vm
        .register_ioevent(&doorbell, &IoEventAddress::Pio(DOORBELL.into()), NoDatamatch)
        .is_ok();
    let line = EventFd::new(EFD_NONBLOCK).map_err(ProbeError::EventFd)?;
    offer.irqfd = vm.register_irqfd(&line, 5).is_ok() && vm.unregister_irqfd(&line, 5).is_ok();

    let mut boot = vm
        .create_vcpu(0)
        .map_err(while_doing("cannot make a virtual processor"))?;
    let second = vm
        .create_vcpu(1)
        .map_err(while_doing("cannot make a second virtual processor"))?;
    // KVM finds a local APIC by its number only once its state was set after all processors were made, as machines do.
    second
        .get_lapic()
        .and_then(|lapic| second.set_lapic(&lapic))
        .map_err(while_doing("cannot set a local APIC"))?;
    entry::protected(&boot, BOOT_CODE, 0).map_err(while_doing("cannot set registers"))?;

    boot.set_kvm_immediate_exit(1);
    let left = boot
        .run()
        .err()
        .is_some_and(|error| error.errno() == nix::libc::EINTR);
    boot.set_kvm_immediate_exit(0);
    offer.immediate_exit = left && kvm.check_extension(Cap::ImmediateExit);

    offer.runs = reports(&mut boot, BOOT_DONE);
    if !offer.runs {
        return Ok(());
    }
    offer.ioeventfd = bound && doorbell.read().is_ok_and(|count| count == 1);
    offer.dirty_log = vm.get_dirty_log(0, SIZE).is_ok_and(|log| {
        let dirty = |address: u32| log[0] & 1 << (address >> 12) != 0;
        dirty(TOUCHED) && !dirty(TOUCHED + 0x1000)
    });
    offer.starts_processors = starts(second)?;
    Ok(())
}

/// The second processor takes its start-up message, which waits for it since the first one sent it, and reports. It does
/// so in a thread: one that does not take the message waits for ever.
fn starts(mut second: VcpuFd) -> Result<bool, ProbeError> {
    thread::install_handler().map_err(ProbeError::Thread)?;
    let kick = Kick::new(&second).map_err(ProbeError::Thread)?;
    let (send, answer) = channel();
    let runner = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || send.send(reports(&mut second, SECOND_DONE)))
        .map_err(ProbeError::Thread)?;
    let started = answer.recv_timeout(PATIENCE).unwrap_or(false);
    while !runner.is_finished() {
        kick.set(1);
        // It may end by itself meanwhile.
        let _ = runner.kill(SIGRTMIN());
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = runner.join();
    Ok(started)
}

/// Run until the guest reports this.
fn reports(vcpu: &mut VcpuFd, wanted: u8) -> bool {
    for _ in 0..MAX_EXITS {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) if port == u16::from(REPORT) => return data == [wanted],
            // The doorbell arrives here where ioeventfd does not work.
            Ok(VcpuExit::IoOut(..)) => {}
            // A processor that leaves its wait for a start-up message says EAGAIN once.
            Err(error) if [nix::libc::EAGAIN, nix::libc::EINTR].contains(&error.errno()) => {}
            _ => return false,
        }
    }
    false
}

/// 32-bit instructions: write a page, ring the doorbell, send INIT and start-up to the second processor, report.
fn boot_code() -> Vec<u8> {
    let mut code = Vec::new();
    store(&mut code, TOUCHED, 0x1234);
    out(&mut code, DOORBELL, 1);
    // The interrupt command register (SDM vol. 3 §11.6.1): destination 1; INIT, level assert; start-up with the page's number.
    store(&mut code, 0xfee0_0310, 1 << 24);
    store(&mut code, 0xfee0_0300, 0x0000_4500);
    store(&mut code, 0xfee0_0310, 1 << 24);
    store(&mut code, 0xfee0_0300, 0x0000_4600 | (SECOND_CODE >> 12) as u32);
    out(&mut code, REPORT, BOOT_DONE);
    code.push(HLT);
    code
}

/// 16-bit instructions: report.
fn second_code() -> Vec<u8> {
    let mut code = Vec::new();
    out(&mut code, REPORT, SECOND_DONE);
    code.push(HLT);
    code
}

const HLT: u8 = 0xf4;

/// `mov dword ptr [address], value`
fn store(code: &mut Vec<u8>, address: u32, value: u32) {
    code.extend([0xc7, 0x05]);
    code.extend(address.to_le_bytes());
    code.extend(value.to_le_bytes());
}

/// `mov al, value; out port, al`
fn out(code: &mut Vec<u8>, port: u8, value: u8) {
    code.extend([0xb0, value, 0xe6, port]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_hosts_kvm_is_probed_and_told() {
        if !present() {
            println!("skipped: there is no /dev/kvm");
            return;
        }
        let offer = probe().unwrap();
        println!("{offer}");
        // Whatever the processor behind it: a KVM without these is of no use to a machine.
        assert!(offer.lacks().is_empty(), "this KVM lacks {:?}", offer.lacks());
    }
}
