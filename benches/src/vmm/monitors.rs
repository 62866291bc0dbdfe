//! The monitors that are set side by side, and how each is told of a machine.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use allod_tests::{paths, run};
use anyhow::{Context, Result};
use serde_json::json;

/// The guest's memory in MiB, unless a figure needs more.
pub const MEMORY_MIB: u64 = 128;

/// A monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Allod,
    /// Firecracker, with its devices on virtio-mmio.
    Firecracker,
    /// Firecracker, with its devices on PCI.
    FirecrackerPci,
    /// Cloud Hypervisor: PCI.
    CloudHypervisor,
    /// QEMU's machine `microvm`, with its devices on virtio-mmio and without ACPI.
    Qemu,
    /// The same with PCI and ACPI.
    QemuPci,
}

/// A monitor that was found.
#[derive(Debug, Clone)]
pub struct Monitor {
    /// Which.
    pub kind: Kind,
    program: PathBuf,
}

/// A machine.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    /// The kernel: an ELF with a PVH entry.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub line: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// A disk.
    pub disk: Option<PathBuf>,
    /// A TAP device, by the name that it gets.
    pub tap: Option<String>,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Allod => "allod",
            Kind::Firecracker => "firecracker",
            Kind::FirecrackerPci => "firecracker-pci",
            Kind::CloudHypervisor => "cloud-hypervisor",
            Kind::Qemu => "qemu-microvm",
            Kind::QemuPci => "qemu-microvm-pci",
        })
    }
}

impl Kind {
    /// The environment variable with its path, and its name on the path of programs.
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Kind::Allod => ("ALLOD", "allod"),
            Kind::Firecracker | Kind::FirecrackerPci => ("FIRECRACKER", "firecracker"),
            Kind::CloudHypervisor => ("CLOUD_HYPERVISOR", "cloud-hypervisor"),
            Kind::Qemu | Kind::QemuPci => ("QEMU", "qemu-system-x86_64"),
        }
    }
}

/// Ours.
pub fn ours() -> Monitor {
    Monitor {
        kind: Kind::Allod,
        program: paths::allod(),
    }
}

/// Ours, and of these peers those that are there; says which are not.
pub fn found(peers: &[Kind]) -> Vec<Monitor> {
    let mut found = vec![ours()];
    for &kind in peers {
        let (variable, name) = kind.place();
        let program = match env::var_os(variable) {
            Some(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
            None => run::exists(name).then(|| name.into()),
        };
        match program {
            Some(program) => found.push(Monitor { kind, program }),
            None => println!("{kind}: not found; {variable} can name it"),
        }
    }
    found
}

impl Monitor {
    /// The command that runs this machine with its serial line on standard output. `folder` is for what it needs beside.
    pub fn command(&self, machine: &Machine, folder: &Path) -> Result<Command> {
        let mut command = Command::new(&self.program);
        match self.kind {
            Kind::Allod => Self::allod(&mut command, machine),
            Kind::Firecracker | Kind::FirecrackerPci => {
                let file = folder.join("firecracker.json");
                fs::write(&file, firecracker(machine).to_string())?;
                command
                    .args(["--no-api", "--level", "Error", "--config-file"])
                    .arg(file);
                if self.kind == Kind::FirecrackerPci {
                    command.arg("--enable-pci");
                }
            }
            Kind::CloudHypervisor => Self::cloud_hypervisor(&mut command, machine)?,
            Kind::Qemu | Kind::QemuPci => Self::qemu(&mut command, machine, self.kind == Kind::QemuPci)?,
        }
        Ok(command)
    }

    /// Ours, in a jailed child as the cloud runs it, with its console's log in `folder`. A TAP device stands for a network
    /// interface, whose switch is not there.
    pub fn jailed(&self, machine: &Machine, folder: &Path) -> Command {
        let mut command = Command::new(&self.program);
        Self::allod(&mut command, machine);
        command.arg("--jail").arg(folder);
        if machine.tap.is_some() {
            command.args(["--nics", "1"]);
        }
        command
    }

    fn allod(command: &mut Command, machine: &Machine) {
        command.arg("machine").arg("--kernel").arg(&machine.kernel);
        command.args(["--command-line", &machine.line]);
        command.args(["--memory", &machine.memory_mib.to_string()]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initrd").arg(initrd);
        }
        if let Some(disk) = &machine.disk {
            command.arg("--direct").arg("--disk").arg(disk);
        }
    }

    fn cloud_hypervisor(command: &mut Command, machine: &Machine) -> Result<()> {
        command.arg("--kernel").arg(&machine.kernel);
        command.args(["--cmdline", &machine.line, "--cpus", "boot=1"]);
        command.args(["--memory", &format!("size={}M", machine.memory_mib)]);
        command.args(["--serial", "file=/dev/stdout", "--console", "off"]);
        if let Some(initrd) = &machine.initrd {
            command.arg("--initramfs").arg(initrd);
        }
        if let Some(disk) = &machine.disk {
            let path = disk.to_str().context("a path is not UTF-8")?;
            command.args(["--disk", &format!("path={path},direct=on,image_type=raw")]);
        }
        if let Some(tap) = &machine.tap {
            command.args(["--net", &format!("tap={tap}")]);
        }
        Ok(())
    }

    fn qemu(command: &mut Command, machine: &Machine, pci: bool) -> Result<()> {
        command.args([
            "-accel",
            "kvm",
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-M",
        ]);
        command.arg(if pci { "microvm,acpi=on,pcie=on" } else { "microvm" });
        command.args([
            "-m",
            &machine.memory_mib.to_string(),
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        command
            .arg("-kernel")
            .arg(&machine.kernel)
            .args(["-append", &machine.line]);
        if let Some(initrd) = &machine.initrd {
            command.arg("-initrd").arg(initrd);
        }
        let bus = if pci { "pci" } else { "device" };
        if let Some(disk) = &machine.disk {
            let path = disk.to_str().context("a path is not UTF-8")?;
            command.args([
                "-drive",
                &format!("if=none,id=d,format=raw,cache=none,aio=io_uring,file={path}"),
            ]);
            command.args(["-device", &format!("virtio-blk-{bus},drive=d")]);
        }
        if let Some(tap) = &machine.tap {
            command.args([
                "-netdev",
                &format!("tap,id=n,ifname={tap},script=no,downscript=no"),
            ]);
            command.args(["-device", &format!("virtio-net-{bus},netdev=n")]);
        }
        Ok(())
    }
}

/// Firecracker's file.
fn firecracker(machine: &Machine) -> serde_json::Value {
    let mut boot = json!({"kernel_image_path": machine.kernel, "boot_args": machine.line});
    if let Some(initrd) = &machine.initrd {
        boot["initrd_path"] = json!(initrd);
    }
    let drive = |path: &PathBuf| {
        json!({"drive_id": "disk", "path_on_host": path, "is_root_device": false, "is_read_only": false,
            "cache_type": "Unsafe", "io_engine": "Async"})
    };
    let interface = |tap: &String| json!({"iface_id": "eth0", "host_dev_name": tap});
    json!({
        "boot-source": boot,
        "drives": machine.disk.iter().map(drive).collect::<Vec<_>>(),
        "network-interfaces": machine.tap.iter().map(interface).collect::<Vec<_>>(),
        "machine-config": {"vcpu_count": 1, "mem_size_mib": machine.memory_mib},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_monitor_is_told_of_the_whole_machine() {
        let folder = tempfile::tempdir().unwrap();
        let machine = Machine {
            kernel: "/kernel".into(),
            initrd: Some("/initrd".into()),
            line: "quiet".into(),
            memory_mib: 64,
            disk: Some("/disk".into()),
            tap: Some("tap0".into()),
        };
        for kind in [
            Kind::Firecracker,
            Kind::FirecrackerPci,
            Kind::CloudHypervisor,
            Kind::Qemu,
            Kind::QemuPci,
        ] {
            let monitor = Monitor {
                kind,
                program: "monitor".into(),
            };
            let command = monitor.command(&machine, folder.path()).unwrap();
            let mut text = format!("{command:?}");
            if let Ok(file) = fs::read_to_string(folder.path().join("firecracker.json")) {
                text += &file;
                fs::remove_file(folder.path().join("firecracker.json")).unwrap();
            }
            for word in ["/kernel", "/initrd", "quiet", "64", "/disk", "tap0"] {
                assert!(text.contains(word), "{kind}: {text}");
            }
        }
        let text = format!("{:?}", ours().jailed(&machine, Path::new("/folder")));
        for word in ["/kernel", "/initrd", "quiet", "64", "/disk", "--nics", "/folder"] {
            assert!(text.contains(word), "{text}");
        }
    }
}
