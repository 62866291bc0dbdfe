//! Which Linux boots on this host's KVM, and how.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::paths;

/// The environment variable with the path of a kernel that boots on this host's KVM.
pub const LINUX: &str = "ALLOD_KVM_LINUX";
/// The environment variable with what must stand on that kernel's command line.
pub const COMMAND_LINE: &str = "ALLOD_KVM_LINUX_LINE";
/// The environment variable with the modules, in the order of `PATH`, that such a kernel must load to see a virtio device.
pub const MODULES: &str = "ALLOD_KVM_LINUX_MODULES";

/// How KVM runs guests on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kvm {
    /// On the processor, which has VMX or SVM: any kernel boots.
    Hardware,
    /// Ring 3 on the processor, ring 0 emulated: only the kernel of `tests/kvm-linux` boots.
    Software,
}

/// What a guest boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestKernel {
    /// A bzImage, or an ELF with a PVH entry.
    pub path: PathBuf,
    /// The initial RAM disk that finds the small guest's disk, where the kernel cannot by itself.
    pub initrd: Option<PathBuf>,
    /// The command line for the small guest's disk (`cargo xtask guest-image`) as the first virtio disk.
    pub command_line: String,
}

impl Kvm {
    /// What this host has; `None` without a `/dev/kvm` that we may open.
    pub fn of_host() -> Option<Self> {
        File::options().read(true).write(true).open("/dev/kvm").ok()?;
        Some(Self::on(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()))
    }

    fn on(cpuinfo: &str) -> Self {
        let assisted = cpuinfo
            .lines()
            .filter(|line| line.starts_with("flags"))
            .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
        if assisted { Kvm::Hardware } else { Kvm::Software }
    }

    /// What must stand on a kernel's command line, whatever it boots.
    pub fn command_line(self) -> &'static str {
        match self {
            Kvm::Hardware => "console=ttyS0 panic=-1 reboot=k tsc=reliable no_timer_check",
            // Without what the emulator lacks, without measuring against an emulated clock, and without a tree of parameters
            // that takes nearly a second to make.
            Kvm::Software => {
                "console=ttyS0 panic=-1 reboot=k tsc=reliable no_timer_check lpj=1000000 rodata=off noxsave nofsgsbase nopcid \
                 noinvpcid initcall_blacklist=param_sysfs_builtin_init clearcpuid=erms,fsrm,smap,smep,popcnt,cx16,invpcid,rdrand,rdseed,rdtscp,rdpid,movbe,pku,serialize,\
                 clwb"
            }
        }
    }
}

/// The kernel for a guest with the small guest's disk; `None`, and a word why, where no guest can run on KVM or
/// `cargo xtask kvm-linux` has made no kernel.
pub fn linux() -> Option<TestKernel> {
    let Some(kvm) = Kvm::of_host() else {
        println!("skipped: there is no usable KVM");
        return None;
    };
    let path = paths::kvm_linux();
    if !path.exists() {
        println!("skipped: there is no {}; cargo xtask kvm-linux", path.display());
        return None;
    }
    let (initrd, more) = match kvm {
        Kvm::Hardware => (
            Some(path.with_file_name("initrd")),
            "quiet mitigations=off apparmor=0 net.ifnames=0 cryptomgr.notests",
        ),
        Kvm::Software => (None, "quiet root=/dev/vda2 rw"),
    };
    Some(TestKernel {
        path,
        initrd,
        command_line: format!("{} {more}", kvm.command_line()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_flags_tell() {
        let cpu = |flags: &str| {
            Kvm::on(&format!(
                "processor\t: 0\nmodel name\t: svm vmx\nflags\t\t: {flags}\n"
            ))
        };
        assert_eq!(cpu("fpu vme svm sse"), Kvm::Hardware);
        assert_eq!(cpu("fpu vmx"), Kvm::Hardware);
        assert_eq!(cpu("fpu svm_lock vmx_ept"), Kvm::Software);
        assert_eq!(Kvm::on(""), Kvm::Software);
    }
}
