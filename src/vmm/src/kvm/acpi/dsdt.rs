//! What the tables say in code (ACPI 6.5 §20): how to switch off, the root of PCI, the devices on ISA's ports.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, Scope,
};

use crate::kvm::layout::{CMOS, ECAM, ECAM_SIZE, HOLE, IO_APIC, SERIAL, SERIAL_IRQ};
use crate::kvm::legacy::power::SLEEP_TYPE_OFF;
use crate::kvm::legacy::{cmos, serial};
use crate::kvm::pci::CONFIG_PORTS;

/// First and last port of mechanism 1.
const CONFIG: u16 = 0xcf8;
const CONFIG_END: u16 = CONFIG + CONFIG_PORTS as u16 - 1;

/// The definition block's code.
pub(super) fn code() -> Vec<u8> {
    let mut out = Vec::new();
    // `\_S5`: what to write to the control registers in order to switch off (§7.4.2).
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&SLEEP_TYPE_OFF, &SLEEP_TYPE_OFF, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut out);

    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let config = IO::new(CONFIG, CONFIG, 1, CONFIG_PORTS as u8);
    let low_ports = AddressSpace::new_io(0u16, CONFIG - 1, None);
    let high_ports = AddressSpace::new_io(CONFIG_END + 1, u16::MAX, None);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        HOLE as u32,
        (ECAM - 1) as u32,
        None,
    );
    // Where firmware puts windows.
    let upper_memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        (ECAM + ECAM_SIZE) as u32,
        (IO_APIC - 1) as u32,
        None,
    );
    let root_resources = ResourceTemplate::new(vec![
        &bus,
        &config,
        &low_ports,
        &high_ports,
        &memory,
        &upper_memory,
    ]);
    let (express, plain) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let names: [(&str, &dyn Aml); 6] = [
        ("_HID", &express),
        ("_CID", &plain),
        ("_UID", &0u8),
        ("_SEG", &0u8),
        ("_BBN", &0u8),
        ("_CRS", &root_resources),
    ];
    let root = Owned::new("PCI0", &names);

    // The configuration space's place must be told of as a motherboard's resource (PCI Firmware 3.3 §4.1.2).
    let ecam = Memory32Fixed::new(true, ECAM as u32, ECAM_SIZE as u32);
    let board_resources = ResourceTemplate::new(vec![&ecam]);
    let motherboard = EISAName::new("PNP0C02");
    let board = Owned::new(
        "MBRD",
        &[("_HID", &motherboard), ("_UID", &0u8), ("_CRS", &board_resources)],
    );

    let line = IO::new(SERIAL as u16, SERIAL as u16, 1, serial::PORTS as u8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_IRQ);
    let line_resources = ResourceTemplate::new(vec![&line, &interrupt]);
    let uart = EISAName::new("PNP0501");
    let serial = Owned::new(
        "COM1",
        &[("_HID", &uart), ("_UID", &0u8), ("_CRS", &line_resources)],
    );

    let ports = IO::new(CMOS as u16, CMOS as u16, 1, cmos::PORTS as u8);
    let clock_resources = ResourceTemplate::new(vec![&ports]);
    let mc146818 = EISAName::new("PNP0B00");
    let clock = Owned::new("RTC0", &[("_HID", &mc146818), ("_CRS", &clock_resources)]);

    let devices: [&Owned; 4] = [&root, &board, &serial, &clock];
    let devices: Vec<&dyn Aml> = devices.into_iter().map(|device| device as &dyn Aml).collect();
    Scope::new("_SB_".into(), devices).to_aml_bytes(&mut out);
    out
}

/// A device's code.
struct Owned(Vec<u8>);

impl Owned {
    fn new(name: &str, names: &[(&str, &dyn Aml)]) -> Self {
        let names: Vec<Name> = names
            .iter()
            .map(|(name, value)| Name::new((*name).into(), *value))
            .collect();
        let children = names.iter().map(|name| name as &dyn Aml).collect();
        let mut code = Vec::new();
        Device::new(name.into(), children).to_aml_bytes(&mut code);
        Owned(code)
    }
}

impl Aml for Owned {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}
