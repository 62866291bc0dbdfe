//! Registers at a guest's first instruction.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

/// `CR0.PE`: protected mode.
const CR0_PE: u64 = 1;
/// `CR0.ET`: reads as one on every processor since the 486.
const CR0_ET: u64 = 1 << 4;
/// Bit 1 of EFLAGS always reads as one.
const EFLAGS_FIXED: u64 = 1 << 1;

/// Flat 32-bit protected mode without paging and with interrupts off, at `entry` with `ebx`: the state that PVH asks
/// for (Xen `docs/misc/pvh.pandoc`: EBX holds the physical address of `hvm_start_info`; CS, DS and ES span 4 GiB; TR is
/// a 32-bit TSS of base 0 and limit 0x67; `CR4` is 0).
///
/// # Errors
/// KVM's answer.
pub(in crate::kvm) fn protected(vcpu: &VcpuFd, entry: u32, ebx: u32) -> Result<(), kvm_ioctls::Error> {
    let mut sregs: kvm_sregs = vcpu.get_sregs()?;
    let code = flat(0x08, 0xb);
    let data = flat(0x10, 0x3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.tr = kvm_segment {
        base: 0,
        limit: 0x67,
        selector: 0x18,
        type_: 0xb,
        present: 1,
        ..kvm_segment::default()
    };
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)?;
    start_at(vcpu, entry.into(), |regs| regs.rbx = ebx.into())
}

/// The Linux boot protocol's 32-bit state (`Documentation/arch/x86/boot.rst`, "32-bit Boot Protocol"): flat protected
/// mode with `__BOOT_CS` 0x10 and `__BOOT_DS` 0x18, and ESI at `boot_params`.
///
/// # Errors
/// KVM's answer.
pub(in crate::kvm) fn linux(
    vcpu: &VcpuFd,
    entry: u32,
    boot_params: u32,
    gdt: u64,
) -> Result<(), kvm_ioctls::Error> {
    let mut sregs: kvm_sregs = vcpu.get_sregs()?;
    let data = flat(0x18, 0x3);
    sregs.cs = flat(0x10, 0xb);
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.gdt.base = gdt;
    sregs.gdt.limit = (LINUX_GDT.len() * 8 - 1) as u16;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)?;
    start_at(vcpu, entry.into(), |regs| regs.rsi = boot_params.into())
}

/// The descriptor table that the Linux boot protocol wants loaded: flat code at 0x10, flat data at 0x18.
pub(in crate::kvm) const LINUX_GDT: [u64; 4] = [0, 0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

fn start_at(vcpu: &VcpuFd, rip: u64, set: impl FnOnce(&mut kvm_regs)) -> Result<(), kvm_ioctls::Error> {
    let mut regs = kvm_regs {
        rip,
        rflags: EFLAGS_FIXED,
        ..kvm_regs::default()
    };
    set(&mut regs);
    vcpu.set_regs(&regs)
}

/// A segment over all 4 GiB. `type_` 0xb: code, executed and read; 3: data, read and written (SDM vol. 3 §3.4.5.1).
fn flat(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    }
}
