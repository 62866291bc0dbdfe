//! Putting a machine together.

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, kvm_msr_entry,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::routes::KvmRoutes;
use super::{MAX_DEVICES, MAX_VCPUS, MachineError, Message, Spec};
use crate::kvm::boot::{Boot, Source};
use crate::kvm::bus::Bus;
use crate::kvm::cpu::cpuid;
use crate::kvm::cpu::gate::Gate;
use crate::kvm::cpu::model::CpuModel;
use crate::kvm::cpu::state::State as VcpuState;
use crate::kvm::cpu::thread::{Buses, Vcpu};
use crate::kvm::firmware::{self, Rom};
use crate::kvm::layout;
use crate::kvm::legacy::cmos::{self, Cmos};
use crate::kvm::legacy::fw_cfg::{self, FwCfg};
use crate::kvm::legacy::output::{Output, Sink};
use crate::kvm::legacy::power::{self, Power};
use crate::kvm::legacy::reset::{I8042, I8042_PORTS, ResetControl};
use crate::kvm::legacy::serial::{self, Line, Serial};
use crate::kvm::lifecycle::Lifecycle;
use crate::kvm::memory::Ram;
use crate::kvm::pci::{CONFIG_PORTS, ConfigPorts, Functions, IsaBridge, Root, Window};
use crate::kvm::request::Requests;
use crate::kvm::virtio::Device;
use crate::kvm::virtio::balloon::Balloon;
use crate::kvm::virtio::block::BlockDevice;
use crate::kvm::virtio::console::ConsoleDevice;
use crate::kvm::virtio::net::{NetDevice, Nic};
use crate::kvm::virtio::rng::Rng;
use crate::kvm::virtio::transport::{VirtioPci, WINDOW};
use crate::kvm::virtio::vsock::VsockDevice;

/// The interrupt controllers' state.
pub(super) struct Chips {
    irqchips: [kvm_bindings::kvm_irqchip; 3],
    /// Of a machine that has one.
    pit: Option<kvm_bindings::kvm_pit_state2>,
}

impl Chips {
    fn read(vm: &VmFd, pit: bool) -> Result<Self, kvm_ioctls::Error> {
        let mut irqchips = [0, 1, 2].map(|chip_id| kvm_bindings::kvm_irqchip {
            chip_id,
            ..kvm_bindings::kvm_irqchip::default()
        });
        for chip in &mut irqchips {
            vm.get_irqchip(chip)?;
        }
        Ok(Chips {
            irqchips,
            pit: pit.then(|| vm.get_pit2()).transpose()?,
        })
    }

    pub(super) fn write(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        for chip in &self.irqchips {
            vm.set_irqchip(chip)?;
        }
        self.pit.as_ref().map_or(Ok(()), |pit| vm.set_pit2(pit))
    }
}

/// KVM's slot of the firmware; memory has those from 0 on.
const ROM_SLOT: u32 = 31;

/// A machine's parts. They are dropped in this order: KVM lets go of the memory before it is unmapped.
pub(super) struct Parts {
    pub(super) vcpus: Vec<Vcpu>,
    pub(super) devices: Vec<Arc<dyn Lifecycle>>,
    pub(super) power: Arc<Power>,
    pub(super) disks: Vec<Arc<BlockDevice>>,
    pub(super) balloon: Option<Arc<Balloon>>,
    pub(super) console: Option<Arc<ConsoleDevice>>,
    pub(super) nics: Vec<Arc<NetDevice>>,
    pub(super) vm: Arc<VmFd>,
    pub(super) ram: Ram,
    /// Each vCPU's state before the first boot, and the interrupt controllers'.
    pub(super) first: Vec<VcpuState>,
    pub(super) chips: Chips,
    pub(super) boot: Source,
    pub(super) gate: Arc<Gate>,
    /// They write what is left of the consoles when they are dropped.
    pub(super) _outputs: (Output, Option<Output>),
    pub(super) clock_adjusts: bool,
}

pub(super) fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { what, source }
}

fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Io { what, source }
}

/// Put the machine together. Its vCPUs wait at the gate.
pub(super) fn build(spec: Spec, console: impl Sink, send: &Sender<Message>) -> Result<Parts, MachineError> {
    let system = match spec.kvm {
        // SAFETY: the descriptor is given up by its owner here, and belongs to the new value alone.
        #[allow(unsafe_code)]
        Some(descriptor) => unsafe { Kvm::from_raw_fd(descriptor.into_raw_fd()) },
        None => Kvm::new().map_err(kvm("cannot open /dev/kvm"))?,
    };
    let version = system.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(MachineError::NotKvm);
    }
    let most = MAX_VCPUS.min(u32::try_from(system.get_max_vcpus()).unwrap_or(MAX_VCPUS));
    if !(1..=most).contains(&spec.vcpus) {
        return Err(MachineError::Vcpus {
            wanted: spec.vcpus,
            most,
        });
    }
    if spec.balloon && spec.huge_pages {
        return Err(MachineError::HugeBalloon);
    }
    let ram = Ram::new(spec.memory_mib, spec.huge_pages)?;
    let (boot, server) = match spec.boot {
        Boot::Kernel(kernel) => (Source::Kernel(kernel), None),
        Boot::Firmware(firmware) => {
            let id = firmware.id;
            (Source::Firmware(Rom::new(firmware)?), Some(id))
        }
    };
    let vm = Arc::new(make_vm(&system, &ram, &boot)?);
    let fds = make_vcpus(&system, &vm, spec.vcpus, spec.cpu)?;
    let indices = system
        .get_msr_index_list()
        .map_err(kvm("cannot list machine-specific registers"))?;
    let first = fds
        .iter()
        .map(|fd| VcpuState::read(fd, indices.as_slice()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(kvm("cannot read a virtual processor's state"))?;
    let chips =
        Chips::read(&vm, has_pit(&boot)).map_err(kvm("cannot read the interrupt controllers' state"))?;

    let gate = Arc::new(Gate::new());
    let requests = Requests::new(gate.clone(), send.clone());
    let output = Output::start("serial", console).map_err(io("cannot start the console's thread"))?;

    let line = EventFd::new(EFD_NONBLOCK).map_err(io("cannot make an eventfd"))?;
    vm.register_irqfd(&line, layout::SERIAL_IRQ)
        .map_err(kvm("cannot bind the serial line's interrupt"))?;
    let serial = Arc::new(Serial::new(Line(line), output.printer(gate.clone())));
    let i8042 = Arc::new(I8042::new(requests.clone()));
    let control = Arc::new(ResetControl::new(requests.clone()));
    let memory_bytes = spec.memory_mib << 20;
    let clock = Arc::new(Cmos::new(ram.low_end(), memory_bytes - ram.low_end()));
    let power = Arc::new(Power::new(vm.clone(), requests.clone()));

    let mut ports = Bus::default();
    ports.add(layout::SERIAL, serial::PORTS, serial.clone())?;
    ports.add(layout::I8042, I8042_PORTS, i8042.clone())?;
    ports.add(layout::CMOS, cmos::PORTS, clock.clone())?;
    ports.add(layout::PM, power::PORTS, power.clone())?;
    let routes = Arc::new(KvmRoutes::new(vm.clone()));
    let disks: Vec<_> = spec
        .disks
        .into_iter()
        .map(|disk| Arc::new(BlockDevice::new(disk)))
        .collect();
    let nics = make_nics(spec.nics)?;
    let mut devices: Vec<Arc<dyn Device>> = Vec::new();
    devices.extend(disks.iter().map(|disk| disk.clone() as Arc<dyn Device>));
    devices.extend(nics.iter().map(|nic| nic.clone() as Arc<dyn Device>));
    devices.push(Arc::new(Rng::default()));
    let balloon = spec.balloon.then(|| Arc::new(Balloon::new(spec.memory_mib)));
    devices.extend(balloon.iter().map(|balloon| balloon.clone() as Arc<dyn Device>));
    let second = spec.console.map(|console| Output::start("console", console.0));
    let second = second
        .transpose()
        .map_err(io("cannot start a console's thread"))?;
    let console = second
        .as_ref()
        .map(|output| Arc::new(ConsoleDevice::new(output.inlet())));
    devices.extend(console.iter().map(|console| console.clone() as Arc<dyn Device>));
    if let Some(vsock) = spec.vsock {
        if !vsock.is_sound() {
            return Err(MachineError::Cid(vsock.cid));
        }
        let vsock = VsockDevice::new(vsock).map_err(io("cannot listen for a guest"))?;
        devices.push(Arc::new(vsock));
    }
    let most = MAX_DEVICES - usize::from(server.is_some());
    let functions = make_functions(devices, most, &ram, &routes)?;
    // What only firmware looks for.
    let isa = server.map(|_| Arc::new(IsaBridge::new()));
    let fw_cfg = server.map(|id| {
        // They are the first on the bus, behind the host bridge.
        let disks: Vec<_> = (1..).take(disks.len()).collect();
        let items = firmware::items(id, spec.vcpus, &ram, &disks);
        Arc::new(FwCfg::new(items, ram.memory().clone()))
    });
    if let Some(fw_cfg) = &fw_cfg {
        ports.add(layout::FW_CFG, fw_cfg::PORTS, fw_cfg.clone())?;
    }
    let root = Arc::new(Root::new(functions.clone(), isa.clone()));
    let config = Arc::new(ConfigPorts::new(root.clone(), control.clone()));
    ports.add(layout::PCI_CONFIG, CONFIG_PORTS, config.clone())?;
    let mut memory = Bus::default();
    memory.add(layout::ECAM, layout::ECAM_SIZE, root.clone())?;
    for (start, end) in [
        (layout::LOW_END, layout::ECAM),
        (layout::ECAM + layout::ECAM_SIZE, layout::IO_APIC),
    ] {
        let window = Arc::new(Window::new(start, root.clone()));
        memory.add(start, end - start, window)?;
    }
    let buses = Arc::new(Buses { ports, memory });

    let mut parts = Parts {
        vcpus: Vec::with_capacity(fds.len()),
        devices: vec![serial, i8042, control, clock, root, config, power.clone()],
        power,
        disks,
        balloon,
        console,
        nics,
        vm,
        ram,
        first,
        chips,
        boot,
        gate: gate.clone(),
        _outputs: (output, second),
        clock_adjusts: system.check_extension(Cap::AdjustClock),
    };
    parts.devices.extend(isa.map(|isa| isa as Arc<dyn Lifecycle>));
    parts
        .devices
        .extend(fw_cfg.map(|device| device as Arc<dyn Lifecycle>));
    for function in functions {
        parts.devices.push(function);
    }
    for (index, fd) in (0..).zip(fds) {
        let vcpu = Vcpu::start(index, fd, gate.clone(), buses.clone(), requests.clone());
        parts
            .vcpus
            .push(vcpu.map_err(io("cannot start a virtual processor's thread"))?);
    }
    Ok(parts)
}

fn make_nics(nics: Vec<Nic>) -> Result<Vec<Arc<NetDevice>>, MachineError> {
    let make = |nic: Nic| {
        if !nic.is_sound() {
            return Err(MachineError::Nic(nic.name));
        }
        let device = NetDevice::new(nic).map_err(io("cannot start a network interface"))?;
        Ok(Arc::new(device))
    };
    nics.into_iter().map(make).collect()
}

/// The functions on the bus, their windows one after the other from the hole's beginning on.
fn make_functions(
    devices: Vec<Arc<dyn Device>>,
    most: usize,
    ram: &Ram,
    routes: &Arc<KvmRoutes>,
) -> Result<Functions, MachineError> {
    let names: BTreeSet<_> = devices.iter().map(|device| device.name()).collect();
    if names.len() != devices.len() || devices.len() > most {
        return Err(MachineError::Devices);
    }
    let memory = Arc::new(ram.memory().clone());
    let bases = (layout::HOLE as u32..).step_by(WINDOW as usize);
    let mut functions = Functions::new();
    for (device, base) in devices.into_iter().zip(bases) {
        let function = VirtioPci::new(device, memory.clone(), base, routes.clone(), routes.clone());
        functions.push(Arc::new(function.map_err(MachineError::Device)?));
    }
    Ok(functions)
}

impl Drop for Parts {
    fn drop(&mut self) {
        self.gate.end();
        for vcpu in &mut self.vcpus {
            vcpu.kick();
        }
        for vcpu in &mut self.vcpus {
            vcpu.join();
        }
    }
}

fn make_vm(system: &Kvm, ram: &Ram, boot: &Source) -> Result<VmFd, MachineError> {
    let vm = loop {
        match system.create_vm() {
            // A signal came while the kernel was at it.
            Err(error) if error.errno() == libc::EINTR => {}
            result => break result.map_err(kvm("cannot make a machine"))?,
        }
    };
    vm.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm("cannot place KVM's identity map"))?;
    vm.set_tss_address(layout::TASK_STATE)
        .map_err(kvm("cannot place KVM's task state"))?;
    // Memory first: each change of KVM's memory or buses waits for readers of the ones before, which is quick only while
    // there are none (seen: 0.3 ms here, 5.9 ms behind the timer).
    for (slot, (start, size, host)) in (0..).zip(ram.slots()?) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the slot is a mapping of `ram`, which `Parts` drops after the machine; nothing in this process keeps
        // references into it, but accesses it as volatile memory.
        #[allow(unsafe_code)]
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("cannot give the machine memory"))?;
    }
    if let Source::Firmware(rom) = boot {
        let (start, size, host) = rom.slot();
        let region = kvm_userspace_memory_region {
            slot: ROM_SLOT,
            // What the guest writes comes to the bus then, where nothing listens. Without this the guest changes its copy of the
            // firmware, until the next reset.
            flags: if system.check_extension(Cap::ReadonlyMem) {
                KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: start,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the slot is a mapping of `rom`, which `Parts` drops after the machine; nothing in this process keeps
        // references into it, but accesses it as volatile memory.
        #[allow(unsafe_code)]
        unsafe { vm.set_user_memory_region(region) }.map_err(kvm("cannot give the machine its firmware"))?;
    }
    vm.create_irq_chip()
        .map_err(kvm("cannot make interrupt controllers"))?;
    if has_pit(boot) {
        // Port 0x61, where a kernel looks for the speaker's timer, answers too.
        vm.create_pit2(kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        })
        .map_err(kvm("cannot make a timer"))?;
    }
    Ok(vm)
}

/// Whether there is an 8254. Firmware and boot loaders count time by it. A kernel that starts at once is told KVM's clock and the
/// processor's frequency, and has the local APIC's timer; for a device that nobody asks KVM would start a thread and wait for it.
fn has_pit(boot: &Source) -> bool {
    matches!(boot, Source::Firmware(_))
}

/// `IA32_MISC_ENABLE`: string instructions are fast.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE`: memory types are on, and all memory is write-back, as firmware would leave it.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// Offsets of the local APIC's two pins, and what firmware sets: the 8259's interrupts, and the NMI (SDM vol. 3 §11.5.1).
const LINT0: (usize, u32) = (0x350, 7 << 8);
const LINT1: (usize, u32) = (0x360, 4 << 8);

fn make_vcpus(system: &Kvm, vm: &VmFd, count: u32, model: CpuModel) -> Result<Vec<VcpuFd>, MachineError> {
    let mut supported = system
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("cannot read the CPUID leaves"))?;
    model
        .apply(supported.as_mut_slice())
        .map_err(MachineError::CpuModel)?;
    let tsc_deadline = system.check_extension(Cap::TscDeadlineTimer);
    let mut fds = Vec::with_capacity(count as usize);
    for index in 0..count {
        let fd = vm
            .create_vcpu(index.into())
            .map_err(kvm("cannot make a virtual processor"))?;
        let leaves = cpuid::leaves(supported.as_slice(), index, count, tsc_deadline);
        let leaves = CpuId::from_entries(&leaves).map_err(|_| MachineError::Kvm {
            what: "too many CPUID leaves",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        fd.set_cpuid2(&leaves)
            .map_err(kvm("cannot set the CPUID leaves"))?;
        let entries = [MISC_ENABLE, MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        });
        let msrs = kvm_bindings::Msrs::from_entries(&entries).map_err(|_| MachineError::Kvm {
            what: "too many machine-specific registers",
            source: kvm_ioctls::Error::new(libc::E2BIG),
        })?;
        let set = fd
            .set_msrs(&msrs)
            .map_err(kvm("cannot set machine-specific registers"))?;
        if set != entries.len() {
            tracing::debug!(
                vcpu = index,
                set,
                "not every machine-specific register can be set"
            );
        }
        let mut lapic = fd.get_lapic().map_err(kvm("cannot read a local APIC"))?;
        for (at, value) in [LINT0, LINT1] {
            for (to, from) in lapic.regs[at..at + 4].iter_mut().zip(value.to_le_bytes()) {
                *to = from as _;
            }
        }
        fd.set_lapic(&lapic).map_err(kvm("cannot set a local APIC"))?;
        fds.push(fd);
    }
    Ok(fds)
}
