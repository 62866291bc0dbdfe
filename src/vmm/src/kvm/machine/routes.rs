//! Interrupts and doorbells of a machine, by KVM.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::lifecycle::StateError;
use crate::kvm::pci::msix::{Message, Routes};
use crate::kvm::virtio::transport::Doorbells;

/// Pins of the IOAPIC: numbers below are ISA's and its own.
const PINS: u32 = 24;
/// Numbers that KVM knows (`KVM_MAX_IRQ_ROUTES`).
const MAX_NUMBERS: u32 = 4096;

/// A machine's routes.
pub(in crate::kvm) struct KvmRoutes {
    vm: Arc<VmFd>,
    next: AtomicU32,
    messages: Mutex<BTreeMap<u32, Message>>,
}

impl KvmRoutes {
    /// Those of this machine.
    pub(in crate::kvm) fn new(vm: Arc<VmFd>) -> Self {
        KvmRoutes {
            vm,
            next: AtomicU32::new(PINS),
            messages: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Message>> {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tell KVM of all routes; it takes nothing less.
    fn tell(&self, messages: &BTreeMap<u32, Message>) -> Result<(), StateError> {
        let pins = (0..16u32)
            .map(|pin| match pin {
                0..8 => (pin, KVM_IRQCHIP_PIC_MASTER, pin),
                _ => (pin, KVM_IRQCHIP_PIC_SLAVE, pin - 8),
            })
            .chain((0..PINS).map(|pin| (pin, KVM_IRQCHIP_IOAPIC, pin)));
        let mut entries: Vec<kvm_irq_routing_entry> = pins
            .map(|(gsi, chip, pin)| {
                let mut entry = kvm_irq_routing_entry {
                    gsi,
                    type_: KVM_IRQ_ROUTING_IRQCHIP,
                    ..kvm_irq_routing_entry::default()
                };
                entry.u.irqchip.irqchip = chip;
                entry.u.irqchip.pin = pin;
                entry
            })
            .collect();
        entries.extend(messages.iter().map(|(gsi, message)| {
            let mut entry = kvm_irq_routing_entry {
                gsi: *gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                ..kvm_irq_routing_entry::default()
            };
            entry.u.msi.address_lo = message.address as u32;
            entry.u.msi.address_hi = (message.address >> 32) as u32;
            entry.u.msi.data = message.data;
            entry
        }));
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| StateError::Os(format!("too many routes: {error:?}")))?;
        self.vm
            .set_gsi_routing(&routing)
            .map_err(|error| StateError::Os(error.to_string()))
    }
}

impl Routes for KvmRoutes {
    fn connect(&self, vector: &EventFd, number: u32, message: Message) -> Result<(), StateError> {
        let mut messages = self.lock();
        messages.insert(number, message);
        let result = self.tell(&messages).and_then(|()| {
            self.vm
                .register_irqfd(vector, number)
                .map_err(|error| StateError::Os(error.to_string()))
        });
        if result.is_err() {
            messages.remove(&number);
        }
        result
    }

    fn disconnect(&self, vector: &EventFd, number: u32) {
        if let Err(error) = self.vm.unregister_irqfd(vector, number) {
            tracing::warn!(%error, number, "an interrupt stays connected");
        }
        // KVM keeps the route until the next one is told; without an irqfd nobody uses it.
        self.lock().remove(&number);
    }

    fn allocate(&self) -> Option<u32> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        (next < MAX_NUMBERS).then_some(next)
    }
}

impl Doorbells for KvmRoutes {
    fn bind(&self, address: u64, bell: &EventFd) -> Result<(), StateError> {
        self.vm
            .register_ioevent(bell, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(|error| StateError::Os(error.to_string()))
    }

    fn unbind(&self, address: u64, bell: &EventFd) {
        let address = IoEventAddress::Mmio(address);
        if let Err(error) = self.vm.unregister_ioevent(bell, &address, NoDatamatch) {
            tracing::warn!(%error, "a doorbell stays bound");
        }
    }
}
