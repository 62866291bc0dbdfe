//! Where things are in a guest's physical address space and among its ports.
//!
//! ```text
//!         0 ┬ memory below the hole
//!           │   0x500     descriptor table of a bzImage
//!           │   0x6000    PVH start information, map of memory, list of modules
//!           │   0x7000    Linux's boot parameters
//!           │   0x2_0000  command line
//!           │   0x9_fc00  firmware's area, ACPI tables from 0xe_0000 on: reserved
//!           │   0x10_0000 the kernel
//!  0xb000…  ┼ where firmware may want to see PCI configuration space
//!     3 GiB ┼ hole: 32-bit device memory
//!  0xe000…  │ ECAM, 1 MiB, and device memory behind it
//!  0xfec0…  │ IOAPIC, local APICs, KVM's own pages
//!  0xff00…  │ firmware, up to 16 MiB, at the end
//!     4 GiB ┼ memory above the hole
//!           ┴ 64-bit device memory behind it
//! ```

/// Where memory below the hole ends at the latest. SeaBIOS wants to see configuration space in the 256 MiB from here on
/// (`src/fw/dev-q35.h`), whatever the machine says.
pub(super) const LOW_END: u64 = 0xb000_0000;
/// Where the hole for devices begins.
pub(super) const HOLE: u64 = 3 << 30;
/// Where memory goes on after the hole.
pub(super) const HIGH_MEMORY: u64 = 4 << 30;
/// PCI configuration space of bus 0 (PCI Express base 5.0 §7.2.2).
pub(super) const ECAM: u64 = 0xe000_0000;
/// Bytes of [`ECAM`].
pub(super) const ECAM_SIZE: u64 = 1 << 20;
/// The IOAPIC, after which there are no devices of ours but firmware.
pub(super) const IO_APIC: u64 = 0xfec0_0000;
/// One page that KVM uses for real mode on old Intel processors: below the largest firmware.
pub(super) const IDENTITY_MAP: u64 = 0xfeff_c000;
/// Three pages that KVM uses likewise.
pub(super) const TASK_STATE: usize = 0xfeff_d000;
/// Where firmware begins at the earliest; it ends at 4 GiB.
pub(super) const FIRMWARE: u64 = 0xff00_0000;

/// The descriptor table that a bzImage starts with.
pub(super) const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info`.
pub(super) const PVH_INFO: u64 = 0x6000;
/// `hvm_modlist_entry`, at most one.
pub(super) const PVH_MODULES: u64 = 0x6100;
/// `hvm_memmap_table_entry`, a handful.
pub(super) const PVH_MAP: u64 = 0x6200;
/// `boot_params`.
pub(super) const BOOT_PARAMS: u64 = 0x7000;
/// The command line, ended by a zero byte.
pub(super) const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line in bytes, without its end.
pub(super) const COMMAND_LINE_MAX: usize = 0xffff;
/// The end of conventional memory.
pub(super) const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI's tables, in the firmware's area.
pub(super) const ACPI: u64 = 0xe_0000;
/// The beginning of memory that a kernel may use as it likes.
pub(super) const KERNEL: u64 = 0x10_0000;

/// First port of the first serial line.
pub(super) const SERIAL: u64 = 0x3f8;
/// Its interrupt.
pub(super) const SERIAL_IRQ: u32 = 4;
/// Data port of the keyboard controller.
pub(super) const I8042: u64 = 0x60;
/// Index port of the clock's memory.
pub(super) const CMOS: u64 = 0x70;
/// First port of ACPI's power management block.
pub(super) const PM: u64 = 0x600;
/// ACPI's interrupt.
pub(super) const SCI: u32 = 9;
/// First port of the firmware's configuration device.
pub(super) const FW_CFG: u64 = 0x510;
/// The address port of PCI configuration space.
pub(super) const PCI_CONFIG: u64 = 0xcf8;
/// The chipset's reset control register, among those ports.
pub(super) const RESET_CONTROL: u64 = 0xcf9;
