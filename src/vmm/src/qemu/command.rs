//! QEMU's command line, as a pure function of the plan.

use std::path::Path;

use model::disk::DiskTransport;

use crate::{Accelerator, Plan};

/// Stands for the number of the descriptor of QMP's listening socket, until the supervisor knows it.
pub(super) const QMP_DESCRIPTOR: &str = "@QMP@";

/// Bytes of translated code that TCG keeps, in MiB; its own default of up to 1 GiB is too much for a node of many guests.
const TRANSLATION_CACHE_MIB: u32 = 256;

/// TCG drops its translation of a page when QEMU itself writes there; what a vhost-user backend writes it does not see, and would run
/// what the page held before. So under TCG QEMU does the copying.
pub(super) fn disk_transport(accelerator: Accelerator) -> DiskTransport {
    match accelerator {
        Accelerator::Tcg => DiskTransport::Nbd,
        Accelerator::Kvm => DiskTransport::VhostUser,
    }
}

/// Slots for devices that come at run time, beside those that are there from the start. What is behind a root port can come and go;
/// what is on the root bus itself cannot.
pub(super) const SPARE_SLOTS: usize = 16;
/// The first of the root bus's addresses that root ports take, eight to each.
const FIRST_ADDRESS: usize = 0x10;

/// The name of a slot.
pub(super) fn slot(index: usize) -> String {
    format!("slot{index}")
}

/// How many slots a plan has.
fn slots(plan: &Plan) -> usize {
    // Eight addresses of eight are left for ports; nobody has so many devices.
    (plan.disks.len() + plan.nics.len() + SPARE_SLOTS).min(64)
}

/// The arguments for a plan. `sockets`: where QEMU sees the folder of vhost-user sockets.
pub(super) fn arguments(plan: &Plan, accelerator: Accelerator, sockets: &Path) -> Vec<String> {
    let id = plan.id;
    let memory = plan.memory_mib;
    let vcpus = plan.vcpus;
    let mut list: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| list.extend([option.to_owned(), value]);

    // What is not named here does not exist: no default devices, no configuration files, no monitor on a key press.
    add("-name", format!("guest={}-{id}", plain(&plan.name)));
    add("-uuid", id.to_string());
    add(
        "-machine",
        "q35,memory-backend=ram,usb=off,vmport=off,hpet=off,dump-guest-core=off".into(),
    );
    match accelerator {
        Accelerator::Tcg => {
            add(
                "-accel",
                format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MIB}"),
            );
            // Five-level page tables cost translated guests time and give them nothing.
            add("-cpu", "max,la57=off".into());
        }
        Accelerator::Kvm => {
            add("-accel", "kvm".into());
            add("-cpu", "host".into());
        }
    }
    add("-smp", format!("cpus={vcpus},sockets=1,cores={vcpus},threads=1"));
    add("-m", format!("{memory}M"));
    // Shared, so that the owners of disks and networks can map it (vhost-user).
    add(
        "-object",
        format!("memory-backend-memfd,id=ram,size={memory}M,share=on"),
    );
    add("-rtc", "base=utc".into());
    add("-display", "none".into());
    add("-global", "ICH9-LPC.disable_s3=1".into());
    add("-global", "ICH9-LPC.disable_s4=1".into());
    // The product name by which cloud-init knows OpenStack (DataSourceOpenStack, "OpenStack Compute").
    add(
        "-smbios",
        format!(
            "type=1,manufacturer=Allod,product=OpenStack Compute,serial={id},uuid={id},family=Virtual Machine"
        ),
    );
    add(
        "-chardev",
        format!("socket,id=qmp,fd={QMP_DESCRIPTOR},server=on,wait=off"),
    );
    add("-mon", "chardev=qmp,mode=control".into());
    add("-chardev", "stdio,id=console,signal=off".into());
    add("-serial", "chardev:console".into());
    add("-object", "rng-builtin,id=rng".into());
    add(
        "-device",
        "virtio-rng-pci,rng=rng,disable-legacy=on,max-bytes=65536,period=1000".into(),
    );
    for index in 0..slots(plan) {
        add(
            "-device",
            format!(
                "pcie-root-port,id={},chassis={},addr={:#x}.{},multifunction=on,io-reserve=0",
                slot(index),
                index + 1,
                FIRST_ADDRESS + index / 8,
                index % 8
            ),
        );
    }
    for (index, disk) in plan.disks.iter().enumerate() {
        let path = escaped(&sockets.join(&disk.socket));
        let name = escaped(Path::new(&disk.socket));
        let device = match accelerator {
            Accelerator::Kvm => {
                add("-chardev", format!("socket,id={name},path={path},reconnect=1"));
                format!("vhost-user-blk-pci,chardev={name},num-queues={}", disk.queues)
            }
            // Requests wait for an owner that is being replaced, and are then sent again.
            Accelerator::Tcg => {
                add(
                    "-blockdev",
                    format!(
                        "driver=nbd,node-name={name},server.type=unix,server.path={path},\
                         reconnect-delay=86400,auto-read-only=on,discard=unmap"
                    ),
                );
                format!("virtio-blk-pci,drive={name},num-queues=1,serial={}", disk.serial)
            }
        };
        add(
            "-device",
            format!(
                "{device},id={name}-device,bus={},disable-legacy=on,bootindex={}",
                slot(index),
                index + 1
            ),
        );
    }
    // QEMU 7.2 (Debian 12) crashes when a driver starts a vhost-user network device with MSI-X and there is
    // no KVM, for it looks up an irqfd that is not there. Without vectors the device has one interrupt line.
    let vectors = match accelerator {
        Accelerator::Tcg => ",vectors=0",
        Accelerator::Kvm => "",
    };
    for (index, nic) in plan.nics.iter().enumerate() {
        let path = escaped(&sockets.join(&nic.socket));
        let name = escaped(Path::new(&nic.socket));
        let bus = slot(plan.disks.len() + index);
        add("-chardev", format!("socket,id={name},path={path},reconnect=1"));
        add(
            "-netdev",
            format!("vhost-user,id={name}-peer,chardev={name},queues=1"),
        );
        add(
            "-device",
            format!(
                "virtio-net-pci,id={name}-device,bus={bus},netdev={name}-peer,mac={},host_mtu={},romfile=,disable-legacy=on{vectors}",
                nic.mac, nic.mtu
            ),
        );
    }
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
    );
    list.extend(["-nodefaults", "-no-user-config"].map(String::from));
    list
}

/// A tenant's name in letters that mean nothing to QEMU.
fn plain(name: &str) -> String {
    name.chars()
        .take(32)
        .map(|c| {
            if c.is_ascii_alphanumeric() || c == '-' || c == '.' {
                c
            } else {
                '_'
            }
        })
        .collect()
}

/// A comma in a value is doubled (qemu(1), "-name").
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{PlannedBoot, PlannedDisk, PlannedNic};

    fn plan(name: &str) -> Plan {
        Plan {
            id: Uuid::from_u128(7),
            name: name.into(),
            vcpus: 2,
            memory_mib: 512,
            boot: PlannedBoot::Bios,
            disks: vec![
                PlannedDisk {
                    socket: "disk0".into(),
                    queues: 2,
                    serial: "volume-1".into(),
                    embedded: None,
                },
                PlannedDisk {
                    socket: "disk1".into(),
                    queues: 1,
                    serial: "volume-2".into(),
                    embedded: None,
                },
            ],
            nics: vec![PlannedNic {
                socket: "net0".into(),
                mac: "fa:16:3e:00:00:01".parse().unwrap(),
                mtu: 1450,
            }],
            folder: "/state/machines/7".into(),
        }
    }

    #[test]
    fn the_accelerator_is_named_and_memory_is_shared() {
        for (accelerator, start) in [(Accelerator::Tcg, "tcg,"), (Accelerator::Kvm, "kvm")] {
            let list = arguments(&plan("web"), accelerator, Path::new("/guest"));
            let value = |option: &str| &list[list.iter().position(|x| x == option).unwrap() + 1];
            assert!(value("-accel").starts_with(start));
            assert_eq!(list.iter().filter(|x| *x == "-accel").count(), 1);
            assert_eq!(value("-object"), "memory-backend-memfd,id=ram,size=512M,share=on");
            for option in ["-nodefaults", "-no-user-config", "-sandbox"] {
                assert!(list.iter().any(|x| x == option), "{option}");
            }
        }
    }

    #[test]
    fn disks_boot_in_order_and_everything_comes_back_after_a_restart_of_its_server() {
        let common = [
            "socket,id=net0,path=/guest/net0,reconnect=1",
            "vhost-user,id=net0-peer,chardev=net0,queues=1",
            "pcie-root-port,id=slot0,chassis=1,addr=0x10.0,multifunction=on,io-reserve=0",
            "pcie-root-port,id=slot18,chassis=19,addr=0x12.2,multifunction=on,io-reserve=0",
        ];
        let kvm = [
            "socket,id=disk0,path=/guest/disk0,reconnect=1",
            "vhost-user-blk-pci,chardev=disk0,num-queues=2,id=disk0-device,bus=slot0,disable-legacy=on,bootindex=1",
            "vhost-user-blk-pci,chardev=disk1,num-queues=1,id=disk1-device,bus=slot1,disable-legacy=on,bootindex=2",
            "virtio-net-pci,id=net0-device,bus=slot2,netdev=net0-peer,mac=fa:16:3e:00:00:01,host_mtu=1450,romfile=,disable-legacy=on",
        ];
        let tcg = [
            "driver=nbd,node-name=disk0,server.type=unix,server.path=/guest/disk0,reconnect-delay=86400,auto-read-only=on,discard=unmap",
            "virtio-blk-pci,drive=disk0,num-queues=1,serial=volume-1,id=disk0-device,bus=slot0,disable-legacy=on,bootindex=1",
            "virtio-blk-pci,drive=disk1,num-queues=1,serial=volume-2,id=disk1-device,bus=slot1,disable-legacy=on,bootindex=2",
            "virtio-net-pci,id=net0-device,bus=slot2,netdev=net0-peer,mac=fa:16:3e:00:00:01,host_mtu=1450,romfile=,disable-legacy=on,vectors=0",
        ];
        for (accelerator, expected) in [(Accelerator::Kvm, kvm), (Accelerator::Tcg, tcg)] {
            let list = arguments(&plan("web"), accelerator, Path::new("/guest"));
            for expected in expected.iter().chain(&common) {
                assert!(list.iter().any(|x| x == expected), "{expected}\n{list:#?}");
            }
        }
    }

    #[test]
    fn a_name_cannot_add_options() {
        let list = arguments(
            &plan("x,debug-threads=on -accel kvm\n\u{1F600}"),
            Accelerator::Tcg,
            Path::new("/a,b"),
        );
        let name = &list[list.iter().position(|x| x == "-name").unwrap() + 1];
        assert_eq!(
            name,
            "guest=x_debug-threads_on_-accel_kvm__-00000000-0000-0000-0000-000000000007"
        );
        assert!(
            list.iter()
                .any(|x| x == "socket,id=net0,path=/a,,b/net0,reconnect=1")
        );
    }
}
