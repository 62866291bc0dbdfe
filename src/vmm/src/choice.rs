//! Which engine runs guests on this node, and how.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The embedded monitor.
    Kvm,
    /// An installed QEMU.
    Qemu,
}

/// What executes a guest's instructions in QEMU. The choice is never left to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Translation in software.
    Tcg,
    /// The processor's virtualisation.
    Kvm,
}

/// A choice, with its reason for the log and for `allod doctor`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The engine.
    pub engine: EngineKind,
    /// QEMU's accelerator, if QEMU is the engine.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

/// Choose: `None` is automatic, which is hardware exactly where `/proc/cpuinfo` (its text is given) shows `vmx` or `svm`.
/// (`/dev/kvm` alone says nothing: it can be there without virtualisation behind it.)
pub fn choose(engine: Option<EngineKind>, accelerator: Option<Accelerator>, cpuinfo: &str) -> Choice {
    let flag = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .flat_map(str::split_ascii_whitespace)
        .find(|&flag| flag == "vmx" || flag == "svm");
    let seen = flag.map_or("/proc/cpuinfo shows neither vmx nor svm".to_owned(), |f| {
        format!("/proc/cpuinfo shows {f}")
    });
    let automatic = if flag.is_some() {
        Accelerator::Kvm
    } else {
        Accelerator::Tcg
    };
    let accelerator = accelerator.unwrap_or(automatic);
    let (engine, reason) = match engine {
        Some(engine) => (engine, "the configuration names it".to_owned()),
        None if flag.is_some() => (EngineKind::Kvm, seen),
        None => (EngineKind::Qemu, seen),
    };
    Choice {
        engine,
        accelerator,
        reason,
    }
}

/// The processor's flags as the kernel tells them; empty if it does not.
pub fn cpuinfo() -> String {
    std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn automatic_follows_the_processors_flags_and_nothing_else() {
        let plain = "processor\t: 0\nflags\t\t: fpu vme svm_lock\nbugs\t: vmx\n";
        let vmx = "flags\t\t: fpu vmx sse\n";
        let svm = "flags\t\t: fpu svm\n";
        for (cpuinfo, engine, accelerator) in [
            (plain, EngineKind::Qemu, Accelerator::Tcg),
            (vmx, EngineKind::Kvm, Accelerator::Kvm),
            (svm, EngineKind::Kvm, Accelerator::Kvm),
            ("", EngineKind::Qemu, Accelerator::Tcg),
        ] {
            let choice = choose(None, None, cpuinfo);
            assert_eq!(
                (choice.engine, choice.accelerator),
                (engine, accelerator),
                "{cpuinfo}"
            );
        }
        let named = choose(Some(EngineKind::Qemu), Some(Accelerator::Tcg), vmx);
        assert_eq!(
            (named.engine, named.accelerator),
            (EngineKind::Qemu, Accelerator::Tcg)
        );
    }
}
