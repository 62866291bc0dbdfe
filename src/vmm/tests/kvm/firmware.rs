//! Firmware: SeaBIOS, from Debian's package `seabios`, where it is installed.

use std::io::ErrorKind;

use model::disk::{DiskLimits, DiskSpec, DiskTransport};
use virtio::block::SECTOR;
use vmm::kvm::{Disk, Firmware};

use super::*;

/// The image that Debian installs.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";
/// What the server is called.
const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

/// A machine with SeaBIOS, if it is installed.
fn seabios() -> Option<Spec> {
    let image = match File::open(SEABIOS) {
        Ok(image) => image,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: there is no {SEABIOS}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    Some(with(image))
}

/// A machine with this firmware.
fn with(image: File) -> Spec {
    let id = ID.parse().unwrap();
    Spec {
        boot: Boot::Firmware(Firmware { image, id }),
        ..spec("")
    }
}

#[test]
fn seabios_looks_for_a_disk_and_stays_without_one() {
    if usable().is_none() {
        return;
    }
    let Some(spec) = seabios() else { return };
    let guest = Guest::new(spec).unwrap();
    guest.machine.control(Control::Start).unwrap();
    guest.prints("SeaBIOS (version ");
    guest.prints("No bootable device.");
}

/// A disk with this content.
fn disk(name: &str, bytes: &[u8]) -> Disk {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let spec = DiskSpec {
        id: ID.parse().unwrap(),
        size: bytes.len() as u64,
        read_only: false,
        queues: 1,
        direct: false,
        transport: DiskTransport::Embedded,
        key: None,
        limits: DiskLimits::default(),
    };
    let (geometry, storage) = storage::open(&spec, file.into()).unwrap();
    Disk {
        name: name.into(),
        geometry,
        storage,
    }
}

/// A disk with a boot sector, whose second sector says this.
fn bootable(second: &str) -> Disk {
    let mut bytes = guests::sector();
    assert_eq!(bytes.len(), SECTOR as usize);
    bytes.extend(second.as_bytes());
    bytes.resize(4 << 20, 0);
    disk("vda", &bytes)
}

/// What the boot sector says on this line, which begins so.
fn said<'a>(text: &'a str, what: &str) -> Vec<&'a str> {
    // Where SeaBIOS moves the cursor, a line ends by that.
    text.split(['\r', '\n', '\x1b'])
        .filter_map(|line| line.strip_prefix(what))
        .collect()
}

#[test]
fn seabios_boots_from_a_disk_and_hands_on_what_it_was_told() {
    let Some(offer) = usable() else { return };
    let Some(mut spec) = seabios() else { return };
    spec.memory_mib = 3 << 10;
    let vcpus = if offer.starts_processors { 2 } else { 1 };
    spec.vcpus = vcpus;
    spec.disks.push(bootable("of the right disk"));
    // Behind it is another, which is not booted.
    spec.disks.push(disk("vdb", &[0; 1 << 20]));
    let guest = Guest::new(spec).unwrap();
    let start = Instant::now();
    guest.machine.control(Control::Start).unwrap();
    assert_eq!(guest.ends(), Ending::PoweredOff, "{:?}", guest.text());
    println!("{vcpus} vCPUs, from power on to power off: {:?}", start.elapsed());
    let text = guest.text();
    assert!(text.contains(&format!("Machine UUID {ID}")), "{text}");
    assert_eq!(said(&text, "drive "), ["00000080"]);
    assert_eq!(said(&text, "sector "), ["of the right disk"]);
    let map = said(&text, "map ");
    for entry in [
        "00000000 0009FC00 00000001",
        "E0000000 00100000 00000002",
        // From 4 GiB on.
        "00000000 10000000 00000001",
    ] {
        assert!(map.contains(&entry), "{entry} is not in {text}");
    }
    for table in ["acpi ", "smbios "] {
        let found = said(&text, table);
        assert!(found.len() == 1 && found[0] != "00000000", "{text}");
    }
    if offer.readonly_memory {
        assert_eq!(
            said(&text, "rom "),
            ["00E05BEA"],
            "a jump to 0xf000:0xe05b: {text:?}"
        );
    }
}

#[test]
fn firmware_begins_anew_after_every_reset() {
    if usable().is_none() {
        return;
    }
    let Some(mut spec) = seabios() else { return };
    spec.disks.push(bootable("R"));
    let guest = Guest::new(spec).unwrap();
    guest.machine.control(Control::Start).unwrap();
    let status = guest.machine.wait(LONG, |status| {
        status.resets >= 2 || status.state != State::Running
    });
    assert_eq!(status.state, State::Running, "{:?}", guest.text());
    guest.machine.control(Control::Stop(StopMode::Hard)).unwrap();
    let text = guest.text();
    assert!(text.matches("SeaBIOS (version ").count() >= 2, "{text}");
    assert_eq!(said(&text, "sector "), ["R", "R"]);
}

#[test]
fn firmware_of_a_wrong_size_is_refused() {
    if usable().is_none() {
        return;
    }
    for size in [0, 100 << 10 | 1, 17 << 20] {
        let image = tempfile::tempfile().unwrap();
        image.set_len(size).unwrap();
        let refused = Guest::new(with(image));
        assert!(matches!(refused, Err(MachineError::Boot(_))), "{size}");
    }
}

/// SYSLINUX on a FAT filesystem that is the whole disk, if what makes it is installed.
fn syslinux() -> Option<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let settings = folder.path().join("syslinux.cfg");
    std::fs::write(&image, vec![0; 4 << 20]).unwrap();
    std::fs::write(&settings, "SAY HELLO-FROM-LOADER\nPROMPT 1\nDEFAULT none\n").unwrap();
    let mut commands = ["mkfs.vfat", "mcopy", "syslinux"].map(std::process::Command::new);
    commands[0].arg(&image);
    commands[1].arg("-i").args([&image, &settings]).arg("::");
    commands[2].arg("--install").arg(&image);
    for command in &mut commands {
        match command.output() {
            Ok(output) => assert!(output.status.success(), "{command:?}: {output:?}"),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                println!("skipped: {command:?} is not installed");
                return None;
            }
            Err(error) => panic!("{command:?}: {error}"),
        }
    }
    Some(std::fs::read(image).unwrap())
}

#[test]
fn a_real_boot_loader_starts() {
    if usable().is_none() {
        return;
    }
    let (Some(mut spec), Some(content)) = (seabios(), syslinux()) else {
        return;
    };
    spec.disks.push(disk("vda", &content));
    let guest = Guest::new(spec).unwrap();
    let start = Instant::now();
    guest.machine.control(Control::Start).unwrap();
    guest.prints("SYSLINUX ");
    println!("loader after {:?}", start.elapsed());
    // It returns from interrupts in protected mode, which KVM's emulator of instructions does not.
    let emulated = |status: &Status| match &status.state {
        State::Ended(Ending::Failed(why)) => why.contains("cannot execute the guest's instruction"),
        _ => false,
    };
    let ready = |guest: &Guest| guest.text().contains("HELLO-FROM-LOADER") && guest.text().contains("boot:");
    while !ready(&guest) {
        let status = guest.machine.wait(Duration::from_millis(50), emulated);
        if emulated(&status) {
            println!("skipped: {status:?}");
            return;
        }
        assert_eq!(status.state, State::Running, "{:?}", guest.text());
        assert!(start.elapsed() < LONG, "{:?}", guest.text());
    }
}
