//! A vCPU's whole state, as KVM hands it out and takes it back.

use kvm_bindings::{
    Msrs, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events,
    kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;

/// The time stamp counter. It runs on over a reset; only an offset would be set, and differently for each vCPU.
const MSR_TSC: u32 = 0x10;

/// The state.
pub(in crate::kvm) struct State {
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Box<kvm_xsave>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

impl State {
    /// Read it. The vCPU must not run. Of the machine-specific registers those of `indices` that this vCPU has.
    ///
    /// # Errors
    /// KVM's answer.
    pub(in crate::kvm) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Self, kvm_ioctls::Error> {
        Ok(State {
            mp_state: vcpu.get_mp_state()?,
            regs: vcpu.get_regs()?,
            sregs: vcpu.get_sregs()?,
            xsave: Box::new(vcpu.get_xsave()?),
            xcrs: vcpu.get_xcrs()?,
            debug: vcpu.get_debug_regs()?,
            lapic: vcpu.get_lapic()?,
            msrs: read_msrs(vcpu, indices)?,
            events: vcpu.get_vcpu_events()?,
        })
    }

    /// Set it. The vCPU must not run.
    ///
    /// # Errors
    /// KVM's answer.
    pub(in crate::kvm) fn write(&self, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
        vcpu.set_mp_state(self.mp_state)?;
        vcpu.set_regs(&self.regs)?;
        vcpu.set_sregs(&self.sregs)?;
        // SAFETY: KVM reads as many bytes as the guest's features need, which is `kvm_xsave` unless a process asks for
        // dynamic features (AMX) by arch_prctl, which nobody does here; and the area came from KVM.
        #[allow(unsafe_code)]
        unsafe { vcpu.set_xsave(&self.xsave) }?;
        vcpu.set_xcrs(&self.xcrs)?;
        vcpu.set_debug_regs(&self.debug)?;
        // After the system registers, which hold the local APIC's base.
        vcpu.set_lapic(&self.lapic)?;
        write_msrs(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)
    }
}

/// Whether a register's value belongs to the state.
fn kept(index: u32) -> bool {
    index != MSR_TSC
}

fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, kvm_ioctls::Error> {
    let mut rest: Vec<_> = indices
        .iter()
        .copied()
        .filter(|index| kept(*index))
        .map(|index| kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        })
        .collect();
    let mut values = Vec::with_capacity(rest.len());
    // KVM stops at the first register that this vCPU does not have: leave that one out and go on.
    while !rest.is_empty() {
        let mut batch = Msrs::from_entries(&rest).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let done = vcpu.get_msrs(&mut batch)?.min(rest.len());
        values.extend_from_slice(&batch.as_slice()[..done]);
        rest.drain(..(done + 1).min(rest.len()));
    }
    Ok(values)
}

/// Set machine-specific registers; those that cannot be written are left as they are.
fn write_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), kvm_ioctls::Error> {
    let mut rest = entries;
    while !rest.is_empty() {
        let batch = Msrs::from_entries(rest).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))?;
        let done = vcpu.set_msrs(&batch)?;
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}
